"""The supervisor of virtual boards: its commands, restarts, and end."""

from __future__ import annotations

import faulthandler
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
    """Replace boards by processes that end immediately with this status, or by this signal."""
    ends: list[int] = []

    def end(spec: dict[str, Any], *_: object) -> int:
        os.write(1, b"the last words")
        if spec["code"] < 0:
            faulthandler.disable()
            os.kill(os.getpid(), -spec["code"])
        return int(spec["code"])

    monkeypatch.setattr(supervisor, "run_board", end)
    monkeypatch.chdir(tmp_path)
    return ends


def wait(boards: Supervisor, name: str) -> None:
    """Wait until a board has ended, without reaping its process."""
    os.waitid(os.P_PID, boards.pids[name], os.WEXITED | os.WNOWAIT)


def start(boards: Supervisor, code: int) -> None:
    spec = {"name": "lab-1", "code": code, "folder": "."}
    boards.handle_command({"do": "start", "spec": spec})
    wait(boards, "lab-1")


def test_board_that_asks_for_it_starts_again_at_once(codes: list[int]) -> None:
    boards = Supervisor()
    start(boards, RESTART)
    boards.specs["lab-1"]["code"] = 0  # once is enough
    boards.reap_boards()
    assert list(boards.pids) == ["lab-1"]
    assert Path("board.log").read_text() == "the last words"
    assert boards.crashes == {}
    boards.handle_command({"do": "kill", "name": "lab-1", "signal": int(signal.SIGKILL)})
    assert boards.pids == {}


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (0, "ended with status 0"),
        (1, "ended with status 1"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
    ],
)
def test_board_that_ends_by_itself_starts_again_and_its_log_says_why(
    codes: list[int], code: int, how: str
) -> None:
    boards = Supervisor()
    start(boards, code)
    boards.reap_boards()
    assert (boards.pids, boards.crashes) == ({}, {"lab-1": 1})
    why = f"[The board's process {how}. It starts again in 1 s.]"
    assert Path("board.log").read_text() == f"the last words\n{why}\n"
    assert 0 < (boards.start_due_boards() or 0) <= 1
    assert boards.pids == {}
    boards.due["lab-1"] = time.monotonic()
    assert boards.start_due_boards() is None
    assert list(boards.pids) == ["lab-1"]
    boards.handle_command({"do": "kill", "name": "lab-1", "signal": int(signal.SIGKILL)})


def test_board_that_goes_on_ending_starts_less_and_less_often(codes: list[int]) -> None:
    boards = Supervisor()
    start(boards, 1)
    pauses = []
    for turn in range(9):
        if turn == 8:
            boards._started["lab-1"] -= 61  # it ran for a minute
        since = time.monotonic()
        boards.reap_boards()
        pauses.append(round(boards.due["lab-1"] - since))
        boards.due["lab-1"] = since
        boards.start_due_boards()
        wait(boards, "lab-1")
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 1]
    boards.reap_boards()


@pytest.mark.parametrize("verb", ["kill", "restart"])
def test_board_whose_power_is_cut_in_the_pause_does_not_start_by_itself(
    codes: list[int], verb: str
) -> None:
    boards = Supervisor()
    start(boards, 1)
    boards.reap_boards()
    boards.handle_command({"do": verb, "name": "lab-1", "signal": int(signal.SIGKILL)})
    assert boards.due == {}
    assert list(boards.pids) == (["lab-1"] if verb == "restart" else [])
    assert boards.start_due_boards() is None
    boards.signal_board("lab-1")


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
