"""Boards' logs: pieces become lines; reading and following them on real boards."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cloudmanager import AsyncFleet, Fleet
from cloudmanager.client.fleet import Boards
from cloudmanager.client.log_lines import (
    LineJoiner,
    LogFollower,
    LogLine,
    LogPiece,
    Logs,
    join_lines,
)
from cloudmanager.client.watch import Update
from cloudmanager.display.log_view import log_rows
from cloudmanager.protocol.errors import NoSuchBoard, NotAllowed
from cloudmanager.protocol.spans import parse_span, time_since
from cloudmanager.testing.plugin import RunningServer, running_server
from tests.conftest import running_boards
from tests.system.conftest import fleet_of

WAIT = 60.0
APP = """
import time
print("start")
for number in range(100000):
    print("line", number)
    time.sleep(0.2)
"""


def texts(*pieces: tuple[str, int, str]) -> list[tuple[str, str, int]]:
    lines = join_lines(LogPiece(board, 1.0, lost, text) for board, lost, text in pieces)
    return [(line.board, line.text, line.lost) for line in lines]


# Pieces and lines


def test_pieces_become_lines():
    pieces = [("a", 0, "one\ntw"), ("b", 0, "other\n"), ("a", 0, "o\r\nthree")]
    expected = [("a", "one", 0), ("b", "other", 0), ("a", "two", 0), ("a", "three", 0)]
    assert texts(*pieces) == expected


def test_loss_ends_a_line_and_stands_before_the_next_one():
    pieces = [("a", 0, "cut"), ("a", 90, "off\nwhole\n")]
    assert texts(*pieces) == [("a", "cut", 0), ("a", "off", 90), ("a", "whole", 0)]
    assert texts(("a", 7, "")) == [("a", "", 7)]


def test_line_has_the_time_of_its_beginning():
    joiner = LineJoiner()
    assert list(joiner.add(LogPiece("a", 1.0, 0, "be"))) == []
    assert list(joiner.add(LogPiece("a", 2.0, 0, "gun\nnext\n"))) == [
        LogLine("a", 1.0, "begun"),
        LogLine("a", 2.0, "next"),
    ]


def test_unfinished_line_is_shown_after_a_while():
    joiner = LineJoiner()
    list(joiner.add(LogPiece("a", 1.0, 0, "name? ")))
    assert list(joiner.end_lines(age=60)) == []
    assert [line.text for line in joiner.end_lines()] == ["name? "]
    assert list(joiner.end_lines()) == []


def test_line_without_an_end_ends_after_16_kb():
    joiner = LineJoiner()
    pieces = [LogPiece("a", 1.0, 0, "x" * 1000)] * 100
    lines = [line for piece in pieces for line in joiner.add(piece)]
    assert [len(line.text) for line in lines] == [17_000] * 5
    assert [len(line.text) for line in joiner.end_lines()] == [15_000]


# Rows


def test_equal_lines_of_several_boards_are_one_row():
    now = time.time()
    lines = [LogLine(f"n-{number}", now, "start") for number in (1, 2, 3)]
    lines += [LogLine("n-2", now + 0.5, "wet"), LogLine("n-2", now + 0.6, "wet")]
    rows = [row.split(" ", 1)[1] for row in log_rows(lines)]
    assert rows == ["n-[1-3]: start", "n-2: wet", "n-2: wet"]


def test_rows_show_losses_days_and_control_characters():
    (row,) = log_rows([LogLine("a", 86400.0 * 365, "x\x1b[2J", 1234)])
    assert row.startswith("197")
    assert row.endswith(r" a: (1,234 bytes lost) x\x1b[2J")


def test_lines_far_apart_in_time_are_not_folded():
    assert len(log_rows([LogLine("a", 1.0, "x"), LogLine("b", 9.0, "x")])) == 2


# Spans


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("8w", 8 * 604800)])
def test_span(text: str, seconds: int):
    assert parse_span(text) == seconds
    assert time_since(text) == pytest.approx(time.time() - seconds, abs=5)


@pytest.mark.parametrize("text", ["", "10", "m", "0m", "-1m", "1.5h", "1y", "99999w", "\u0661m"])
def test_what_is_no_span_is_refused(text: str):
    with pytest.raises(ValueError, match="is not a span"):
        parse_span(text)


class StoredPages:
    """A server whose store has some pieces; ``asked`` are the times from which they were read."""

    def __init__(self) -> None:
        self.pieces: list[LogPiece] = []
        self.asked: list[float] = []

    async def request(self, _verb: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body["since"])
        pieces = [list(piece) for piece in self.pieces if piece.at >= body["since"]]
        return {"logs": pieces, "complete": True}


def pieces_of(follower: LogFollower, update: Update) -> list[str]:
    return [piece.text for piece in follower._new_pieces(update)]


def test_follower_reads_what_another_server_wrote_late_after_a_broken_link():
    server = StoredPages()
    follower = LogFollower(lambda: server, "all")  # type: ignore[arg-type,return-value]
    assert pieces_of(follower, Update(whole=True, time=100.0)) == []
    here, late = LogPiece("a", 120.0, 0, "here\n"), LogPiece("b", 118.5, 0, "late\n")
    assert pieces_of(follower, Update(logs=[list(here)])) == ["here\n"]
    old = LogPiece("b", 90.0, 0, "before it followed\n")
    server.pieces = [old, late, here]
    assert pieces_of(follower, Update(whole=True, time=125.0)) == ["late\n"]
    # The watch sends them once more, and then something new.
    new = LogPiece("b", 126.0, 0, "new\n")
    assert pieces_of(follower, Update(logs=[list(late), list(new)])) == ["new\n"]


def test_follower_that_has_read_nothing_yet_begins_where_it_started():
    server = StoredPages()
    follower = LogFollower(lambda: server, "all")  # type: ignore[arg-type,return-value]
    for at in (100.0, 130.0):
        assert pieces_of(follower, Update(whole=True, time=at)) == []
    assert server.asked == [100.0]


# Real boards


@pytest.fixture(scope="module")
def printing(server: RunningServer, fleet: Fleet):
    """Two boards whose program prints a line every 0.2 s."""
    names = ["printing-1", "printing-2"]
    with running_boards(server, fleet, names) as virtual:
        boards = fleet["printing-[1-2]"]
        boards.run("with open('/app.py', 'w') as f: f.write(text)", inputs={"text": APP})
        for name in names:
            virtual.restart(name)
        yield boards
        boards.stop()


def wait_for_lines(boards: Boards, count: int) -> Logs:
    deadline = time.monotonic() + WAIT
    while len(lines := boards.logs()) < count and time.monotonic() < deadline:
        time.sleep(0.2)
    return lines


def test_logs_are_read(printing: Boards):
    lines = wait_for_lines(printing, 10)
    for board in ("printing-1", "printing-2"):
        found = [line.text for line in lines if line.board == board]
        assert found[:3] == ["start", "line 0", "line 1"]
    assert repr(lines).endswith("lines of printing-[1-2]>")
    assert "printing-1: line 0" in str(lines)
    assert lines[-1].at == pytest.approx(time.time(), abs=10)


def test_following_continues_what_was_read(printing: Boards):
    wait_for_lines(printing, 4)
    with printing.logs(since="1h", follow=True) as follower:
        lines = [line for line, _ in zip(follower, range(30), strict=False)]
    texts = [line.text for line in lines if line.board == "printing-1"]
    assert texts == ["start", *(f"line {number}" for number in range(len(texts) - 1))]


def test_following_without_a_time_begins_now(printing: Boards):
    wait_for_lines(printing, 6)
    with printing.logs(follow=True) as follower:
        assert next(follower).text not in ("start", "line 0")


def test_only_lines_since_a_time(printing: Boards):
    lines = wait_for_lines(printing, 10)
    later = printing.logs(since=lines[6].at + 0.001)
    assert all(line.at > lines[6].at for line in later)
    assert len(printing.logs(since=time.time() + 60)) == 0


async def test_async_boards_read_and_follow(printing: Boards):
    async with AsyncFleet() as fleet:
        boards = fleet["printing-1"]
        assert {line.board for line in await boards.logs()} <= {"printing-1"}
        async with boards.logs(follow=True) as follower:
            line = await asyncio.wait_for(anext(follower), WAIT)
    assert line.board == "printing-1"


def test_refusals(printing: Boards, fleet: Fleet):
    with pytest.raises(NoSuchBoard):
        fleet["printing-9"].logs()
    token = fleet.request("token-create", name="log-reader", role="viewer")["token"]
    with Fleet(token=token) as viewer:
        with pytest.raises(NotAllowed):
            viewer["printing-1"].logs()
        with pytest.raises(NotAllowed), viewer["printing-1"].logs(follow=True) as follower:
            next(follower)
    fleet.request("token-revoke", name="log-reader")


def test_viewers_read_logs_where_the_server_lets_them(tmp_path: Path):
    with running_server(tmp_path, "--viewers-read-logs") as server, fleet_of(server) as fleet:
        token = fleet.request("token-create", name="v", role="viewer")["token"]
        fleet.enrol(["one"])
        with Fleet(server.url, token) as viewer:
            assert list(viewer["one"].logs()) == []


# mbm board-logs


def mbm(*words: str) -> list[str]:
    return [sys.executable, "-m", "cloudmanager", "board-logs", *words]


def test_command_prints_rows_and_objects(printing: Boards):
    wait_for_lines(printing, 6)
    text = subprocess.run(mbm("printing-[1-2]"), capture_output=True, text=True, check=True).stdout
    assert "line 0\n" in text
    done = subprocess.run(mbm("printing-1", "--json"), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0].keys() == {"board", "at", "text", "lost"}


def test_command_follows_until_ctrl_c(printing: Boards):
    with subprocess.Popen(mbm("printing-1", "-f", "--json"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 130
    assert {line["board"] for line in lines} == {"printing-1"}


def test_command_says_that_nothing_was_printed(fleet: Fleet):
    fleet.enrol(["silent-1"])
    done = subprocess.run(mbm("silent-1"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "silent-1: nothing was printed outside of cells.\n"


@pytest.mark.parametrize("words", [["silent-1", "--since", "ten"], []])
def test_command_refuses_wrong_arguments(words: list[str]):
    assert subprocess.run(mbm(*words), capture_output=True, check=False).returncode == 2
