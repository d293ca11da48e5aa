"""Real boards (MicroPython's unix port) against a small strict server."""

import os
from types import SimpleNamespace

import pytest

from cloudmanager.board_client import BoardIdentity, client_files
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
    assert lab.link().run("__cm__((6 * 7))").value == b"42"


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
    yield lab
    if lab.chip:
        lab.chip.stop()
    lab.peer.stop()
    assert not lab.chip or b"Fatal exception" not in lab.chip.said, "a freed timer fired"
