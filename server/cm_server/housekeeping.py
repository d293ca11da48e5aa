"""Delete old jobs and old rows of the audit log, in small batches, and only by a confirmed clock.

A batch is one short transaction, so that no cell waits for it. One round of deletions is due each
day. It deletes at most the oldest ``Limits.prune_days`` days of rows, and adds a row to the audit
log that says how many rows, from which time, were deleted: so even a clock that stays wrong for a
long time causes little loss, and it is visible. Call from the server's one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cloudmanager.protocol.errors import ServerError
from cloudmanager.server_options import ServerOptions

from .clock import TOLERANCE, CheckedClock
from .jobs.model import TimerHandle
from .limits import Limits
from .store.rows import AuditRow
from .store.store import Store
from .store.store_queue import Operation, StoreQueue
from .times import DAY

log = logging.getLogger("cm_server")

FIRST_ROUND_SECONDS = 60.0  # after the start: first, boards reconnect
ROUND_SECONDS = 3600.0  # between two checks whether a round is due
BATCH_PAUSE_SECONDS = 0.1  # between two batches: 5,000 rows a second
PROBE_SECONDS = 60.0  # between two checks of the clock, and of a store that failed


class Housekeeper:
    """Checks once an hour whether old rows must be deleted.

    Args:
        store_queue: of the store that contains the rows.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        options: for how many days jobs and rows of the audit log are kept.
        clock: says whether the time is certain enough to delete by it.
        limits: how much is deleted at a time.

    Attributes:
        pruned: how many rows were deleted since the start, of jobs and of the audit log.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        *,
        options: ServerOptions,
        clock: CheckedClock,
        limits: Limits,
    ) -> None:
        self._store_queue = store_queue
        self._limits = limits
        self._call_later = call_later
        self._keep_jobs = options.keep_jobs * DAY
        self._keep_audit = options.keep_audit * DAY
        self._clock = clock
        self._database_problem = ""
        self._stopped = False
        self.pruned = {"jobs": 0, "audit": 0}
        self._timer = call_later(FIRST_ROUND_SECONDS, self._check_for_round)
        self._probe_timer = call_later(PROBE_SECONDS, self._probe_store)

    def stop(self) -> None:
        """Stop; the next server continues an unfinished round."""
        self._timer.cancel()
        self._probe_timer.cancel()
        if not self._stopped:
            self._stopped = True
            self._clock.save()

    @property
    def problem(self) -> str:
        """Return a sentence that says why nothing is deleted now; "" if there is no reason."""
        return self._clock.problem or self._database_problem

    def _probe_store(self) -> None:
        if self._store_queue.store.write_error:
            self._store_queue.run_later(lambda store: store.probe_writable())
        self._clock.check()
        self._probe_timer = self._call_later(PROBE_SECONDS, self._probe_store)

    def _check_for_round(self) -> None:
        """Begin a round if one is due and the time is certain."""
        self._timer = self._call_later(ROUND_SECONDS, self._check_for_round)
        self._clock.save()
        database_time = self._store_queue.run(lambda store: store.database_time())
        database_time.when_done(self._on_database_time)

    def _on_database_time(self, operation: Operation[float | None]) -> None:
        try:
            is_certain = self._is_time_certain(operation.result())
        except ServerError:
            return  # the store is unavailable; the next check tries again
        if is_certain:
            now = self._clock.wall()
            begun = self._store_queue.run(lambda store: _begin_round(store, now))
            begun.when_done(lambda _: self._on_begun(now, begun))
        else:
            self._end_round()  # of a server that was killed in the middle of it

    def _on_begun(self, now: float, operation: Operation[_Oldest | None]) -> None:
        """Delete the first batch of a round, if one is due."""
        try:
            oldest = operation.result()
        except ServerError:
            return
        if oldest is None or self._stopped:
            self._end_round()
            return
        self._timer.cancel()
        oldest_job, oldest_row = oldest
        jobs_before = self._horizon(now - self._keep_jobs, oldest_job)
        audit_before = self._horizon(now - self._keep_audit, oldest_row)
        self._prune_batch(jobs_before, audit_before, 0)

    def _is_time_certain(self, database_time: float | None) -> bool:
        return self._is_clock_confirmed() and self._agrees_with_database(database_time)

    def _is_clock_confirmed(self) -> bool:
        """Return whether rows may be deleted by this machine's clock."""
        return self._clock.check()

    def _agrees_with_database(self, database: float | None) -> bool:
        """Return whether the database's clock, if it has its own, shows the same time.

        Args:
            database: its time; None if it has no clock of its own.
        """
        problem = ""
        if database is not None and abs(database - self._clock.wall()) > TOLERANCE:
            problem = (
                "this machine's clock and the database's differ by more than "
                f"{TOLERANCE / 3600:g} h; no old rows are deleted until they agree"
            )
            if not self._database_problem:
                log.warning("%s", problem)
        self._database_problem = problem
        return not problem

    def _horizon(self, before: float, oldest: float | None) -> float:
        """Return up to which time rows of one kind are deleted in one round."""
        return before if oldest is None else min(before, oldest + self._limits.prune_days * DAY)

    def _prune_batch(self, jobs_before: float, audit_before: float, after_job: int) -> None:
        """Delete the next rows; jobs with numbers up to ``after_job`` were examined before."""
        if not self._is_clock_confirmed():
            self._finish_round()
            return
        queue, rows_at_once = self._store_queue, self._limits.prune_rows
        jobs = queue.run(lambda store: store.prune_jobs(jobs_before, after_job, rows_at_once))
        rows = queue.run(lambda store: store.prune_audit(audit_before, rows_at_once))

        def continue_round(_: object) -> None:
            count, reached = (0, after_job) if jobs.error else jobs.result()
            row_count = 0 if rows.error else rows.result()
            self.pruned["jobs"] += count
            self.pruned["audit"] += row_count
            if (reached > after_job or row_count) and not self._stopped:
                self._timer = self._call_later(
                    BATCH_PAUSE_SECONDS,
                    lambda: self._prune_batch(jobs_before, audit_before, reached),
                )
            else:  # nothing is left, or the store is unavailable: the next round continues
                self._finish_round()

        rows.when_done(continue_round)

    def _finish_round(self) -> None:
        self._end_round()
        if not self._stopped:
            self._timer = self._call_later(ROUND_SECONDS, self._check_for_round)

    def _end_round(self) -> None:
        now = self._clock.wall()
        self._store_queue.run(lambda store: store.end_pruning(now)).when_done(_log_rows)


#: The times of the first ended job and of the first row of the audit log; None without one.
_Oldest = tuple[float | None, float | None]


def _begin_round(store: Store, now: float) -> _Oldest | None:
    """Record the begin of a round, and return the oldest times; None if no round is due."""
    oldest = store.oldest(now)
    return oldest if store.begin_pruning(now) else None


def _log_rows(operation: Operation[list[AuditRow]]) -> None:
    if operation.error is None:
        for row in operation.result():
            log.info("old rows of %s: %s", row.target, row.detail)
