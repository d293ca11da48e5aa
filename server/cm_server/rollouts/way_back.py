"""The way back of a group to an earlier generation, as a rollout that follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cm_server.store.rollout_rows import (
    NewRollout,
    NextRollout,
    RolloutPlace,
    RolloutRow,
    RolloutRows,
)
from cm_server.store.store import Store

from . import steps
from .rollout_state import Rollout


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


def make_rollback(
    rollout: Rollout, why: str, place: RolloutPlace, changed: float
) -> Callable[[Store], tuple[dict[str, Any], NextRollout | None]]:
    """Return what brings the boards of a failed rollout back to the generation before.

    Args:
        rollout: the rollout.
        why: why it has failed.
        place: where the rollout that follows is carried out and stored.
        changed: the time, in seconds since 1970.

    Returns:
        A function that returns how the rollout ends, and the rollout that follows.
    """
    row = rollout.row
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
            "client": False,  # boards keep the client that they have
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
