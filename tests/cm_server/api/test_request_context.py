"""The boards of a request: those of its target that the token covers."""

from __future__ import annotations

from typing import Any

import pytest

from cloudmanager.protocol.errors import CloudmanagerError
from cm_server.api.request_context import RequestContext, resolve_boards
from cm_server.auth import access
from cm_server.auth.audit import AuditEntry
from cm_server.jobs.registry import Registry
from cm_server.store.rows import TokenRow, new_board_row


def context(reaches: str, **body: Any) -> RequestContext:
    rows = [new_board_row(f"id{n}", f"lab-{n}", bytes(32)) for n in (10, 2, 1)]
    token = TokenRow("h", "ann", "viewer", reaches)
    boards = access.reachable_boards(token, Registry(rows).by_name)
    return RequestContext(None, token, boards, body, AuditEntry("ann", "", "boards"))  # type: ignore[arg-type]


def test_no_target_means_all_covered_boards_in_natural_order():
    names = [board.name for board in resolve_boards(context("all", verb="boards"))]
    assert names == ["lab-1", "lab-2", "lab-10"]


def test_target_selects_covered_boards_only_and_is_counted():
    request = context("lab-[1-2]", verb="label", target="lab-2")
    assert [board.name for board in resolve_boards(request)] == ["lab-2"]
    assert request.audit_entry.boards == 1
    with pytest.raises(CloudmanagerError, match="lab-10"):
        resolve_boards(context("lab-[1-2]", verb="label", target="lab-10"))
