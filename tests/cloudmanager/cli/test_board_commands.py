"""`mbm board TARGET MACRO`: the macros, on real boards."""

from __future__ import annotations

import calendar
import hashlib
import json
import re
import time
from pathlib import Path

import pytest

from cloudmanager import Boards, Fleet, Result, Results
from cloudmanager.cli import board_commands
from cloudmanager.display.file_report import files_text
from cloudmanager.protocol.errors import ServerError
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
    with pytest.raises(ValueError, match=r"Usage: mbm board TARGET rm \[-r\] \[-f\] PATH…"):
        run(two, "rm -r")
    with pytest.raises(ValueError, match=r"rm has no option -x\..* :-x"):
        run(two, "rm -x m")


def test_path_that_begins_with_a_dash_has_a_colon(two: Boards):
    assert run(two, "touch :-r").ok
    assert run(two, "rm :-r").ok


def test_macros_of_files_take_several_paths(two: Boards, fleet: Fleet):
    assert run(two, "mkdir m n/").ok
    assert run(two, "touch m/a :m/b n/c").ok
    fleet["demo-1"].put(b"one", ":m/a")
    fleet["demo-1"].put(b"two", ":n/c")
    assert run(two, "cat m/a m/b n/c").to_dict() == {"demo-1": b"onetwo", "demo-2": b""}
    listed = run(two, "ls m n")["demo-2"].value
    assert [entry.path for entry in listed] == ["/m/a", "/m/b", "/n/c"]
    assert [tree.path for tree in run(two, "tree m n")["demo-1"].value] == ["/m", "/n"]
    sums = run(two, "sha256sum m/* n/c")["demo-1"].value
    assert [each.path for each in sums] == ["/m/a", "/m/b", "/n/c"]
    assert sums[0].sha256 == hashlib.sha256(b"one").hexdigest()
    assert run(two, "rm m/a m/b n/*").ok
    assert run(two, "rmdir m n").ok
    assert not {"m", "n"} & {entry.name for entry in run(two, "ls")["demo-1"].value}


@pytest.mark.parametrize(
    ("line", "partial", "errors"),
    [
        ("cat m/a m/no m/b", b"ab", 1),
        ("rm -r no m no2", None, 2),
        ("mkdir m m/new", None, 1),
        ("touch m/new m/sub no/new", None, 2),
        ("rmdir m m/sub", None, 1),
    ],
)
def test_path_that_fails_does_not_keep_the_others(two: Boards, line, partial, errors):
    run(two, "mkdir -p m/sub")
    two.put(b"a", ":m/a")
    two.put(b"b", ":m/b")
    for result in run(two, line).values():
        assert isinstance(result.error, OSError)
        assert str(result.error).count("demo-") == errors
        assert getattr(result, "partial", "") == partial
    left = {entry.path for entry in run(two, "ls -r")["demo-2"].value}
    assert ("/m" in left) == (not line.startswith("rm -r"))
    assert ("/m/new" in left) == ("m/new" in line)
    assert ("/m/sub" in left) == (not line.startswith("rm"))
    run(two, "rm -rf m")


def test_what_succeeded_is_shown_beside_the_errors(two: Boards, home: object, mbm):
    run(two, "mkdir m")
    two.put(b"a", ":m/a")
    listed = mbm("board", "demo-1", "ls", "m", "no")
    assert (listed.status, listed.out) == (1, "           1 /m/a\n")
    assert listed.err == "mbm: demo-1:/no: No such file or directory.\n"
    sums = mbm("board", "demo-[1-2]", "sha256sum", "m", "m/a")
    digest = hashlib.sha256(b"a").hexdigest()
    assert sums.out.splitlines()[1:] == [f"{digest}  /m/a", ":/m: Is a directory."]
    as_json = mbm("board", "demo-1", "sha256sum", "m", "m/a", "--json").json["demo-1"]
    assert as_json["value"] == [{"sha256": digest, "path": "/m/a"}]
    assert as_json["status"] == "error"
    run(two, "rm -r m")


def test_trees_are_those_of_mpremote(two: Boards, home: object, mbm):
    run(two, "mkdir -p t/b/c t/z")
    two.put(bytes(1536), ":t/a.py")
    two.put(b"", ":t/b/d.py")
    shown = mbm("board", "demo-1", "tree", "t")
    assert shown.out.splitlines() == [
        ":/t",
        "├── a.py",
        "├── b",
        "│   ├── c",
        "│   └── d.py",
        "└── z",
    ]
    sized = mbm("board", "demo-1", "tree", "t", "-s").out.splitlines()
    assert sized[1:5:3] == ["├── [     1536]  a.py", "│   └── [        0]  d.py"]
    for options in (["--human"], ["-s", "--human"]):
        assert "├── [  1.5K]  a.py\n" in mbm("board", "demo-1", "tree", *options, ":t").out
    assert mbm("board", "demo-1", "tree", "t", "--json").json["demo-1"]["value"][0]["path"] == "/t"
    assert "/t/a.py: Not a directory" in mbm("board", "demo-1", "tree", "t/a.py").err
    run(two, "rm -r t")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("{here}/x.py :m/", ["/m/x.py"]),
        ("-r {here}/x.py {here}/sub :m", ["/m/sub", "/m/sub/y", "/m/x.py"]),
        ("{here}/*.py :m", ["/m/x.py"]),
        (":s/a :m", ["/m"]),
        (":s/a :m/", ["/m/a"]),
        (":s :m", ["/m/s", "/m/s/a", "/m/s/b", "/m/s/e"]),
        (":s/ :m", ["/m/a", "/m/b", "/m/e"]),
        (":s/a :s/b :m", ["/m/a", "/m/b"]),
        (":s/* :m", ["/m/a", "/m/b", "/m/e"]),
        (":s/a* :m", ["/m/a"]),
    ],
)
def test_cp_copies_to_boards_and_on_them(two: Boards, tmp_path: Path, words, found):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/y").write_text("y")
    (tmp_path / "x.py").write_text("x")
    run(two, "mkdir -p s/e")
    two.put_each({"demo-1": b"1", "demo-2": b"2"}, ":s/a")
    two.put(b"b", ":s/b")
    assert run(two, "cp " + words.format(here=tmp_path)).ok
    for name, content in (("demo-1", b"1"), ("demo-2", b"2")):
        entries = run(two, "ls -r")[name].value
        copied = [each for each in entries if each.path.split("/")[1] == "m" and each.path != "/m"]
        paths = [each.path for each in copied] or ["/m"]
        assert sorted(paths) == found
        for each in copied:
            if each.name == "a":
                assert two.read(f":{each.path}")[name].value == content
    run(two, "rm -rf m s")


def test_cp_copies_from_boards(two: Boards, fleet: Fleet, tmp_path: Path):
    two.put(b"a", ":s/a")
    two.put(b"b", ":s/b")
    assert run(fleet["demo-1"], f"cp :s/a {tmp_path}/name").ok
    assert (tmp_path / "name").read_bytes() == b"a"
    fleet["demo-2"].rm(":s/a")
    copied = run(two, f"cp :s/a :s/b :no {tmp_path}/both")
    assert {str(error.error).count("No such file") for error in copied.values()} == {1, 2}
    there = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("both/*/*"))
    assert there == ["both/demo-1/a", "both/demo-1/b", "both/demo-2/b"]
    run(two, "rm -r s")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (":s/a :lib/cm/a", ":/s/a: not sent: :/lib/cm/a belongs to the board's client."),
        (":s :lib/cm/", ":/s/a: not sent: :/lib/cm/s/a belongs to the board's client."),
        (":s/ :lib/cm/", ":/s/a: not sent: :/lib/cm/a belongs to the board's client."),
        (":s/a :main.py", ":/main.py: the path belongs to its client; put your own program at "),
        (":no :x", ":/no: No such file or directory."),
        (":s :s/a", ":/s/a/s: Not a directory."),
    ],
)
def test_errors_of_cp_name_files_of_boards(two: Boards, words, error):
    two.put(b"a", ":s/a")
    head, text = files_text(run(two, f"cp {words}")).splitlines()
    assert "demo-[1-2] · error" in head
    assert text.startswith(error)
    run(two, "rm -r s")


def test_two_files_for_one_place_are_refused_by_cp(two: Boards):
    two.put(b"a", ":s/a")
    two.put(b"b", ":s/t/a")
    with pytest.raises(ValueError, match=r"^:/s/a and :/s/t/a would both be written to :/x/a$"):
        run(two, "cp :s/a :s/t/a :x")
    assert not two.stat(":x").ok
    run(two, "rm -r s")


@pytest.mark.parametrize("words", ["a b", "a :b c", ":a b :c", "a :b :c"])
def test_cp_without_a_direction_is_refused(two: Boards, tmp_path: Path, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("a")
    with pytest.raises(ValueError, match="begin with a colon"):
        run(two, f"cp {words}")
    assert not {"a", "b", "c"} & {entry.name for entry in run(two, "ls")["demo-1"].value}


@pytest.mark.parametrize(
    "macro", ["ls", "tree", "cat", "stat", "sha256sum", "rm", "touch", "mkdir"]
)
def test_empty_path_is_not_the_root(two: Boards, macro: str):
    with pytest.raises(ValueError, match="must begin with a colon"):
        board_commands.run_macro(two, macro, [""])


def test_touch_keeps_what_is_there(two: Boards, fleet: Fleet):
    fleet["demo-2"].put(b"there", ":f")
    assert run(two, "touch f").ok
    assert two.read(":f").to_dict() == {"demo-1": b"", "demo-2": b"there"}
    run(two, "rm f")
    with pytest.raises(ServerError, match="belongs to the board's client"):
        run(two, "touch lib/cm/new.py")


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


#: A chip with a clock, which notes what it is set to.
CLOCK = """
import sys
class RTC:
    now = None
    def datetime(self, fields): RTC.now = fields
class machine: pass
machine.RTC = RTC
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
    results = run(two, "set a 1")
    assert "not a JSON object" in str(results["demo-1"].error)
    assert results["demo-2"].ok
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
        ("rm", r"mbm board TARGET rm \[-r\] \[-f\] PATH…"),
        ("cp a", "cp FROM… TO"),
        ("reset hard", r"reset \[--hard\]$"),
        ("mv a b c", "mv PATH PATH$"),
        ("set a", "set KEY VALUE"),
        ("df x", "TARGET df$"),
    ],
)
def test_wrong_macro_or_argument_count_is_refused(two: Boards, line: str, why: str):
    with pytest.raises(ValueError, match=why):
        run(two, line)


def test_macros_are_mpremotes_commands_and_more():
    of_mpremote = "bootloader cat cp df edit ls mkdir reset rm rmdir rtc sha256sum touch tree"
    others = "echo identify mem_free mv set settings stat stay stop uname"
    assert set(board_commands.MACROS) == {*of_mpremote.split(), *others.split()}


#: Arguments with which each macro would change or show something.
ARGUMENTS = {
    "echo": ["hi"],
    "set": ["a", "1"],
    "mv": [":a", ":b"],
    "cp": [":a", ":b"],
    "rtc": ["--set"],
    "reset": ["--hard"],
    "stay": ["10m"],
    **dict.fromkeys(("cat", "sha256sum", "touch", "mkdir", "rmdir", "rm", "stat", "edit"), ["a"]),
}


@pytest.mark.parametrize("name", board_commands.MACROS)
def test_no_macro_works_for_viewers(
    name: str, fleet: Fleet, boards: VirtualBoards, home: object, mbm, monkeypatch
):
    created = fleet.request("token-create", name="macro-viewer", role="viewer")
    started = fleet["demo-1"].info()[0]["connected_since"]
    try:
        monkeypatch.setenv("CM_TOKEN", created["token"])
        monkeypatch.setenv("EDITOR", "false")
        refused = mbm("board", "demo-1", name, *ARGUMENTS.get(name, []))
    finally:
        fleet.request("token-revoke", name="macro-viewer")
    assert (refused.status, refused.out) == (1, "")
    assert "operator" in refused.err
    (board,) = fleet["demo-1"].info()
    assert (board["state"], board["connected_since"]) == ("idle", started)
    assert not fleet["demo-1"].stat(":a").ok


@pytest.mark.parametrize("line", ["rtc", "rtc --set"])
def test_clock_is_shown(two: Boards, line: str, home: object, mbm):
    two.run(CLOCK)
    now = calendar.timegm(time.gmtime())
    shown = mbm("board", "demo-1", *line.split())
    assert shown.status == 0
    assert abs(calendar.timegm(time.strptime(shown.out, "%Y-%m-%d %H:%M:%S\n")) - now) < 60
    chip = two.run("RTC.now")["demo-1"].value
    if line == "rtc":
        assert chip is None
    else:
        year, month, day, weekday, hour, minute, second, part = chip
        when = (year, month, day, hour, minute, second)
        assert abs(calendar.timegm(when) - now) < 60
        assert weekday == calendar.weekday(year, month, day)
        assert part == 0
    two.run("sys.modules.pop('machine')")


def test_board_without_a_clock_says_so(two: Boards, home: object, mbm):
    why = "this board has no clock of its own"
    assert mbm("board", "demo-1", "rtc", "--set").err == f"mbm: demo-1: {why}.\n"
    assert mbm("board", "demo-[1-2]", "rtc", "--set").out.splitlines()[1:] == [why]
    assert len(run(two, "rtc")["demo-1"].value) == 6
