"""``mbm board-repl`` in a real terminal (a pty), on real boards; its parts without one."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from cloudmanager import config
from cloudmanager.cli.repl_prompt import PrivateHistory, is_complete, next_indentation
from cloudmanager.client.fleet import Fleet

pytestmark = pytest.mark.timeout(120)

WAIT = 60  # seconds: programs take long to start on a busy machine
MBM = ["-m", "cloudmanager"]
COLOUR = r"(?:\x1b\[[0-9;]*m)*"
#: A prompt that is ready for input: the cursor is shown.
PROMPT = rf"{COLOUR}demo-[^ \x1b]*{COLOUR} >>>[^>\n]*\x1b\[\?25h"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


class Terminal:
    """A pty in which a prompt runs."""

    def __init__(self, *words: str, **environment: str) -> None:
        env = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", **environment}
        self.process: pexpect.spawn[str] = pexpect.spawn(
            sys.executable,
            [*MBM, "board-repl", *words],
            encoding="utf-8",
            dimensions=(50, 100),
            timeout=WAIT,
            env=env,
        )

    def prompt(self) -> str:
        """Wait for the next prompt that is ready for input; return the text before it."""
        self.process.expect(PROMPT)
        return CONTROL.sub("", self.process.before or "")

    def enter(self, text: str) -> str:
        """Enter an input; return what was shown until the next prompt, the input included."""
        return self.press(text + "\r").strip()

    def press(self, keys: str) -> str:
        """Press keys that end the input; return what is shown until the next prompt."""
        self.process.send(keys)
        self.process.expect_exact("\x1b[?2004l")  # bracketed paste is switched off
        return self.prompt()

    def leave(self) -> int:
        """Press Ctrl-D; return the exit status."""
        self.process.send("\x04")
        self.process.expect(pexpect.EOF)
        self.process.close()
        return int(self.process.exitstatus or 0)


@contextlib.contextmanager
def opened(*words: str) -> Iterator[Terminal]:
    """Open a prompt; Ctrl-D must leave it with the exit status 0."""
    terminal = Terminal(*words)
    try:
        terminal.prompt()
        yield terminal
        assert terminal.leave() == 0
    finally:
        terminal.process.close(force=True)


@pytest.fixture(scope="module")
def terminal(boards: Any) -> Iterator[Terminal]:
    """A prompt on demo-1 for several tests."""
    with opened("demo-1") as shared:
        yield shared


def test_values_output_errors_and_blocks(terminal: Terminal):
    assert terminal.enter("x = 41") == ""
    assert terminal.enter("x + 1") == "42"
    assert terminal.enter("print('hello')") == "hello"
    assert terminal.enter("await __import__('asyncio').sleep_ms(1)") == ""
    assert "ZeroDivisionError: divide by zero" in terminal.enter("1 / 0")
    for line in ("for n in range(2):", "print(n, 'of 2')"):
        terminal.process.send(line + "\r")
    assert "0 of 2\n1 of 2" in terminal.enter("").replace(" \n", "\n")
    refused = terminal.enter("x +")
    assert "invalid syntax" in refused
    assert refused.endswith("Nothing was sent to a board.")
    assert "one command" in terminal.enter("!ls")
    terminal.process.send("foo(\r")
    assert "was never closed" in terminal.enter("")
    assert terminal.enter("x") == "41", "an error ends nothing"


def test_ctrl_c_interrupts_the_input_and_discards_a_line(terminal: Terminal):
    terminal.process.send("while True: print('turn')\r")
    terminal.process.expect_exact("turn\r\nturn")
    terminal.process.send("\x03")
    assert "KeyboardInterrupt" in terminal.prompt()
    terminal.press("half a line\x03")
    assert terminal.enter("6 * 7") == "42"


def test_tab_completes_what_the_board_has(terminal: Terminal, fleet: Fleet):
    fleet["demo-1"].run("only_there = 7")
    terminal.process.send("only_t\t")
    terminal.process.expect_exact("here")
    assert terminal.enter(" + 1") == "8"


@pytest.mark.usefixtures("boards")
def test_several_boards_answer_folded_and_show_their_logs(fleet: Fleet):
    for n in (1, 2, 3):
        fleet[f"demo-{n}"].run(f"k = {n // 3}\nimport asyncio")
    with opened("demo-[1-3]", "--logs") as several:
        shown = several.enter("k")
        several.press("async def late():\rawait asyncio.sleep_ms(200)\rprint('beside')\r\r")
        several.enter("t = asyncio.create_task(late())")
        several.process.expect(r"\d\d:\d\d:\d\d demo-\[?[1-3].*: beside")
    assert re.search(r"demo-\[1-2\] ─+\n0\n", shown)
    assert re.search(r"demo-3 ─+\n1", shown)


def test_input_is_answered_and_not_kept(terminal: Terminal, home: Path):
    terminal.process.send("answer = input('who? ')\r")
    terminal.process.expect_exact("demo-1: who? ")
    terminal.process.send("hunter2\r")
    terminal.prompt()
    assert terminal.enter("len(answer)") == "7"
    terminal.enter(" password = 'hunter3'")
    path = config.repl_history_file(home)
    kept = path.read_text()
    assert "len(answer)" in kept
    assert "hunter" not in kept
    assert path.stat().st_mode & 0o777 == 0o600


def test_run_runs_a_local_file(terminal: Terminal, tmp_path: Path):
    (tmp_path / "my cell.py").write_text("a = 20\nprint('from a file')\na + 1\n")
    shown = terminal.enter(f"%run '{tmp_path}/my cell.py'")
    assert "from a file" in shown
    assert shown.endswith("Out: 21")
    assert "No such file" in terminal.enter("%run missing.py")
    assert "one command" in terminal.enter("%hist")


def test_text_of_boards_controls_no_terminal(terminal: Terminal):
    assert r"\x1b[2J" in terminal.enter("print('\\x1b[2J')")


def test_traceback_of_an_awaiting_input_has_only_its_own_frames(terminal: Terminal):
    shown = terminal.enter("await __import__('asyncio').sleep_ms(1); 1 / 0")
    assert "ZeroDivisionError" in shown
    assert "asyncio/core" not in shown


@pytest.mark.usefixtures("boards")
@pytest.mark.parametrize("text", ["exit", "quit()"])
def test_exit_and_quit_leave(text: str):
    terminal = Terminal("demo-1")
    terminal.prompt()
    terminal.process.send(f"{text}\r")
    terminal.process.expect(pexpect.EOF)
    terminal.process.close()
    assert terminal.process.exitstatus == 0


@pytest.mark.usefixtures("boards")
def test_viewer_gets_no_prompt(fleet: Fleet):
    token = fleet.request("token-create", name="looker", role="viewer")["token"]
    terminal = Terminal("demo-1", CM_TOKEN=token)
    terminal.process.expect(pexpect.EOF)
    terminal.process.close()
    fleet.request("token-revoke", name="looker")
    assert terminal.process.exitstatus == 1
    assert "operator" in (terminal.process.before or "")


@pytest.mark.parametrize(
    ("words", "why"),
    [(["demo-1"], "needs a terminal"), (["demo-1", "--json"], "has no JSON")],
)
def test_prompt_needs_a_terminal_and_has_no_json(words: list[str], why: str):
    done = subprocess.run(
        [sys.executable, *MBM, "board-repl", *words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2
    assert why in done.stderr


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("x = 1", True),
        ("x = (1,", False),
        ("if x:", False),
        ("if x:\n    y", False),
        ("if x:\n    y\n", True),
        ("if x:\n    y\n    ", True),
        ("for n in range(3): print(n)", True),
        ("await f()", True),
        ("async def f():", False),
        ("@decorator", False),
        ("'''text", False),
        ("x +", True),  # the error is shown
        ("%run file.py", True),
        ("x = '''\n    y", False),
        ("x = '''\n", False),
        ("foo(\n", True),  # an empty line ends it, with an error
        ("if x:\n    ", True),
    ],
)
def test_input_is_complete(text: str, complete: bool):
    assert is_complete(text) is complete


@pytest.mark.parametrize(
    ("line", "spaces"), [("x", 0), ("if x:", 4), ("    if x:  ", 8), ("    y", 4), ("", 0)]
)
def test_next_line_is_indented(line: str, spaces: int):
    assert next_indentation(line) == " " * spaces


def test_history_is_bounded(tmp_path: Path):
    path = tmp_path / "history"
    path.write_text("\n# 2026-01-01\n+x = 1\n" * 60_000)
    history = PrivateHistory(path)
    history.append_string("y = 2")
    kept = list(history.load_history_strings())
    assert path.stat().st_size < 300_000
    assert kept[0] == "y = 2"
    assert set(kept[1:]) == {"x = 1"}
    assert path.stat().st_mode & 0o777 == 0o600
