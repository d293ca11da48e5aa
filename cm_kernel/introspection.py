"""Asking the boards what a name is: those that are idle, for a moment, and never a running cell."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from cloudmanager.client import verbs
from cloudmanager.client.async_fleet import done
from cloudmanager.client.jobs import JobGroup
from cloudmanager.protocol.errors import CloudmanagerError
from cm_magics import fleet

SECONDS: Final = 0.3  # in which an answer is of use to somebody who types
_CALL: Final = '__import__("cm.look").look.'  # binds no name on the board


class Found:
    """A name, its kind (function, class, module, instance or ""), and the boards that have it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.boards: list[str] = []


async def names(target: str, path: str, start: str) -> tuple[dict[str, Found], list[str]]:
    """Return the names that begin with ``start`` in what is at ``path``, and who answered."""
    told = await _ask(target, f"names({path!r}, {start!r})")
    found: dict[str, Found] = {}
    for board, pairs in told.items():
        for kind, name in pairs if isinstance(pairs, list) else ():
            found.setdefault(str(name), Found(str(kind))).boards.append(board)
    return found, list(told)


async def about(target: str, path: str) -> dict[str, tuple[str, str, str]]:
    """Return kind, type and value of what is at ``path``, by board; "" for no plain value."""
    told = await _ask(target, f"about({path!r})")
    return {
        board: (str(about[0]), str(about[1]), str(about[2]))
        for board, about in told.items()
        if isinstance(about, tuple) and len(about) == 3
    }


async def _ask(target: str, call: str) -> dict[str, Any]:
    """Return what each board answered within the time; nothing where there is no server."""
    group = JobGroup(verbs.prepare(_CALL + call))
    # Tab is no place to complain.
    with contextlib.suppress(CloudmanagerError, asyncio.TimeoutError):
        await asyncio.wait_for(_answered(target, group), SECONDS)
    results = {board: job.result for board, job in group.jobs.items() if job.result is not None}
    return {board: result.value for board, result in results.items() if result.ok}


async def _answered(target: str, group: JobGroup) -> None:
    options = {"idle": True, "timeout": SECONDS}
    # In a thread: it dials, where there is no link, and that may take its time.
    await asyncio.to_thread(verbs.send, fleet()[target], group, options)
    await done(group.finished)
    group.finished.get()
