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

from .job_results import UNCONFIRMED, Endings
from .jobs import Job, Timer
from .registry import Board

log = logging.getLogger("cm_server")

LOST_AFTER = 10.0  # seconds that a board has to come back and tell how its job ended
CONFIRM = 0.9  # seconds past its timeout in which a board confirms; the caller is told by 1 s
RESET_SECONDS = 20.0  # in which a board is back from a soft reset


class Queues:
    """Starts jobs, one at a time on each board.

    Args:
        store: where an ending is written before the same board's next job starts.
        endings: ends jobs.
        later: calls a function after so many seconds and returns what calls it off.
        lost_after: seconds of grace for a board whose link broke.
    """

    def __init__(
        self,
        store: Store,
        endings: Endings,
        later: Callable[[float, Callable[[], None]], Timer],
        *,
        lost_after: float,
    ) -> None:
        self._store = store
        self._endings = endings
        self._later = later
        self.lost_after = lost_after
        self.on_refused: Callable[[Job], None] = lambda _job: None  # it is another server's
        self.refusal: Callable[[Job], str] = lambda _job: ""  # why its caller may not run it now

    def start(self, job: Job, *, quiet: bool = True) -> bool:
        """Send a job to its board; one for a fresh board lets it restart first.

        Args:
            job: for a board that runs no other, and is linked to this server.
            quiet: whether the caller knows that it starts; else it is told first.

        Returns:
            False where the job has ended instead, or is another server's: the next may start.
        """
        board, cell = job.board, job.cell
        assert board.link is not None
        why = f"{refused}; it did not run" if (refused := self.refusal(job)) else _unfit(job)
        if why:
            self._endings.settle(job, "error", why)
            return False
        if not self._may_send(job):
            return False
        if not quiet:
            job.deliver(wire.pack(wire.STARTED, job=job.id))
        board.current = job
        job.stop_timer()
        if _resets(job):
            self._reset(job)
            return True
        job.state, job.started = "running", time.time()
        if cell.files is not None:
            job.transfer = cell.files.begin(job, board.link.send)
        for message in job.messages():
            board.link.send(message)
        self._endings.tally.started(job)
        if cell.timeout is not None:
            job.timer = self._later(cell.timeout + CONFIRM, lambda: self._on_deadline(job))
        return True

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
        job.state, job.started, job.transfer, job.asking = "queued", None, None, False
        job.resends += 1
        board.current = None
        board.queue.appendleft(job)
        if job.cell.fresh and board.link is not None:
            board.link.send(wire.pack(wire.INTERRUPT))
            job.timer = self._later(RESET_SECONDS, lambda: self._on_not_free(job))

    def _on_not_free(self, job: Job) -> None:
        """End a fresh job whose board runs its own program, which ignores that it was ended."""
        job.timer = None
        if job.state == "queued" and job in job.board.queue:
            job.board.queue.remove(job)
            why = (
                f"its own program began after the reset and did not end within {RESET_SECONDS:g} s"
            )
            self._endings.settle(job, "lost", why)

    def _may_send(self, job: Job) -> bool:
        """See that the store knows that a job is sent now, and nobody else sends it."""
        try:
            if self._store.send(job.id):
                return True
        except ServerError as error:
            self._endings.settle(job, "lost", f"{error.reason}; it did not run")
            return False
        self.on_refused(job)
        return False

    def _reset(self, job: Job) -> None:
        """Have the board restart, whatever its own program does; its next link starts the job."""
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
            self._endings.settle(job, "lost", why + "; the cell did not run")
        link = board.link
        self.release(board)
        if link is None:
            self._give_up(board, board.links)
        else:  # it read nothing for so long: what was sent to it meanwhile must not wait for ever
            log.warning("%s did not restart when it was asked to: its link is closed", board.name)
            link.close(frames.GOING_AWAY, "it did not restart")

    def _on_deadline(self, job: Job) -> None:
        """The board should have said by now that it stopped its job."""
        if job.state == "running":
            self._endings.settle(job, "timeout", UNCONFIRMED)
            self._later(self.lost_after, lambda: self._ask_anew(job))
        elif job.state == "adrift":
            self._endings.settle(job, "lost", "its link broke and it did not come back in time")

    def _ask_anew(self, job: Job) -> None:
        """Hang up on a board that still owes its word: it tells when it dials in again."""
        board = job.board
        if board.current is job and board.link is not None:
            log.warning("%s does not say how its job ended: its link is closed", board.name)
            board.link.close(frames.GOING_AWAY, "it does not say how its job ended")

    def release(self, board: Board) -> None:
        """Note that a board is through with its job."""
        board.current = None
        self.next(board)

    def next(self, board: Board) -> None:
        """Go on with a board that runs no job: its next key, then what waits for it."""
        self.rekey(board)
        self.advance(board)

    def advance(self, board: Board, *, quiet: Job | None = None) -> None:
        """Start what waits for a board, if it can begin now.

        Args:
            board: of which nobody need be sure that it is free.
            quiet: the job of which its caller need not be told that it starts.
        """
        while (job := _startable(board)) is not None:
            board.queue.remove(job)
            if self.start(job, quiet=job is quiet):
                return

    def rekey(self, board: Board) -> None:
        """Ask an idle board to take its next key; a busy one is asked when it is idle."""
        free = board.current is None and not board.blocked
        if board.nonce is not None and board.link is not None and free:
            board.link.send(proofs.pack_rekey(board.gen + 1, board.nonce))

    # Boards that went away

    def expect(self, board: Board) -> None:
        """Give a board its grace; a link that came and went meanwhile starts it anew."""
        links = board.links
        self._later(self.lost_after, lambda: self._give_up(board, links))

    def _give_up(self, board: Board, links: int) -> None:
        """End what a board that has not come back still owes."""
        if board.links != links or board.restarts:
            return
        why = f"its link broke and it did not come back within {self.lost_after:g} s"
        self._end_current(board, why)
        for job in list(board.queue):
            if job.resends:
                board.queue.remove(job)
                self._endings.settle(job, "lost", why)
            elif job.timer is None:  # else its caller's own patience counts
                board.queue.remove(job)
                self._endings.settle(job, "offline", board.absence)

    def abandon(self, board: Board) -> None:
        """End all that a board still owes: it is about to be taken out."""
        self._end_current(board, "the board was taken out of the fleet")
        while board.queue:
            self._endings.settle(board.queue.popleft(), "offline", "it was taken out of the fleet")

    def _end_current(self, board: Board, why: str) -> None:
        job, board.current = board.current, None
        if job is not None and job.state != "settled":
            self._endings.settle(job, "lost", why)


def _startable(board: Board) -> Job | None:
    """Return the job that a board can begin now, None where there is none.

    While the board's own program keeps it busy, that is the first that resets the board: such a
    job ends the program, and does not wait behind those that wait for the program's end.
    """
    if board.link is None or board.current is not None:
        return None
    if board.blocked:
        return next((job for job in board.queue if _resets(job)), None)
    return board.queue[0] if board.queue else None


def _resets(job: Job) -> bool:
    """Return whether a job's board has yet to restart before it is sent."""
    return job.cell.fresh and job.state == "queued" and not job.resends


def _unfit(job: Job) -> str:
    """Return why a board cannot do what a job does with files; empty: it can."""
    files, parts = job.cell.files, job.board.parts
    if files is None:
        return ""
    if "files" not in parts:
        return "its client lacks the part for files (files.mpy)"
    starts = "boot" in parts and "unix" not in parts  # virtual boards boot by themselves
    if starts and files.starter:
        return "its /main.py starts its client; a program of yours is started as /app.py"
    return ""
