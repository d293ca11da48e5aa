"""A rollout and its boards, as the server that carries it out knows them; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudmanager.protocol.firmware_images import AppImage
from cm_server.installs.content_store import Content
from cm_server.jobs.model import Board, Job
from cm_server.store.rollout_rows import RolloutBoardRow, RolloutRow

from . import network_change, steps
from .board_switch import EarlierGeneration
from .steps import Position, RolloutOptions
from .windows import Window


@dataclass
class BoardRun:
    """A board in a rollout, while this server carries it out.

    Attributes:
        row: as it is in the store.
        begun: whether it was given the generation, or a part of it, before.
        job: its job; None if it has none.
        on_end: called with the job when it has ended.
        is_submitting: whether a job of it is being committed.
        attempts: how often a switch has ended without a result.
        asked_at: when it was asked to restart.
        checks: how often its trial was looked at.
        health_began: when its health cell was sent in this trial; 0: it was not.
        failing: why its trial has failed, until it has gone back; "" if it has not.
        is_written: whether the store has its row.
        not_before: when the next job may be submitted, if the last one was not accepted.
        returns: how often it came back with the network settings that it had before.
        is_resumed: whether no server carried it out for a while, in its present state.
    """

    row: RolloutBoardRow
    begun: bool = False
    job: Job | None = None
    on_end: Callable[[Job], None] | None = None
    is_submitting: bool = False
    attempts: int = 0
    asked_at: float = 0.0
    checks: int = 0
    health_began: float = 0.0
    failing: str = ""
    is_written: bool = True
    not_before: float = 0.0
    returns: int = 0
    is_resumed: bool = False


@dataclass
class Rollout:
    """A rollout that this server carries out.

    Attributes:
        row: as it is in the store.
        caller: the name of the token that asked for it.
        options: how it proceeds.
        position: how far it has come.
        manifest: of its generation.
        runs: its boards, by id, in the order in which they begin.
        window: when boards may begin; None: at any time.
        contents: the files of the generation, by SHA-256.
        images: its firmware, by SHA-256, that was looked at.
        earlier: the generations that boards had before, by the first digits of their ids; None: the
            server does not have it.
        writes: how many changes of its boards are being written.
    """

    row: RolloutRow
    caller: str
    options: RolloutOptions
    position: Position
    manifest: Mapping[str, Any]
    runs: dict[str, BoardRun]
    window: Window | None = None
    contents: dict[str, Content] = field(default_factory=dict)
    images: dict[str, AppImage] = field(default_factory=dict)
    earlier: dict[str, EarlierGeneration | None] = field(default_factory=dict)
    writes: int = 0

    @property
    def unwritten(self) -> list[BoardRun]:
        """The boards whose rows the store does not have yet."""
        return [run for run in self.runs.values() if not run.is_written]

    @property
    def is_network_change(self) -> bool:
        """Whether it changes the network settings of boards, instead of their generation."""
        return self.row.group.startswith(network_change.GROUP_PREFIX)

    @property
    def brings_client(self) -> bool:
        """Whether boards get the client of the generation first; on the way back they keep it."""
        return bool(self.row.plan.get("client")) and "client" in self.manifest

    @property
    def may_clear(self) -> bool:
        """Whether boards that cannot hold both generations remove the earlier one first."""
        return self.row.plan.get("rollback") == "network"

    @property
    def is_active(self) -> bool:
        """Whether a board of it is being switched."""
        return any(run.row.state in steps.ACTIVE for run in self.runs.values())


@dataclass(frozen=True)
class RolloutChanges:
    """How the steps of a board change its rollout.

    Attributes:
        set_board: records the state of a board, and why it has it.
        set_proven: records that a board has proven what the rollout brings.
        pause: pauses a rollout that runs, with the reason.
        find_board: returns the board with an id; None if it is not enrolled any more.
        refusal_reason: returns why the token of a rollout may not change a board, given by its id;
            "" if it may.
    """

    set_board: Callable[[Rollout, BoardRun, str, str], None]
    set_proven: Callable[[Rollout, BoardRun, Board], None]
    pause: Callable[[Rollout, str], None]
    find_board: Callable[[str], Board | None]
    refusal_reason: Callable[[Rollout, str], str]
