"""The steps of a rollout that bring the client of one board to its version; no sockets, no SQL.

They come before the switch to the generation. A board is ``upgrading`` while the new client is
written, and ``starting`` from then on until the new client is kept, or the old one runs again: only
then a client that was tried counts. Each step may be done twice.
"""

from __future__ import annotations

from typing import Any, Final

from cloudmanager.protocol.run_options import RunOptions
from cm_server.installs.job_steps import OpGenerator
from cm_server.jobs.model import Board, Cell, Job
from cm_server.store.rollout_rows import OPEN_STATES

from . import client_switch, desired, job_outcomes
from .plans import TRIAL_PART
from .return_steps import ReturnSteps
from .rollout_jobs import RolloutJobs
from .rollout_state import BoardRun, Rollout, RolloutChanges

_MAX_ATTEMPTS: Final = 5  # of steps that were not successful
_RETURNED: Final = "the new client did not start; the old one was restored"
_STOPPED: Final = "the old client was restored, since no server kept the new one in time"
_FIXED: Final = "its client cannot go back by itself, and is part of its firmware: flash a new one"


class ClientSteps:
    """The steps of boards that get another client.

    Args:
        jobs: submits jobs.
        changes: changes rollouts.
        returns: the steps of boards that do not get the generation.
    """

    def __init__(self, jobs: RolloutJobs, changes: RolloutChanges, returns: ReturnSteps) -> None:
        self._jobs = jobs
        self._changes = changes
        self._returns = returns

    def examine(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Do what is due for a board that is upgrading, or starting its new client."""
        if not client_switch.is_replaceable(board):
            self._go_on(rollout, run, board)
        elif not rollout.contents:
            self._jobs.read_contents(rollout)
        else:
            # A program that keeps its board busy is ended by a soft reset.
            self._send(rollout, run, board, fresh=board.is_kept_busy)

    def _send(self, rollout: Rollout, run: BoardRun, board: Board, *, fresh: bool) -> None:
        """Send a job that does what is due; with ``fresh``, the board restarts first."""
        wanted = desired.client_files(rollout.manifest)
        files = {name: rollout.contents[digest] for name, (digest, _) in wanted.items()}
        add_bytes = self._jobs.installs.content_store.make_unshared
        may_start = run.row.state == "starting"

        def generate(_board: Board, _stored: Any) -> OpGenerator:
            return client_switch.bring_client(files, add_bytes, may_start=may_start)

        spec = self._jobs.stepped(client_switch.FIRST_OPS, generate)
        run.on_end = lambda job: self._on_ended(rollout, run, job)
        cell = Cell(spec.code, RunOptions(fresh=fresh), files=spec)
        what = "start the client" if may_start else "send the client"
        self._jobs.submit(rollout, run, board, cell, what)

    def _on_ended(self, rollout: Rollout, run: BoardRun, job: Job) -> None:
        board = job.board
        found = job_outcomes.read_value(job) if job.status == "ok" else None
        if found in (client_switch.SAME, client_switch.FIXED):
            self._go_on(rollout, run, board)
        elif found == client_switch.BUSY:
            self._returns.wait_for_trial(rollout, run)
        elif found == client_switch.RETURNED and run.is_resumed:
            self._changes.set_board(rollout, run, "unproven", _STOPPED)
        elif found == client_switch.RETURNED:
            self._fail(rollout, run, board, _RETURNED)
        elif found == client_switch.WRITTEN:
            if self._may_try(rollout, run, "the new client was lost on the board"):
                self._changes.set_board(rollout, run, "starting", "")
        elif found == client_switch.READY:
            # This restart leaves the program out, which might keep the board busy. The one that
            # follows the switch to the generation starts it again.
            if self._may_try(rollout, run, "the board did not start the new client"):
                self._send(rollout, run, board, fresh=True)
        elif job.status != "ok" and job_outcomes.is_broken_off(job):
            why = job_outcomes.last_line(job.error) or str(job.status)
            self._may_try(rollout, run, f"the upgrade of the client was broken off: {why}")
        else:
            self._fail(rollout, run, board, job_outcomes.last_line(job.error) or str(job.status))

    def _may_try(self, rollout: Rollout, run: BoardRun, why: str) -> bool:
        """Return whether another step may follow; after too many, the board waits for a while."""
        run.attempts += 1
        if run.attempts <= _MAX_ATTEMPTS:
            return True
        self._changes.set_board(rollout, run, "unproven", why)
        return False

    def _go_on(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Let the switch to the generation follow, unless the rollout has ended meanwhile."""
        if TRIAL_PART not in board.client_parts:
            self._fail(rollout, run, board, _FIXED)
        elif rollout.row.state in OPEN_STATES:
            run.attempts = 0
            self._changes.set_board(rollout, run, "switching", "")
        else:
            self._returns.take_back(rollout, run, "waiting", "")

    def _fail(self, rollout: Rollout, run: BoardRun, board: Board, why: str) -> None:
        self._changes.set_board(rollout, run, "failed", f"client: {why}")
        self._jobs.start_program(rollout, run, board)
