"""The stop button -> the cell that runs, wherever it is just now.

A kernel's cells run in the main thread, some of them as tasks of its loop. SIGINT is what reaches
that thread from everywhere, and Python calls its handler there, between two steps: so the handler
alone knows where a cell is, without a race. A cell whose step was interrupted gets
KeyboardInterrupt, as in Python; one that waits is cancelled, since an exception in the loop's own
code would end the kernel. Where no cell runs, nothing happens.
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

ANY_TIME: Final = "between two steps, and while it waits"
WHILE_WAITING: Final = "while it waits"
NEVER: Final = "never"


class InterruptHandler:
    """Knows the cell that may be interrupted now."""

    def __init__(self) -> None:
        self._cell_expected = False  # whether a cell is about to run
        self._interrupt_pending = False  # whether it is to be stopped as soon as it does
        self._task: Task | None = None  # what runs the cell's code
        self._allowed = ANY_TIME  # its code may be interrupted
        self._loop: asyncio.AbstractEventLoop | None = None

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take SIGINT, for good; in the main thread, whose loop it is."""
        self._loop = loop
        signal.signal(signal.SIGINT, self._on_signal)

    @property
    def busy(self) -> bool:
        """Whether a cell's code runs."""
        return self._task is not None

    def expect_cell(self, expected: bool) -> None:
        """Take it that an interrupt means a cell from here on, though it does not run yet."""
        self._cell_expected, self._interrupt_pending = expected, False

    @contextlib.contextmanager
    def running_cell(self) -> Iterator[None]:
        """The cell's code runs. Only in here KeyboardInterrupt may come, and must be caught.

        Raises:
            KeyboardInterrupt: it came before the first step.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # a subshell's, which no signal reaches
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
        """Let the cell be interrupted at such moments only."""
        before, self._allowed = self._allowed, when
        try:
            yield
        finally:
            self._allowed = before

    def wake_handler(self) -> None:
        """Let the handler be called, where the signal met another thread than the main one."""
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
    """Give the loop something to do."""
