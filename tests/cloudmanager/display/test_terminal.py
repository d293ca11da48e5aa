"""Showing a cell in a terminal: with real boards, or with a group that the test controls."""

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
from cloudmanager.client.runner import run_blocking
from cloudmanager.display import following, terminal
from cloudmanager.display.cell_view import DEFAULT_OPTIONS, CellView
from cloudmanager.display.terminal import colour_lines, follow_cell
from cloudmanager.protocol import wire

pytestmark = pytest.mark.usefixtures("boards")


class Recorder(io.StringIO):
    """Keeps each write, and calls a function at the first one that contains a text."""

    def __init__(self, text: str = "", on_text: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.writes: list[str] = []
        self._text, self._on_text = text, on_text

    def write(self, text: str) -> int:
        self.writes.append(text)
        if self._text and self._text in text:
            self._text = ""
            self._on_text()
        return super().write(text)


class Keyboard(io.StringIO):
    """Standard input of a user at a terminal."""

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


def head(title: str) -> str:
    return f"── {title} ".ljust(48, "─")


def colourless(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def run(
    fleet: Fleet, target: str, code: str, out: io.StringIO | None = None, *, answers: bool = False
) -> str:
    """Return the text that ``follow_cell`` writes."""
    out = out or io.StringIO()
    follow_cell(fleet[target].submit(code, listen=True, answers=answers), out)
    return out.getvalue()


def test_single_board_streams_its_output(fleet: Fleet):
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
def test_single_board_ends_with_its_value(fleet: Fleet, code: str, shown: str):
    assert run(fleet, "demo-1", code) == shown


def test_single_board_ends_with_its_traceback(fleet: Fleet):
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


def test_failure_is_left_to_the_exception_on_request(fleet: Fleet):
    out = io.StringIO()
    group = fleet["demo-1"].submit("print('hi')\n1/0", listen=True)
    results = follow_cell(group, out, DEFAULT_OPTIONS._replace(failures="raise"))
    assert (out.getvalue(), results.ok) == ("hi\n", False)


def test_several_boards_share_a_block_in_the_final_text(fleet: Fleet):
    assert run(fleet, "demo-[1-3]", "print('hi')\n1") == f"{head('demo-[1-3]')}\nhi\nOut: 1\n"


def test_follow_cell_returns_the_results(fleet: Fleet):
    group = fleet["demo-[1-2]"].submit("6*7", listen=True)
    assert follow_cell(group, io.StringIO()).to_dict() == {"demo-1": 42, "demo-2": 42}


def test_output_defaults_to_standard_output(fleet: Fleet, capsys: pytest.CaptureFixture[str]):
    follow_cell(fleet["demo-1"].submit("6*7", listen=True))
    assert capsys.readouterr().out == "42\n"


def test_escape_codes_of_boards_are_escaped(fleet: Fleet):
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


def test_ctrl_c_interrupts_the_boards_and_shows_their_outcome(fleet: Fleet):
    out = Recorder("go", _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        run(fleet, "demo-1", "print('go')\nwhile True: pass", out)
    assert head("demo-1 · interrupted") in out.getvalue()
    assert fleet["demo-1"].run("1", timeout=5).value == 1


def test_input_prompt_has_the_name_of_the_board(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "stdin", Keyboard("Ada\n"))
    assert run(fleet, "demo-1", "input('name? ')", answers=True) == "'Ada'\n"
    assert capsys.readouterr().out == "demo-1: name? "


def test_input_of_several_boards_is_answered_in_turn(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, tty: Tty
):
    monkeypatch.setattr(sys, "stdin", Keyboard("Ada\nAda\n"))
    code = "import time\ntime.sleep(0.2)\ninput('name? ')"
    follow_cell(fleet["demo-[1-2]"].submit(code, listen=True, answers=True), tty.out)
    assert colourless(tty.read()).endswith(f"{head('demo-[1-2]')}\n'Ada'\n")


@pytest.mark.parametrize("keyboard", [io.StringIO(), Keyboard("")], ids=["no terminal", "Ctrl-D"])
def test_input_without_an_answer_raises_eof_error(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, keyboard: io.StringIO
):
    monkeypatch.setattr(sys, "stdin", keyboard)
    assert "EOFError" in run(fleet, "demo-1", "input('name? ')", answers=True)


# A group that the test controls: boards that do not stop


ASKS = wire.unpack(wire.pack(wire.INPUT, b"name? ", job=1))


def unstoppable_group(calls: list[object]) -> JobGroup:
    """Return running jobs that ignore interrupts; interrupts and answers are added to ``calls``."""
    group = JobGroup(prepare_cell("1"), listen=True)
    group.on_accepted(
        {"jobs": [[1, "demo-1"], [2, "demo-2"]], "left_out": ["demo-3"]},
        lambda numbers: calls.append(numbers),
        lambda job, text: calls.append((job, text)),
    )
    return group


def test_board_that_ignores_ctrl_c_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    calls: list[object] = []
    group, out = unstoppable_group(calls), Keyboard()
    monkeypatch.setattr(terminal, "_open_live", lambda _: InterruptingLive())
    view = CellView(group)
    output = terminal.make_output(group, view, out)
    with pytest.raises(KeyboardInterrupt):
        run_blocking(following.follow_cell(group, view, output, grace_seconds=0.1))
    assert calls == [[1, 2]]
    assert colourless(out.getvalue()).split("\n") == [
        head("demo-[1-2] · running"),
        "not connected: demo-3",
        "",
    ]


class InterruptingLive:
    """Stands for a live region; its first update raises KeyboardInterrupt, as Ctrl-C does."""

    pressed = False

    def update(self, *_: object, **__: object) -> None:
        """Press Ctrl-C, once."""
        if not self.pressed:
            self.pressed = True
            _thread.interrupt_main()

    def stop(self) -> None:
        """Do nothing."""


class InterruptedOutput:
    """Records what it is asked to show; the first drawing is interrupted."""

    def __init__(self) -> None:
        self.drawn: list[object] = []

    def handle_event(self, event: object) -> None:
        self.drawn.append(event)

    def draw(self) -> None:
        self.drawn.append("drawn")
        if len(self.drawn) == 1:
            raise KeyboardInterrupt

    def ask(self, _: str) -> str | None:
        return "Ada"

    def close(self) -> None:
        self.drawn.append("closed")


def test_input_is_not_asked_for_after_ctrl_c():
    calls: list[object] = []
    group = unstoppable_group(calls)

    def stop(numbers: list[int]) -> None:
        calls.append(numbers)
        group.handle_message(group.jobs["demo-1"], ASKS)

    group._interrupt_jobs = stop
    output = InterruptedOutput()
    with pytest.raises(KeyboardInterrupt):
        run_blocking(following.follow_cell(group, CellView(group), output, grace_seconds=0.1))
    assert calls == [[1, 2], (1, None)]
    assert output.drawn[-1] == "closed"


# Colours


FAILS = [[("── ", "bad"), ("demo-1", "bad name"), (" · error ", "bad")], [("hi", "")]]


@pytest.mark.parametrize(
    ("settings", "colourful"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_failures_are_red_in_a_terminal_with_colours(
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


def test_output_to_a_pipe_has_no_colours():
    assert colour_lines(FAILS, io.StringIO()) == "── demo-1 · error \nhi"


def test_failure_of_a_single_board_is_coloured(fleet: Fleet, tty: Tty):
    follow_cell(fleet["demo-1"].submit("1/0", listen=True), tty.out)
    assert tty.read().startswith("\x1b[31m── \x1b[0m\x1b[1;31mdemo-1\x1b[0m\x1b[31m · error")


# Live


def test_live_region_shows_the_last_lines_that_fit(fleet: Fleet, tty: Tty):
    code = "import time\nfor n in range(50): print('line', n)\ntime.sleep(0.4)"
    options = DEFAULT_OPTIONS._replace(progress_after=0)
    follow_cell(fleet["demo-[1-3]"].submit(code, listen=True), tty.out, options)
    live, _, final = colourless(tty.read()).rpartition(head("demo-[1-3]"))
    assert "0 of 3 boards are done" in live
    assert "line 49" in live
    assert "line 20" not in live
    assert "line 20" in final


def test_live_region_shows_at_least_one_line():
    assert terminal._last_lines([[("a\nb\nc", "")]], 2) == [[("a\nb\nc", "")]]
    assert terminal._last_lines([[("a\nb", "")], [("c", "")]], 2) == [[("c", "")]]


def test_order_grouping_in_a_terminal(fleet: Fleet):
    out = io.StringIO()
    group = fleet["demo-1"].submit("print('hi')\n1", listen=True)
    follow_cell(group, out, DEFAULT_OPTIONS._replace(grouping="order"))
    assert out.getvalue() == "demo-1  hi\ndemo-1  Out: 1\n"


# Cells in the background


def test_background_cell_is_followed_later(fleet: Fleet, tty: Tty):
    code = "import time\nprint('hi')\ntime.sleep(0.6)\n1"
    group = fleet["demo-[1-3]"].submit(code)
    results = follow_cell(group, tty.out, background=True)
    live, _, final = colourless(tty.read()).rpartition(head("demo-[1-3]"))
    assert head("demo-[1-3] · running") in live
    assert final == "\nhi\nOut: 1\n"
    assert results.ok


def test_ended_cell_is_shown_in_full(fleet: Fleet):
    group = fleet["demo-1"].submit("print('hi')\n1")
    assert group.wait(5)
    out = io.StringIO()
    follow_cell(group, out, background=True)
    assert out.getvalue() == "hi\nOut: 1\n"


def test_ctrl_c_does_not_interrupt_a_background_cell():
    calls: list[object] = []
    group = unstoppable_group(calls)
    threading.Timer(0.3, _thread.interrupt_main).start()
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        follow_cell(group, out, background=True)
    assert calls == []
    assert out.getvalue().startswith(head("demo-[1-2] · running"))
