"""Bridged boards that tests share: a unix-port REPL on a pty, and a micro:bit under QEMU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from cloudmanager.cable.bridge import Bridge
from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.board_fixtures import wait_online
from tests.conftest import RunningServer

from .chip import Chip
from .microbit import Microbit


@contextlib.contextmanager
def bridged(fleet: Fleet, ports: list[str], *names: str) -> Iterator[list[tuple[str, str]]]:
    """Run a bridge and wait for its boards; afterwards revoke them."""
    reports: list[tuple[str, str]] = []
    try:
        with Bridge(fleet, ports, names, lambda *what: reports.append(what)):
            wait_online(fleet, names[: len(ports)])
            yield reports
    finally:
        deadline = time.monotonic() + 60
        while any(b["connected_since"] for b in fleet.boards() if b["name"] in names):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        known = {board["name"] for board in fleet.boards()}
        for name in set(names) & known:
            fleet.revoke(name)


@pytest.fixture(scope="session")
def chips(tmp_path_factory):
    with contextlib.ExitStack() as stack:

        def make() -> Chip:
            chip = stack.enter_context(Chip(tmp_path_factory.mktemp("chip")))
            chip.flash[0] = 0xE9
            chip.press_reset()
            return chip

        yield make


@pytest.fixture(scope="session")
def bridged_unix(chips, fleet: Fleet):
    chip = chips()
    with bridged(fleet, [chip.port], "unix-1"):
        yield fleet["unix-1"]


@pytest.fixture(scope="session")
def bridged_microbit(server: RunningServer, fleet: Fleet):
    board = Microbit()
    try:
        with bridged(fleet, [board.port], "micro-1"):
            yield fleet["micro-1"]
    finally:
        board.stop()


@pytest.fixture(params=["unix", "microbit"])
def bridged_board(request):
    """Yield each bridged board; after the test it must still run cells."""
    boards = request.getfixturevalue(f"bridged_{request.param}")
    yield boards
    assert boards.run("6 * 7", timeout=60).value == 42
