"""What a caller asks for, once: who, what, of which boards. No sockets, no SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudmanager.protocol.targets import natural_key, parse_target
from cm_server.auth.audit import AuditEntry
from cm_server.jobs.registry import Board
from cm_server.store.rows import TokenRow

if TYPE_CHECKING:
    from cm_server.app import Server


class RequestContext(NamedTuple):
    """What somebody asks for.

    Attributes:
        token: the token that he came in with.
        boards: those that the token reaches: for this call, there are no others.
        body: what he said.
        audit_entry: what becomes the call's row in the audit log.
        connection: the conversation that it is part of.
    """

    server: Server
    token: TokenRow
    boards: Mapping[str, Board]
    body: dict[str, Any]
    audit_entry: AuditEntry
    connection: object = None


def resolve_boards(context: RequestContext) -> list[Board]:
    """Return the boards of a request's target; to look at, without one, every one in reach."""
    boards, target = context.boards, context.body.get("target")
    if target is None and context.body["verb"] in ("boards", "jobs"):
        return sorted(boards.values(), key=lambda board: natural_key(board.name))
    chosen = [boards[name] for name in parse_target(str(target or "")).resolve(boards).names]
    context.audit_entry.boards = len(chosen)
    return chosen
