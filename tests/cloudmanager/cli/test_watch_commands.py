"""``mbm board-watch`` in a terminal and in pipes, with real boards that emit values."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pexpect
import pytest

from cloudmanager.client.fleet import Fleet

pytestmark = pytest.mark.timeout(120)

WAIT = 60  # seconds: programs take long to start on a busy machine
WATCH = ["-m", "cloudmanager", "board-watch"]
EMITTING = """
import asyncio, cm
async def work():
    n = 0
    while True:
        cm.emit(level=n, mood="\\x1b[2J")
        n += 1
        await asyncio.sleep_ms(50)
task = asyncio.create_task(work())
"""


@pytest.fixture(autouse=True)
def _emitting(boards: Any, fleet: Fleet) -> Iterator[None]:
    """Tasks on demo-1 and demo-2 that emit values."""
    fleet["demo-[1-2]"].run(EMITTING).raise_for_error()
    yield
    fleet["demo-[1-2]"].run("task.cancel()").raise_for_error()


def read_lines(*words: str) -> list[str]:
    """Return the first three lines that a pipe gets; Ctrl-C must end it."""
    with subprocess.Popen(
        [sys.executable, *WATCH, *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 130
    return lines


def test_pipe_gets_a_line_for_each_sample():
    lines = read_lines("demo-1", "level")
    first, second, third = (int(line.rpartition("=")[2]) for line in lines)
    assert (second, third) == (first + 1, first + 2)
    assert " demo-1: level=" in lines[0]


def test_json_is_an_object_on_each_line():
    objects = [json.loads(line) for line in read_lines("demo-[1-2]", "--json")]
    assert {each["board"] for each in objects} <= {"demo-1", "demo-2"}
    assert all(set(each["values"]) == {"level", "mood"} for each in objects)


def test_terminal_shows_a_table_of_the_newest_values():
    terminal: pexpect.spawn[str] = pexpect.spawn(
        sys.executable,
        [*WATCH, "demo-[1-2]", "level", "mood"],
        encoding="utf-8",
        dimensions=(20, 90),
        timeout=WAIT,
        env={**os.environ, "NO_COLOR": "1", "TERM": "xterm"},
    )
    for _ in range(3):
        terminal.expect(r"board +level +mood +emitted")
        terminal.expect(r"demo-1 .* ago")
        terminal.expect(r"demo-2 .* ago")
        assert "\x1b[2J" not in str(terminal.before) + str(terminal.after)
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130


def test_unknown_board_is_an_error():
    done = subprocess.run(
        [sys.executable, *WATCH, "nobody-1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "nobody-1" in done.stderr


def test_name_that_no_board_emits_is_answered_by_those_that_there_are(fleet: Fleet):
    read_lines("demo-1", "level")  # the server has samples now
    with subprocess.Popen(
        [sys.executable, *WATCH, "demo-1", "lvel", "level"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        assert process.stdout
        note = process.stderr.readline()
        assert "level=" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 130
    assert note.startswith("mbm: no board has emitted lvel yet; waiting for it. Names that ")
    assert "level" in note
    assert "mood" in note
