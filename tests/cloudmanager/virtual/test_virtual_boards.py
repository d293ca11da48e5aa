"""Virtual boards: identities, processes, detaching. Their links are tested in tests/board."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloudmanager.board_client import BoardIdentity, compile_client
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.virtual import virtual_boards
from cloudmanager.virtual.virtual_boards import VirtualBoards, detached_boards, stop_detached

WAIT = 30.0  # seconds that anything here may take on a busy machine


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket that accepts boards and sends nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        listening.settimeout(WAIT)
        yield listening


def some(count: int) -> list[BoardIdentity]:
    """Return new identities lab-1, lab-2 and so on."""
    return [BoardIdentity(f"lab-{n}", f"id-{n}", os.urandom(32)) for n in range(1, count + 1)]


def ended(pid: int) -> bool:
    """Return whether a process has ended, or is a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_ended(pids: list[int]) -> None:
    """Wait until all of the processes have ended."""
    deadline = time.monotonic() + WAIT
    while not all(ended(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.01)


def test_identity_does_not_show_its_key() -> None:
    key = bytes(range(32))
    shown = repr(BoardIdentity("lab-1", "id-1", key))
    assert "lab-1" in shown
    assert repr(key) not in shown
    assert key.hex() not in shown


@pytest.mark.parametrize(
    ("text", "size"), [("64k", 65536), ("1M", 1 << 20), ("128K", 131072), ("4096", 4096)]
)
def test_sizes_with_units_are_parsed(text: str, size: int) -> None:
    assert virtual_boards._parse_size(text) == size


def test_boards_connect_and_end(listener: socket.socket, tmp_path: Path) -> None:
    with VirtualBoards(some(2), listener.getsockname(), tmp_path) as boards:
        for _ in range(2):
            link, _ = listener.accept()
            with link:
                assert link.recv(4096).startswith(b"GET /board HTTP/1.1\r\n")
        pids = boards.pids
        assert sorted(pids) == ["lab-1", "lab-2"]
        assert not any(ended(pid) for pid in pids.values())
    wait_ended(list(pids.values()))
    assert boards.pids == {}


def test_board_does_not_listen_on_a_port(listener: socket.socket, tmp_path: Path) -> None:
    with VirtualBoards(some(1), listener.getsockname(), tmp_path) as boards:
        link, _ = listener.accept()
        with link:
            kinds = psutil.Process(boards.pids["lab-1"]).net_connections()
        assert [kind.status for kind in kinds] == [psutil.CONN_ESTABLISHED]


def test_flash_and_log_are_readable_by_their_owner_only(
    listener: socket.socket, tmp_path: Path
) -> None:
    with VirtualBoards(some(1), listener.getsockname(), tmp_path, flash="256k"):
        link, _ = listener.accept()
        link.close()
        folder = tmp_path / "lab-1"
        assert folder.stat().st_mode & 0o77 == 0
        assert (folder / "flash.img").stat().st_size == 256 * 1024
        assert (folder / "flash.img").stat().st_mode & 0o77 == 0
        assert (folder / "board.log").exists()


def test_killed_board_stays_off_until_it_is_restarted(
    listener: socket.socket, tmp_path: Path
) -> None:
    with VirtualBoards(some(2), listener.getsockname(), tmp_path) as boards:
        before = boards.pids
        boards.kill("lab-1")
        assert boards.pids == {"lab-2": before["lab-2"]}
        boards.restart("lab-1")
        assert sorted(boards.pids) == ["lab-1", "lab-2"]
        assert boards.pids["lab-1"] != before["lab-1"]


def test_interrupted_command_does_not_mix_up_answers(
    listener: socket.socket, tmp_path: Path
) -> None:
    with VirtualBoards(some(2), listener.getsockname(), tmp_path) as boards:
        before = boards.pids
        assert boards._process is not None
        boards._process.send_signal(signal.SIGSTOP)  # it does not answer now
        interrupted = threading.Event()

        def press() -> None:
            """Press Ctrl-C again if it came just before the wait began, which does not notice."""
            seconds = 0.3
            while not interrupted.wait(seconds):
                os.kill(os.getpid(), signal.SIGINT)
                seconds = 5.0

        thread = threading.Thread(target=press)
        thread.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                _ = boards.pids
        finally:
            interrupted.set()
            boards._process.send_signal(signal.SIGCONT)
        thread.join()
        answer = boards._send_command(do="kill", name="lab-1", signal=int(signal.SIGKILL))
        assert answer["pids"] == {"lab-2": before["lab-2"]}


def test_board_whose_process_is_killed_starts_again_and_its_log_says_why(
    listener: socket.socket, tmp_path: Path
) -> None:
    with VirtualBoards(some(1), listener.getsockname(), tmp_path) as boards:
        link, _ = listener.accept()
        first = boards.pids["lab-1"]
        with link:
            os.kill(first, signal.SIGKILL)
            again, _ = listener.accept()
            again.close()
        assert boards.crashes == {"lab-1": 1}
        assert boards.pids["lab-1"] != first
        log = (tmp_path / "lab-1" / "board.log").read_text()
        assert "The board's process was killed by SIGKILL. It starts again in 1 s." in log


@pytest.mark.parametrize(("what", "size"), [("heap", "8k"), ("flash", "16k")])
def test_size_with_which_a_board_does_not_start_is_refused(
    tmp_path: Path, what: str, size: str
) -> None:
    expected = f"A virtual board does not start with a {what} of {size}"
    sizes: dict[str, Any] = {what: size}
    with pytest.raises(CloudmanagerError, match=expected) as caught:
        VirtualBoards(some(1), ("127.0.0.1", 1), tmp_path, **sizes)
    least = {"heap": virtual_boards.MIN_HEAP, "flash": virtual_boards.MIN_FLASH}[what]
    assert f"It needs at least {least // 1024}k" in caught.value.hint
    boards = VirtualBoards([], ("127.0.0.1", 1), tmp_path)
    with pytest.raises(CloudmanagerError, match=expected):
        boards.add_board(some(1)[0], **sizes)


def test_boards_end_with_the_process_that_started_them(
    listener: socket.socket, tmp_path: Path
) -> None:
    code = (
        "import sys, os, time\nfrom pathlib import Path\n"
        "from cloudmanager.board_client import BoardIdentity\n"
        "from cloudmanager.virtual.virtual_boards import VirtualBoards\n"
        "one = BoardIdentity('lab-1', 'id-1', bytes(32))\n"
        f"boards = VirtualBoards([one], {listener.getsockname()!r}, Path({str(tmp_path)!r}))\n"
        "boards.start()\nprint(boards.pids['lab-1'], flush=True)\ntime.sleep(60)\n"
    )
    root = str(Path(virtual_boards.__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not ended(pid)
        parent.kill()
    wait_ended([pid])


def test_detached_boards_run_until_they_are_stopped(
    listener: socket.socket, tmp_path: Path
) -> None:
    boards = VirtualBoards(some(1), listener.getsockname(), tmp_path, detach=True)
    boards.start()
    pid = boards.pids["lab-1"]
    boards.release()
    time.sleep(0.2)  # as long as it would take them to end
    assert not ended(pid)
    assert stop_detached(tmp_path) == ["lab-1"]
    wait_ended([pid])
    assert stop_detached(tmp_path) == []


def test_all_detached_boards_of_a_folder_are_stopped(
    listener: socket.socket, tmp_path: Path
) -> None:
    pids: list[int] = []
    for identity in some(3):
        boards = VirtualBoards([identity], listener.getsockname(), tmp_path, detach=True)
        boards.start()
        pids += boards.pids.values()
        boards.release()
    assert not any(ended(pid) for pid in pids)
    assert sorted(stop_detached(tmp_path)) == ["lab-1", "lab-2", "lab-3"]
    wait_ended(pids)
    assert list(tmp_path.glob("*.pid")) == []


def test_stop_does_not_end_detached_boards(listener: socket.socket, tmp_path: Path) -> None:
    stays, goes = (
        VirtualBoards([identity], listener.getsockname(), tmp_path, detach=True)
        for identity in some(2)
    )
    stays.start()
    goes.start()
    pid = stays.pids["lab-1"]
    stays.release()
    goes.stop()
    assert not ended(pid)
    assert stop_detached(tmp_path) == ["lab-1"]
    wait_ended([pid])


def test_detached_boards_are_stopped_by_name(listener: socket.socket, tmp_path: Path) -> None:
    first, second = (BoardIdentity(f"{name}-1", name, os.urandom(32)) for name in ("here", "there"))
    pids: dict[str, int] = {}
    for identity in (first, second):
        boards = VirtualBoards([identity], listener.getsockname(), tmp_path, detach=True)
        boards.start()
        pids |= boards.pids
        boards.release()
    assert stop_detached(tmp_path, "her") == []
    assert stop_detached(tmp_path, "here") == ["here-1"]
    wait_ended([pids["here-1"]])
    assert not ended(pids["there-1"])
    assert detached_boards(tmp_path) == ["there-1"]
    assert stop_detached(tmp_path) == ["there-1"]
    wait_ended([pids["there-1"]])


def test_stop_detached_does_not_end_other_processes(tmp_path: Path) -> None:
    (tmp_path / "supervisor.pid").write_text(str(os.getpid()))
    assert stop_detached(tmp_path) == []


def test_missing_micropython_is_an_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_boards, "find_spec", lambda name: None)
    with pytest.raises(CloudmanagerError, match=r"pip install 'cloudmanager\[virtual\]'"):
        VirtualBoards(some(1), ("127.0.0.1", 1), tmp_path).start()


def test_stop_may_be_called_twice_and_before_start(tmp_path: Path) -> None:
    boards = VirtualBoards(some(1), ("127.0.0.1", 1), tmp_path)
    boards.stop()
    boards.stop()
    assert boards.pids == {}


def test_client_is_compiled_once(tmp_path: Path) -> None:
    made = compile_client(tmp_path)
    assert (made / "cm" / "link.mpy").read_bytes()[:2] == b"M\x06"
    stamp = (made / "cm" / "link.mpy").stat().st_mtime_ns
    assert compile_client(tmp_path) == made
    assert (made / "cm" / "link.mpy").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [made.name]
