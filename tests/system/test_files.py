"""File transfers with a hung board, many boards, and a small heap."""

from __future__ import annotations

import os
import threading
import time

from cloudmanager.board_client import BoardIdentity
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.virtual.virtual_boards import VirtualBoards

from .conftest import WAIT, Lab, until


def test_hung_board_does_not_delay_an_upload_to_others(lab: Lab):
    """A board that stops reading receives one window of bytes; the other boards are not delayed."""
    data = os.urandom(400_000)
    boards = lab.fleet["lab-[1-4]"]
    lab.boards.kill("lab-1", 19)  # SIGSTOP: its socket stays open
    started = time.monotonic()
    ended: dict[str, float] = {}
    results: dict[str, object] = {}

    def on_progress(board: str, moved: int, total: int) -> None:
        if moved > total - 20_000:
            ended.setdefault(board, time.monotonic() - started)

    upload = threading.Thread(
        target=lambda: results.update(boards.put(data, ":f.bin", progress=on_progress))
    )
    upload.start()
    until(lambda: len(ended) == 3, "three boards have the file")
    assert lab.fleet["lab-5"].run("6 * 7", timeout=5).value == 42
    assert "lab-1" not in ended
    lab.boards.kill("lab-1", 18)
    upload.join(WAIT)
    assert not upload.is_alive()
    assert lab.fleet["lab-[1-4]"].stat(":f.bin").ok
    assert lab.fleet["lab-[1-4]"].rm(":f.bin").ok


def test_twenty_boards_receive_and_return_a_folder(lab: Lab, tmp_path):
    (tmp_path / "src").mkdir()
    for n in range(20):
        (tmp_path / f"src/{n}.bin").write_bytes(os.urandom(1_000 + 100 * n))
    boards = lab.fleet["lab-[1-20]"]
    assert boards.sync(tmp_path / "src", ":all").ok
    plan = boards.sync(tmp_path / "src", ":all")["lab-20"].value
    assert (plan.put, plan.same) == ((), 20)
    assert boards.get(":all", tmp_path / "back").ok
    for board in boards.stat(":all"):
        for n in range(20):
            received = tmp_path / "back" / board / "all" / f"{n}.bin"
            assert received.read_bytes() == (tmp_path / f"src/{n}.bin").read_bytes()
    assert boards.rm(":all", recursive=True).ok


def test_file_may_be_larger_than_the_heap(lab: Lab):
    (enrolment,) = lab.fleet.enrol(["small-1"])
    identity = BoardIdentity(enrolment["name"], enrolment["id"], bytes.fromhex(enrolment["key"]))
    address, folder = ("127.0.0.1", lab.server.tcp_port), lab.server.home / "small"
    with VirtualBoards([identity], address, folder, heap="64k", flash="1M"):
        wait_online(lab.fleet, ["small-1"])
        data = os.urandom(500_000)
        assert lab.fleet["small-1"].put(data, ":big.bin").value == len(data)
        assert lab.fleet["small-1"].read(":big.bin").value == data
