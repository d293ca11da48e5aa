"""What applying ``fleet.toml`` would change, and how rollouts are; no I/O.

Boards and callers are not trusted: all texts pass ``sanitize_text``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloudmanager.protocol.spans import format_duration
from cloudmanager.protocol.text import fold_names, sanitize_text

FORMAT: Final = 2  # of the file that a plan is saved in
_MAX_PATHS: Final = 8  # that the text lists of a change


class FleetPlan:
    """What would change.

    Args:
        request: what boards should be, as the server takes it.
        reply: what the server says that would change.
        sources: SHA-256 -> path of the local file with that content.
        lock_path: where the lock file is written; "" for nowhere.

    Attributes:
        request: see above.
        reply: see above.
        sources: see above.
        lock_path: see above.
    """

    def __init__(
        self,
        request: Mapping[str, Any],
        reply: Mapping[str, Any],
        sources: Mapping[str, str],
        lock_path: str = "",
    ) -> None:
        self.request, self.reply = dict(request), dict(reply)
        self.sources, self.lock_path = dict(sources), lock_path

    @property
    def changed(self) -> int:
        """How many boards would change."""
        return int(self.reply["changed"])

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON, without what it was made from."""
        return self.reply

    def dump(self) -> str:
        """Return the text of a file, from which ``load`` makes the same plan."""
        body = {
            "format": FORMAT,
            "request": self.request,
            "plan": self.reply,
            "sources": self.sources,
            "lock": self.lock_path,
        }
        return json.dumps(body, indent=1) + "\n"

    @classmethod
    def load(cls, text: str) -> FleetPlan:
        """Return the plan in a file.

        Raises:
            ValueError: the text is no plan.
        """
        try:
            body = json.loads(text)
            if body["format"] != FORMAT:
                raise ValueError("it has another format")
            plan = cls(body["request"], body["plan"], body["sources"], body["lock"])
            int(plan.reply["changed"])
            str(plan.reply["fingerprint"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"this is no plan of mbm fleet-plan: {error}") from error
        return plan

    def __repr__(self) -> str:
        """Return the plan as text, folded by board."""
        return plan_text(self.reply)


def plan_text(plan: Mapping[str, Any]) -> str:
    """Return a plan as text."""
    lines: list[str] = []
    for group in plan["groups"]:
        lines += _group_lines(group)
        if rollout := plan["open"].get(group["group"]):
            lines.append(_open_line(group, rollout))
    for group, names in plan["released"].items():
        lines.append(f"{fold_names(names)}: no longer in {group}; nothing is removed there")
    if plan["gone"]:
        lines.append(f"not in this file: {', '.join(plan['gone'])}; their boards stay as they are")
    return sanitize_text("\n".join(lines))


def _open_line(group: Mapping[str, Any], rollout: Mapping[str, Any]) -> str:
    """Return a line about a rollout of the same group that has not ended."""
    number, state = rollout["rollout"], rollout["state"]
    if rollout["generation"] == group["generation"]:
        return f"  rollout {number} of this generation is {state}"
    text = f"  rollout {number} of {rollout['generation'][:12]} is {state}"
    return f"{text}; applying this replaces it" if group["changed"] else text


def _group_lines(group: Mapping[str, Any]) -> list[str]:
    boards, changed = group["boards"], group["changed"]
    count = f"{len(boards)} board{'' if len(boards) == 1 else 's'}"
    head = f"{group['group']}  {group['generation'][:12]}  {count}"
    if not boards:
        return [f"{head}: its target matches no board"]
    if not changed:
        return [f"{head}, as they should be"]
    refused = sum(len(change["boards"]) for change in group["changes"] if change["error"])
    to_change = f"{len(changed)} to change{f' ({refused} cannot be)' if refused else ''}"
    lines = [f"{head}, {to_change}, {size_text(group['bytes'])} to send at most"]
    for change in group["changes"]:
        lines += _change_lines(change)
    least = group["seconds_at_least"]
    took = f", at least {format_duration(least)}" if least else ""
    lines.append(f"  {waves_text(group['waves'])}{took}")
    if group.get("window"):
        lines.append(f"  {window_text(group['window'])}")
    if group["away"]:
        lines.append(f"  not connected now: {fold_names(group['away'])}")
    if group["pinned"]:
        lines.append(f"  held back: {fold_names(group['pinned'])}")
    lines += [f"  note: {note}" for note in group["notes"]]
    return lines


def window_text(window: Mapping[str, Any]) -> str:
    """Return when boards may begin, as the server describes it."""
    now = "open now; " if window["open"] else ""
    return f"{now}next window: {window['text']}"


def waves_text(sizes: Sequence[int]) -> str:
    """Return how many boards each wave has, of how many are reached at the end of each."""
    counts = [f"{size - before}" for before, size in zip([0, *sizes], sizes, strict=False)]
    if len(counts) < 2:
        return "all in one wave"
    return f"waves of {', '.join(counts[:-1])} and {counts[-1]} boards"


def _change_lines(change: Mapping[str, Any]) -> list[str]:
    lines = [f"  {fold_names(change['boards'])}"]
    if change["error"]:
        return [*lines, f"    cannot be changed: {change['error']}"]
    if change.get("client"):
        lines.append(f"    client {change['client']} ({size_text(change['client_bytes'])})")
    if change.get("firmware"):
        lines.append(f"    firmware {change['firmware']}")
    if change["files"]:
        paths = [path for path, _ in change["put"]]
        lines.append(f"    write {_listed(paths, change['files'])} ({size_text(change['bytes'])})")
    if change["removed"]:
        lines.append(f"    remove {_listed(change['removed'], len(change['removed']))}")
    if change["packages"]:
        lines.append(f"    install {', '.join(change['packages'])}")
    if change["packages_removed"]:
        lines.append(f"    uninstall {', '.join(change['packages_removed'])}")
    if change["settings"]:
        lines.append(f"    set {', '.join(change['settings'])}")
    if change.get("settings_removed"):
        lines.append(f"    remove from the settings {', '.join(change['settings_removed'])}")
    return lines if len(lines) > 1 else [*lines, "    restart, and prove itself"]


def _listed(paths: Sequence[str], count: int) -> str:
    shown = ", ".join(paths[:_MAX_PATHS])
    more = count - min(len(paths), _MAX_PATHS)
    return f"{shown} and {more} more" if more else shown


def size_text(size: int) -> str:
    """Return a number of bytes in its largest unit."""
    for unit, factor in (("MB", 1024 * 1024), ("KB", 1024)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


#: How the states of boards in a rollout are shown, in this order.
STATE_TEXTS: Final = {
    "failed": "failed",
    "unproven": "came back unproven; tried again",
    "trial": "on trial",
    "switching": "being switched",
    "starting": "starting its new client",
    "upgrading": "being sent its new client",
    "returning": "being sent its earlier generation again",
    "waiting": "waiting",
    "missed": "missed",
    "proven": "proven",
}


#: States of a rollout that goes on, or may go on: its boards wait for something.
OPEN_STATES: Final = ("running", "paused")


class RolloutList(list[dict[str, Any]]):
    """The newest rollout of each group, as the server describes it."""

    def __repr__(self) -> str:
        """Return them as text: which boards are in which state, and why."""
        return rollouts_text(self)


def rollouts_text(rollouts: Sequence[Mapping[str, Any]]) -> str:
    """Return the newest rollout of each group as text; a sentence if there is none."""
    if not rollouts:
        return "There is no rollout. `mbm fleet-apply fleet.toml` begins one."
    lines: list[str] = []
    for rollout in rollouts:
        lines.append(rollout_head(rollout))
        lines += _board_lines(rollout["boards"], is_open=rollout["state"] in OPEN_STATES)
        for key, text in (("have", "have it already"), ("lack", "not in this rollout")):
            if names := rollout["others"][key]:
                lines.append(f"  {len(names):>5}  {text}  {fold_names(names)}")
    return sanitize_text("\n".join(lines))


def rollout_head(rollout: Mapping[str, Any]) -> str:
    """Return a line about a rollout: its group, its generation and its state."""
    state = rollout["state"]
    if state == "running" and rollout.get("waves"):
        state += f", wave {rollout['wave']} of {len(rollout['waves'])}"
    reason = rollout["why"]
    by_caller = reason.startswith("by ")  # "paused by ann", but "failed: 2 failed, ..."
    why = f" {reason}" if by_caller else f": {reason}" if reason else ""
    number = f"rollout {rollout['rollout']}"
    if rollout.get("window") and rollout["state"] == "running":
        state += f", {window_text(rollout['window'])}"
    joined = " of boards that joined" if rollout.get("joined") else ""
    return f"{rollout['group']}  {rollout_change(rollout)}  {number}{joined}  {state}{why}"


def rollout_change(rollout: Mapping[str, Any]) -> str:
    """Return what a rollout brings to boards: its generation, or other network settings."""
    return str(rollout["what"] or rollout["generation"][:12])


def _board_lines(boards: Sequence[Mapping[str, Any]], *, is_open: bool) -> list[str]:
    """Return a line for the boards that have the same state and reason."""
    texts = STATE_TEXTS if is_open else {**STATE_TEXTS, "waiting": "not begun"}
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for board in boards:
        is_away = is_open and board["state"] in ("waiting", "unproven") and not board["online"]
        groups.setdefault((board["state"], board["why"], is_away), []).append(board["board"])
    order = list(STATE_TEXTS)
    rows = []
    for (state, why, is_away), names in sorted(
        groups.items(), key=lambda each: order.index(each[0][0])
    ):
        text = texts[state] + (", not connected" if is_away else "")
        reason = f": {why}" if why else ""
        rows.append((len(names), text, f"{fold_names(names)}{reason}"))
    width = max((len(text) for _, text, _ in rows), default=0)
    return [f"  {count:>5}  {text:<{width}}  {rest}" for count, text, rest in rows]


class StartedRollouts(dict[str, Any]):
    """What ``Fleet.apply`` has begun: the server's reply, as text in notebooks."""

    def __repr__(self) -> str:
        """Return a sentence for each group; which boards change is in the plan."""
        return started_text(self, "fleet.rollouts()") or "All boards are as they should be."


def started_text(reply: Mapping[str, Any], shown_by: str) -> str:
    """Return which rollouts have begun, and which did the same already; "" for none.

    Args:
        reply: of the server.
        shown_by: what shows them.
    """
    lines = [
        f"{group}: rollout {number} {text}; {shown_by} shows it."
        for key, text in (("rollouts", "has begun"), ("in_progress", "does this already"))
        for group, number in reply[key].items()
    ]
    return sanitize_text("\n".join(lines))


def rollback_text(reply: Mapping[str, Any]) -> str:
    """Return what a rollback changes, of the server's reply."""
    group, generation, boards = reply["group"], reply["generation"][:12], reply["boards"]
    if not boards:
        return sanitize_text(f"{group}: all boards have {generation} already.")
    count = f"{len(boards)} board{'' if len(boards) == 1 else 's'}"
    head = f"{group}  {generation}  {count} to change"
    return sanitize_text(f"{head}\n  {fold_names(boards)}\n  {waves_text(reply['waves'])}")


def drift_text(drift: Mapping[str, Sequence[str]]) -> str:
    """Return what differs on boards, folded: boards with the same differences share a block."""
    if not drift:
        return "No rollout has proven a generation on a board."
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, differences in drift.items():
        groups.setdefault(tuple(differences), []).append(name)
    lines = []
    for differences, names in groups.items():
        if differences:
            lines += [fold_names(names), *(f"  {each}" for each in differences)]
    if as_they_should := groups.get(()):
        lines.append(f"{fold_names(as_they_should)}: as they should be")
    return sanitize_text("\n".join(lines))


def replacement_text(done: Mapping[str, Any], status: str) -> str:
    """Return what a new board is that has replaced a dead one.

    Args:
        done: what ``Fleet.replace`` returns.
        status: what shows rollouts.
    """
    name = done["name"]
    lines = [f"{done['was']} is {name} now; the old {name} is no longer valid."]
    if done["waiting_jobs"]:
        jobs = "1 job waits" if done["waiting_jobs"] == 1 else f"{done['waiting_jobs']} jobs wait"
        lines.append(f"{jobs} for it.")
    if done["note"]:
        lines.append(f"It does not get what {done['group']} has: {done['note']}.")
    elif done["rollout"] is not None:
        rollout = f"Rollout {done['rollout']} brings it to what {done['group']} has"
        lines.append(f"{rollout}; {status} shows it.")
    return sanitize_text("\n".join(lines))
