"""``Watch``: following boards, over all links.

A watch outlives its link: where the server is gone it says so, dials again until it is back, and
goes on with all that there is then. Who reads slowly gets the last state, and is told how many
samples he missed.
"""

from __future__ import annotations

import collections
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import CloudmanagerError, PeerWireError, ServerUnreachable

from .exchange import Exchange
from .samples import Sample

_FIRST_RETRY_SECONDS: Final = 0.25  # seconds until a server that is gone is dialled again
_MAX_RETRY_SECONDS: Final = 5.0  # to which that grows

_MAX_PENDING_SAMPLES: Final = 50_000  # samples that wait for who does not read


class Update(NamedTuple):
    """What happened lately; a few come in a second, at most.

    Attributes:
        boards: what ``fleet.boards()`` tells, of each board that changed.
        gone: the names of boards that the target means no more, or that are enrolled no more;
            one that is in ``boards``, too, is another board of that name.
        samples: what the boards emitted.
        whole: whether these boards are all there are: forget those of before.
        left_out: how many samples are missing, since they came faster than they were read.
        time: the server's clock, in seconds since 1970.
        lost: why the server cannot be reached; "" while it can.
    """

    boards: list[dict[str, Any]] = []
    gone: list[str] = []
    samples: list[Sample] = []
    whole: bool = False
    left_out: int = 0
    time: float = 0.0
    lost: str = ""


class Watch(Iterator[Update]):
    """What happens to the boards of a target, without end: iterate over it, and ``close`` it.

    Args:
        dial: returns the conversation with the server; dials where there is none.
        target: the boards, there or not; chosen anew at each change.
        samples: whether what they emit is wanted, too.
    """

    def __init__(
        self, dial: Callable[[], Exchange], target: str = "all", *, samples: bool = True
    ) -> None:
        self._dial = dial
        self._target = target
        self._samples = samples
        self._inbox = _UpdateBuffer()
        self._closed = threading.Event()
        self._updates = self._iterate_updates()
        self._read_lock = threading.Lock()  # a reader who was called off may still be leaving

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Update:
        """Wait for the next update.

        Raises:
            StopIteration: it was closed.
            CloudmanagerError: the server refused it; not that the server is gone.
        """
        with self._read_lock:
            return next(self._updates)

    def close(self) -> None:
        """End it, from any thread; who waits for an update waits no more."""
        self._closed.set()
        self._inbox.close()

    def _iterate_updates(self) -> Iterator[Update]:
        """Yield updates, over all links; of an outage, once that it is there."""
        wait = 0.0
        while not self._closed.wait(wait):
            try:
                exchange = self._dial()
                ref = exchange.watch(
                    self._target, samples=self._samples, on_message=self._inbox.put
                )
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

    def _iterate_link_updates(self) -> Iterator[Update]:
        """Yield what one link tells; ends when this is closed."""
        while (update := self._inbox.get()) is not None:
            yield update


class _UpdateBuffer:
    """What was told and not read yet, as one update."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._error: CloudmanagerError | None = None
        self._clear()

    def _clear(self) -> None:
        self._boards: dict[str, dict[str, Any]] = {}
        self._gone: dict[str, None] = {}
        self._samples: collections.deque[Sample] = collections.deque()
        self._is_snapshot, self._dropped_samples, self._time = False, 0, 0.0

    def put(self, message: wire.Message | CloudmanagerError) -> None:
        """Take what the link tells, in its thread."""
        with self._changed:
            if isinstance(message, CloudmanagerError):
                self._error = message
            else:
                self._merge(read_update(message))
            self._changed.notify()

    def _merge(self, update: Update) -> None:
        if update.whole:
            self._clear()
        for name in update.gone:
            self._boards.pop(name, None)
            self._gone[name] = None
        self._boards.update((board["name"], board) for board in update.boards)
        self._samples.extend(update.samples)
        over = max(0, len(self._samples) - _MAX_PENDING_SAMPLES)
        for _ in range(over):
            self._samples.popleft()
        self._is_snapshot = self._is_snapshot or update.whole
        self._dropped_samples += update.left_out + over
        self._time = update.time

    def close(self) -> None:
        """Let who waits go."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def get(self) -> Update | None:
        """Wait for what there is to tell, and return all of it; None when this is closed.

        Raises:
            CloudmanagerError: the link's last word; what came before it was read.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._time or self._error or self._closed)
            if self._closed:
                return None
            if not self._time:
                error, self._error = self._error, None
                assert error is not None
                raise error
            boards, samples, gone = list(self._boards.values()), list(self._samples), self._gone
            update = Update(
                boards, list(gone), samples, self._is_snapshot, self._dropped_samples, self._time
            )
            self._clear()
            return update


def read_update(message: wire.Message) -> Update:
    """Return what the CHANGES in ``message`` says.

    Raises:
        PeerWireError: it is malformed.
    """
    body, whole = wire.read_json(message.payload), bool(message.flags & wire.FULL_SNAPSHOT)
    try:
        samples = [Sample(*row) for row in body["samples"]]
        return Update(body["boards"], body["gone"], samples, whole, body["left_out"], body["time"])
    except (KeyError, TypeError) as error:
        raise PeerWireError("the server sent CHANGES that are malformed") from error
