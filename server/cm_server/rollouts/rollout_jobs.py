"""The jobs of rollouts on boards: submit them, and restart boards; no sockets, no SQL."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.run_options import RunOptions
from cm_server.installs import board_settings
from cm_server.installs.job_steps import FileOp, OpGenerator, SteppedJobSpec
from cm_server.installs.services import InstallServices
from cm_server.installs.transfers import ack_bytes_for
from cm_server.jobs.dispatch import Dispatch, Submission
from cm_server.jobs.model import Board, Cell, Requester
from cm_server.store.rows import CellAudit
from cm_server.store.store_queue import Operation

from . import board_restart, board_switch, desired
from .rollout_state import BoardRun, Rollout

log = logging.getLogger("cm_server")

SUBMIT_SECONDS: Final = 2.0  # until a job is submitted again that was not accepted
RESTART_SECONDS: Final = 30.0  # after which a board that was asked to restart is asked again
#: The state of a program that a soft reset has left out (mpy_client/cm/app.py).
_LEFT_OUT: Final = "app.py left out"
_RESTART_TIMEOUT: Final = 20.0  # seconds for the cell that restarts a board


class RolloutJobs:
    """Submits the jobs of rollouts, each on one board.

    Args:
        installs: the store and the contents.
        dispatch: all jobs.
        clock: seconds since 1970.
    """

    def __init__(
        self, installs: InstallServices, dispatch: Dispatch, clock: Callable[[], float]
    ) -> None:
        self.installs = installs
        self.clock = clock
        self._dispatch = dispatch

    def submit(self, rollout: Rollout, run: BoardRun, board: Board, cell: Cell, what: str) -> None:
        """Submit a job of a rollout on one board; ``run.on_end`` is called when it has ended.

        Args:
            rollout: the rollout.
            run: the board in it.
            board: the board.
            cell: what runs there.
            what: what it does, in a word or two, for lists of jobs.
        """
        requester = Requester(rollout.caller, None, rollout.row.token)
        detail = f"{rollout.row.group} {desired.short_id(rollout.row.generation)}: {what}"
        audit = CellAudit(target=board.name, detail=detail, verb="rollout")
        cell = cell._replace(kind="rollout", title=f"{rollout.row.number}: {what}")
        submission = Submission([board], cell, requester, audit)
        run.is_submitting = True
        operation = self._dispatch.submit(submission)
        operation.when_done(lambda _: self._on_submitted(run, submission, operation))

    def _on_submitted(
        self, run: BoardRun, submission: Submission, operation: Operation[range]
    ) -> None:
        run.is_submitting = False
        try:
            (job,) = self._dispatch.create_jobs(submission, operation.result())
        except ServerError as error:
            log.warning("a job of a rollout was not accepted: %s", error.reason)
            run.on_end = None
            run.asked_at = run.health_began = 0.0
            run.not_before = self.clock() + SUBMIT_SECONDS
            return
        run.job = job
        self._dispatch.scheduler.launch([job])

    def stepped(self, first_ops: tuple[FileOp, ...], generate: Any) -> SteppedJobSpec:
        """Return a job of several steps.

        Args:
            first_ops: its first operations.
            generate: makes its generator, of the board and of what the store knows of its secrets.
        """
        installs = self.installs

        def make_generator(board: Board, stored: Any) -> OpGenerator:
            made: OpGenerator = generate(board, stored)
            return made

        return SteppedJobSpec(
            first_ops,
            make_generator,
            lambda board: installs.store_queue.run(
                lambda store: board_settings.read_secrets(store, board)
            ),
            ack_bytes_for(1, installs.limits),
            installs.limits.manifest_bytes,
        )

    def board_side(
        self, board: Board, secrets: board_settings.StoredSecrets
    ) -> board_switch.BoardSide:
        """Return what a job that switches a board has to know of it."""
        number = board.reported_facts.get("mpy")
        mpy = number if isinstance(number, int) else 0
        add_bytes = self.installs.content_store.make_unshared
        return board_switch.BoardSide(board.name, mpy, secrets, add_bytes)

    def on_planned(self, board: Board) -> Callable[[board_switch.Switched], None]:
        """Return what stores what a board has after its switch."""

        def store_planned(switched: board_switch.Switched) -> None:
            self.installs.store_queue.run(
                lambda store: store.installed_packages.store_manifest(board.id, switched.manifest)
            )
            self.installs.store_queue.run(
                lambda store: store.secret_rows.set_uses(board.id, switched.uses)
            )

        return store_planned

    def restart(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Restart a board, which applies the switch then."""
        self.restart_for(rollout, run, board, desired.short_id(rollout.row.generation))

    def start_program(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Restart a board whose program a job of the rollout has ended, so that it runs again."""
        program = str(board.reported_facts.get("program") or "")
        if board.online and program.startswith(_LEFT_OUT):
            self.restart(rollout, run, board)

    def read_contents(self, rollout: Rollout) -> None:
        """Read the files of a generation from the store; once for all boards."""
        generation = rollout.row.generation
        contents = self.installs.content_store
        operation = self.installs.store_queue.run(
            lambda store: store.rollout_rows.contents_of(generation)
        )

        def on_read(_: object) -> None:
            if operation.error is None:
                found = operation.result()
                rollout.contents = {
                    digest: contents.make_unshared(data) for digest, data in found.items()
                }

        operation.when_done(on_read)

    def restart_again(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Restart a board, unless it was asked to a short time ago."""
        if self.clock() - run.asked_at >= RESTART_SECONDS:
            self.restart(rollout, run, board)

    def restart_for(self, rollout: Rollout, run: BoardRun, board: Board, short: str) -> None:
        """Restart a board, which is to start with a generation, given by its first digits."""
        run.asked_at = self.clock()
        run.on_end = lambda _job: None
        code = board_restart.restart_code(short)
        self.submit_restart(rollout, run, board, code, "restart")

    def submit_restart(
        self, rollout: Rollout, run: BoardRun, board: Board, code: bytes, what: str
    ) -> None:
        """Submit a cell that restarts a board."""
        options = RunOptions(timeout=_RESTART_TIMEOUT, fresh=board.is_kept_busy)
        self.submit(rollout, run, board, Cell(code, options, restarts=True), what)


def connected_since(board: Board) -> float:
    """Return since when a board has its link, in seconds since 1970; 0 without one."""
    return float(board.describe()["connected_since"] or 0.0)
