"""Jobs that ended recently, jobs in the store, and boards' reports of their last job. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any, NamedTuple

from cloudmanager.protocol import wire
from cm_server.limits import Limits
from cm_server.store.rows import MAX_JOB_ID, JobRow

from .model import Cell, Job

_REMEMBERED_BYTES = 4096  # of a cell whose job has just ended
REPORTED_ERROR_CHARS = 1024  # of the error in a board's report of its last job


def describe_row(row: JobRow, board: str | None) -> dict[str, Any]:
    """Return a job in the store in the form of ``Job.describe_with_output``.

    Args:
        row: the job.
        board: the name of its board; None if that was removed: then its id is all that is known.
    """
    return {
        "job": row.id,
        "board": row.board if board is None else board,
        "board_removed": board is None,
        "kind": "",  # it is not stored
        "what": "",
        "caller": row.caller,
        "state": "ended" if row.status else "running",
        "status": row.status,
        "created": row.created,
        "started": row.created,
        "elapsed": row.ended - row.created if row.ended else None,
        "stdout": "",
        "truncated": True,  # output is kept in memory only
        "value": "",
        "error": row.error or "",
    }


class RecentJobs:
    """Jobs that ended recently; at the limits of number and bytes, the oldest are dropped."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jobs: OrderedDict[int, tuple[Job, int]] = OrderedDict()  # id -> job, size in bytes
        self._bytes = 0
        self._last_cell = Cell(b"")  # of the job that ended last, and without its code
        self._last_title = self._last_cell

    def add(self, job: Job) -> None:
        """Keep a job that ended, without its code, but for the title."""
        size = len(job.output_tail) + len(job.value)
        job.cell = self._without_code(job.cell)
        self._jobs[job.id] = (job, size)
        self._bytes += size
        while len(self._jobs) > self._limits.recent_jobs or self._bytes > self._limits.recent_bytes:
            self._bytes -= self._jobs.popitem(last=False)[1][1]

    def _without_code(self, cell: Cell) -> Cell:
        """Return a cell without what it runs; the jobs of a cell most often end together."""
        if cell is not self._last_cell:
            without = cell._replace(code=b"", files=None)
            if len(cell.code) > _REMEMBERED_BYTES or cell.files is not None:
                return without
            self._last_cell, self._last_title = cell, without
        return self._last_title

    def get(self, number: int) -> Job | None:
        """Return a job, None if it is not kept."""
        found = self._jobs.get(number)
        return found[0] if found else None

    def forget_titles(self, numbers: Collection[int]) -> None:
        """Forget by which lines of code some jobs are listed."""
        for number in numbers:
            if job := self.get(number):
                job.cell = job.cell._replace(title="")

    def newest(self) -> list[Job]:
        """Return all jobs, newest first."""
        return [job for job, _ in reversed(self._jobs.values())]


class ReportedResult(NamedTuple):
    """A board's report of how a job ended."""

    job: int
    status: str
    error: str


def read_last_result(last: Any) -> ReportedResult | None:
    """Return what ``last`` in a board's PROOF reports; None if it is absent or invalid."""
    try:
        assert isinstance(last, dict)
        status, job = wire.STATUSES[int(last["status"])], int(str(last["job"]), 16)
    except (AssertionError, ArithmeticError, LookupError, ValueError, TypeError):
        return None
    if status not in wire.STATUSES[: wire.RUNNING] or not 0 < job <= MAX_JOB_ID:
        return None
    error = str(last.get("error") or "")[:REPORTED_ERROR_CHARS]
    without_surrogates = error.encode("utf-8", "replace").decode()  # JSON may contain lone ones
    if wire.is_clean_exit(status, without_surrogates):
        return ReportedResult(job, "ok", "")
    return ReportedResult(job, status, without_surrogates)
