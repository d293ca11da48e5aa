"""How jobs end: told to the caller first, written down in batches, amended by later truth.

No sockets, no SQL. A job is settled once, from any of its states; a board that tells more later
amends the store. Call from the server's one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server.store.rows import JobRow
from cm_server.store.store import Store

from .counters import Counters
from .jobs import Job, RecentJobs, ReportedResult, TimerHandle
from .registry import Board

log = logging.getLogger("cm_server")

FLUSH_SECONDS = 0.05  # seconds that a job's ending may wait for others to share its commit
UNCONFIRMED_STOP = "it was told to stop and has not confirmed it; the board may still be busy"


class JobResults:
    """The jobs that have not ended, and the ends of those that did.

    Args:
        store: where endings are written.
        call_later: calls a function after so many seconds and returns what calls it off.
    """

    def __init__(
        self, store: Store, call_later: Callable[[float, Callable[[], None]], TimerHandle]
    ) -> None:
        self._store = store
        self._call_later = call_later
        self._flush_scheduled = False
        self.jobs: dict[int, Job] = {}  # all that are not settled
        self.recent_jobs = RecentJobs()
        self.counters = Counters()

    def end_job(self, job: Job, status: str, why: str, *, output_lost: bool = False) -> None:
        """End a job by the server's own word."""
        body = {"why": why, "output_lost": output_lost}
        flags = wire.STATUSES.index(status)
        job.deliver(wire.pack_json(wire.ENDED, body, job=job.id, flags=flags))
        self.record_end(job, status, why)

    def record_end(self, job: Job, status: str, error: str) -> None:
        """Note how a job ended whose caller was told."""
        job.stop_timer()
        job.state, job.observer, job.transfer = "settled", None, None
        job.status, job.error, job.ended = status, error, time.time()
        del self.jobs[job.id]
        self.counters.on_ended(job)
        self.recent_jobs.add(job)
        job.board.notify_changed()
        self._store.end_job(job.id, status, _last_line(error))
        if not self.jobs:
            self._store.flush()  # nobody waits for the server now
        else:
            self.flush_later()

    def flush_later(self) -> None:
        """Have the store write what waits, in company."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._store.flush()

    def amend_result(self, board: Board, reported: ReportedResult) -> None:
        """Believe a board about its own job, where the server had to guess."""
        try:
            row = self._store.job(reported.job)
        except ServerError:
            return  # it stays a guess
        if row is None or not _is_job_of(row, board) or not _is_uncertain(row):
            return
        why = {
            "event": "amended",
            "job": reported.job,
            "board": board.name,
            "status": reported.status,
        }
        log.info(
            "%s: job %d was %s after all", board.name, reported.job, reported.status, extra=why
        )
        known = self.recent_jobs.get(reported.job)
        if known is not None:
            known.status, known.error = reported.status, reported.error
        self._store.amend_job(reported.job, board.id, reported.status, _last_line(reported.error))


def _is_job_of(row: JobRow, board: Board) -> bool:
    """Return whether a job in the store is one of this board."""
    return row.board == board.id


def _is_uncertain(row: JobRow) -> bool:
    """Return whether the server had to assume how a job ended, or has not ended it."""
    return row.status in (None, "lost") or row.error == UNCONFIRMED_STOP


def _last_line(error: str) -> str:
    """Return the line of a traceback that names the error, for the store."""
    return error.strip().rpartition("\n")[2][:1024]
