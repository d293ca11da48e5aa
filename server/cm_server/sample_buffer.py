"""The latest samples of boards, with timestamps, in buffers of bounded size.

No sockets, no SQL.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError

from .limits import Limits

if TYPE_CHECKING:
    from .jobs.registry import Board


class Sample(NamedTuple):
    """The values that a board emitted in one message."""

    at: float  # seconds since 1970, by the server's clock
    ticks: int  # ms, by the board's clock
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


class SampleCollector:
    """Adds boards' samples to their buffers.

    Args:
        max_per_board: how many samples are kept of one board.
        on_sample: called with each sample that was added, and its board.
        limits: the size and the rate of samples, and how many are kept of all boards.
    """

    def __init__(
        self, max_per_board: int, on_sample: Callable[[Board, Sample], None], limits: Limits
    ) -> None:
        self._limits = limits
        self._max_per_board = max_per_board
        self._on_sample = on_sample
        self._emitting_boards = 0  # boards with at least one sample

    def add_message(self, board: Board, message: wire.Message) -> None:
        """Add the sample of an EMIT message; count one that is malformed, too long or too soon."""
        buffer = board.sample_buffer
        try:
            too_long = len(message.payload) > self._limits.sample_bytes
            if too_long or not buffer.allow(time.monotonic(), self._limits.samples_per_second):
                raise PeerWireError("EMIT is too long or too soon after the last one")
            emitted = wire.read_emit(message)
        except PeerWireError:
            buffer.missed += 1
            return
        now = round(time.time(), 6)  # microseconds, as in its JSON
        sample = Sample(now, emitted.ticks, emitted.dropped + buffer.missed, emitted.values)
        buffer.missed = 0
        self.add_sample(board, sample)

    def add_sample(self, board: Board, sample: Sample) -> None:
        """Add a sample, received by this or another server, and report it."""
        buffer = board.sample_buffer
        self._emitting_boards += not buffer.samples
        buffer.samples.append(sample)
        share = self._limits.total_samples // self._emitting_boards or 1
        while len(buffer.samples) > min(self._max_per_board, share):
            buffer.samples.popleft()
        self._on_sample(board, sample)
