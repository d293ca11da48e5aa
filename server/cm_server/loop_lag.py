"""Measure how late the event loop is: once a second, a timer compares its time with the clock."""

from __future__ import annotations

from collections.abc import Callable

from .jobs.model import TimerHandle

INTERVAL_SECONDS = 1.0


class LoopLagMonitor:
    """Measures the lag of the event loop until it is stopped.

    Args:
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        clock: seconds, from any starting point.

    Attributes:
        lag: seconds by which the last timer was late.
    """

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        clock: Callable[[], float],
    ) -> None:
        self._call_later = call_later
        self._clock = clock
        self.lag = 0.0
        self._schedule()

    def _schedule(self) -> None:
        self._due = self._clock() + INTERVAL_SECONDS
        self._timer = self._call_later(INTERVAL_SECONDS, self._measure)

    def _measure(self) -> None:
        self.lag = max(self._clock() - self._due, 0.0)
        self._schedule()

    def stop(self) -> None:
        """Stop measuring."""
        self._timer.cancel()
