"""Real boards (MicroPython's unix port) against a small strict server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudmanager.board_client import BoardIdentity, client_files, compile_client
from cloudmanager.virtual.virtual_boards import VirtualBoards

from .bootlab import Lab as BootLab
from .peer import Peer


class Lab(SimpleNamespace):
    """Boards and the server that they connect to; `lab.link()` is the link of a board."""

    def link(self, number=1, **more):
        return self.peer.link(f"id-{number}", **more)

    def log(self, number=1):
        return (self.folder / f"lab-{number}" / "board.log").read_text()


@pytest.fixture(scope="module")
def make_lab(tmp_path_factory):
    ends = []

    def make(count=1, *, start=True, keys=None, heap="128k", **peer):
        identities = [
            BoardIdentity(f"lab-{n}", f"id-{n}", os.urandom(32)) for n in range(1, count + 1)
        ]
        server = Peer(keys or {one.id: one.key for one in identities}, **peer)
        ends.append(server.stop)
        folder = tmp_path_factory.mktemp("boards")
        address = ("127.0.0.1", server.tcp_port)
        boards = VirtualBoards(identities, address, folder, heap=heap)
        ends.append(boards.stop)
        if start:
            boards.start()
        return Lab(peer=server, boards=boards, folder=folder, identities=identities)

    yield make
    for end in reversed(ends):
        end()


@pytest.fixture(scope="module")
def lab(make_lab):
    """One board for all tests of a module: it must run cells after each of them."""
    return make_lab()


@pytest.fixture
def board(lab):
    """The board's link; afterwards the board must still run cells."""
    link = lab.link()
    yield link
    for job in link.jobs.values():  # what a failed test left must not keep the others waiting
        if job.status is None and not link.closed.is_set():
            link.interrupt(job)
    assert lab.link().run("__cm__((6 * 7))").value == b"42"


@pytest.fixture(scope="module")
def console_peer(tmp_path_factory):
    """The server of a board with os.dupterm and machine.Timer (standin_boot.py)."""
    key = os.urandom(32)
    peer = Peer({"id-1": key}, spread=0.2)
    folder = tmp_path_factory.mktemp("client")
    settings = {
        "client": str(compile_client(folder)),
        "config": {"id": "id-1", "key": key.hex(), "host": "127.0.0.1", "tcp_port": peer.tcp_port},
    }
    script = str(Path(__file__).with_name("standin_host.py"))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    assert process.stdin
    process.stdin.write(json.dumps(settings).encode() + b"\n")
    process.stdin.flush()
    try:
        peer.link("id-1")
        yield peer
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        peer.stop()


@pytest.fixture(scope="session")
def client(tmp_path_factory):
    """The files that `mbm flash` copies onto a board: path -> bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CM_HOME", str(tmp_path_factory.mktemp("home")))
        return client_files()


@pytest.fixture
def boot_lab(tmp_path, client):
    """A chip that is still switched off, with the client on its flash."""
    lab = BootLab(tmp_path, client)
    try:
        yield lab
    finally:
        lab.stop()
    assert not lab.chip or b"Fatal exception" not in lab.chip.said, "a freed timer fired"
