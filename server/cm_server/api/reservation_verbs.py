"""The verbs ``reserve`` and ``release``: a caller has boards to itself for a while.

No sockets, no SQL.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from cloudmanager.protocol.errors import NotAllowed, ServerError
from cloudmanager.protocol.targets import fold_names
from cm_server.auth import access
from cm_server.auth.credentials import ROLES
from cm_server.jobs.model import Board, Reservation

from .request_context import RequestContext, resolve_boards


async def reserve_boards(context: RequestContext) -> dict[str, Any]:
    """Reserve boards for the caller: all of them or, if somebody else has one, none."""
    services, caller = context.services, context.token.name
    seconds = _read_seconds(context)
    boards = resolve_boards(context)
    check_not_reserved(boards, caller)
    until = time.time() + seconds
    context.audit_entry.detail = f"for {seconds:g} s"
    ids, audit_row = [board.id for board in boards], context.audit_entry.to_row()
    await services.store_queue.run(
        lambda store: store.reserve_boards(ids, caller, until, audit_row),
        refusable=True,
        durable=True,
    )
    context.audit_entry.written = True
    for board in boards:
        services.dispatch.scheduler.set_reservation(board, Reservation(caller, until))
    return {"boards": [board.name for board in boards], "until": until}


def _read_seconds(context: RequestContext) -> float:
    seconds: Any = context.body.get("seconds")
    longest = context.services.limits.reservation_seconds
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if is_number and 0 < seconds <= longest:  # not if NaN
        return float(seconds)
    raise ServerError(f"a board can be reserved for up to {longest / 86400:g} days")


def check_not_reserved(boards: Iterable[Board], caller: str) -> None:
    """Check that nobody else has reserved boards.

    Raises:
        ServerError: somebody has.
    """
    names: dict[str, list[str]] = {}
    for board in boards:
        reservation = board.reservation
        if reservation is not None and reservation.caller != caller:
            names.setdefault(_reserved_text(reservation), []).append(board.name)
    if names:
        parts = [f"{fold_names(each)}: {text}" for text, each in names.items()]
        raise ServerError("; ".join(parts))


def _reserved_text(reservation: Reservation) -> str:
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(reservation.until))
    return f"reserved by {reservation.caller} until {until}"


async def release_boards(context: RequestContext) -> list[str]:
    """End reservations: the caller's own, or anybody's for an administrator.

    Returns:
        The names of the boards that were reserved.
    """
    services, token = context.services, context.token
    chosen = resolve_boards(context)
    ids = [board.id for board in chosen]  # of all: another server's reservation may be unknown here
    boards = [board for board in chosen if board.reservation is not None]
    is_admin = access.has_role(token, ROLES[-1])
    if not is_admin:
        others = [board.name for board in boards if not _is_reserved_by(board, token.name)]
        if others:
            raise NotAllowed(f"admin, to release what others have reserved ({fold_names(others)})")
    audit_row = context.audit_entry.to_row()
    caller = None if is_admin else token.name
    await services.store_queue.run(
        lambda store: store.release_boards_of(ids, caller, audit_row), refusable=True, durable=True
    )
    context.audit_entry.written = True
    for board in boards:
        if is_admin or _is_reserved_by(board, token.name):
            services.dispatch.scheduler.set_reservation(board, None)
    return [board.name for board in boards]


def _is_reserved_by(board: Board, caller: str) -> bool:
    reservation = board.reservation
    return reservation is not None and reservation.caller == caller
