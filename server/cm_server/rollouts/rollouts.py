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
from cm_server import cleanup
from cm_server.auth import access
from cm_server.auth.tokens import Tokens
from cm_server.installs.services import InstallServices
from cm_server.jobs.dispatch import Dispatch
from cm_server.jobs.model import Board, TimerHandle
from cm_server.jobs.registry import Registry
from cm_server.store.rollout_rows import (
    OPEN_STATES,
    NewRollout,
    RolloutBoardRow,
    RolloutPlace,
)
from cm_server.store.store import Store
from cm_server.store.store_queue import Operation

from . import desired, firmware_ops, steps
from .client_steps import ClientSteps
from .client_switch import is_replaceable
from .joining import JoiningBoards, access_reason
from .network_steps import NetworkSteps
from .return_steps import ReturnSteps
from .rollout_jobs import RolloutJobs
from .rollout_loading import LoadedRollouts, load_rollouts, make_rollout, read_position
from .rollout_state import BoardRun, Rollout, RolloutChanges
from .steps import BoardProgress
from .switch_steps import SwitchSteps
from .way_back import make_rollback

log = logging.getLogger("cm_server")

TICK_SECONDS: Final = 0.5  # between two looks at rollouts
ACTIVE_TICK_SECONDS: Final = 0.1  # the same while boards are being switched
MAX_SHARE: Final = 0.05  # of the time that looks may take then; rollouts of many boards take more
CLAIM_SECONDS: Final = 5.0  # between two looks whether another server's rollouts are orphaned
JOIN_SECONDS: Final = 2.0  # between two looks whether boards have joined a group
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
        jobs = RolloutJobs(services.installs, services.dispatch, services.clock)
        changes = RolloutChanges(
            self._set_board,
            self._set_proven,
            self._pause_if_running,
            services.registry.by_id.get,
            self._refusal_reason,
        )
        self._return_steps = ReturnSteps(jobs, changes)
        self._client_steps = ClientSteps(jobs, changes, self._return_steps)
        self._switch_steps = SwitchSteps(jobs, changes, self._return_steps)
        self._network_steps = NetworkSteps(jobs, changes)

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
        operation = self._queue.run(
            lambda store: load_rollouts(store.rollout_rows, owner, live, known)
        )
        operation.when_done(lambda _: self._on_loaded(operation))

    def _on_loaded(self, operation: Operation[LoadedRollouts]) -> None:
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
                known.position = read_position(each.row)
            elif each.manifest is not None:
                self._rollouts[number] = make_rollout(each, self._name_of)
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
        self._set_boards(rollout, [(run, self._first_state(rollout, run), "") for run in begun])
        if why:
            self._end(rollout, "paused", why)

    def _first_state(self, rollout: Rollout, run: BoardRun) -> str:
        """Return the state of a board that begins."""
        board = self._services.registry.by_id.get(run.row.board)
        gets_client = rollout.brings_client and board is not None and is_replaceable(board)
        return "upgrading" if gets_client else "switching"

    def _is_switched_elsewhere(self, rollout: Rollout, board_id: str) -> bool:
        """Return whether another rollout is just switching a board."""
        for other in self._rollouts.values():
            run = other.runs.get(board_id)
            if other is not rollout and run is not None and run.row.state in steps.ACTIVE:
                is_generation = not (other.is_network_change or rollout.is_network_change)
                return not is_generation or run.row.state in steps.UPGRADING
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
            run.is_resumed = False
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
            roll_back = make_rollback(rollout, why, self.place, self._services.clock())
        else:
            roll_back = lambda _store: (values, None)  # noqa: E731 (the other one is a function)

        def write(store: Store) -> bool:
            return store.end_rollout(number, epoch, *roll_back(store))

        self._queue.run(write).when_done(lambda _: self.reload())

    def _pause_if_running(self, rollout: Rollout, why: str) -> None:
        if rollout.row.state == "running":
            self._end(rollout, "paused", why)

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
        elif has_ended and run.row.state in ("upgrading", "switching"):
            # Nothing is switched on it yet.
            self._return_steps.take_back(rollout, run, "waiting", "")
        elif not board.online:
            if self._network_steps.has_moved(rollout, run):
                self._set_board(rollout, run, "proven", "it has left, and did not come back here")
            elif has_ended and self._services.clock() - run.row.since >= RETURN_SECONDS:
                self._set_board(rollout, run, "unproven", "it has not come back")
        elif run.row.state in ("upgrading", "switching"):
            self._switch(rollout, run, board)
        elif run.row.state == "starting":
            self._client_steps.examine(rollout, run, board)
        elif run.row.state == "returning":
            self._return_steps.examine(rollout, run, board)
        elif rollout.is_network_change:
            self._network_steps.examine(rollout, run, board)
        else:
            self._switch_steps.examine(rollout, run, board)

    def _switch(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Give a board what the rollout brings, if its token still permits that."""
        if why := self._refusal_reason(rollout, board.id):
            self._return_steps.take_back(rollout, run, "waiting", "")
            self._pause_if_running(rollout, why)
        elif rollout.is_network_change:
            self._network_steps.switch(rollout, run, board)
        elif run.row.state == "upgrading":
            self._client_steps.examine(rollout, run, board)
        else:
            self._switch_steps.switch(rollout, run, board)

    def _set_proven(self, rollout: Rollout, run: BoardRun, board: Board) -> None:
        """Record that a board has proven the generation, also as what it reports."""
        facts = {
            **board.reported_facts,
            "generation": f"proven {desired.short_id(rollout.row.generation)}",
        }
        board.reported_facts = facts
        self._queue.run(lambda store: store.mark_board_seen(board.id, facts))
        board.notify_changed()
        self._services.publish_generation(board)
        self._set_board(rollout, run, "proven", "")
