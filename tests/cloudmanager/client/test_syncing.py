"""Synchronizing a local folder to boards: only differences are sent and deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager import Boards, Fleet
from cloudmanager.client.files import Entry
from cloudmanager.client.syncing import SyncPlan, _unwanted_paths, read_ignore_file
from cloudmanager.virtual.virtual_boards import VirtualBoards


@pytest.fixture
def two(fleet: Fleet, boards: VirtualBoards) -> Iterator[Boards]:
    two = fleet["demo-[1-2]"]
    yield two
    two.rm(":s", recursive=True)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    src = tmp_path / "src"
    for name in ("main.py", "lib/a.py", "lib/b.py", "__pycache__/x.pyc", "notes.md", ".git/HEAD"):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_text(name)
    (src / ".mbmignore").write_text("*.md\n!keep.md\n")
    return src


def plans(results) -> set[SyncPlan]:
    return set(results.to_dict().values())


def newest_job(boards: Boards) -> int:
    return max(int(job["job"]) for job in boards._fleet.jobs())


def test_second_sync_sends_nothing(two: Boards, src: Path):
    (plan,) = plans(two.sync(src, ":s"))
    assert plan.put == ("/s/main.py", "/s/lib/a.py", "/s/lib/b.py")
    assert plan.size_bytes == len("main.pylib/a.pylib/b.py")
    jobs_before = newest_job(two)
    (plan,) = plans(two.sync(src, ":s"))
    assert plan == SyncPlan((), (), 3, 0)
    assert newest_job(two) - jobs_before == 2  # one look at each board


def test_different_boards_get_different_files(two: Boards, src: Path, fleet: Fleet):
    two.sync(src, ":s")
    fleet["demo-2"].put(b"changed", ":s/lib/a.py")
    results = two.sync(src, ":s")
    assert results["demo-1"].value.put == ()
    assert results["demo-2"].value.put == ("/s/lib/a.py",)
    assert two.read(":s/lib/a.py").to_dict() == dict.fromkeys(results, b"lib/a.py")


def test_dry_run_changes_nothing(two: Boards, src: Path):
    (plan,) = plans(two.sync(src, ":s", delete=True, dry_run=True))
    assert len(plan.put) == 3
    assert isinstance(two.stat(":s")["demo-1"].error, FileNotFoundError)


def test_delete_removes_extra_files_except_ignored_ones(two: Boards, src: Path):
    two.sync(src, ":s")
    for name in ("old.py", "gone/deep/x.py", "notes.md"):
        two.put(b"x", f":s/{name}")
    assert plans(two.sync(src, ":s")) == {SyncPlan((), (), 3, 0)}
    (plan,) = plans(two.sync(src, ":s", delete=True))
    assert plan.delete == ("/s/gone/deep/x.py", "/s/old.py", "/s/gone/deep/", "/s/gone/")
    left = [entry.path for entry in two.ls(":s", recursive=True)["demo-1"].value]
    assert left == ["/s/lib", "/s/lib/a.py", "/s/lib/b.py", "/s/main.py", "/s/notes.md"]


def test_delete_at_the_root_keeps_the_client(two: Boards, src: Path, tmp_path: Path):
    (plan, *_) = plans(two.sync(src, ":/", delete=True, dry_run=True))
    assert not [path for path in plan.delete if path.startswith(("/lib/cm", "/cm.json"))]


def test_empty_folder_can_be_synced(two: Boards, tmp_path: Path):
    (tmp_path / "none").mkdir()
    assert plans(two.sync(tmp_path / "none", ":s", delete=True)) == {SyncPlan((), (), 0, 0)}


def test_missing_folder_is_an_error(two: Boards, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        two.sync(tmp_path / "no", ":s")


def test_mbmignore_is_read_as_gitignore_is(src: Path):
    spec = read_ignore_file(src)
    assert spec.match_file("notes.md")
    assert spec.match_file("deep/er/notes.md")
    assert not spec.match_file("keep.md")
    assert spec.match_file(".mbmignore")
    assert spec.match_file("a/__pycache__/b.py")


def test_folder_with_ignored_files_is_not_deleted(tmp_path: Path):
    there = [
        Entry("/lib", True, 0),
        Entry("/lib/cm", True, 0),
        Entry("/lib/cm/run.mpy", False, 1),
        Entry("/lib/x.py", False, 1),
        Entry("/cm.json", False, 1),
        Entry("/data", True, 0),
        Entry("/data/a.mbm-part", False, 1),
    ]
    assert _unwanted_paths(there, "/", set(), read_ignore_file(tmp_path)) == ("/lib/x.py",)
