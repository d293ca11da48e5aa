"""Asking the boards what a name is: those that are idle, for a moment, and never a running cell."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from cloudmanager.client import verbs
from cloudmanager.client.async_fleet import wait_done
from cloudmanager.client.jobs import JobGroup
from cloudmanager.protocol.errors import CloudmanagerError
from cm_magics import fleet

ANSWER_SECONDS: Final = 0.3  # in which an answer is of use to somebody who types
_BOARD_CALL: Final = '__import__("cm.look").look.'  # binds no name on the board


class FoundName:
    """A name, its kind (function, class, module, instance or ""), and the boards that have it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.boards: list[str] = []


async def list_names(target: str, path: str, prefix: str) -> tuple[dict[str, FoundName], list[str]]:
    """Return the names that begin with ``prefix`` in what is at ``path``, and who answered."""
    told = await _ask_boards(target, f"names({path!r}, {prefix!r})")
    found: dict[str, FoundName] = {}
    for board, pairs in told.items():
        for kind, name in pairs if isinstance(pairs, list) else ():
            found.setdefault(str(name), FoundName(str(kind))).boards.append(board)
    return found, list(told)


async def describe_name(target: str, path: str) -> dict[str, tuple[str, str, str]]:
    """Return kind, type and value of what is at ``path``, by board; "" for no plain value."""
    told = await _ask_boards(target, f"about({path!r})")
    return {
        board: (str(about[0]), str(about[1]), str(about[2]))
        for board, about in told.items()
        if isinstance(about, tuple) and len(about) == 3
    }


async def _ask_boards(target: str, call: str) -> dict[str, Any]:
    """Return what each board answered within the time; nothing where there is no server."""
    group = JobGroup(verbs.prepare_cached(_BOARD_CALL + call))
    # Tab is no place to complain.
    with contextlib.suppress(CloudmanagerError, asyncio.TimeoutError):
        await asyncio.wait_for(_submit_and_wait(target, group), ANSWER_SECONDS)
    results = {board: job.result for board, job in group.jobs.items() if job.result is not None}
    return {board: result.value for board, result in results.items() if result.ok}


async def _submit_and_wait(target: str, group: JobGroup) -> None:
    options = {"idle": True, "timeout": ANSWER_SECONDS}
    # In a thread: it dials, where there is no link, and that may take its time.
    await asyncio.to_thread(verbs.submit_group, fleet()[target], group, options)
    await wait_done(group.finished)
    group.finished.result()
