"""The time in which the event loop works for one token, or for one board.

A message is never divided, and some requests take milliseconds where others take microseconds. So
whoever has used the loop for long lets others use it as long before its next message is handled.
All links of a token share that time. No sockets here.
"""

from __future__ import annotations

import asyncio
import functools
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from cm_server.limits import Limits

T = TypeVar("T")


class WorkShare:
    """The time of the event loop that one peer uses, on all of its links.

    What counts is processor time (``time.thread_time``): on a busy machine, other processes
    interrupt the loop for milliseconds, and no peer has caused that.

    Args:
        limits: how long a peer may use the loop without a pause.
        clock: seconds since an arbitrary start.
    """

    __slots__ = ("__weakref__", "_clock", "_free_at", "_free_seconds", "_timer_runs", "_waiting")

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.perf_counter) -> None:
        self._free_seconds = limits.free_work_seconds
        self._clock = clock
        self._free_at = 0.0  # by the clock: when the next message may be handled
        self._waiting: deque[Callable[[], None]] | None = None  # made when needed: it is large
        self._timer_runs = False

    def record(self, seconds: float) -> None:
        """Count processor time that the loop used for the peer."""
        if seconds > self._free_seconds:
            self._free_at = max(self._clock(), self._free_at) + seconds

    def pause(self) -> float:
        """Return the seconds in which others use the loop before this peer does again."""
        return max(self._free_at - self._clock(), 0.0) if self._free_at else 0.0

    def when_free(self, serve: Callable[[], None]) -> None:
        """Call a function when it is this peer's turn, after those that wait already."""
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(serve)
        self._schedule()

    async def turn(self) -> None:
        """Wait until it is this peer's turn."""
        if self._waiting or self.pause():
            future = asyncio.get_running_loop().create_future()
            self.when_free(lambda: None if future.done() else future.set_result(None))
            await future

    def _schedule(self) -> None:
        if self._waiting and not self._timer_runs:
            self._timer_runs = True
            asyncio.get_running_loop().call_later(self.pause(), self._serve_next)

    def _serve_next(self) -> None:
        self._timer_runs = False
        if self._waiting and not self.pause():
            serve = self._waiting.popleft()
            self._schedule()  # before the call, which may raise
            serve()
        else:
            self._schedule()


class Measured(Awaitable[T]):
    """A coroutine that records, in a share, the time of each of its steps.

    Args:
        coroutine: makes its first step when this is awaited.
        share: of the peer for which it works.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], share: WorkShare) -> None:
        self._coroutine = coroutine
        self._share = share

    def __await__(self) -> Generator[Any, Any, T]:
        step: Callable[[], Any] = functools.partial(self._coroutine.send, None)
        while True:
            started = time.thread_time()
            try:
                awaited = step()
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                self._share.record(time.thread_time() - started)
            try:
                yield awaited
            except BaseException as error:
                step = functools.partial(self._coroutine.throw, error)
            else:
                step = functools.partial(self._coroutine.send, None)


class WorkShares:
    """The shares of all tokens that have a link.

    Args:
        limits: of each of them.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._shares: weakref.WeakValueDictionary[str, WorkShare] = weakref.WeakValueDictionary()

    def of(self, owner: str) -> WorkShare:
        """Return the share of the token with this hash; it exists as long as it is used."""
        share = self._shares.get(owner)
        if share is None:
            share = self._shares[owner] = WorkShare(self._limits)
        return share
