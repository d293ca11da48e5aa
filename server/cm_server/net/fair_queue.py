"""A queue that shares the event loop among links with more input than one slice of work."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

MAX_SKIPPED: int = 200  # iterations of the event loop after one call


class FairQueue:
    """Calls one queued function in each iteration of the event loop, first in, first out.

    A link that has more input adds itself again. So all links with a backlog together delay other
    links by at most one slice of work per iteration, however many they are. After a call that took
    as long as several slices, as many iterations are left to others: if nobody else has anything to
    do, they take microseconds.

    Args:
        slice_seconds: how long a call usually takes.
        clock: seconds of processor time: what interrupts the loop is not a call's fault.
    """

    def __init__(self, slice_seconds: float, clock: Callable[[], float] = time.thread_time) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self._slice_seconds = slice_seconds
        self._clock = clock
        self._skipped = 0  # iterations until the next call

    def add(self, serve: Callable[[], None]) -> None:
        """Call ``serve`` once, after the functions that are queued already."""
        self._waiting.append(serve)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._serve_next)

    def _serve_next(self) -> None:
        self._scheduled = False
        if self._skipped:
            self._skipped -= 1
            self._schedule()
            return
        serve = self._waiting.popleft()
        self._schedule()  # before the call, which may raise
        started = self._clock()
        try:
            serve()
        finally:
            self._skipped = self._iterations_to_skip(self._clock() - started)

    def _iterations_to_skip(self, seconds: float) -> int:
        """Return how many iterations are left to others after a call."""
        return min(int(seconds / self._slice_seconds / 2), MAX_SKIPPED)
