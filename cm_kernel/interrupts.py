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
from typing import Any

Task = asyncio.Task[Any]


class Interrupts:
    """Knows the cell that may be interrupted now."""

    def __init__(self) -> None:
        self._serving = False  # whether a request to run a cell is being served
        self._early = False  # whether it is to be stopped as soon as it runs
        self._task: Task | None = None  # what runs the cell's code
        self._loop: asyncio.AbstractEventLoop | None = None

    def install(self) -> None:
        """Take SIGINT, for good; in the main thread, whose loop has been made."""
        signal.signal(signal.SIGINT, self._on_signal)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """From here on an interrupt means this cell, though its code may not run yet."""
        before, self._serving, self._early = self._serving, True, False
        try:
            yield
        finally:
            self._serving, self._early = before, False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The cell's code runs. Only in here KeyboardInterrupt may come, and must be caught.

        Raises:
            KeyboardInterrupt: it came before the first step.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # a subshell's, which no signal reaches
            return
        before, self._loop = self._task, asyncio.get_running_loop()
        try:
            self._task = asyncio.current_task()
            if self._early:
                self._early = False
                raise KeyboardInterrupt
            yield
        finally:
            self._task = before

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        task, loop = self._task, self._loop
        if task is None or loop is None:
            self._early = self._serving
        elif asyncio.current_task(loop) is task:
            raise KeyboardInterrupt
        else:
            loop.call_soon_threadsafe(task.cancel)
