"""Interrupt the running cell when the stop button sends SIGINT.

Cells run in the main thread, some of them as tasks of its event loop. Python calls the handler of
SIGINT in the main thread, between two bytecode instructions. So the handler can see without a race
what the cell is doing:

* If the cell's own code is running, the handler raises KeyboardInterrupt, as Python does.
* If the cell is waiting, the handler cancels its task, because an exception in the loop's own code
  would end the kernel.
* If no cell is running, the handler does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

Task = asyncio.Task[Any]

#: When a cell may be interrupted.
ANY_TIME: Final = "while its code runs, and while it waits"
WHILE_WAITING: Final = "only while it waits"
NEVER: Final = "never"


class InterruptHandler:
    """Handles SIGINT for the cell that is running."""

    def __init__(self) -> None:
        self._cell_expected = False  # whether a cell is about to run
        self._interrupt_pending = False  # whether to interrupt it as soon as it runs
        self._task: Task | None = None  # the task that runs the cell's code
        self._allowed = ANY_TIME  # when this task may be interrupted
        self._loop: asyncio.AbstractEventLoop | None = None

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Install the handler of SIGINT; call it in the main thread, which runs ``loop``."""
        self._loop = loop
        signal.signal(signal.SIGINT, self._on_signal)

    @property
    def busy(self) -> bool:
        """Whether a cell is running."""
        return self._task is not None

    def expect_cell(self, expected: bool) -> None:
        """Set whether a cell is about to run, so that an interrupt before its first step counts."""
        # A pending interrupt was meant for an earlier cell.
        self._interrupt_pending = False
        self._cell_expected = expected

    @contextlib.contextmanager
    def running_cell(self) -> Iterator[None]:
        """Mark the current task as the running cell, which may get KeyboardInterrupt in here only.

        Raises:
            KeyboardInterrupt: the stop button was pressed before the cell started.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # in a subshell, whose thread gets no signals
            return
        before = self._task, self._allowed
        try:
            self._task, self._allowed = asyncio.current_task(), ANY_TIME
            if self._interrupt_pending:
                self._interrupt_pending = False
                raise KeyboardInterrupt
            yield
        finally:
            self._task, self._allowed = before

    @contextlib.contextmanager
    def allow_only(self, when: str) -> Iterator[None]:
        """Restrict when the cell may be interrupted: ANY_TIME, WHILE_WAITING or NEVER."""
        before, self._allowed = self._allowed, when
        try:
            yield
        finally:
            self._allowed = before

    def wake_handler(self) -> None:
        """Wake the main thread, so that it calls the handler if another thread got the signal."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(_do_nothing)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        task, loop = self._task, self._loop
        if task is None or loop is None:
            self._interrupt_pending = self._cell_expected
        elif self._allowed == NEVER:
            pass
        elif asyncio.current_task(loop) is not task or self._allowed == WHILE_WAITING:
            loop.call_soon_threadsafe(task.cancel)
        else:
            raise KeyboardInterrupt


def _do_nothing() -> None:
    """Do nothing; scheduling this wakes the loop."""
