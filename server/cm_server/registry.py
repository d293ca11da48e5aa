"""Which boards there are, who is connected and with what facts; no sockets, no SQL."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .jobs import Job
    from .rows import BoardRow

#: Shortest buffer of a board that can still be served, in bytes (a header, a head, some code).
MIN_BUFFER = 64


class BoardLink(Protocol):
    """What the registry knows of a link: enough to send on it and to end it."""

    def send(self, message: bytes) -> object:
        """Send one message."""

    def close(self, code: int, reason: str = "") -> None:
        """Hang up."""


class Board:
    """One enrolled board and, while it is connected, its link."""

    def __init__(self, row: BoardRow) -> None:
        self.id = row.id
        self.name = row.name
        self.key = row.key
        self.labels: Mapping[str, str] = row.labels
        self.told: dict[str, Any] = row.facts  # what it said of itself, untrusted
        self.last_seen = row.last_seen
        self.link: BoardLink | None = None
        self.links = 0  # how many there have been since the server started
        self.connected_since: float | None = None
        self.buffer_size = MIN_BUFFER
        self.current: Job | None = None
        self.queue: deque[Job] = deque()
        self.blocked = False  # whether its own program keeps it busy: cells wait

    @property
    def online(self) -> bool:
        """Whether it has a link now."""
        return self.link is not None

    @property
    def state(self) -> str:
        """Return offline, idle, busy, or lost (its link broke while a job ran)."""
        if self.link is None:
            return "lost" if self.current else "offline"
        return "busy" if self.current or self.blocked else "idle"

    @property
    def facts(self) -> Mapping[str, str]:
        """Return what targets may ask for (``platform=esp32``), as text."""
        told = {key: str(self.told.get(key, "")) for key in ("platform", "version", "machine")}
        return {
            **told,
            "state": self.state,
            "mpy": self.mpy,
            "client": str(self.told.get("client", "")),
        }

    @property
    def mpy(self) -> str:
        """Return its bytecode version as MicroPython writes it, such as 6.3; else ""."""
        number = self.told.get("mpy")
        if not isinstance(number, int):
            return ""
        return f"{number & 0xFF}.{number >> 8 & 3}"

    def connect(self, link: BoardLink, facts: dict[str, Any], buffer_size: int) -> None:
        """Note that its link is open and proven."""
        self.link = link
        self.links += 1
        self.blocked = False
        self.told = facts
        self.buffer_size = buffer_size
        self.connected_since = self.last_seen = time.time()

    def disconnect(self) -> None:
        """Note that its link is gone."""
        self.link = None
        self.connected_since = None
        self.last_seen = time.time()

    def describe(self) -> dict[str, Any]:
        """Return the board as callers see it."""
        return {
            "name": self.name,
            "id": self.id,
            **self.facts,
            "heap": self.told.get("heap"),
            "program": self.told.get("program", ""),
            "labels": dict(self.labels),
            "connected_since": self.connected_since,
            "last_seen": time.time() if self.link else self.last_seen,
            "job": self.current.describe() if self.current else None,
            "queued": len(self.queue),
        }


class Registry:
    """Every enrolled board, by name and by id."""

    def __init__(self, rows: Iterable[BoardRow] = ()) -> None:
        self.by_name: dict[str, Board] = {}
        self.by_id: dict[str, Board] = {}
        for row in rows:
            self.add(row)

    def add(self, row: BoardRow) -> Board:
        """Take in a board that was enrolled."""
        board = self.by_name[row.name] = self.by_id[row.id] = Board(row)
        return board

    def remove(self, board: Board) -> None:
        """Take out a board that is enrolled no more."""
        del self.by_name[board.name], self.by_id[board.id]

    def online(self) -> list[Board]:
        """Return the boards that have a link now."""
        return [board for board in self.by_name.values() if board.link is not None]
