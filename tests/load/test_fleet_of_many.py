"""Failures of boards, callers or the server do not affect others, and results are correct.

`make soak` runs the same tests with more boards and data.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import JobGroup
from cloudmanager.protocol.errors import BoardOffline
from cloudmanager.results.results import Result, Results
from cloudmanager.testing.board_fixtures import (
    BoardsFactory,
    BoardsUnderTest,
    BoardUnderTest,
    wait_online,
)
from cloudmanager.testing.plugin import RunningServer, running_server
from tests.conftest import running_boards
from tests.memory import own_bytes
from tests.system.conftest import fleet_of, until

WAIT = 30.0  # timeout in seconds, long enough for a busy machine
SOAK = pytest.mark.soak, pytest.mark.timeout(300)


def end_of(fleet: Fleet, number: int, *provisional: str) -> dict[str, Any]:
    """Wait until a job has a status that is not one of the provisional ones; return the job."""
    until(lambda: fleet.job(number)["status"] not in (None, *provisional), f"job {number} is open")
    return fleet.job(number)


# Two hundred boards

ACTS = {
    "raises": "def act():\n    raise OSError('the sensor is unplugged')",
    "floods": "def act():\n    while True: print('x' * 70)",
    "loses its power": "import time\ndef act(): time.sleep(60)",
    "is stopped": "import time\ndef act(): time.sleep(60)",
}
CELL = "print('go')\nact()"
TIMEOUT = 2.0


class ManyBoards:
    """Many boards, of which the last four fail, each in its own way."""

    def __init__(self, boards: BoardsUnderTest) -> None:
        self.boards = boards
        self.failing = {what: boards[-n] for n, what in enumerate(ACTS, start=1)}
        names = {board.name for board in self.failing.values()}
        self.working = [name for name in boards.names if name not in names]
        boards.run("def act(): return 21.5")
        for what, board in self.failing.items():
            board.run(ACTS[what])

    def but(self, *failures: str) -> str:
        """Return the target of all boards except those with these failures."""
        out = "".join(f"!{self.failing[what].name}" for what in failures)
        return self.boards.target + out

    def run(self, fleet: Fleet) -> tuple[JobGroup, dict[str, float]]:
        """Run the cell with its failures; return the jobs and the seconds until each ended."""
        power, stopped = self.failing["loses its power"], self.failing["is stopped"]
        began = time.monotonic()
        ended: dict[str, float] = {}
        group = fleet[self.boards.target].submit(CELL, timeout=TIMEOUT, listen=True)
        for event in group.events():
            if event.kind == "ended":
                ended[event.job.board] = time.monotonic() - began
            elif event.kind == "output" and event.job.board == power.name:
                power.kill()
            elif event.kind == "output" and event.job.board == stopped.name:
                stopped.kill(signal.SIGSTOP)
        return group, ended


@pytest.mark.timeout(120)  # on a busy machine, mostly to start the boards
@pytest.mark.parametrize("count", [200, pytest.param(500, marks=SOAK)])
def test_failing_boards_do_not_delay_others(
    cm_fleet: Fleet, cm_boards_factory: BoardsFactory, count: int
):
    with cm_boards_factory(count, name="many") as boards:
        many = ManyBoards(boards)
        calm = max(
            r.elapsed for r in cm_fleet[",".join(many.working)].run(CELL, timeout=5).values()
        )
        group, ended = many.run(cm_fleet)
        results = group.results()
        assert {results[name].value for name in many.working} == {21.5}
        assert max(ended[name] for name in many.working) < min(10 * calm + 0.5, TIMEOUT)
        assert max(ended.values()) < TIMEOUT + 1 + 1  # one more second for a busy machine
        outcome = {what: results[board.name] for what, board in many.failing.items()}
        assert [(what, result.status) for what, result in outcome.items()] == [
            ("raises", "error"),
            ("floods", "timeout"),
            ("loses its power", "lost"),
            ("is stopped", "timeout"),
        ]
        assert "OSError: the sensor is unplugged" in outcome["raises"].traceback
        assert outcome["floods"].stdout.startswith("go\nxxx") or outcome["floods"].truncated
        assert "has not confirmed" in outcome["is stopped"].why
        next_cell_works(cm_fleet[many.but("loses its power", "is stopped")].run(CELL[:11]))
        result_is_corrected(cm_fleet, many.failing["is stopped"], outcome["is stopped"])
        next_cell_works(cm_fleet[many.but("loses its power")].run(CELL[:11]))
        assert cm_fleet[many.but("loses its power")].run("callable(act)").ok


def next_cell_works(results: Results) -> None:
    assert {result.stdout for result in results.raise_for_error().values()} == {"go\n"}


def result_is_corrected(fleet: Fleet, stopped: BoardUnderTest, provisional: Result) -> None:
    """The server gave the job up; the board resumes and reports the result."""
    assert "has not confirmed" in fleet.job(provisional.job)["error"]
    stopped.kill(signal.SIGCONT)
    until(lambda: "has not" not in fleet.job(provisional.job)["error"], "the job was not corrected")
    job = fleet.job(provisional.job)
    assert (job["status"], job["error"].split()[-1]) == ("timeout", "KeyboardInterrupt:")


# Callers and servers that are killed

CALLER = """
import sys
from cloudmanager import Fleet
group = Fleet()[sys.argv[1]].submit(sys.argv[2], listen=True)
for event in group.events():
    if event.kind == "output" and event.text.startswith("go"):
        print(event.job.number, flush=True)
"""


@pytest.fixture
def caller() -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Return a function that starts a caller process, which prints its job's number."""
    processes = []

    def start(target: str, code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CALLER, target, code]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        with process:
            process.kill()


def job_number(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_job_of_a_killed_caller_continues_and_job_show_prints_its_result(
    cm_fleet: Fleet, cm_board: BoardUnderTest, caller: Callable[[str, str], subprocess.Popen[str]]
):
    process = caller(cm_board.name, "import time\nprint('go')\ntime.sleep(1)\nprint('on')\n6 * 7")
    number = job_number(process)
    process.kill()
    process.wait(WAIT)
    assert cm_fleet.job(number)["state"] == "running"
    job = end_of(cm_fleet, number)
    assert (job["status"], job["stdout"], job["value"]) == ("ok", "go\non\n", "42")
    command = [sys.executable, "-m", "cloudmanager", "job-show", str(number)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "ok" in shown
    assert "go\non\n" in shown
    assert "42" in shown


#: Board -> its code while the server does not run, and the final status and error of its job.
AWAY = {
    "away-1": ("time.sleep(0.7)", "ok", ""),
    "away-2": ("time.sleep(0.7)\n1/0", "error", "ZeroDivisionError: divide by zero"),
    "away-3": ("while True: pass", "timeout", "KeyboardInterrupt:"),
    "away-4": ("time.sleep(60)", "lost", "the board restarted while it ran"),
}


def test_results_are_correct_after_the_server_was_killed_during_a_cell(tmp_path: Path):
    """away-3 reconnects late: its job is lost until the board reports the result."""
    options = ("--lost-after", "0.1")  # the reconnect spread of 2 s is longer, and counts
    with (
        running_server(tmp_path, *options) as server,
        fleet_of(server) as fleet,
        running_boards(server, fleet, list(AWAY)) as boards,
    ):
        boards_act(fleet)
        group = fleet["away-[1-4]"].submit("print('go')\nact()", timeout=4, listen=True)
        heard = (event.kind for event in group.events())
        assert [next(heard) for _ in AWAY] == ["output"] * len(AWAY)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(WAIT)
        assert {result.status for result in group.results(WAIT).values()} == {"lost"}
        boards.restart("away-4")
        with running_server(tmp_path, *options, tcp_port=server.tcp_port):
            wait_online(fleet, AWAY)
            for name, (_, status, error) in AWAY.items():
                provisional = ("lost",) if status != "lost" else ()
                job = end_of(fleet, group.jobs[name].number, *provisional)
                assert (name, job["board"], job["status"]) == (name, name, status)
                assert job["error"].strip().endswith(error)
            next_cell_works(fleet["away-[1-4]"].run("print('go')", timeout=5))


def boards_act(fleet: Fleet) -> None:
    for name, (code, _, _) in AWAY.items():
        body = "".join(f"\n    {line}" for line in code.splitlines())
        fleet[name].run(f"import time\ndef act():{body}").raise_for_error()


# Floods

FLOOD = "line = 'x' * 1023\nprint('go')\nfor n in range({}): print(line)\nprint('all')"
CELLS = 100  # in each turn


def median_ms(fleet: Fleet, board: BoardUnderTest) -> float:
    """Return the median time of a short cell in milliseconds."""
    took = []
    for _ in range(CELLS):
        began = time.perf_counter()
        assert fleet[board.name].run("1", timeout=WAIT).ok
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


@pytest.mark.parametrize("megabytes", [20, pytest.param(100, marks=SOAK)])
def test_output_flood_neither_grows_the_server_nor_delays_another_board(
    cm_server: RunningServer,
    cm_fleet: Fleet,
    cm_make_boards: Callable[..., BoardsUnderTest],
    caller: Callable[[str, str], subprocess.Popen[str]],
    megabytes: int,
):
    """The flooding board is suspended every other turn, to measure with and without the flood."""
    flooding, other = cm_make_boards(2)
    pid = cm_server.process.pid
    median_ms(cm_fleet, other)
    before = own_bytes(pid)
    quiet, flooded, grown = [], [], []
    number = job_number(caller(flooding.name, FLOOD.format(megabytes * 1024)))
    while cm_fleet.job(number)["status"] is None:
        flooded.append(median_ms(cm_fleet, other))
        grown.append(own_bytes(pid) - before)
        flooding.kill(signal.SIGSTOP)
        quiet.append(median_ms(cm_fleet, other))
        flooding.kill(signal.SIGCONT)
    job = cm_fleet.job(number)
    assert (job["status"], job["truncated"], job["stdout"][-5:]) == ("ok", True, "\nall\n")
    assert max(grown) < 50e6
    ratio = statistics.median(flooded) / statistics.median(quiet)
    print(f"{len(quiet)} turns, {ratio:.2f} times as long, {max(grown) / 1e6:.1f} MB more")
    assert ratio < 1.5


# Boards that are offline


def test_run_waits_for_a_board_that_connects_later(cm_fleet: Fleet, cm_board: BoardUnderTest):
    cm_board.kill()
    group = cm_fleet[cm_board.name].submit("6 * 7", wait=WAIT)
    assert cm_fleet.job(group.jobs[cm_board.name].number)["state"] == "queued"
    assert not group.wait(0)
    cm_board.restart()
    assert group.results(WAIT).value == 42


def test_run_without_wait_ends_offline_immediately(cm_fleet: Fleet, cm_board: BoardUnderTest):
    cm_board.kill()
    result = cm_fleet[cm_board.name].run("6 * 7", timeout=WAIT)[cm_board.name]
    assert (result.status, type(result.error)) == ("offline", BoardOffline)


def test_run_ends_offline_after_the_wait(cm_board: BoardUnderTest):
    cm_board.kill()
    result = cm_board.run("6 * 7", wait=0.3, check=False)
    assert (result.status, "it did not connect within 0.3 s" in result.why) == ("offline", True)
