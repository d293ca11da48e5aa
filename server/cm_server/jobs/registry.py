"""All enrolled boards with their links, facts and queues. No sockets, no SQL."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cloudmanager.protocol import frames, proofs
from cloudmanager.protocol.facts import published_facts, target_facts
from cm_server.sample_buffer import SampleBuffer

if TYPE_CHECKING:
    from cm_server.rate_limits import TokenBucket
    from cm_server.store.rows import BoardRow

    from .jobs import Job

#: Smallest buffer of a board that can be served, in bytes: a frame header, a message head, some
#: code.
MIN_BUFFER = 64


class BoardLinkProtocol(Protocol):
    """A board's link, as far as jobs use it."""

    def send(self, message: bytes) -> object:
        """Send one message to the board."""

    def close(self, code: int, reason: str = "") -> None:
        """Close the link with a WebSocket close code."""


class RemoteBoardState(NamedTuple):
    """The state of a board at another server, which has its link or had it last.

    Attributes:
        server: the id of that server.
        epoch: the board's epoch when that server acquired its lease.
        state: idle, busy, lost or offline, as ``Board.state``.
        since: when the board connected, in seconds since 1970; None if it has no link there.
        job: its current job, as ``Job.describe`` returns it.
        queued: the number of jobs in its queue there.
    """

    server: str
    epoch: int
    state: str
    since: float | None = None
    job: dict[str, Any] | None = None
    queued: int = 0

    @property
    def online(self) -> bool:
        """Whether the board has a link to that server."""
        return self.since is not None


class Board:
    """One enrolled board with its queue and, while it is connected, its link.

    Args:
        row: the board in the store.
        on_changed: called with the board after each change that callers can see.
        on_labels_changed: called after its labels changed, because they decide which tokens may
            access it.

    Attributes:
        reported_facts: what the board reported about itself; untrusted.
        link_count: links since the server started.
        consecutive_takeovers: how often in a row a new link replaced one that still worked.
        client_parts: the optional parts of the client that the board has, such as ``files``.
        last_result: the number of its last job's result, see ``Store.end_job``.
        strays: rate of messages about jobs that are not its current one; made when needed.
        blocked: whether its own program keeps it busy, so that cells wait.
        epoch: with several servers: how often the board connected to any of them.
    """

    def __init__(
        self,
        row: BoardRow,
        on_changed: Callable[[Board], None] | None = None,
        on_labels_changed: Callable[[], None] | None = None,
    ) -> None:
        self._on_changed = on_changed
        self._on_labels_changed = on_labels_changed
        self.id = row.id
        self.name = row.name
        self.key = row.key
        self.gen = row.gen
        self.nonce = row.nonce
        self.plain = row.plain
        self.token = row.token
        self._labels: Mapping[str, str] = row.labels
        self.reported_facts: dict[str, Any] = row.facts
        self.last_seen = row.last_seen
        self.link: BoardLinkProtocol | None = None
        self.link_count = 0
        self.consecutive_takeovers = 0
        self.connected_since: float | None = None
        self.buffer_size = MIN_BUFFER
        self.client_parts: frozenset[str] = frozenset()
        self._current_job: Job | None = None
        self.queue: deque[Job] = deque()
        self.last_result = 0
        self.sample_buffer = SampleBuffer()
        self.strays: TokenBucket | None = None
        self.blocked = False
        self.epoch = 0
        self._remote_state: RemoteBoardState | None = None

    def notify_changed(self) -> None:
        """Notify subscribers and other servers that something about the board changed."""
        if self._on_changed is not None:
            self._on_changed(self)

    @property
    def current_job(self) -> Job | None:
        """The job that was sent to the board and has not ended there; None if it is free."""
        return self._current_job

    @current_job.setter
    def current_job(self, job: Job | None) -> None:
        self._current_job = job
        self.notify_changed()

    @property
    def remote_state(self) -> RemoteBoardState | None:
        """Its state at the server that had it last; None if that is this one."""
        return self._remote_state

    @remote_state.setter
    def remote_state(self, state: RemoteBoardState | None) -> None:
        self._remote_state = state
        self.notify_changed()

    @property
    def idle(self) -> bool:
        """Whether a new job would be sent to the board immediately."""
        return self.link is not None and not (self.current_job or self.queue or self.blocked)

    @property
    def is_restarting(self) -> bool:
        """Whether this server has asked it to restart: it is expected back, connected or not."""
        return self.current_job is not None and self.current_job.state == "resetting"

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels that users gave it."""
        return self._labels

    @labels.setter
    def labels(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self.notify_changed()
        if self._on_labels_changed is not None:
            self._on_labels_changed()

    @property
    def next_key(self) -> bytes | None:
        """The key of a pending rotation, None if there is none; pending until the key is used."""
        return proofs.next_key(self.key, self.gen + 1, self.nonce) if self.nonce else None

    def key_for(self, gen: int) -> bytes | None:
        """Return the key with this number: the current one or that of a pending rotation.

        Returns:
            None for any other number.
        """
        if gen == self.gen:
            return self.key
        return self.next_key if gen == self.gen + 1 else None

    @property
    def online(self) -> bool:
        """Whether the board has a link to this server or to another one."""
        return self.link is not None or (
            self._remote_state is not None and self._remote_state.online
        )

    @property
    def state(self) -> str:
        """Return offline, idle, busy, or lost (its link broke while a job ran)."""
        if self.link is None:
            if self._remote_state is not None:
                return self._remote_state.state
            return "lost" if self.current_job else "offline"
        return "busy" if self.current_job or self.blocked else "idle"

    @property
    def facts(self) -> Mapping[str, str]:
        """Return the facts that targets can select by (``platform=esp32``), as text."""
        return target_facts(self.reported_facts, self.state)

    @property
    def last_seen_text(self) -> str:
        """Return a sentence about when the board was last connected, for error messages."""
        if self.last_seen is None:
            return "it has never connected"
        return f"it was last seen {_format_age(time.time() - self.last_seen)} ago"

    def connect(
        self,
        link: BoardLinkProtocol,
        facts: dict[str, Any],
        buffer_size: int,
        parts: Iterable[str] = (),
    ) -> None:
        """Record that the board has authenticated on a new link."""
        self.link = link
        self.link_count += 1
        self.blocked = False
        self.reported_facts = facts
        self.buffer_size = buffer_size
        self.client_parts = frozenset(parts)
        self.connected_since = self.last_seen = time.time()
        self.notify_changed()

    def disconnect(self) -> None:
        """Record that the link is closed."""
        self.link = None
        self.connected_since = None
        self.last_seen = time.time()
        self.notify_changed()

    def describe(self) -> dict[str, Any]:
        """Return the board as the verb ``boards`` lists it."""
        return {**self._describe_local(), **self._describe_remote()}

    def _describe_remote(self) -> dict[str, Any]:
        """Return the fields that another server knows better, if it has the board."""
        remote = self._remote_state
        if self.link is not None or remote is None:
            return {}
        return {
            "connected_since": remote.since,
            "last_seen": time.time() if remote.online else self.last_seen,
            "job": remote.job,
            "queued": remote.queued + len(self.queue),
        }

    def _describe_local(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "id": self.id,
            "state": self.state,
            **published_facts(self.reported_facts),
            "booted": self.reported_facts.get("booted"),
            "labels": dict(self.labels),
            "connected_since": self.connected_since,
            "last_seen": time.time() if self.link else self.last_seen,
            "job": self.current_job.describe() if self.current_job else None,
            "queued": len(self.queue),
        }


class Registry:
    """All enrolled boards, by name and by id.

    Attributes:
        subscriptions_listener: called with a board after each change, for subscriptions.
        directory_listener: the same, for the board directory of several servers.
        on_access_changed: called after a name or labels changed: which tokens may access which
            boards may have changed.
    """

    def __init__(self, rows: Iterable[BoardRow] = ()) -> None:
        self.subscriptions_listener: Callable[[Board], None] | None = None
        self.directory_listener: Callable[[Board], None] | None = None
        self.on_access_changed: Callable[[], None] = lambda: None
        self.by_name: dict[str, Board] = {}
        self.by_id: dict[str, Board] = {}
        for row in rows:
            self.add(row)

    def add(self, row: BoardRow) -> Board:
        """Add an enrolled board."""
        board = self.by_name[row.name] = self.by_id[row.id] = Board(
            row, self._on_board_changed, lambda: self.on_access_changed()
        )
        board.notify_changed()
        return board

    def remove(self, board: Board) -> None:
        """Remove a board that is no longer enrolled."""
        del self.by_id[board.id]
        self._release_name(board)
        board.notify_changed()

    def _release_name(self, board: Board) -> None:
        if (
            self.by_name.get(board.name) is board
        ):  # else another server gave the name to another board
            del self.by_name[board.name]

    def _on_board_changed(self, board: Board) -> None:
        if self.subscriptions_listener is not None:
            self.subscriptions_listener(board)
        if self.directory_listener is not None:
            self.directory_listener(board)

    def rename(self, board: Board, name: str) -> None:
        """Rename a board; no other board may have the new name."""
        self._release_name(board)
        board.name = name
        self.by_name[name] = board
        board.notify_changed()
        self.on_access_changed()

    def close_links(self, why: str) -> None:
        """Close the links of all boards: the server stops, or starts again."""
        for board in self.by_id.values():
            if board.link is not None:
                board.link.close(frames.CLOSE_GOING_AWAY, why)

    def online(self) -> list[Board]:
        """Return the boards that have a link to this server."""
        return [board for board in self.by_name.values() if board.link is not None]


def _format_age(seconds: float) -> str:
    """Return a duration in words, in its largest unit, such as ``3 hours``."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{max(int(seconds), 0)} s"
