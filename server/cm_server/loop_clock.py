"""Timers by the time in which the event loop was running.

If the server's process stands still (suspended, no processor time, a slow disk), peers cannot do in
time what the server could not read in time. So their deadlines do not pass meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from .jobs.model import TimerHandle

TICK_SECONDS = 0.25
#: Of a pause between two ticks, so much counts as time in which the loop was running.
MAX_STEP_SECONDS = 2 * TICK_SECONDS


class LoopClock:
    """A clock that stands still while the event loop does; it ticks until it is stopped.

    Args:
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        clock: seconds, from any starting point.
    """

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        clock: Callable[[], float],
    ) -> None:
        self._call_later = call_later
        self._clock = clock
        self._counted = 0.0  # until the last tick
        self._last_tick = clock()
        self._timer = call_later(TICK_SECONDS, self._tick)

    def time(self) -> float:
        """Return for how many seconds the event loop has been running."""
        return self._counted + _counted_seconds(self._clock() - self._last_tick)

    def _tick(self) -> None:
        self._counted = self.time()
        self._last_tick = self._clock()
        self._timer = self._call_later(TICK_SECONDS, self._tick)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> LoopTimer:
        """Call a function after the loop has been running for a number of seconds from now."""
        return LoopTimer(self, self._call_later, seconds, callback)

    def stop(self) -> None:
        """Stop ticking."""
        self._timer.cancel()


class LoopTimer:
    """A call that a ``LoopClock`` will make.

    Args:
        clock: counts the seconds.
        call_later: calls a function after a number of seconds, whatever the loop does meanwhile.
        seconds: until the call.
        callback: is called.
    """

    __slots__ = ("_call_later", "_callback", "_clock", "_due", "_handle")

    def __init__(
        self,
        clock: LoopClock,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        seconds: float,
        callback: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._call_later = call_later
        self._callback = callback
        self._due = clock.time() + seconds
        self._handle = call_later(seconds, self._on_time)

    def _on_time(self) -> None:
        """Call the function, or wait for the time that did not count."""
        left = self._due - self._clock.time()
        if left > TICK_SECONDS:  # less is imprecision
            self._handle = self._call_later(left, self._on_time)
        else:
            self._callback()

    def cancel(self) -> None:
        """Do not make the call."""
        self._handle.cancel()


def _counted_seconds(elapsed: float) -> float:
    """Return how much of the time between two ticks counts."""
    return min(elapsed, MAX_STEP_SECONDS)
