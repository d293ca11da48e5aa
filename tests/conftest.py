"""A real server and real virtual boards for every test that wants them; nothing of the user's."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cloudmanager.fleet import Fleet
from cloudmanager.virtual import Identity, VirtualBoards

ROOT = Path(__file__).parent.parent
WAIT = 10.0  # seconds that anything here may take


class Server(NamedTuple):
    """A running server: its process, its address, and the CM_HOME that it keeps its things in."""

    process: subprocess.Popen[bytes]
    url: str
    home: Path

    @property
    def tcp_port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextlib.contextmanager
def running_server(home: Path, *options: str, tcp_port: int = 0) -> Iterator[Server]:
    """A server of one's own, to be stopped or killed at will."""
    command = [sys.executable, "-m", "cm_server", "--port", str(tcp_port), *options]
    environment = {**os.environ, "CM_HOME": str(home)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with process.stdout:
            said = json.loads(process.stdout.readline())
        yield Server(process, said["url"], home)
    finally:
        process.terminate()
        process.wait(WAIT)


@contextlib.contextmanager
def running_boards(server: Server, fleet: Fleet, names: list[str]) -> Iterator[VirtualBoards]:
    """Virtual boards of one's own, all of them connected."""
    identities = [
        Identity(board["name"], board["id"], bytes.fromhex(board["key"]))
        for board in fleet.enrol(names)
    ]
    folder = server.home / "virtual"
    with VirtualBoards(identities, ("127.0.0.1", server.tcp_port), folder) as boards:
        wait_online(fleet, names)
        yield boards


def wait_online(fleet: Fleet, names: list[str]) -> None:
    """Return when all of the boards are connected."""
    deadline = time.monotonic() + WAIT
    while missing := set(names) - {b["name"] for b in fleet.boards() if b["connected_since"]}:
        assert time.monotonic() < deadline, f"not connected: {sorted(missing)}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The CM_HOME of this run: the user's own is never touched."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CM_HOME", str(folder))
        patch.delenv("CM_URL", raising=False)
        patch.delenv("CM_TOKEN", raising=False)
        yield folder


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[Server]:
    """The server that most tests share."""
    with running_server(home) as server:
        yield server


@pytest.fixture(scope="session")
def start_server(home: Path) -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """What starts a server of one's own: `with start_server(folder) as server`."""
    return running_server


@pytest.fixture(scope="session")
def fleet(server: Server) -> Iterator[Fleet]:
    """A caller's link to the shared server; `Fleet()` finds the same one."""
    with Fleet() as fleet:
        yield fleet


@pytest.fixture(scope="session")
def boards(server: Server, fleet: Fleet) -> Iterator[VirtualBoards]:
    """Three virtual boards, demo-1 to demo-3, which most tests share."""
    with running_boards(server, fleet, ["demo-1", "demo-2", "demo-3"]) as boards:
        yield boards
