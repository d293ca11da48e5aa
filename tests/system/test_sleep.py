"""Boards that sleep: a real server and real virtual boards, which their supervisor starts again."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudmanager import Fleet
from cloudmanager.board_client import BoardIdentity
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.conftest import running_boards, running_server

from .conftest import fleet_of

SECONDS = 50.0  # until something must have happened, also on a busy machine
NAME = "sleepy-1"
pytestmark = pytest.mark.timeout(4 * SECONDS)
BUSY = "import cm\nx = 5\ncm.sleep({})\n"
ASYNC = """
import asyncio, cm
x = 5
async def main():
    await asyncio.sleep(0.01)
    await cm.sleep({})
"""
#: Not ``import app``: that would run the program in the cell.
READ = "import sys\nprint(getattr(sys.modules.get('app'), 'x', None))"


def wait_for(what: Callable[[], Any]) -> Any:
    """Wait until a function returns something that is true; return it."""
    deadline = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


class Sleeper:
    """A virtual board with a program, and the fleet that it belongs to."""

    def __init__(self, fleet: Fleet, boards: VirtualBoards, home: Path) -> None:
        self.fleet, self.boards, self.home = fleet, boards, home

    @property
    def row(self) -> dict[str, Any]:
        return next(each for each in self.fleet.boards() if each["name"] == NAME)

    def is_done(self, code: str) -> bool:
        return self.fleet[NAME].run(code, wait=SECONDS).ok

    def start(self, program: str) -> dict[str, Any]:
        """Give the board a program, switch it off and on; return its row when it is asleep."""
        # The program of an earlier test ends first: it may sleep for long, or so shortly that the
        # new one would be started twice. A cell is lost if the server does not know yet that the
        # link has ended.
        ending = "import os\nif 'app.py' in os.listdir('/'): os.remove('/app.py')"
        starting = f"with open('/app.py', 'w') as file:\n    file.write({program!r})"
        for code in (ending, starting):
            self.boards.restart(NAME)
            wait_for(functools.partial(self.is_done, code))
        self.boards.restart(NAME)
        return self.asleep(time.time())  # not that of an earlier program

    def asleep(self, after: float) -> dict[str, Any]:
        """Wait until the board has fallen asleep after a time; return its row."""
        return dict(
            wait_for(
                lambda: (
                    (row := self.row)["state"] in ("asleep", "overdue")
                    and row["last_seen"] > after
                    and row
                )
            )
        )

    def log(self) -> str:
        return (self.home / "virtual" / NAME / "board.log").read_text()


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sleeper]:
    home = tmp_path_factory.mktemp("sleep")
    with (
        running_server(home) as server,
        fleet_of(server) as fleet,
        running_boards(server, fleet, [NAME]) as boards,
    ):
        yield Sleeper(fleet, boards, home)


@pytest.mark.parametrize("program", [BUSY, ASYNC], ids=["busy", "async"])
def test_program_sleeps_and_its_board_wakes_in_time(sleeper: Sleeper, program: str) -> None:
    asleep = sleeper.start(program.format(2))
    assert 0 < asleep["wakes_at"] - asleep["last_seen"] <= 2
    assert asleep["awake_ms"] > 0
    again = sleeper.asleep(asleep["last_seen"])
    assert again["last_seen"] - asleep["last_seen"] >= 2
    assert not sleeper.boards.crashes


@pytest.mark.parametrize("program", [BUSY, ASYNC], ids=["busy", "async"])
def test_job_that_waits_runs_inside_the_sleep_of_the_program(
    sleeper: Sleeper, program: str
) -> None:
    sleeper.start(program.format(1))
    for _ in range(3):
        began = time.time()
        result = sleeper.fleet[NAME].run(READ, wait=SECONDS)[NAME]
        assert (result.status, result.stdout) == ("ok", "5\n"), result
        sleeper.asleep(began)


def test_client_of_a_board_that_woke_is_the_one_on_its_flash(sleeper: Sleeper) -> None:
    """The parts that each wake needs are imported from the host, before its flash is mounted."""
    sleeper.start(BUSY.format(1))
    code = "import cm, cm.facts\nprint(cm.__path__, callable(cm.sleep), cm.facts.rssi())"
    result = sleeper.fleet[NAME].run(code, wait=SECONDS)[NAME]
    assert result.stdout == "/lib/cm True 0\n", result


def test_several_jobs_run_in_one_wake_in_their_order(sleeper: Sleeper) -> None:
    sleeper.start(BUSY.format(2))
    groups = [sleeper.fleet[NAME].submit(f"print({n})", wait=SECONDS) for n in range(5)]
    boots = {job.results(SECONDS)[NAME].stdout for job in groups}
    assert boots == {f"{n}\n" for n in range(5)}


def test_cell_that_sleeps_ends_well_before_the_board_sleeps(sleeper: Sleeper) -> None:
    sleeper.start("import cm\ncm.sleep(1)\n")
    began = time.time()
    code = "import cm\nprint('before')\ncm.sleep(2)\nprint('not reached')"
    result = sleeper.fleet[NAME].run(code, wait=SECONDS)[NAME]
    assert (result.status, result.stdout) == ("ok", "before\n")
    row = sleeper.asleep(began)
    assert row["wakes_at"] - row["last_seen"] > 1.5


def test_board_that_does_not_wake_is_overdue_and_its_health_says_so(sleeper: Sleeper) -> None:
    sleeper.start(BUSY.format(1))
    sleeper.boards.kill(NAME)
    row = wait_for(lambda: (each := sleeper.row)["state"] == "overdue" and each)
    assert row["wakes_at"] < time.time()
    findings = {each.kind: each.since for each in sleeper.fleet.health().of_board(NAME)}
    assert findings["overdue"] == row["wakes_at"]
    assert "absent" not in findings
    sleeper.boards.restart(NAME)
    sleeper.asleep(time.time())
    found = sleeper.fleet.health().of_board(NAME)
    assert {each.kind for each in found}.isdisjoint(("overdue", "absent"))


def test_job_for_a_sleeping_board_ends_with_a_sentence(sleeper: Sleeper) -> None:
    sleeper.start(BUSY.format(20))
    result = sleeper.fleet[NAME].run("print(1)")[NAME]
    assert result.status == "offline"
    assert "it is asleep until " in result.why
    assert "`--when-online` waits for it" in result.why


def test_sleep_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    with (
        running_server(tmp_path) as server,
        fleet_of(server) as fleet,
        running_boards(server, fleet, [NAME]) as boards,
    ):
        asleep = Sleeper(fleet, boards, tmp_path).start(BUSY.format(600))
    with running_server(tmp_path) as server, fleet_of(server) as fleet:
        (row,) = fleet.boards()
        assert (row["state"], row["wakes_at"]) == ("asleep", asleep["wakes_at"])
        assert row["awake_ms"] == asleep["awake_ms"]


def test_board_that_must_stay_is_awake_for_so_long_and_runs_cells(sleeper: Sleeper) -> None:
    asleep = sleeper.start(BUSY.format(1))
    assert sleeper.fleet[NAME].stay("1m") == [NAME]
    assert sleeper.row["stay"]["seconds"] == 60
    wait_for(lambda: sleeper.row["state"] == "idle" and sleeper.row["stay"]["seconds"] is None)
    for _ in range(3):
        assert sleeper.fleet[NAME].run(READ)[NAME].stdout == "5\n"
        time.sleep(0.3)
    assert sleeper.row["connected_since"] > asleep["last_seen"]
    began = time.time()
    sleeper.fleet[NAME].stay(0)
    sleeper.asleep(began)


@pytest.mark.parametrize("seconds", [-1, 86401, "soon", "1y", None, True])
def test_bad_time_to_stay_is_refused(sleeper: Sleeper, seconds: Any) -> None:
    with pytest.raises((CloudmanagerError, ValueError, TypeError)):
        sleeper.fleet[NAME].stay(seconds)


def test_program_that_crashes_sleeps_as_long_as_before(sleeper: Sleeper) -> None:
    program = """
import cm, os
if "slept" in os.listdir("/"):
    1 / 0
open("/slept", "w").close()
cm.sleep(1)
"""
    asleep = sleeper.start(program)
    again = sleeper.asleep(asleep["last_seen"])
    assert again["program"] == "app.py ended: ZeroDivisionError: divide by zero"
    third = sleeper.asleep(again["last_seen"])
    assert third["last_seen"] - again["last_seen"] >= 1
    assert sleeper.fleet[NAME].run("import os\nos.remove('/slept')", wait=SECONDS).ok


def test_sleeper_without_a_server_sleeps_again_after_awake_max(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, fleet_of(server) as fleet:
        (row,) = fleet.enrol([NAME])
        identity = BoardIdentity.from_enrolment(row, server.url)
        identity = replace(identity, extra={**identity.extra, "awake_max": 0.5})
        address, folder = ("127.0.0.1", server.tcp_port), tmp_path / "virtual"
        with VirtualBoards([identity], address, folder) as boards:
            board = Sleeper(fleet, boards, tmp_path)
            board.start("import cm\nprint('woke')\ncm.sleep(0.2)\n")
            server.process.terminate()
            server.process.wait(SECONDS)
            before = board.log().count("woke")
            wait_for(lambda: board.log().count("woke") >= before + 3)
            assert not boards.crashes
