"""`mbm board TARGET MACRO`: the macros, on real boards."""

from __future__ import annotations

import json
import re

import pytest

from cloudmanager import Boards, Fleet, Result, Results
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


def test_options_of_file_macros_are_those_of_shells(two: Boards):
    assert run(two, "mkdir -p m/n/o").ok
    two.put(b"hi", ":m/n/a.txt")
    listed = run(two, "ls -r m")["demo-1"].value
    assert "/m/n/a.txt" in [entry.path for entry in listed]
    assert not run(two, "rm m").ok
    assert run(two, "rm -r m").ok
    assert run(two, "mkdir m").ok
    assert run(two, "rm m -rf").ok
    assert "m" not in [entry.name for entry in run(two, "ls")["demo-1"].value]
    with pytest.raises(ValueError, match=r"Usage: mbm board TARGET rm \[-r\] \[-f\] PATH"):
        run(two, "rm -r")
    with pytest.raises(ValueError, match="Wrong number"):
        run(two, "rm -x m")


def test_options_of_macros_are_not_those_of_mbm(boards: VirtualBoards, home: object, mbm):
    assert mbm("board", "demo-1", "mkdir", "-p", "m/n").status == 0
    assert mbm("board", "demo-1", "rm", "-r", ":m", "--json").status == 0
    assert mbm("board", "demo-1", "echo", "-x").out.endswith("-x\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-0.5", -0.5),
        ("'5'", "5"),
        ("(1, 2)", [1, 2]),
        ('{"a": [null]}', {"a": [None]}),
        ("Infinity", "Infinity"),
        ("-Infinity", "-Infinity"),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
        ("[1,NaN]", "[1,NaN]"),
        ("b'x'", "b'x'"),
        ("{1,2}", "{1,2}"),
        ("{1:2}", "{1:2}"),
        ("1j", "1j"),
        ("...", "..."),
        ("[" * 30 + "]" * 30, "[" * 30 + "]" * 30),
        ("[" * 3000, "[" * 3000),
        ("'\\ud800'", "'\\ud800'"),
        ("🐍é", "🐍é"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_settings_can_be_read_by_boards(two: Boards, text: str, value: object):
    assert board_commands.run_macro(two, "set", ["a", text]).ok
    code = "import json\nwith open('/settings.json') as f: a = json.load(f)['a']\na"
    if not text.startswith("[["):  # a board shows the beginning of a long text only
        assert two.run(code)["demo-2"].value == value
    assert json.loads(run(two, "settings")["demo-1"].value)["a"] == value
    two.rm(":settings.json")


def test_setting_of_an_earlier_version_that_boards_cannot_read_is_corrected(fleet: Fleet):
    fleet["demo-1"].put(b'{"a": Infinity, "b": [NaN]}', ":settings.json")
    assert run(fleet["demo-1"], "set c 1").ok
    settings = json.loads(run(fleet["demo-1"], "settings")["demo-1"].value)
    assert settings == {"a": "Infinity", "b": ["NaN"], "c": 1}
    fleet["demo-1"].rm(":settings.json")


def test_macros_about_the_board_itself(two: Boards):
    assert run(two, "echo hello")["demo-1"].stdout == "hello\n"
    assert run(two, "mem_free")["demo-1"].value > 10_000
    assert run(two, "uname")["demo-1"].value[0] == "linux"
    words = board_commands.in_words(run(two, "uname"), "uname")["demo-2"].stdout
    assert re.fullmatch(r"MicroPython 1\.\d+\.\d+ on linux; build .+ on \d{4}-\d\d-\d\d", words)
    assert run(two, "df")["demo-1"].value.free > 0
    two.run("variable = 1")
    states = []
    reset = board_commands.run_macro(two, "reset", (), lambda *state: states.append(state))
    assert reset.ok
    assert states[-1][1:] == (1, 1)
    assert not two.run("variable").ok


def test_board_without_a_named_led_cannot_be_identified(two):
    error = run(two, "identify")["demo-1"].error
    assert "this board's MicroPython names no LED" in str(error)


#: A chip with an LED, which notes what is written to it.
LED = """
import sys, time
class Pin:
    OUT, states = 1, []
    def __init__(self, name, mode): assert (name, mode) == ("LED", 1)
    def value(self, new=None): return 0 if new is None else Pin.states.append(new)
class machine: pass
machine.Pin = Pin
sys.modules["machine"] = machine
"""


def test_identify_blinks_the_led_and_leaves_it_as_it_was(two):
    two.run(LED).raise_for_error()
    assert run(two, "identify").ok
    assert two.run("Pin.states").to_dict()["demo-1"] == [0, 1] * 25 + [0]
    two.run("sys.modules.pop('machine')")


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
    "line", ["rm -f no", "rm -rf no", "rm no -f", "rm -f no*", "rm -r --force no"]
)
def test_removing_by_force_needs_no_file(two: Boards, line: str):
    assert run(two, line).ok


def test_removing_by_force_reports_other_errors(two: Boards):
    assert run(two, "mkdir m").ok
    two.put(b"", ":m/a")
    assert not run(two, "rm -f m").ok
    assert run(two, "rm -fr m").ok


@pytest.mark.parametrize(
    ("machine", "hardware"),
    [
        ("Raspberry Pi Pico W with RP2040", "Raspberry Pi Pico W with RP2040 (rp2)"),
        ("linux [GCC 14.2.1] version", "rp2"),
        ("", "rp2"),
    ],
)
def test_uname_names_the_hardware_if_it_has_a_name(machine, hardware):
    value = ("rp2", "3.4.0; MicroPython v1.28.0 on 2026-04-06", (1, 28, 0), machine)
    results = Results({"pico": Result("pico", 1, "ok", text=repr(value))})
    words = board_commands.in_words(results, "uname")["pico"].stdout
    assert words == f"MicroPython 1.28.0 on {hardware}; build v1.28.0 on 2026-04-06"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (None, "no settings yet: `mbm board TARGET set KEY VALUE` writes the first\n"),
        (b"{}", "no settings\n"),
        (b'{"every": 5, "rooms": ["a", null]}', 'every = 5\nrooms = ["a", null]\n'),
        (b"[", "[\n"),
    ],
)
def test_settings_are_shown_in_words(two: Boards, mbm, home: object, file, words):
    two.rm(":settings.json")
    if file is not None:
        two.put(file, ":settings.json")
    shown = mbm("board", "demo-1", "settings")
    assert (shown.status, shown.out) == (0, words)
    two.rm(":settings.json")


def test_stop_reports_a_board_that_is_not_connected(fleet: Fleet, mbm, home: object):
    fleet.enrol(["stopped-1"])
    stopped = mbm("board", "stopped-1", "stop")
    assert (stopped.status, stopped.out) == (1, "")
    assert stopped.err.startswith("mbm: stopped-1: The board is offline: ")
    fleet.revoke("stopped-1")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("lss", "Did you mean ls"),
        ("rm", r"mbm board TARGET rm \[-r\] \[-f\] PATH"),
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
