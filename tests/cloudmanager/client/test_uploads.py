"""Destinations of copied files, as with mpremote's `cp`; and copies of many files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager import Boards, Fleet
from cloudmanager.virtual.virtual_boards import VirtualBoards


@pytest.fixture
def two(fleet: Fleet, boards: VirtualBoards) -> Iterator[Boards]:
    two = fleet["demo-[1-2]"]
    two.mkdir(":u")
    yield two
    two.rm(":u", recursive=True)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/a.py").write_text("a")
    (tmp_path / "src/sub/b.py").write_text("b")
    return tmp_path / "src"


def files(boards: Boards, board: str = "demo-1") -> list[str]:
    found = boards.ls(":u", recursive=True)[board].value
    return sorted(entry.path.removeprefix("/u/") for entry in found if not entry.is_dir)


@pytest.mark.parametrize(
    ("dest", "found"),
    [(":u/x.py", "x.py"), (":u/", "a.py"), (":u", "a.py"), (":u/n/m/", "n/m/a.py")],
)
def test_file_is_copied_to_its_destination(two: Boards, src: Path, dest, found):
    two.put(src / "a.py", dest).raise_for_error()
    assert files(two) == files(two, "demo-2") == [found]


@pytest.mark.parametrize(
    ("dest", "below"), [(":u/new", "new/"), (":u/new/", "new/src/"), (":u", "src/")]
)
def test_folder_is_copied_completely(two: Boards, src: Path, dest, below):
    two.put(src, dest).raise_for_error()
    assert files(two) == [f"{below}a.py", f"{below}sub/b.py"]


def test_empty_folder_is_made(two: Boards, tmp_path: Path):
    (tmp_path / "none").mkdir()
    assert two.put(tmp_path / "none", ":u/").to_dict() == {"demo-1": 0, "demo-2": 0}
    assert two.put(tmp_path / "none", ":u/other").ok
    assert [entry.name for entry in two.ls(":u")["demo-1"].value] == ["none", "other"]


def test_several_sources_are_put_into_a_folder(two: Boards, src: Path):
    assert two.put([src / "a.py", src / "sub"], ":u/n").ok
    assert files(two) == ["n/a.py", "n/sub/b.py"]


def test_destination_may_be_a_folder_on_some_boards(two: Boards, src: Path, fleet: Fleet):
    fleet["demo-2"].mkdir(":u/x")
    assert two.put(src / "a.py", ":u/x").ok
    assert files(two) == ["x"]
    assert files(two, "demo-2") == ["x/a.py"]


def test_bytes_need_a_file_name(two: Boards):
    with pytest.raises(ValueError, match="need a file name"):
        two.put(b"x", ":u/")


def test_many_files_need_several_jobs_and_have_one_result(two: Boards, tmp_path: Path):
    (tmp_path / "many").mkdir()
    for n in range(60):
        (tmp_path / f"many/{n}.py").write_bytes(os.urandom(100 + n))
    result = two.put(tmp_path / "many", ":u/many")
    assert result.to_dict() == dict.fromkeys(result, sum(100 + n for n in range(60)))
    assert len(files(two)) == 60
    assert two.put(tmp_path / "many", ":u/many/").ok  # and again, below its name
    assert len(files(two)) == 120


def test_failing_board_does_not_stop_others(two: Boards, tmp_path: Path, fleet: Fleet):
    fleet["demo-1"].mkdir(":u/many/30.py", parents=True)
    (tmp_path / "many").mkdir()
    for n in range(60):
        (tmp_path / f"many/{n}.py").write_text(str(n))
    results = two.put([tmp_path / "many"], ":u/")
    assert isinstance(results["demo-1"].error, IsADirectoryError)
    assert results["demo-2"].ok
    assert len(files(two, "demo-2")) == 60


def test_missing_source_sends_nothing(two: Boards, src: Path):
    with pytest.raises(FileNotFoundError):
        two.put([src / "a.py", src / "no.py"], ":u/")
    assert files(two) == []
