"""``Watch``: a subscription to boards that reconnects.

When the link breaks, a watch reports that, reconnects until the server answers, and continues with
a complete snapshot. A slow reader gets the last state of each board, and the number of samples
that were dropped.
"""

from __future__ import annotations

import collections
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import CloudmanagerError, PeerWireError, ServerUnreachable

from .exchange import Exchange
from .forks import forked_error
from .interruptible import wait_for
from .samples import Sample

_FIRST_RETRY_SECONDS: Final = 0.25  # until the first attempt to reconnect; then doubled
_MAX_RETRY_SECONDS: Final = 5.0
_MAX_PENDING_SAMPLES: Final = 50_000  # kept for a reader that does not read
_MAX_PENDING_LOG_CHARS: Final = 16 * 1024 * 1024  # of logs, the same
_LOG_PIECE_CHARS: Final = 128  # that a piece of a log counts for, besides its text


class Update(NamedTuple):
    """Recent changes; at most a few updates per second.

    Attributes:
        boards: the boards that changed, in the form of ``fleet.boards()``.
        gone: the names of boards that the target does not select any more, or that were revoked;
            a name that is in ``boards`` as well belongs to a new board.
        samples: what the boards emitted.
        whole: whether ``boards`` has all boards, so that earlier updates no longer hold.
        left_out: how many samples were dropped because they came faster than they were read.
        time: the server's clock, in seconds since 1970.
        lost: why the server cannot be reached; "" while it can.
        logs: what the boards printed outside of cells: board, time, lost bytes, text.
        logs_left_out: how many pieces of logs were dropped, as samples.
    """

    boards: list[dict[str, Any]] = []
    gone: list[str] = []
    samples: list[Sample] = []
    whole: bool = False
    left_out: int = 0
    time: float = 0.0
    lost: str = ""
    logs: list[list[Any]] = []
    logs_left_out: int = 0


class Watch(Iterator[Update]):
    """An endless iterator over changes of the boards of a target; ``close`` ends it.

    Args:
        connect: returns the exchange with the server; connects if there is no link.
        target: the boards, connected or not; resolved again at each change.
        samples: whether to receive the samples that they emit.
        logs: whether to receive what they print outside of cells.
        idle: after so many seconds without a change, an empty update follows; None: never.
    """

    def __init__(
        self,
        connect: Callable[[], Exchange],
        target: str = "all",
        *,
        samples: bool = True,
        logs: bool = False,
        idle: float | None = None,
    ) -> None:
        self._connect = connect
        self._target = target
        self._wanted = {"samples": samples, "logs": logs}
        self._idle = idle
        self._buffer = _UpdateBuffer()
        self._closed = threading.Event()
        self._finalizer: weakref.finalize[..., object] | None = None
        self._updates = self._iterate_updates()
        self._pid = 0  # of the process that reads; 0: nobody has read yet
        self._read_lock = threading.Lock()  # a cancelled reader may still be in __next__

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Update:
        """Wait for the next update.

        Raises:
            StopIteration: the watch was closed.
            CloudmanagerError: the server refused it, or the parent of this process reads it. A lost
                link is an ``Update``, no exception.
        """
        self._pid = self._pid or os.getpid()
        if self._pid != os.getpid():
            raise forked_error()
        with self._read_lock:
            return next(self._updates)

    def close(self) -> None:
        """End the watch, from any thread; this also ends a wait for an update."""
        self._closed.set()
        self._buffer.close()

    def _iterate_updates(self) -> Iterator[Update]:
        """Yield updates, reconnecting as needed; one update at the beginning of an outage."""
        wait = 0.0
        while not self._closed.wait(wait):
            try:
                exchange = self._connect()
                ref = exchange.watch(self._target, self._wanted, self._buffer.put)
                self._unwatch_if_deleted(exchange, ref)
                for update in self._iterate_link_updates():
                    wait = 0.0
                    yield update
                exchange.unwatch(ref)
            except ServerUnreachable as error:
                if not wait:
                    yield Update(lost=str(error))
                wait = random.uniform(0.5, 1) * min(
                    _MAX_RETRY_SECONDS, wait * 2 or _FIRST_RETRY_SECONDS
                )

    def _unwatch_if_deleted(self, exchange: Exchange, ref: int) -> None:
        """Let the subscription end with this object, if nobody closes it."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, exchange.delete_watch, ref)
        self._finalizer.atexit = False

    def _iterate_link_updates(self) -> Iterator[Update]:
        """Yield the updates of one link, until the watch is closed."""
        while (update := self._buffer.get(self._idle)) is not None:
            yield update


class _UpdateBuffer:
    """Merges received messages into one update until it is read.

    Args:
        max_log_chars: of logs that are kept; of more, the oldest are dropped.
    """

    def __init__(self, max_log_chars: int = _MAX_PENDING_LOG_CHARS) -> None:
        self._max_log_chars = max_log_chars
        self._changed = threading.Condition()
        self._closed = False
        self._error: CloudmanagerError | None = None
        self._clear()

    def _clear(self) -> None:
        self._boards: dict[str, dict[str, Any]] = {}
        self._gone: dict[str, None] = {}
        self._samples: collections.deque[Sample] = collections.deque()
        self._logs: collections.deque[list[Any]] = collections.deque()
        self._log_chars = 0
        self._is_snapshot = False
        self._dropped_samples = self._dropped_logs = 0
        self._time = 0.0

    def put(self, message: wire.Message | CloudmanagerError) -> None:
        """Add a message, or the error that ends the link; called in the link's thread."""
        with self._changed:
            if isinstance(message, CloudmanagerError):
                self._error = message
            else:
                self._merge(read_update(message))
            self._changed.notify()

    def _merge(self, update: Update) -> None:
        if update.whole:
            logs = self._logs, self._log_chars, self._dropped_logs
            self._clear()
            # They hold after a new link, too.
            self._logs, self._log_chars, self._dropped_logs = logs
        for name in update.gone:
            self._boards.pop(name, None)
            self._gone[name] = None
        self._boards.update((board["name"], board) for board in update.boards)
        self._samples.extend(update.samples)
        excess = max(0, len(self._samples) - _MAX_PENDING_SAMPLES)
        for _ in range(excess):
            self._samples.popleft()
        self._logs.extend(update.logs)
        self._log_chars += sum(map(_log_cost, update.logs))
        while self._log_chars > self._max_log_chars:
            self._log_chars -= _log_cost(self._logs.popleft())
            self._dropped_logs += 1
        self._dropped_logs += update.logs_left_out
        self._is_snapshot = self._is_snapshot or update.whole
        self._dropped_samples += update.left_out + excess
        self._time = update.time

    def close(self) -> None:
        """End all waits."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def get(self, timeout: float | None = None) -> Update | None:
        """Wait for a message and return the merged update; None if the buffer is closed.

        Args:
            timeout: seconds after which an empty update is returned; None: wait for ever.

        Raises:
            CloudmanagerError: the error that ended the link, once all updates were read.
        """
        with self._changed:
            wait_for(self._changed, lambda: self._time or self._error or self._closed, timeout)
            if self._closed:
                return None
            if not (self._time or self._error):
                return Update()
            if not self._time:
                error, self._error = self._error, None
                assert error is not None
                raise error
            update = Update(
                list(self._boards.values()),
                list(self._gone),
                list(self._samples),
                self._is_snapshot,
                self._dropped_samples,
                self._time,
                logs=list(self._logs),
                logs_left_out=self._dropped_logs,
            )
            self._clear()
            return update


def read_update(message: wire.Message) -> Update:
    """Return the contents of the CHANGES in ``message``.

    Raises:
        PeerWireError: it is malformed.
    """
    body, whole = wire.read_json(message.payload), bool(message.flags & wire.FULL_SNAPSHOT)
    try:
        samples = [Sample(*row) for row in body["samples"]]
        pieces = [[board, at, lost, str(text)] for board, at, lost, text in body.get("logs", [])]
        logs = {"logs": pieces, "logs_left_out": body.get("logs_left_out", 0)}
        state = (body["boards"], body["gone"], samples, whole, body["left_out"], body["time"])
        return Update(*state, **logs)
    except (KeyError, TypeError, ValueError) as error:
        raise PeerWireError("the server sent a malformed CHANGES") from error


def _log_cost(piece: list[Any]) -> int:
    """Return as how many characters a piece of a log counts."""
    return len(piece[3]) + _LOG_PIECE_CHARS
