"""The upgrade of the client of one fake board, which starts as mpy_client/cm_start.py does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.installs.content_store import Content, ContentStore
from cm_server.limits import Limits
from cm_server.rollouts import client_switch
from cm_server.rollouts.client_switch import BUSY, FIXED, READY, RETURNED, SAME, WRITTEN
from tests.cm_server.installs.test_board_install import FakeBoard

OLD = {"link.mpy": b"old link", "gone.mpy": b"old only"}
NEW = {
    "link.mpy": b"new link",
    "trial.mpy": b"new only",
    "cm_start.mpy": b"new start",
    "main.py": b"new main",
}
KEPT = {
    "/lib/cm/link.mpy": b"new link",
    "/lib/cm/trial.mpy": b"new only",
    "/lib/cm_start.mpy": b"new start",
    "/main.py": b"new main",
}


class PowerCutError(Exception):
    """The board has lost its power."""


class ClientBoard(FakeBoard):
    """A fake board with a client in its flash; its power may be cut before a change."""

    def __init__(self, *, broken: bool = False, free: int = 200) -> None:
        super().__init__(free=free)
        self.folders = {"/lib"}
        self.files = {f"/lib/cm/{name}": data for name, data in OLD.items()}
        self.files |= {"/lib/cm_start.mpy": b"old start", "/main.py": b"old main"}
        self.broken = broken
        self.changes_left: int | None = None
        self.sent = 0

    def _change(self) -> None:
        if self.changes_left is not None:
            self.changes_left -= 1
            if self.changes_left < 0:
                self.changes_left = None
                raise PowerCutError

    @property
    def was_cut(self) -> bool:
        return self.changes_left is None

    def has(self, path: str) -> bool:
        return self.hash(path, -1) is not None

    def put(self, path: str, content: Content, staged: int = 0) -> int:
        self._change()
        self.files[path] = content.read(0, content.size)
        self.sent += content.size
        return content.size

    def rename(self, old: str, new: str) -> None:
        self._change()
        if old in self.files:
            self.files[new] = self.files.pop(old)
            return
        for path in [path for path in self.files if path.startswith(old + "/")]:
            self.files[new + path[len(old) :]] = self.files.pop(path)
        self.folders.discard(old)

    def rm(self, path: str, deep: bool) -> None:
        self._change()
        assert self.has(path)
        assert deep or path in self.files
        self.folders.discard(path)
        for name in [name for name in self.files if name == path or name.startswith(path + "/")]:
            del self.files[name]

    def ls(self, path: str, deep: bool) -> list[list[Any]]:
        assert not deep
        return [[name, 0x8000, 0] for name in self.files if name.startswith(path + "/")]

    def start(self) -> None:
        """Start, as ``_choose`` of cm_start.py does, which is tested with cuts of its own."""
        cm, new, old = "/lib/cm", "/lib/cm.new", "/lib/cm.old"
        if self.has(new + "/ok") and self.has(cm):
            if self.has(old):
                self.rm(old, True)
            self.rename(cm, old)
        if not self.has(cm):
            self.rename(new if self.has(new + "/ok") else old, cm)
        if self.has(cm + "/trial"):
            self._return()
        if self.has(cm + "/ok"):
            self.rename(cm + "/ok", cm + "/trial")
            if self.broken:
                self._return()

    def _return(self) -> None:
        if self.has("/lib/cm.bad"):
            self.rm("/lib/cm.bad", True)
        self.rename("/lib/cm", "/lib/cm.bad")
        self.rename("/lib/cm.old", "/lib/cm")

    @property
    def client(self) -> dict[str, bytes]:
        return {path: data for path, data in self.files.items() if path.startswith("/lib/cm/")}


class Lab:
    """Brings fake boards to the new client."""

    def __init__(self, folder: Path) -> None:
        self.contents = ContentStore(folder, Limits(), lambda _seconds, _act: None)
        self.files = {name: self.contents.add_bytes(data) for name, data in NEW.items()}

    def bring(self, board: ClientBoard, *, may_start: bool) -> Any:
        add = self.contents.add_bytes
        return board.run(client_switch.bring_client(self.files, add, may_start=may_start))

    def bring_all(self, board: ClientBoard) -> str:
        """Do what a rollout does, with another start after each cut; return how it ends."""
        may_start = False
        for _ in range(9):
            try:
                found = self.bring(board, may_start=may_start)
                if found == READY:
                    board.start()
            except PowerCutError:
                board.start()
                continue
            if found in (SAME, RETURNED):
                return str(found)
            may_start = True
        raise AssertionError(board.files)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_client_is_written_tried_and_kept(lab: Lab):
    board = ClientBoard()
    before = dict(board.files)
    assert lab.bring(board, may_start=False) == WRITTEN
    assert {path: data for path, data in board.files.items() if path in before} == before
    board.start()
    assert board.client == {f"/lib/cm/{name}": data for name, data in OLD.items()}, "no ok yet"
    assert lab.bring(board, may_start=True) == READY
    board.start()
    assert lab.bring(board, may_start=True) == SAME
    assert board.files == KEPT
    assert (lab.bring(board, may_start=False), board.files) == (SAME, KEPT)
    assert board.sent == sum(map(len, NEW.values()))


def test_client_that_does_not_start_has_returned(lab: Lab):
    board = ClientBoard(broken=True)
    before = board.client
    assert lab.bring_all(board) == RETURNED
    assert board.client == before
    # The next rollout tries it again: what has returned earlier says nothing about that one.
    board.broken = False
    assert lab.bring(board, may_start=False) == WRITTEN
    assert lab.bring_all(board) == SAME


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("cut", range(18))
def test_power_cut_before_each_change_leaves_one_client_whole(lab: Lab, cut: int, broken: bool):
    board = ClientBoard(broken=broken)
    old = board.client
    board.changes_left = cut
    ended = lab.bring_all(board)
    assert board.was_cut or cut >= 10, "there are fewer changes"
    if broken:
        assert (ended, board.client) == (RETURNED, old)
    elif ended == SAME:
        assert board.files == KEPT
    else:  # it lost its power on trial, which looks like a client that does not start
        assert board.client == old


def test_what_is_left_of_another_upgrade_is_removed(lab: Lab):
    board = ClientBoard()
    board.files |= {"/lib/cm.new/other.mpy": b"x", "/lib/cm.new/ok": b"", "/lib/cm.bad/x": b"y"}
    board.files["/lib/cm.new/link.mpy"] = b"new link"
    assert lab.bring(board, may_start=False) == WRITTEN
    assert not board.has("/lib/cm.bad")
    assert not board.has("/lib/cm.new/ok")
    assert not board.has("/lib/cm.new/other.mpy")
    assert board.sent == sum(map(len, NEW.values())) - len(b"new link")


def test_board_without_a_client_in_its_flash_stays_as_it_is(lab: Lab):
    board = ClientBoard()
    board.files = {"/main.py": b"mine"}
    assert lab.bring(board, may_start=True) == FIXED
    assert board.files == {"/main.py": b"mine"}


@pytest.mark.parametrize("path", ["/.cm/state", "/lib/cm/trial"])
def test_something_else_on_trial_is_waited_for(lab: Lab, path: str):
    board = ClientBoard()
    board.files[path] = b"trying 0123456789abcdef 0 60"
    before = dict(board.files)
    assert lab.bring(board, may_start=False) == BUSY
    assert board.files == before


def test_board_without_room_is_left_as_it_is(lab: Lab):
    board = ClientBoard(free=3)
    before = dict(board.files)
    with pytest.raises(PackageError, match="no room for a second client"):
        lab.bring(board, may_start=False)
    assert board.files == before
