"""Deletes old jobs and old rows of the audit log, in small bites and never by a doubtful clock.

A bite is one short transaction, so that no cell waits for it. A round is due once in a day. It
deletes at most the oldest ``limits.PRUNE_DAYS`` days of rows, and leaves a row in the audit log
that says how many of which time went: so even a clock that is wrong for long takes little, and
in sight. Call from the server's one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cloudmanager.protocol.errors import ServerError

from . import limits
from .clock import DAY, TOLERANCE, CheckedClock
from .jobs.jobs import TimerHandle
from .store.store import Store

log = logging.getLogger("cm_server")

FIRST_ROUND_SECONDS = 60.0  # seconds after the start: boards come back first
ROUND_SECONDS = 3600.0  # seconds between two looks whether a round is due
BATCH_PAUSE_SECONDS = 0.1  # seconds between two bites: 5,000 rows a second
PROBE_SECONDS = 60.0  # seconds between two looks at the clock, and at a store that failed


class Housekeeper:
    """Looks once an hour whether old rows are to be deleted.

    Args:
        store: where they are.
        call_later: calls a function after so many seconds and returns what calls it off.
        keep_jobs: days that the line of a job that ended is kept.
        keep_audit: days that a row of the audit log is kept.
        clock: says whether the time is certain enough to delete by it.

    Attributes:
        pruned: how many rows have gone since the start, of jobs and of the audit log.
    """

    def __init__(
        self,
        store: Store,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        *,
        keep_jobs: int,
        keep_audit: int,
        clock: CheckedClock,
    ) -> None:
        self._store = store
        self._call_later = call_later
        self._keep_jobs = keep_jobs * DAY
        self._keep_audit = keep_audit * DAY
        self._clock = clock
        self._database_problem = ""
        self._stopped = False
        self.pruned = {"jobs": 0, "audit": 0}
        self._timer = call_later(FIRST_ROUND_SECONDS, self._start_round)
        self._probe_timer = call_later(PROBE_SECONDS, self._probe_store)

    def stop(self) -> None:
        """Stop; what is left is for the next server."""
        self._timer.cancel()
        self._probe_timer.cancel()
        if not self._stopped:
            self._stopped = True
            self._clock.save()

    @property
    def problem(self) -> str:
        """Return why nothing is deleted now, a sentence; "" where nothing stands against it."""
        return self._clock.problem or self._database_problem

    def _probe_store(self) -> None:
        if self._store.write_error:
            self._store.probe_writable()
        self._clock.check()
        self._probe_timer = self._call_later(PROBE_SECONDS, self._probe_store)

    def _start_round(self) -> None:
        """Begin a round if one is due, and the time is certain."""
        self._timer = self._call_later(ROUND_SECONDS, self._start_round)
        self._clock.save()
        try:
            if self._is_certain() and self._store.begin_pruning(self._clock.wall()):
                self._timer.cancel()
                self._begin_round(self._clock.wall())
            else:
                self._end_round()  # of a server that was killed in the middle of it
        except ServerError:
            return  # the store is away; the next look tries again

    def _is_certain(self) -> bool:
        """Say whether rows may be deleted by this clock, and by the database's."""
        if not self._clock.check():
            return False
        database, problem = self._store.database_time(), ""
        if database is not None and abs(database - self._clock.wall()) > TOLERANCE:
            problem = (
                "this machine's clock and the database's differ by more than "
                f"{TOLERANCE / 3600:g} h; nothing old is deleted until they agree"
            )
            if not self._database_problem:
                log.warning("%s", problem)
        self._database_problem = problem
        return not problem

    def _begin_round(self, now: float) -> None:
        """Fix up to which times rows are deleted in this round, then take the first bite."""
        oldest_job, oldest_row = self._store.oldest(now)
        jobs_before = _horizon(now - self._keep_jobs, oldest_job)
        audit_before = _horizon(now - self._keep_audit, oldest_row)
        self._prune_batch(jobs_before, audit_before, 0)

    def _prune_batch(self, jobs_before: float, audit_before: float, after_job: int) -> None:
        """Delete the next rows; jobs' numbers up to ``after_job`` were looked at before."""
        jobs, reached, rows = 0, after_job, 0
        try:
            if self._clock.check():
                jobs, reached = self._store.prune_jobs(jobs_before, after_job)
                rows = self._store.prune_audit(audit_before)
        except ServerError:
            reached = after_job  # the store is away; the next round goes on
        self.pruned["jobs"] += jobs
        self.pruned["audit"] += rows
        if reached > after_job or rows:
            self._timer = self._call_later(
                BATCH_PAUSE_SECONDS, lambda: self._prune_batch(jobs_before, audit_before, reached)
            )
            return
        self._end_round()
        self._timer = self._call_later(ROUND_SECONDS, self._start_round)

    def _end_round(self) -> None:
        for row in self._store.end_pruning(self._clock.wall()):
            log.info("old rows of %s: %s", row.target, row.detail)


def _horizon(before: float, oldest: float | None) -> float:
    """Return up to which time rows are deleted in one round: a few days behind the oldest."""
    return before if oldest is None else min(before, oldest + limits.PRUNE_DAYS * DAY)
