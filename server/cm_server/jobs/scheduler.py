"""The queues of all boards: who runs what next, and when a board is given up. No sockets, no SQL.

Call from the server's one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cloudmanager.protocol import frames, proofs, wire
from cloudmanager.protocol.errors import ServerError
from cm_server.store.store import Store

from .job_results import UNCONFIRMED_STOP, JobResults
from .jobs import Job, TimerHandle
from .registry import Board

log = logging.getLogger("cm_server")

LOST_AFTER = 10.0  # seconds that a board has to come back and tell how its job ended
CONFIRM_SECONDS = (
    0.9  # seconds past its timeout in which a board confirms; the caller is told by 1 s
)
RESET_SECONDS = 20.0  # in which a board is back from a soft reset


class Scheduler:
    """Starts jobs, one at a time on each board.

    Args:
        store: where an ending is written before the same board's next job starts.
        job_results: ends jobs.
        call_later: calls a function after so many seconds and returns what calls it off.
        lost_after: seconds of grace for a board whose link broke.
    """

    def __init__(
        self,
        store: Store,
        job_results: JobResults,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        *,
        lost_after: float,
    ) -> None:
        self._store = store
        self._job_results = job_results
        self._call_later = call_later
        self.lost_after = lost_after
        self.on_refused: Callable[[Job], None] = lambda _job: None  # it is another server's
        self.refusal: Callable[[Job], str] = lambda _job: ""  # why its caller may not run it now

    def start_job(self, job: Job, *, quiet: bool = True) -> bool:
        """Send a job to its board; one for a fresh board lets it restart first.

        Args:
            job: for a board that runs no other, and is linked to this server.
            quiet: whether the caller knows that it starts; else it is told first.

        Returns:
            False where the job has ended instead, or is another server's: the next may start.
        """
        board, cell = job.board, job.cell
        assert board.link is not None
        if why := self._not_permitted_reason(job) or _unsupported_reason(job):
            self._job_results.end_job(job, "error", why)
            return False
        if not self._mark_sent(job):
            return False
        if not quiet:
            job.deliver(wire.pack(wire.STARTED, job=job.id))
        board.current_job = job
        job.stop_timer()
        if _resets(job):
            self._reset_board(job)
            return True
        job.state, job.started = "running", time.time()
        if cell.files is not None:
            job.transfer = cell.files.start(job, board.link.send)
        for message in job.exec_messages():
            board.link.send(message)
        self._job_results.counters.on_started(job)
        if cell.timeout is not None:
            job.timer = self._call_later(
                cell.timeout + CONFIRM_SECONDS, lambda: self._on_deadline(job)
            )
        return True

    def _not_permitted_reason(self, job: Job) -> str:
        """Return why the caller's token does not permit the job any more; "" if it does."""
        refusal = self.refusal(job)
        return f"{refusal}; it did not run" if refusal else ""

    def put_back(self, job: Job) -> None:
        """Queue a job anew that its board has not begun: its own program began first.

        A board reads what it is sent in order, and says how a job ended before it does anything
        else. So one that says that its program keeps it busy has not read this job, and passes
        over it meanwhile. It is sent once more when the board is free, marked as sent before:
        a board that has read it after all, behind a program that ended at once, runs it once.

        A program that began after the reset for a fresh job (it could not be kept out) is ended.
        """
        board = job.board
        job.stop_timer()
        job.state, job.started, job.transfer, job.awaiting_input = "queued", None, None, False
        job.resends += 1
        board.current_job = None
        board.queue.appendleft(job)
        if job.cell.fresh and board.link is not None:
            board.link.send(wire.pack(wire.INTERRUPT))
            job.timer = self._call_later(RESET_SECONDS, lambda: self._on_not_free(job))

    def _on_not_free(self, job: Job) -> None:
        """End a fresh job whose board runs its own program, which ignores that it was ended."""
        job.timer = None
        if job.state == "queued" and job in job.board.queue:
            job.board.queue.remove(job)
            why = (
                f"its own program began after the reset and did not end within {RESET_SECONDS:g} s"
            )
            self._job_results.end_job(job, "lost", why)

    def _mark_sent(self, job: Job) -> bool:
        """See that the store knows that a job is sent now, and nobody else sends it."""
        try:
            if self._store.mark_sent(job.id):
                return True
        except ServerError as error:
            self._job_results.end_job(job, "lost", f"{error.reason}; it did not run")
            return False
        self.on_refused(job)
        return False

    def _reset_board(self, job: Job) -> None:
        """Have the board restart, whatever its own program does; its next link starts the job."""
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
        else:  # it read nothing for so long: what was sent to it meanwhile must not wait for ever
            log.warning("%s did not restart when it was asked to: its link is closed", board.name)
            link.close(frames.CLOSE_GOING_AWAY, "it did not restart")

    def _on_deadline(self, job: Job) -> None:
        """The board should have said by now that it stopped its job."""
        if job.state == "running":
            self._job_results.end_job(job, "timeout", UNCONFIRMED_STOP)
            self._call_later(self.lost_after, lambda: self._close_unresponsive_link(job))
        elif job.state == "adrift":
            self._job_results.end_job(
                job, "lost", "its link broke and it did not come back in time"
            )

    def _close_unresponsive_link(self, job: Job) -> None:
        """Hang up on a board that still owes its word: it tells when it dials in again."""
        board = job.board
        if board.current_job is job and board.link is not None:
            log.warning("%s does not say how its job ended: its link is closed", board.name)
            board.link.close(frames.CLOSE_GOING_AWAY, "it does not say how its job ended")

    def on_job_finished(self, board: Board) -> None:
        """Note that a board is through with its job."""
        board.current_job = None
        self.start_next(board)

    def start_next(self, board: Board) -> None:
        """Go on with a board that runs no job: its next key, then what waits for it."""
        self.send_rekey(board)
        self.advance(board)

    def advance(self, board: Board, *, quiet: Job | None = None) -> None:
        """Start what waits for a board, if it can begin now.

        Args:
            board: of which nobody need be sure that it is free.
            quiet: the job of which its caller need not be told that it starts.
        """
        while (job := _startable(board)) is not None:
            board.queue.remove(job)
            if self.start_job(job, quiet=job is quiet):
                return

    def send_rekey(self, board: Board) -> None:
        """Ask an idle board to take its next key; a busy one is asked when it is idle."""
        free = board.current_job is None and not board.blocked
        if board.nonce is not None and board.link is not None and free:
            board.link.send(proofs.pack_rekey(board.gen + 1, board.nonce))

    # Boards that went away

    def start_grace_period(self, board: Board) -> None:
        """Give a board its grace; a link that came and went meanwhile starts it anew."""
        links = board.link_count
        self._call_later(self.lost_after, lambda: self._on_grace_expired(board, links))

    def _on_grace_expired(self, board: Board, links: int) -> None:
        """End what a board that has not come back still owes."""
        if board.link_count != links or board.restarts:
            return
        why = f"its link broke and it did not come back within {self.lost_after:g} s"
        self._end_current(board, why)
        for job in list(board.queue):
            if job.resends:
                board.queue.remove(job)
                self._job_results.end_job(job, "lost", why)
            elif job.timer is None:  # else its caller's own patience counts
                board.queue.remove(job)
                self._job_results.end_job(job, "offline", board.last_seen_text)

    def end_board_jobs(self, board: Board) -> None:
        """End all that a board still owes: it is about to be taken out."""
        self._end_current(board, "the board was taken out of the fleet")
        while board.queue:
            self._job_results.end_job(
                board.queue.popleft(), "offline", "it was taken out of the fleet"
            )

    def _end_current(self, board: Board, why: str) -> None:
        job, board.current_job = board.current_job, None
        if job is not None and job.state != "settled":
            self._job_results.end_job(job, "lost", why)


def _startable(board: Board) -> Job | None:
    """Return the job that a board can begin now, None where there is none.

    While the board's own program keeps it busy, that is the first that resets the board: such a
    job ends the program, and does not wait behind those that wait for the program's end.
    """
    if board.link is None or board.current_job is not None:
        return None
    if board.blocked:
        return _first_resetting_job(board)
    return board.queue[0] if board.queue else None


def _first_resetting_job(board: Board) -> Job | None:
    """Return the first queued job that restarts the board, None if there is none."""
    return next((job for job in board.queue if _resets(job)), None)


def _resets(job: Job) -> bool:
    """Return whether a job's board has yet to restart before it is sent."""
    return job.cell.fresh and job.state == "queued" and not job.resends


def _unsupported_reason(job: Job) -> str:
    """Return why a board cannot do what a job does with files; empty: it can."""
    files, parts = job.cell.files, job.board.client_parts
    if files is None:
        return ""
    if "files" not in parts:
        return "its client lacks the part for files (files.mpy)"
    starts = "boot" in parts and "unix" not in parts  # virtual boards boot by themselves
    if starts and files.replaces_starter:
        return "its /main.py starts its client; a program of yours is started as /app.py"
    return ""
