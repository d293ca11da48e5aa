"""Paths on boards, and local file names made from names of boards."""

from pathlib import Path

import pytest

from cloudmanager.client.board_paths import (
    check_local_name,
    join_path,
    local_path,
    parse_board_path,
)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (":", "/"),
        (":/", "/"),
        (":a.py", "/a.py"),
        (":/a.py", "/a.py"),
        (":lib/", "/lib"),
        ("://a//b/./c", "/a/b/c"),
        (":a/../b", "/b"),
        (":../../b", "/b"),
        (":é b", "/é b"),
    ],
)
def test_path_on_boards_begins_with_a_colon(text, path):
    assert parse_board_path(text) == path


@pytest.mark.parametrize(("text", "why"), [("a.py", "colon, such as :a.py"), (":a\0b", "NUL")])
def test_invalid_board_path_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse_board_path(text)


def test_names_are_joined_to_board_paths():
    assert join_path("/", "a") == "/a"
    assert join_path("/lib", "a/b") == "/lib/a/b"


@pytest.mark.parametrize("path", ["a.py", "a/b/c.txt", "é", ".hidden", "a b", "con.d/x"][:5])
def test_plain_names_become_local_paths(path):
    assert local_path(Path("out"), path) == Path("out") / path


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "a/",
        "C:\\x",
        "..\\x",
        "a\\b",
        "\\\\host\\share",
        "x" * 256,
        "é" * 200,
        "\n" * 100,
    ],
)
def test_hostile_names_are_refused(path):
    with pytest.raises(ValueError, match="not a valid local file name"):
        local_path(Path("out"), path)


@pytest.mark.parametrize(
    ("name", "local_name"),
    [
        ("a\0b", "a%00b"),
        ("a\nb\tc", "a%0Ab%09c"),
        ("a\x1b[2J", "a%1B[2J"),
        ("a\u202eb", "a%E2%80%AEb"),
        ("a\udcff\udc80.txt", "a%FF%80.txt"),
        ("a\ud800", "a%ED%A0%80"),
        ("100%.txt", "100%.txt"),
        ("\N{MAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}", "\U0001f468\u200d\U0001f4bb"),
    ],
)
def test_invisible_characters_of_a_name_are_escaped(name, local_name):
    assert local_path(Path("out"), f"d/{name}") == Path("out/d") / local_name


def test_windows_device_names_are_refused_only_as_whole_names():
    check_local_name("console.txt")
    check_local_name("com10")


@pytest.mark.parametrize(
    "name",
    ["c:x", "nul", "CON.txt", "com1", "lpt9.log", "a.", "a ", "a|b", "a?", 'a"b', "12:30.csv"],
)
def test_names_that_windows_reserves_are_refused_on_windows_only(name):
    check_local_name(name, windows=False)
    with pytest.raises(ValueError, match="not a valid local file name"):
        check_local_name(name, windows=True)
