"""The jobs of all boards: what callers request, and the parts that carry it out.

One job is one cell on one board. Its states::

    queued ──▶ running ──▶ ended
     │  ▲         │           ▲
     │  │         ▼           │
     │  │       adrift ───────┤     the link is down; the board may still report
     ▼  │                     │
    resetting ────────────────┘     the board restarts first (--fresh)

A job is never started twice. It ends once, for its caller and in the store, from any of the states.

* ``Scheduler``: the queue of each board; which job it runs next.
* ``BoardMessages``: output, values and results that boards report.
* ``JobResults``: the jobs, how they ended, and the correction of what had to be assumed.
* ``JobRecovery``: jobs whose board lost its link, or whose server restarted.
* ``JobTexts``: what jobs ran and where they came from, for boards' histories.
* ``WaitingJobs``: jobs that wait in the store until their board connects; then they are running.

No sockets, no SQL. Call from the thread of the event loop only.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server import cleanup
from cm_server.store.rows import NO_CELL_AUDIT, CellAudit, NewCell
from cm_server.store.store import Store
from cm_server.store.store_queue import Operation

from .board_messages import BoardMessages
from .job_recovery import JobRecovery
from .job_results import JobResults
from .job_services import JobServices
from .job_texts import JobOrigin, JobTexts
from .model import Board, Cell, Job, JobObserver, Requester
from .open_jobs import OpenCell, OpenJobs
from .scheduler import Scheduler
from .sleepers import Sleepers
from .waiting_jobs import WaitingJobs

log = logging.getLogger("cm_server")

ROW_BYTES = 256  # of one job in memory until it is committed


class Submission(NamedTuple):
    """A cell that a caller submits.

    Attributes:
        boards: where it runs.
        cell: what runs.
        requester: who submits it.
        audit: for the audit log.
        origin: where it comes from, for the history; None of a job of the server itself.
    """

    boards: Sequence[Board]
    cell: Cell
    requester: Requester
    audit: CellAudit = NO_CELL_AUDIT
    origin: JobOrigin | None = None


class Dispatch:
    """Carries out the requests of callers about jobs.

    Args:
        services: the store, the boards, limits and timers.

    Attributes:
        scheduler: starts jobs.
        job_results: ends jobs.
        board_messages: handles the messages of boards.
        open_jobs: how many jobs of each token have not ended.
        recovery: settles the jobs of boards that connect and of servers that start.
        sleepers: answers boards that want to sleep.
        waiting: jobs that wait in the store for their boards.
        job_texts: writes what jobs run, for the history.
        jobs: all jobs that have not ended, by number.
        recent_jobs: those that ended recently.
        counters: of jobs and links.
    """

    def __init__(self, services: JobServices) -> None:
        self._store_queue = services.store_queue
        self.open_jobs = OpenJobs(services.limits)
        self._committing: Counter[Board] = Counter()  # boards of cells that are not committed yet
        self.job_results = JobResults(self._store_queue, services.call_later, services.limits)
        self.scheduler = Scheduler(services, self.job_results)
        self.board_messages = BoardMessages(
            self.job_results, self.scheduler, services.limits.program_chars
        )
        self.waiting = WaitingJobs(services, self.job_results)
        self.job_texts = JobTexts(self._store_queue, services.call_later, services.limits)
        self.waiting.send = self.scheduler.send_taken
        self.waiting.start_next = self.scheduler.start_next
        self.scheduler.start_waiting = self.waiting.start
        self.job_results.keep_output = self.waiting.keep_output
        self.recovery = JobRecovery(
            self._store_queue, services.registry, self.job_results, self.scheduler, self.waiting
        )
        self.sleepers = Sleepers(
            self._store_queue,
            services.registry,
            self.scheduler,
            self.recovery,
            services.call_later,
        )
        self.sleepers.has_waiting_jobs = self.waiting.has_waiting
        self.sleepers.when_known = self.waiting.when_read
        self.board_messages.on_sleep = self.sleepers.on_sleep
        self.jobs = self.job_results.jobs
        self.recent_jobs = self.job_results.recent_jobs
        self.counters = self.job_results.counters
        self.recovery.restore_jobs()
        for board in services.registry.by_id.values():
            self.scheduler.watch_reservation(board)
            self.sleepers.watch(board)

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
        cell = NewCell(board_ids, submission.requester.caller, submission.audit, epochs)
        size = len(submission.cell.code) + ROW_BYTES * len(board_ids)
        peer = submission.requester.observer
        return self._store_queue.run_shared(
            Store.insert_cells, cell, size=size, refusable=True, peer=peer
        )

    def is_committing(self, board: Board) -> bool:
        """Return whether a cell for a board is being committed."""
        return board in self._committing

    def _on_committed(self, boards: Sequence[Board]) -> None:
        self._committing.subtract(boards)
        for board in boards:
            if not self._committing[board]:
                del self._committing[board]

    def _launch_epochs(self, boards: Sequence[Board]) -> dict[str, int]:
        """Return the epochs of the boards to which the jobs will be sent as soon as they exist."""
        epochs = {}
        for board in boards:
            epoch = self.scheduler.remote.epoch_for(board)
            if epoch is not None and not self._committing[board]:
                epochs[board.id] = epoch
        return epochs

    def create_jobs(self, submission: Submission, numbers: Sequence[int]) -> list[Job]:
        """Return the jobs of a cell that was committed; ``launch`` starts them.

        Args:
            submission: the cell.
            numbers: as ``submit`` returned them.
        """
        cell = submission.cell
        jobs = [
            self.job_results.new_job(number, board, cell, submission.requester)
            for number, board in zip(numbers, submission.boards, strict=True)
        ]
        if jobs:
            size = len(cell.code)
            open_cell = OpenCell(self.open_jobs, submission.requester.token, len(jobs), size)
            for job in jobs:
                job.open_cell = open_cell
                self.jobs[job.id] = job
        origin = submission.origin or JobOrigin(cell.kind, {}, detail=cell.title)
        self.job_texts.add(numbers, submission.requester.token, origin)
        self.counters.on_submitted(jobs, submission.requester.caller, submission.audit.target)
        return jobs

    def run_first(self, board: Board, cell: Cell, requester: Requester, audit: CellAudit) -> None:
        """Run a job of the server itself on a board, before those that wait there.

        Args:
            board: it is connected.
            cell: what runs.
            requester: for whom; nobody follows the job.
            audit: for the audit log.
        """
        submission = Submission([board], cell, requester, audit)
        operation = self.submit(submission)
        operation.when_done(lambda _: self._launch_first(submission, operation))

    def _launch_first(self, submission: Submission, operation: Operation[range]) -> None:
        try:
            numbers = operation.result()
        except ServerError as error:
            log.warning("a job of the server was not stored: %s", error)
            return
        for job in self.create_jobs(submission, numbers):
            self.scheduler.launch_first(job)

    def interrupt(self, job: Job) -> None:
        """End a job that was not sent; interrupt one that was, on its board (sends INTERRUPT)."""
        if job.owner:
            self.scheduler.remote.interrupt_job(job)
        elif job.state == "running":
            job.board.interrupt(job.id)
        elif job.state in ("queued", "resetting"):
            self.scheduler.remove_from_queue(job)
            self.job_results.end_job(job, "interrupted", "it was not sent yet and did not run")

    def withdraw_job(self, job: Job, why: str) -> None:
        """End a job that has not started and that its caller may not run any more.

        A job that another server owns is left to that server.
        """
        if not job.owner:
            self.scheduler.remove_from_queue(job)
            self.job_results.end_job(job, "error", f"{why}; it did not run")

    def stop_following(self, job: Job, why: str) -> None:
        """Report a job as lost to its caller, who may not follow it any more; it runs on."""
        body = {"why": f"{why}; what has started there continues", "output_lost": False}
        flags = wire.STATUSES.index("lost")
        job.deliver(wire.pack_json(wire.ENDED, body, job=job.id, flags=flags))
        self.detach_job(job)

    def detach_observer(self, observer: JobObserver) -> None:
        """Continue the jobs of a caller that disconnected, except for its downloads."""
        for job in [job for job in self.jobs.values() if job.observer is observer]:
            cleanup.run_all("a caller's job", functools.partial(self.detach_job, job))

    def detach_job(self, job: Job) -> None:
        """Continue a job without observer: its ``input()`` gets EOF, a download is interrupted."""
        job.observer = None
        self.board_messages.answer_input(job, b"", nobody=True)
        if job.cell.files is not None and job.cell.files.reads_files:
            self.interrupt(job)

    def on_bytes_forwarded(self, number: int, size: int) -> None:
        """Report to a transfer that bytes of a board's file were written to the caller's socket."""
        job = self.jobs.get(number)
        if job is not None and job.state == "running" and job.transfer is not None:
            job.transfer.on_bytes_forwarded(size)

    def stop_program(self, board: Board) -> bool:
        """Interrupt a board's own program; return whether the board is connected."""
        if board.link is None:
            return False
        board.interrupt()
        return True

    def fail_job(self, job: Job, why: str) -> None:
        """End a hosted job that its caller's server cannot continue; interrupt its board."""
        if job.state == "queued":
            self.scheduler.remove_from_queue(job)
        elif job.state == "running":
            job.board.interrupt(job.id)
        self.job_results.end_job(job, "error", why)

    def stop(self) -> None:
        """End the jobs that were not sent, and write results.

        Running jobs stay open: their boards report the results to the next server.
        """
        for job in list(self.jobs.values()):
            if job.state in ("queued", "resetting") and not (job.owner or job.resends):
                if job in job.board.queue:
                    job.board.queue.remove(job)  # else it could be sent, or end again
                why = "the server stopped before it was sent; it did not run"
                self.job_results.end_job(job, "lost", why)
        self._store_queue.flush()
