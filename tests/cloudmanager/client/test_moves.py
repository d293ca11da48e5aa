"""`mv` on two real boards: the rules of the shell's `mv`, the same on all boards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloudmanager import Boards, Fleet


@pytest.fixture
def two(fleet: Fleet, boards) -> Iterator[Boards]:
    two = fleet["demo-[1-2]"]
    two.put(b"a", ":m/a.txt")
    two.put(b"x", ":m/logs/x.txt")
    two.mkdir(":m/empty")
    yield two
    two.rm(":m", recursive=True)


def tree(boards: Boards) -> set[str]:
    found = [
        {entry.path.removeprefix("/m/") for entry in result.value}
        for result in boards.ls(":m", recursive=True).values()
    ]
    assert found[0] == found[-1]
    return found[0]


ALL = {"a.txt", "empty", "logs", "logs/x.txt"}


@pytest.mark.parametrize(
    ("path", "to", "expected"),
    [
        (":m/a.txt", ":m/b.txt", ALL - {"a.txt"} | {"b.txt"}),
        (":m/a.txt", ":m/logs", ALL - {"a.txt"} | {"logs/a.txt"}),
        (":m/a.txt", ":m/logs/", ALL - {"a.txt"} | {"logs/a.txt"}),
        (":m/a.txt", ":m/new/", ALL - {"a.txt"} | {"new", "new/a.txt"}),
        (":m/a.txt", ":m/empty", ALL - {"a.txt"} | {"empty/a.txt"}),
        (":m/a.txt", ":m/A.txt", ALL - {"a.txt"} | {"A.txt"}),
        (":m/logs", ":m/old", {"a.txt", "empty", "old", "old/x.txt"}),
        (":m/logs/", ":m/old", {"a.txt", "empty", "old", "old/x.txt"}),
        (":m/logs", ":m/empty", {"a.txt", "empty", "empty/logs", "empty/logs/x.txt"}),
        (":m/logs", ":m/logs.old", {"a.txt", "empty", "logs.old", "logs.old/x.txt"}),
    ],
)
def test_path_is_renamed_or_moved_into_a_folder(two: Boards, path, to, expected):
    assert two.mv(path, to).ok
    assert tree(two) == expected


@pytest.mark.parametrize("to", [":m/logs/old", ":m/./logs/a/../old", ":m/LOGS/old", ":m/logs/old/"])
def test_folder_is_not_moved_into_itself(two: Boards, to):
    with pytest.raises(ValueError, match="into itself"):
        two.mv(":m/logs", to)
    assert tree(two) == ALL


@pytest.mark.parametrize(
    ("path", "to", "why"),
    [
        (":m/logs", ":m/logs/", "same path"),
        (":m/a.txt", ":m/./a.txt", "same path"),
        (":", ":m/x", "the root"),
        (":m/..", ":m/x/", "the root"),
        (":m/logs", ":m/", "is in :m/ already"),
        (":m/a.txt", ":m", "is in :m already"),
    ],
)
def test_move_without_a_meaning_is_refused(two: Boards, path, to, why):
    with pytest.raises(ValueError, match=why):
        two.mv(path, to)
    assert tree(two) == ALL


@pytest.mark.parametrize(
    ("path", "to", "error", "named"),
    [
        (":m/none", ":m/b", "No such file", "/m/none"),
        (":m/logs", ":m/a.txt", "Not a directory", "/m/a.txt"),
        (":m/logs", ":m/a.txt/", "Not a directory", "/m/a.txt"),
        (":m/logs/x.txt", ":m/a.txt/", "Not a directory", "/m/a.txt"),
        (":m/a.txt", ":m/none/b.txt", "No such file", "/m/none/b.txt"),
        (":m/a.txt", f":m/{'b' * 300}", "File name too long", f"/m/{'b' * 300}"),
    ],
)
def test_impossible_move_changes_nothing(two: Boards, path, to, error, named):
    for name, each in two.mv(path, to).items():
        assert isinstance(each.error, OSError)
        assert (each.error.filename, error in str(each.error)) == (f"{name}:{named}", True)
    assert tree(two) == ALL


def test_file_does_not_replace_a_folder_in_the_destination(two: Boards):
    two.mkdir(":m/logs/a.txt")
    assert all(
        isinstance(each.error, IsADirectoryError) for each in two.mv(":m/a.txt", ":m/logs").values()
    )
    assert tree(two) == ALL | {"logs/a.txt"}


def test_destination_that_is_a_folder_on_some_boards_is_refused(two: Boards, fleet: Fleet):
    fleet["demo-2"].mkdir(":m/there")
    with pytest.raises(ValueError, match=r":m/there is a folder on demo-2 but not on demo-1"):
        two.mv(":m/a.txt", ":m/there")
    assert two.stat(":m/a.txt").ok
    assert two.mv(":m/a.txt", ":m/there/").ok
    assert tree(two) == ALL - {"a.txt"} | {"there", "there/a.txt"}
