"""Bring one board of a rollout to another Wi-Fi, or to another server; no sockets, no SQL.

The board gets the change as a file, prepares settings that include it, restarts, and tries them
for a minute. Then it is here again, and is asked whether it has them; or it has left for another
server, which may have another store: then it has moved if it does not come back. Each step may be
done twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from cloudmanager.protocol.run_options import RunOptions
from cm_server.installs.job_steps import OpGenerator, SteppedJobSpec
from cm_server.installs.transfers import ack_bytes_for
from cm_server.jobs.model import Board, Cell, Job

from . import desired, job_outcomes, network_change
from .rollout_jobs import connected_since

if TYPE_CHECKING:
    from .rollout_jobs import RolloutJobs
    from .rollout_state import BoardRun, Rollout, RolloutChanges

_CELL_SECONDS: Final = 20.0
_MAX_ATTEMPTS: Final = 5  # of a job that ends without a result
_OLD_SETTINGS: Final = "it came back with the old settings"


class NetworkSteps:
    """The steps of rollouts that change the network settings of boards.

    Args:
        jobs: submits jobs.
        changes: changes rollouts.
    """

    def __init__(self, jobs: RolloutJobs, changes: RolloutChanges) -> None:
        self._jobs = jobs
        self._changes = changes

    def switch(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Send a board the change; it is read from the store each time, and kept nowhere."""
        generation = rollout.row.generation
        installs = self._jobs.installs

        def make_generator(_board: Board, change: Mapping[str, Any]) -> OpGenerator:
            return network_change.send(change, installs.content_store.make_unshared)

        spec = SteppedJobSpec(
            network_change.FIRST_OPS,
            make_generator,
            lambda _board: installs.store_queue.run(
                lambda store: store.rollout_rows.read_network_change(generation)
            ),
            ack_bytes_for(1, installs.limits),
            installs.limits.settings_bytes,
        )
        run.on_end = lambda job: self._on_sent(rollout, run, job)
        # A program that keeps its board busy is ended by a soft reset; it restarts afterwards.
        options = RunOptions(fresh=board.is_kept_busy)
        cell = Cell(spec.code, options, files=spec)
        self._jobs.submit(rollout, run, board, cell, "send the settings")

    def _on_sent(self, rollout: Rollout, run: BoardRun, job: Job) -> None:
        if not self._has_succeeded(rollout, run, job):
            return
        run.on_end = lambda job: self._on_prepared(rollout, run, job)
        cell = Cell(
            network_change.apply_code(_mark(rollout)),
            RunOptions(timeout=_CELL_SECONDS, fresh=job.board.is_kept_busy),
        )
        self._jobs.submit(rollout, run, job.board, cell, "prepare the settings")

    def _on_prepared(self, rollout: Rollout, run: BoardRun, job: Job) -> None:
        if not self._has_succeeded(rollout, run, job):
            return
        if job_outcomes.read_cell_value(job) == "same":
            self._changes.set_board(rollout, run, "proven", "")
            return
        self._changes.set_board(rollout, run, "trial", "")
        self._jobs.restart(rollout, run, job.board)

    def _has_succeeded(self, rollout: Rollout, run: BoardRun, job: Job) -> bool:
        """Return whether a job has succeeded; if it never will, the board has failed."""
        if job.status == "ok":
            return True
        why = job_outcomes.last_line(job.error) or str(job.status)
        if not job_outcomes.is_broken_off(job):
            self._changes.set_board(rollout, run, "failed", why)
        elif run.attempts < _MAX_ATTEMPTS:
            run.attempts += 1  # nothing has happened yet: it begins again
        else:
            self._changes.set_board(rollout, run, "unproven", f"it was broken off: {why}")
        return False

    def examine(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Look at a board that has restarted, and is here again; once for each of its links."""
        if connected_since(board) <= run.row.since:
            self._jobs.restart_again(rollout, run, board)
            return
        if run.health_began:
            return
        run.health_began = self._jobs.clock()
        was_blocked = board.is_kept_busy
        run.on_end = lambda job: self._on_checked(rollout, run, job, was_blocked=was_blocked)
        options = RunOptions(timeout=_CELL_SECONDS, fresh=was_blocked)
        cell = Cell(network_change.check_code(_mark(rollout)), options)
        self._jobs.submit(rollout, run, board, cell, "check the settings")

    def has_moved(self, rollout: Rollout, run: BoardRun) -> bool:
        """Return whether a board that is away has gone to the other server for good."""
        if rollout.row.group != network_change.SERVER or run.row.state != "trial":
            return False
        return self._jobs.clock() - run.row.since >= rollout.options.health_timeout

    def _on_checked(self, rollout: Rollout, run: BoardRun, job: Job, *, was_blocked: bool) -> None:
        if not job_outcomes.is_broken_off(job) and job.status == "error":
            self._changes.set_board(rollout, run, "failed", job_outcomes.last_line(job.error))
            return
        if job.status != "ok":
            run.health_began = 0.0  # its link broke, or its program began: it is asked again
            return
        if job_outcomes.read_cell_value(job):
            self._changes.set_board(rollout, run, "proven", "")
        else:
            run.returns += 1
            is_last = run.returns >= network_change.MAX_RETURNS
            times = f", {run.returns} times" if is_last else ""
            state = "failed" if is_last else "unproven"
            self._changes.set_board(rollout, run, state, _OLD_SETTINGS + times)
        if was_blocked:  # the check has ended its program; a restart brings it back
            self._jobs.restart(rollout, run, job.board)


def _mark(rollout: Rollout) -> str:
    return desired.short_id(rollout.row.generation)
