"""The supervisor of virtual boards: its commands, restarts, and end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.virtual import supervisor
from cloudmanager.virtual.supervisor import RESTART, Supervisor


@pytest.fixture
def codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Replace boards by processes that end immediately with this status."""
    ends: list[int] = []

    def end(spec: dict[str, Any], *_: object) -> int:
        os.write(1, b"the last words")
        return int(spec["code"])

    monkeypatch.setattr(supervisor, "run_board", end)
    monkeypatch.chdir(tmp_path)
    return ends


def wait(boards: Supervisor, name: str) -> None:
    """Wait until a board has ended, without reaping its process."""
    os.waitid(os.P_PID, boards.pids[name], os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (RESTART, True)])
def test_only_a_board_that_asks_for_it_is_restarted(
    codes: list[int], code: int, again: bool
) -> None:
    boards = Supervisor()
    spec = {"name": "lab-1", "code": code, "folder": "."}
    boards.handle_command({"do": "start", "spec": spec})
    wait(boards, "lab-1")
    boards.specs["lab-1"]["code"] = 0  # once is enough
    boards.reap_boards()
    assert ("lab-1" in boards.pids) is again
    assert Path("board.log").read_text().startswith("the last words")
    boards.handle_command({"do": "kill", "name": "lab-1", "signal": int(signal.SIGKILL)})
    assert boards.pids == {}


def test_unknown_board_is_ignored(codes: list[int]) -> None:
    boards = Supervisor()
    boards.handle_command({"do": "kill", "name": "nobody", "signal": int(signal.SIGKILL)})
    assert boards.pids == {}


def test_stay_writes_a_pid_file(codes: list[int], tmp_path: Any) -> None:
    boards = Supervisor()
    boards.handle_command({"do": "stay", "pid_file": str(tmp_path / "pid")})
    assert boards.is_detached is True
    assert (tmp_path / "pid").read_text() == str(os.getpid())


def test_stop_ends_the_supervisor(codes: list[int]) -> None:
    boards = Supervisor()
    boards.handle_command({"do": "stop"})
    assert boards.is_ending is True


def test_answer_is_written_completely_despite_signals() -> None:
    """A signal, such as SIGCHLD at a board's end, makes a blocked write return early."""
    out, into = os.pipe()
    answer, read = b"0123456789" * 30_000, bytearray()

    def reader() -> None:
        while len(read) < len(answer) and (data := os.read(out, 4096)):
            read.extend(data)
            time.sleep(0.001)

    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    thread = threading.Thread(target=reader)
    thread.start()
    try:
        supervisor._write_all(into, answer)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.close(into)
        thread.join()
        os.close(out)
    assert read == answer
