"""The verb ``stay``: boards that sleep stay awake for a while when they wake.

No sockets, no SQL.
"""

from __future__ import annotations

import time
from typing import Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server.jobs.model import Stay

from .request_context import RequestContext, resolve_boards


async def keep_awake(context: RequestContext) -> list[str]:
    """Keep boards awake for a while: now, or when they wake next; with 0 seconds, not any more.

    Returns:
        The names of the boards.
    """
    services = context.services
    seconds, boards = _read_seconds(context), resolve_boards(context)
    context.audit_entry.detail = f"for {seconds:g} s"
    expires = time.time() + services.limits.stay_expires_seconds
    stay = Stay(seconds, expires) if seconds else None
    values = {"stay_seconds": stay and stay.seconds, "stay_until": stay and stay.until}
    changes, audit_row = {board.id: values for board in boards}, context.audit_entry.to_row()
    await services.store_queue.run(
        lambda store: store.update_boards(changes, audit_row), refusable=True, durable=True
    )
    context.audit_entry.written = True
    for board in boards:
        stays = board.stay is not None and board.stay.seconds is None
        board.stay = stay
        if stays and board.link is not None:  # it waits until then: it is to ask again at once
            board.link.send(wire.pack_sleep_reply(0.0))
    return [board.name for board in boards]


def _read_seconds(context: RequestContext) -> float:
    seconds: Any = context.body.get("seconds")
    longest = context.services.limits.stay_seconds
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if is_number and 0 <= seconds <= longest:  # not if NaN
        return float(seconds)
    raise ServerError(f"a board can be kept awake for up to {longest / 3600:g} hours")
