"""A process that forks, and Fleets that nobody closes."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from cloudmanager.client.async_fleet import AsyncFleet
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.forks import RESULT_IN_PARENT, forked_error
from cloudmanager.testing.plugin import RunningServer
from cm_server.net import certificates
from tests.faults.conftest import serving

WAIT = 60.0  # seconds that anything here may take on a busy machine
#: A parent that forks while its cell runs and while other threads use its Fleet; the child uses
#: what it inherited, then a Fleet of its own.
PROGRAM = """
import contextlib, os, sys, threading, time
from cloudmanager import CloudmanagerError, Fleet

fleet = Fleet()
watch = fleet.watch("demo-2")
next(watch)
group = fleet["demo-1"].submit("import time\\ntime.sleep(1)\\n6 * 7", listen=True)
stop = threading.Event()

def work():
    while not stop.is_set():
        fleet.status()

workers = [threading.Thread(target=work) for _ in range(3)]
for worker in workers:
    worker.start()

def message(act):
    try:
        return repr(act())
    except CloudmanagerError as error:
        return f"{type(error).__name__}: {error}"

children = []
for number in range(int(sys.argv[1])):
    pid = os.fork()
    if not pid:
        lines = [
            message(fleet.status),
            message(lambda: fleet["demo-2"].run("1")),
            message(lambda: next(watch)),
            group.results(5)["demo-1"].why,
            message(fleet.close),
            message(lambda: fleet["demo-2"].run("1 + 1")["demo-2"].value),
            message(lambda: Fleet()["demo-3"].run("1 + 2")["demo-3"].value),
        ]
        os.write(1, ("\\n".join(lines) + "\\n").encode())
        os._exit(0)
    os.waitpid(pid, 0)
stop.set()
for worker in workers:
    worker.join()
print(group.results(20)["demo-1"].value, fleet["demo-2"].run("2 + 2").value)
"""


def run_program(url: str, token: str, forks: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(forks)],
        env={"CM_URL": url, "CM_TOKEN": token, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.usefixtures("boards")
def test_forked_child_gets_a_clear_error_and_the_parents_cells_are_unharmed(
    server: RunningServer, fleet: Fleet
):
    lines = run_program(server.url, fleet.address.token, forks=2)
    error = f"CloudmanagerError: {forked_error()}"
    child = [error, error, error, RESULT_IN_PARENT, "None", "2", "3"]
    assert lines == [*child, *child, "42 4"]


def callers(fleet: Fleet) -> int:
    return int(fleet.status()["callers"])


def wait_for_callers(fleet: Fleet, count: int) -> None:
    deadline = time.monotonic() + WAIT
    while callers(fleet) > count:
        assert time.monotonic() < deadline, f"{callers(fleet)} callers are left, not {count}"
        time.sleep(0.02)


def test_deleted_fleet_gives_back_its_link(server: RunningServer, fleet: Fleet, boards):
    before, threads = callers(fleet), threading.active_count()
    for _ in range(5):
        Fleet(server.url, fleet.address.token)["demo-1"].run("1")
    gc.collect()
    wait_for_callers(fleet, before)
    deadline = time.monotonic() + WAIT
    while threading.active_count() > threads:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.02)


async def test_deleted_async_fleet_gives_back_its_link(server: RunningServer, fleet: Fleet):
    before = callers(fleet)
    await AsyncFleet(server.url, fleet.address.token).status()
    gc.collect()
    wait_for_callers(fleet, before)


def test_deleted_fleet_ends_no_cell_that_somebody_waits_for(
    server: RunningServer, fleet: Fleet, boards
):
    before = callers(fleet)
    other = Fleet(server.url, fleet.address.token)
    group = other["demo-1"].submit("import time\ntime.sleep(0.3)\n6 * 7")
    watch = iter(Fleet(server.url, fleet.address.token).watch("demo-1"))
    assert next(watch).whole
    del other
    gc.collect()
    assert group.results(WAIT)["demo-1"].value == 42
    assert any(update.boards for update in (next(watch), next(watch)))
    del watch
    gc.collect()
    wait_for_callers(fleet, before)


def subscriptions(server: RunningServer) -> float:
    with urllib.request.urlopen(server.url + "/metrics", timeout=WAIT) as response:
        (line,) = re.findall(rb"^cm_watches (.*)$", response.read(), re.MULTILINE)
    return float(line)


def test_deleted_watch_ends_its_subscription(server: RunningServer, fleet: Fleet, boards):
    before = subscriptions(server)
    for _ in range(3):
        assert next(iter(fleet.watch("demo-1"))).whole
    gc.collect()
    deadline = time.monotonic() + WAIT
    while subscriptions(server) > before:
        assert time.monotonic() < deadline
        fleet["demo-1"].run("1")  # causes an update
        time.sleep(0.02)


def test_fork_and_deleted_fleets_over_tls(tmp_path):
    with (
        serving(tmp_path, public=True) as (server, token),
        Fleet(server.url, token) as fleet,
    ):
        assert certificates.load(tmp_path).pin in token
        before = callers(fleet)
        Fleet(server.url, token).status()
        gc.collect()
        wait_for_callers(fleet, before)
