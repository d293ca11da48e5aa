"""``kill -9`` of the server, the board and the caller, at each step of a job.

A proxy holds the message of that step, the process is killed, and the message is forwarded or lost
with the link. The server and the board are restarted; the job of a killed caller continues.
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client import cell_verbs
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import JobGroup
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.run_options import RunOptions
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer, running_server
from cloudmanager.virtual.virtual_boards import VirtualBoards

from .conftest import WAIT, until
from .proxy import Loop, Proxy, Strike
from .rows import PRINTS

pytestmark = pytest.mark.timeout(120)
BOARD = "slot-1"


class Kill(NamedTuple):
    """Which process is killed, when, and the outcome.

    Attributes:
        who: server, board or caller.
        at: the message that is held meanwhile.
        arrives: whether that message still arrives.
        caller_result: a status, or the class of an error; "" for a killed caller.
        record: the final status in the store; "" if the server never received the cell.
        runs: how often the cell ran.
    """

    who: str
    at: str
    arrives: bool
    caller_result: str
    record: str
    runs: int

    def __str__(self) -> str:
        """Name the test."""
        return f"{self.who}-at-{self.at}-{'arrives' if self.arrives else 'lost'}"


KILLS = [
    Kill("server", "SUBMIT", False, "ServerUnreachable", "", 0),
    Kill("server", "EXEC", True, "lost", "ok", 1),
    Kill("server", "EXEC", False, "lost", "lost", 0),
    Kill("server", "OUTPUT", True, "lost", "ok", 1),
    Kill("server", "OUTPUT", False, "lost", "ok", 1),
    Kill("server", "RESULT", False, "lost", "ok", 1),
    Kill("board", "EXEC", True, "lost", "lost", 0),
    Kill("board", "OUTPUT", True, "lost", "lost", 1),
    Kill("board", "OUTPUT", False, "lost", "lost", 1),
    Kill("board", "RESULT", True, "ok", "ok", 1),
    Kill("board", "RESULT", False, "lost", "lost", 1),
    Kill("caller", "SUBMIT", True, "", "ok", 1),
    Kill("caller", "SUBMIT", False, "", "", 0),
    Kill("caller", "ACCEPTED", False, "", "ok", 1),
    Kill("caller", "OUTPUT", False, "", "ok", 1),
    Kill("caller", "RESULT", False, "", "ok", 1),
]
CALLER_LINK = ("SUBMIT", "ACCEPTED")
CALLER = """
import sys
from cloudmanager import Fleet
Fleet(sys.argv[1], sys.stdin.readline().strip())[sys.argv[2]].run(sys.stdin.read(), timeout=10)
"""


class Stage:
    """A server, a board behind one proxy, callers behind another."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.stack = contextlib.ExitStack()
        self.server = self._serve(0)
        self.token = (home / "token").read_text().strip()
        self.fleet = self.stack.enter_context(Fleet(self.server.url, self.token))
        loop = self.stack.enter_context(Loop())
        self.board_proxy = loop.proxy(self.server.tcp_port)
        self.caller_proxy = loop.proxy(self.server.tcp_port)
        (row,) = self.fleet.enrol([BOARD])
        identity = BoardIdentity(row["name"], row["id"], bytes.fromhex(row["key"]))
        self.machine = self.stack.enter_context(
            VirtualBoards([identity], ("127.0.0.1", self.board_proxy.tcp_port), home / "virtual")
        )
        wait_online(self.fleet, [BOARD])

    def _serve(self, tcp_port: int) -> RunningServer:
        return self.stack.enter_context(running_server(self.home, tcp_port=tcp_port))

    @property
    def url(self) -> str:
        """Return the URL to which callers connect."""
        return f"http://127.0.0.1:{self.caller_proxy.tcp_port}"

    def kill(self, who: str, caller: subprocess.Popen[str] | None) -> None:
        """Kill one process."""
        if who == "server":
            self.server.process.kill()
            self.server.process.wait(WAIT)
        elif who == "board":
            self.machine.kill(BOARD)
        else:
            assert caller is not None
            caller.kill()
            caller.wait(WAIT)

    def revive(self, who: str) -> None:
        """Restart the process."""
        since = time.time()
        if who == "server":
            self.server = self._serve(self.server.tcp_port)
        elif who == "board":
            self.machine.restart(BOARD)
            wait_online(self.fleet, [BOARD], since=since)

    def cell(self, code: str) -> object:
        """Run a cell without a fault; return its value."""
        return self.fleet[BOARD].submit(code, wait=WAIT).results(WAIT).value


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.stack.close()


def submit(stage: Stage) -> tuple[Fleet, JobGroup]:
    """Submit the cell from this process; the group has its result or error."""
    fleet = Fleet(stage.url, stage.token)
    group = JobGroup(cell_verbs.make_cell(PRINTS, None), RunOptions(timeout=10))
    fleet.exchange().submit(group, BOARD)
    return fleet, group


def run_in_another_process(stage: Stage) -> subprocess.Popen[str]:
    """Run the cell from another process."""
    command = [sys.executable, "-c", CALLER, stage.url, BOARD]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(f"{stage.token}\n{PRINTS}")
    process.stdin.close()
    return process


def outcome(group: JobGroup) -> str:
    """Return the caller's result: a status, or the class of an error."""
    assert group.wait(WAIT), "the caller hangs"
    try:
        (result,) = group.results().values()
    except CloudmanagerError as error:
        return type(error).__name__
    return result.status


def release(proxy: Proxy, *, arrives: bool) -> None:
    """Forward the held message, or lose it with its link."""
    if not arrives:
        proxy.close_links()
    proxy.released.set()


def statuses(stage: Stage) -> dict[int, str | None]:
    """Return the status of each job in the store."""
    with contextlib.closing(sqlite3.connect(stage.home / "server.db")) as file:
        return dict(file.execute("SELECT id, status FROM jobs"))


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_kill_9(stage: Stage, kill: Kill):
    stage.cell("open('/runs', 'w').close()")
    until(lambda: None not in statuses(stage).values(), "a job is open")
    before = set(statuses(stage))
    on_callers_link = kill.who == "caller" or kill.at in CALLER_LINK
    proxy = stage.caller_proxy if on_callers_link else stage.board_proxy
    proxy.strike(Strike("hold", kill.at))
    if kill.who == "caller":
        with run_in_another_process(stage) as caller:
            assert proxy.struck.wait(WAIT)
            stage.kill(kill.who, caller)
            release(proxy, arrives=kill.arrives)
    else:
        fleet, group = submit(stage)
        with fleet:
            assert proxy.struck.wait(WAIT)
            assert on_callers_link or group.accepted.wait(WAIT)
            stage.kill(kill.who, None)
            release(proxy, arrives=kill.arrives)
            stage.revive(kill.who)
            assert outcome(group) == kill.caller_result
    if kill.record:
        until(lambda: set(statuses(stage)) > before, "the server did not receive the cell")
    until(lambda: None not in statuses(stage).values(), "a job is open")
    found = [status for job, status in statuses(stage).items() if job not in before]
    assert found == [kill.record] * bool(kill.record)
    assert stage.cell("len(open('/runs').read())") == kill.runs
