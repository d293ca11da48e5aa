"""A queue that shares the event loop among links with more input than one slice of work."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class FairQueue:
    """Calls one queued function in each iteration of the event loop, first in, first out.

    A link that has more input adds itself again. So all links with a backlog together delay other
    links by at most one slice of work per iteration, however many they are.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

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
        serve = self._waiting.popleft()
        self._schedule()  # before the call, which may raise
        serve()
