"""How late the event loop is: a timer looks at the clock once a second."""

from __future__ import annotations

from collections.abc import Callable

from .jobs.jobs import TimerHandle

INTERVAL_SECONDS = 1.0


class LoopLagMonitor:
    """Measures, until it is stopped.

    Args:
        call_later: calls a function after so many seconds and returns what calls it off.
        clock: seconds, from any beginning.

    Attributes:
        lag: seconds by which the last look came too late.
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
        """Look no more."""
        self._timer.cancel()
