"""The messages that wait to be sent to one caller. No sockets, no clock: its owner sends them.

Messages are batched, because a write to a socket costs more than everything else that is done for
a message. While the caller does not read, output is dropped beyond a limit, and TRUNCATED tells
the caller so; results and other messages are never dropped.
"""

from __future__ import annotations

import itertools

from cloudmanager.protocol import wire


class CallerOutbox:
    """A queue of messages about a caller's jobs, in the order in which they were added.

    Args:
        max_output_bytes: with more in the queue, droppable messages are dropped.
        max_frame_bytes: of the messages of one frame; a longer one is alone in its frame.
    """

    def __init__(self, max_output_bytes: int, max_frame_bytes: int) -> None:
        self._max_output_bytes = max_output_bytes
        self._max_frame_bytes = max_frame_bytes
        self._messages: list[bytes] = []
        self._bytes = 0
        self._truncated: set[tuple[int, int]] = set()  # (job, flags) that TRUNCATED is queued for
        self._open_jobs = 0  # announced jobs that have not ended

    def __bool__(self) -> bool:
        return bool(self._messages)

    @property
    def pending_bytes(self) -> int:
        """The bytes of all messages in the queue."""
        return self._bytes

    @property
    def is_complete(self) -> bool:
        """Whether all announced jobs have ended: waiting for more messages would be in vain."""
        return not self._open_jobs

    def add(self, message: bytes, *, droppable: bool = False) -> bool:
        """Add one message about a job.

        Args:
            message: the packed message.
            droppable: whether it is dropped if too much is queued already; TRUNCATED, once for
                the output and once for the value of a job, takes its place.

        Returns:
            Whether the message was added.
        """
        if droppable and self._is_full():
            self._add_truncated(message)
            return False
        self._messages.append(message)
        self._bytes += len(message)
        self._open_jobs -= message[0] in wire.JOB_END_OPS
        return True

    def _is_full(self) -> bool:
        return self._bytes > self._max_output_bytes

    def _add_truncated(self, dropped: bytes) -> None:
        op, _, job = wire.HEADER.unpack_from(dropped)
        flags = wire.VALUE_TRUNCATED if op == wire.VALUE else 0
        if (job, flags) not in self._truncated:
            self._truncated.add((job, flags))
            self._messages.append(wire.pack(wire.TRUNCATED, job=job, flags=flags))

    def announce(self, jobs: int) -> int:
        """Announce jobs of one cell, before any message about them.

        Until ``accept``, the queue is not complete, even if all of the jobs end.

        Returns:
            The place for ``accept``.
        """
        self._open_jobs += jobs + 1
        return len(self._messages)

    def accept(self, place: int, message: bytes) -> None:
        """Insert a cell's ACCEPTED in front of the messages about its jobs."""
        self._messages.insert(place, message)
        self._bytes += len(message)
        self._open_jobs -= 1

    def next_frame(self) -> list[bytes]:
        """Remove and return the messages of the next frame; [] if there are none."""
        messages, self._messages = self._messages, []
        if self._bytes > self._max_frame_bytes:
            sizes = itertools.accumulate(map(len, messages))
            count = sum(size <= self._max_frame_bytes for size in sizes) or 1
            messages, self._messages = messages[:count], messages[count:]
        self._bytes = sum(map(len, self._messages))
        self._truncated.clear()
        return messages
