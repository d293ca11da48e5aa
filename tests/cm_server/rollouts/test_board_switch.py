"""The switch of one fake board to a generation, and its way back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.installs.board_settings import StoredSecrets
from cm_server.installs.content_store import Content, ContentStore
from cm_server.installs.install_manifest import JOURNAL_PATH
from cm_server.limits import Limits
from cm_server.rollouts import board_switch, desired
from cm_server.rollouts.board_switch import (
    BACK_PATH,
    STATE_PATH,
    BoardSide,
    EarlierGeneration,
    Switched,
    SwitchPlan,
    settle,
    switch,
)
from cm_server.store.secret_rows import SecretRow
from tests.cm_server.installs.test_board_install import FakeBoard, sha

MPY = 0x2806
SETTINGS = "/settings.json"


class SwitchBoard(FakeBoard):
    """A fake board that knows all lines of a journal, as mpy_client/cm/switch.py does."""

    def finish(self, path: str) -> None:
        for line in self.files.pop(path, b"").decode().splitlines():
            kind, rest = line[0], line[1:]
            number, _, place = rest.partition(" ")
            new, old = f"/.cm/new/{number}", f"/.cm/old/{number}"
            if kind == "*" and new in self.files and place in self.files:
                self.rename(place, old)
            if kind in "*+" and new in self.files:
                self.rename(new, place)
            elif kind == "~" and place in self.files:
                self.rename(place, old)
            elif kind == "<" and old in self.files:
                self.rename(old, place)
            elif kind == "-":
                self.files.pop(rest, None)
        self.folders.discard("/.cm/new")

    def restart(self) -> None:
        """Start: apply the journal; a trial begins, or ends with the way back."""
        self.finish(JOURNAL_PATH)
        state = self.files.get(STATE_PATH, b"").decode()
        if state.startswith("trial"):
            self.files[STATE_PATH] = state.replace("trial", "trying", 1).encode()
        elif state.startswith("trying"):
            self.rename(BACK_PATH, JOURNAL_PATH)
            self.finish(JOURNAL_PATH)
            old = self.files.get(STATE_PATH, b"").decode().split("\n")[0]
            text = f"{old}\nreverted {state.split()[1]} it restarted"
            self.files[STATE_PATH] = text.encode()

    @property
    def own(self) -> dict[str, bytes]:
        """The files that are not the client's."""
        return {path: data for path, data in self.files.items() if not path.startswith("/.cm")}


class Lab:
    """Makes generations, and switches boards to them."""

    def __init__(self, folder: Path) -> None:
        self.contents = ContentStore(folder, Limits(), lambda _seconds, _act: None)
        self.planned: list[Switched] = []
        self.secrets = StoredSecrets({}, {})

    def plan(
        self,
        app: Mapping[str, bytes],
        packages: Mapping[str, bytes] = {},
        settings: Mapping[str, Any] = {},
        boards: Mapping[str, Any] = {},
    ) -> SwitchPlan:
        data = {**app, **packages}
        described = {}
        if packages:
            entry = {"version": "1", "source": "", "needs": []}
            files = {path: sha(each) for path, each in packages.items()}
            described = {
                "kinds": {str(MPY): [[p, sha(d), len(d), "pack"] for p, d in packages.items()]},
                "entries": {str(MPY): {"pack": {**entry, "files": files}}},
            }
        manifest = {
            "app": {path: [sha(each), len(each)] for path, each in app.items()},
            "packages": described,
            "settings": settings,
            "boards": boards,
        }
        contents: dict[str, Content] = {sha(d): self.contents.add_bytes(d) for d in data.values()}
        return SwitchPlan(desired.manifest_hash(manifest), manifest, contents, 60, 150, 16384)

    def switch(self, board: SwitchBoard, plan: SwitchPlan) -> Any:
        side = BoardSide("lab-1", MPY, self.secrets, self.contents.add_bytes)
        return board.run(switch(plan, side, self.planned.append))

    def prove(self, board: SwitchBoard, plan: SwitchPlan) -> None:
        """Switch a board, and confirm that the generation works there."""
        assert self.switch(board, plan)["state"] == "switched"
        board.restart()
        state = board.run(settle(plan.generation, self.contents.add_bytes, confirm=True))
        assert state == f"proven {desired.short_id(plan.generation)}"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_nothing_changes_before_the_restart(lab: Lab):
    board = SwitchBoard()
    plan = lab.plan({"/app.py": b"new"}, settings={"a": 1})
    assert lab.switch(board, plan)["state"] == "switched"
    assert board.own == {"/cm.json": b"{}"}
    board.restart()
    assert board.files["/app.py"] == b"new"
    assert json.loads(board.files[SETTINGS]) == {"a": 1}
    assert board.files[STATE_PATH].decode().startswith("trying ")


def test_proven_generation_is_not_sent_again(lab: Lab):
    board = SwitchBoard()
    plan = lab.plan({"/app.py": b"new", "/data/x.txt": b"x"}, {"/lib/pack.mpy": b"p"}, {"a": 1})
    lab.prove(board, plan)
    before = dict(board.files)
    board.executed.clear()
    assert lab.switch(board, plan) == {"state": "same", "files": 0, "bytes": 0}
    assert board.files == before
    assert not any(op.startswith(("put", "rename")) for op in board.executed)


def test_board_that_restarts_on_trial_has_all_that_it_had_before(lab: Lab):
    board = SwitchBoard()
    old = lab.plan({"/app.py": b"1", "/gone.py": b"g"}, {"/lib/pack.mpy": b"p1"}, {"a": 1, "b": 2})
    lab.prove(board, old)
    before = dict(board.own)
    records = {path: board.files[path] for path in ("/.cm/packages.json", "/.cm/generation")}
    new = lab.plan({"/app.py": b"2", "/new/x.py": b"x"}, {"/lib/pack.mpy": b"p2"}, {"a": 5})
    assert lab.switch(board, new)["state"] == "switched"
    board.restart()
    assert board.files["/app.py"] == b"2"
    assert "/gone.py" not in board.files
    assert json.loads(board.files[SETTINGS]) == {"a": 5}
    board.restart()
    assert board.own == before
    assert records == {path: board.files[path] for path in records}
    state = desired.read_board_generation(board.files[STATE_PATH].decode())
    assert (state.state, state.generation) == ("proven", desired.short_id(old.generation))
    assert (state.reverted, state.reason) == (desired.short_id(new.generation), "it restarted")


def test_board_goes_back_to_having_no_generation(lab: Lab):
    board = SwitchBoard()
    board.files |= {"/app.py": b"theirs", SETTINGS: b'{"own": 1}'}
    before = dict(board.own)
    lab.switch(board, lab.plan({"/app.py": b"new", "/x.py": b"x"}, settings={"a": 1}))
    board.restart()
    board.restart()
    assert board.own == before
    state = desired.read_board_generation(board.files[STATE_PATH].decode())
    assert (state.state, state.reason) == ("", "it restarted")


def test_files_that_the_last_generation_put_there_go_and_others_stay(lab: Lab):
    board = SwitchBoard()
    board.files["/theirs.py"] = b"own"
    lab.prove(board, lab.plan({"/app.py": b"1", "/old.py": b"o"}, {"/lib/pack.mpy": b"p"}))
    lab.prove(board, lab.plan({"/app.py": b"1"}))
    assert board.own == {"/cm.json": b"{}", "/app.py": b"1", "/theirs.py": b"own"}
    assert lab.planned[-1].manifest == {}


def test_packages_that_people_installed_stay(lab: Lab):
    board = SwitchBoard()
    entry = {"version": "3", "source": "", "needs": [], "files": {"/lib/mine.mpy": sha(b"m")}}
    board.files["/lib/mine.mpy"] = b"m"
    board.files["/.cm/packages.json"] = json.dumps({"packages": {"mine": entry}}).encode()
    lab.prove(board, lab.plan({"/app.py": b"1"}, {"/lib/pack.mpy": b"p"}))
    assert set(lab.planned[-1].manifest) == {"mine", "pack"}
    lab.prove(board, lab.plan({"/app.py": b"1"}))
    assert set(lab.planned[-1].manifest) == {"mine"}
    assert board.files["/lib/mine.mpy"] == b"m"


def test_other_form_of_a_module_is_removed_and_kept_for_the_way_back(lab: Lab):
    board = SwitchBoard()
    board.files["/util.mpy"] = b"compiled"
    lab.switch(board, lab.plan({"/util.py": b"source"}))
    board.restart()
    assert "/util.mpy" not in board.files
    board.restart()
    assert board.own == {"/cm.json": b"{}", "/util.mpy": b"compiled"}


def test_settings_are_merged_and_those_that_are_gone_from_the_file_go(lab: Lab):
    board = SwitchBoard()
    board.files[SETTINGS] = b'{"own": 1, "a": 0}'
    lab.prove(board, lab.plan({}, settings={"a": 1, "b": 2}, boards={"lab-1": {"c": 3}}))
    assert json.loads(board.files[SETTINGS]) == {"own": 1, "a": 1, "b": 2, "c": 3}
    lab.prove(board, lab.plan({}, settings={"a": 1}))
    assert json.loads(board.files[SETTINGS]) == {"own": 1, "a": 1}


def test_secrets_are_written_and_their_places_are_reported(lab: Lab):
    board = SwitchBoard()
    lab.secrets = StoredSecrets({"mqtt": SecretRow("mqtt", "hunter2", "all", 0.0)}, {})
    plan = lab.plan({}, settings={"mqtt": {"secret": "mqtt"}})
    assert "hunter2" not in json.dumps(plan.manifest)
    lab.prove(board, plan)
    assert json.loads(board.files[SETTINGS]) == {"mqtt": "hunter2"}
    assert lab.planned[-1].uses == {("mqtt",): "mqtt"}


def test_secret_that_the_board_may_not_have_is_refused(lab: Lab):
    with pytest.raises(PackageError, match="no secret called 'mqtt' for this board"):
        lab.switch(SwitchBoard(), lab.plan({}, settings={"mqtt": {"secret": "mqtt"}}))


def test_switch_that_does_not_fit_changes_nothing(lab: Lab):
    board = SwitchBoard(free=3)
    with pytest.raises(PackageError, match="no room for the new generation beside what is there"):
        lab.switch(board, lab.plan({"/app.py": b"x" * 9000}))
    assert board.own == {"/cm.json": b"{}"}
    assert JOURNAL_PATH not in board.files


class SmallBoard(SwitchBoard):
    """A fake board whose files occupy blocks of 4 KiB, of which it has few."""

    blocks = 20

    def statvfs(self, _: str) -> list[int]:
        used = sum(-(-len(data) // 4096) for data in self.files.values() if len(data) > 1022)
        return [4096, 4096, self.blocks, self.blocks - used]


BIG = {"/app.py": b"1" * 9000, "/a.py": b"a" * 8000, "/own.py": b"o", "/same.py": b"s" * 5000}
BIG_NEXT = {
    "/app.py": b"2" * 9000,
    "/a.py": b"b" * 8000,
    "/new/c.py": b"c",
    "/same.py": b"s" * 5000,
}


def clearing(lab: Lab, board: SwitchBoard, old: SwitchPlan, new: SwitchPlan) -> SwitchPlan:
    """Return a plan that may remove the earlier generation first."""
    lab.prove(board, old)
    earlier = EarlierGeneration(old.generation, old.manifest, old.contents)
    return replace(new, clears=earlier)


def send_again(lab: Lab, board: SwitchBoard, plan: SwitchPlan) -> Any:
    assert plan.clears is not None
    side = BoardSide("lab-1", MPY, lab.secrets, lab.contents.add_bytes)
    return board.run(board_switch.send_again(plan.clears, side, 16384, lab.planned.append))


def test_board_without_room_for_both_removes_the_earlier_generation_first(lab: Lab):
    board = SmallBoard()
    old = lab.plan(BIG, settings={"a": 1})
    new = clearing(lab, board, old, lab.plan(BIG_NEXT, settings={"a": 2}))
    with pytest.raises(PackageError, match='rollback = "network" removes that first'):
        lab.switch(board, replace(new, clears=None))
    before = dict(board.own)
    assert lab.switch(board, new)["state"] == "switched"
    assert board.files[STATE_PATH].decode() == f"cleared {desired.short_id(old.generation)}"
    assert board.own == {
        path: data for path, data in before.items() if path not in ("/app.py", "/a.py", "/own.py")
    }
    board.restart()
    assert json.loads(board.files[SETTINGS]) == {"a": 2}
    assert {path: data for path, data in board.own.items() if path in BIG} == {
        path: data for path, data in BIG_NEXT.items() if path in BIG
    }
    board.restart()  # it goes back
    state = desired.read_board_generation(board.files[STATE_PATH].decode())
    assert (state.state, state.generation) == ("cleared", desired.short_id(old.generation))
    assert state.reverted == desired.short_id(new.generation)
    assert "/app.py" not in board.own
    assert json.loads(board.files[SETTINGS]) == {"a": 1}
    assert send_again(lab, board, new) == "switched"
    board.restart()
    assert board.own == before
    assert board.files[STATE_PATH].decode() == f"proven {desired.short_id(old.generation)}"
    assert send_again(lab, board, new) == "proven"
    assert lab.switch(board, old) == {"state": "same", "files": 0, "bytes": 0}


def test_new_generation_is_proven_after_the_earlier_one_was_removed(lab: Lab):
    board = SmallBoard()
    new = clearing(lab, board, lab.plan(BIG), lab.plan(BIG_NEXT))
    lab.prove(board, new)
    assert board.own == {**BIG_NEXT, "/cm.json": b"{}"}


def test_board_with_room_for_both_keeps_the_earlier_generation(lab: Lab):
    board = SwitchBoard()
    new = clearing(lab, board, lab.plan(BIG), lab.plan(BIG_NEXT))
    assert lab.switch(board, new)["state"] == "switched"
    assert board.files["/app.py"] == BIG["/app.py"]
    board.restart()
    board.restart()
    assert board.files["/app.py"] == BIG["/app.py"]


def test_files_that_the_server_cannot_send_again_are_not_removed(lab: Lab):
    board = SmallBoard()
    new = clearing(lab, board, lab.plan(BIG), lab.plan(BIG_NEXT))
    board.files["/app.py"] = b"changed".ljust(9000)
    board.files["/a.py"] = b"changed".ljust(8000)
    before = dict(board.files)
    with pytest.raises(PackageError, match="not even without the earlier"):
        lab.switch(board, new)
    unknown = EarlierGeneration("f" * 64, {}, {})
    with pytest.raises(PackageError, match="the server has no earlier one to send again"):
        lab.switch(board, replace(new, clears=unknown))
    assert board.files == before


def test_switch_that_fails_after_removing_says_so(lab: Lab):
    board = SmallBoard()
    old = lab.plan(BIG)
    new = clearing(lab, board, old, lab.plan(BIG_NEXT))
    before = dict(board.own)
    board.failing_op = "put /.cm/new/1"
    assert lab.switch(board, new)["state"] == "cleared"
    assert send_again(lab, board, new) == "switched"
    board.restart()
    assert board.own == before


def test_packages_for_another_kind_of_board_are_refused(lab: Lab):
    plan = lab.plan({}, {"/lib/pack.mpy": b"p"})
    side = BoardSide("lab-1", 5, lab.secrets, lab.contents.add_bytes)
    with pytest.raises(PackageError, match="not compiled for this board"):
        SwitchBoard().run(switch(plan, side, lab.planned.append))


def test_board_on_trial_is_not_switched_to_another_generation(lab: Lab):
    board = SwitchBoard()
    first, second = lab.plan({"/app.py": b"1"}), lab.plan({"/app.py": b"2"})
    lab.switch(board, first)
    board.restart()
    assert lab.switch(board, second)["state"] == "busy"
    assert lab.switch(board, first)["state"] == "trying"
    assert board.files["/app.py"] == b"1"


def test_switch_that_is_sent_twice_is_staged_once(lab: Lab):
    board = SwitchBoard()
    plan = lab.plan({"/app.py": b"1"})
    lab.switch(board, plan)
    assert lab.switch(board, plan)["state"] == "switched"  # it finds the first one, and applies it
    board.restart()
    board.restart()
    assert board.own == {"/cm.json": b"{}"}


def test_way_back_is_removed_when_the_generation_is_proven(lab: Lab):
    board = SwitchBoard()
    lab.prove(board, lab.plan({"/app.py": b"1"}))
    lab.prove(board, lab.plan({"/app.py": b"2"}))
    assert not any(path.startswith(("/.cm/old", "/.cm/back")) for path in board.files)


def test_generation_is_not_confirmed_on_a_board_that_went_back(lab: Lab):
    board = SwitchBoard()
    plan = lab.plan({"/app.py": b"1"})
    lab.switch(board, plan)
    board.restart()
    board.restart()
    state = board.run(settle(plan.generation, lab.contents.add_bytes, confirm=True))
    assert state == f"\nreverted {desired.short_id(plan.generation)} it restarted"


def test_note_of_an_earlier_attempt_is_removed(lab: Lab):
    board = SwitchBoard()
    plan = lab.plan({"/app.py": b"1"})
    for _ in range(2):
        lab.switch(board, plan)
        assert b"reverted" not in board.files.get(STATE_PATH, b"")
        board.restart()
        board.restart()
    assert board.files[STATE_PATH].count(b"reverted") == 1


def test_damaged_record_of_the_board_is_ignored(lab: Lab):
    board = SwitchBoard()
    for record in (b"{", b"[]", b'{"app": [1], "packages": [], "settings": []}', b"\xff"):
        board.files["/.cm/generation"] = record
        board.files.pop(STATE_PATH, None)
        assert lab.switch(board, lab.plan({"/app.py": record}))["state"] == "switched"
        board.files.pop(JOURNAL_PATH)


def test_record_cannot_name_files_of_the_client(lab: Lab):
    board = SwitchBoard()
    record = {"app": ["/lib/cm/link.mpy", "/boot.py"], "packages": [], "settings": []}
    board.files |= {"/.cm/generation": json.dumps(record).encode(), "/boot.py": b"b"}
    lab.switch(board, lab.plan({"/app.py": b"1"}))
    assert "/boot.py" not in board.files[JOURNAL_PATH].decode()


@pytest.mark.parametrize(
    ("fact", "state", "generation", "reverted", "reason"),
    [
        ("proven 0123", "proven", "0123", "", ""),
        ("trying 0123 60 150", "trying", "0123", "", ""),
        ("trial 0123 60 150\n", "trial", "0123", "", ""),
        ("cleared 01\nreverted 23 x", "cleared", "01", "23", "x"),
        ("proven 01\nreverted 23 ?no link", "proven", "01", "23", "?no link"),
        ("\nreverted 23 app.py ended: x", "", "", "23", "app.py ended: x"),
        ("\nreverted 23", "", "", "23", ""),
        ("nonsense 01", "", "", "", ""),
        ("", "", "", "", ""),
        (None, "", "", "", ""),
        (5, "", "", "", ""),
    ],
)
def test_fact_of_a_board_is_read(fact, state, generation, reverted, reason):
    assert desired.read_board_generation(fact) == desired.BoardGeneration(
        state, generation, reverted, reason
    )


def test_generations_id_depends_on_all_of_it():
    group = desired.DesiredGroup("g", "all", app={"/a": (hashlib.sha256().hexdigest(), 0)})
    base = desired.manifest_hash(desired.make_manifest(group, None))
    assert base == desired.manifest_hash(desired.make_manifest(group, None))
    more = desired.DesiredGroup("g", "all", app=group.app, settings={"a": 1})
    assert base != desired.manifest_hash(desired.make_manifest(more, None))
