"""Long runs, for ``make soak``: nothing grows, and nothing is lost while a process is suspended."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer, running_server
from tests.conftest import running_boards
from tests.memory import own_bytes
from tests.system.conftest import fleet_of

pytestmark = pytest.mark.soak
CELLS = 30_000
WARM_UP = 3_000
GROWTH_BYTES = 8 * 1024 * 1024  # of the caller's process, the server's, and the boards'
HEAP_BYTES = 4096  # by which a board's free heap may shrink
STANDSTILL_SECONDS = 40.0
CALLER = """
import sys
from cloudmanager import Fleet
fleet = Fleet(sys.argv[1], sys.stdin.readline().strip())
group = fleet["safe-1"].submit(sys.stdin.read())
print("submitted", flush=True)
(result,) = group.results(300).values()
print(result.status, result.value, flush=True)
print(fleet["safe-1"].run("6 * 7", wait=30).value, flush=True)
"""
PRINTS = """
import time
for n in range(600):
    print(n, "x" * 2000)
    time.sleep(0.03)
"the outcome"
"""


class Site:
    """A server, a caller's link and a board."""

    def __init__(self, server: RunningServer, fleet: Fleet, boards: int) -> None:
        self.server, self.fleet, self.boards = server, fleet, boards

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return the memory in bytes and the descriptors of each process."""
        found = {}
        for name, pid in {
            "caller": None,
            "server": self.server.process.pid,
            "boards": self.boards,
        }.items():
            root = psutil.Process(pid)
            family = [root, *root.children(recursive=True)] if name == "boards" else [root]
            memory = sum(own_bytes(each.pid) for each in family)
            found[name] = memory, sum(each.num_fds() for each in family)
        return found

    def free_heap(self) -> int:
        value = self.fleet["safe-1"].run("import gc; gc.collect(); gc.mem_free()").value
        assert isinstance(value, int)
        return value


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with (
        running_server(tmp_path) as server,
        fleet_of(server) as fleet,
        running_boards(server, fleet, ["safe-1"]) as boards,
    ):
        assert boards._process is not None
        yield Site(server, fleet, boards._process.pid)


@pytest.mark.timeout(900)
def test_thirty_thousand_cells_through_one_fleet_leave_everything_as_it_was(site: Site):
    board = site.fleet["safe-1"]
    for number in range(WARM_UP):
        assert board.run(f"{number}").value == number
    before, heap = site.sizes(), site.free_heap()
    for number in range(CELLS):
        assert board.run(f"{number}").value == number
    after = site.sizes()
    print({name: (after[name][0] - before[name][0], after[name][1]) for name in after})
    for name, (memory, descriptors) in after.items():
        assert memory - before[name][0] < GROWTH_BYTES, name
        assert descriptors <= before[name][1] + 2, name  # a checkpoint of the store may be running
    assert heap - site.free_heap() < HEAP_BYTES


@contextlib.contextmanager
def caller(site: Site, code: str) -> Iterator[subprocess.Popen[str]]:
    """Run a cell from a process of its own; it has submitted it."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", CALLER, site.server.url]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            token = (site.server.home / "token").read_text().strip()
            process.stdin.write(f"{token}\n{code}")
            process.stdin.close()
            assert process.stdout.readline() == "submitted\n"
            yield process
        finally:
            process.kill()


def suspend(pid: int, seconds: float) -> None:
    psutil.Process(pid).send_signal(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        psutil.Process(pid).send_signal(signal.SIGCONT)


@pytest.mark.timeout(300)
def test_outcome_is_kept_for_a_caller_that_was_suspended(site: Site):
    with caller(site, PRINTS) as process:
        time.sleep(1)
        suspend(process.pid, STANDSTILL_SECONDS)
        assert process.stdout is not None
        assert process.stdout.readline() == "ok the outcome\n"
        assert process.stdout.readline() == "42\n"


@pytest.mark.timeout(300)
def test_server_that_was_suspended_loses_no_board_and_no_job(site: Site):
    since = time.time()
    with caller(site, "import time\ntime.sleep(20)\n'the outcome'") as process:
        time.sleep(1)
        suspend(site.server.process.pid, STANDSTILL_SECONDS)
        wait_online(site.fleet, ["safe-1"])
        assert process.stdout is not None
        status = process.stdout.readline().split()[0]
        assert status in ("ok", "lost")  # the caller may have given the link up meanwhile
        assert process.stdout.readline() == "42\n"
    (job, *_) = [each for each in site.fleet.request("jobs") if each["created"] > since]
    assert job["state"] == "ended"
    stored = [site.fleet.job(number)["status"] for number in range(1, job["job"] + 1)]
    assert stored == ["ok"] * len(stored)
    log = (site.server.home / "server.log").read_text()
    assert "does not answer pings" not in log
    assert "Traceback" not in log
