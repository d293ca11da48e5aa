"""The verbs of ``mbm`` about desired state, from ``fleet-plan`` to ``fleet-history``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.text_files import read_text
from cloudmanager.display.terminal import print_error, print_text
from cloudmanager.display.text_tables import format_table
from cloudmanager.results.fleet_plan import (
    FleetPlan,
    drift_text,
    rollback_text,
    rollout_change,
    rollout_head,
    rollouts_text,
    started_text,
)
from cloudmanager.results.rows import format_time, shorten

from .commands import FAILED, OK, USAGE, AddVerb, print_json, print_outcome

CHANGES: Final = 4  # exit status of --check where something would change; 2 means wrong usage
_POLL_SECONDS: Final = 0.5  # between two looks at rollouts that are watched
_FILE_HELP: Final = "the file, such as fleet.toml"
_GROUP_HELP: Final = "the group (default: all)"


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    plan = add_verb("fleet-plan", fleet_plan, "show what applying fleet.toml would change")
    plan.add_argument("path", metavar="FILE", help=_FILE_HELP)
    plan.add_argument("-o", dest="output", metavar="PLAN", help="save the plan for fleet-apply")
    plan.add_argument(
        "--check", action="store_true", help="exit with status 4 if something would change"
    )
    apply = add_verb("fleet-apply", fleet_apply, "bring boards to what fleet.toml, or a plan, says")
    apply.add_argument("path", metavar="FILE", help=f"{_FILE_HELP}, or a saved plan")
    apply.add_argument("--yes", action="store_true", help="do not ask")
    apply.add_argument("--watch", action="store_true", help="show what happens until it has ended")
    status = add_verb("fleet-status", fleet_status, "show the newest rollout of each group")
    status.add_argument(
        "--watch", action="store_true", help="show what happens until all have ended"
    )
    for name, run, text in (
        ("fleet-pause", fleet_pause, "pause rollouts; boards that are being switched finish"),
        ("fleet-resume", fleet_resume, "let paused rollouts go on"),
        ("fleet-abort", fleet_abort, "end rollouts; boards that are being switched finish"),
    ):
        add_verb(name, run, text).add_argument(
            "group", nargs="?", metavar="GROUP", help=_GROUP_HELP
        )
    back = add_verb("fleet-rollback", fleet_rollback, "bring a group back to an earlier generation")
    back.add_argument(
        "generation",
        nargs="?",
        metavar="GENERATION",
        help="4 or more digits of its id (default: the one before)",
    )
    back.add_argument("--group", metavar="GROUP", help="needed if there are several groups")
    back.add_argument("--yes", action="store_true", help="do not ask")
    back.add_argument("--watch", action="store_true", help="show what happens until it has ended")
    add_verb("fleet-drift", fleet_drift, "show which boards are not as their generation says")
    history = add_verb("fleet-history", fleet_history, "list rollouts, the newest first")
    history.add_argument("-n", dest="count", type=int, metavar="N", help="number of rollouts")


def fleet_plan(options: argparse.Namespace) -> int:
    """Show what would change."""
    with Fleet() as fleet:
        plan = fleet.plan(options.path)
    if options.output:
        Path(options.output).write_text(plan.dump(), encoding="utf-8")
    print_outcome(options, plan.to_json(), repr(plan))
    return CHANGES if options.check and plan.changed else OK


def fleet_apply(options: argparse.Namespace) -> int:
    """Begin what a file or a plan says."""
    text = read_text(Path(options.path))
    with Fleet() as fleet:
        plan = FleetPlan.load(text) if text.lstrip().startswith("{") else fleet.plan(options.path)
        if not plan.changed:
            return print_outcome(options, {**plan.to_json(), "rollouts": {}}, repr(plan))
        if not options.json:
            print_text(repr(plan))
        if not options.yes and not confirm_change(options, plan.changed):
            return FAILED
        reply = fleet.apply(plan)
        begun = {**reply["rollouts"], **reply["in_progress"]}
        if options.json and not options.watch:
            print_json(reply)
        elif not options.watch:
            print_text(started_text(reply, "`mbm fleet-status`"))
        return watch_rollouts(fleet, options, set(begun.values())) if options.watch else OK


def confirm_change(options: argparse.Namespace, boards: int) -> bool:
    """Ask whether to change boards; return the answer."""
    if options.json or not sys.stdin.isatty():
        raise ValueError("Nothing was changed: give --yes where nobody can be asked.")
    answer = input(f"Change {boards} board{'' if boards == 1 else 's'}? [y/N] ")
    if answer.strip().lower() in ("y", "yes"):
        return True
    print_error("Nothing was changed.")
    return False


def watch_rollouts(fleet: Fleet, options: argparse.Namespace, numbers: set[int] | None) -> int:
    """Show rollouts until they have ended; return whether all are done.

    Args:
        fleet: the fleet.
        options: of the verb.
        numbers: of the rollouts; None: the newest of each group.
    """
    shown = ""
    while True:
        rollouts = [
            each for each in fleet.rollouts() if numbers is None or each["rollout"] in numbers
        ]
        is_open = any(each["state"] == "running" for each in rollouts)
        text = rollouts_text(rollouts)
        if not options.json and text != shown:
            print_text(text)
            shown = text
        if not is_open:
            break
        time.sleep(_POLL_SECONDS)
    if options.json:
        print_json(rollouts)
    paused = [each["group"] for each in rollouts if each["state"] == "paused"]
    if paused and not options.json:
        # Whoever has paused it may resume it much later.
        print_error(f"It has not ended: `mbm fleet-resume {paused[0]}` lets it go on.")
    is_done = all(each["state"] == "done" for each in rollouts)
    return OK if is_done and (numbers is None or len(rollouts) == len(numbers)) else FAILED


def fleet_status(options: argparse.Namespace) -> int:
    """Show the newest rollout of each group."""
    with Fleet() as fleet:
        if options.watch:
            return watch_rollouts(fleet, options, None)
        rollouts = fleet.rollouts()
    return print_outcome(options, rollouts, rollouts_text(rollouts))


def fleet_pause(options: argparse.Namespace) -> int:
    """Pause rollouts."""
    with Fleet() as fleet:
        return _print_rollouts(options, fleet.pause_rollout(options.group))


def fleet_resume(options: argparse.Namespace) -> int:
    """Let rollouts go on."""
    with Fleet() as fleet:
        return _print_rollouts(options, fleet.resume_rollout(options.group))


def fleet_abort(options: argparse.Namespace) -> int:
    """End rollouts."""
    with Fleet() as fleet:
        return _print_rollouts(options, fleet.abort_rollout(options.group))


def _print_rollouts(options: argparse.Namespace, rollouts: Sequence[dict[str, Any]]) -> int:
    return print_outcome(options, rollouts, "\n".join(map(rollout_head, rollouts)))


def fleet_rollback(options: argparse.Namespace) -> int:
    """Bring a group back to an earlier generation."""
    with Fleet() as fleet:
        reply = fleet.roll_back(options.generation, group=options.group, dry_run=True)
        if not reply["boards"]:
            return print_outcome(options, reply, rollback_text(reply))
        if not options.json:
            print_text(rollback_text(reply))
        if not options.yes and not confirm_change(options, len(reply["boards"])):
            return FAILED
        reply = fleet.roll_back(reply["generation"], group=reply["group"])
        if reply["rollout"] is None:  # another rollout has done it meanwhile
            return print_outcome(options, reply, rollback_text(reply))
        if options.watch:
            return watch_rollouts(fleet, options, {reply["rollout"]})
    text = f"{reply['group']}: rollout {reply['rollout']} has begun; `mbm fleet-status` shows it."
    return print_outcome(options, reply, text)


def fleet_drift(options: argparse.Namespace) -> int:
    """Show what differs on boards; the exit status is 1 if something does."""
    with Fleet() as fleet:
        drift = fleet.drift()
    print_outcome(options, drift, drift_text(drift))
    return FAILED if any(drift.values()) else OK


def fleet_history(options: argparse.Namespace) -> int:
    """List rollouts."""
    if options.count is not None and options.count < 1:
        print_error("-n must be 1 or more.")
        return USAGE
    with Fleet() as fleet:
        rollouts = fleet.rollout_history(options.count)
    rows = [
        (
            str(each["rollout"]),
            each["group"],
            rollout_change(each),
            each["state"],
            format_time(each["created"]),
            each["caller"],
            each["why"],
        )
        for each in rollouts
    ]
    headings = ("rollout", "group", "brings", "state", "begun", "by", "why")
    table = format_table(headings, [tuple(map(shorten, row)) for row in rows])
    return print_outcome(options, rollouts, table if rows else "There was no rollout yet.")
