"""What a plan says would change, without asking boards."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from cloudmanager.results.fleet_plan import FleetPlan, plan_text
from cm_server.jobs.model import Board
from cm_server.rollouts import desired, plans
from cm_server.rollouts.desired import DesiredGroup
from cm_server.rollouts.plans import GroupBoards
from cm_server.store.rows import new_board_row

DIGEST = hashlib.sha256(b"new").hexdigest()
OLD_DIGEST = hashlib.sha256(b"old").hexdigest()


def board(name: str, generation: str = "", mpy: int = 5) -> Board:
    row = new_board_row(f"id of {name}", name, bytes(32))
    state = f"proven {generation[:16]}" if generation else ""
    row.facts.update({"mpy": mpy, "generation": state})
    return Board(row)


def group(**more: Any) -> DesiredGroup:
    app = {"/app.py": (DIGEST, 300), "/same.py": (OLD_DIGEST, 20)}
    return DesiredGroup("lab", "lab-*", app=app, settings={"a": 1}, **more)


def old_manifest() -> dict[str, Any]:
    app = {"/app.py": (OLD_DIGEST, 20), "/same.py": (OLD_DIGEST, 20), "/gone.py": (OLD_DIGEST, 2)}
    return desired.make_manifest(DesiredGroup("lab", "lab-*", app=app, settings={"b": 2}), None)


def test_boards_with_the_same_change_are_one_line():
    old = old_manifest()
    generation = desired.manifest_hash(old)
    boards = (*(board(f"lab-{n}", generation) for n in range(1, 4)), board("lab-4"))
    known = {desired.short_id(generation): old}
    plan = plans.plan_group(group(), GroupBoards(boards, ("lab-9",)), None, known)
    first, second = plan.changes
    assert first.names == ("lab-1", "lab-2", "lab-3")
    assert (dict(first.put), first.removed) == ({"/app.py": 300}, ("/gone.py",))
    assert first.settings == ("a", "b")
    assert (second.names, dict(second.put)) == (("lab-4",), {"/app.py": 300, "/same.py": 20})
    described = plan.describe(0.0)
    assert described["bytes"] == 3 * 300 + 320
    assert described["waves"] == [1, 2, 4]
    assert list(plan.waves().values()) == [0, 1, 2, 2]
    text = plan_text({"groups": [described], "released": {}, "gone": ["roof"], "changed": 4})
    assert text.splitlines() == [
        f"lab  {plan.generation[:12]}  4 boards, 4 to change, 1.2 KB to send at most",
        "  lab-[1-3]",
        "    write /app.py (300 bytes)",
        "    remove /gone.py",
        "    set a, b",
        "  lab-4",
        "    write /app.py, /same.py (320 bytes)",
        "    set a",
        "  waves: 1, 1, 2, at least 23 min",
        "  not connected now: lab-[1-4]",
        "  held back: lab-9",
        "roof: no longer in the file; its boards stay as they are",
    ]


def test_boards_whose_own_settings_stay_are_one_line_with_the_others():
    def of(digest: str) -> DesiredGroup:
        own = {"lab-2": {"offset": 1}}
        app = {"/app.py": (digest, 20)}
        return DesiredGroup("lab", "lab-*", app=app, board_settings=own)

    old = desired.make_manifest(of(OLD_DIGEST), None)
    generation = desired.manifest_hash(old)
    boards = tuple(board(f"lab-{n}", generation) for n in range(1, 4))
    known = {desired.short_id(generation): old}
    plan = plans.plan_group(of(DIGEST), GroupBoards(boards, ()), None, known)
    (change,) = plan.changes
    assert (change.names, dict(change.put)) == (("lab-1", "lab-2", "lab-3"), {"/app.py": 20})
    new = plans.plan_group(of(DIGEST), GroupBoards(boards, ()), None, {})
    assert [each.names for each in new.changes] == [("lab-1", "lab-3"), ("lab-2",)]


def test_boards_that_have_the_generation_do_not_change():
    manifest = desired.make_manifest(group(), None)
    boards = (board("lab-1", desired.manifest_hash(manifest)),)
    plan = plans.plan_group(group(), GroupBoards(boards, ()), None, {})
    assert (plan.changed, plan.changes, plan.waves()) == ((), (), {})


def test_saved_plan_is_the_same_plan():
    reply = {"groups": [], "released": {}, "gone": [], "changed": 0, "fingerprint": "f"}
    plan = FleetPlan({"groups": []}, reply, {"0": "/x"}, "/fleet.lock")
    assert vars(FleetPlan.load(plan.dump())) == vars(plan)


def test_plan_for_ten_thousand_boards_takes_seconds_at_most():
    old = old_manifest()
    generation = desired.manifest_hash(old)
    boards = {f"lab-{n}": board(f"lab-{n}", generation, mpy=n % 4) for n in range(10_000)}
    begun = time.process_time()
    found = plans.find_boards([group()], boards)
    plan = plans.plan_group(group(), found["lab"], None, {desired.short_id(generation): old})
    described = plan.describe(0.0)
    plans.fingerprint([plan])
    assert len(described["changed"]) == 10_000
    assert len(plan.changes) == 1  # the same on all kinds of bytecode
    assert time.process_time() - begun < 10
