"""What the dashboard shows of rollouts: waves, boards by state, failures, and what may be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.text import fold_names, sanitize_text
from cloudmanager.results.fleet_plan import OPEN_STATES, STATE_TEXTS, rollout_change

_MAX_LINES: Final = 12  # groups of boards with the same state and reason, of one rollout
_MAX_TEXT: Final = 300  # characters of one of them
#: States of boards as the bars show them -> the states of a rollout's boards.
_BAR_STATES: Final = {
    "proven": ("proven",),
    "failed": ("failed", "missed"),
    "active": ("upgrading", "starting", "switching", "trial", "returning"),
    "waiting": ("waiting", "unproven"),
}


def rollout_views(rollouts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the page shows of rollouts, those in progress first."""
    views = [_rollout_view(rollout) for rollout in rollouts]
    return sorted(views, key=lambda view: (not view["is_open"], -view["number"]))


def _rollout_view(rollout: Mapping[str, Any]) -> dict[str, Any]:
    state = str(rollout["state"])
    is_open = state in OPEN_STATES
    joined = ", boards that joined" if rollout.get("joined") else ""
    return {
        "number": rollout["rollout"],
        "group": sanitize_text(rollout["group"]),
        "name": rollout["group"],
        "change": sanitize_text(rollout_change(rollout)) + joined,
        "state": state,
        "why": sanitize_text(rollout["why"])[:_MAX_TEXT],
        "is_open": is_open,
        "wave": rollout["wave"],
        "waves": _waves(rollout),
        "lines": _lines(rollout["boards"], is_open=is_open),
        "verbs": _verbs(rollout) if rollout["may_change"] else [],
    }


def _waves(rollout: Mapping[str, Any]) -> list[dict[str, int]]:
    """Return for each wave how many boards are in which state."""
    waves: list[dict[str, int]] = [dict.fromkeys(_BAR_STATES, 0) for _ in rollout["waves"]]
    for board in rollout["boards"]:
        number = int(board["wave"]) - 1
        for name, states in _BAR_STATES.items():
            if board["state"] in states and number < len(waves):
                waves[number][name] += 1
    return waves


def _lines(boards: Sequence[Mapping[str, Any]], *, is_open: bool) -> list[dict[str, str]]:
    """Return a line for the boards that have the same state and reason, failures first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for board in boards:
        groups.setdefault((board["state"], board["why"]), []).append(board["board"])
    order = list(STATE_TEXTS)
    lines = []
    for (state, why), names in sorted(groups.items(), key=lambda each: order.index(each[0][0])):
        text = STATE_TEXTS[state] if is_open or state != "waiting" else "not begun"
        reason = f": {why}" if why else ""
        line = f"{fold_names(names)}{reason}"
        lines.append(
            {
                "state": state,
                "count": f"{len(names):,}",
                "text": text,
                "boards": sanitize_text(line)[:_MAX_TEXT],
            }
        )
    return lines[:_MAX_LINES]


def _verbs(rollout: Mapping[str, Any]) -> list[list[str]]:
    """Return what may be done with a rollout now: verbs, and the labels of their buttons."""
    verbs = {"running": ["pause", "abort"], "paused": ["resume", "abort"]}.get(
        str(rollout["state"]), []
    )
    if rollout["previous"] is not None and not rollout["what"]:
        verbs = [*verbs, "rollback"]
    return [[verb, VERBS[verb][0]] for verb in verbs]


#: Verb of the page -> the label of its button, and what it does with a group's rollout.
VERBS: Final[Mapping[str, tuple[str, Callable[[Fleet, str], object]]]] = {
    "pause": ("Pause", lambda fleet, group: fleet.pause_rollout(group)),
    "resume": ("Resume", lambda fleet, group: fleet.resume_rollout(group)),
    "abort": ("Abort", lambda fleet, group: fleet.abort_rollout(group)),
    "rollback": ("Roll back", lambda fleet, group: fleet.roll_back(group=group)),
}
