"""What happens to a board of a rollout that does not get the generation; no sockets, no SQL.

A board that could not keep what it had is sent that again. Each step may be done twice.
"""

from __future__ import annotations

from typing import Final

from cloudmanager.protocol.run_options import RunOptions
from cm_server.installs import board_settings
from cm_server.installs.job_steps import OpGenerator
from cm_server.jobs.model import Board, Cell, Job
from cm_server.store.rollout_rows import GenerationRow, RolloutRows

from . import board_switch, desired, job_outcomes, steps
from .board_switch import EarlierGeneration
from .rollout_jobs import RESTART_SECONDS, SUBMIT_SECONDS, RolloutJobs, connected_since
from .rollout_state import BoardRun, Rollout, RolloutChanges

_BUSY_SECONDS: Final = 3.0  # until a board with another generation on trial is asked again


class ReturnSteps:
    """The steps of boards that do not get a generation.

    Args:
        jobs: submits jobs.
        changes: changes rollouts.
    """

    def __init__(self, jobs: RolloutJobs, changes: RolloutChanges) -> None:
        self._jobs = jobs
        self._changes = changes

    def read_earlier(self, rollout: Rollout, short: str) -> None:
        """Read a generation that boards had before, given by the first digits of its id."""
        contents = self._jobs.installs.content_store
        operation = self._jobs.installs.store_queue.run(
            lambda store: _find_earlier(store.rollout_rows, short)
        )

        def on_read(_: object) -> None:
            if operation.error is not None:
                return  # it is read again at the next look
            found = operation.result()
            if found is None:
                rollout.earlier[short] = None
                return
            row, files = found
            made = {digest: contents.make_unshared(data) for digest, data in files.items()}
            rollout.earlier[short] = EarlierGeneration(row.sha256, row.manifest, made)

        operation.when_done(on_read)

    def clears(self, rollout: Rollout, short: str) -> EarlierGeneration | None:
        """Return what a board may remove; nothing where it has to keep what it has."""
        if not rollout.may_clear:
            return None
        return rollout.earlier.get(short) or EarlierGeneration("", {}, {})

    def take_back(self, rollout: Rollout, run: BoardRun, state: str, why: str) -> None:
        """Record that a board does not get the generation, once it has what it had before.

        Args:
            rollout: the rollout.
            run: the board in it.
            state: "failed", "unproven" or "waiting".
            why: the reason; "" for "waiting" only.
        """
        if not rollout.may_clear:
            self._changes.set_board(rollout, run, state, why)
            if board := self._changes.find_board(run.row.board):
                self._jobs.start_program(rollout, run, board)
            return
        mark = steps.UNPROVEN_MARK if state == "unproven" else ""
        self._changes.set_board(rollout, run, "returning", mark + why)

    def _on_returned(self, rollout: Rollout, run: BoardRun, note: str = "") -> None:
        """Record what a board is that has again what it had before, or cannot get it."""
        why = run.row.why
        if note:
            why = f"{why.removeprefix(steps.UNPROVEN_MARK)}; {note}".removeprefix("; ")
        if not why:
            self._changes.set_board(rollout, run, "waiting", "")
        elif why.startswith(steps.UNPROVEN_MARK):
            self._changes.set_board(rollout, run, "unproven", why.removeprefix(steps.UNPROVEN_MARK))
        else:
            self._changes.set_board(rollout, run, "failed", why)

    def wait_for_trial(self, rollout: Rollout, run: BoardRun) -> None:
        """Record that a board has something else on trial, for which this rollout waits.

        That ends by itself, mostly soon: it is of a rollout which this one has replaced.
        """
        why = "another generation is on trial there"
        self._changes.set_board(rollout, run, "unproven", why)
        since = self._jobs.clock() - steps.RETRY_SECONDS + _BUSY_SECONDS
        run.row = run.row._replace(since=since)

    def examine(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Send a board again what it had before, if it has removed that.

        No right is asked for: this undoes what the rollout was permitted to do.
        """
        now = self._jobs.clock()
        current = desired.read_board_generation(board.reported_facts.get("generation"))
        if current.state in ("trial", "trying"):  # nothing was lost: it has switched meanwhile
            self._changes.set_board(rollout, run, "trial", "")
            run.row = run.row._replace(since=0.0)
            return
        if connected_since(board) > run.row.since and current.state != "cleared":
            self._on_returned(rollout, run)
            return
        if now - run.asked_at < RESTART_SECONDS:
            return
        short = earlier_id(board)
        if short and short not in rollout.earlier:
            self.read_earlier(rollout, short)
            return
        earlier = rollout.earlier.get(short)
        if earlier is None:
            lost = f"the server does not have generation {short} any more"
            self._on_returned(rollout, run, lost if current.state == "cleared" else "")
            return
        limit = self._jobs.installs.limits.settings_bytes

        def generate(board: Board, secrets: board_settings.StoredSecrets) -> OpGenerator:
            side = self._jobs.board_side(board, secrets)
            return board_switch.send_again(earlier, side, limit, self._jobs.on_planned(board))

        spec = self._jobs.stepped(board_switch.FIRST_OPS, generate)
        run.on_end = lambda job: self._on_sent_again(rollout, run, job, short)
        options = RunOptions(fresh=board.is_kept_busy)
        self._jobs.submit(rollout, run, board, Cell(spec.code, options, files=spec), "send again")

    def _on_sent_again(self, rollout: Rollout, run: BoardRun, job: Job, short: str) -> None:
        state = job_outcomes.read_value(job) if job.status == "ok" else None
        current = desired.read_board_generation(job.board.reported_facts.get("generation"))
        # It is switched then, but was asked in vain to restart, or started before that.
        has_old_program = run.asked_at > 0 or current.state == "cleared"
        if state == "trial":
            self._changes.set_board(rollout, run, "trial", "")
        elif state == "switched" or (state == "proven" and has_old_program):
            self._jobs.restart_for(rollout, run, job.board, short)
        elif state == "proven":
            self._on_returned(rollout, run)
        elif job_outcomes.is_broken_off(job):
            run.not_before = self._jobs.clock() + SUBMIT_SECONDS
        else:
            why = job_outcomes.last_line(job.error) or str(job.status)
            note = f"what it had before could not be sent again: {why}"
            self._on_returned(rollout, run, note)


def earlier_id(board: Board) -> str:
    """Return the first digits of the id of what a board has, also if it was changed; else ""."""
    fact = board.reported_facts.get("generation")
    return (
        desired.read_drifted_fact(fact).generation or desired.read_board_generation(fact).generation
    )


def _find_earlier(rows: RolloutRows, short: str) -> tuple[GenerationRow, dict[str, bytes]] | None:
    """Return a generation with all its files; None if the store does not have it any more."""
    ids = rows.find_generation(short)
    made = rows.generations_of(ids)
    if len(ids) != 1 or ids[0] not in made:
        return None
    row, files = made[ids[0]], rows.contents_of(ids[0])
    is_whole = desired.content_sizes(row.manifest).keys() <= files.keys()
    return (row, files) if is_whole else None
