"""Read the rollouts of a server from the store, and make what it carries them out with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cloudmanager.protocol.targets import natural_key
from cm_server.store.rollout_rows import GroupState, RolloutBoardRow, RolloutRow, RolloutRows

from .rollout_state import BoardRun, Rollout
from .steps import Position, RolloutOptions
from .windows import read_window


@dataclass(frozen=True)
class LoadedRollout:
    """A rollout as it is read from the store."""

    row: RolloutRow
    boards: list[RolloutBoardRow]
    manifest: Mapping[str, Any] | None


@dataclass(frozen=True)
class LoadedRollouts:
    """The rollouts of this server, and all groups, unless they are as they were."""

    rollouts: list[LoadedRollout]
    version: tuple[int, float]
    groups: list[GroupState] | None


def load_rollouts(
    rows: RolloutRows,
    owner: str,
    live: Collection[str] | None,
    known_version: tuple[int, float] | None,
) -> LoadedRollouts:
    """Read the rollouts of this server, and take over those of servers that are gone.

    Args:
        rows: the store's table.
        owner: the id of this server.
        live: the ids of the servers that are there; None: this is the only one.
        known_version: of the store's rollouts, as last read; None: they were not.
    """
    open_rows = rows.claim(owner, live)
    made = rows.generations_of({row.generation for row in open_rows})
    loaded = [
        LoadedRollout(
            row,
            rows.boards_of(row.number),
            made[row.generation].manifest if row.generation in made else None,
        )
        for row in open_rows
    ]
    version = rows.version()
    return LoadedRollouts(loaded, version, rows.groups() if version != known_version else None)


def make_rollout(loaded: LoadedRollout, name_of: Callable[[str], str]) -> Rollout:
    """Return a rollout as the server carries it out.

    Args:
        loaded: as it was read.
        name_of: returns the name of a board, given its id; "" if it is not enrolled any more.
    """
    row = loaded.row
    plan = row.plan
    names = {each.board: name_of(each.board) for each in loaded.boards}
    ordered = sorted(loaded.boards, key=lambda each: (each.wave, natural_key(names[each.board])))
    runs = {
        each.board: BoardRun(each, begun=each.state != "waiting", is_resumed=True)
        for each in ordered
    }
    return Rollout(
        row,
        str(plan.get("caller", "")),
        RolloutOptions(**plan["options"]),
        read_position(row),
        loaded.manifest or {},
        runs,
        read_window(plan.get("window")),
    )


def read_position(row: RolloutRow) -> Position:
    """Return how far a rollout has come, of its row."""
    wave, started, settled = row.plan["position"]
    return Position(int(wave), float(started), settled)
