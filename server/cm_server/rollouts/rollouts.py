"""Carry out rollouts: bring boards to a generation, wave by wave; no sockets, no SQL.

What to do is read from the store and from what boards report, again and again, and each
step may be done twice: so a server that is killed at any point goes on where it was. A board is
given a switch (``board_switch``), restarts, and proves itself or goes back (its client's part
``trial``). Each step is done with the rights that the token of the rollout has then. Call from the
thread of the event loop only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.firmware_images import read_app_image
from cloudmanager.protocol.run_options import RunOptions
from cloudmanager.protocol.targets import natural_key
from cm_server import cleanup
from cm_server.auth import access
from cm_server.auth.tokens import Tokens
from cm_server.installs import board_settings
from cm_server.installs.content_store import Content
from cm_server.installs.job_steps import FileOp, OpGenerator, SteppedJobSpec
from cm_server.installs.services import InstallServices
from cm_server.installs.transfers import ack_bytes_for
from cm_server.jobs.dispatch import Dispatch, Submission
from cm_server.jobs.model import Board, Cell, Job, Requester, TimerHandle
from cm_server.jobs.registry import Registry
from cm_server.store.rollout_rows import (
    OPEN_STATES,
    GenerationRow,
    GroupState,
    NewRollout,
    NextRollout,
    RolloutBoardRow,
    RolloutPlace,
    RolloutRow,
    RolloutRows,
)
from cm_server.store.rows import CellAudit
from cm_server.store.store import Store
from cm_server.store.store_queue import Operation

from . import (
    board_restart,
    board_switch,
    desired,
    firmware_ops,
    generation_firmware,
    job_outcomes,
    steps,
)
from .board_switch import EarlierGeneration
from .joining import JoiningBoards, access_reason
from .network_steps import NetworkSteps, RolloutActions
from .rollout_state import BoardRun, Rollout
from .steps import BoardProgress, Position, RolloutOptions
from .windows import read_window

log = logging.getLogger("cm_server")

TICK_SECONDS: Final = 0.5  # between two looks at rollouts
ACTIVE_TICK_SECONDS: Final = 0.1  # the same while boards are being switched
MAX_SHARE: Final = 0.05  # of the time that looks may take then; rollouts of many boards take more
CLAIM_SECONDS: Final = 5.0  # between two looks whether another server's rollouts are orphaned
JOIN_SECONDS: Final = 2.0  # between two looks whether boards have joined a group
BUSY_SECONDS: Final = 3.0  # until a board with another generation on trial is asked again
RESTART_SECONDS: Final = 30.0  # after which a board that was asked to restart is asked again
HEALTH_SLACK_SECONDS: Final = 2.0  # after the time that a program has to run
BUSY_SLACK_SECONDS: Final = 10.0  # after it, for a board that its program keeps busy
#: A board goes back by itself when it is not confirmed in this many times its health's time.
LIMIT_FACTOR: Final = 2
LIMIT_SECONDS: Final = 30.0
SUBMIT_SECONDS: Final = 2.0  # until a job is submitted again that was not accepted
MAX_ATTEMPTS: Final = 5  # of a switch that ends without a result
HEALTH_BLOCKED: Final = "health: app.py keeps the board busy, so that no cell can run"
RESTART_TIMEOUT: Final = 20.0  # seconds for the cell that restarts a board
#: Seconds in which a board comes back whose rollout has ended while it was being switched.
RETURN_SECONDS: Final = 600.0


@dataclass(frozen=True)
class RolloutServices:
    """The parts of the server that rollouts use.

    Attributes:
        installs: the store and the contents.
        registry: all boards.
        dispatch: all jobs.
        tokens: all tokens.
        call_later: calls a function after a number of seconds.
        owner: returns the id of this server.
        live_servers: returns the ids of all servers that are there; None: this is the only one.
        publish_generation: tells other servers that a board has another fact ``generation``.
        clock: seconds since 1970.
    """

    installs: InstallServices
    registry: Registry
    dispatch: Dispatch
    tokens: Tokens
    call_later: Callable[[float, Callable[[], None]], TimerHandle]
    owner: Callable[[], str]
    live_servers: Callable[[], Collection[str] | None]
    publish_generation: Callable[[Board], None] = lambda _board: None
    clock: Callable[[], float] = time.time


class Rollouts:
    """The rollouts that this server carries out.

    Args:
        services: the parts of the server.
    """

    def __init__(self, services: RolloutServices) -> None:
        self._services = services
        self.on_stopped: Callable[[str], None] = lambda _group: None
        self._queue = services.installs.store_queue
        self._rollouts: dict[int, Rollout] = {}
        self._timer: TimerHandle | None = None
        self._claim_timer: TimerHandle | None = None
        self._join_timer: TimerHandle | None = None
        self._stopped = False
        self._is_loading = self._reload_again = False
        self._version: tuple[int, float] | None = None  # of the store's rollouts, as last read
        self._joining = JoiningBoards(services.registry, services.tokens)
        actions = RolloutActions(self._submit, self._set_board, self._restart)
        self._network_steps = NetworkSteps(actions, services.installs, services.clock)

    @property
    def place(self) -> RolloutPlace:
        """Where rollouts are carried out and stored."""
        limits = self._services.installs.limits
        return RolloutPlace(self._services.owner(), limits.generations_bytes)

    def now(self) -> float:
        """Return the time, in seconds since 1970."""
        return self._services.clock()

    def needs(self, board: Board) -> bool:
        """Return whether a rollout is about to do something on a board, which may not sleep."""
        for rollout in self._rollouts.values():
            run = rollout.runs.get(board.id)
            if run is None:
                continue
            if run.row.state in steps.ACTIVE:
                return True
            now = self._services.clock()
            is_its_turn = run.row.wave <= rollout.position.wave
            if rollout.window is not None and not rollout.window.is_open(now):
                continue
            if rollout.row.state == "running" and is_its_turn:
                progress = self._progress(run)._replace(online=True)
                return steps.may_begin(progress, now)
        return False

    def start(self) -> None:
        """Take up the rollouts of this server, and those of servers that are gone."""
        self.reload()
        self._join_timer = self._services.call_later(JOIN_SECONDS, self._look_for_joining)

    def stop(self) -> None:
        """Stop; the rollouts stay open."""
        self._stopped = True
        for timer in (self._timer, self._claim_timer, self._join_timer):
            if timer is not None:
                timer.cancel()

    def reload(self) -> None:
        """Read the open rollouts again: somebody has made, paused or aborted one."""
        if self._is_loading:  # what has changed meanwhile may not be in what is being read
            self._reload_again = True
        if self._stopped or self._is_loading:
            return
        owner, live = self._services.owner(), self._services.live_servers()
        if live is not None and owner not in live:  # nothing is known of the other servers yet
            self._schedule_claim()
            return
        self._is_loading = True
        known = self._version
        operation = self._queue.run(lambda store: _load(store.rollout_rows, owner, live, known))
        operation.when_done(lambda _: self._on_loaded(operation))

    def _on_loaded(self, operation: Operation[_LoadedAll]) -> None:
        self._is_loading = False
        if self._reload_again:
            self._reload_again = False
            self.reload()
            return
        if self._stopped:
            return
        try:
            found = operation.result()
        except ServerError as error:
            log.warning("rollouts cannot be read: %s", error.reason)
            self._schedule_claim()
            return
        loaded = {each.row.number: each for each in found.rollouts}
        if found.groups is not None:
            self._version = found.version
            self._joining.set_groups(found.groups)
        for number, rollout in list(self._rollouts.items()):
            if number not in loaded:
                # Boards that are being switched finish, unless another server has the rollout.
                rollout.row = rollout.row._replace(state="ended")
                if not rollout.is_active:
                    del self._rollouts[number]
        for number, each in loaded.items():
            known = self._rollouts.get(number)
            if known is not None and known.row.epoch == each.row.epoch:
                known.row = each.row
                known.position = _position(each.row)
            elif each.manifest is not None:
                self._rollouts[number] = self._make_rollout(each)
        self._schedule()
        self._schedule_claim()

    def _schedule_claim(self) -> None:
        """Look again later, if there are other servers whose rollouts may become this one's."""
        if self._claim_timer is not None:
            self._claim_timer.cancel()
            self._claim_timer = None
        if self._services.live_servers() is not None or self._rollouts:
            self._claim_timer = self._services.call_later(CLAIM_SECONDS, self.reload)

    def _look_for_joining(self) -> None:
        """Begin rollouts for boards that have joined a group since its last one."""
        if self._stopped:
            return
        self._join_timer = self._services.call_later(JOIN_SECONDS, self._look_for_joining)
        try:
            found = self._joining.find(self._services.clock())
        except Exception as error:
            cleanup.log_failure("boards that have joined a group", error)
            return
        for new, proven in found:
            self._add_joined(new, proven)

    def _add_joined(self, new: NewRollout, proven: int) -> None:
        place = self.place
        operation = self._queue.run(
            lambda store: store.add_joined_boards(new, place, proven), durable=True
        )

        def on_added(_: object) -> None:
            if operation.error is not None or not operation.result():
                self._joining.look_again(list(new.boards))
                self._version = None  # the group is another one than it was thought to be
            self.reload()

        operation.when_done(on_added)

    def _make_rollout(self, loaded: _Loaded) -> Rollout:
        row = loaded.row
        plan = row.plan
        names = {each.board: self._name_of(each.board) for each in loaded.boards}
        ordered = sorted(
            loaded.boards, key=lambda each: (each.wave, natural_key(names[each.board]))
        )
        runs = {each.board: BoardRun(each, begun=each.state != "waiting") for each in ordered}
        return Rollout(
            row,
            str(plan.get("caller", "")),
            RolloutOptions(**plan["options"]),
            _position(row),
            loaded.manifest or {},
            runs,
            read_window(plan.get("window")),
        )

    def _name_of(self, board_id: str) -> str:
        board = self._services.registry.by_id.get(board_id)
        return board.name if board is not None else ""

    # Looking at rollouts

    def _schedule(self, seconds: float = TICK_SECONDS) -> None:
        if self._rollouts and not self._stopped:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._services.call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        begun = time.perf_counter()
        for rollout in list(self._rollouts.values()):
            try:
                self._advance(rollout)
            except Exception as error:
                cleanup.log_failure(f"rollout {rollout.row.number}", error)
        seconds = TICK_SECONDS
        if any(rollout.is_active for rollout in self._rollouts.values()):
            took = time.perf_counter() - begun
            seconds = min(max(took / MAX_SHARE, ACTIVE_TICK_SECONDS), TICK_SECONDS)
        self._schedule(seconds)

    def _advance(self, rollout: Rollout) -> None:
        """Do what is due for a rollout."""
        if not rollout.writes and (unwritten := rollout.unwritten):
            self._write_boards(rollout, unwritten)
        for run in list(rollout.runs.values()):
            if run.row.state in steps.ACTIVE:
                self._examine(rollout, run)
        if rollout.row.state == "running":
            self._proceed(rollout)
        elif rollout.row.state != "paused" and not (rollout.is_active or rollout.unwritten):
            self._rollouts.pop(rollout.row.number, None)

    def _proceed(self, rollout: Rollout) -> None:
        """Let further boards begin, or end the rollout, as ``steps.next_step`` says."""
        now = self._services.clock()
        progress = [self._progress(run) for run in rollout.runs.values()]
        step = steps.next_step(progress, rollout.options, rollout.position, now, rollout.window)
        self._set_boards(
            rollout,
            [
                (rollout.runs[board_id], state, why)
                for board_id, (state, why) in step.overdue.items()
            ],
        )
        if step.position != rollout.position:
            rollout.position = step.position
            self._save_position(rollout)
        if step.outcome:
            if not rollout.unwritten:  # else it is looked at again
                self._end(rollout, step.outcome, step.why)
            return
        begun = []
        why = ""
        refusal_reason = self._refusals(rollout)
        for board_id in step.begin:
            if self._is_switched_elsewhere(rollout, board_id):
                continue  # a restart would end the other trial
            if why := refusal_reason(board_id):
                break
            begun.append(rollout.runs[board_id])
        for run in begun:
            run.begun = True
            run.attempts = 0
        self._set_boards(rollout, [(run, "switching", "") for run in begun])
        if why:
            self._end(rollout, "paused", why)

    def _is_switched_elsewhere(self, rollout: Rollout, board_id: str) -> bool:
        """Return whether another rollout is just switching a board."""
        for other in self._rollouts.values():
            run = other.runs.get(board_id)
            if other is not rollout and run is not None and run.row.state in steps.ACTIVE:
                return other.is_network_change or rollout.is_network_change
        board = self._services.registry.by_id.get(board_id)
        if board is None or not rollout.is_network_change:
            return False
        current = desired.read_board_generation(board.reported_facts.get("generation"))
        return current.state in ("trial", "trying")  # by another server, perhaps

    def _progress(self, run: BoardRun) -> BoardProgress:
        board = self._services.registry.by_id.get(run.row.board)
        online = board is not None and board.online
        row = run.row
        is_returning = row.state == "returning"
        has_failed = is_returning and row.why != "" and not row.why.startswith(steps.UNPROVEN_MARK)
        return BoardProgress(
            row.board, row.wave, row.state, row.since, online, run.begun, has_failed
        )

    def _refusal_reason(self, rollout: Rollout, board_id: str) -> str:
        """Return why the token of a rollout may not change a board; "" if it may."""
        return self._refusals(rollout)(board_id)

    def _refusals(self, rollout: Rollout) -> Callable[[str], str]:
        """Return a function that returns why a board may not be changed, for many boards."""
        registry = self._services.registry
        why, token = access_reason(self._services.tokens, rollout.row.token, rollout.caller)
        if token is None:
            return lambda _board_id: why
        has_firmware = "firmware" in rollout.manifest
        if has_firmware and not access.has_role(token, firmware_ops.FIRMWARE_ROLE):
            return lambda _board_id: f"the token {token.name!r} may not change firmware"
        reachable = access.reachable_boards(token, registry.by_name)

        def reason(board_id: str) -> str:
            board = registry.by_id.get(board_id)
            if board is None or reachable.get(board.name) is board:
                return ""
            return f"{board.name} is not within reach of the token {token.name!r}"

        return reason

    # Changes of the store

    def _set_board(self, rollout: Rollout, run: BoardRun, state: str, why: str) -> None:
        """Record the state of a board."""
        self._set_boards(rollout, [(run, state, why)])

    def _set_boards(self, rollout: Rollout, changes: Sequence[tuple[BoardRun, str, str]]) -> None:
        """Record the states of boards, each with the reason.

        They are written before a job that follows is sent, if the store answers.
        """
        now = self._services.clock()
        number = rollout.row.number
        for run, state, why in changes:
            run.row = run.row._replace(state=state, since=now, why=why)
            run.asked_at = run.health_began = 0.0
            run.checks = 0
            run.failing = ""
            if state in steps.ENDED:
                log.info("%s: rollout %d: %s %s", self._name_of(run.row.board), number, state, why)
        if changes:
            self._write_boards(rollout, [run for run, _, _ in changes])

    def _write_boards(self, rollout: Rollout, runs: Sequence[BoardRun]) -> None:
        number, epoch = rollout.row.number, rollout.row.epoch
        rows = {run.row.board: run.row for run in runs}
        changes = {board_id: (row.state, row.since, row.why) for board_id, row in rows.items()}
        for run in runs:
            run.is_written = False
        rollout.writes += 1
        operation = self._queue.run(
            lambda store: store.rollout_rows.set_boards(number, epoch, changes)
        )
        operation.when_done(lambda _: self._on_written(rollout, operation, rows))

    def _save_position(self, rollout: Rollout) -> None:
        plan = {**rollout.row.plan, "position": list(rollout.position)}
        rollout.row = rollout.row._replace(plan=plan)
        self._update(rollout, plan=plan)

    def _end(self, rollout: Rollout, state: str, why: str) -> None:
        number, epoch = rollout.row.number, rollout.row.epoch
        log.info("rollout %d of %s: %s %s", number, rollout.row.group, state, why)
        if state in ("failed", "paused"):
            self.on_stopped(rollout.row.group)
        rollout.row = rollout.row._replace(state="ending")
        values = {"state": state, "why": why, "changed": self._services.clock()}
        if state == "failed" and rollout.options.on_failure == "all":
            roll_back = self._make_rollback(rollout, why)
        else:
            roll_back = lambda _store: (values, None)  # noqa: E731 (the other one is a function)

        def write(store: Store) -> bool:
            return store.end_rollout(number, epoch, *roll_back(store))

        self._queue.run(write).when_done(lambda _: self.reload())

    def _end_if_running(self, rollout: Rollout, state: str, why: str) -> None:
        if rollout.row.state == "running":
            self._end(rollout, state, why)

    def _make_rollback(
        self, rollout: Rollout, why: str
    ) -> Callable[[Store], tuple[dict[str, Any], NextRollout | None]]:
        """Return what brings the boards of a failed rollout back to the generation before.

        Returns:
            A function that returns how the rollout ends, and the rollout that follows.
        """
        row, place, changed = rollout.row, self.place, self._services.clock()
        taken = [
            board_id
            for board_id, run in rollout.runs.items()
            if run.row.state == "proven" or run.row.state in steps.ACTIVE
        ]
        values = {"state": "failed", "changed": changed}

        def make(store: Store) -> tuple[dict[str, Any], NextRollout | None]:
            if not taken:
                return {**values, "why": why}, None
            rows = store.rollout_rows
            before = rows.generations_of([row.previous]).get(row.previous) if row.previous else None
            if before is None:
                return {**values, "why": f"{why}; there was no generation before"}, None
            plan = {
                **row.plan,
                "waves": ["100%"],
                "window": None,  # the way back is not put off
                "options": {
                    **rollback_options(rows, row, before.sha256),
                    "on_failure": "failed",
                    "max_failures": len(taken),
                },
                "boards": taken,
                "position": [0, changed, None],
            }
            waves = dict.fromkeys(taken, 0)
            earlier = rows.newest_done(row.group, besides=before.sha256)
            previous = earlier.generation if earlier else None
            new = NewRollout(row.group, before, previous, row.token, plan, waves, {})
            return {**values, "why": f"{why}; rolled back"}, NextRollout(new, place)

        return make

    def _update(self, rollout: Rollout, **values: Any) -> None:
        number, epoch = rollout.row.number, rollout.row.epoch
        operation = self._queue.run(
            lambda store: store.rollout_rows.update(number, epoch, **values)
        )
        operation.when_done(lambda _: self._on_updated(operation))

    def _on_updated(self, operation: Operation[bool]) -> None:
        if operation.error is not None or not operation.result():
            self.reload()

    def _on_written(
        self, rollout: Rollout, operation: Operation[bool], rows: Mapping[str, RolloutBoardRow]
    ) -> None:
        """Note what the store has; leave a rollout that another server has taken over."""
        rollout.writes -= 1
        if operation.error is not None:
            return  # the store cannot be used: it is written at the next look
        for board_id, row in rows.items():
            run = rollout.runs[board_id]
            run.is_written = run.is_written or run.row == row
        if not operation.result() and self._rollouts.get(rollout.row.number) is rollout:
            del self._rollouts[rollout.row.number]
            self.reload()

    # One board

    def _examine(self, rollout: Rollout, run: BoardRun) -> None:
        """Do what is due for a board that is being switched."""
        if run.is_submitting or self._services.clock() < run.not_before:
            return
        if run.job is not None:
            if run.job.state == "ended":
                job, on_end = run.job, run.on_end
                run.job = run.on_end = None
                if on_end is not None:
                    on_end(job)
            return
        board = self._services.registry.by_id.get(run.row.board)
        has_ended = rollout.row.state not in OPEN_STATES
        if board is None:
            self._set_board(rollout, run, "missed", "it was removed from the fleet")
        elif has_ended and run.row.state == "switching":
            self._take_back(rollout, run, "waiting", "")  # nothing is switched on it yet
        elif not board.online:
            if self._network_steps.has_moved(rollout, run):
                self._set_board(rollout, run, "proven", "it has left, and did not come back here")
            elif has_ended and self._services.clock() - run.row.since >= RETURN_SECONDS:
                self._set_board(rollout, run, "unproven", "it has not come back")
        elif run.row.state == "switching":
            self._send_switch(rollout, run, board)
        elif run.row.state == "returning":
            self._examine_return(rollout, run, board)
        else:
            self._examine_trial(rollout, run, board)

    def _examine_trial(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Look at a board that has the generation, and has restarted or is about to."""
        now = self._services.clock()
        since = board.describe()["connected_since"] or 0.0
        current = desired.read_board_generation(board.reported_facts.get("generation"))
        short = desired.short_id(rollout.row.generation)
        if since <= run.row.since or (current.state, current.generation) == ("trial", short):
            if now - run.asked_at >= RESTART_SECONDS:
                self._restart(rollout, run, board)
        elif rollout.is_network_change:
            self._network_steps.examine(rollout, run, board)
        elif current.is_trying(short):
            self._try_health(rollout, run, board, now - since)
        elif current.reverted == short:
            is_unproven = current.is_unproven and not run.failing
            why = run.failing or _back_text(current.reason)
            self._take_back(rollout, run, "unproven" if is_unproven else "failed", why)
        elif current.has(short):
            self._on_proven(rollout, run, board)
        elif run.attempts < MAX_ATTEMPTS:  # it has not switched
            run.attempts += 1
            self._set_board(rollout, run, "switching", "")
        else:
            self._take_back(rollout, run, "unproven", "it came back without the generation")

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
            if self._services.clock() - run.asked_at >= RESTART_SECONDS:
                self._send_back(rollout, run, board, run.failing)
            return
        if options.health:
            if board.is_kept_busy:  # a cell would wait, and run after the board has gone back
                if seconds >= options.health_timeout + BUSY_SLACK_SECONDS:
                    self._send_back(rollout, run, board, HEALTH_BLOCKED)
            elif not run.health_began:
                run.health_began = self._services.clock()
                self._send_health(rollout, run, board)
            return
        good = options.health_timeout
        if board.is_kept_busy:
            if seconds >= good + BUSY_SLACK_SECONDS:  # it takes no job; it has proven itself alone
                self._on_proven(rollout, run, board)
            return
        # A program may prove itself earlier, by cm.healthy(): looked at after 2, 4, 8, … seconds.
        due = min(2.0 ** (run.checks + 1), good + HEALTH_SLACK_SECONDS * (run.checks + 1))
        if seconds >= due:
            run.checks += 1
            self._send_settle(rollout, run, board, confirm=False)

    def _on_proven(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        facts = {
            **board.reported_facts,
            "generation": f"proven {desired.short_id(rollout.row.generation)}",
        }
        board.reported_facts = facts
        self._queue.run(lambda store: store.mark_board_seen(board.id, facts))
        board.notify_changed()
        self._services.publish_generation(board)
        self._set_board(rollout, run, "proven", "")

    # Jobs

    def _submit(self, rollout: Rollout, run: BoardRun, board: Board, cell: Cell, what: str) -> None:
        """Submit a job of a rollout on one board; ``run.on_end`` is called when it has ended."""
        requester = Requester(rollout.caller, None, rollout.row.token)
        detail = f"{rollout.row.group} {desired.short_id(rollout.row.generation)}: {what}"
        audit = CellAudit(target=board.name, detail=detail, verb="rollout")
        cell = cell._replace(kind="rollout", title=f"{rollout.row.number}: {what}")
        submission = Submission([board], cell, requester, audit)
        run.is_submitting = True
        operation = self._services.dispatch.submit(submission)
        operation.when_done(lambda _: self._on_submitted(run, submission, operation))

    def _on_submitted(
        self, run: BoardRun, submission: Submission, operation: Operation[range]
    ) -> None:
        run.is_submitting = False
        try:
            (job,) = self._services.dispatch.create_jobs(submission, operation.result())
        except ServerError as error:
            log.warning("a job of a rollout was not accepted: %s", error.reason)
            run.on_end = None
            run.asked_at = run.health_began = 0.0
            run.not_before = self._services.clock() + SUBMIT_SECONDS
            return
        run.job = job
        self._services.dispatch.scheduler.launch([job])

    def _stepped(self, first_ops: tuple[FileOp, ...], generate: Any) -> SteppedJobSpec:
        installs = self._services.installs

        def make_generator(board: Board, stored: Any) -> OpGenerator:
            made: OpGenerator = generate(board, stored)
            return made

        return SteppedJobSpec(
            first_ops,
            make_generator,
            lambda board: self._queue.run(lambda store: board_settings.read_secrets(store, board)),
            ack_bytes_for(1, installs.limits),
            installs.limits.manifest_bytes,
        )

    def _send_switch(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Send a board the generation, unless its files have yet to be read from the store."""
        if why := self._refusal_reason(rollout, board.id):
            self._take_back(rollout, run, "waiting", "")
            self._end_if_running(rollout, "paused", why)
            return
        if rollout.is_network_change:
            self._network_steps.switch(rollout, run, board)
            return
        if not rollout.contents and desired.content_sizes(rollout.manifest):
            self._read_contents(rollout)
            return
        firmware, why = self._firmware_for(rollout, board)
        if why:
            self._take_back(rollout, run, "failed", why)
            return
        earlier = _earlier_id(board) if rollout.may_clear else ""
        if earlier and earlier not in rollout.earlier:
            self._read_earlier(rollout, earlier)
            return
        installs, options = self._services.installs, rollout.options
        timeout = max(options.health_timeout, 1.0)
        plan = board_switch.SwitchPlan(
            generation=rollout.row.generation,
            manifest=rollout.manifest,
            contents=rollout.contents,
            good_seconds=0 if options.health else int(timeout),
            limit_seconds=int(LIMIT_FACTOR * timeout + LIMIT_SECONDS),
            settings_bytes=installs.limits.settings_bytes,
            firmware=firmware,
            clears=self._clears(rollout, earlier),
        )

        def generate(board: Board, secrets: board_settings.StoredSecrets) -> OpGenerator:
            side = self._board_side(board, secrets)
            return board_switch.switch(plan, side, self._on_planned(board))

        spec = self._stepped(board_switch.FIRST_OPS, generate)
        # A program that keeps its board busy is ended by a soft reset.
        run_options = RunOptions(fresh=board.is_kept_busy)
        run.on_end = lambda job: self._on_switch_ended(rollout, run, job)
        self._submit(rollout, run, board, Cell(spec.code, run_options, files=spec), "switch")

    def _board_side(
        self, board: Board, secrets: board_settings.StoredSecrets
    ) -> board_switch.BoardSide:
        number = board.reported_facts.get("mpy")
        mpy = number if isinstance(number, int) else 0
        add_bytes = self._services.installs.content_store.make_unshared
        return board_switch.BoardSide(board.name, mpy, secrets, add_bytes)

    def _on_planned(self, board: Board) -> Callable[[board_switch.Switched], None]:
        """Return what stores what a board has after its switch."""

        def store_planned(switched: board_switch.Switched) -> None:
            self._queue.run(
                lambda store: store.installed_packages.store_manifest(board.id, switched.manifest)
            )
            self._queue.run(lambda store: store.secret_rows.set_uses(board.id, switched.uses))

        return store_planned

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

    def _read_contents(self, rollout: Rollout) -> None:
        """Read the files of a generation from the store; once for all boards."""
        generation = rollout.row.generation
        store = self._services.installs.content_store
        operation = self._queue.run(lambda store: store.rollout_rows.contents_of(generation))

        def on_read(_: object) -> None:
            if operation.error is None:
                found = operation.result()
                rollout.contents = {
                    digest: store.make_unshared(data) for digest, data in found.items()
                }

        operation.when_done(on_read)

    def _on_switch_ended(self, rollout: Rollout, run: BoardRun, job: Job) -> None:
        value = job_outcomes.read_value(job)
        board = job.board
        if job.status == "ok" and isinstance(value, dict):
            state = value.get("state")
            if state == "same":
                self._on_proven(rollout, run, board)
            elif state == "busy":
                why = "another generation is on trial there"
                self._set_board(rollout, run, "unproven", why)
                # That ends by itself, mostly soon: it is of a rollout which this one has replaced.
                since = self._services.clock() - steps.RETRY_SECONDS + BUSY_SECONDS
                run.row = run.row._replace(since=since)
            elif state == "cleared":
                self._take_back(rollout, run, "failed", str(value.get("why")))
            else:
                self._set_board(rollout, run, "trial", "")
                if state == "trying":
                    run.row = run.row._replace(since=0.0)  # it has restarted already
                else:
                    self._restart(rollout, run, board)
            return
        if why := self._refusal_reason(rollout, board.id):
            self._take_back(rollout, run, "waiting", "")
            self._end_if_running(rollout, "paused", why)
        elif not job_outcomes.is_broken_off(job):
            self._take_back(
                rollout, run, "failed", job_outcomes.last_line(job.error) or str(job.status)
            )
        elif run.attempts < MAX_ATTEMPTS:
            run.attempts += 1  # nothing has happened, or all of it: it is done again
        else:
            why = f"the switch was broken off: {job_outcomes.last_line(job.error) or job.status}"
            self._take_back(rollout, run, "unproven", why)

    def _restart(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Restart a board, which applies the switch then."""
        self._restart_for(rollout, run, board, desired.short_id(rollout.row.generation))

    def _restart_for(self, rollout: Rollout, run: BoardRun, board: Board, short: str) -> None:
        run.asked_at = self._services.clock()
        run.on_end = lambda _job: None
        code = board_restart.restart_code(short)
        self._submit_restart(rollout, run, board, code, "restart")

    # Boards that could not keep what they had

    def _read_earlier(self, rollout: Rollout, short: str) -> None:
        """Read a generation that boards had before, given by the first digits of its id."""
        contents = self._services.installs.content_store
        operation = self._queue.run(lambda store: _find_earlier(store.rollout_rows, short))

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

    def _clears(self, rollout: Rollout, short: str) -> EarlierGeneration | None:
        """Return what a board may remove; nothing where it has to keep what it has."""
        if not rollout.may_clear:
            return None
        return rollout.earlier.get(short) or EarlierGeneration("", {}, {})

    def _take_back(self, rollout: Rollout, run: BoardRun, state: str, why: str) -> None:
        """Record that a board does not get the generation, once it has what it had before.

        Args:
            rollout: the rollout.
            run: the board in it.
            state: "failed", "unproven" or "waiting".
            why: the reason; "" for "waiting" only.
        """
        if not rollout.may_clear:
            self._set_board(rollout, run, state, why)
            return
        mark = steps.UNPROVEN_MARK if state == "unproven" else ""
        self._set_board(rollout, run, "returning", mark + why)

    def _on_returned(self, rollout: Rollout, run: BoardRun, note: str = "") -> None:
        """Record what a board is that has again what it had before, or cannot get it."""
        why = run.row.why
        if note:
            why = f"{why.removeprefix(steps.UNPROVEN_MARK)}; {note}".removeprefix("; ")
        if not why:
            self._set_board(rollout, run, "waiting", "")
        elif why.startswith(steps.UNPROVEN_MARK):
            self._set_board(rollout, run, "unproven", why.removeprefix(steps.UNPROVEN_MARK))
        else:
            self._set_board(rollout, run, "failed", why)

    def _examine_return(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Send a board again what it had before, if it has removed that.

        No right is asked for: this undoes what the rollout was permitted to do.
        """
        now = self._services.clock()
        since = board.describe()["connected_since"] or 0.0
        current = desired.read_board_generation(board.reported_facts.get("generation"))
        if current.state in ("trial", "trying"):  # nothing was lost: it has switched meanwhile
            self._set_board(rollout, run, "trial", "")
            run.row = run.row._replace(since=0.0)
            return
        if since > run.row.since and current.state != "cleared":
            self._on_returned(rollout, run)
            return
        if now - run.asked_at < RESTART_SECONDS:
            return
        short = _earlier_id(board)
        if short and short not in rollout.earlier:
            self._read_earlier(rollout, short)
            return
        earlier = rollout.earlier.get(short)
        if earlier is None:
            lost = f"the server does not have generation {short} any more"
            self._on_returned(rollout, run, lost if current.state == "cleared" else "")
            return
        limit = self._services.installs.limits.settings_bytes

        def generate(board: Board, secrets: board_settings.StoredSecrets) -> OpGenerator:
            side = self._board_side(board, secrets)
            return board_switch.send_again(earlier, side, limit, self._on_planned(board))

        spec = self._stepped(board_switch.FIRST_OPS, generate)
        run.on_end = lambda job: self._on_sent_again(rollout, run, job, short)
        options = RunOptions(fresh=board.is_kept_busy)
        self._submit(rollout, run, board, Cell(spec.code, options, files=spec), "send again")

    def _on_sent_again(self, rollout: Rollout, run: BoardRun, job: Job, short: str) -> None:
        state = job_outcomes.read_value(job) if job.status == "ok" else None
        current = desired.read_board_generation(job.board.reported_facts.get("generation"))
        # It is switched then, but was asked in vain to restart, or started before that.
        has_old_program = run.asked_at > 0 or current.state == "cleared"
        if state == "trial":
            self._set_board(rollout, run, "trial", "")
        elif state == "switched" or (state == "proven" and has_old_program):
            self._restart_for(rollout, run, job.board, short)
        elif state == "proven":
            self._on_returned(rollout, run)
        elif job_outcomes.is_broken_off(job):
            run.not_before = self._services.clock() + SUBMIT_SECONDS
        else:
            why = job_outcomes.last_line(job.error) or str(job.status)
            note = f"what it had before could not be sent again: {why}"
            self._on_returned(rollout, run, note)

    def _send_back(self, rollout: Rollout, run: BoardRun, board: Board, why: str) -> None:
        """Restart a board whose trial has failed, so that it goes back; then it has failed."""
        run.failing = why
        run.asked_at = self._services.clock()
        run.on_end = lambda job: self._on_sent_back(rollout, run, job)
        code = board_restart.restart_code(desired.short_id(rollout.row.generation), why)
        self._submit_restart(rollout, run, board, code, "go back")

    def _submit_restart(
        self, rollout: Rollout, run: BoardRun, board: Board, code: bytes, what: str
    ) -> None:
        options = RunOptions(timeout=RESTART_TIMEOUT, fresh=board.is_kept_busy)
        self._submit(rollout, run, board, Cell(code, options, restarts=True), what)

    def _on_sent_back(self, rollout: Rollout, run: BoardRun, job: Job) -> None:
        """Look whether a board goes back, or has proven itself meanwhile by ``cm.healthy()``."""
        if job.status != "ok":
            return  # it is looked at again: what the board reports says whether it has gone back
        if board_restart.read_state(job.value.text()) == "proven":
            self._on_proven(rollout, run, job.board)
        else:
            self._take_back(rollout, run, "failed", run.failing)

    def _send_health(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        options = rollout.options
        code = options.health_code or options.health
        run_options = RunOptions(timeout=options.health_timeout)
        cell = Cell(code.encode(), run_options, awaits=bool(options.health_code))
        run.on_end = lambda job: self._on_health_ended(rollout, run, job)
        self._submit(rollout, run, board, cell, "health")

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
        add_bytes = self._services.installs.content_store.make_unshared

        def generate(_board: Board, _stored: Any) -> OpGenerator:
            return board_switch.settle(generation, add_bytes, confirm=confirm)

        spec = self._stepped(board_switch.SETTLE_OPS, generate)
        run.on_end = lambda job: self._on_settled(rollout, run, job)
        self._submit(rollout, run, board, Cell(spec.code, files=spec), "confirm")

    def _on_settled(self, rollout: Rollout, run: BoardRun, job: Job) -> None:
        current = desired.read_board_generation(job_outcomes.read_value(job))
        if current.has(desired.short_id(rollout.row.generation)):
            self._on_proven(rollout, run, job.board)
        elif run.health_began:
            run.health_began = 0.0  # the confirmation did not arrive


@dataclass(frozen=True)
class _Loaded:
    """A rollout as it is read from the store."""

    row: RolloutRow
    boards: list[RolloutBoardRow]
    manifest: Mapping[str, Any] | None


@dataclass(frozen=True)
class _LoadedAll:
    """The rollouts of this server, and all groups, unless they are as they were."""

    rollouts: list[_Loaded]
    version: tuple[int, float]
    groups: list[GroupState] | None


def _load(
    rows: RolloutRows,
    owner: str,
    live: Collection[str] | None,
    known_version: tuple[int, float] | None,
) -> _LoadedAll:
    open_rows = rows.claim(owner, live)
    made = rows.generations_of({row.generation for row in open_rows})
    loaded = [
        _Loaded(
            row,
            rows.boards_of(row.number),
            made[row.generation].manifest if row.generation in made else None,
        )
        for row in open_rows
    ]
    version = rows.version()
    return _LoadedAll(loaded, version, rows.groups() if version != known_version else None)


def _earlier_id(board: Board) -> str:
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


def rollback_options(rows: RolloutRows, row: RolloutRow, generation: str) -> dict[str, Any]:
    """Return the options with which a group is brought back to an earlier generation.

    Its health cell is that of the rollout which has proven it: the newer one may ask for what the
    earlier program does not have.

    Args:
        rows: the store's table.
        row: the group's newest rollout.
        generation: the id of the earlier generation.
    """
    options = dict(row.plan["options"])
    before = rows.newest_done_of(row.group, generation)
    if before is not None:
        for name in ("health", "health_code", "health_timeout"):
            if name in before.plan["options"]:
                options[name] = before.plan["options"][name]
            else:
                options.pop(name, None)
    return options


def _position(row: RolloutRow) -> Position:
    wave, started, settled = row.plan["position"]
    return Position(int(wave), float(started), settled)


def _back_text(reason: str) -> str:
    """Return why a board went back, of what it reports."""
    text = reason.lstrip("?")
    return text if text.startswith("health: ") else f"it went back: {text}"
