"""Jobs whose board lost its link, whose server restarted, or that come from another server.

No sockets, no SQL. A job is never started twice: what was sent and not confirmed ends as the board
reports it, or lost. Call from the thread of the event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cloudmanager.protocol.facts import WAKE_CAUSE
from cm_server.store.rows import JobRow
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue

from .job_history import ReportedResult
from .job_results import JobResults
from .model import Board, BoardLinkProtocol, Cell, Job, Requester
from .registry import Registry
from .scheduler import Scheduler
from .waiting_jobs import WaitingJobs

#: The cell of a job that another server, or an earlier run of this one, has sent: it is not stored.
EMPTY_CELL = Cell(b"", kind="")


class JobRecovery:
    """Settles the jobs of boards that connect and disconnect, and of servers that come and go.

    Args:
        store_queue: has the jobs of an earlier run of the server.
        registry: the boards.
        job_results: ends jobs.
        scheduler: starts jobs, and gives them up after the grace period of their board.
        waiting: jobs that wait for boards in the store.

    Attributes:
        has_mount: returns whether a folder is mounted on a board, as far as the server knows.
        mount_again: mounts it again on a board that has connected.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        registry: Registry,
        job_results: JobResults,
        scheduler: Scheduler,
        waiting: WaitingJobs,
    ) -> None:
        self._store_queue = store_queue
        self._registry = registry
        self._job_results = job_results
        self._scheduler = scheduler
        self._waiting = waiting
        self.has_mount: Callable[[Board], bool] = lambda _board: False
        self.mount_again: Callable[[Board], None] = lambda _board: None

    # Links that open and close

    def on_link_opened(
        self, board: Board, *, same_boot: bool, reported: ReportedResult | None
    ) -> None:
        """Settle the jobs of a board that has just authenticated, and start its next one.

        Args:
            board: it has a new link.
            same_boot: whether it has not restarted since its last link.
            reported: its report of its last job, from PROOF.
        """
        job, board.current_job = board.current_job, None
        if job is not None and job.state == "resetting" and not same_boot:
            if self.has_mount(board):
                self._scheduler.queue_after_reset(job)
                self.mount_again(board)
                self._scheduler.start_next(board)
            else:
                self._scheduler.start_after_reset(job)
            self._waiting.on_connected(board)
            return
        is_settled = self._end_resent_job(board, reported, same_boot=same_boot)
        if job is not None and job.state != "ended":
            is_settled = is_settled or (reported is not None and reported.job == job.id)
            self._end_returned_job(job, reported, same_boot=same_boot)
        if reported is not None and not is_settled:
            self._job_results.amend_result(board, reported)
        self.mount_again(board)
        self._waiting.on_connected(board)
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
            self._job_results.end_job(job, "error", why)
        elif reported is not None and reported.job == job.id:
            self._job_results.end_job(job, reported.status, reported.error, output_lost=True)
        elif same_boot:
            self._job_results.end_job(job, "lost", "it never reached the board")
        elif job.cell.restarts:
            self._job_results.end_job(job, "ok", "")
        else:
            slept = job.board.reported_facts.get("reset") == WAKE_CAUSE
            why = (
                "the board fell asleep while it ran"
                if slept
                else "the board restarted while it ran"
            )
            self._job_results.end_job(job, "lost", why)

    def on_link_closed(self, board: Board, link: BoardLinkProtocol) -> None:
        """Start the grace period of a board whose link broke; ignore links that were replaced."""
        if board.link is not link:
            return
        board.disconnect()
        self._waiting.on_disconnected(board)
        if board.current_job is not None and board.current_job.state == "running":
            board.current_job.state = "adrift"
        self._scheduler.start_grace_period(board)

    # Servers that start and stop

    def restore_jobs(self) -> None:
        """Take over the open jobs of an earlier run of the server: each board's oldest may run."""
        store = self._store_queue.store  # the server does not serve yet
        for row in store.open_jobs():
            board = self._registry.by_id.get(row.board)
            if board is None or board.current_job is not None:
                self._store_queue.store.end_job(
                    row.id, "lost", "the server restarted before it was sent"
                )
                continue
            job = self._job_results.new_job(row.id, board, EMPTY_CELL, Requester(row.caller))
            job.state = "adrift"
            job.started = job.created = row.created
            board.current_job = self._job_results.jobs[job.id] = job
            self._scheduler.start_grace_period(board)
        store.flush()

    def adopt_jobs(
        self,
        board: Board,
        rows: Sequence[JobRow],
        reported: ReportedResult | None = None,
    ) -> None:
        """Take over the jobs that were sent to a board and have not ended in the store.

        Args:
            board: this server has acquired its lease, or its former server is dead.
            rows: the jobs, in the store.
            reported: the board's report of its last job, if it has just connected.
        """
        for row in rows:
            ended = self._job_results.recent_jobs.get(row.id)
            if ended is not None:  # its caller knows the outcome; its owner did not store it
                self._job_results.store_end(ended)
                continue
            job = self._job_results.jobs.get(row.id)
            job = job or self._job_results.new_job(row.id, board, EMPTY_CELL, Requester(row.caller))
            if board.current_job is job or job in board.queue:  # it waits there to be sent again
                continue
            job.owner = ""
            job.state = "adrift"
            job.started = job.started or row.created
            job.created = row.created
            self._job_results.jobs[job.id] = job
            if board.current_job is None and board.link is None:
                board.current_job = job
            else:
                self._end_returned_job(job, reported, same_boot=True)

    def hand_over_current(self, board: Board) -> None:
        """Leave a board's current job to the server that has had the board meanwhile.

        That server ends it; its result is read from the store.
        """
        job, board.current_job = board.current_job, None
        if job is not None and job.state != "ended":
            self._scheduler.remote.follow_in_store(job)

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

    def drop_all_jobs(self) -> None:
        """Remove all jobs from memory: other servers have taken them over."""
        for job in self._job_results.jobs.values():
            job.stop_timer()
            job.state = "ended"
            job.observer = None
            job.transfer = None
            if job.open_cell is not None:
                job.open_cell.end_job()
        self._job_results.jobs.clear()
        for board in self._registry.by_id.values():
            board.queue.clear()
            board.current_job = None


def _may_have_run(*, reported: bool, same_boot: bool) -> bool:
    """Return whether a job that was put back into the queue may have run after all.

    Args:
        reported: whether its board reported a result of it.
        same_boot: whether its board has not restarted since.
    """
    return reported or not same_boot
