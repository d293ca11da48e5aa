"""What crosses servers when one of them, or the bus, fails or stands still: exact outcomes.

tests/cm_server/cluster/test_conformance.py has lost, repeated and late messages.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer
from tests.engines import Nats, Postgres
from tests.faults.proxy import Loop
from tests.faults.several import Balancer

from .several import Several, several

SHORT = ("--beat", "1", "--lost-after", "4")
DEFAULTS = ("--keep-jobs", "90")  # an option that changes nothing
BIG = bytes(range(256)) * 12_000  # 3 MB: still on its way when the fault happens


class Fault:
    """Three servers; a caller at A uses a board at B, and C watches."""

    def __init__(self, made: Several, loop: Loop, folder: Path) -> None:
        self.made, self.folder = made, folder
        self.a, self.b, self.c = (made.start(name) for name in "abc")
        self.caller, self.watcher = made.fleet(self.a), made.fleet(self.c)
        self.balancer = loop.adopt(Balancer(loop, 0))
        self.balancer.ports, self.balancer.dice = [self.b.tcp_port], random.Random(1)
        made.board(self.watcher, self.balancer.tcp_port, "far-1")
        wait_online(self.caller, ["far-1"])
        self.store = psycopg.connect(made.store, autocommit=True)

    def start(self, act: Callable[[Fleet], Any]) -> int:
        """Let the caller do something that lasts; return the number of its job."""

        def run() -> None:
            with contextlib.suppress(CloudmanagerError, OSError):
                act(self.caller)

        threading.Thread(target=run, daemon=True).start()
        while True:
            job = self.watcher.boards("far-1")[0]["job"]
            if job is not None:
                return int(job["job"])
            time.sleep(0.01)

    def strike(self, server: RunningServer, how: str) -> None:
        """Let a fault happen to a server; the balancer leads boards to the other ones."""
        others = [each for each in (self.a, self.b, self.c) if each is not server]
        self.balancer.ports = [each.tcp_port for each in others if each is not self.a]
        if how == "stand":
            server.process.send_signal(signal.SIGSTOP)
        else:
            server.process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
            server.process.wait(20)

    def outcome(self, job: int, seconds: float) -> str:
        """Wait until a job has ended in the store, and its board runs the next cell."""
        deadline = time.monotonic() + seconds
        status = None
        while status is None and time.monotonic() < deadline:
            row = self.store.execute("SELECT status FROM jobs WHERE id = %s", (job,)).fetchone()
            status = row[0] if row else None
            time.sleep(0.05)
        left = max(deadline - time.monotonic(), 1)
        with contextlib.suppress(CloudmanagerError):
            result = self.watcher["far-1"].run("6 * 7", timeout=left, wait=left)["far-1"]
            return f"{status}, {'usable' if result.status == 'ok' else result.status}"
        return f"{status}, not usable"


def ask(fleet: Fleet) -> None:
    group = fleet["far-1"].submit("input('? ')", answers=True, listen=True)
    for _ in group.events():
        pass


def put(fault: Fault) -> Callable[[Fleet], Any]:
    path = fault.folder / "big"
    path.write_bytes(BIG)
    return lambda fleet: fleet["far-1"].put(str(path), ":big")


THINGS: dict[str, Callable[[Fault], Callable[[Fleet], Any]]] = {
    "cell": lambda _: lambda fleet: fleet["far-1"].run("import time; time.sleep(2); 7"),
    "input": lambda _: ask,
    "put": put,
}


@pytest.fixture
def fault(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres, nats: Nats
) -> Iterator[Fault]:
    options = request.param
    with Loop() as loop, several(tmp_path, postgres, nats, *options) as made:
        fault = Fault(made, loop, tmp_path)
        try:
            yield fault
        finally:
            fault.store.close()


#: What is on its way, and how it ends whichever of the two servers fails, and however. An
#: ``input()`` at a server that stands still is left out: its board notices that only late.
OUTCOMES = {"cell": "ok, usable", "input": "error, usable", "put": "error, usable"}
CASES = [
    (thing, role, how)
    for thing in THINGS
    for role in ("caller's", "board's")
    for how in ("kill", "stop", "stand")
    if (thing, role, how) != ("input", "board's", "stand")
]


@pytest.mark.soak
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "fault", [SHORT, DEFAULTS], indirect=True, ids=["short times", "default times"]
)
@pytest.mark.parametrize(("thing", "role", "how"), CASES)
def test_job_across_servers_ends_and_its_board_is_usable(
    fault: Fault, thing: str, role: str, how: str
):
    job = fault.start(THINGS[thing](fault))
    time.sleep(0.3)
    fault.strike(fault.a if role == "caller's" else fault.b, how)
    assert fault.outcome(job, 60) == OUTCOMES[thing]
