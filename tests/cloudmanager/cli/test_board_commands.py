"""`mbm board TARGET MACRO`: the macros, on real boards."""

from __future__ import annotations

import json

import pytest

from cloudmanager import Boards, Fleet
from cloudmanager.cli import board_commands
from cloudmanager.virtual.virtual_boards import VirtualBoards


@pytest.fixture
def two(fleet: Fleet, boards: VirtualBoards) -> Boards:
    return fleet["demo-[1-2]"]


def run(boards: Boards, line: str):
    name, *words = line.split()
    return board_commands.run_macro(boards, name, words)


def test_file_macros(two: Boards):
    assert run(two, "mkdir m").ok
    two.put(b"hi", ":m/a.txt")
    assert run(two, "cat m/a.txt")["demo-2"].value == b"hi"
    assert run(two, "stat :m/a.txt")["demo-2"].value.size == 2
    assert run(two, "mv m/a.txt m/b.txt").ok
    assert [entry.name for entry in run(two, "ls m")["demo-1"].value] == ["b.txt"]
    assert not run(two, "rmdir m").ok
    assert run(two, "rm m/b.txt").ok
    assert run(two, "rmdir m").ok
    assert "m" not in [entry.name for entry in run(two, "ls")["demo-1"].value]


def test_macros_about_the_board_itself(two: Boards):
    assert run(two, "echo hello")["demo-1"].stdout == "hello\n"
    assert run(two, "mem_free")["demo-1"].value > 10_000
    assert run(two, "uname")["demo-1"].value[0] == "linux"
    assert run(two, "df")["demo-1"].value.free > 0
    two.run("variable = 1")
    assert run(two, "reset").ok
    assert not two.run("variable").ok


def test_set_changes_one_setting_and_keeps_the_others(two: Boards, fleet: Fleet):
    assert isinstance(run(two, "settings")["demo-1"].error, FileNotFoundError)
    fleet["demo-2"].put(b'{"own": [1, 2]}', ":settings.json")
    for line in ("set every 5", "set room lab", "set on true"):
        assert run(two, line).ok
    expected = {"every": 5, "room": "lab", "on": True}
    settings = run(two, "settings").to_dict()
    assert json.loads(settings["demo-1"]) == expected
    assert json.loads(settings["demo-2"]) == {"own": [1, 2], **expected}
    fleet["demo-1"].put(b"[", ":settings.json")
    with pytest.raises(ValueError, match="not a JSON object"):
        run(two, "set a 1")
    two.rm(":settings.json")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("lss", "Did you mean ls"),
        ("rm", "mbm board TARGET rm PATH"),
        ("set a", "set KEY VALUE"),
        ("df x", "TARGET df$"),
    ],
)
def test_wrong_macro_or_argument_count_is_refused(two: Boards, line: str, why: str):
    with pytest.raises(ValueError, match=why):
        run(two, line)


def test_frequent_macros_exist():
    assert {"echo", "reset", "ls", "mkdir", "rmdir", "mem_free", "set", "settings", "uname"} <= set(
        board_commands.MACROS
    )
