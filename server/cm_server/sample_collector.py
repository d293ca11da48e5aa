"""Collects the samples of all boards in buffers of bounded size. No sockets, no SQL."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError

from .jobs.model import Board
from .limits import Limits
from .sample_buffer import Sample, SampleBuffer


class SampleCollector:
    """Adds boards' samples to their buffers.

    Args:
        max_per_board: how many samples are kept of one board.
        limits: the size and the rate of samples, and how many are kept of all boards.

    Attributes:
        listeners: called with each sample that was added, and its board.
        on_received: the same, for samples that boards have sent to this server.
    """

    def __init__(self, max_per_board: int, limits: Limits) -> None:
        self._limits = limits
        self.listeners: list[Callable[[Board, Sample], None]] = []
        self.on_received: Callable[[Board, Sample], None] = lambda _board, _sample: None
        self._max_per_board = max_per_board
        self._emitting_boards = 0  # boards with at least one sample

    def add_message(self, board: Board, message: wire.Message) -> None:
        """Add the sample of an EMIT message; count one that is malformed, too long or too soon."""
        buffer = board.sample_buffer
        try:
            if self._is_too_long(message) or not buffer.allow(
                time.monotonic(), self._limits.samples_per_second
            ):
                raise PeerWireError("EMIT is too long or too soon after the last one")
            emitted = wire.read_emit(message)
        except PeerWireError:
            buffer.missed += 1
            return
        at = _moment(emitted, time.time())
        if buffer.samples:  # clocks differ: the samples stay in their order
            at = max(at, buffer.samples[-1].at)
        at = round(at, 6)  # microseconds, as in its JSON
        sample = Sample(at, emitted.ticks, emitted.dropped + buffer.missed, emitted.values)
        buffer.missed = 0
        self.add_sample(board, sample)
        self.on_received(board, sample)

    def _is_too_long(self, message: wire.Message) -> bool:
        """Return whether a sample has more bytes than one may have."""
        return len(message.payload) > self._limits.sample_bytes

    def add_sample(self, board: Board, sample: Sample) -> None:
        """Add a sample, received by this or another server, and report it."""
        buffer = board.sample_buffer
        self._emitting_boards += not buffer.samples
        buffer.samples.append(sample)
        self._trim(buffer)
        for listener in self.listeners:
            listener(board, sample)

    def add_older_samples(self, board: Board, samples: Sequence[Sample]) -> None:
        """Add samples that another server received; those that are not older are ignored.

        Args:
            board: whose.
            samples: in the order of time.
        """
        buffer = board.sample_buffer
        oldest = buffer.samples[0].at if buffer.samples else math.inf
        older = [sample for sample in samples if sample.at < oldest]
        if older:
            self._emitting_boards += not buffer.samples
            buffer.samples.extendleft(reversed(older))
            self._trim(buffer)

    def _trim(self, buffer: SampleBuffer) -> None:
        """Drop the oldest samples of a board that has more than its share."""
        share = self._limits.total_samples // self._emitting_boards or 1
        while len(buffer.samples) > min(self._max_per_board, share):
            buffer.samples.popleft()


def _moment(emitted: wire.EmittedSample, now: float) -> float:
    """Return when a sample was measured, in seconds since 1970.

    A board that knows the time says when. It is not trusted: a sample that is in the future by it,
    or older than samples can be, counts as measured now.

    Args:
        emitted: the sample.
        now: the server's time.
    """
    if not wire.is_time(emitted.ticks):
        return now - emitted.age
    at = emitted.ticks / 1000
    return at if now - wire.MAX_SAMPLE_AGE <= at <= now else now
