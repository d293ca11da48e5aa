"""One cell, or acts on files, on one board; and the jobs that ended lately. No I/O."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cloudmanager.protocol import wire
from cm_server import limits
from cm_server.installs.job_steps import SteppedJob, SteppedJobSpec
from cm_server.installs.transfers import FileTransfer, FileTransferSpec, RelayedTransfer

if TYPE_CHECKING:
    from cm_server.store.rows import JobRow

    from .registry import Board

MAX_JOB_ID = 2**32 - 1  # a job's number has four bytes on the wire
MAX_TIMEOUT_MS = 0x3FFFFFFF  # a small integer on every port: 12 days


class TimerHandle(Protocol):
    """What can be called off."""

    def cancel(self) -> None:
        """Call it off."""


class JobObserver(Protocol):
    """A caller that follows its jobs."""

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Pass on one message; a droppable one may be left out when the caller is slow."""


class Cell(NamedTuple):
    """What a caller wants run."""

    code: bytes
    timeout: float | None  # seconds from the write to the board
    awaits: bool
    fresh: bool = False  # after a soft reset of the board
    wait: float = 0.0  # seconds that an absent board has to dial in
    answers: bool = False  # whether a person is there to answer input()
    files: FileTransferSpec | SteppedJobSpec | RelayedTransfer | None = (
        None  # then the code is acts on files, in JSON
    )


class Tail:
    """The last ``limits.TAIL_BYTES`` of what was written."""

    __slots__ = ("_bytes", "truncated")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.truncated = False  # whether something before it is left out

    def add(self, data: bytes) -> None:
        """Write some more."""
        self._bytes += data
        self.truncated = self.truncated or len(self._bytes) > limits.TAIL_BYTES
        self._trim()

    def _trim(self) -> None:
        """Drop old bytes; at twice the limit only, so that not every write copies the buffer."""
        if len(self._bytes) > 2 * limits.TAIL_BYTES:
            self._bytes = self._bytes[-limits.TAIL_BYTES :]

    def __len__(self) -> int:
        return len(self._bytes)

    def text(self) -> str:
        """Return it as text, with LF for CRLF."""
        return self._bytes[-limits.TAIL_BYTES :].decode("utf-8", "replace").replace("\r\n", "\n")


class Job:
    """One cell on one board.

    ``state`` is queued, resetting, running, adrift or settled (see dispatch.py); ``status``
    is how it ended, None until then.
    """

    __slots__ = (
        "awaiting_input",
        "_started",
        "owner",
        "began",
        "board",
        "caller",
        "cell",
        "ended",
        "error",
        "id",
        "name",
        "resends",
        "state",
        "status",
        "output_tail",
        "timer",
        "token",
        "transfer",
        "value",
        "observer",
    )

    def __init__(
        self,
        number: int,
        board: Board,
        cell: Cell,
        caller: str,
        observer: JobObserver | None,
        *,
        token: str = "",
        name: str = "",
    ) -> None:
        self.id = number
        self.board = board
        self.name = name or board.name  # as its caller knows the board, whatever it is called now
        self.cell = cell
        self.caller = caller
        self.token = token  # the hash of its caller's token; "" where it has begun already
        self.resends = 0  # how often it went back into the queue after it was sent
        self.observer = observer
        self.state = "queued"
        self.status: str | None = None
        self.error = ""  # the traceback, or the server's words
        self.began: float | None = None  # when it started, by the monotonic clock
        self._started: float | None = None
        self.ended: float | None = None
        self.output_tail = Tail()
        self.value = Tail()
        self.timer: TimerHandle | None = None
        self.awaiting_input = False
        self.owner = ""  # the other server that has it; "?" where the store alone knows
        self.transfer: FileTransfer | SteppedJob | RelayedTransfer | None = (
            None  # while it moves files
        )

    @property
    def started(self) -> float | None:
        """When it was sent, in seconds since 1970 as ``ended``; None until then."""
        return self._started

    @started.setter
    def started(self, at: float | None) -> None:
        self._started = at
        self.began = None if at is None else time.monotonic()

    @property
    def begun(self) -> bool:
        """Whether it may have begun on its board."""
        return self.state in ("running", "adrift")

    def exec_messages(self) -> Iterator[bytes]:
        """Yield what brings it to its board."""
        return wire.exec_messages(
            self.id,
            self.cell.code,
            timeout_ms=_milliseconds(self.cell.timeout),
            awaits=self.cell.awaits,
            op=wire.EXEC if self.cell.files is None else wire.FILE,
            buffer_size=self.board.buffer_size,
            again=self.resends > 0,
        )

    def describe(self) -> dict[str, Any]:
        """Return the job's line, as callers see it."""
        until = self.ended or time.time()
        return {
            "job": self.id,
            "board": self.board.name,
            "caller": self.caller,
            "state": "ended" if self.status else self.state,
            "status": self.status,
            "started": self.started,
            "elapsed": max(until - self.started, 0.0) if self.started else None,
        }

    def describe_with_output(self) -> dict[str, Any]:
        """Return all that is known of it: its line, and the tails of what it said."""
        return {
            **self.describe(),
            "stdout": self.output_tail.text(),
            "truncated": self.output_tail.truncated,
            "value": self.value.text(),
            "error": self.error,
        }

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Tell who watches."""
        if self.observer is not None:
            self.observer.deliver(message, droppable=droppable)

    def stop_timer(self) -> None:
        """Call its timer off."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def describe_row(row: JobRow, board: str) -> dict[str, Any]:
    """Return what the store knows of a job, as ``Job.show`` does."""
    return {
        "job": row.id,
        "board": board,
        "caller": row.caller,
        "state": "ended" if row.status else "running",
        "status": row.status,
        "started": row.created,
        "elapsed": row.ended - row.created if row.ended else None,
        "stdout": "",
        "truncated": True,  # output is kept in memory only
        "value": "",
        "error": row.error or "",
    }


class RecentJobs:
    """The jobs that ended lately, bounded in number and in bytes; the oldest go first."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[int, tuple[Job, int]] = OrderedDict()
        self._bytes = 0

    def add(self, job: Job) -> None:
        """Keep a job that ended."""
        size = len(job.output_tail) + len(job.value)
        job.cell = job.cell._replace(code=b"", files=None)  # a cell's text is the notebook's
        self._jobs[job.id] = (job, size)
        self._bytes += size
        while len(self._jobs) > limits.RECENT_JOBS or self._bytes > limits.RECENT_BYTES:
            self._bytes -= self._jobs.popitem(last=False)[1][1]

    def get(self, number: int) -> Job | None:
        """Return a job that is still known."""
        found = self._jobs.get(number)
        return found[0] if found else None

    def newest(self) -> list[Job]:
        """Return them, newest first."""
        return [job for job, _ in reversed(self._jobs.values())]


class ReportedResult(NamedTuple):
    """What a board says of how a job ended."""

    job: int
    status: str
    error: str


def read_last_result(last: dict[str, Any] | None) -> ReportedResult | None:
    """Return what PROOF's ``last`` says; None where it says nothing of use."""
    try:
        assert last is not None
        status, job = wire.STATUSES[int(last["status"])], int(str(last["job"]), 16)
    except (AssertionError, ArithmeticError, LookupError, ValueError, TypeError):
        return None
    if status not in wire.STATUSES[: wire.RUNNING] or not 0 < job <= MAX_JOB_ID:
        return None
    error = str(last.get("error") or "")[:1024]
    return ReportedResult(
        job, status, error.encode("utf-8", "replace").decode()
    )  # no lone surrogates


def _milliseconds(timeout: float | None) -> int:
    """Return a timeout as it travels; 0 for none."""
    return 0 if timeout is None else min(max(int(timeout * 1000), 1), MAX_TIMEOUT_MS)
