"""The latest samples of one board, with timestamps, and their rate limit. No I/O here."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class Sample(NamedTuple):
    """The values that a board emitted in one message."""

    at: float  # seconds since 1970: by the board's clock, if it knows the time, or the server's
    ticks: int  # ms since 1970 by the board's clock, or of its counter
    missed: int  # how many samples before it were dropped, by the board or by the server
    values: str  # JSON

    def to_json(self, board: str) -> str:
        """Return the sample as callers receive it: JSON, with the board's name."""
        return f'["{board}",{self.at:.6f},{self.ticks},{self.missed},{self.values}]'


class SampleBuffer:
    """The last samples of one board, and its rate limit."""

    __slots__ = ("_due", "missed", "samples")

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque()
        self.missed = 0  # samples dropped since the last one that was kept
        self._due = 0.0  # when the next sample is due, by the monotonic clock

    def allow(self, now: float, per_second: float) -> bool:
        """Count a sample; return whether it is within the rate limit."""
        self._due = max(self._due, now - 1)
        if self._due > now:
            return False
        self._due += 1 / per_second
        return True
