"""Which boards there are, who is connected and with what facts; no sockets, no SQL."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cloudmanager.protocol import proofs
from cm_server.sample_buffer import SampleBuffer

if TYPE_CHECKING:
    from cm_server.net.rate_limits import TokenBucket
    from cm_server.store.rows import BoardRow

    from .jobs import Job

#: Shortest buffer of a board that can still be served, in bytes (a header, a head, some code).
MIN_BUFFER = 64


class BoardLinkProtocol(Protocol):
    """What the registry knows of a link: enough to send on it and to end it."""

    def send(self, message: bytes) -> object:
        """Send one message."""

    def close(self, code: int, reason: str = "") -> None:
        """Hang up."""


class RemoteBoardState(NamedTuple):
    """What another server says of a board whose link it has, or had last.

    Attributes:
        epoch: the board's, in which that server held it.
        since: when it dialled that server; None where it has no link.
        job: the line of the job that it runs.
        queued: how many jobs wait for it there.
    """

    server: str
    epoch: int
    state: str
    since: float | None = None
    job: dict[str, Any] | None = None
    queued: int = 0

    @property
    def online(self) -> bool:
        """Whether it has a link there."""
        return self.since is not None


class Board:
    """One enrolled board and, while it is connected, its link.

    Args:
        row: what the store knows of it.
        on_changed: called with it after each change that callers can see.
        relabelled: called after its labels changed: other tokens may reach it now.
    """

    def __init__(
        self,
        row: BoardRow,
        on_changed: Callable[[Board], None] | None = None,
        relabelled: Callable[[], None] | None = None,
    ) -> None:
        self._on_changed = on_changed
        self._relabelled = relabelled
        self.id = row.id
        self.name = row.name
        self.key = row.key
        self.gen = row.gen
        self.nonce = row.nonce
        self.plain = row.plain
        self.token = row.token
        self._labels: Mapping[str, str] = row.labels
        self.reported_facts: dict[str, Any] = row.facts  # what it said of itself, untrusted
        self.last_seen = row.last_seen
        self.link: BoardLinkProtocol | None = None
        self.link_count = 0  # how many there have been since the server started
        self.consecutive_takeovers = (
            0  # how often in a row a newer link pushed out one that was alive
        )
        self.connected_since: float | None = None
        self.buffer_size = MIN_BUFFER
        self.client_parts: frozenset[str] = frozenset()  # of the client, that it has
        self._current_job: Job | None = None
        self.queue: deque[Job] = deque()
        self.sample_buffer = SampleBuffer()
        self.strays: TokenBucket | None = None  # how often it may speak of others' jobs
        self.blocked = False  # whether its own program keeps it busy: cells wait
        self.epoch = 0  # of several servers: how often it dialled one of them
        self._remote_state: RemoteBoardState | None = None

    def notify_changed(self) -> None:
        """Let those who watch know that something about it changed."""
        if self._on_changed is not None:
            self._on_changed(self)

    @property
    def current_job(self) -> Job | None:
        """The job that it runs."""
        return self._current_job

    @current_job.setter
    def current_job(self, job: Job | None) -> None:
        self._current_job = job
        self.notify_changed()

    @property
    def remote_state(self) -> RemoteBoardState | None:
        """What another server says of it, which had it last; None where that is this one."""
        return self._remote_state

    @remote_state.setter
    def remote_state(self, away: RemoteBoardState | None) -> None:
        self._remote_state = away
        self.notify_changed()

    @property
    def idle(self) -> bool:
        """Whether a job would be sent to it at once."""
        return self.link is not None and not (self.current_job or self.queue or self.blocked)

    @property
    def restarts(self) -> bool:
        """Whether this server has it restart now: it is expected back, linked or not."""
        return self.current_job is not None and self.current_job.state == "resetting"

    @property
    def labels(self) -> Mapping[str, str]:
        """What people attached to it."""
        return self._labels

    @labels.setter
    def labels(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self.notify_changed()
        if self._relabelled is not None:
            self._relabelled()

    @property
    def next_key(self) -> bytes | None:
        """The key that a rotation gives it, which is open until that key is used."""
        return proofs.next_key(self.key, self.gen + 1, self.nonce) if self.nonce else None

    def key_for(self, gen: int) -> bytes | None:
        """Return its key of this number: the one that counts, or the next; else None."""
        return self.key if gen == self.gen else self.next_key if gen == self.gen + 1 else None

    @property
    def online(self) -> bool:
        """Whether it has a link now, here or to another server."""
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
        """Return what targets may ask for (``platform=esp32``), as text."""
        told = {
            key: str(self.reported_facts.get(key, "")) for key in ("platform", "version", "machine")
        }
        return {
            **told,
            "state": self.state,
            "mpy": self.mpy,
            "client": str(self.reported_facts.get("client", "")),
        }

    @property
    def last_seen_text(self) -> str:
        """Say since when it has not been there."""
        if self.last_seen is None:
            return "it has never dialled in"
        return f"it was last seen {_format_age(time.time() - self.last_seen)} ago"

    @property
    def mpy(self) -> str:
        """Return its bytecode version as MicroPython writes it, such as 6.3; else ""."""
        number = self.reported_facts.get("mpy")
        if not isinstance(number, int):
            return ""
        return f"{number & 0xFF}.{number >> 8 & 3}"

    def connect(
        self,
        link: BoardLinkProtocol,
        facts: dict[str, Any],
        buffer_size: int,
        parts: Iterable[str] = (),
    ) -> None:
        """Note that its link is open and proven."""
        self.link = link
        self.link_count += 1
        self.blocked = False
        self.reported_facts = facts
        self.buffer_size = buffer_size
        self.client_parts = frozenset(parts)
        self.connected_since = self.last_seen = time.time()
        self.notify_changed()

    def disconnect(self) -> None:
        """Note that its link is gone."""
        self.link = None
        self.connected_since = None
        self.last_seen = time.time()
        self.notify_changed()

    def describe(self) -> dict[str, Any]:
        """Return the board as callers see it."""
        return {**self._describe_local(), **self._describe_remote()}

    def _describe_remote(self) -> dict[str, Any]:
        """Return what differs where another server has it."""
        away = self._remote_state
        if self.link is not None or away is None:
            return {}
        seen = time.time() if away.online else self.last_seen
        return {
            "connected_since": away.since,
            "last_seen": seen,
            "job": away.job,
            "queued": away.queued + len(self.queue),
        }

    def _describe_local(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "id": self.id,
            **self.facts,
            "heap": self.reported_facts.get("heap"),
            "rssi": self.reported_facts.get("rssi"),
            "booted": self.reported_facts.get("booted"),
            "program": self.reported_facts.get("program", ""),
            "labels": dict(self.labels),
            "connected_since": self.connected_since,
            "last_seen": time.time() if self.link else self.last_seen,
            "job": self.current_job.describe() if self.current_job else None,
            "queued": len(self.queue),
        }


class Registry:
    """Every enrolled board, by name and by id."""

    def __init__(self, rows: Iterable[BoardRow] = ()) -> None:
        self.subscriptions_listener: Callable[[Board], None] | None = (
            None  # what watches.py listens by
        )
        self.directory_listener: Callable[[Board], None] | None = None  # and presence.py
        #: Called after a board got another name or other labels: who reaches it may have changed.
        self.on_access: Callable[[], None] = lambda: None
        self.by_name: dict[str, Board] = {}
        self.by_id: dict[str, Board] = {}
        for row in rows:
            self.add(row)

    def add(self, row: BoardRow) -> Board:
        """Take in a board that was enrolled."""
        board = self.by_name[row.name] = self.by_id[row.id] = Board(
            row, self._on_board_changed, lambda: self.on_access()
        )
        board.notify_changed()
        return board

    def remove(self, board: Board) -> None:
        """Take out a board that is enrolled no more."""
        del self.by_id[board.id]
        self._release_name(board)
        board.notify_changed()

    def _release_name(self, board: Board) -> None:
        if self.by_name.get(board.name) is board:  # else another server gave its name away
            del self.by_name[board.name]

    def _on_board_changed(self, board: Board) -> None:
        if self.subscriptions_listener is not None:
            self.subscriptions_listener(board)
        if self.directory_listener is not None:
            self.directory_listener(board)

    def rename(self, board: Board, name: str) -> None:
        """Give a board another name, which nobody has."""
        self._release_name(board)
        board.name = name
        self.by_name[name] = board
        board.notify_changed()
        self.on_access()

    def online(self) -> list[Board]:
        """Return the boards that have a link now."""
        return [board for board in self.by_name.values() if board.link is not None]


def _format_age(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{max(int(seconds), 0)} s"
