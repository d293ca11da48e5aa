"""Install, uninstall and report on one fake board: a dict of files that executes operations."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.installs.board_install import (
    ServerSide,
    describe_for_audit,
    install,
    report_installed,
    uninstall,
)
from cm_server.installs.content_store import Content, ContentStore
from cm_server.installs.install_manifest import JOURNAL_PATH, MANIFEST_PATH
from cm_server.installs.job_steps import OpGenerator
from cm_server.installs.plan_cache import PreparedPlan
from cm_server.limits import Limits
from cm_server.packages.plan import InstallPlan, PlannedFile
from cm_server.packages.release import Release
from cm_server.packages.requirement import parse_requirement

MPY = 0x2806


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FakeBoard:
    """Executes file operations on a dict of files, and records them.

    Args:
        free: free blocks of 4 KiB.
        fat: whether the file system ignores case.
    """

    def __init__(self, *, free: int = 200, fat: bool = False) -> None:
        self.files: dict[str, bytes] = {"/cm.json": b"{}"}
        self.folders = {"/lib", "/lib/cm"}
        self.free = free
        self.fat = fat
        self.executed: list[str] = []
        self.failing_op = ""  # the operation that begins so fails once with ENOSPC

    def run(self, generator: OpGenerator) -> Any:
        """Execute the operations of a generator; return its value."""
        ops = next(generator)
        while True:
            try:
                results = [self.execute(*op) for op in ops]
            except OSError as error:
                resume = lambda error=error: generator.throw(error)  # noqa: E731
            else:
                resume = lambda results=results: generator.send(results)  # noqa: E731
            try:
                ops = resume()
            except StopIteration as end:
                return end.value

    def execute(self, name: str, path: str, *more: Any) -> Any:
        self.executed.append(f"{name} {path}")
        if self.failing_op and self.executed[-1].startswith(self.failing_op):
            self.failing_op = ""
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

    def rmdir(self, path: str) -> None:
        if any(name.startswith(path + "/") for name in (*self.files, *self.folders)):
            raise OSError(39, "Directory not empty", path)
        self.folders.discard(path)

    def put(self, path: str, content: Content, staged: int = 0) -> int:
        assert staged == path.startswith("/.cm/new/"), "only staged files are written in place"
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
    """Makes plans and the server's side of jobs, and records confirmed manifests."""

    def __init__(self, folder: Path) -> None:
        self.contents = ContentStore(folder, Limits(), lambda _seconds, _act: None)
        self.confirmed: list[Any] = []
        self.known: Any = {}

    def side(self) -> ServerSide:
        return ServerSide(self.known, self.confirmed.append, self.contents.add_bytes)

    def plan(self, version: str = "1", **files: bytes) -> PreparedPlan:
        requirement = parse_requirement("pack")
        placed = [
            PlannedFile(f"/lib/pack/{name}.mpy", sha(data), len(data), "pack")
            for name, data in sorted(files.items())
        ]
        release = Release(requirement, version, ())
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

    def install(self, board: FakeBoard, planned: PreparedPlan, **options: bool) -> Any:
        all_options = {"force": False, "dry_run": False, **options}
        return board.run(install(planned, MPY, self.side(), **all_options))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_install_writes_files_and_manifest_and_is_confirmed(lab: Lab):
    board = FakeBoard()
    report = lab.install(board, lab.plan(a=b"A", b=b"B"))
    assert report == {
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


def test_only_paths_of_the_plan_are_hashed(lab: Lab):
    board = FakeBoard()
    lab.install(board, lab.plan(a=b"A"))
    hashed = {op.partition(" ")[2] for op in board.executed if op.startswith("hash")}
    assert hashed == {
        *("/CM.JSON", "/.CM", "/.cm/new", MANIFEST_PATH),
        *("/lib/pack/a.mpy", "/lib/pack/a.py", "/lib/pack", "/lib"),
    }


def test_second_install_writes_nothing(lab: Lab):
    board = FakeBoard()
    planned = lab.plan(a=b"A", b=b"B")
    lab.install(board, planned)
    board.executed.clear()
    assert lab.install(board, planned)["put"] == []
    assert {op.split()[0] for op in board.executed} == {"finish", "statvfs", "hash", "get"}


def test_upgrade_writes_changed_and_removes_old_files(lab: Lab):
    board = FakeBoard()
    lab.install(board, lab.plan(a=b"A", b=b"B", c=b"C"))
    report = lab.install(board, lab.plan("2", a=b"A", b=b"BB"))
    assert (report["put"], report["removed"]) == (["/lib/pack/b.mpy"], ["/lib/pack/c.mpy"])
    assert {path for path in board.files if path.startswith("/lib")} == {
        "/lib/pack/a.mpy",
        "/lib/pack/b.mpy",
    }


def test_dry_run_changes_nothing_and_leaves_a_pending_journal(lab: Lab):
    board = FakeBoard()
    board.files[JOURNAL_PATH] = b"-/lib/x\n"
    before = dict(board.files)
    report = lab.install(board, lab.plan(a=b"A"), dry_run=True)
    assert (report["put"], report["dry_run"]) == (["/lib/pack/a.mpy"], True)
    assert (board.files, lab.confirmed) == (before, [])
    lab.install(board, lab.plan(a=b"A"))
    report = board.run(uninstall(["pack"], lab.side(), force=False, dry_run=True))
    assert report["removed"] == ["/lib/pack/a.mpy"]
    assert "/lib/pack/a.mpy" in board.files


def test_shadowing_source_is_removed_and_obstacle_is_an_error(lab: Lab):
    board = FakeBoard()
    board.files["/lib/pack/a.py"] = b"old"
    with pytest.raises(PackageError, match="a.py does not belong to a package"):
        lab.install(board, lab.plan(a=b"A"))
    assert board.files["/lib/pack/a.py"] == b"old"
    assert lab.install(board, lab.plan(a=b"A"), force=True)["removed"] == ["/lib/pack/a.py"]
    board = FakeBoard()
    board.folders.add("/lib/pack/a.mpy")
    with pytest.raises(PackageError, match="^/lib/pack/a.mpy is in the way"):
        lab.install(board, lab.plan(a=b"A"))
    board = FakeBoard()
    board.files["/lib/pack"] = b"a file"
    with pytest.raises(PackageError, match="^/lib/pack is in the way"):
        lab.install(board, lab.plan(a=b"A"), force=True)


def test_free_space_is_checked_before_files_are_sent(lab: Lab):
    board = FakeBoard(free=4)
    with pytest.raises(OSError, match="No space left"):
        lab.install(board, lab.plan(a=b"A"))
    assert {op.split()[0] for op in board.executed} == {"finish", "statvfs", "hash"}
    assert lab.confirmed == []


@pytest.mark.parametrize("op", ["put /.cm/new/1", "put /.cm/journal", "rename"])
def test_failure_before_the_journal_leaves_no_staged_files(lab: Lab, op: str):
    board = FakeBoard()
    board.failing_op = op
    with pytest.raises(OSError, match="No space left"):
        lab.install(board, lab.plan(a=b"A", b=b"B"))
    assert [path for path in board.files if path.startswith("/.cm/new")] == []
    assert (lab.confirmed, JOURNAL_PATH in board.files) == ([], False)


def test_interrupted_journal_is_reported(lab: Lab):
    board = FakeBoard()
    generator = install(lab.plan(a=b"A"), MPY, lab.side(), force=False, dry_run=False)
    real = board.finish

    def finish(path: str) -> None:
        if path in board.files:
            raise OSError(5, "Input/output error", path)
        real(path)

    board.finish = finish  # type: ignore[method-assign]
    with pytest.raises(PackageError, match="completes the change when it restarts"):
        board.run(generator)
    assert lab.confirmed == []


def test_leftover_staged_files_are_removed_first(lab: Lab):
    board = FakeBoard()
    board.folders.add("/.cm/new")
    board.files["/.cm/new/7"] = b"old"
    lab.install(board, lab.plan(a=b"A"))
    assert "rm /.cm/new" in board.executed
    assert not [path for path in board.files if path.startswith("/.cm/new")]


def test_space_of_leftover_staged_files_counts_as_free(lab: Lab):
    board = FakeBoard(free=4)
    board.folders.add("/.cm/new")
    board.files["/.cm/new/7"] = bytes(100 * 4096)
    report = lab.install(board, lab.plan(a=b"A"), dry_run=True)
    assert (report["put"], len(board.files)) == (["/lib/pack/a.mpy"], 2)
    assert lab.install(board, lab.plan(a=b"A"))["put"] == ["/lib/pack/a.mpy"]
    assert [path for path in board.files if path.startswith("/.cm/new")] == []


def test_fat_file_system_is_noted(lab: Lab):
    report = lab.install(FakeBoard(fat=True), lab.plan(a=b"A"))
    assert report["notes"][0] == "a note"
    assert "FAT" in report["notes"][1]
    bridged = FakeBoard(fat=True)
    del bridged.files["/cm.json"]
    assert "FAT" in lab.install(bridged, lab.plan(a=b"A"))["notes"][-1]
    report = lab.install(bridged, lab.plan(a=b"B"), dry_run=True)
    assert "FAT" in report["notes"][-1]


def test_board_with_another_bytecode_version_is_refused(lab: Lab):
    board = FakeBoard()
    generator = install(lab.plan(a=b"A"), MPY + 1, lab.side(), force=False, dry_run=False)
    with pytest.raises(PackageError, match="another MicroPython"):
        board.run(generator)


def test_lost_manifest_is_replaced_by_the_stores(lab: Lab):
    board = FakeBoard()
    lab.install(board, lab.plan(a=b"A"))
    del board.files[MANIFEST_PATH]
    with pytest.raises(PackageError, match="does not belong to a package"):
        lab.install(board, lab.plan("2", a=b"AA"))
    lab.known = lab.confirmed[-1]
    assert lab.install(board, lab.plan("2", a=b"AA"))["put"] == ["/lib/pack/a.mpy"]


def test_report_contains_versions_and_drift(lab: Lab):
    board = FakeBoard()
    assert board.run(report_installed({})) == {"packages": {}, "drift": [], "record": {}}
    lab.install(board, lab.plan(a=b"A", b=b"B"))
    board.files["/lib/pack/a.mpy"] = b"mine"
    del board.files["/lib/pack/b.mpy"]
    report = board.run(report_installed({"gone": {}}))
    assert report["packages"] == {"pack": "1"}
    assert report["drift"] == [
        "gone: was installed, but the board's list of packages lacks it",
        "pack: /lib/pack/a.mpy was changed",
        "pack: /lib/pack/b.mpy is missing",
    ]
    assert report["record"] == {"pack": {"wanted": "pack", "how": {}}}


def test_uninstall_removes_files(lab: Lab):
    board = FakeBoard()
    lab.install(board, lab.plan(a=b"A"))
    report = board.run(uninstall(["pack"], lab.side(), force=False, dry_run=False))
    assert (report["removed"], lab.confirmed[-1]) == (["/lib/pack/a.mpy"], {})
    assert "/lib/pack/a.mpy" not in board.files
    with pytest.raises(PackageError, match="no package is called pack"):
        board.run(uninstall(["pack"], lab.side(), force=False, dry_run=False))


def test_uninstall_of_the_last_package_leaves_no_trace(lab: Lab):
    board = FakeBoard()
    before = dict(board.files), set(board.folders)
    lab.install(board, lab.plan(a=b"A"))
    board.run(uninstall(["pack"], lab.side(), force=False, dry_run=False))
    assert (board.files, board.folders) == before
    assert board.executed[-2:] == [f"rm {MANIFEST_PATH}", "rmdir /.cm"]


def test_uninstall_of_one_of_two_packages_keeps_the_manifest(lab: Lab):
    board = FakeBoard()
    lab.install(board, lab.plan(a=b"A"))
    other = {"version": "1", "source": "", "needs": [], "files": {}}
    manifest = {**lab.confirmed[-1], "other": other}
    board.files[MANIFEST_PATH] = json.dumps({"packages": manifest}).encode()
    board.run(uninstall(["pack"], lab.side(), force=False, dry_run=False))
    assert json.loads(board.files[MANIFEST_PATH]) == {"packages": {"other": other}}


@pytest.mark.parametrize("op", [f"rm {MANIFEST_PATH}", "rmdir /.cm"])
def test_uninstall_succeeds_although_the_empty_manifest_remains(lab: Lab, op: str):
    board = FakeBoard()
    lab.install(board, lab.plan(a=b"A"))
    board.failing_op = op
    report = board.run(uninstall(["pack"], lab.side(), force=False, dry_run=False))
    assert (report["removed"], lab.confirmed[-1]) == (["/lib/pack/a.mpy"], {})
    assert board.failing_op == "", "the operation was not tried"


def test_audit_detail_names_the_requirements(lab: Lab):
    assert describe_for_audit({"dry_run": True}, lab.plan(a=b"A")) == ("install", "pack (dry run)")
    assert describe_for_audit({"remove": ["a", "b"]}, None) == ("uninstall", "a b")
    assert describe_for_audit({}, None) == ("packages", "")


def test_boards_of_two_kinds_get_their_own_files(lab: Lab):
    old, new = lab.plan(a=b"old kind").plan, lab.plan(a=b"new kind")
    kinds = {0x0105: old.files[MPY], MPY: new.plan.files[MPY]}
    contents = {sha(data): lab.contents.add_bytes(data) for data in (b"old kind", b"new kind")}
    plan = InstallPlan(("pack",), "/lib", old.packages, kinds, origins={"pack": ""})
    for mpy, data in ((0x0105, b"old kind"), (MPY, b"new kind")):
        board = FakeBoard()
        planned = PreparedPlan(plan, contents, {})
        board.run(install(planned, mpy, lab.side(), force=False, dry_run=False))
        assert board.files["/lib/pack/a.mpy"] == data
