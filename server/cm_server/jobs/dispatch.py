"""Requests of callers about jobs, and messages of boards about their jobs. No sockets, no SQL.

One job is one cell on one board. Its states::

    queued ──▶ running ──▶ ended
     │  ▲         │           ▲
     │  │         ▼           │
     │  │       adrift ───────┤     the link is down; the board may still report
     ▼  │                     │
    resetting ────────────────┘     the board restarts first (--fresh)

A job ends once, for its caller and in the store, from any of the states; if its board reports a
result later, the row in the store is corrected (``JobResults``). A job is never started twice.
Which job runs next is up to the ``Scheduler``. Call from the thread of the event loop only.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cloudmanager.protocol import wire
from cm_server import cleanup
from cm_server.limits import MIB, Limits
from cm_server.store.rows import JobRow
from cm_server.store.store import Store
from cm_server.store.store_queue import Operation, StoreQueue

from .job_history import ReportedResult, read_last_result
from .job_results import JobResults
from .model import (
    Board,
    BoardLinkProtocol,
    Cell,
    Job,
    JobObserver,
    JobRefused,
    Requester,
    TimerHandle,
)
from .registry import Registry
from .remote import NoRemote, Remote
from .scheduler import Scheduler

log = logging.getLogger("cm_server")

#: The cell of a job that another server, or an earlier run of this one, has sent: it is not stored.
EMPTY_CELL = Cell(b"")
ROW_BYTES = 256  # of one job in memory until it is committed


class Submission(NamedTuple):
    """A cell that a caller submits.

    Attributes:
        boards: where it runs.
        cell: what runs.
        requester: who submits it.
        address: the caller's, for the audit log.
        target: as the caller wrote it, for the audit log.
        detail: what runs, for the audit log.
        verb: for the audit log.
    """

    boards: Sequence[Board]
    cell: Cell
    requester: Requester
    address: str = ""
    target: str = ""
    detail: str = ""
    verb: str = "submit"


class Dispatch:
    """The jobs of all boards.

    Args:
        store_queue: where jobs and their results are written.
        registry: the boards.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        limits: how much is queued for a board, and kept of a job.
        lost_after: returns the seconds that a board has to reconnect after its link broke.

    Attributes:
        on_emit: called with a board and its EMIT message.
        on_stray: called when a board sends a message about a job that is not its current one, with
            the job's number.
        remote: other servers, which run jobs on their boards.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        registry: Registry,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        limits: Limits,
        *,
        lost_after: Callable[[], float],
    ) -> None:
        self._store_queue = store_queue
        self._limits = limits
        self._registry = registry
        self._call_later = call_later
        self._committing: Counter[Board] = Counter()  # boards of cells that are not committed yet
        self.job_results = JobResults(store_queue, call_later, limits)
        self._scheduler = Scheduler(
            store_queue, self.job_results, call_later, lost_after=lost_after
        )
        self._scheduler.on_transfer_refused = self.refuse_transfer
        self.on_emit: Callable[[Board, wire.Message], None] = lambda _board, _message: None
        self.on_stray: Callable[[Board, int], None] = lambda _board, _job: None
        self.jobs = self.job_results.jobs
        self.recent_jobs = self.job_results.recent_jobs
        self.counters = self.job_results.counters
        self.flush_later = self.job_results.flush_later
        self.send_rekey = self._scheduler.send_rekey
        self.end_board_jobs = self._scheduler.end_board_jobs
        self.remote: Remote = NoRemote()
        self._permission_check: Callable[[Job], str] = lambda _job: ""
        self._restore_jobs()

    def set_permission_check(self, check: Callable[[Job], str]) -> None:
        """Set the function that is called before each start of a job.

        Args:
            check: returns why the job may not start, "" if it may.
        """
        self._permission_check = self._scheduler.permission_check = check

    def set_remote(self, remote: Remote) -> None:
        """Let other servers run jobs of callers of this server, on their boards."""
        self.remote = remote
        self._scheduler.on_not_owned = remote.follow_in_store

    # Requests of callers

    def submit(self, submission: Submission) -> Operation[range]:
        """Commit one job per board, and the row in the audit log; ``create_jobs`` follows.

        Nothing is sent before: while the store does not answer, the cell waits.

        Returns:
            The numbers of the jobs.
        """
        boards = list(submission.boards)
        epochs = self._launch_epochs(boards)
        operation = self._commit(submission, epochs)
        if not operation.done:
            self._committing.update(boards)
            operation.when_done(lambda _: self._on_committed(boards))
        return operation

    def _commit(self, submission: Submission, epochs: Mapping[str, int]) -> Operation[range]:
        """Commit one job per board, and the row in the audit log; return the jobs' numbers."""
        board_ids = [board.id for board in submission.boards]
        return self._store_queue.run(
            lambda store: store.insert_jobs(
                board_ids,
                submission.requester.caller,
                address=submission.address,
                target=submission.target,
                detail=submission.detail,
                verb=submission.verb,
                epochs=epochs,
            ),
            size=len(submission.cell.code) + ROW_BYTES * len(board_ids),
            refusable=True,
        )

    def _on_committed(self, boards: Sequence[Board]) -> None:
        self._committing.subtract(boards)
        for board in boards:
            if not self._committing[board]:
                del self._committing[board]

    def _launch_epochs(self, boards: Sequence[Board]) -> dict[str, int]:
        """Return the epochs of the boards to which the jobs will be sent as soon as they exist."""
        epochs = {}
        for board in boards:
            epoch = self.remote.epoch_for(board)
            if epoch is not None and not self._committing[board]:
                epochs[board.id] = epoch
        return epochs

    def create_jobs(self, submission: Submission, numbers: Sequence[int]) -> list[Job]:
        """Return the jobs of a cell that was committed; ``launch`` starts them.

        Args:
            submission: the cell.
            numbers: as ``submit`` returned them.
        """
        jobs = [
            self.new_job(
                number,
                board,
                submission.cell,
                submission.requester,
            )
            for number, board in zip(numbers, submission.boards, strict=True)
        ]
        self.jobs.update((job.id, job) for job in jobs)
        self.counters.on_submitted(jobs, submission.requester.caller, submission.target)
        return jobs

    def new_job(
        self,
        number: int,
        board: Board,
        cell: Cell,
        requester: Requester,
    ) -> Job:
        """Return a job that is not started; the arguments are those of ``Job``."""
        return Job(number, board, cell, requester, self._limits.tail_bytes)

    def launch(self, jobs: Sequence[Job]) -> None:
        """Start or queue submitted jobs; those of offline boards end, unless their caller waits."""
        for job in jobs:
            board = job.board
            if self._registry.by_id.get(board.id) is not board:
                self.job_results.end_job(job, "offline", "it was removed from the fleet")
            elif board.queue and (why := self._queue_full_reason(board.queue, job)):
                self.job_results.end_job(job, "error", why)
            elif board.link is None and not board.is_restarting:
                self._launch_not_connected(job)
            else:
                board.queue.append(job)
                self._scheduler.start_queued_jobs(board, submitted=job)
            board.notify_changed()

    def _queue_full_reason(self, queue: Sequence[Job], job: Job) -> str:
        """Return why a job may not be added to a queue; "" if it may."""
        if len(queue) >= self._limits.queued_jobs:
            return f"{self._limits.queued_jobs} jobs wait for this board already; it did not run"
        size = len(job.cell.code) + sum(len(other.cell.code) for other in queue)
        if size > self._limits.queued_bytes:
            mib = self._limits.queued_bytes // MIB
            return f"cells of {mib} MiB wait for this board already; it did not run"
        return ""

    def _launch_not_connected(self, job: Job) -> None:
        """Launch a job whose board is connected to another server, or offline."""
        if job.board.online:
            if why := self._permission_check(job):
                self.job_results.end_job(job, "error", f"{why}; it did not run")
            else:
                self.remote.launch(job)
        else:
            self._await_board(job)

    def _await_board(self, job: Job) -> None:
        """Queue the job of an offline board for the time that its caller allows (``wait``)."""
        if job.cell.options.wait <= 0:
            self.job_results.end_job(job, "offline", job.board.last_seen_text)
            return
        job.board.queue.append(job)
        job.timer = self._call_later(job.cell.options.wait, lambda: self._on_wait_expired(job))

    def _on_wait_expired(self, job: Job) -> None:
        job.timer = None
        if job.state == "queued" and job.board.link is None:
            job.board.queue.remove(job)
            why = (
                f"it did not connect within {job.cell.options.wait:g} s; {job.board.last_seen_text}"
            )
            self.job_results.end_job(job, "offline", why)

    def interrupt(self, job: Job) -> None:
        """End a job that was not sent; interrupt one that was, on its board (sends INTERRUPT)."""
        if job.owner:
            self.remote.interrupt_job(job)
        elif job.state == "running" and job.board.link is not None:
            job.board.link.send(wire.pack(wire.INTERRUPT, job=job.id))
        elif job.state in ("queued", "resetting"):
            self._remove_from_queue(job)
            self.job_results.end_job(job, "interrupted", "it was not sent yet and did not run")

    def _remove_from_queue(self, job: Job) -> None:
        """Remove a waiting job from its board's queue; interrupt it if it was sent before."""
        if job.state == "queued":
            job.board.queue.remove(job)
        if job.resends and job.board.link is not None:
            job.board.link.send(wire.pack(wire.INTERRUPT, job=job.id))

    def withdraw_job(self, job: Job, why: str) -> None:
        """End a job that has not started and that its caller may not run any more.

        A job that another server owns is left to that server.
        """
        if not job.owner:
            self._remove_from_queue(job)
            self.job_results.end_job(job, "error", f"{why}; it did not run")

    def stop_following(self, job: Job, why: str) -> None:
        """Report a job as lost to its caller, who may not follow it any more; it runs on."""
        body = {"why": f"{why}; what has started there continues", "output_lost": False}
        flags = wire.STATUSES.index("lost")
        job.deliver(wire.pack_json(wire.ENDED, body, job=job.id, flags=flags))
        self._end_observation(job)

    def answer_input(self, job: Job, text: bytes, *, nobody: bool = False) -> None:
        """Answer the ``input()`` of a job.

        Args:
            job: ignored if it is not waiting for an answer.
            text: the answer.
            nobody: whether there is nobody to answer; the board raises EOFError.
        """
        if job.awaiting_input and job.owner:
            job.awaiting_input = False
            self.remote.answer_input(job, text, nobody=nobody)
        elif job.awaiting_input and job.board.link is not None:
            job.awaiting_input = False
            flags = wire.INPUT_EOF if nobody else 0
            job.board.link.send(wire.pack(wire.ANSWER, text, job=job.id, flags=flags))

    def detach_observer(self, observer: JobObserver) -> None:
        """Continue the jobs of a caller that disconnected, except for its downloads."""
        for job in [job for job in self.jobs.values() if job.observer is observer]:
            cleanup.run_all("a caller's job", functools.partial(self._end_observation, job))

    def _end_observation(self, job: Job) -> None:
        """Continue a job without observer: its ``input()`` gets EOF, a download is interrupted."""
        job.observer = None
        self.answer_input(job, b"", nobody=True)
        if job.cell.files is not None and job.cell.files.reads_files:
            self.interrupt(job)

    def on_bytes_forwarded(self, number: int, size: int) -> None:
        """Report to a transfer that bytes of a board's file were written to the caller's socket."""
        job = self.jobs.get(number)
        if job is not None and job.state == "running" and job.transfer is not None:
            job.transfer.on_bytes_forwarded(size)

    # Messages of boards

    def on_message(self, board: Board, data: bytes) -> None:
        """Handle a message of a board; one about its current job is forwarded unchanged.

        Raises:
            PeerWireError: the message is malformed, or boards may not send it.
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
        elif not message.job:  # output of the board's own program: no caller follows it
            pass
        elif job is None or not _is_job_number(job, message.job):
            self.on_stray(board, message.job)
        else:
            self.on_job_message(job, message, data)

    def on_job_message(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Handle a board's message about one of its jobs, wherever the board is connected.

        Args:
            job: has not ended, or its board does not know yet that it has.
            message: as the board sent it.
            data: the same, packed: callers get it unchanged.
        """
        if message.op == wire.RESULT:
            self._on_result(job, message, data)
        elif message.op == wire.INPUT:
            self._on_input(job, data)
        elif message.op == wire.CHUNK:
            self._on_chunk(job, message, data)
        elif message.op in (wire.OUTPUT, wire.VALUE):
            (job.output_tail if message.op == wire.OUTPUT else job.value).add(message.payload)
            job.deliver(data, droppable=True)
        else:
            job.deliver(data)

    def _on_result(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Forward a result to the caller, which may be waiting for it, then store it."""
        result = wire.read_result(message)
        resets, has_ended = job.state == "resetting", job.state == "ended"
        is_here = not job.owner
        if not has_ended:
            job.deliver(data)
        job.output_tail.add(result.output)
        if result.status == "ok":
            job.value.add(result.value_or_traceback)
            error = ""
        else:
            error = result.value_or_traceback.decode("utf-8", "replace")
        if has_ended:
            self.job_results.amend_result(job.board, ReportedResult(job.id, result.status, error))
        else:
            self.job_results.record_end(job, result.status, error)
        if is_here and not resets:  # else the board restarts before it can start another job
            self._scheduler.on_job_finished(job.board)

    def _on_program(self, board: Board, message: wire.Message) -> None:
        """Record the state of a board's own program; while it blocks the board, cells wait."""
        text = message.payload.decode("utf-8", "replace")[: self._limits.program_chars]
        board.reported_facts = {**board.reported_facts, "program": text}
        board.blocked = bool(message.flags & wire.BLOCKING)
        board.notify_changed()
        job = board.current_job
        overtaken = _overtaken_job(board)
        if overtaken is not None:
            self._scheduler.requeue(overtaken)
        elif board.blocked and job is not None and job.state == "ended":
            board.current_job = None  # the board runs its program, so it has left that job
        if board.current_job is None:
            self._scheduler.start_next(board)

    def stop_program(self, board: Board) -> bool:
        """Interrupt a board's own program; return whether the board is connected."""
        if board.link is None:
            return False
        board.link.send(wire.pack(wire.INTERRUPT))
        return True

    def _on_chunk(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Pass a piece of a file, or a board's acknowledgement, to the transfer and the caller."""
        if job.transfer is None:  # the job has ended, and the board has not read that yet
            return
        try:
            if job.transfer.on_chunk(message):
                job.deliver(data)
        except JobRefused as error:
            self.refuse_transfer(job, error.error_text)

    def refuse_transfer(self, job: Job, error: str) -> None:
        """End a job whose transfer cannot be continued, at the server that owns it."""
        if job.owner:
            self.remote.fail_job(job, error)
        else:
            self.job_results.end_job(job, "error", error)

    def _on_input(self, job: Job, data: bytes) -> None:
        """Forward a job's ``input()`` to its caller, or answer with EOF if nobody can answer."""
        job.awaiting_input = True
        if job.observer is not None and job.cell.options.answers:
            job.deliver(data)
        else:
            self.answer_input(job, b"", nobody=True)

    def describe_jobs(self) -> list[tuple[str, dict[str, Any]]]:
        """Return open jobs, then recently ended ones, each with its board's id; newest first."""
        open_jobs = sorted(self.jobs.values(), key=lambda job: -job.id)
        return [(job.board.id, job.describe()) for job in (*open_jobs, *self.recent_jobs.newest())]

    # Several servers

    def add_hosted_jobs(self, jobs: Sequence[Job]) -> None:
        """Add jobs that callers submitted at another server; ``launch`` starts them."""
        self.jobs.update((job.id, job) for job in jobs)

    def adopt_jobs(self, board: Board, rows: Sequence[JobRow]) -> None:
        """Take over the jobs that were sent to a board and have not ended.

        Args:
            board: this server has acquired its lease.
            rows: the jobs, in the store. The board's current job, if it is not among them, belongs
                to another server.
        """
        numbers = {row.id for row in rows}
        current = board.current_job
        if current is not None and current.state != "ended" and current.id not in numbers:
            self.hand_over_current(board)
        for row in rows:
            job = self.jobs.get(row.id)
            job = job or self.new_job(row.id, board, EMPTY_CELL, Requester(row.caller))
            if board.current_job is job or job in board.queue:  # it waits there to be sent again
                continue
            job.owner = ""
            job.state = "adrift"
            job.started = job.started or row.created
            self.jobs[job.id] = job
            if board.current_job is None and board.link is None:
                board.current_job = job
            else:
                self.job_results.end_job(job, "lost", "it never reached the board")

    def hand_over_current(self, board: Board) -> None:
        """Leave a board's current job to another server, and read its result from the store."""
        job, board.current_job = board.current_job, None
        if job is not None and job.state != "ended":
            self.remote.follow_in_store(job)

    def drop_all_jobs(self) -> None:
        """Remove all jobs from memory: other servers have taken them over."""
        for job in self.jobs.values():
            job.stop_timer()
            job.state = "ended"
            job.observer = None
            job.transfer = None
        self.jobs.clear()
        for board in self._registry.by_id.values():
            board.queue.clear()
            board.current_job = None

    def fail_job(self, job: Job, why: str) -> None:
        """End a hosted job that its caller's server cannot continue."""
        self.job_results.end_job(job, "error", why)

    def take_over_jobs(self, rows: Sequence[JobRow]) -> None:
        """Take over the jobs that a dead server sent: their boards may still report results."""
        for row in rows:
            board = self._registry.by_id.get(row.board)
            if board is None:
                self._store_queue.store.end_job(
                    row.id, "lost", "its board was removed from the fleet"
                )
            else:
                self.adopt_jobs(board, [row])
                self._scheduler.start_grace_period(board)

    # Links that open and close

    def on_link_opened(self, board: Board, *, same_boot: bool, last: dict[str, Any] | None) -> None:
        """Settle the jobs of a board that has just authenticated, and start its next one.

        Args:
            board: it has a new link.
            same_boot: whether it has not restarted since its last link.
            last: its report of its last job, from PROOF.
        """
        job, board.current_job = board.current_job, None
        reported = read_last_result(last)
        if job is not None and job.state == "resetting" and not same_boot:
            self._scheduler.start_after_reset(job)
            return
        was_resent = self._end_resent_job(board, reported, same_boot=same_boot)
        if job is not None and job.state != "ended":
            self._end_returned_job(job, reported, same_boot=same_boot)
        elif reported is not None and not was_resent:
            self.job_results.amend_result(board, reported)
        self._scheduler.start_next(board)

    def _end_resent_job(
        self, board: Board, reported: ReportedResult | None, *, same_boot: bool
    ) -> bool:
        """End the job that waits to be sent again, if the board may have run it meanwhile.

        Returns:
            Whether the board's report was about this job.
        """
        job = next((job for job in board.queue if job.resends), None)
        is_reported = job is not None and reported is not None and reported.job == job.id
        if job is not None and _may_have_run(reported=is_reported, same_boot=same_boot):
            board.queue.remove(job)
            self._end_returned_job(job, reported, same_boot=same_boot)
        return is_reported

    def _end_returned_job(
        self, job: Job, reported: ReportedResult | None, *, same_boot: bool
    ) -> None:
        """End the job of a board that has reconnected."""
        if job.state == "resetting":
            why = "the board did not restart; the cell did not run"
            self.job_results.end_job(job, "error", why)
        elif reported is not None and reported.job == job.id:
            self.job_results.end_job(job, reported.status, reported.error, output_lost=True)
        elif same_boot:
            self.job_results.end_job(job, "lost", "it never reached the board")
        else:
            self.job_results.end_job(job, "lost", "the board restarted while it ran")

    def on_link_closed(self, board: Board, link: BoardLinkProtocol) -> None:
        """Start the grace period of a board whose link broke; ignore links that were replaced."""
        if board.link is not link:
            return
        board.disconnect()
        if board.current_job is not None and board.current_job.state == "running":
            board.current_job.state = "adrift"
        self.start_grace_period(board)

    def start_grace_period(self, board: Board) -> None:
        """Give up the jobs of a board without link after a while, unless it connects."""
        if board.current_job is not None or board.queue:
            self._scheduler.start_grace_period(board)

    def stop(self) -> None:
        """End the jobs that were not sent, and write results.

        Running jobs stay open: their boards report the results to the next server.
        """
        for job in list(self.jobs.values()):
            if job.state in ("queued", "resetting") and not (job.owner or job.resends):
                why = "the server stopped before it was sent; it did not run"
                self.job_results.end_job(job, "lost", why)
        self._store_queue.flush()

    def _restore_jobs(self) -> None:
        """Take over the open jobs of an earlier run of the server: each board's oldest may run."""
        store = self._store_queue.store  # the server does not serve yet
        for row in store.open_jobs():
            board = self._registry.by_id.get(row.board)
            if board is None or board.current_job is not None:
                self._store_queue.store.end_job(
                    row.id, "lost", "the server restarted before it was sent"
                )
                continue
            job = self.new_job(row.id, board, EMPTY_CELL, Requester(row.caller))
            job.state, job.started = "adrift", row.created
            board.current_job = self.jobs[job.id] = job
            self._scheduler.start_grace_period(board)
        store.flush()


def _is_job_number(job: Job, number: int) -> bool:
    """Return whether a board's message is about the job that it runs."""
    return job.id == number


def _overtaken_job(board: Board) -> Job | None:
    """Return the job that was sent to a board before the board reported that its program runs."""
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
