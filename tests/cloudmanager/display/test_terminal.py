"""Following a cell in a terminal: real boards where a board matters, else a group fed by hand."""

from __future__ import annotations

import _thread
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from cloudmanager.client.cells import prepare_cell
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import JobGroup
from cloudmanager.display import terminal
from cloudmanager.display.cell_view import DEFAULT_OPTIONS, CellView
from cloudmanager.display.terminal import colour_lines, follow_cell
from cloudmanager.protocol import wire

pytestmark = pytest.mark.usefixtures("boards")


class Recorder(io.StringIO):
    """Keeps each write, and does something at the first that holds some text."""

    def __init__(self, text: str = "", act: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.writes: list[str] = []
        self._text, self._act = text, act

    def write(self, text: str) -> int:
        self.writes.append(text)
        if self._text and self._text in text:
            self._text = ""
            self._act()
        return super().write(text)


class Keyboard(io.StringIO):
    """A person at a terminal."""

    def isatty(self) -> bool:
        return True


class Tty:
    """A terminal of 80 columns; ``read()`` returns what was written to it."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.out = os.fdopen(slave, "w")
        self._read = bytearray()
        self._reader = threading.Thread(target=self._drain)
        self._reader.start()

    def read(self) -> str:
        self.out.close()
        self._reader.join(5)
        os.close(self._master)
        return self._read.decode().replace("\r\n", "\n")

    def _drain(self) -> None:
        try:
            while data := os.read(self._master, 4096):
                self._read += data
        except OSError:  # the other end is closed
            pass


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tty]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.delenv("NO_COLOR", raising=False)
    tty = Tty()
    yield tty
    tty.out.close()


def head(words: str) -> str:
    return f"── {words} ".ljust(48, "─")


def colourless(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def run(
    fleet: Fleet, target: str, code: str, out: io.StringIO | None = None, *, answers: bool = False
) -> str:
    """The text that following a cell leaves."""
    out = out or io.StringIO()
    follow_cell(fleet[target].submit(code, listen=True, answers=answers), out)
    return out.getvalue()


def test_one_board_streams_its_output(fleet: Fleet):
    out = Recorder()
    run(fleet, "demo-1", "import time\nprint('one')\ntime.sleep(0.1)\nprint('two')", out)
    assert out.writes[:2] == ["one\n", "two\n"]


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("6*7", "42\n"),
        ("print('hi')\n6*7", "hi\nOut: 42\n"),
        ("print('hi', end='')", "hi\n"),
        ("print('hi', end='')\n6*7", "hi\nOut: 42\n"),
        ("x = 1", ""),
    ],
)
def test_one_board_ends_with_its_value(fleet: Fleet, code: str, shown: str):
    assert run(fleet, "demo-1", code) == shown


def test_one_board_ends_with_its_traceback(fleet: Fleet):
    shown = run(fleet, "demo-1", "print('hi')\n1/0")
    assert shown.split("\n") == [
        "hi",
        head("demo-1 · error"),
        "Traceback (most recent call last):",
        '  File "<cell>", line 2, in <module>',
        "    1/0",
        "ZeroDivisionError: divide by zero",
        "",
    ]


def test_failure_may_be_left_to_the_exception(fleet: Fleet):
    out = io.StringIO()
    group = fleet["demo-1"].submit("print('hi')\n1/0", listen=True)
    results = follow_cell(group, out, DEFAULT_OPTIONS._replace(failures="raise"))
    assert (out.getvalue(), results.ok) == ("hi\n", False)


def test_several_boards_are_folded_in_the_end(fleet: Fleet):
    assert run(fleet, "demo-[1-3]", "print('hi')\n1") == f"{head('demo-[1-3]')}\nhi\nOut: 1\n"


def test_results_come_back(fleet: Fleet):
    group = fleet["demo-[1-2]"].submit("6*7", listen=True)
    assert follow_cell(group, io.StringIO()).to_dict() == {"demo-1": 42, "demo-2": 42}


def test_standard_output_is_where_it_goes(fleet: Fleet, capsys: pytest.CaptureFixture[str]):
    follow_cell(fleet["demo-1"].submit("6*7", listen=True))
    assert capsys.readouterr().out == "42\n"


def test_escape_codes_of_boards_are_disarmed(fleet: Fleet):
    assert run(fleet, "demo-1", "print('\\x1b[2J')") == "\\x1b[2J\n"


def test_terminal_shows_boards_live_and_then_the_final_text(fleet: Fleet, tty: Tty):
    code = "import time\nprint('hi')\ntime.sleep(0.4)\n1"
    follow_cell(fleet["demo-[1-3]"].submit(code, listen=True), tty.out)
    live, _, final = colourless(tty.read()).rpartition(head("demo-[1-3]"))
    assert head("demo-[1-3] · running") in live
    assert final == "\nhi\nOut: 1\n"


def test_fast_cell_is_not_shown_live(fleet: Fleet, tty: Tty):
    follow_cell(fleet["demo-[1-3]"].submit("1", listen=True), tty.out)
    assert colourless(tty.read()) == f"{head('demo-[1-3]')}\n1\n"


def test_ctrl_c_interrupts_the_boards_and_shows_how_they_ended(fleet: Fleet):
    out = Recorder("go", _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        run(fleet, "demo-1", "print('go')\nwhile True: pass", out)
    assert head("demo-1 · interrupted") in out.getvalue()
    assert fleet["demo-1"].run("1", timeout=5).value == 1


def test_person_is_asked_with_the_name_of_the_board(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "stdin", Keyboard("Ada\n"))
    assert run(fleet, "demo-1", "input('name? ')", answers=True) == "'Ada'\n"
    assert capsys.readouterr().out == "demo-1: name? "


def test_several_boards_are_answered_one_after_the_other(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, tty: Tty
):
    monkeypatch.setattr(sys, "stdin", Keyboard("Ada\nAda\n"))
    code = "import time\ntime.sleep(0.2)\ninput('name? ')"
    follow_cell(fleet["demo-[1-2]"].submit(code, listen=True, answers=True), tty.out)
    assert colourless(tty.read()).endswith(f"{head('demo-[1-2]')}\n'Ada'\n")


@pytest.mark.parametrize("keyboard", [io.StringIO(), Keyboard("")], ids=["no terminal", "Ctrl-D"])
def test_without_an_answer_the_board_gets_an_end_of_file(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, keyboard: io.StringIO
):
    monkeypatch.setattr(sys, "stdin", keyboard)
    assert "EOFError" in run(fleet, "demo-1", "input('name? ')", answers=True)


# A group fed by hand: boards that do not do what they should


ASKS = wire.unpack(wire.pack(wire.INPUT, b"name? ", job=1))


def stubborn(told: list[object]) -> JobGroup:
    """A running cell whose boards do not stop when told to; ``told`` notes what they are told."""
    group = JobGroup(prepare_cell("1"), listen=True)
    group.on_accepted(
        {"jobs": [[1, "demo-1"], [2, "demo-2"]], "left_out": ["demo-3"]},
        lambda numbers: told.append(numbers),
        lambda job, text: told.append((job, text)),
    )
    return group


def test_board_that_does_not_stop_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "INTERRUPT_GRACE_SECONDS", 0.1)
    told: list[object] = []
    group, out = stubborn(told), Keyboard()
    monkeypatch.setattr(terminal, "_open_live", lambda _: Nothing())
    with pytest.raises(KeyboardInterrupt):
        follow_cell(group, out)
    assert told == [[1, 2]]
    assert colourless(out.getvalue()).split("\n") == [
        head("demo-[1-2] · running"),
        "not connected: demo-3",
        "",
    ]


class Nothing:
    """A live region that is nowhere."""

    pressed = False

    def update(self, *_: object, **__: object) -> None:
        """Somebody presses Ctrl-C at the sight of it, once."""
        if not self.pressed:
            self.pressed = True
            _thread.interrupt_main()

    def stop(self) -> None:
        """Leave nothing."""


def test_nobody_is_asked_after_ctrl_c(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "INTERRUPT_GRACE_SECONDS", 0.1)
    told: list[object] = []
    group = stubborn(told)

    def stop(numbers: list[int]) -> None:
        told.append(numbers)
        group.handle_message(group.jobs["demo-1"], ASKS)

    group._interrupt_jobs = stop
    view = CellView(group)
    drawn: list[object] = []

    def draw(event: object) -> None:
        drawn.append(event)
        if len(drawn) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        terminal.run_display(group, view, draw, lambda _: "Ada", lambda: drawn.append("closed"))
    assert told == [[1, 2], (1, None)]
    assert drawn[-1] == "closed"


# Colours


FAILS = [[("── ", "bad"), ("demo-1", "bad name"), (" · error ", "bad")], [("hi", "")]]


@pytest.mark.parametrize(
    ("settings", "colourful"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_failures_are_red_in_a_terminal_that_wants_colours(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], colourful: bool
):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    text = colour_lines(FAILS, Keyboard())
    if colourful:
        assert text == ("\x1b[31m── \x1b[0m\x1b[1;31mdemo-1\x1b[0m\x1b[31m · error \x1b[0m\nhi")
    else:
        assert text == "── demo-1 · error \nhi"


def test_pipe_has_no_colours():
    assert colour_lines(FAILS, io.StringIO()) == "── demo-1 · error \nhi"


def test_one_boards_failure_is_coloured_too(fleet: Fleet, tty: Tty):
    follow_cell(fleet["demo-1"].submit("1/0", listen=True), tty.out)
    assert tty.read().startswith("\x1b[31m── \x1b[0m\x1b[1;31mdemo-1\x1b[0m\x1b[31m · error")


# Live


def test_live_region_shows_the_end_of_what_a_screen_has_no_room_for(fleet: Fleet, tty: Tty):
    code = "import time\nfor n in range(50): print('line', n)\ntime.sleep(0.4)"
    looks = DEFAULT_OPTIONS._replace(progress_after=0)
    follow_cell(fleet["demo-[1-3]"].submit(code, listen=True), tty.out, looks)
    live, _, final = colourless(tty.read()).rpartition(head("demo-[1-3]"))
    assert "0 of 3 boards are done" in live
    assert "line 49" in live
    assert "line 20" not in live
    assert "line 20" in final


def test_one_long_line_is_shown_live_though_it_is_too_tall():
    assert terminal._last_lines([[("a\nb\nc", "")]], 2) == [[("a\nb\nc", "")]]
    assert terminal._last_lines([[("a\nb", "")], [("c", "")]], 2) == [[("c", "")]]


def test_lines_in_the_order_of_coming(fleet: Fleet):
    out = io.StringIO()
    group = fleet["demo-1"].submit("print('hi')\n1", listen=True)
    follow_cell(group, out, DEFAULT_OPTIONS._replace(grouping="order"))
    assert out.getvalue() == "demo-1  hi\ndemo-1  Out: 1\n"


# A cell that nobody has followed


def test_cell_may_be_followed_late(fleet: Fleet, tty: Tty):
    code = "import time\nprint('hi')\ntime.sleep(0.6)\n1"
    group = fleet["demo-[1-3]"].submit(code)
    results = follow_cell(group, tty.out, background=True)
    live, _, final = colourless(tty.read()).rpartition(head("demo-[1-3]"))
    assert head("demo-[1-3] · running") in live
    assert final == "\nhi\nOut: 1\n"
    assert results.ok


def test_cell_that_is_over_may_still_be_followed(fleet: Fleet):
    group = fleet["demo-1"].submit("print('hi')\n1")
    assert group.wait(5)
    out = io.StringIO()
    follow_cell(group, out, background=True)
    assert out.getvalue() == "hi\nOut: 1\n"


def test_ctrl_c_ends_only_the_waiting_for_a_cell_that_was_not_waited_for():
    told: list[object] = []
    group = stubborn(told)
    threading.Timer(0.3, _thread.interrupt_main).start()
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        follow_cell(group, out, background=True)
    assert told == []
    assert out.getvalue().startswith(head("demo-[1-2] · running"))
