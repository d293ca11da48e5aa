"""The scheduler: a board's queue and its limits, which job runs next, when jobs are given up.

No sockets, no SQL. Call from the thread of the event loop only.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from cloudmanager.protocol import frames, proofs, wire
from cloudmanager.protocol.errors import ServerError
from cm_server import cleanup
from cm_server.limits import MIB
from cm_server.store.store_queue import Operation

from .job_results import UNCONFIRMED_STOP, JobResults
from .job_services import JobServices
from .model import Board, BoardChannel, BoardLinkProtocol, Job, Reservation
from .remote import NoRemote, Remote

log = logging.getLogger("cm_server")

#: Seconds after a job's timeout in which its board confirms that it stopped; the caller gets a
#: result within one second.
CONFIRM_SECONDS = 0.9
_CLOCK_PART = "now_ms"  # the part of clients that can start cells at a time
RESET_SECONDS = 20.0  # in which a board reconnects after a soft reset
RESERVATION_SLACK_SECONDS = 0.01  # after a reservation's end, until it is looked at


class Scheduler:
    """Starts jobs, one at a time on each board.

    Args:
        services: the store, where a result is written before the same board's next job starts; the
            boards, the limits of their queues, and timers.
        job_results: ends jobs.

    Attributes:
        permission_check: returns why a job may not start, "" if it may.
        remote: other servers, which run jobs on their boards.
        start_waiting: takes a job out of the store that waited for a board, if the board can run
            it now; returns whether nothing else may be sent meanwhile.
    """

    def __init__(self, services: JobServices, job_results: JobResults) -> None:
        self._store_queue = services.store_queue
        self._registry = services.registry
        self._call_later = services.call_later
        self._limits = services.limits
        self._lost_after = services.lost_after
        self._job_results = job_results
        self._marking: dict[Board, Job] = {}  # jobs that wait for the store to know them as sent
        self.permission_check: Callable[[Job], str] = lambda _job: ""
        self.remote: Remote = NoRemote()
        self.start_waiting: Callable[[Board], bool] = lambda _board: False

    # The queues of boards

    def launch(self, jobs: Sequence[Job]) -> None:
        """Start or queue submitted jobs; those of offline boards end, unless their caller waits.

        The jobs of other servers' boards come first: these servers have to claim theirs in the
        store, while the boards of this one run.
        """
        are_elsewhere = False
        if len(jobs) > 1:
            jobs = sorted(jobs, key=lambda job: job.board.link is not None)
        for job in jobs:
            board = job.board
            if are_elsewhere and board.link is not None:
                self.remote.send_launches(now=True)
            are_elsewhere = board.link is None
            try:
                if self._registry.by_id.get(board.id) is not board:
                    self._job_results.end_job(job, "offline", "it was removed from the fleet")
                elif board.queue and (why := self._queue_full_reason(board.queue, job)):
                    self._job_results.end_job(job, "error", why)
                elif board.link is None and not board.is_restarting:
                    self._launch_not_connected(job)
                else:
                    board.queue.append(job)
                    self.start_queued_jobs(board, submitted=job)
                    self._watch_start(job)
                board.notify_changed()
            except Exception as error:  # the other jobs of the cell are not affected
                cleanup.log_failure("starting a job", error)
                if job.state != "ended":
                    self._job_results.end_job(job, "error", cleanup.FAILED)
        if are_elsewhere:
            self.remote.send_launches()

    def launch_first(self, job: Job) -> None:
        """Start a job of the server itself before those that wait for the same board."""
        board = job.board
        if board.link is None:
            self._job_results.end_job(job, "offline", board.last_seen_text)
            return
        board.queue.insert(0, job)
        self.start_queued_jobs(board)
        board.notify_changed()

    def _watch_start(self, job: Job) -> None:
        """End a queued job that starts at a time when that is over, unless it may run late."""
        options = job.cell.options
        if job.state == "queued" and options.start and options.late != "run" and not job.timer:
            job.timer = self._call_later(job.start_delay, lambda: self._on_start_missed(job))

    def _on_start_missed(self, job: Job) -> None:
        job.timer = None
        if job.state == "queued" and job in job.board.queue:
            job.board.queue.remove(job)
            self._job_results.end_job(job, "error", "it was busy at that time; it did not run")

    def _queue_full_reason(self, queue: Sequence[Job], job: Job) -> str:
        """Return why a job may not be added to a queue; "" if it may."""
        own = _jobs_of_token(queue, job.token_hash)
        if len(own) >= self._limits.queued_jobs or len(queue) >= self._limits.all_queued_jobs:
            return f"{len(queue)} jobs wait for this board already; it did not run"
        size = len(job.cell.code) + sum(len(other.cell.code) for other in own)
        if size > self._limits.queued_bytes:
            mib = self._limits.queued_bytes // MIB
            return f"cells of {mib} MiB wait for this board already; it did not run"
        return ""

    def _launch_not_connected(self, job: Job) -> None:
        """Launch a job whose board is connected to another server, or offline."""
        if job.board.online and not job.board.expected_seconds:
            if why := self.permission_check(job):
                self._job_results.end_job(job, "error", f"{why}; it did not run")
            else:
                self.remote.launch(job)
        else:
            self._await_board(job)

    def _await_board(self, job: Job) -> None:
        """Queue the job of an offline board for the time that its caller allows (``wait``).

        If a server has asked the board to connect again, it waits until the board is back.
        """
        wait = max(job.cell.options.wait, job.board.expected_seconds)
        if wait <= 0:
            if self.remote.find_board(job):
                return
            self._job_results.end_job(job, "offline", job.board.last_seen_text)
            return
        job.board.queue.append(job)
        job.timer = self._call_later(wait, lambda: self._on_wait_expired(job, wait))

    def _on_wait_expired(self, job: Job, wait: float) -> None:
        job.timer = None
        if job.state == "queued" and job.board.link is None:
            job.board.queue.remove(job)
            why = f"it did not connect within {wait:.3g} s; {job.board.last_seen_text}"
            self._job_results.end_job(job, "offline", why)

    def remove_from_queue(self, job: Job) -> None:
        """Remove a waiting job from its board's queue; interrupt it if it was sent before."""
        if job.state == "queued":
            job.board.queue.remove(job)
        if job.resends:
            job.board.interrupt(job.id)

    # The next job of a board

    def start_next(self, board: Board) -> None:
        """Continue with a board that may be free: first a pending key rotation, then its queue."""
        self.send_rekey(board)
        self.start_queued_jobs(board)

    def start_queued_jobs(self, board: Board, *, submitted: Job | None = None) -> None:
        """Start the next job of a board's queue if the board is free.

        Jobs that cannot start end, and the next one is tried. A job waits in the queue until the
        store has the results of earlier ones, and knows that this one is sent. Those that wait in
        the store for their board were submitted before, and start first.

        Args:
            board: free or busy, connected or not.
            submitted: a job that its caller has just submitted. It needs no STARTED, because
                ACCEPTED reports that it starts.
        """
        if board not in self._marking and self.start_waiting(board):
            return
        while board not in self._marking and (job := _startable(board)) is not None:
            if why := self._refusal_reason(job):
                board.queue.remove(job)
                self._job_results.end_job(job, "error", why)
            elif self._is_marked_sent(job):
                self._dequeue(job, submitted)
                self._send(job)
            else:
                operation = self._mark_sent(job)
                if not operation.done:
                    self._marking[board] = job
                    operation.when_done(functools.partial(self._on_marked, job, submitted))
                    return
                self._send_marked(job, operation, submitted)

    def has_startable_job(self, board: Board) -> bool:
        """Return whether a job is, or could be, sent to a board that its program does not block."""
        return board in self._marking or next(_permitted_jobs(board), None) is not None

    def _is_marked_sent(self, job: Job) -> bool:
        """Return whether a job can be sent without another commit."""
        store = self._store_queue.store
        is_written = store.written_results >= job.board.last_result
        return is_written and store.is_marked_sent(job.id)

    def _mark_sent(self, job: Job) -> Operation[bool]:
        """Commit that a job is being sent, so that it is never sent again by another server."""
        number = job.id
        return self._store_queue.run(lambda store: store.mark_sent(number))

    def _on_marked(self, job: Job, submitted: Job | None, operation: Operation[bool]) -> None:
        """Continue after a commit that took a while: everything may have changed meanwhile."""
        del self._marking[job.board]
        self._send_marked(job, operation, submitted)
        self.start_queued_jobs(job.board, submitted=submitted)

    def _send_marked(self, job: Job, operation: Operation[bool], submitted: Job | None) -> None:
        """Send a job that is in the store as sent; end it if that is not possible."""
        board = job.board
        try:
            is_marked = operation.result()
        except ServerError as error:
            if job in board.queue:
                board.queue.remove(job)
                self._job_results.end_job(job, "lost", f"{error.reason}; it did not run")
            return
        if not is_marked:  # another server owns it
            if job in board.queue:
                board.queue.remove(job)
                self.remote.follow_in_store(job)
        elif _startable(board) is job and not self._refusal_reason(job):
            self._dequeue(job, submitted)
            self._send(job)

    def send_taken(self, job: Job) -> None:
        """Send a job that has waited in the store, which counts it as sent already."""
        if why := _unsupported_reason(job):
            self._job_results.end_job(job, "error", why)
            self._call_later(0, lambda: self.start_next(job.board))
        else:
            self._send(job)

    def start_after_reset(self, job: Job) -> None:
        """Send a job whose board has restarted for it; it is in the store as sent."""
        board = job.board
        if why := self._refusal_reason(job):
            self._job_results.end_job(job, "error", why)
            self.start_next(board)
        else:
            job.deliver(wire.pack(wire.STARTED, job=job.id))
            self._send(job)

    def queue_after_reset(self, job: Job) -> None:
        """Put a job whose board has restarted for it first in the queue: another one precedes it.

        It is in the store as sent, and its board does not restart once more.
        """
        job.state = "queued"
        job.resends += 1
        job.board.queue.insert(0, job)

    def _dequeue(self, job: Job, submitted: Job | None) -> None:
        """Take a job that starts out of its board's queue; see ``start_queued_jobs``."""
        job.board.queue.remove(job)
        job.stop_timer()
        if job is not submitted:
            job.deliver(wire.pack(wire.STARTED, job=job.id))

    def _send(self, job: Job) -> None:
        """Send a job to its board, which restarts first for a fresh job; start its timeout.

        If the server itself fails, the job ends, and the link is closed: the board may have
        received a part of the job. It connects again, and runs the next one.
        """
        board, cell, link = job.board, job.cell, job.board.link
        assert link is not None
        try:
            board.current_job = job
            if cell.restarts:
                board.note_restart()
            if _resets(job):
                self._reset_board(job)
                return
            job.state, job.started = "running", time.time()
            if cell.files is not None:
                refuse = functools.partial(self.refuse_transfer, job)
                job.transfer = cell.files.start(job, BoardChannel(link.send, refuse))
            for message in job.exec_messages():
                link.send(message)
            self._job_results.counters.on_started(job)
            if cell.options.timeout is not None:
                seconds = job.start_delay + cell.options.timeout + CONFIRM_SECONDS
                job.timer = self._call_later(seconds, lambda: self._on_deadline(job))
        except Exception as error:
            self._on_send_failed(job, link, error)

    def _on_send_failed(self, job: Job, link: BoardLinkProtocol, error: Exception) -> None:
        """End a job that the server itself failed to send, and close the board's link."""
        cleanup.log_failure("sending a job", error)
        if job.state != "ended":
            self._job_results.end_job(job, "error", cleanup.FAILED)
        link.close(frames.CLOSE_INTERNAL_ERROR, cleanup.FAILED)

    def refuse_transfer(self, job: Job, error: str) -> None:
        """End a job whose transfer cannot be continued, at the server that owns it."""
        if job.owner:
            self.remote.fail_job(job, error)
        else:
            self._job_results.end_job(job, "error", error)

    def _refusal_reason(self, job: Job) -> str:
        """Return why a job may not start; "" if it may."""
        return self._not_permitted_reason(job) or _unsupported_reason(job) or _late_reason(job)

    def _not_permitted_reason(self, job: Job) -> str:
        """Return why the caller's token does not permit the job any more; "" if it does."""
        refusal = self.permission_check(job)
        return f"{refusal}; it did not run" if refusal else ""

    def requeue(self, job: Job) -> None:
        """Put a job that was sent back into the queue: the board's own program started first.

        A board reads its messages in order, and reports a result before it does anything else. So
        a board that reports that its own program blocks it has not read this job, and will skip it
        while it is blocked. The job is sent again when the board is free, with a flag that it was
        sent before: if the board has read it after all, behind a program that ended immediately,
        it runs it only once.

        A program that started after the reset for a fresh job, because nothing prevented it, is
        interrupted.
        """
        board = job.board
        job.stop_timer()
        job.state = "queued"
        job.started = None
        job.transfer = None
        job.awaiting_input = False
        job.resends += 1
        board.current_job = None
        board.queue.insert(0, job)
        if job.cell.options.fresh and board.link is not None:
            board.interrupt()
            job.timer = self._call_later(RESET_SECONDS, lambda: self._on_not_free(job))

    def _on_not_free(self, job: Job) -> None:
        """End a fresh job whose board's own program ignored the interrupt."""
        job.timer = None
        if job.state == "queued" and job in job.board.queue:
            job.board.queue.remove(job)
            why = (
                "its own program started after the reset and did not end "
                f"within {RESET_SECONDS:g} s"
            )
            self._job_results.end_job(job, "lost", why)

    def _reset_board(self, job: Job) -> None:
        """Ask the board to restart, whatever its own program does; its next link starts the job."""
        assert job.board.link is not None
        job.state = "resetting"
        job.board.link.send(wire.pack(wire.RESET, job=job.id))
        self._call_later(RESET_SECONDS, lambda: self._on_reset_timeout(job))

    def _on_reset_timeout(self, job: Job) -> None:
        board = job.board
        if board.current_job is not job or job.started is not None:
            return
        if job.state == "resetting":  # else it was interrupted meanwhile
            why = f"it did not come back from its reset within {RESET_SECONDS:g} s"
            self._job_results.end_job(job, "lost", why + "; the cell did not run")
        link = board.link
        self.on_job_finished(board)
        if link is None:
            self._on_grace_expired(board, board.link_count)
        else:  # the board reads nothing: what was sent to it meanwhile must not wait for ever
            log.warning("%s did not restart when requested: closing its link", board.name)
            link.close(frames.CLOSE_GOING_AWAY, "it did not restart")

    def _on_deadline(self, job: Job) -> None:
        """End a job whose board did not confirm in time that it stopped at the timeout."""
        if job.state == "running":
            self._job_results.end_job(job, "timeout", UNCONFIRMED_STOP)
            self._call_later(self._lost_after(), lambda: self._close_unresponsive_link(job))
        elif job.state == "adrift":
            why = "its link broke and it did not come back in time"
            self._job_results.end_job(job, "lost", why)

    def _close_unresponsive_link(self, job: Job) -> None:
        """Close the link of a board that still has not reported how its job ended.

        The board reports it when it reconnects.
        """
        board = job.board
        if board.current_job is job and board.link is not None:
            log.warning("%s does not report how its job ended: closing its link", board.name)
            board.link.close(frames.CLOSE_GOING_AWAY, "it does not report how its job ended")

    def on_job_finished(self, board: Board) -> None:
        """Mark a board as free, and start its next job."""
        board.current_job = None
        self.start_next(board)

    def send_rekey(self, board: Board) -> None:
        """Send REKEY to a board with a pending key rotation, if it is connected and idle.

        A busy board gets it when it is idle.
        """
        free = board.current_job is None and not board.blocked
        if board.nonce is not None and board.link is not None and free:
            board.link.send(proofs.pack_rekey(board.gen + 1, board.nonce))

    # Reserved boards

    def set_reservation(self, board: Board, reservation: Reservation | None) -> None:
        """Reserve a board for a caller, or end that; then its next job may start."""
        board.reservation = reservation
        self.watch_reservation(board)
        self.start_next(board)

    def watch_reservation(self, board: Board) -> None:
        """Start the jobs that wait for the end of a board's reservation, when it ends by itself."""
        reservation = board.reservation
        if reservation is not None:
            # Wall clock and timer may differ: then it is looked at once more.
            seconds = max(reservation.until - time.time(), 0.0) + RESERVATION_SLACK_SECONDS
            self._call_later(seconds, lambda: self._on_reservation_due(board, reservation))

    def _on_reservation_due(self, board: Board, reservation: Reservation) -> None:
        if self._registry.by_id.get(board.id) is not board:
            return
        if board.reservation == reservation:
            self.watch_reservation(board)
        else:
            board.notify_changed()
            self.start_next(board)

    # Boards whose link broke

    def start_grace_period(self, board: Board) -> None:
        """Give up the board's jobs, if any, after ``lost_after``, unless it reconnects by then.

        If it reconnects and its link breaks again, the period starts again.
        """
        if board.current_job is not None or board.queue:
            links = board.link_count
            self._call_later(self._lost_after(), lambda: self._on_grace_expired(board, links))

    def _on_grace_expired(self, board: Board, links: int) -> None:
        """End the jobs of a board that has not reconnected."""
        current = board.current_job
        is_resetting = current is not None and current.state == "resetting"  # it has its own time
        if board.link_count != links or is_resetting:
            return
        why = f"its link broke and it did not come back within {self._lost_after():g} s"
        self._end_current(board, why)
        for job in list(board.queue):
            if job.resends:
                board.queue.remove(job)
                self._job_results.end_job(job, "lost", why)
            elif job.timer is None:  # else its caller asked to wait longer (--wait)
                board.queue.remove(job)
                self._job_results.end_job(job, "offline", board.last_seen_text)

    def end_board_jobs(self, board: Board) -> None:
        """End all jobs of a board that is about to be removed from the fleet."""
        self._end_current(board, "the board was removed from the fleet")
        while board.queue:
            job = board.queue.pop(0)
            self._job_results.end_job(job, "offline", "it was removed from the fleet")

    def _end_current(self, board: Board, why: str) -> None:
        job, board.current_job = board.current_job, None
        if job is not None and job.state != "ended":
            self._job_results.end_job(job, "lost", why)


def _jobs_of_token(queue: Sequence[Job], token_hash: str) -> list[Job]:
    """Return the jobs of one token: others must not keep it from using the board."""
    return [job for job in queue if job.token_hash == token_hash]


def _startable(board: Board) -> Job | None:
    """Return the queued job that a board can start now, None if there is none.

    While the board's own program blocks it, that is the first job that resets the board: it ends
    the program, and does not wait behind the jobs that wait for the program's end. While a caller
    has reserved the board, the jobs of others wait.
    """
    if not board.queue or board.link is None or board.current_job is not None:
        return None
    if board.blocked:
        return _first_resetting_job(board)
    for job in board.queue:  # not _permitted_jobs(), which takes 0.5 us longer
        if board.reservation_against(job) is None:
            return job
    return None


def _first_resetting_job(board: Board) -> Job | None:
    """Return the first queued job that restarts the board, None if there is none."""
    return next((job for job in _permitted_jobs(board) if _resets(job)), None)


def _permitted_jobs(board: Board) -> Iterator[Job]:
    """Yield the queued jobs that do not wait for the end of a reservation, in their order."""
    return (job for job in board.queue if board.reservation_against(job) is None)


def _resets(job: Job) -> bool:
    """Return whether a job's board has yet to restart before the job is sent."""
    return job.cell.options.fresh and job.state == "queued" and not job.resends


def _late_reason(job: Job) -> str:
    """Return why a job cannot start at its time any more; "" if it can, or may run late."""
    options = job.cell.options
    if options.at is None or options.late == "run" or job.start_delay:
        return ""
    return "its board was not ready at that time; it did not run"


def _unsupported_reason(job: Job) -> str:
    """Return why a board cannot carry out a job; "" if it can."""
    files, parts = job.cell.files, job.board.client_parts
    if job.cell.options.at is not None and _CLOCK_PART not in parts:
        return (
            "its client cannot start a cell at a time; mbm board-upgrade-client installs one that "
            "can, except on a bridge"
        )
    if files is None:
        return ""
    if "files" not in parts:
        return "its client lacks the part for files (files.mpy)"
    if files.part not in parts:
        return (
            f"its client lacks the part {files.part}.mpy; mbm board-upgrade-client installs it, "
            "except on a bridge"
        )
    # A board on a bridge has no client, and its /main.py is the user's.
    if "boot" in parts and files.replaces_starter:
        return "the path belongs to its client; put your own program at /app.py instead"
    return ""
