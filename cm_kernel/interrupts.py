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

STEPS: Final = "between two steps, and while it waits"
WAITS: Final = "while it waits"
NEVER: Final = "never"


class Interrupts:
    """Knows the cell that may be interrupted now."""

    def __init__(self) -> None:
        self._expected = False  # whether a cell is about to run
        self._early = False  # whether it is to be stopped as soon as it does
        self._task: Task | None = None  # what runs the cell's code
        self._when = STEPS  # its code may be interrupted
        self._loop: asyncio.AbstractEventLoop | None = None

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take SIGINT, for good; in the main thread, whose loop it is."""
        self._loop = loop
        signal.signal(signal.SIGINT, self._on_signal)

    @property
    def busy(self) -> bool:
        """Whether a cell's code runs."""
        return self._task is not None

    def expect(self, cell: bool) -> None:
        """Take it that an interrupt means a cell from here on, though it does not run yet."""
        self._expected, self._early = cell, False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The cell's code runs. Only in here KeyboardInterrupt may come, and must be caught.

        Raises:
            KeyboardInterrupt: it came before the first step.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # a subshell's, which no signal reaches
            return
        before = self._task, self._when
        try:
            self._task, self._when = asyncio.current_task(), STEPS
            if self._early:
                self._early = False
                raise KeyboardInterrupt
            yield
        finally:
            self._task, self._when = before

    @contextlib.contextmanager
    def only(self, when: str) -> Iterator[None]:
        """Let the cell be interrupted at such moments only."""
        before, self._when = self._when, when
        try:
            yield
        finally:
            self._when = before

    def wake(self) -> None:
        """Let the handler be called, where the signal met another thread than the main one."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(_nothing)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        task, loop = self._task, self._loop
        if task is None or loop is None:
            self._early = self._expected
        elif self._when == NEVER:
            pass
        elif asyncio.current_task(loop) is not task or self._when == WAITS:
            loop.call_soon_threadsafe(task.cancel)
        else:
            raise KeyboardInterrupt


def _nothing() -> None:
    """Give the loop something to do."""
