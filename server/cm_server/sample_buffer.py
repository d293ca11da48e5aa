"""What boards emitted lately: stamped, and kept in bounded rings; no sockets, no SQL."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError

from . import limits

if TYPE_CHECKING:
    from .jobs.registry import Board


class Sample(NamedTuple):
    """What a board emitted at once."""

    at: float  # seconds since 1970, by the server's clock
    ticks: int  # ms, by the board's
    missed: int  # how many before it were left out, by the board or here
    values: str  # JSON

    def to_json(self, board: str) -> str:
        """Return it as callers get it: JSON, with the board's name."""
        return f'["{board}",{self.at:.6f},{self.ticks},{self.missed},{self.values}]'


class SampleBuffer:
    """The last values of one board, and whether they come too fast."""

    __slots__ = ("_due", "missed", "samples")

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque()
        self.missed = 0  # since the last that was kept
        self._due = 0.0  # when the next one would be on time, by the monotonic clock

    def allow(self, now: float) -> bool:
        """Take one more; say whether it is one of not too many."""
        self._due = max(self._due, now - 1)
        if self._due > now:
            return False
        self._due += 1 / limits.SAMPLES_PER_SECOND
        return True


class SampleCollector:
    """Takes what boards emit.

    Args:
        max_per_board: how many values are kept of a board.
        on_sample: called with each that was taken.
    """

    def __init__(self, max_per_board: int, on_sample: Callable[[Board, Sample], None]) -> None:
        self._max_per_board = max_per_board
        self._on_sample = on_sample
        self._emitting_boards = 0  # that ever emitted

    def add_message(self, board: Board, message: wire.Message) -> None:
        """Keep what a board emitted and pass it on; what is malformed or too much counts only."""
        ring = board.sample_buffer
        try:
            too_long = len(message.payload) > limits.SAMPLE_BYTES
            if too_long or not ring.allow(time.monotonic()):
                raise PeerWireError("EMIT is too long, or comes too fast")
            told = wire.read_emit(message)
        except PeerWireError:
            ring.missed += 1
            return
        now = round(time.time(), 6)  # as it travels
        sample = Sample(now, told.ticks, told.dropped + ring.missed, told.values)
        ring.missed = 0
        self.add_sample(board, sample)

    def add_sample(self, board: Board, sample: Sample) -> None:
        """Keep what a board emitted, here or at another server, and pass it on."""
        ring = board.sample_buffer
        self._emitting_boards += not ring.samples
        ring.samples.append(sample)
        while len(ring.samples) > min(
            self._max_per_board, limits.TOTAL_SAMPLES // self._emitting_boards or 1
        ):
            ring.samples.popleft()
        self._on_sample(board, sample)
