"""Virtual boards that join a server."""

import os
import socket
import stat
import time

import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import (
    CloudmanagerError,
    ServerUnreachable,
    TargetError,
)
from cloudmanager.virtual import simulate, virtual_boards
from tests.conftest import RunningServer


@pytest.fixture(autouse=True)
def _home(server: RunningServer):
    """Use the shared server's folder as CM_HOME."""


def gone(pid):
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    return True


def test_boards_are_named_by_number():
    assert simulate.numbered_names("sim", 3) == ["sim-1", "sim-2", "sim-3"]


def test_boards_are_connected_until_they_are_stopped(fleet: Fleet):
    boards = simulate.simulate(fleet, ["sim-1", "sim-2"])
    try:
        pids = boards.pids
        assert sorted(pids) == ["sim-1", "sim-2"]
        assert fleet["sim-[1-2]"].run("6 * 7").to_dict() == {"sim-1": 42, "sim-2": 42}
    finally:
        boards.stop()
    assert all(gone(pid) for pid in pids.values())


def test_uptime_is_the_boards_and_not_the_computers(fleet: Fleet):
    begun = time.monotonic()
    boards = simulate.simulate(fleet, ["young-1"])
    try:
        fleet["young-1"].reset().raise_for_error()
        (info,) = fleet["young-1"].info()
    finally:
        boards.stop()
    passed = time.monotonic() - begun
    assert info["uptime"] <= passed
    assert time.time() - info["booted"] <= passed + 1.5  # uptimes are whole seconds


def test_boards_keep_their_files(fleet: Fleet):
    write = "with open('/note.txt', 'w') as file:\n    file.write('kept')"
    for cell in (write, "open('/note.txt').read()"):
        boards = simulate.simulate(fleet, ["files-1"])
        try:
            result = fleet["files-1"].run(cell)["files-1"]
        finally:
            boards.stop()
    assert result.value == "kept"


def test_heap_is_as_large_as_asked(fleet: Fleet):
    boards = simulate.simulate(fleet, ["small-1"], heap="96k")
    try:
        size = fleet["small-1"].run("import gc; gc.mem_free() + gc.mem_alloc()").value
        assert 80 * 1024 < size <= 96 * 1024
    finally:
        boards.stop()


def test_least_heap_and_flash_run_cells_and_receive_files(fleet: Fleet):
    heap, flash = (f"{n // 1024}k" for n in (virtual_boards.MIN_HEAP, virtual_boards.MIN_FLASH))
    data = bytes(range(256)) * 16
    least = fleet["least-1"]
    for _ in range(2):  # the second time with its files
        boards = simulate.simulate(fleet, ["least-1"], heap=heap, flash=flash)
        try:
            for _ in range(3):
                assert least.run("print('x' * 1000)\n[n for n in range(100)]").ok
                assert least.put(data, ":/data.bin").ok
                assert least.read(":/data.bin")["least-1"].value == data
            assert least.run("import asyncio\nawait asyncio.sleep(0.01)\n6 * 7").value == 42
            assert least.reset().ok
            assert least.run("6 * 7", wait=20).value == 42
        finally:
            boards.stop()
        assert boards.crashes == {}


@pytest.mark.parametrize("sizes", [{"heap": "8k"}, {"flash": "16k"}])
def test_board_that_cannot_start_is_refused_and_not_enrolled(fleet: Fleet, sizes):
    with pytest.raises(CloudmanagerError, match="A virtual board does not start with a"):
        simulate.simulate(fleet, ["tiny-1"], **sizes)
    assert "tiny-1" not in [board["name"] for board in fleet.boards()]


def test_board_that_ends_at_its_start_is_reported_at_once(fleet: Fleet, monkeypatch):
    """With too little heap for its boot, as when the client needs more than it did."""
    monkeypatch.setattr(virtual_boards, "MIN_HEAP", 0)
    fleet.enrol(["dead-2"])
    (simulate.boards_folder() / "dead-2").mkdir(parents=True)  # it was virtual before
    since = time.monotonic()
    with pytest.raises(CloudmanagerError, match=r"The process of dead-[12] ended") as caught:
        simulate.simulate(fleet, ["dead-1", "dead-2"], heap="8k")
    assert time.monotonic() - since < simulate.JOIN_SECONDS / 2
    assert caught.value.hint.endswith("board.log.")
    log = (simulate.boards_folder() / "dead-1" / "board.log").read_text()
    assert "MemoryError" in log
    assert "The board's process ended with status 1." in log
    names = [board["name"] for board in fleet.boards()]
    assert "dead-1" not in names, "it was enrolled for this"
    assert "dead-2" in names, "it was enrolled before"
    fleet.revoke("dead-2")


def test_connected_board_is_not_started_twice(fleet: Fleet, boards: virtual_boards.VirtualBoards):
    with pytest.raises(CloudmanagerError, match="demo-1 is running already"):
        simulate.simulate(fleet, ["demo-1"])
    assert fleet["demo-1"].run("1").ok


def test_invalid_name_is_refused(fleet: Fleet):
    with pytest.raises(TargetError):
        simulate.simulate(fleet, ["no name"])


def test_name_of_a_board_that_is_not_virtual_is_refused(fleet: Fleet):
    (mine,) = fleet.enrol(["real-1"])
    for start in (
        lambda: simulate.simulate(fleet, ["real-1"]),
        lambda: simulate.start_demo(1, "real"),
    ):
        with pytest.raises(CloudmanagerError, match="real-1 is a board of your own"):
            start()
    assert fleet.boards("real-1")[0]["id"] == mine["id"]
    fleet.revoke("real-1")


def test_board_that_does_not_join_is_ended_and_reported(fleet: Fleet, monkeypatch):
    monkeypatch.setattr(simulate, "JOIN_SECONDS", -1.0)
    started: list[int] = []

    class Recording(virtual_boards.VirtualBoards):
        def start(self):
            super().start()
            started.extend(self.pids.values())

    monkeypatch.setattr(simulate, "VirtualBoards", Recording)
    with pytest.raises(CloudmanagerError, match=r"late-\[1-2\] did not join the server") as caught:
        simulate.simulate(fleet, ["late-1", "late-2"])
    assert (
        caught.value.hint == f"The board's own log is {simulate.boards_folder()}/late-1/board.log."
    )
    assert [gone(pid) for pid in started] == [True, True]


def test_no_server_starts_no_boards(monkeypatch):
    monkeypatch.setenv("CM_URL", "http://127.0.0.1:1")
    with Fleet() as fleet, pytest.raises(ServerUnreachable):
        simulate.simulate(fleet, ["none-1"])
    assert not (simulate.boards_folder() / "none-1").exists()


def test_server_may_be_named_without_http(server: RunningServer):
    with Fleet(server.url.removeprefix("http://")) as fleet:
        boards = simulate.simulate(fleet, ["plain-1"])
        try:
            assert fleet["plain-1"].run("1").value == 1
        finally:
            boards.stop()


def test_detached_boards_run_until_they_are_stopped(fleet: Fleet):
    boards = simulate.simulate(fleet, ["far-1"], detach=True)
    pid = boards.pids["far-1"]
    assert virtual_boards.stop_detached(simulate.boards_folder())
    assert gone(pid)
    boards.stop()
    assert not virtual_boards.stop_detached(simulate.boards_folder())


def test_folder_is_in_the_users_home(server: RunningServer):
    assert simulate.boards_folder() == server.home / "virtual"
    assert stat.S_IMODE(server.home.stat().st_mode) & 0o077 == 0


def test_demo_boards_are_connected_until_they_are_stopped(server: RunningServer, fleet: Fleet):
    playing = simulate.start_demo(2, "play")
    try:
        assert repr(playing) == f"<play-[1-2] at {server.url}>"
        assert fleet["play-[1-2]"].run("1").ok
        playing.power_off("play-1")
        assert playing.boards is not None
        assert list(playing.boards.pids) == ["play-2"]
        while fleet.boards("play-1")[0]["connected_since"]:
            time.sleep(0.01)  # a cell that is sent before the server notices it is lost
        playing.power_on("play-1")
        assert fleet["play-1"].run("1", wait=20).ok
    finally:
        playing.stop()
    playing.stop()
    assert not [board for board in fleet.boards() if board["name"].startswith("play")]


def test_demo_that_is_started_again_has_new_boards(fleet: Fleet):
    for _ in range(2):
        playing = simulate.start_demo(1, "again")
        assert "note.txt" not in fleet["again-1"].run("import os; os.listdir('/')").value
        assert fleet.boards("again-1")[0]["labels"] == {}
        fleet["again-1"].run("open('/note.txt', 'w').close()").raise_for_error()
        fleet["again-1"].label({"room": "north"})
    playing.stop()


def test_demo_whose_board_was_renamed_starts_again(fleet: Fleet):
    first = simulate.start_demo(1, "other")
    fleet.rename("other-1", "kept-1")
    first.stop()
    second = simulate.start_demo(1, "other")
    assert fleet["other-1"].run("6 * 7").value == 42
    second.stop()
    fleet.revoke("kept-1")


def test_demo_does_not_keep_what_a_killed_notebook_left(fleet: Fleet):
    first = simulate.start_demo(1, "killed")
    assert first.boards is not None
    fleet["killed-1"].run("open('/note.txt', 'w').close()").raise_for_error()
    first.boards.stop()  # as at the exit of an interpreter
    second = simulate.start_demo(1, "killed")
    assert "note.txt" not in fleet["killed-1"].run("import os; os.listdir('/')").value
    second.stop()


def test_demo_keeps_the_files_of_simulated_boards(fleet: Fleet):
    boards = simulate.simulate(fleet, ["mine-1"])
    fleet["mine-1"].run("open('/note.txt', 'w').close()").raise_for_error()
    boards.stop()
    simulate.start_demo(1, "mine").stop()
    boards = simulate.simulate(fleet, ["mine-1"])
    assert "note.txt" in fleet["mine-1"].run("import os; os.listdir('/')").value
    boards.stop()


def test_running_boards_are_used_by_the_demo_and_not_stopped(
    fleet: Fleet, boards: virtual_boards.VirtualBoards
):
    playing = simulate.start_demo()
    assert playing.names == ["demo-1", "demo-2", "demo-3"]
    with pytest.raises(CloudmanagerError, match="demo-1 was not started by this demo"):
        playing.power_off("demo-1")
    playing.stop()
    assert fleet["demo-[1-3]"].run("1").ok


def test_demo_uses_the_server_of_cm_url(server: RunningServer, monkeypatch):
    monkeypatch.setenv("CM_URL", "http://127.0.0.1:1")
    with pytest.raises(ServerUnreachable):
        simulate.start_demo(1, "none")


def test_free_tcp_port_skips_ports_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tcp_port = taken.getsockname()[1]
        assert simulate.free_tcp_port(tcp_port) > tcp_port
