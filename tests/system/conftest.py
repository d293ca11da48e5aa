"""The fixture ``lab`` for system tests: a server process and twenty virtual boards."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.conftest import RunningServer, running_boards, running_server

BOARDS = 20
WAIT = 60.0  # timeout of each step, in seconds, even on a busy machine


class Lab(NamedTuple):
    """A server, a caller's link to it, and its boards lab-1 to lab-20."""

    server: RunningServer
    fleet: Fleet
    boards: VirtualBoards

    def row(self, number: int) -> tuple[str | None, str | None]:
        """Return a job's status and error from the store."""
        return stored(self.server.home)[number]


def fleet_of(server: RunningServer) -> Fleet:
    return Fleet(server.url, (server.home / "token").read_text().strip())


def stored(home: Path) -> dict[int, tuple[str | None, str | None]]:
    """Return each job's status and error, as another process reads them from the file."""
    with closing(sqlite3.connect(home / "server.db")) as file:
        return {
            number: (status, error)
            for number, status, error in file.execute("SELECT id, status, error FROM jobs")
        }


def until(condition: Callable[[], object], what: str) -> None:
    """Poll a condition in another process until it is true; ``what`` describes it on failure."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab that all system tests share; its server waits 2 s for a lost board."""
    home = tmp_path_factory.mktemp("lab")
    names = [f"lab-{number}" for number in range(1, BOARDS + 1)]
    with (
        running_server(home, "--lost-after", "2") as server,
        fleet_of(server) as fleet,
        running_boards(server, fleet, names) as boards,
    ):
        yield Lab(server, fleet, boards)
