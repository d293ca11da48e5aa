"""What a plan says would change, without asking boards."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from cloudmanager.protocol.targets import parse_target
from cloudmanager.results.fleet_plan import FleetPlan, plan_text
from cm_server.jobs.model import Board
from cm_server.rollouts import desired, plans
from cm_server.rollouts.desired import DesiredClient, DesiredGroup
from cm_server.rollouts.plans import GroupBoards, Known
from cm_server.store.rows import new_board_row

DIGEST = hashlib.sha256(b"new").hexdigest()
OLD_DIGEST = hashlib.sha256(b"old").hexdigest()
NOTHING = Known({}, {})


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
    known = Known({desired.short_id(generation): old}, {})
    plan = plans.plan_group(group(), GroupBoards(boards, ("lab-9",)), None, known)
    first, second = plan.changes
    assert first.names == ("lab-1", "lab-2", "lab-3")
    assert (dict(first.put), first.removed) == ({"/app.py": 300}, ("/gone.py",))
    assert (first.settings, first.settings_gone) == (("a",), ("b",))
    assert (second.names, dict(second.put)) == (("lab-4",), {"/app.py": 300, "/same.py": 20})
    described = plan.describe(0.0)
    assert described["bytes"] == 3 * 300 + 320
    assert described["waves"] == [1, 2, 4]
    assert list(plan.waves().values()) == [0, 1, 2, 2]
    reply = {"groups": [described], "open": {}, "released": {}, "gone": ["roof", "yard"]}
    text = plan_text(reply)
    assert text.splitlines() == [
        f"lab  {plan.generation[:12]}  4 boards, 4 to change, 1.2 KB to send at most",
        "  lab-[1-3]",
        "    write /app.py (300 bytes)",
        "    remove /gone.py",
        "    set a",
        "    remove from the settings b",
        "  lab-4",
        "    write /app.py, /same.py (320 bytes)",
        "    set a",
        "  waves of 1, 1 and 2 boards, at least 23 min",
        "  not connected now: lab-[1-4]",
        "  held back: lab-9",
        "not in this file: roof, yard; their boards stay as they are",
    ]


def test_boards_whose_own_settings_stay_are_one_line_with_the_others():
    def of(digest: str) -> DesiredGroup:
        own = {"lab-2": {"offset": 1}}
        app = {"/app.py": (digest, 20)}
        return DesiredGroup("lab", "lab-*", app=app, board_settings=own)

    old = desired.make_manifest(of(OLD_DIGEST), None)
    generation = desired.manifest_hash(old)
    boards = tuple(board(f"lab-{n}", generation) for n in range(1, 4))
    known = Known({desired.short_id(generation): old}, {})
    plan = plans.plan_group(of(DIGEST), GroupBoards(boards, ()), None, known)
    (change,) = plan.changes
    assert (change.names, dict(change.put)) == (("lab-1", "lab-2", "lab-3"), {"/app.py": 20})
    new = plans.plan_group(of(DIGEST), GroupBoards(boards, ()), None, NOTHING)
    assert [each.names for each in new.changes] == [("lab-1", "lab-3"), ("lab-2",)]


def test_settings_that_are_gone_are_shown_as_removed_and_those_of_one_board_by_themselves():
    before = DesiredGroup(
        "lab", "lab-*", settings={"a": 1, "b": 2}, board_settings={"lab-2": {"offset": 1}}
    )
    old = desired.make_manifest(before, None)
    generation = desired.manifest_hash(old)
    boards = tuple(board(f"lab-{n}", generation) for n in range(1, 4))
    known = Known({desired.short_id(generation): old}, {})
    after = DesiredGroup("lab", "lab-*", settings={"a": 3})
    plan = plans.plan_group(after, GroupBoards(boards, ()), None, known)
    reply = {"groups": [plan.describe(0.0)], "open": {}, "released": {}, "gone": []}
    lines = plan_text(reply).splitlines()
    assert lines[1:7] == [
        "  lab-[1,3]",
        "    set a",
        "    remove from the settings b",
        "  lab-2",
        "    set a",
        "    remove from the settings b, offset",
    ]


def test_boards_that_cannot_be_changed_for_one_reason_are_one_line():
    old = desired.make_manifest(DesiredGroup("lab", "lab-*", settings={"a": 1}), None)
    generation = desired.manifest_hash(old)
    boards = (board("lab-1", generation), board("lab-2"))
    known = Known({desired.short_id(generation): old}, {})
    after = DesiredGroup("lab", "lab-*", settings={"k": {"secret": "none"}})
    (change,) = plans.plan_group(after, GroupBoards(boards, ()), None, known).changes
    assert (change.names, change.put) == (("lab-1", "lab-2"), {})
    assert change.error.startswith("there is no secret 'none'")


def test_boards_that_have_the_generation_do_not_change():
    manifest = desired.make_manifest(group(), None)
    boards = (board("lab-1", desired.manifest_hash(manifest)),)
    plan = plans.plan_group(group(), GroupBoards(boards, ()), None, NOTHING)
    assert (plan.changed, plan.changes, plan.waves()) == ((), (), {})


def test_saved_plan_is_the_same_plan():
    reply = {"groups": [], "open": {}, "released": {}, "gone": [], "changed": 0, "fingerprint": "f"}
    plan = FleetPlan({"groups": []}, reply, {"0": "/x"}, "/fleet.lock")
    assert vars(FleetPlan.load(plan.dump())) == vars(plan)


def test_plan_for_ten_thousand_boards_takes_seconds_at_most():
    old = old_manifest()
    generation = desired.manifest_hash(old)
    boards = {f"lab-{n}": board(f"lab-{n}", generation, mpy=n % 4) for n in range(10_000)}
    begun = time.process_time()
    known = Known({desired.short_id(generation): old}, {})
    found = plans.find_boards([group()], boards)
    plan = plans.plan_group(group(), found["lab"], None, known)
    described = plan.describe(0.0)
    plans.fingerprint([plan])
    assert len(described["changed"]) == 10_000
    assert len(plan.changes) == 1  # the same on all kinds of bytecode
    assert time.process_time() - begun < 10


def test_of_a_board_that_was_changed_only_what_differs_is_planned():
    manifest = desired.make_manifest(group(), None)
    generation = desired.manifest_hash(manifest)
    drifted = board("lab-1", generation)
    fact = desired.drifted_fact(generation[:16], ["/same.py"], ["a"])
    drifted.reported_facts = {**drifted.reported_facts, "generation": fact}
    known = Known({desired.short_id(generation): manifest}, {})
    plan = plans.plan_group(group(), GroupBoards((drifted,), ()), None, known)
    (change,) = plan.changes
    assert (dict(change.put), change.settings) == ({"/same.py": 20}, ("a",))
    fact = desired.drifted_fact(generation[:16], ["/same.py"], [])
    drifted.reported_facts = {**drifted.reported_facts, "generation": fact}
    plan = plans.plan_group(group(), GroupBoards((drifted,), ()), None, known)
    assert plan.changes[0].settings == ()


def test_board_that_went_back_from_its_own_generation_does_not_have_it():
    manifest = desired.make_manifest(group(), None)
    short = desired.short_id(desired.manifest_hash(manifest))
    one = board("lab-1", short)
    one.reported_facts = {"generation": f"proven {short}\nreverted {short} health: OSError"}
    plan = plans.plan_group(group(), GroupBoards((one,), ()), None, NOTHING)
    assert plan.changed == (one,)
    one.reported_facts = {"generation": f"proven {short}\nreverted {'0' * 16} health: OSError"}
    assert plans.present_generation(one) == short


def test_plan_says_which_secret_is_missing():
    own = {"lab-2": {"key": {"secret": "key"}}}
    settings = {"mqtt": {"password": {"secret": "mqtt"}}}
    wanted = DesiredGroup("lab", "lab-*", settings=settings, board_settings=own)
    boards = GroupBoards((board("lab-1"), board("lab-2")), ())

    def errors(**targets: str) -> list[str]:
        secrets = {name: parse_target(target) for name, target in targets.items()}
        plan = plans.plan_group(wanted, boards, None, Known({}, secrets))
        return [change.error for change in plan.changes]

    assert errors(mqtt="all", key="lab-2") == ["", ""]
    assert errors(mqtt="all", key="lab-1") == [
        "",
        "there is no secret 'key' for it: run `mbm secret-set key`",
    ]
    assert errors(key="all") == ["there is no secret 'mqtt' for it: run `mbm secret-set mqtt`"]


def test_plan_text_says_what_is_in_progress_and_each_thing_once():
    plan = plans.plan_group(group(), GroupBoards((board("lab-1"),), ()), None, NOTHING)
    described = plan.describe(0.0)
    reply = {"groups": [described], "released": {}, "gone": []}
    running = {"rollout": 3, "generation": plan.generation, "state": "running", "boards": 1}
    other = {"rollout": 2, "generation": "0" * 64, "state": "paused", "boards": 1}
    text = plan_text({**reply, "open": {"lab": running}})
    assert text.splitlines()[-1] == "  rollout 3 of this generation is running"
    assert "  all in one wave, at least 1 min" in text.splitlines()
    text = plan_text({**reply, "open": {"lab": other}})
    assert text.splitlines()[-1] == (
        "  rollout 2 of 000000000000 is paused; applying this replaces it"
    )
    empty = plans.plan_group(group(), GroupBoards((), ()), None, NOTHING)
    text = plan_text({"groups": [empty.describe(0.0)], "open": {}, "released": {}, "gone": []})
    assert text == f"lab  {empty.generation[:12]}  0 boards: its target matches no board"


def known_boards(*boards: Board) -> tuple[GroupBoards, Known]:
    """Return boards that have an earlier generation, and what the store knows of it."""
    old = old_manifest()
    generation = desired.manifest_hash(old)
    for each in boards:
        each.reported_facts = {**each.reported_facts, "generation": f"proven {generation[:16]}"}
    return GroupBoards(boards, ()), Known({desired.short_id(generation): old}, {})


def with_facts(each: Board, *parts: str, **facts: Any) -> Board:
    each.reported_facts = {**each.reported_facts, **facts}
    each.client_parts = frozenset(parts)
    return each


def test_boards_whose_flash_has_no_room_for_both_are_refused_in_one_line():
    small = [with_facts(board(f"lab-{n}"), flash=20_000 + n) for n in (3, 10, 2)]
    large = with_facts(board("lab-4"), flash=1_000_000)
    unknown = board("lab-5")
    changed = with_facts(board("lab-6"), flash=20_000)
    changed.has_worked = True  # something has run there since it reported that
    boards, known = known_boards(*small, large, unknown, changed)
    plan = plans.plan_group(group(), boards, None, known)
    refused, others = plan.changes
    assert refused.names == ("lab-2", "lab-3", "lab-10")
    assert refused.error == (
        "its flash has no room for the new generation beside what is there (it needs 28 KB); "
        'rollback = "network" removes that'
    )
    assert (others.names, others.error) == (("lab-4", "lab-5", "lab-6"), "")
    network = plans.plan_group(group(rollback="network"), boards, None, known)
    assert [each.error for each in network.changes] == [""]
    first = plans.plan_group(group(), boards, None, NOTHING)
    assert [each.error for each in first.changes] == [""], "they may have the files already"


CLIENT = DesiredClient("0.2", {"link.mpy": (DIGEST, 9000), "cm_start.mpy": (DIGEST, 900)})


def test_plan_says_which_client_boards_get():
    usual = {"client": "0.1", "flash": 500_000}
    old = [with_facts(board(f"lab-{n}"), "link", **usual) for n in (1, 2)]
    small = with_facts(board("lab-3"), "link", client="0.1", flash=20_000)
    same = with_facts(board("lab-4"), "link", "trial", client="0.2", flash=20_000)
    frozen = with_facts(board("lab-5"), "run", "trial", client="0.1")
    virtual = with_facts(board("lab-6"), "link", "unix", "trial", client="0.1")
    bridged = with_facts(board("lab-7"), "run", "files")
    boards = GroupBoards((*old, small, same, frozen, virtual, bridged), ())
    plan = plans.plan_group(group(client=CLIENT), boards, None, NOTHING)
    described = plan.describe(0.0)
    reply = {"groups": [described], "open": {}, "released": {}, "gone": []}
    assert plan_text(reply).splitlines()[1:] == [
        "  lab-3",
        "    cannot be changed: its flash has no room for a second client (it needs 24 KB)",
        "  lab-[1-2]",
        "    client 0.1 -> 0.2 (9.7 KB)",
        "    write /app.py, /same.py (320 bytes)",
        "    set a",
        "  lab-4",
        "    client 0.2, if its files differ (9.7 KB)",
        "    write /app.py, /same.py (320 bytes)",
        "    set a",
        "  lab-[5-6]",
        "    write /app.py, /same.py (320 bytes)",
        "    set a",
        "  lab-7",
        "    cannot be changed: its client cannot go back by itself, and cannot be replaced over "
        "the network",
        "  waves of 1, 1 and 5 boards, at least 23 min",
        "  not connected now: lab-[1-7]",
        "  note: lab-[5,7]: the client is part of the firmware, and stays as it is",
        "  note: lab-6: virtual boards get a client when `mbm simulate` starts them",
    ]
    assert described["bytes"] == 2 * (320 + 9900) + (320 + 9900) + 2 * 320


def test_board_whose_generation_had_this_client_is_not_sent_it_again():
    before = desired.make_manifest(group(client=CLIENT), None)
    generation = desired.manifest_hash(before)
    one = with_facts(board("lab-1", generation), "link", "trial", client="0.2")
    known = Known({desired.short_id(generation): before}, {})
    wanted = group(client=CLIENT, pin=())
    later = DesiredGroup("lab", "lab-*", app=wanted.app, settings={"a": 2}, client=CLIENT)
    plan = plans.plan_group(later, GroupBoards((one,), ()), None, known)
    assert [(each.client, each.settings) for each in plan.changes] == [("", ("a",))]
