"""Who runs what next, and where its output goes; no sockets, no SQL.

One job is one cell on one board. Its states::

    queued ──▶ running ──▶ settled
     │  ▲         │           ▲
     │  │         ▼           │
     │  │       adrift ───────┤     the link is gone; the board may still tell
     ▼  │                     │
    resetting ────────────────┘     the board restarts first (--fresh)

A job is settled once, towards its caller and in the store, from any of the states; a board
that tells more later amends the store. Jobs are never sent twice. Call from the server's
one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from cloudmanager import frames, wire

from . import limits
from .jobs import Cell, Job, Recent, Timer, Told, Watcher, read_last
from .registry import Board, BoardLink, Registry
from .store import Store
from .transfers import Transfer

log = logging.getLogger("cm_server")

LOST_AFTER = 10.0  # seconds that a board has to come back and tell how its job ended
CONFIRM = 0.9  # seconds past its timeout in which a board confirms; the caller is told by 1 s
RESET_SECONDS = 20.0  # in which a board is back from a soft reset
FLUSH_AFTER = 0.05  # seconds that a job's ending may wait for others to share its commit

_UNCONFIRMED = "it was told to stop and has not confirmed it; the board may still be busy"


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
        self.lost_after = lost_after
        self.on_emit: Callable[[Board, wire.Message], None] = lambda _board, _message: None
        self._flush_waits = False
        self.jobs: dict[int, Job] = {}  # all that are not settled
        self.recent = Recent()
        self._restore()

    # What callers ask

    def submit(
        self, boards: Sequence[Board], cell: Cell, caller: str, watcher: Watcher, **asked: str
    ) -> list[Job]:
        """Write one job per board down; ``launch`` lets them run.

        ``asked`` (``address``, ``target``) is what the audit log tells of who asked.
        """
        numbers = self._store.begin([board.id for board in boards], caller, **asked)
        jobs = [
            Job(number, board, cell, caller, watcher)
            for number, board in zip(numbers, boards, strict=True)
        ]
        self.jobs.update((job.id, job) for job in jobs)
        return jobs

    def launch(self, jobs: Sequence[Job]) -> None:
        """Start the jobs that ``submit`` wrote, or queue them; absent boards' jobs end."""
        for job in jobs:
            board = job.board
            if board.queue and (why := _too_long(board.queue, job)):
                self._settle(job, "error", why)
            elif board.link is None:
                self._await_board(job)
            elif board.current is None and not board.queue and not board.blocked:
                self._start(job)
            else:
                board.queue.append(job)
            board.touch()

    def _await_board(self, job: Job) -> None:
        """Give an absent board the time that the caller grants it."""
        if job.cell.wait <= 0:
            self._settle(job, "offline", job.board.absence)
            return
        job.board.queue.append(job)
        job.timer = self._later(job.cell.wait, lambda: self._on_waited(job))

    def _on_waited(self, job: Job) -> None:
        job.timer = None
        if job.state == "queued" and job.board.link is None:
            job.board.queue.remove(job)
            why = f"it did not dial in within {job.cell.wait:g} s; {job.board.absence}"
            self._settle(job, "offline", why)

    def interrupt(self, job: Job) -> None:
        """Take out a job that was not sent; interrupt a running one on its board."""
        if job.state == "running" and job.board.link is not None:
            job.board.link.send(wire.pack(wire.INTERRUPT, job=job.id))
        elif job.state in ("queued", "resetting"):
            if job.state == "queued":
                job.board.queue.remove(job)
            self._settle(job, "interrupted", "it was not sent yet and did not run")

    def answer(self, job: Job, text: bytes, *, nobody: bool = False) -> None:
        """Answer the ``input()`` of a job."""
        if job.asking and job.board.link is not None:
            job.asking = False
            flags = wire.NOBODY if nobody else 0
            job.board.link.send(wire.pack(wire.ANSWER, text, job=job.id, flags=flags))

    def forget(self, watcher: Watcher) -> None:
        """Go on without a caller that went away; its jobs stay, but for files that he wanted."""
        unwanted: list[Job] = []
        for job in self.jobs.values():
            if job.watcher is watcher:
                job.watcher = None
                self.answer(job, b"", nobody=True)
                if job.cell.files is not None and job.cell.files.gets:
                    unwanted.append(job)
        for job in unwanted:
            self.interrupt(job)

    def left(self, number: int, size: int) -> None:
        """Note that bytes of a board's file have left for the caller."""
        job = self.jobs.get(number)
        if job is not None and job.state == "running" and job.transfer is not None:
            job.transfer.on_left(size)

    # What boards say

    def on_message(self, board: Board, data: bytes) -> None:
        """Take a board's message: it is passed on untouched, if it is about the board's job.

        Raises:
            PeerWireError: the message is malformed, or not a board's to send.
        """
        message = wire.unpack(data)
        wire.check_op("open", message)
        job = board.current
        if message.op == wire.EMIT:
            self.on_emit(board, message)
        elif message.op == wire.PROGRAM:
            self._on_program(board, message)
        elif message.op == wire.FACTS:
            board.told = {**board.told, **wire.read_facts(message)}
            board.touch()
        elif not message.job:  # what its own program prints: nobody asked for it
            pass
        elif job is None or job.id != message.job:
            log.warning("%s spoke of job %d, which is not its own", board.name, message.job)
        elif message.op == wire.RESULT:
            self._on_result(job, message, data)
        elif message.op == wire.INPUT:
            self._on_input(job, data)
        elif message.op == wire.CHUNK:
            self._on_chunk(job, message, data)
        else:
            (job.tail if message.op == wire.OUTPUT else job.value).add(message.payload)
            job.deliver(data, droppable=True)

    def _on_result(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Pass a result on first, then write it down: somebody waits for it."""
        ending = wire.read_result(message)
        settled = job.state == "settled"
        if not settled:
            job.deliver(data)
        job.tail.add(ending.output)
        if ending.status == "ok":
            job.value.add(ending.rest)
            error = ""
        else:
            error = ending.rest.decode("utf-8", "replace")
        if settled:
            self._amend(job.board, Told(job.id, ending.status, error))
        else:
            self._close(job, ending.status, error)
        self._release(job.board)

    def _on_program(self, board: Board, message: wire.Message) -> None:
        """Note what a board's own program does; while it blocks the board, cells wait."""
        told = message.payload.decode("utf-8", "replace")[: limits.PROGRAM_CHARS]
        board.told = {**board.told, "program": told}
        board.blocked = bool(message.flags & wire.BLOCKS)
        board.touch()
        if board.current is None:
            self._next(board)

    def stop_program(self, board: Board) -> bool:
        """Ask a board to end its own program; return whether the board is there."""
        if board.link is None:
            return False
        board.link.send(wire.pack(wire.INTERRUPT))
        return True

    def _on_chunk(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Take a piece of a file, or a board's word on how far it is; the caller sees both."""
        if job.transfer is not None:  # else it is settled, and the board does not know it yet
            job.transfer.on_chunk(message)
            job.deliver(data)

    def _on_input(self, job: Job, data: bytes) -> None:
        job.asking = True
        if job.watcher is not None and job.cell.answers:
            job.deliver(data)
        else:
            self.answer(job, b"", nobody=True)

    # Links that come and go

    def on_link(self, board: Board, *, same_boot: bool, last: dict[str, Any] | None) -> None:
        """Take a board in that has just proven itself, and what it tells of its last job."""
        job, board.current = board.current, None
        told = read_last(last)
        if job is not None and job.state == "resetting" and not same_boot:
            job.deliver(wire.pack(wire.STARTED, job=job.id))
            self._start(job)
            return
        if job is not None and job.state != "settled":
            self._on_return(job, told, same_boot=same_boot)
        elif told is not None:
            self._amend(board, told)
        self._next(board)

    def _on_return(self, job: Job, told: Told | None, *, same_boot: bool) -> None:
        """Settle a job whose board is back."""
        if job.state == "resetting":
            self._settle(job, "error", "the board did not restart; the cell did not run")
        elif told is not None and told.job == job.id:
            self._settle(job, told.status, told.error, output_lost=True)
        elif same_boot:
            self._settle(job, "lost", "it never reached the board")
        else:
            self._settle(job, "lost", "the board restarted while it ran")

    def on_link_gone(self, board: Board, link: BoardLink) -> None:
        """Give a board whose link broke its grace."""
        if board.link is not link:
            return
        board.disconnect()
        if board.current is not None and board.current.state == "running":
            board.current.state = "adrift"
        if board.current is not None or board.queue:
            self._expect(board)

    def _expect(self, board: Board) -> None:
        """Give a board its grace; a link that came and went meanwhile starts it anew."""
        links = board.links
        self._later(self.lost_after, lambda: self._give_up(board, links))

    def _give_up(self, board: Board, links: int) -> None:
        """End what a board that has not come back still owes."""
        if board.links != links or (board.current and board.current.state == "resetting"):
            return
        why = f"its link broke and it did not come back within {self.lost_after:g} s"
        self._end_current(board, why)
        for job in list(board.queue):
            if job.timer is None:  # else its caller's own patience counts
                board.queue.remove(job)
                self._settle(job, "offline", board.absence)

    def abandon(self, board: Board) -> None:
        """End all that a board still owes: it is about to be taken out."""
        self._end_current(board, "the board was taken out of the fleet")
        while board.queue:
            self._settle(board.queue.popleft(), "offline", "it was taken out of the fleet")

    def _end_current(self, board: Board, why: str) -> None:
        job, board.current = board.current, None
        if job is not None and job.state != "settled":
            self._settle(job, "lost", why)

    def stop(self) -> None:
        """End what was not sent; what runs stays open, its board tells the next server."""
        for job in list(self.jobs.values()):
            if job.state in ("queued", "resetting"):
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
        if cell.files is not None and "files" not in board.parts:
            self._settle(job, "error", "its client lacks the part for files (files.mpy)")
            self._next(board)
            return
        board.current = job
        job.stop_timer()
        if cell.fresh and job.state == "queued":
            self._reset(job)
            return
        job.state, job.started = "running", time.time()
        if cell.files is not None:
            job.transfer = Transfer(job.id, cell.files, board.link.send, board.buffer_size)
        for message in job.messages():
            board.link.send(message)
        if cell.timeout is not None:
            job.timer = self._later(cell.timeout + CONFIRM, lambda: self._on_deadline(job))

    def _reset(self, job: Job) -> None:
        """Have the board restart; its next link starts the job."""
        assert job.board.link is not None
        job.state = "resetting"
        job.board.link.send(wire.pack(wire.RESET, job=job.id))
        self._later(RESET_SECONDS, lambda: self._on_no_reset(job))

    def _on_no_reset(self, job: Job) -> None:
        board = job.board
        if board.current is not job or job.started is not None:
            return
        if job.state == "resetting":  # else it was interrupted meanwhile
            why = f"it did not come back from its reset within {RESET_SECONDS:g} s"
            self._settle(job, "lost", why + "; the cell did not run")
        self._release(board)
        if board.link is None:
            self._give_up(board, board.links)

    def _on_deadline(self, job: Job) -> None:
        """The board should have said by now that it stopped its job."""
        if job.state == "running":
            self._settle(job, "timeout", _UNCONFIRMED)
            self._later(self.lost_after, lambda: self._ask_anew(job))
        elif job.state == "adrift":
            self._settle(job, "lost", "its link broke and it did not come back in time")

    def _ask_anew(self, job: Job) -> None:
        """Hang up on a board that still owes its word: it tells when it dials in again."""
        board = job.board
        if board.current is job and board.link is not None:
            log.warning("%s does not say how its job ended: its link is closed", board.name)
            board.link.close(frames.GOING_AWAY, "it does not say how its job ended")

    def _settle(self, job: Job, status: str, why: str, *, output_lost: bool = False) -> None:
        """End a job by the server's own word."""
        body = {"why": why, "output_lost": output_lost}
        flags = wire.STATUSES.index(status)
        job.deliver(wire.pack_json(wire.ENDED, body, job=job.id, flags=flags))
        self._close(job, status, why)

    def _close(self, job: Job, status: str, error: str) -> None:
        job.stop_timer()
        job.state, job.watcher, job.transfer = "settled", None, None
        job.status, job.error, job.ended = status, error, time.time()
        del self.jobs[job.id]
        self.recent.add(job)
        job.board.touch()
        self._store.end(job.id, status, _last_line(error))
        if not self.jobs:
            self._store.flush()  # nobody waits for the server now
        elif not self._flush_waits:
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

    def rekey(self, board: Board) -> None:
        """Ask an idle board to take its next key; a busy one is asked when it is idle."""
        free = board.current is None and not board.blocked
        if board.nonce is not None and board.link is not None and free:
            board.link.send(wire.pack_rekey(board.gen + 1, board.nonce))

    def _next(self, board: Board) -> None:
        self.rekey(board)
        if board.queue and board.link is not None and not board.blocked:
            job = board.queue.popleft()
            job.deliver(wire.pack(wire.STARTED, job=job.id))
            self._start(job)

    # Truth that comes late

    def _amend(self, board: Board, told: Told) -> None:
        """Believe a board about its own job, where the server had to guess."""
        row = self._store.job(told.job)
        if row is None or row.board != board.id:
            return
        if row.status not in (None, "lost") and row.error != _UNCONFIRMED:
            return
        log.info("%s: job %d was %s after all", board.name, told.job, told.status)
        known = self.recent.get(told.job)
        if known is not None:
            known.status, known.error = told.status, told.error
        self._store.end(told.job, told.status, _last_line(told.error))
        self._store.flush()


def _too_long(queue: Sequence[Job], job: Job) -> str:
    """Say why a job may not wait behind the others; "" where it may."""
    if len(queue) >= limits.QUEUED_JOBS:
        return f"{limits.QUEUED_JOBS} jobs wait for this board already; it did not run"
    size = len(job.cell.code) + sum(len(other.cell.code) for other in queue)
    if size > limits.QUEUED_BYTES:
        mib = limits.QUEUED_BYTES // limits.MIB
        return f"cells of {mib} MiB wait for this board already; it did not run"
    return ""


def _last_line(error: str) -> str:
    """Return the line of a traceback that names the error, for the store."""
    return error.strip().rpartition("\n")[2][:1024]
