"""Who runs what next, and where its output goes; no sockets, no SQL.

One job is one cell on one board. Its states::

    queued ──▶ running ──▶ settled
       │          │  ▲        ▲
       │          ▼  │        │
       │        adrift ───────┤     the link is gone; the board may still tell
       └──────────────────────┘     interrupted or given up before it was sent

A job is settled once, towards its caller and in the store; a board that tells more later
amends the store. Jobs are never sent twice. Call from the server's one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from cloudmanager import wire

from .registry import Board, BoardLink, Registry
from .store import Store

log = logging.getLogger("cm_server")

LOST_AFTER = 10.0  # seconds that a board has to come back and tell how its job ended
CONFIRM = 0.9  # seconds past its timeout in which a board confirms; the caller is told by 1 s
TAIL_BYTES = 64 * 1024  # of each job's output that the server keeps
FLUSH_AFTER = 0.05  # seconds that a job's ending may wait for others to share its commit
MAX_QUEUED = 1000  # jobs that may wait for one board
MAX_JOB = 2**32 - 1  # a job's number has four bytes on the wire

_UNCONFIRMED = "it was told to stop and has not confirmed it; the board may still be busy"


class Timer(Protocol):
    """What can be called off."""

    def cancel(self) -> None:
        """Call it off."""


class Watcher(Protocol):
    """A caller that follows its jobs."""

    answers: bool  # whether a person is there to answer input()

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Pass on one message; a droppable one may be left out when the caller is slow."""


class Cell(NamedTuple):
    """What a caller wants run."""

    code: bytes
    timeout: float | None  # seconds from the write to the board
    awaits: bool


class Job:
    """One cell on one board."""

    __slots__ = (
        "asking",
        "board",
        "caller",
        "cell",
        "id",
        "started",
        "state",
        "tail",
        "timer",
        "watcher",
    )

    def __init__(
        self, number: int, board: Board, cell: Cell, caller: str, watcher: Watcher | None
    ) -> None:
        self.id = number
        self.board = board
        self.cell = cell
        self.caller = caller
        self.watcher = watcher
        self.state = "queued"
        self.started: float | None = None
        self.tail = bytearray()
        self.timer: Timer | None = None
        self.asking = False

    def describe(self) -> dict[str, Any]:
        """Return the job as callers see it."""
        elapsed = time.time() - self.started if self.started else None
        return {
            "job": self.id,
            "board": self.board.name,
            "caller": self.caller,
            "state": self.state,
            "elapsed": elapsed,
        }

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Tell who watches."""
        if self.watcher is not None:
            self.watcher.deliver(message, droppable=droppable)


class Dispatch:
    """The queues of all boards.

    Args:
        store: where jobs and their endings are written.
        registry: the boards.
        later: calls a function after so many seconds and returns what calls it off.
        lost_after: seconds of grace for a board whose link broke.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        later: Callable[[float, Callable[[], None]], Timer],
        *,
        lost_after: float = LOST_AFTER,
    ) -> None:
        self._store = store
        self._registry = registry
        self._later = later
        self._lost_after = lost_after
        self._flush_waits = False
        self.jobs: dict[int, Job] = {}  # all that are not settled
        self._restore()

    # What callers ask

    def submit(
        self, boards: Sequence[Board], cell: Cell, caller: str, watcher: Watcher
    ) -> list[Job]:
        """Write one job per board down, then start or queue each; absent boards end at once."""
        numbers = self._store.begin([board.id for board in boards], caller)
        jobs = [
            Job(number, board, cell, caller, watcher)
            for number, board in zip(numbers, boards, strict=True)
        ]
        for job in jobs:
            self.jobs[job.id] = job
        return jobs

    def launch(self, jobs: Sequence[Job]) -> None:
        """Start the jobs that ``submit`` wrote, or queue them behind others."""
        for job in jobs:
            board = job.board
            if board.link is None:
                self._settle(job, "offline", _absence(board))
            elif board.current is None and not board.queue:
                self._start(job)
            elif len(board.queue) >= MAX_QUEUED:
                self._settle(
                    job, "error", f"{MAX_QUEUED} jobs wait for this board already; it did not run"
                )
            else:
                board.queue.append(job)

    def interrupt(self, job: Job) -> None:
        """Take a queued job out; interrupt a running one on its board."""
        if job.state == "queued":
            job.board.queue.remove(job)
            self._settle(job, "interrupted", "it was still queued and did not run")
        elif job.state == "running" and job.board.link is not None:
            job.board.link.send(wire.pack(wire.INTERRUPT, job=job.id))

    def answer(self, job: Job, text: bytes, *, nobody: bool = False) -> None:
        """Answer the ``input()`` of a job."""
        if job.asking and job.board.link is not None:
            job.asking = False
            flags = wire.NOBODY if nobody else 0
            job.board.link.send(wire.pack(wire.ANSWER, text, job=job.id, flags=flags))

    def forget(self, watcher: Watcher) -> None:
        """Go on without a caller that went away; its jobs stay."""
        for job in self.jobs.values():
            if job.watcher is watcher:
                job.watcher = None
                self.answer(job, b"", nobody=True)

    # What boards say

    def on_message(self, board: Board, data: bytes) -> None:
        """Take a board's message: it is passed on untouched, if it is about the board's job.

        Raises:
            PeerWireError: the message is malformed, or not a board's to send.
        """
        message = wire.unpack(data)
        wire.check_op("open", message)
        job = board.current
        if job is None or job.id != message.job:
            log.warning("%s spoke of job %d, which is not its own", board.name, message.job)
        elif message.op == wire.RESULT:
            self._on_result(job, message, data)
        elif message.op == wire.INPUT:
            self._on_input(job, data)
        else:
            if message.op == wire.OUTPUT:
                self._keep(job, message.payload)
            job.deliver(data, droppable=True)

    def _on_result(self, job: Job, message: wire.Message, data: bytes) -> None:
        ending = wire.read_result(message)
        self._keep(job, ending.output)
        error = None if ending.status == "ok" else _last_line(ending.rest)
        if job.state == "settled":
            self._amend(job.id, ending.status, error)
        else:
            job.deliver(data)
            self._close(job, ending.status, error)
        self._release(job.board)

    def _on_input(self, job: Job, data: bytes) -> None:
        job.asking = True
        if job.watcher is not None and job.watcher.answers:
            job.deliver(data)
        else:
            self.answer(job, b"", nobody=True)

    def _keep(self, job: Job, output: bytes) -> None:
        job.tail += output
        if len(job.tail) > 2 * TAIL_BYTES:
            del job.tail[:-TAIL_BYTES]

    # Links that come and go

    def on_link(self, board: Board, *, same_boot: bool, last: dict[str, Any] | None) -> None:
        """Take a board in that has just proven itself, and what it tells of its last job."""
        job, told = board.current, _read_last(last)
        if job is not None:
            self._on_return(job, told, same_boot=same_boot)
            board.current = None
        elif told is not None:
            self._amend_if_unsure(board, told)
        self._next(board)

    def _on_return(self, job: Job, told: _Told | None, *, same_boot: bool) -> None:
        if told is not None and told.job == job.id:
            if job.state == "settled":
                self._amend(job.id, told.status, told.error)
            else:
                self._settle(job, told.status, told.error or "", output_lost=True)
        elif job.state != "settled":
            why = "it never reached the board" if same_boot else "the board restarted while it ran"
            self._settle(job, "lost", why)

    def on_link_gone(self, board: Board, link: BoardLink) -> None:
        """Give a board whose link broke its grace."""
        if board.link is not link:
            return
        board.disconnect()
        if board.current is not None:
            board.current.state = "adrift" if board.current.state == "running" else "settled"
        if board.current is not None or board.queue:
            self._expect(board)

    def _expect(self, board: Board) -> None:
        """Give a board its grace; a link that came and went meanwhile starts it anew."""
        links = board.links
        self._later(self._lost_after, lambda: self._give_up(board, links))

    def _give_up(self, board: Board, links: int) -> None:
        """End what a board that has not come back still owes."""
        if board.links != links:
            return
        if board.current is not None:
            job, board.current = board.current, None
            if job.state != "settled":
                self._settle(
                    job,
                    "lost",
                    f"its link broke and it did not come back within {self._lost_after:g} s",
                )
        while board.queue:
            self._settle(board.queue.popleft(), "offline", _absence(board))

    def stop(self) -> None:
        """End what was not sent; what runs stays open, its board tells the next server."""
        for job in list(self.jobs.values()):
            if job.state == "queued":
                self._settle(job, "lost", "the server stopped before it was sent; it did not run")
        self._store.flush()

    def _restore(self) -> None:
        """Take over the jobs that a server left open: each board's oldest may have run."""
        for row in self._store.open_jobs():
            board = self._registry.by_id.get(row.board)
            if board is None or board.current is not None:
                self._store.end(row.id, "lost", "the server restarted before it was sent")
                continue
            job = Job(row.id, board, Cell(b"", None, awaits=False), row.caller, None)
            job.state, job.started = "adrift", row.created
            board.current = self.jobs[job.id] = job
            self._expect(board)
        self._store.flush()

    # A job's life

    def _start(self, job: Job) -> None:
        board, cell = job.board, job.cell
        assert board.link is not None
        board.current = job
        job.state, job.started = "running", time.time()
        timeout_ms = min(int((cell.timeout or 0) * 1000), 0x3FFFFFFF) if cell.timeout else 0
        for message in wire.exec_messages(
            job.id,
            cell.code,
            timeout_ms=max(timeout_ms, 1) if cell.timeout is not None else 0,
            awaits=cell.awaits,
            buffer_size=board.buffer_size,
        ):
            board.link.send(message)
        if cell.timeout is not None:
            job.timer = self._later(cell.timeout + CONFIRM, lambda: self._on_deadline(job))

    def _on_deadline(self, job: Job) -> None:
        """The board should have said by now that it stopped its job."""
        if job.state == "running":
            self._settle(job, "timeout", _UNCONFIRMED)
        elif job.state == "adrift":
            self._settle(job, "lost", "its link broke and it did not come back in time")

    def _settle(self, job: Job, status: str, why: str, *, output_lost: bool = False) -> None:
        """End a job by the server's own word."""
        body = {"why": why, "output_lost": output_lost}
        flags = wire.STATUSES.index(status)
        job.deliver(wire.pack_json(wire.ENDED, body, job=job.id, flags=flags))
        self._close(job, status, why)

    def _close(self, job: Job, status: str, error: str | None) -> None:
        if job.timer is not None:
            job.timer.cancel()
        job.state, job.timer, job.watcher = "settled", None, None
        self.jobs.pop(job.id, None)
        self._store.end(job.id, status, error)
        if not self._flush_waits:
            self._flush_waits = True
            self._later(FLUSH_AFTER, self._flush)

    def _flush(self) -> None:
        self._flush_waits = False
        self._store.flush()

    def _release(self, board: Board) -> None:
        board.current = None
        if board.queue:
            self._store.flush()  # its last ending is written before its next job starts
            self._next(board)

    def _next(self, board: Board) -> None:
        if board.queue and board.link is not None:
            job = board.queue.popleft()
            job.deliver(wire.pack(wire.STARTED, job=job.id))
            self._start(job)

    # Truth that comes late

    def _amend(self, number: int, status: str, error: str | None) -> None:
        log.info("job %d was %s after all", number, status)
        self._store.end(number, status, error)
        self._store.flush()

    def _amend_if_unsure(self, board: Board, told: _Told) -> None:
        """Believe a board about its own job, where the server had to guess."""
        row = self._store.job(told.job)
        if row is None or row.board != board.id:
            return
        if row.status in (None, "lost") or row.error == _UNCONFIRMED:
            self._amend(told.job, told.status, told.error)


class _Told(NamedTuple):
    """What a board remembers of its last job."""

    job: int
    status: str
    error: str


def _read_last(last: dict[str, Any] | None) -> _Told | None:
    """Return what PROOF's ``last`` says; None where it says nothing of use."""
    try:
        assert last is not None
        status, job = wire.STATUSES[int(last["status"])], int(str(last["job"]), 16)
    except (AssertionError, ArithmeticError, LookupError, ValueError, TypeError):
        return None
    if status not in wire.STATUSES[: wire.RUNNING] or not 0 < job <= MAX_JOB:
        return None
    error = str(last.get("error") or "")[:1024]
    return _Told(job, status, error.encode("utf-8", "replace").decode())  # no lone surrogates


def _absence(board: Board) -> str:
    if board.last_seen is None:
        return "it has never dialled in"
    return f"it was last seen {_ago(time.time() - board.last_seen)} ago"


def _ago(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{max(int(seconds), 0)} s"


def _last_line(traceback: bytes) -> str:
    """Return the line of a traceback that names the error, for the store."""
    lines = traceback[-1024:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""
