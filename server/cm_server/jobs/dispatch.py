"""What callers ask of jobs and what boards say of them; no sockets, no SQL.

One job is one cell on one board. Its states::

    queued ──▶ running ──▶ settled
     │  ▲         │           ▲
     │  │         ▼           │
     │  │       adrift ───────┤     the link is gone; the board may still tell
     ▼  │                     │
    resetting ────────────────┘     the board restarts first (--fresh)

A job is settled once, towards its caller and in the store, from any of the states; a board
that tells more later amends the store (endings.py). Jobs are never sent twice. Who runs what
next is queues.py's to say. Call from the server's one thread.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import wire
from cm_server import limits
from cm_server.cluster.remote_jobs import RemoteJobs
from cm_server.installs.job_steps import JobRefused
from cm_server.net import cleanup
from cm_server.store.rows import JobRow
from cm_server.store.store import Store

from .job_results import JobResults
from .jobs import Cell, Job, JobObserver, ReportedResult, TimerHandle, read_last_result
from .registry import Board, BoardLinkProtocol, Registry
from .scheduler import LOST_AFTER, Scheduler

if TYPE_CHECKING:
    from cm_server.cluster.peer_messages import PeerMessages
    from cm_server.store.shared_store import SharedStore

log = logging.getLogger("cm_server")

EMPTY_CELL = Cell(b"", None, awaits=False)  # of a job that another server, or start, has sent


class Dispatch:
    """The queues of all boards.

    Args:
        store: where jobs and their endings are written.
        registry: the boards.
        call_later: calls a function after so many seconds and returns what calls it off.
        lost_after: seconds of grace for a board whose link broke.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        *,
        lost_after: float = LOST_AFTER,
    ) -> None:
        self._store = store
        self._registry = registry
        self._call_later = call_later
        self._job_results = JobResults(store, call_later)
        self._scheduler = Scheduler(store, self._job_results, call_later, lost_after=lost_after)
        self.on_emit: Callable[[Board, wire.Message], None] = lambda _board, _message: None
        #: Called where a board speaks of a job that is not its own, with that job's number.
        self.on_stray: Callable[[Board, int], None] = lambda _board, _job: None
        self.jobs = self._job_results.jobs
        self.recent_jobs = self._job_results.recent_jobs
        self.counters = self._job_results.counters
        self.flush_later = self._job_results.flush_later
        self.send_rekey = self._scheduler.send_rekey
        self.end_board_jobs = self._scheduler.end_board_jobs
        self.remote_jobs: RemoteJobs | None = None  # where there are other servers
        self._refusal: Callable[[Job], str] = lambda _job: ""
        self._restore_jobs()

    def permit(self, refusal: Callable[[Job], str]) -> None:
        """Have ``refusal`` say, before each start, why a job may not begin; "" where it may."""
        self._refusal = self._scheduler.refusal = refusal

    def enable_remote_jobs(self, store: SharedStore, peer_messages: PeerMessages) -> RemoteJobs:
        """Have other servers, which run jobs for callers here."""
        self.remote_jobs = RemoteJobs(
            self, self._job_results, store, peer_messages, self._call_later
        )
        self._scheduler.on_refused = self.remote_jobs.follow_in_store
        return self.remote_jobs

    @property
    def lost_after(self) -> float:
        """Return the seconds of grace for a board whose link broke."""
        return self._scheduler.lost_after

    @lost_after.setter
    def lost_after(self, seconds: float) -> None:
        self._scheduler.lost_after = seconds

    # What callers ask

    def submit(
        self,
        boards: Sequence[Board],
        cell: Cell,
        caller: str,
        observer: JobObserver,
        *,
        token: str = "",
        **audit_fields: str,
    ) -> list[Job]:
        """Write one job per board down; ``launch`` lets them run.

        Args:
            boards: where it runs.
            cell: what runs.
            caller: the name of the caller's token.
            observer: who is told how the jobs go.
            token: the hash of the caller's token, by which each start is judged.
            audit_fields: (``address``, ``target`` …) what the audit log gets to know of who asked.
        """
        numbers = self._insert_jobs(boards, caller, **audit_fields)
        jobs = [
            Job(number, board, cell, caller, observer, token=token)
            for number, board in zip(numbers, boards, strict=True)
        ]
        self.jobs.update((job.id, job) for job in jobs)
        self.counters.on_submitted(jobs, caller, audit_fields.get("target", ""))
        return jobs

    def _insert_jobs(
        self, boards: Sequence[Board], caller: str, **audit_fields: str
    ) -> Sequence[int]:
        """Commit one row per board to the store; return the numbers of the jobs."""
        return self._store.insert_jobs([board.id for board in boards], caller, **audit_fields)

    def launch(self, jobs: Sequence[Job]) -> None:
        """Start the jobs that ``submit`` wrote, or queue them; absent boards' jobs end."""
        for job in jobs:
            board = job.board
            if board.queue and (why := _queue_full_reason(board.queue, job)):
                self._job_results.end_job(job, "error", why)
            elif board.link is None and not board.restarts:
                self._launch_absent(job)
            else:
                board.queue.append(job)
                self._scheduler.advance(board, quiet=job)  # who submits it is told by ACCEPTED
            board.notify_changed()

    def _launch_absent(self, job: Job) -> None:
        if self.remote_jobs is not None and job.board.online:
            if why := self._refusal(job):
                self._job_results.end_job(job, "error", f"{why}; it did not run")
            else:
                self.remote_jobs.launch(job)
        else:
            self._await_board(job)

    def _await_board(self, job: Job) -> None:
        """Give an absent board the time that the caller grants it."""
        if job.cell.wait <= 0:
            self._job_results.end_job(job, "offline", job.board.last_seen_text)
            return
        job.board.queue.append(job)
        job.timer = self._call_later(job.cell.wait, lambda: self._on_wait_expired(job))

    def _on_wait_expired(self, job: Job) -> None:
        job.timer = None
        if job.state == "queued" and job.board.link is None:
            job.board.queue.remove(job)
            why = f"it did not dial in within {job.cell.wait:g} s; {job.board.last_seen_text}"
            self._job_results.end_job(job, "offline", why)

    def interrupt(self, job: Job) -> None:
        """Take out a job that was not sent; interrupt a running one on its board."""
        if job.owner and self.remote_jobs is not None:
            self.remote_jobs.interrupt_job(job)
        elif job.state == "running" and job.board.link is not None:
            job.board.link.send(wire.pack(wire.INTERRUPT, job=job.id))
        elif job.state in ("queued", "resetting"):
            self._take_out(job)
            self._job_results.end_job(job, "interrupted", "it was not sent yet and did not run")

    def _take_out(self, job: Job) -> None:
        """Take a job that waits out of its board's queue; one that was sent is interrupted, too."""
        if job.state == "queued":
            job.board.queue.remove(job)
        if job.resends and job.board.link is not None:
            job.board.link.send(wire.pack(wire.INTERRUPT, job=job.id))

    def withdraw(self, job: Job, why: str) -> None:
        """End a job that has not begun and whose caller may not run it any more.

        One that another server has is for that server to end.
        """
        if not job.owner:
            self._take_out(job)
            self._job_results.end_job(job, "error", f"{why}; it did not run")

    def part(self, job: Job, why: str) -> None:
        """Tell a caller that it follows a job no more; what the job does on its board goes on."""
        body = {"why": f"{why}; what had begun there goes on", "output_lost": False}
        flags = wire.STATUSES.index("lost")
        job.deliver(wire.pack_json(wire.ENDED, body, job=job.id, flags=flags))
        self._part(job)

    def answer_input(self, job: Job, text: bytes, *, nobody: bool = False) -> None:
        """Answer the ``input()`` of a job."""
        if job.awaiting_input and job.owner and self.remote_jobs is not None:
            job.awaiting_input = False
            self.remote_jobs.answer_input(job, text, nobody=nobody)
        elif job.awaiting_input and job.board.link is not None:
            job.awaiting_input = False
            flags = wire.INPUT_EOF if nobody else 0
            job.board.link.send(wire.pack(wire.ANSWER, text, job=job.id, flags=flags))

    def detach_observer(self, observer: JobObserver) -> None:
        """Go on without a caller that went away; its jobs stay, but for files that he wanted."""
        for job in [job for job in self.jobs.values() if job.observer is observer]:
            cleanup.run_all("a caller's job", functools.partial(self._part, job))

    def _part(self, job: Job) -> None:
        """Go on with a job that nobody follows any more; files that nobody gets are not sent."""
        job.observer = None
        self.answer_input(job, b"", nobody=True)
        if job.cell.files is not None and job.cell.files.reads_files:
            self.interrupt(job)

    def on_bytes_forwarded(self, number: int, size: int) -> None:
        """Note that bytes of a board's file have left for the caller."""
        job = self.jobs.get(number)
        if job is not None and job.state == "running" and job.transfer is not None:
            job.transfer.on_bytes_forwarded(size)

    # What boards say

    def on_message(self, board: Board, data: bytes) -> None:
        """Take a board's message: it is passed on untouched, if it is about the board's job.

        Raises:
            PeerWireError: the message is malformed, or not a board's to send.
        """
        message = wire.unpack(data)
        wire.check_op("open", message)
        job = board.current_job
        if message.op == wire.EMIT:
            self.on_emit(board, message)
        elif message.op == wire.PROGRAM:
            self._on_program(board, message)
        elif message.op == wire.FACTS:
            board.reported_facts = {**board.reported_facts, **wire.read_facts(message)}
            board.notify_changed()
        elif not message.job:  # what its own program prints: nobody asked for it
            pass
        elif job is None or not _is_job_number(job, message.job):
            self.on_stray(board, message.job)
        elif message.op == wire.RESULT:
            self._on_result(job, message, data)
        elif message.op == wire.INPUT:
            self.handle_input(job, data)
        elif message.op == wire.CHUNK:
            self.handle_chunk(job, message, data)
        else:
            (job.output_tail if message.op == wire.OUTPUT else job.value).add(message.payload)
            job.deliver(data, droppable=True)

    def _on_result(self, job: Job, message: wire.Message, data: bytes) -> None:
        resets = job.state == "resetting"
        self.handle_result(job, message, data)
        if not resets:  # else it restarts before it can do anything else
            self._scheduler.on_job_finished(job.board)

    def handle_result(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Pass a result on first, then write it down: somebody waits for it."""
        ending = wire.read_result(message)
        settled = job.state == "settled"
        if not settled:
            job.deliver(data)
        job.output_tail.add(ending.output)
        if ending.status == "ok":
            job.value.add(ending.value_or_traceback)
            error = ""
        else:
            error = ending.value_or_traceback.decode("utf-8", "replace")
        if settled:
            self._job_results.amend_result(job.board, ReportedResult(job.id, ending.status, error))
        else:
            self._job_results.record_end(job, ending.status, error)

    def _on_program(self, board: Board, message: wire.Message) -> None:
        """Note what a board's own program does; while it blocks the board, cells wait."""
        told = message.payload.decode("utf-8", "replace")[: limits.PROGRAM_CHARS]
        board.reported_facts = {**board.reported_facts, "program": told}
        board.blocked = bool(message.flags & wire.BLOCKING)
        board.notify_changed()
        job = board.current_job
        overtaken = _overtaken_job(board)
        if overtaken is not None:
            self._scheduler.put_back(overtaken)
        elif board.blocked and job is not None and job.state == "settled":
            board.current_job = None  # it does not run that any more, whatever became of it
        if board.current_job is None:
            self._scheduler.start_next(board)

    def stop_program(self, board: Board) -> bool:
        """Ask a board to end its own program; return whether the board is there."""
        if board.link is None:
            return False
        board.link.send(wire.pack(wire.INTERRUPT))
        return True

    def handle_chunk(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Take a piece of a file, or a board's word on how far it is; the caller sees both."""
        if job.transfer is None:  # it is settled, and the board does not know it yet
            return
        try:
            if job.transfer.on_chunk(message):
                job.deliver(data)
        except JobRefused as error:
            if job.owner and self.remote_jobs is not None:
                self.remote_jobs.fail_job(job, error.error_text)
            else:
                self._job_results.end_job(job, "error", error.error_text)

    def handle_input(self, job: Job, data: bytes) -> None:
        """Have somebody answer a job's ``input()``."""
        job.awaiting_input = True
        if job.observer is not None and job.cell.answers:
            job.deliver(data)
        else:
            self.answer_input(job, b"", nobody=True)

    def describe_jobs(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what is known of jobs, each with its board's id: open ones first, newest first."""
        running = sorted(self.jobs.values(), key=lambda job: -job.id)
        return [(job.board.id, job.describe()) for job in (*running, *self.recent_jobs.newest())]

    # Of several servers

    def add_hosted_jobs(self, jobs: Sequence[Job]) -> None:
        """Take jobs in that callers at another server wrote down; ``launch`` lets them run."""
        self.jobs.update((job.id, job) for job in jobs)

    def adopt_jobs(self, board: Board, rows: Sequence[JobRow]) -> None:
        """Take over what was sent to a board; what it runs as far as we know may be lost to us."""
        numbers = {row.id for row in rows}
        current = board.current_job
        if current is not None and current.state != "settled" and current.id not in numbers:
            self.hand_over_current(board)
        for row in rows:
            job = self.jobs.get(row.id) or Job(row.id, board, EMPTY_CELL, row.caller, None)
            if board.current_job is job or job in board.queue:  # there it waits to be sent again
                continue
            job.owner, job.state, job.started = "", "adrift", job.started or row.created
            self.jobs[job.id] = job
            if board.current_job is None and board.link is None:
                board.current_job = job
            else:
                self._job_results.end_job(job, "lost", "it never reached the board")

    def hand_over_current(self, board: Board) -> None:
        """Leave what a board runs to another server; its outcome comes out of the store."""
        job, board.current_job = board.current_job, None
        if job is not None and job.state != "settled" and self.remote_jobs is not None:
            self.remote_jobs.follow_in_store(job)

    def drop_all_jobs(self) -> None:
        """Forget all jobs: other servers took them over."""
        for job in self.jobs.values():
            job.stop_timer()
            job.state, job.observer, job.transfer = "settled", None, None
        self.jobs.clear()
        for board in self._registry.by_id.values():
            board.queue.clear()
            board.current_job = None

    def fail_job(self, job: Job, why: str) -> None:
        """End a job that its caller's server goes no further with."""
        self._job_results.end_job(job, "error", why)

    def take_over_jobs(self, rows: Sequence[JobRow]) -> None:
        """Take over what a dead server sent: its boards may still tell."""
        for row in rows:
            board = self._registry.by_id.get(row.board)
            if board is None:
                self._store.end_job(row.id, "lost", "its board was taken out of the fleet")
            else:
                self.adopt_jobs(board, [row])
                self._scheduler.start_grace_period(board)

    # Links that come and go

    def on_link_opened(self, board: Board, *, same_boot: bool, last: dict[str, Any] | None) -> None:
        """Take a board in that has just proven itself, and what it tells of its last job."""
        job, board.current_job = board.current_job, None
        told = read_last_result(last)
        if job is not None and job.state == "resetting" and not same_boot:
            if not self._scheduler.start_job(job, quiet=False):
                self._scheduler.start_next(board)
            return
        was_resent = self._settle_resent(board, told, same_boot=same_boot)
        if job is not None and job.state != "settled":
            self._end_returned_job(job, told, same_boot=same_boot)
        elif told is not None and not was_resent:
            self._job_results.amend_result(board, told)
        self._scheduler.start_next(board)

    def _settle_resent(self, board: Board, told: ReportedResult | None, *, same_boot: bool) -> bool:
        """Settle the job that waits to be sent again, if its board may have run it by now.

        Returns:
            Whether ``told`` was about it.
        """
        job = next((job for job in board.queue if job.resends), None)
        is_told = job is not None and told is not None and told.job == job.id
        if job is not None and _may_have_run(reported=is_told, same_boot=same_boot):
            board.queue.remove(job)
            self._end_returned_job(job, told, same_boot=same_boot)
        return is_told

    def _end_returned_job(
        self, job: Job, reported: ReportedResult | None, *, same_boot: bool
    ) -> None:
        """Settle a job whose board is back."""
        if job.state == "resetting":
            self._job_results.end_job(
                job, "error", "the board did not restart; the cell did not run"
            )
        elif reported is not None and reported.job == job.id:
            self._job_results.end_job(job, reported.status, reported.error, output_lost=True)
        elif same_boot:
            self._job_results.end_job(job, "lost", "it never reached the board")
        else:
            self._job_results.end_job(job, "lost", "the board restarted while it ran")

    def on_link_closed(self, board: Board, link: BoardLinkProtocol) -> None:
        """Give a board whose link broke its grace."""
        if board.link is not link:
            return
        board.disconnect()
        if board.current_job is not None and board.current_job.state == "running":
            board.current_job.state = "adrift"
        if board.current_job is not None or board.queue:
            self._scheduler.start_grace_period(board)

    def stop(self) -> None:
        """End what was not sent; what runs stays open, its board tells the next server."""
        for job in list(self.jobs.values()):
            if job.state in ("queued", "resetting") and not (job.owner or job.resends):
                why = "the server stopped before it was sent; it did not run"
                self._job_results.end_job(job, "lost", why)
        self._store.flush()

    def _restore_jobs(self) -> None:
        """Take over the jobs that a server left open: each board's oldest may have run."""
        for row in self._store.open_jobs():
            board = self._registry.by_id.get(row.board)
            if board is None or board.current_job is not None:
                self._store.end_job(row.id, "lost", "the server restarted before it was sent")
                continue
            job = Job(row.id, board, EMPTY_CELL, row.caller, None)
            job.state, job.started = "adrift", row.created
            board.current_job = self.jobs[job.id] = job
            self._scheduler.start_grace_period(board)
        self._store.flush()


def _is_job_number(job: Job, number: int) -> bool:
    """Return whether a board's message is about the job that it runs."""
    return job.id == number


def _overtaken_job(board: Board) -> Job | None:
    """Return the job that was sent before its board reported that its own program runs."""
    job = board.current_job
    if board.blocked and job is not None and job.state == "running":
        return job
    return None


def _may_have_run(*, reported: bool, same_boot: bool) -> bool:
    """Return whether a job that was put back into the queue may have run after all.

    Args:
        reported: whether its board reported a result of it.
        same_boot: whether its board has not restarted since.
    """
    return reported or not same_boot


def _queue_full_reason(queue: Sequence[Job], job: Job) -> str:
    """Say why a job may not wait behind the others; "" where it may."""
    if len(queue) >= limits.QUEUED_JOBS:
        return f"{limits.QUEUED_JOBS} jobs wait for this board already; it did not run"
    size = len(job.cell.code) + sum(len(other.cell.code) for other in queue)
    if size > limits.QUEUED_BYTES:
        mib = limits.QUEUED_BYTES // limits.MIB
        return f"cells of {mib} MiB wait for this board already; it did not run"
    return ""
