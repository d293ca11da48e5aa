"""A job: one cell, or a list of file operations, on one board; and recently ended jobs. No I/O."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cloudmanager.protocol import wire
from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunOptions
from cm_server.installs.job_steps import SteppedJob, SteppedJobSpec
from cm_server.installs.transfers import FileTransfer, FileTransferSpec, RelayedTransfer
from cm_server.limits import Limits
from cm_server.store.rows import MAX_JOB_ID, JobRow

if TYPE_CHECKING:
    from .registry import Board

MAX_TIMEOUT_MS = 0x3FFFFFFF  # 12 days: the largest small int of 32-bit MicroPython ports
REPORTED_ERROR_CHARS = 1024  # of the error in a board's report of its last job


class TimerHandle(Protocol):
    """A scheduled call that can be cancelled."""

    def cancel(self) -> None:
        """Cancel the call."""


class JobObserver(Protocol):
    """A caller that follows its jobs."""

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Send one message to the caller.

        Args:
            message: as it travels on the wire.
            droppable: whether it may be dropped if the caller reads too slowly.
        """


class Cell(NamedTuple):
    """What a caller asked to run.

    Attributes:
        code: the text of the cell; with ``files``, file operations in JSON.
        options: how it is run.
        awaits: whether the cell is a coroutine function that the board has to run.
        files: how the file operations are carried out; None for a cell.
    """

    code: bytes
    options: RunOptions = DEFAULT_OPTIONS
    awaits: bool = False
    files: FileTransferSpec | SteppedJobSpec | RelayedTransfer | None = None


class Tail:
    """The last bytes of a stream.

    Args:
        max_bytes: how many are kept.

    Attributes:
        truncated: whether older bytes were dropped.
    """

    __slots__ = ("_bytes", "_max_bytes", "truncated")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = bytearray()
        self.truncated = False

    def add(self, data: bytes) -> None:
        """Append bytes."""
        self._bytes += data
        self.truncated = self.truncated or len(self._bytes) > self._max_bytes
        self._trim()

    def _trim(self) -> None:
        """Drop old bytes; at twice the limit only, so that not every write copies the buffer."""
        if len(self._bytes) > 2 * self._max_bytes:
            self._bytes = self._bytes[-self._max_bytes :]

    def __len__(self) -> int:
        return len(self._bytes)

    def text(self) -> str:
        """Return the bytes as text, with LF for CRLF."""
        return self._bytes[-self._max_bytes :].decode("utf-8", "replace").replace("\r\n", "\n")


class Job:
    """One cell on one board.

    Args:
        number: its number in the store, and on the wire.
        board: where it runs.
        cell: what runs.
        caller: the name of the caller's token.
        observer: who receives its messages; None: nobody follows it.
        token: the hash of the caller's token; "" if the job was sent already.
        name: the board's name at the time of the request, which callers know it by; the current
            one if empty.
        tail_bytes: how much is kept of the ends of its output and of its value.

    Attributes:
        state: queued, resetting, running, adrift or ended (the picture is in ``dispatch``).
        status: how it ended, one of ``wire.STATUSES``; None until then.
        error: the traceback, or the server's reason for its status.
        resends: how often it was put back into the queue after it was sent.
        owner: the id of the other server that owns it; "" if this one does, "?" if only the store
            knows.
        started_monotonic: when it was sent, by the monotonic clock.
        ended: when it ended, in seconds since 1970.
        output_tail: the end of its output.
        value: the end of the text of its value.
        awaiting_input: whether its ``input()`` is waiting for an answer.
        timer: its timeout, or the time that its caller waits for the board.
        transfer: its file transfer while it runs.
    """

    __slots__ = (
        "_started",
        "awaiting_input",
        "board",
        "caller",
        "cell",
        "ended",
        "error",
        "id",
        "name",
        "observer",
        "output_tail",
        "owner",
        "resends",
        "started_monotonic",
        "state",
        "status",
        "timer",
        "token_hash",
        "transfer",
        "value",
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
        tail_bytes: int = Limits.tail_bytes,
    ) -> None:
        self.id = number
        self.board = board
        self.name = name or board.name
        self.cell = cell
        self.caller = caller
        self.token_hash = token
        self.resends = 0
        self.observer = observer
        self.state = "queued"
        self.status: str | None = None
        self.error = ""
        self.started_monotonic: float | None = None
        self._started: float | None = None
        self.ended: float | None = None
        self.output_tail = Tail(tail_bytes)
        self.value = Tail(tail_bytes)
        self.timer: TimerHandle | None = None
        self.awaiting_input = False
        self.owner = ""
        self.transfer: FileTransfer | SteppedJob | RelayedTransfer | None = None

    @property
    def started(self) -> float | None:
        """When it was sent, in seconds since 1970; None until then."""
        return self._started

    @started.setter
    def started(self, at: float | None) -> None:
        self._started = at
        self.started_monotonic = None if at is None else time.monotonic()

    @property
    def may_have_started(self) -> bool:
        """Whether its board may have started it: it was sent."""
        return self.state in ("running", "adrift")

    def exec_messages(self) -> Iterator[bytes]:
        """Yield the messages that bring the job to its board (EXEC or FILE)."""
        return wire.exec_messages(
            self.id,
            self.cell.code,
            timeout_ms=_milliseconds(self.cell.options.timeout),
            awaits=self.cell.awaits,
            op=wire.EXEC if self.cell.files is None else wire.FILE,
            buffer_size=self.board.buffer_size,
            again=self.resends > 0,
        )

    def describe(self) -> dict[str, Any]:
        """Return the job as the verb ``jobs`` lists it."""
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
        """Return the job as the verb ``job`` shows it: with the ends of its output and value."""
        return {
            **self.describe(),
            "stdout": self.output_tail.text(),
            "truncated": self.output_tail.truncated,
            "value": self.value.text(),
            "error": self.error,
        }

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Send a message to the caller, if one follows the job."""
        if self.observer is not None:
            self.observer.deliver(message, droppable=droppable)

    def stop_timer(self) -> None:
        """Cancel its timer, if there is one."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def describe_row(row: JobRow, board: str) -> dict[str, Any]:
    """Return a job in the store in the form of ``Job.describe_with_output``.

    Args:
        row: the job.
        board: the name of its board.
    """
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
    """Jobs that ended recently; at the limits of number and bytes, the oldest are dropped."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jobs: OrderedDict[int, tuple[Job, int]] = OrderedDict()  # id -> job, size in bytes
        self._bytes = 0

    def add(self, job: Job) -> None:
        """Keep a job that ended, without its code: the server does not keep cells."""
        size = len(job.output_tail) + len(job.value)
        job.cell = job.cell._replace(code=b"", files=None)
        self._jobs[job.id] = (job, size)
        self._bytes += size
        while len(self._jobs) > self._limits.recent_jobs or self._bytes > self._limits.recent_bytes:
            self._bytes -= self._jobs.popitem(last=False)[1][1]

    def get(self, number: int) -> Job | None:
        """Return a job, None if it is not kept."""
        found = self._jobs.get(number)
        return found[0] if found else None

    def newest(self) -> list[Job]:
        """Return all jobs, newest first."""
        return [job for job, _ in reversed(self._jobs.values())]


class ReportedResult(NamedTuple):
    """A board's report of how a job ended."""

    job: int
    status: str
    error: str


def read_last_result(last: dict[str, Any] | None) -> ReportedResult | None:
    """Return what ``last`` in a board's PROOF reports; None if it is absent or invalid."""
    try:
        assert last is not None
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


def _milliseconds(timeout: float | None) -> int:
    """Return a timeout as it travels; 0 for none."""
    return 0 if timeout is None else min(max(int(timeout * 1000), 1), MAX_TIMEOUT_MS)
