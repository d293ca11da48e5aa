"""What is done now and then: old jobs and rows of the audit log go, in small bites.

A bite is one short transaction, so that no cell waits for it. Call from the server's one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from .jobs.jobs import Timer
from .store.store import Store

log = logging.getLogger("cm_server")

FIRST_AFTER = 60.0  # seconds after the start: boards come back first
ROUND_EVERY = 3600.0  # seconds
BITE_PAUSE = 0.1  # seconds between two bites: 5,000 rows a second
PROBE_EVERY = 60.0  # seconds between two looks at a store that could not be written
DAY = 86400.0


class Housekeeper:
    """Goes round once an hour.

    Args:
        store: where it tidies.
        later: calls a function after so many seconds and returns what calls it off.
        keep_jobs: days that the line of a job that ended is kept.
        keep_audit: days that a row of the audit log is kept.
        clock: seconds since 1970.

    Attributes:
        pruned: how many rows have gone since the start, of jobs and of the audit log.
    """

    def __init__(
        self,
        store: Store,
        later: Callable[[float, Callable[[], None]], Timer],
        *,
        keep_jobs: int,
        keep_audit: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._later = later
        self._keep_jobs = keep_jobs * DAY
        self._keep_audit = keep_audit * DAY
        self._clock = clock
        self.pruned = {"jobs": 0, "audit": 0}
        self._timer = later(FIRST_AFTER, self._go_round)
        self._probe_timer = later(PROBE_EVERY, self._probe)

    def stop(self) -> None:
        """Stop; what is left is for the next server."""
        self._timer.cancel()
        self._probe_timer.cancel()

    def _probe(self) -> None:
        if self._store.failure:
            self._store.probe()
        self._probe_timer = self._later(PROBE_EVERY, self._probe)

    def _go_round(self) -> None:
        self._bite(0)

    def _bite(self, after: int) -> None:
        """Take the next rows; jobs' numbers up to ``after`` were looked at before."""
        now = self._clock()
        jobs, reached = self._store.prune_jobs(now - self._keep_jobs, after)
        rows = self._store.prune_audit(now - self._keep_audit)
        self.pruned["jobs"] += jobs
        self.pruned["audit"] += rows
        if reached > after or rows:
            self._timer = self._later(BITE_PAUSE, lambda: self._bite(reached))
        else:
            self._timer = self._later(ROUND_EVERY, self._go_round)
