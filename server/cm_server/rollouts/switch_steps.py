"""The steps of a rollout that bring one board to a generation; no sockets, no SQL.

The board is given the switch, restarts, and proves itself or goes back. Each step may be done
twice.
"""

from __future__ import annotations

from typing import Any, Final

from cloudmanager.protocol.firmware_images import read_app_image
from cloudmanager.protocol.run_options import RunOptions
from cm_server.installs import board_settings
from cm_server.installs.content_store import Content
from cm_server.installs.job_steps import OpGenerator
from cm_server.jobs.model import Board, Cell, Job

from . import (
    board_restart,
    board_switch,
    desired,
    firmware_ops,
    generation_firmware,
    job_outcomes,
)
from .return_steps import ReturnSteps, earlier_id
from .rollout_jobs import RESTART_SECONDS, RolloutJobs, connected_since
from .rollout_state import BoardRun, Rollout, RolloutChanges

_HEALTH_SLACK_SECONDS: Final = 2.0  # after the time that a program has to run
_BUSY_SLACK_SECONDS: Final = 10.0  # after it, for a board that its program keeps busy
#: A board goes back by itself when it is not confirmed in this many times its health's time.
_LIMIT_FACTOR: Final = 2
_LIMIT_SECONDS: Final = 30.0
_MAX_ATTEMPTS: Final = 5  # of a switch that ends without a result
_HEALTH_BLOCKED: Final = "health: app.py keeps the board busy, so that no cell can run"


class SwitchSteps:
    """The steps of boards that are brought to a generation.

    Args:
        jobs: submits jobs.
        changes: changes rollouts.
        returns: the steps of boards that do not get it.
    """

    def __init__(self, jobs: RolloutJobs, changes: RolloutChanges, returns: ReturnSteps) -> None:
        self._jobs = jobs
        self._changes = changes
        self._returns = returns

    def switch(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Send a board the generation, unless its files have yet to be read from the store."""
        if not rollout.contents and desired.content_sizes(rollout.manifest):
            self._jobs.read_contents(rollout)
            return
        firmware, why = self._firmware_for(rollout, board)
        if why:
            self._returns.take_back(rollout, run, "failed", why)
            return
        earlier = earlier_id(board) if rollout.may_clear else ""
        if earlier and earlier not in rollout.earlier:
            self._returns.read_earlier(rollout, earlier)
            return
        installs, options = self._jobs.installs, rollout.options
        timeout = max(options.health_timeout, 1.0)
        plan = board_switch.SwitchPlan(
            generation=rollout.row.generation,
            manifest=rollout.manifest,
            contents=rollout.contents,
            good_seconds=0 if options.health else int(timeout),
            limit_seconds=int(_LIMIT_FACTOR * timeout + _LIMIT_SECONDS),
            settings_bytes=installs.limits.settings_bytes,
            firmware=firmware,
            clears=self._returns.clears(rollout, earlier),
        )

        def generate(board: Board, secrets: board_settings.StoredSecrets) -> OpGenerator:
            side = self._jobs.board_side(board, secrets)
            return board_switch.switch(plan, side, self._jobs.on_planned(board))

        spec = self._jobs.stepped(board_switch.FIRST_OPS, generate)
        # A program that keeps its board busy is ended by a soft reset.
        run_options = RunOptions(fresh=board.is_kept_busy)
        run.on_end = lambda job: self._on_switch_ended(rollout, run, job)
        self._jobs.submit(rollout, run, board, Cell(spec.code, run_options, files=spec), "switch")

    def _firmware_for(self, rollout: Rollout, board: Board) -> tuple[Content | None, str]:
        """Return the image that a board gets, and why it cannot get it; "" if it can."""
        machine = generation_firmware.machine_of(board)
        digest = desired.firmware_for(rollout.manifest, machine)
        if digest is None:
            has_any = "firmware" in rollout.manifest
            return None, f"there is no image for {machine or 'this board'}" if has_any else ""
        content = rollout.contents[digest]
        image = rollout.images.get(digest)
        if image is None:
            image = rollout.images[digest] = read_app_image(content.read(0, content.size))
        return content, firmware_ops.explain_image(board, image)

    def _on_switch_ended(self, rollout: Rollout, run: BoardRun, job: Job) -> None:
        value = job_outcomes.read_value(job)
        board = job.board
        if job.status == "ok" and isinstance(value, dict):
            state = value.get("state")
            if state == "same":
                self._changes.set_proven(rollout, run, board)
                self._jobs.start_program(rollout, run, board)
            elif state == "busy":
                self._returns.wait_for_trial(rollout, run)
            elif state == "cleared":
                self._returns.take_back(rollout, run, "failed", str(value.get("why")))
            else:
                self._changes.set_board(rollout, run, "trial", "")
                if state == "trying":
                    run.row = run.row._replace(since=0.0)  # it has restarted already
                else:
                    self._jobs.restart(rollout, run, board)
            return
        if why := self._changes.refusal_reason(rollout, board.id):
            self._returns.take_back(rollout, run, "waiting", "")
            self._changes.pause(rollout, why)
        elif not job_outcomes.is_broken_off(job):
            self._returns.take_back(
                rollout, run, "failed", job_outcomes.last_line(job.error) or str(job.status)
            )
        elif run.attempts < _MAX_ATTEMPTS:
            run.attempts += 1  # nothing has happened, or all of it: it is done again
        else:
            why = f"the switch was broken off: {job_outcomes.last_line(job.error) or job.status}"
            self._returns.take_back(rollout, run, "unproven", why)

    def examine(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Look at a board that has the generation, and has restarted or is about to."""
        current = desired.read_board_generation(board.reported_facts.get("generation"))
        short = desired.short_id(rollout.row.generation)
        since = connected_since(board)
        if since <= run.row.since or (current.state, current.generation) == ("trial", short):
            self._jobs.restart_again(rollout, run, board)
        elif current.is_trying(short):
            self._try_health(rollout, run, board, self._jobs.clock() - since)
        elif current.reverted == short:
            is_unproven = current.is_unproven and not run.failing
            why = run.failing or _back_text(current.reason)
            self._returns.take_back(rollout, run, "unproven" if is_unproven else "failed", why)
        elif current.has(short):
            self._changes.set_proven(rollout, run, board)
        elif run.attempts < _MAX_ATTEMPTS:  # it has not switched
            run.attempts += 1
            self._changes.set_board(rollout, run, "switching", "")
        else:
            self._returns.take_back(rollout, run, "unproven", "it came back without the generation")

    def _try_health(self, rollout: Rollout, run: BoardRun, board: Board, seconds: float) -> None:
        """Look whether the generation works on a board.

        Args:
            rollout: the rollout.
            run: the board in it.
            board: the board.
            seconds: since when it is connected.
        """
        options = rollout.options
        if run.failing:
            if self._jobs.clock() - run.asked_at >= RESTART_SECONDS:
                self._send_back(rollout, run, board, run.failing)
            return
        if options.health:
            if board.is_kept_busy:  # a cell would wait, and run after the board has gone back
                if seconds >= options.health_timeout + _BUSY_SLACK_SECONDS:
                    self._send_back(rollout, run, board, _HEALTH_BLOCKED)
            elif not run.health_began:
                run.health_began = self._jobs.clock()
                self._send_health(rollout, run, board)
            return
        good = options.health_timeout
        if board.is_kept_busy:
            if seconds >= good + _BUSY_SLACK_SECONDS:  # it takes no job; it has proven itself alone
                self._changes.set_proven(rollout, run, board)
            return
        # A program may prove itself earlier, by cm.healthy(): looked at after 2, 4, 8, … seconds.
        due = min(2.0 ** (run.checks + 1), good + _HEALTH_SLACK_SECONDS * (run.checks + 1))
        if seconds >= due:
            run.checks += 1
            self._send_settle(rollout, run, board, confirm=False)

    def _send_back(self, rollout: Rollout, run: BoardRun, board: Board, why: str) -> None:
        """Restart a board whose trial has failed, so that it goes back; then it has failed."""
        run.failing = why
        run.asked_at = self._jobs.clock()
        run.on_end = lambda job: self._on_sent_back(rollout, run, job)
        code = board_restart.restart_code(desired.short_id(rollout.row.generation), why)
        self._jobs.submit_restart(rollout, run, board, code, "go back")

    def _on_sent_back(self, rollout: Rollout, run: BoardRun, job: Job) -> None:
        """Look whether a board goes back, or has proven itself meanwhile by ``cm.healthy()``."""
        if job.status != "ok":
            return  # it is looked at again: what the board reports says whether it has gone back
        if board_restart.read_state(job.value.text()) == "proven":
            self._changes.set_proven(rollout, run, job.board)
        else:
            self._returns.take_back(rollout, run, "failed", run.failing)

    def _send_health(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        options = rollout.options
        code = options.health_code or options.health
        run_options = RunOptions(timeout=options.health_timeout)
        cell = Cell(code.encode(), run_options, awaits=bool(options.health_code))
        run.on_end = lambda job: self._on_health_ended(rollout, run, job)
        self._jobs.submit(rollout, run, board, cell, "health")

    def _on_health_ended(self, rollout: Rollout, run: BoardRun, job: Job) -> None:
        if job.status == "ok":
            self._send_settle(rollout, run, job.board, confirm=True)
        elif job.status not in ("error", "timeout") or job_outcomes.is_broken_off(job):
            run.health_began = 0.0  # its link broke: it is asked again, or has gone back
        elif job.status == "timeout":  # its error is the KeyboardInterrupt that ended it
            seconds = rollout.options.health_timeout
            why = f"health: did not end within {seconds:g} s (health_timeout)"
            self._send_back(rollout, run, job.board, why)
        else:
            self._send_back(rollout, run, job.board, f"health: {job_outcomes.last_line(job.error)}")

    def _send_settle(self, rollout: Rollout, run: BoardRun, board: Board, *, confirm: bool) -> None:
        generation = rollout.row.generation
        add_bytes = self._jobs.installs.content_store.make_unshared

        def generate(_board: Board, _stored: Any) -> OpGenerator:
            return board_switch.settle(generation, add_bytes, confirm=confirm)

        spec = self._jobs.stepped(board_switch.SETTLE_OPS, generate)
        run.on_end = lambda job: self._on_settled(rollout, run, job)
        self._jobs.submit(rollout, run, board, Cell(spec.code, files=spec), "confirm")

    def _on_settled(self, rollout: Rollout, run: BoardRun, job: Job) -> None:
        current = desired.read_board_generation(job_outcomes.read_value(job))
        if current.has(desired.short_id(rollout.row.generation)):
            self._changes.set_proven(rollout, run, job.board)
        elif run.health_began:
            run.health_began = 0.0  # the confirmation did not arrive


def _back_text(reason: str) -> str:
    """Return why a board went back, of what it reports."""
    text = reason.lstrip("?")
    return text if text.startswith("health: ") else f"it went back: {text}"
