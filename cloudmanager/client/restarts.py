"""Restarts the chip of boards, or starts its boot loader."""

from __future__ import annotations

import dataclasses
import errno
import time
from collections.abc import Mapping, Sequence
from typing import Final

from cloudmanager.protocol.run_options import RunOptions
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.history import HARD_RESET
from cloudmanager.results.results import Result, Results

from .cells import Cell, prepare_cell
from .files import failed_result
from .future import sleep
from .jobs import JobGroup
from .progress import ProgressCallback
from .verb import HasTarget

RESTART_SECONDS: Final = 60.0  # in which a board starts, joins its Wi-Fi and connects
_POLL_SECONDS: Final = 0.12  # between two looks at the boards
#: Where the client runs, a task calls FUNCTION once the result of this cell has been sent.
_LATER: Final = """
try:
    import asyncio, cm
except ImportError:  # a board on a bridge: the result does not arrive
    FUNCTION()
async def later():
    await asyncio.sleep_ms(300)
    FUNCTION()
asyncio.create_task(later())
"""
#: A start of the program before a restart that somebody asks for is no bad one: only other
#: restarts lead to safe mode (mpy_client/cm/app.py). It ends no safe mode either.
_RESET_CODE: Final = """
import sys
app = sys.modules.get("cm.app")
if getattr(app, "bad", 3) < 3 and hasattr(app, "good"):
    app.good()
try:
    from cm.state import console
    reset = console.hard_reset  # also of a virtual board, which has no machine.reset
except ImportError:
    from machine import reset
""" + _LATER.replace("FUNCTION", "reset")
_BOOTLOADER_CODE: Final = """
try:
    from machine import bootloader
except ImportError:
    raise OSError("this board's MicroPython cannot start a boot loader")
""" + _LATER.replace("FUNCTION", "bootloader")


async def reset_chips(boards: HasTarget, progress: ProgressCallback | None) -> Results:
    """Reset the boards' chips and wait until they are back: see ``CellVerbs.reset``."""
    # First a soft reset: it ends the user's program, which may keep a board busy.
    fresh = await _run(boards, boards.target, prepare_cell(""), fresh=True)
    target = fold_names(name for name, result in fresh.items() if result.ok)
    if not target:
        return fresh
    before = await _last_links(boards, target)
    last = await _run_before_end(boards, target, hard_reset_cell())
    results = {**fresh, **last}
    waiting = [name for name, result in last.items() if result.ok]
    deadline = time.monotonic() + RESTART_SECONDS
    while waiting and time.monotonic() < deadline:
        _report(progress, results, waiting)
        await sleep(_POLL_SECONDS)
        since = await _last_links(boards, fold_names(waiting))
        waiting = [name for name in waiting if since.get(name) in (None, before.get(name))]
    _report(progress, results, ())
    for name in waiting:
        why = f"it did not come back from its reset within {RESTART_SECONDS:g} s"
        results[name] = failed_result(name, OSError(errno.ETIMEDOUT, why, name))
    return Results(results, fresh.left_out)


async def start_bootloaders(boards: HasTarget) -> Results:
    """Start the boards' boot loaders: see ``CellVerbs.bootloader``."""
    cell = _make_cell(_BOOTLOADER_CODE, "boot loader")
    return await _run_before_end(boards, boards.target, cell, fresh=True)


def hard_reset_code() -> str:
    """Return the code of a cell that resets the chip once its result has been sent."""
    return _without_names(_RESET_CODE)


def hard_reset_cell() -> Cell:
    """Return a cell with the code of ``hard_reset_code``."""
    return _make_cell(_RESET_CODE, HARD_RESET)


def _make_cell(code: str, name: str) -> Cell:
    """Return a cell that leaves no names on a board; lists of jobs call it ``name``."""
    cell = prepare_cell(_without_names(code))
    return dataclasses.replace(cell, name=name, own=(), restarts=True)


def _without_names(code: str) -> str:
    """Return code that does the same, and leaves no names on a board."""
    return f"exec({code!r}, {{}})"


def _report(
    progress: ProgressCallback | None, results: Mapping[str, Result], waiting: Sequence[str]
) -> None:
    if progress is not None:
        for name in results:
            progress(name, int(name not in waiting), 1)


async def _last_links(boards: HasTarget, target: str) -> Mapping[str, float | None]:
    """Return the time of each board's present link; None for boards that have yet to connect.

    A board that sleeps again was back: for it, the time at which its link ended is returned.
    """
    rows = await boards.exchange().request("boards", {"target": target})
    return {
        row["name"]: row["last_seen"] if row["state"] == "asleep" else row["connected_since"]
        for row in rows
    }


async def _run(boards: HasTarget, target: str, cell: Cell, *, fresh: bool = False) -> Results:
    group = JobGroup(cell, RunOptions(fresh=fresh))
    boards.exchange().submit(group, target)
    return await group.completed()


async def _run_before_end(
    boards: HasTarget, target: str, cell: Cell, *, fresh: bool = False
) -> Results:
    """Run a cell that ends the interpreter a moment later.

    A board on a bridge cannot report the end of such code: that it was restarted is no failure.
    """
    results = await _run(boards, target, cell, fresh=fresh)
    ended = {
        name: Result(name, result.job, "ok") if _was_restarted(result) else result
        for name, result in results.items()
    }
    return Results(ended, results.left_out)


def _was_restarted(result: Result) -> bool:
    """Whether a job ended because its code restarted its board."""
    if result.status == "lost":
        return not result.why.endswith("did not run")
    return result.traceback.startswith("SystemExit")
