"""How late the event loop is: a timer looks at the clock once a second."""

from __future__ import annotations

from collections.abc import Callable

from .jobs.jobs import Timer

SECOND = 1.0


class Pulse:
    """Measures, until it is stopped.

    Args:
        later: calls a function after so many seconds and returns what calls it off.
        clock: seconds, from any beginning.

    Attributes:
        lag: seconds by which the last look came too late.
    """

    def __init__(
        self, later: Callable[[float, Callable[[], None]], Timer], clock: Callable[[], float]
    ) -> None:
        self._later = later
        self._clock = clock
        self.lag = 0.0
        self._wait()

    def _wait(self) -> None:
        self._due = self._clock() + SECOND
        self._timer = self._later(SECOND, self._look)

    def _look(self) -> None:
        self.lag = max(self._clock() - self._due, 0.0)
        self._wait()

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()
