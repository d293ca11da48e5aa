"""The context of one request: token, boards, body, audit entry. No sockets, no SQL."""

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
    """What a verb's function knows of the request.

    Attributes:
        token: the caller's token.
        boards: the boards that the token covers, by name; the function cannot see others.
        body: the request's JSON, not checked.
        audit_entry: becomes the request's row in the audit log; the function adds details.
        connection: the caller's; uploads and plans belong to it.
    """

    server: Server
    token: TokenRow
    boards: Mapping[str, Board]
    body: dict[str, Any]
    audit_entry: AuditEntry
    connection: object = None


def resolve_boards(context: RequestContext) -> list[Board]:
    """Return the boards of a request's target, and count them in the audit entry.

    Without a target, the verbs ``boards`` and ``jobs`` mean all boards that the token covers.

    Raises:
        TargetError: the target is missing, cannot be parsed, or selects no board.
        NoSuchBoard: it names a board that does not exist or that the token does not cover.
    """
    boards, target = context.boards, context.body.get("target")
    if target is None and context.body["verb"] in ("boards", "jobs"):
        return sorted(boards.values(), key=lambda board: natural_key(board.name))
    chosen = [boards[name] for name in parse_target(str(target or "")).resolve(boards).names]
    context.audit_entry.boards = len(chosen)
    return chosen
