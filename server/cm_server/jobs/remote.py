"""What jobs need of other servers, and the case that there are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .model import Board, Job


class Remote(Protocol):
    """Other servers: they run jobs of callers of this one, on their boards."""

    def epoch_for(self, board: Board) -> int | None:
        """Return a board's epoch if a job would be sent to it immediately, else None."""

    def find_board(self, job: Job) -> bool:
        """Look for the server of a job's board, which seems to be offline; launch the job later.

        Returns:
            False if that is known, and the job ends here.
        """

    def launch(self, job: Job) -> None:
        """Let the server that has the job's board run it: ``send_launches`` asks it."""

    def send_launches(self, *, now: bool = False) -> None:
        """Ask the servers that have the boards of launched jobs; soon, or now."""

    def interrupt_job(self, job: Job) -> None:
        """Ask the owner of a job to interrupt it."""

    def answer_input(self, job: Job, text: bytes, *, nobody: bool) -> None:
        """Send the answer to a job's ``input()`` to its owner."""

    def fail_job(self, job: Job, why: str) -> None:
        """Ask the owner to end a job that cannot be continued."""

    def follow_in_store(self, job: Job) -> None:
        """Leave a job to its owner, and read its result from the store."""


class NoRemote:
    """There is one server: no board has another one, and no job another owner.

    So only ``epoch_for``, ``find_board`` and ``send_launches`` are ever called.
    """

    def epoch_for(self, _board: Board) -> int | None:
        """Return None: boards have epochs only where servers share them."""
        return None

    def find_board(self, _job: Job) -> bool:
        """Return False: no other server can have it."""
        return False

    def send_launches(self, *, now: bool = False) -> None:
        """Do nothing: no job was launched at another server."""

    def launch(self, job: Job) -> None:
        """Never called: a board that is not connected here is offline."""
        raise _NoOwnerError(job)

    def interrupt_job(self, job: Job) -> None:
        """Never called: this server owns each job."""
        raise _NoOwnerError(job)

    def answer_input(self, job: Job, _text: bytes, *, nobody: bool) -> None:
        """Never called: this server owns each job."""
        raise _NoOwnerError(job)

    def fail_job(self, job: Job, _why: str) -> None:
        """Never called: this server owns each job."""
        raise _NoOwnerError(job)

    def follow_in_store(self, job: Job) -> None:
        """Never called: this server owns each job."""
        raise _NoOwnerError(job)


class _NoOwnerError(AssertionError):
    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} cannot have another owner: there is one server")
