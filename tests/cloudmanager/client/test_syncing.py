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


def test_unreadable_file_fails_alone_and_nothing_is_deleted(
    two: Boards, tmp_path: Path, unreadable
):
    for name in ("a.py", "locked.py", "ignored.md", "venv/x.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".mbmignore").write_text("*.md\nvenv/\n")
    two.put(b"older", ":s/locked.py")
    two.put(b"extra", ":s/extra.py")
    unreadable(tmp_path / "locked.py", tmp_path / "ignored.md", tmp_path / "venv")
    for result in two.sync(tmp_path, ":s", delete=True).values():
        assert isinstance(result.error, PermissionError)
        assert "locked.py" in str(result.error)
        assert "nothing was deleted from the boards" in str(result.error)
        assert "ignored" not in str(result.error)
        assert "venv" not in str(result.error)
    found = sorted(entry.path for entry in two.ls(":s")["demo-1"].value)
    assert found == ["/s/a.py", "/s/extra.py", "/s/locked.py"]
    assert two.read(":s/locked.py")["demo-1"].value == b"older"


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


def board_tree(boards: Boards) -> set[str]:
    found = [
        {entry.path.removeprefix("/s/") + "/" * entry.is_dir for entry in result.value}
        for result in boards.ls(":s", recursive=True).values()
    ]
    assert found[0] == found[-1]
    return found[0]


@pytest.mark.parametrize(
    ("there", "here", "delete", "expected"),
    [
        ("x", "x/a", False, {"x/", "x/a"}),
        ("x", "x/a", True, {"x/", "x/a"}),
        ("x", "x/y/z/a", False, {"x/", "x/y/", "x/y/z/", "x/y/z/a"}),
        ("x/", "x", False, {"x"}),
        ("x/", "x", True, {"x"}),
        ("x/a", "x", True, {"x"}),
        ("x/y/z/a", "x/y", True, {"x/", "x/y"}),
        ("x", "x/", False, {"x/"}),
        ("x/a", "y/", True, {"y/"}),
        ("X", "x", True, {"x"}),
    ],
)
def test_file_and_folder_replace_each_other(two, tmp_path: Path, there, here, delete, expected):
    put_place(two, there)
    make_local(tmp_path / "l", here)
    before = two.sync(tmp_path / "l", ":s", delete=delete, dry_run=True)
    done = two.sync(tmp_path / "l", ":s", delete=delete)
    assert done.to_dict() == before.to_dict()
    assert board_tree(two) == expected
    (again,) = plans(two.sync(tmp_path / "l", ":s", delete=delete))
    assert (again.put, again.delete) == ((), ())


@pytest.mark.parametrize(
    ("there", "here", "delete", "error"),
    [
        ("x/a", "x", False, IsADirectoryError),
        ("x/a.key", "x", True, IsADirectoryError),
        ("x.key", "x.key/a", True, NotADirectoryError),
    ],
)
def test_what_is_not_deleted_stays_and_nothing_is_written(
    two, tmp_path: Path, there, here, delete, error
):
    put_place(two, there)
    make_local(tmp_path / "l", here)
    make_local(tmp_path / "l", "new")
    (tmp_path / "l/.mbmignore").write_text("*.key\n!x.key/\n!x.key/a\n")
    results = two.sync(tmp_path / "l", ":s", delete=delete)
    assert [type(result.error) for result in results.values()] == [error, error]
    assert board_tree(two) == {there, *([there.partition("/")[0] + "/"] if "/" in there else [])}


def test_folder_does_not_replace_a_file_that_is_the_destination(two, tmp_path: Path):
    two.put(b"kept", ":s")
    make_local(tmp_path / "l", "a")
    for dest in (":s", ":s/deep"):
        results = two.sync(tmp_path / "l", dest, delete=True)
        assert all(isinstance(each.error, NotADirectoryError) for each in results.values())
    assert two.read(":s")["demo-1"].value == b"kept"


def put_place(boards: Boards, place: str) -> None:
    boards.mkdir(":s")
    if place.endswith("/"):
        boards.mkdir(f":s/{place}")
    else:
        boards.put(b"old", f":s/{place}")


def make_local(folder: Path, place: str) -> None:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if place.endswith("/"):
        path.mkdir()
    else:
        path.write_text("new")


@pytest.mark.parametrize("name", [".venv/a", ".env", ".vscode/a", "a.py~", "x/.env", ".idea/a"])
def test_files_of_tools_are_ignored_unless_asked_for(tmp_path: Path, name):
    assert read_ignore_file(tmp_path).match_file(name)
    (tmp_path / ".mbmignore").write_text("!*\n!.*\n")
    assert not read_ignore_file(tmp_path).match_file(name)


def test_links_inside_of_the_folder_are_followed(two: Boards, tmp_path: Path):
    make_local(tmp_path / "l", "real/a.py")
    make_local(tmp_path / "out", "secret")
    (tmp_path / "l/again").symlink_to("real")
    (tmp_path / "l/real/up").symlink_to("..")
    (tmp_path / "l/self").symlink_to("self")
    (tmp_path / "l/out").symlink_to(tmp_path / "out")
    (tmp_path / "l/file").symlink_to("real/a.py")
    two.sync(tmp_path / "l", ":s")
    assert board_tree(two) == {"again/", "again/a.py", "file", "real/", "real/a.py"}


def test_name_that_is_not_utf8_fails_alone(two: Boards, tmp_path: Path):
    make_local(tmp_path / "l", "good")
    make_local(tmp_path / "l", "bad\udcff")
    make_local(tmp_path / "l", "new\nline")
    results = two.sync(tmp_path / "l", ":s")
    assert all("bad\\\\xff" in str(result.error) for result in results.values())
    assert board_tree(two) == {"good", "new\nline"}
