"""What a running server reports about itself. No sockets, no SQL."""

from __future__ import annotations

import os
from collections.abc import Callable

from cloudmanager import __version__

from .clock import CheckedClock, steady_seconds
from .housekeeping import Housekeeper
from .store.store import Store
from .store.store_queue import StoreQueue


class ServerStatus:
    """Version, times and faults of a server.

    Args:
        store_queue: of its store.
        clock: its wall clock.
        housekeeper: deletes old rows.

    Attributes:
        version: of this program.
        pid: the number of this process.
        started_at: seconds since 1970, by the wall clock.
        address: where it listens; "" before that.
        cluster_warnings: returns a sentence for each fault between this server and others.
        history_warnings: returns a sentence for each reason why samples are not kept.
    """

    def __init__(
        self, store_queue: StoreQueue[Store], clock: CheckedClock, housekeeper: Housekeeper
    ) -> None:
        self._store_queue = store_queue
        self._clock = clock
        self._housekeeper = housekeeper
        self.version = __version__
        self.pid = os.getpid()
        self.started_at = clock.wall()
        self._started_steady = steady_seconds()
        self.address = ""
        self.cluster_warnings: Callable[[], list[str]] = list
        self.history_warnings: Callable[[], list[str]] = list

    @property
    def uptime(self) -> float:
        """Return the seconds since the start, by a clock that cannot be set."""
        return steady_seconds() - self._started_steady

    def problems(self) -> list[str]:
        """Return a sentence for each fault that keeps the server from working."""
        error = self._store_queue.store.write_error
        return [error] if error else []

    def degradations(self) -> list[str]:
        """Return a sentence for each fault because of which only a part of the server works."""
        slow = self._store_queue.slow_reason
        return [slow] if slow else []

    def warnings(self) -> list[str]:
        """Return a sentence for each fault that needs attention although the server works."""
        self._clock.check()
        problem = self._housekeeper.problem
        return [*([problem] if problem else []), *self.cluster_warnings(), *self.history_warnings()]
