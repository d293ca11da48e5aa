"""Shares the event loop among links that have more input than one slice of work."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class FairQueue:
    """Calls one waiting function in each turn of the event loop, in the order they came.

    A link that has not finished its input adds itself again. So however many links have a
    backlog, all of them together delay the others by one slice a turn.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def add(self, serve: Callable[[], None]) -> None:
        """Call ``serve`` once, when its turn comes."""
        self._waiting.append(serve)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._serve_next)

    def _serve_next(self) -> None:
        self._scheduled = False
        serve = self._waiting.popleft()
        self._schedule()  # first: the next one's turn does not depend on how this one goes
        serve()
