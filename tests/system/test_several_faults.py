"""What crosses servers when one of them, or the bus, fails or stands still: exact outcomes.

tests/cm_server/cluster/test_conformance.py has lost, repeated and late messages.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloudmanager.client.fleet import Boards
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer
from tests.engines import Nats, Postgres
from tests.faults.proxy import Loop
from tests.faults.several import Balancer

from .several import Several, several

SHORT = ("--beat", "1", "--lost-after", "4")
DEFAULTS = ("--keep-jobs", "90")  # an option that changes nothing
BIG_BYTES = 3_000_000  # of a file
UNIT_SECONDS = 0.01  # of a frame of 1 KB: a file takes 30 s, and is in transit at the fault
MODULES = 80  # of a package, of 12 KB each
BUS_AWAY = 1.0  # seconds
WAIT = 60.0  # seconds until everything has ended, also with the default times


class Fault:
    """Three servers; a caller at A uses boards at B, and C watches."""

    def __init__(self, made: Several, loop: Loop, nats: Nats, folder: Path) -> None:
        self.made, self.nats, self.folder = made, nats, folder
        self.a, self.b, self.c = (made.start(name) for name in "abc")
        self.caller, self.watcher = made.fleet(self.a), made.fleet(self.c)
        self.balancer = loop.adopt(Balancer(loop, 0))
        self.balancer.ports, self.balancer.dice = [self.b.tcp_port], random.Random(1)
        made.board(self.watcher, self.balancer.tcp_port, *THINGS, flash="16M")
        wait_online(self.caller, list(THINGS))
        wait_online(self.watcher, list(THINGS))
        self.store = psycopg.connect(made.store, autocommit=True)
        self.is_answered = threading.Event()
        self.prepared = 0  # the number of the job that writes a file to be downloaded

    def start(self, thing: str) -> int:
        """Let the caller do something that lasts; return the number of its job."""
        boards = self.caller[thing]

        def act() -> None:
            with contextlib.suppress(CloudmanagerError, OSError):
                THINGS[thing][0](self, boards)

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        while thread.is_alive():
            job = self.watcher.boards(thing)[0]["job"]
            # Servers hear of a job's end 0.1 s later.
            if job is not None and job["job"] != self.prepared and not self._asks_first(job["job"]):
                return int(job["job"])
            time.sleep(0.01)
        raise AssertionError(f"{thing} has ended before it was seen")

    def _asks_first(self, job: int) -> bool:
        """Return whether a job is the one before a download, which asks what the path is."""
        query = "SELECT detail FROM audit WHERE %s BETWEEN first_job AND last_job"
        row = self.store.execute(query, (job,)).fetchone()
        return row is not None and str(row[0]).startswith("stat ")

    def start_all(self) -> dict[str, int]:
        """Let the caller do everything; return the numbers of the jobs."""
        jobs: dict[str, int] = {}

        def start(thing: str) -> None:
            jobs[thing] = self.start(thing)

        writing = f"with open('big', 'wb') as f:\n for _ in range({BIG_BYTES // 4000}): f.write(b)"
        group = self.watcher["get"].submit(f"b = bytes(4000)\n{writing}")
        group.results().raise_for_error()
        self.prepared = group.jobs["get"].number
        self.balancer.unit_seconds = UNIT_SECONDS
        start("install")  # it takes the longest
        threads = [threading.Thread(target=start, args=(thing,)) for thing in THINGS]
        for thread in threads[1:]:
            thread.start()
        for thread in threads[1:]:
            thread.join()
        return jobs

    def strike(self, what: str, how: str) -> None:
        """Let a fault happen to a server or to the bus.

        The balancer leads boards to servers that are there.
        """
        if what == "bus":
            self.nats.end(signal.SIGKILL)
            time.sleep(BUS_AWAY)
            self.nats.restart()
            self.nats.await_start()
        else:
            server = self.a if what == "caller's" else self.b
            self.balancer.ports = [each.tcp_port for each in (self.b, self.c) if each is not server]
            _end(server, how)
        self.balancer.unit_seconds = 0.0

    def outcomes(self, jobs: dict[str, int]) -> dict[str, str]:
        """Wait until jobs have ended in the store, and their boards run the next cell."""
        deadline = time.monotonic() + WAIT
        return {thing: self._outcome(thing, jobs[thing], deadline) for thing in THINGS}

    def _outcome(self, thing: str, job: int, deadline: float) -> str:
        status = None
        while status is None and time.monotonic() < deadline:
            query = "SELECT status, error FROM jobs WHERE id = %s"
            row = self.store.execute(query, (job,)).fetchone()
            status = row[0] if row else None
            time.sleep(0.05)
        left = max(deadline - time.monotonic(), 1)
        with contextlib.suppress(CloudmanagerError):
            result = self.watcher[thing].run("6 * 7", timeout=left, wait=left)[thing]
            return f"{status}, {'usable' if result.status == 'ok' else result.status}"
        return f"{status}, not usable"


def _end(server: RunningServer, how: str) -> None:
    if how == "stand":
        server.process.send_signal(signal.SIGSTOP)
    else:
        server.process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        server.process.wait(20)


def cell(_fault: Fault, boards: Boards) -> None:
    boards.run("import time; time.sleep(2); 7")


def ask(fault: Fault, boards: Boards) -> None:
    """Ask twice: before the fault, and if that is answered, soon after it."""
    group = boards.submit("input('? ') + input('? ')", answers=True, listen=True)
    for event in group.events():
        if event.kind == "input":
            fault.is_answered.wait()
            group.answer(event.job, "x")


def put(fault: Fault, boards: Boards) -> None:
    path = fault.folder / "big"
    path.write_bytes(os.urandom(BIG_BYTES))
    boards.put(str(path), ":big")


def get(fault: Fault, boards: Boards) -> None:
    boards.get(":big", str(fault.folder / "back"))


def install(fault: Fault, boards: Boards) -> None:
    package = fault.folder / "package"
    package.mkdir()
    for number in range(MODULES):
        (package / f"m{number}.py").write_text(f"DATA = {os.urandom(6000).hex()!r}\n")
    boards.install(str(package))


OK, ERROR, INTERRUPTED = "ok, usable", "error, usable", "interrupted, usable"
#: Board -> what is on its way there, and how it ends if its caller's server fails, in whichever
#: way, if the board's server fails, and if the bus is away.
THINGS: dict[str, tuple[Callable[[Fault, Boards], None], str, str, str]] = {
    "install": (install, ERROR, INTERRUPTED, ERROR),
    "put": (put, ERROR, INTERRUPTED, ERROR),
    "get": (get, ERROR, INTERRUPTED, ERROR),
    "input": (ask, ERROR, ERROR, OK),
    "cell": (cell, OK, OK, OK),
}
COLUMNS = ("", "caller's", "board's", "bus")


@pytest.fixture
def fault(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres, nats: Nats
) -> Iterator[Fault]:
    options = request.param
    with Loop() as loop, several(tmp_path, postgres, nats, *options) as made:
        fault = Fault(made, loop, nats, tmp_path)
        try:
            yield fault
        finally:
            fault.is_answered.set()
            fault.store.close()


FAULTS = [("bus", "away")]
FAULTS += [(what, how) for what in ("caller's", "board's") for how in ("kill", "stop", "stand")]
#: In `make test`; the other ones, and all with the default times, are in `make soak`.
SHORTLY = [("bus", "away"), ("caller's", "kill")]
CASES: list[Any] = [
    pytest.param(
        options,
        *fault,
        id=f"{fault[0]} {fault[1]}, {times}",
        marks=() if options is SHORT and fault in SHORTLY else pytest.mark.soak,
    )
    for options, times in ((SHORT, "short times"), (DEFAULTS, "default times"))
    for fault in FAULTS
]


@pytest.mark.timeout(600)  # on a busy machine; usually 20
@pytest.mark.parametrize(("fault", "what", "how"), CASES, indirect=["fault"])
def test_jobs_across_servers_end_and_their_boards_are_usable(fault: Fault, what: str, how: str):
    jobs = fault.start_all()
    fault.strike(what, how)
    if what == "bus":
        fault.is_answered.set()
    column = COLUMNS.index(what)
    assert fault.outcomes(jobs) == {thing: row[column] for thing, row in THINGS.items()}
