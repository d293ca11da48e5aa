"""Installs on one board: what is asked of it, what is sent, when nothing is; no server, no board.

The board is a dict of files that does acts as a board does.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.installs.board_install import (
    PreparedPlan,
    ServerSide,
    describe_for_audit,
    install,
    report_installed,
    uninstall,
)
from cm_server.installs.content_store import Content, ContentStore
from cm_server.installs.install_manifest import JOURNAL_PATH, MANIFEST_PATH
from cm_server.installs.job_steps import OpGenerator
from cm_server.packages.plan import InstallPlan, PlannedFile
from cm_server.packages.release import Release
from cm_server.packages.requirement import parse_requirement

MPY = 0x2806


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FakeBoard:
    """Files by their paths, and free blocks of 4 KiB; does acts, and remembers them."""

    def __init__(self, *, free: int = 200, fat: bool = False) -> None:
        self.files: dict[str, bytes] = {"/cm.json": b"{}"}
        self.folders = {"/lib", "/lib/cm"}
        self.free, self.fat = free, fat
        self.did: list[str] = []
        self.breaks = ""  # at the act that begins so

    def do(self, doing: OpGenerator) -> Any:
        """Do all acts, until it has come to its end."""
        acts = next(doing)
        while True:
            try:
                answers = [self.act(*act) for act in acts]
            except OSError as error:
                step = lambda error=error: doing.throw(error)  # noqa: E731
            else:
                step = lambda answers=answers: doing.send(answers)  # noqa: E731
            try:
                acts = step()
            except StopIteration as end:
                return end.value

    def act(self, name: str, path: str, *more: Any) -> Any:
        self.did.append(f"{name} {path}")
        if self.breaks and self.did[-1].startswith(self.breaks):
            self.breaks = ""
            raise OSError(28, "No space left on device", path)
        return getattr(self, name)(path, *more)

    def statvfs(self, _: str) -> list[int]:
        return [4096, 4096, 256, self.free]

    def hash(self, path: str, size: int) -> Any:
        path = path.lower() if self.fat else path
        if path in self.folders or any(name.startswith(path + "/") for name in self.files):
            return False
        data = self.files.get(path)
        if data is None:
            return None
        return sha(data) if size in (-1, len(data)) else ""

    def get(self, path: str) -> bytes:
        return self.files[path]

    def makedirs(self, path: str) -> None:
        self.folders |= {path}

    def rm(self, path: str, deep: bool) -> None:
        self.folders.discard(path)
        for name in [name for name in self.files if name.startswith(path)]:
            self.free += len(self.files.pop(name)) // 4096

    def put(self, path: str, content: Content, staged: int = 0) -> int:
        assert staged == path.startswith("/.cm/new/"), "a rename is for what is in use"
        self.files[path] = content.read(0, content.size)
        return content.size

    def rename(self, old: str, new: str) -> None:
        self.files[new] = self.files.pop(old)

    def finish(self, path: str) -> None:
        if path not in self.files:
            return
        for line in self.files.pop(path).decode().splitlines():
            if line[0] == "+":
                number, place = line[1:].split(" ", 1)
                self.rename(f"/.cm/new/{number}", place)
            elif line[0] == "-":
                self.files.pop(line[1:], None)
        self.folders.discard("/.cm/new")


class Lab:
    """A plan of some files, and the server's side of a job."""

    def __init__(self, folder: Path) -> None:
        self.contents = ContentStore(folder)
        self.confirmed: list[Any] = []
        self.known: Any = {}

    def side(self) -> ServerSide:
        return ServerSide(self.known, self.confirmed.append, self.contents.add_bytes)

    def plan(self, version: str = "1", **files: bytes) -> PreparedPlan:
        wish = parse_requirement("pack")
        placed = [
            PlannedFile(f"/lib/pack/{name}.mpy", sha(data), len(data), "pack")
            for name, data in sorted(files.items())
        ]
        release = Release(wish, version, ())
        plan = InstallPlan(
            ("pack",),
            "/lib",
            (release,),
            {MPY: tuple(placed)},
            ("a note",),
            {"pack": "an index"},
        )
        kept = {sha(data): self.contents.add_bytes(data) for data in files.values()}
        return PreparedPlan(plan, kept, {})

    def install(self, board: FakeBoard, planned: PreparedPlan, **how: bool) -> Any:
        given = {"force": False, "dry_run": False, **how}
        return board.do(install(planned, MPY, self.side(), **given))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_install_puts_what_is_lacking_and_the_record_and_is_confirmed(lab: Lab):
    board = FakeBoard()
    told = lab.install(board, lab.plan(a=b"A", b=b"B"))
    assert told == {
        "packages": {"pack": "1"},
        "origins": {"pack": "an index"},
        "put": ["/lib/pack/a.mpy", "/lib/pack/b.mpy"],
        "removed": [],
        "size_bytes": 2,
        "free_bytes": 200 * 4096,
        "dry_run": False,
        "notes": ["a note"],
    }
    assert board.files["/lib/pack/b.mpy"] == b"B"
    assert lab.confirmed == [json.loads(board.files[MANIFEST_PATH])["packages"]]
    assert JOURNAL_PATH not in board.files


def test_only_what_the_plan_names_is_looked_at(lab: Lab):
    board = FakeBoard()
    lab.install(board, lab.plan(a=b"A"))
    looked = {act.partition(" ")[2] for act in board.did if act.startswith("hash")}
    assert looked == {
        *("/CM.JSON", "/.CM", "/.cm/new", MANIFEST_PATH),
        *("/lib/pack/a.mpy", "/lib/pack/a.py", "/lib/pack", "/lib"),
    }


def test_a_second_time_nothing_is_sent_and_nothing_is_written(lab: Lab):
    board = FakeBoard()
    planned = lab.plan(a=b"A", b=b"B")
    lab.install(board, planned)
    board.did.clear()
    assert lab.install(board, planned)["put"] == []
    assert {act.split()[0] for act in board.did} == {"finish", "statvfs", "hash", "get"}


def test_an_upgrade_sends_what_differs_and_takes_what_is_gone(lab: Lab):
    board = FakeBoard()
    lab.install(board, lab.plan(a=b"A", b=b"B", c=b"C"))
    told = lab.install(board, lab.plan("2", a=b"A", b=b"BB"))
    assert (told["put"], told["removed"]) == (["/lib/pack/b.mpy"], ["/lib/pack/c.mpy"])
    assert {path for path in board.files if path.startswith("/lib")} == {
        "/lib/pack/a.mpy",
        "/lib/pack/b.mpy",
    }


def test_a_dry_run_changes_nothing_not_even_a_journal_that_waits(lab: Lab):
    board = FakeBoard()
    board.files[JOURNAL_PATH] = b"-/lib/x\n"
    before = dict(board.files)
    told = lab.install(board, lab.plan(a=b"A"), dry_run=True)
    assert (told["put"], told["dry_run"]) == (["/lib/pack/a.mpy"], True)
    assert (board.files, lab.confirmed) == (before, [])
    lab.install(board, lab.plan(a=b"A"))
    told = board.do(uninstall(["pack"], lab.side(), force=False, dry_run=True))
    assert told["removed"] == ["/lib/pack/a.mpy"]
    assert "/lib/pack/a.mpy" in board.files


def test_a_leftover_source_goes_and_what_is_in_the_way_is_said(lab: Lab):
    board = FakeBoard()
    board.files["/lib/pack/a.py"] = b"old"
    assert lab.install(board, lab.plan(a=b"A"))["removed"] == ["/lib/pack/a.py"]
    board = FakeBoard()
    board.folders.add("/lib/pack/a.mpy")
    with pytest.raises(PackageError, match="^/lib/pack/a.mpy is in the way"):
        lab.install(board, lab.plan(a=b"A"))
    board = FakeBoard()
    board.files["/lib/pack"] = b"no folder"
    with pytest.raises(PackageError, match="^/lib/pack is in the way"):
        lab.install(board, lab.plan(a=b"A"), force=True)


def test_space_is_looked_at_before_anything_is_sent(lab: Lab):
    board = FakeBoard(free=4)
    with pytest.raises(OSError, match="No space left"):
        lab.install(board, lab.plan(a=b"A"))
    assert {act.split()[0] for act in board.did} == {"finish", "statvfs", "hash"}
    assert lab.confirmed == []


@pytest.mark.parametrize("act", ["put /.cm/new/1", "put /.cm/journal", "rename"])
def test_what_fails_before_the_journal_leaves_nothing(lab: Lab, act: str):
    board = FakeBoard()
    board.breaks = act
    with pytest.raises(OSError, match="No space left"):
        lab.install(board, lab.plan(a=b"A", b=b"B"))
    assert [path for path in board.files if path.startswith("/.cm/new")] == []
    assert (lab.confirmed, JOURNAL_PATH in board.files) == ([], False)


def test_a_switch_that_stops_says_that_it_goes_on(lab: Lab):
    board = FakeBoard()
    doing = install(lab.plan(a=b"A"), MPY, lab.side(), force=False, dry_run=False)
    real = board.finish

    def finish(path: str) -> None:
        if path in board.files:
            raise OSError(5, "Input/output error", path)
        real(path)

    board.finish = finish  # type: ignore[method-assign]
    with pytest.raises(PackageError, match="they are once it restarts"):
        board.do(doing)
    assert lab.confirmed == []


def test_what_an_earlier_try_staged_goes_first(lab: Lab):
    board = FakeBoard()
    board.folders.add("/.cm/new")
    board.files["/.cm/new/7"] = b"old"
    lab.install(board, lab.plan(a=b"A"))
    assert "rm /.cm/new" in board.did
    assert not [path for path in board.files if path.startswith("/.cm/new")]


def test_room_that_an_earlier_try_took_is_room(lab: Lab):
    board = FakeBoard(free=4)
    board.folders.add("/.cm/new")
    board.files["/.cm/new/7"] = bytes(100 * 4096)
    told = lab.install(board, lab.plan(a=b"A"), dry_run=True)
    assert (told["put"], len(board.files)) == (["/lib/pack/a.mpy"], 2)
    assert lab.install(board, lab.plan(a=b"A"))["put"] == ["/lib/pack/a.mpy"]
    assert [path for path in board.files if path.startswith("/.cm/new")] == []


def test_a_fat_board_is_told_that_it_is_not_safe(lab: Lab):
    told = lab.install(FakeBoard(fat=True), lab.plan(a=b"A"))
    assert told["notes"][0] == "a note"
    assert "FAT" in told["notes"][1]
    bridged = FakeBoard(fat=True)
    del bridged.files["/cm.json"]
    assert "FAT" in lab.install(bridged, lab.plan(a=b"A"))["notes"][-1]
    told = lab.install(bridged, lab.plan(a=b"B"), dry_run=True)
    assert "FAT" in told["notes"][-1]


def test_a_board_of_another_kind_than_the_plans_is_refused(lab: Lab):
    board = FakeBoard()
    doing = install(lab.plan(a=b"A"), MPY + 1, lab.side(), force=False, dry_run=False)
    with pytest.raises(PackageError, match="another MicroPython"):
        board.do(doing)


def test_who_lost_his_record_is_known_by_the_stores(lab: Lab):
    board = FakeBoard()
    lab.install(board, lab.plan(a=b"A"))
    del board.files[MANIFEST_PATH]
    with pytest.raises(PackageError, match="no package brought"):
        lab.install(board, lab.plan("2", a=b"AA"))
    lab.known = lab.confirmed[-1]
    assert lab.install(board, lab.plan("2", a=b"AA"))["put"] == ["/lib/pack/a.mpy"]


def test_look_tells_versions_and_drift(lab: Lab):
    board = FakeBoard()
    assert board.do(report_installed({})) == {"packages": {}, "drift": [], "record": {}}
    lab.install(board, lab.plan(a=b"A", b=b"B"))
    board.files["/lib/pack/a.mpy"] = b"mine"
    del board.files["/lib/pack/b.mpy"]
    told = board.do(report_installed({"gone": {}}))
    assert told["packages"] == {"pack": "1"}
    assert told["drift"] == [
        "gone: it was installed, and its record is gone",
        "pack: /lib/pack/a.mpy was changed",
        "pack: /lib/pack/b.mpy is missing",
    ]
    assert told["record"] == {"pack": {"wanted": "pack", "how": {}}}


def test_uninstall_takes_it_off(lab: Lab):
    board = FakeBoard()
    lab.install(board, lab.plan(a=b"A"))
    told = board.do(uninstall(["pack"], lab.side(), force=False, dry_run=False))
    assert (told["removed"], lab.confirmed[-1]) == (["/lib/pack/a.mpy"], {})
    assert "/lib/pack/a.mpy" not in board.files
    with pytest.raises(PackageError, match="no package is called pack"):
        board.do(uninstall(["pack"], lab.side(), force=False, dry_run=False))


def test_the_audit_log_names_what_was_wanted(lab: Lab):
    assert describe_for_audit({"dry_run": True}, lab.plan(a=b"A")) == ("install", "pack (dry run)")
    assert describe_for_audit({"remove": ["a", "b"]}, None) == ("uninstall", "a b")
    assert describe_for_audit({}, None) == ("packages", "")


def test_boards_of_two_kinds_get_each_their_own(lab: Lab):
    old, new = lab.plan(a=b"old kind").plan, lab.plan(a=b"new kind")
    kinds = {0x0105: old.files[MPY], MPY: new.plan.files[MPY]}
    contents = {sha(data): lab.contents.add_bytes(data) for data in (b"old kind", b"new kind")}
    plan = InstallPlan(("pack",), "/lib", old.packages, kinds, origins={"pack": ""})
    for mpy, data in ((0x0105, b"old kind"), (MPY, b"new kind")):
        board = FakeBoard()
        planned = PreparedPlan(plan, contents, {})
        board.do(install(planned, mpy, lab.side(), force=False, dry_run=False))
        assert board.files["/lib/pack/a.mpy"] == data
