"""What a caller asks for, once: who, what, of which boards. No sockets, no SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudmanager.protocol.targets import natural_key, parse
from cm_server.auth.audit import Note
from cm_server.jobs.registry import Board
from cm_server.store.rows import TokenRow

if TYPE_CHECKING:
    from cm_server.app import Server


class Call(NamedTuple):
    """What somebody asks for.

    Attributes:
        caller: the token that he came in with.
        boards: those that the token reaches: for this call, there are no others.
        body: what he said.
        note: what becomes the call's row in the audit log.
        owner: the conversation that it is part of.
    """

    server: Server
    caller: TokenRow
    boards: Mapping[str, Board]
    body: dict[str, Any]
    note: Note
    owner: object = None


def choose(call: Call) -> list[Board]:
    """Return the boards of a request's target; to look at, without one, every one in reach."""
    boards, target = call.boards, call.body.get("target")
    if target is None and call.body["verb"] in ("boards", "jobs"):
        return sorted(boards.values(), key=lambda board: natural_key(board.name))
    chosen = [boards[name] for name in parse(str(target or "")).resolve(boards).names]
    call.note.boards = len(chosen)
    return chosen
