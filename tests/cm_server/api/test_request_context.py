"""The boards of a call: those of its target, within the caller's reach."""

from __future__ import annotations

from typing import Any

import pytest

from cloudmanager.protocol.errors import CloudmanagerError
from cm_server.api.request_context import Call, choose
from cm_server.auth import access
from cm_server.auth.audit import Note
from cm_server.jobs.registry import Registry
from cm_server.store.rows import TokenRow, new_board


def call(reaches: str, **body: Any) -> Call:
    rows = [new_board(f"id{n}", f"lab-{n}", bytes(32)) for n in (10, 2, 1)]
    token = TokenRow("h", "ann", "viewer", reaches)
    boards = access.within(token, Registry(rows).by_name)
    return Call(None, token, boards, body, Note("ann", "", "boards"))  # type: ignore[arg-type]


def test_without_a_target_all_in_reach_are_looked_at_in_peoples_order():
    names = [board.name for board in choose(call("all", verb="boards"))]
    assert names == ["lab-1", "lab-2", "lab-10"]


def test_a_target_stays_within_reach_and_is_counted():
    asked = call("lab-[1-2]", verb="label", target="lab-2")
    assert [board.name for board in choose(asked)] == ["lab-2"]
    assert asked.note.boards == 1
    with pytest.raises(CloudmanagerError, match="lab-10"):
        choose(call("lab-[1-2]", verb="label", target="lab-10"))
