"""The verb ``replace``: a new board becomes what a dead one was. No sockets, no SQL."""

from __future__ import annotations

from typing import Any

from cloudmanager.protocol.errors import ServerError, TargetError
from cloudmanager.protocol.targets import parse_target
from cm_server.jobs.model import Board
from cm_server.rollouts import plans
from cm_server.store.rollout_replacements import BoardReplacement

from .request_context import RequestContext
from .reservation_verbs import check_not_reserved


async def replace_board(context: RequestContext) -> dict[str, Any]:
    """Let a board become what another one was, which is removed from the fleet."""
    services, token = context.services, context.token
    old, new = _find_board(context, "target"), _find_board(context, "new")
    if old is new:
        raise ServerError(f"{old.name} cannot replace itself: name the dead board, then the new")
    _check_dead(old)
    check_not_reserved([new], token.name)
    entry = context.audit_entry
    entry.boards = 2
    entry.detail = f"{old.id} by {new.id}, which was {new.name}"
    if new.serial or old.serial:
        entry.detail += f"; serial number {new.serial or 'none'}, before {old.serial or 'none'}"
    refusal = plans.refusal_reason(new)
    request = BoardReplacement(old.id, old.name, new.id, new.name, token.name, token.hash, refusal)
    done = await services.enrolment.replace(request, services.rollouts.place, entry)
    services.rollouts.reload()
    if done.waiting:
        services.dispatch.waiting.on_rows_added([new.id])
        services.dispatch.waiting.on_added([new.id])
    return {
        "name": request.old_name,
        "was": request.new_name,
        "id": new.id,
        "replaced": old.id,
        "waiting_jobs": len(done.waiting),
        **done.rollout._asdict(),
    }


def _check_dead(old: Board) -> None:
    """Refuse to replace a board that is connected: its owner may have named the wrong one."""
    if old.online:
        raise ServerError(
            f"{old.name} is connected, so it is not dead: switch it off first, or check whether "
            "the two names are the other way round"
        )


def _find_board(context: RequestContext, field: str) -> Board:
    """Return the one board that a field of the request names, connected or not."""
    text = str(context.body.get(field) or "")
    names = parse_target(text).listed_names(context.boards)
    if len(names) != 1:
        hint = "Write the name of one board."
        raise TargetError("One board replaces one other board.", text, 0, hint)
    return context.boards[names[0]]
