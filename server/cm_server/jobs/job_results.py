"""The results of jobs: for the caller first, stored in batches, corrected by late reports.

No sockets, no SQL. A job ends once, from any of its states; if its board reports a result later,
the row in the store is corrected. Call from the thread of the event loop only.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server.limits import Limits
from cm_server.store.rows import JobRow
from cm_server.store.store import Store
from cm_server.store.store_base import EndedJob
from cm_server.store.store_queue import Operation, StoreQueue

from .counters import Counters
from .job_history import RecentJobs, ReportedResult
from .model import Board, Cell, Job, Requester, TimerHandle

log = logging.getLogger("cm_server")

FLUSH_SECONDS = 0.05  # that a result may wait in memory, so that several share one commit
#: How the error of a job ends whose board did not confirm that it stopped. It marks the row in the
#: store as uncertain; earlier versions wrote "it was told to stop and …".  plain-words: ok
_NOT_CONFIRMED = "to stop and has not confirmed it; the board may still be busy"
UNCONFIRMED_STOP = f"it was asked {_NOT_CONFIRMED}"
ERROR_CHARS = 1024  # of an error's last line, in the store


class JobResults:
    """The jobs that have not ended, and the results of those that have.

    Args:
        store_queue: where results are written.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        limits: how much is kept of a job, and how many jobs that ended.

    Attributes:
        jobs: all jobs that have not ended, by number.
        recent_jobs: those that ended recently.
        keep_output: keeps what a job printed that has waited for its board.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        limits: Limits,
    ) -> None:
        self._store_queue = store_queue
        self._call_later = call_later
        self._flush_scheduled = False
        self._tail_bytes = limits.tail_bytes
        self.jobs: dict[int, Job] = {}
        self.recent_jobs = RecentJobs(limits)
        self.counters = Counters()
        self.keep_output: Callable[[Job], None] = lambda _job: None

    def new_job(self, number: int, board: Board, cell: Cell, requester: Requester) -> Job:
        """Return a job that is not started; the arguments are those of ``Job``."""
        return Job(number, board, cell, requester, self._tail_bytes)

    def end_job(self, job: Job, status: str, why: str, *, output_lost: bool = False) -> None:
        """End a job by decision of the server, and report that to its caller (sends ENDED).

        Args:
            job: one that has not ended.
            status: one of ``wire.STATUSES``.
            why: the reason, for the caller and the store.
            output_lost: whether output may be missing that the board had printed.
        """
        body = {"why": why, "output_lost": output_lost}
        flags = wire.STATUSES.index(status)
        job.deliver(wire.pack_json(wire.ENDED, body, job=job.id, flags=flags))
        self.record_end(job, status, why)

    def record_end(self, job: Job, status: str, error: str) -> None:
        """Count and store the end of a job that was already reported to its caller."""
        job.stop_timer()
        job.state = "ended"
        job.observer = None
        job.transfer = None
        job.status = status
        job.error = error
        job.ended = time.time()
        del self.jobs[job.id]
        if job.open_cell is not None:
            job.open_cell.end_job()
            job.open_cell = None
        self.counters.on_ended(job)
        self.recent_jobs.add(job)
        job.board.notify_changed()
        if job.has_waited:
            self.keep_output(job)
        self.store_end(job)

    def store_end(self, job: Job) -> None:
        """Write how a job ended, also if that was written before: another server may own it now."""
        queue = self._store_queue
        error = _last_line(job.error or "")
        job.board.last_result = queue.store.end_job(job.id, str(job.status), error)
        if not self.jobs and not queue.is_gathering and queue.store.database.answers_at_once:
            queue.flush()  # no job is open: the commit delays nothing
        else:  # the commit of the next cell writes it too, unless that takes longer
            self.flush_later()

    def flush_later(self) -> None:
        """Schedule a batched write of pending results."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._store_queue.flush()

    def describe_jobs(
        self, is_visible: Callable[[str], bool] = lambda _: True
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield open jobs, then recently ended ones, each with its board's id; newest first.

        Args:
            is_visible: returns whether the jobs of a board with this id are described.
        """
        open_jobs = (self.jobs[number] for number in sorted(self.jobs, reverse=True))
        for job in itertools.chain(open_jobs, self.recent_jobs.newest()):
            if is_visible(job.board.id):
                yield job.board.id, job.describe_with_title()

    def amend_result(self, board: Board, reported: ReportedResult) -> None:
        """Correct a result in the store that the server had to assume, by its board's report.

        Reports about other boards' jobs and about certain results are ignored.
        """
        now, error = time.time(), _last_line(reported.error)
        ended = EndedJob(now, reported.status, error, reported.job)
        operation = self._store_queue.run(
            lambda store: store.amend_job(ended, board.id, _is_uncertain)
        )
        operation.when_done(lambda _: self._on_amended(board, reported, operation))

    def _on_amended(
        self, board: Board, reported: ReportedResult, operation: Operation[bool]
    ) -> None:
        try:
            if not operation.result():
                return
        except ServerError:
            return  # the store is unavailable: the assumed result stays
        extra = {
            "event": "amended",
            "job": reported.job,
            "board": board.name,
            "status": reported.status,
        }
        text = "%s: late result of job %d: %s"
        log.info(text, board.name, reported.job, reported.status, extra=extra)
        recent = self.recent_jobs.get(reported.job)
        if recent is not None:
            recent.status = reported.status
            recent.error = reported.error


def _is_uncertain(row: JobRow) -> bool:
    """Return whether the server had to assume how a job ended, or has not ended it."""
    return row.status in (None, "lost") or (
        row.status == "timeout" and (row.error or "").endswith(_NOT_CONFIRMED)
    )


def _last_line(error: str) -> str:
    """Return the line of a traceback that names the error, as every store accepts it.

    What cannot be stored would fail again with each later write.
    """
    if not error:
        return ""  # of nearly every job
    line = error.strip().rpartition("\n")[2][:ERROR_CHARS]
    line = line.encode("utf-8", "replace").decode()  # lone surrogates
    return line.replace("\0", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL does not store it
