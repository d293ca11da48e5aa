"""The interrupt thread's side of the mailbox; tests/board/test_interrupt.py has real boards."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.virtual import interrupt_thread
from cloudmanager.virtual.interrupt_thread import RESTART, BoardOutput, InterruptThread

USER, RUN, FIRE, SHOT, LATE, NOTED, ASLEEP = range(7)
CAPTURES, FULL = 28, 30


class Call:
    """A stand-in for a C function, which records the times of its calls."""

    def __init__(self, act: Callable[..., Any]) -> None:
        self.act, self.times = act, list[float]()

    def __call__(self, *args: object) -> object:
        self.times.append(time.monotonic())
        return self.act(*args)


class Library:
    """A stand-in for MicroPython: the callback runs immediately, interrupts are counted."""

    def __init__(self) -> None:
        self.stopped = threading.Event()  # whether the interrupt thread does nothing any more
        self.note: Callable[[], None] = lambda: None
        self.mp_sched_schedule = Call(lambda *_: [self.note()])
        self.mp_sched_keyboard_interrupt = Call(lambda: None)


@pytest.fixture
def printed() -> tuple[int, int]:
    """The pipe into which a board prints: the end for reading, and the one for writing."""
    return os.pipe()


@pytest.fixture
def board(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    printed: tuple[int, int],
) -> Iterator[tuple[InterruptThread, Library]]:
    """An interrupt thread, its watchdog's time as the parameter, and a stand-in for MicroPython."""
    library = Library()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "pthread_kill", lambda *_: None)
    monkeypatch.setattr(signal, "siginterrupt", lambda *_: None)
    output = BoardOutput(printed[0], tmp_path / "board.log")
    watchdog = getattr(request, "param", 60.0)
    made = InterruptThread(library, output, watchdog)  # type: ignore[arg-type]
    struct.pack_into("<i", made.mailbox, 24, -1)
    yield made, library

    # The thread never ends. It must not send real signals when the functions above are back.
    def park() -> bool:
        library.stopped.set()
        return threading.Event().wait()

    made._check_output = park  # type: ignore[method-assign]
    made.mailbox[RUN] = made.mailbox[FIRE] = 0
    os.write(made.wake_writer, b"w")
    assert library.stopped.wait(20)


def begin(made: InterruptThread, **more: int) -> None:
    """Write to the mailbox what a board writes when a cell begins."""
    struct.pack_into("<i", made.mailbox, 24, more.get("fd", -1))
    struct.pack_into("<q", made.mailbox, 16, more.get("deadline", 0))
    made.mailbox[USER] = made.mailbox[RUN] = 1
    if made.mailbox[ASLEEP]:
        os.write(made.wake_writer, b"w")


def until(true: Callable[[], object], timeout: float = 2.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_idle_thread_sleeps(board: tuple[InterruptThread, Library]) -> None:
    made, library = board
    until(lambda: made.mailbox[ASLEEP])
    assert library.mp_sched_schedule.times == []


def test_pending_output_schedules_a_callback(board: tuple[InterruptThread, Library]) -> None:
    made, library = board

    def note() -> None:
        made.mailbox[LATE] = made.mailbox[NOTED] = 0

    library.note = note
    made.mailbox[LATE] = 1
    begin(made)
    until(lambda: library.mp_sched_schedule.times)
    assert made.mailbox[LATE] == 0


def test_deadline_schedules_a_callback_in_time(board: tuple[InterruptThread, Library]) -> None:
    made, library = board

    def note() -> None:
        made.mailbox[NOTED] = 0
        struct.pack_into("<q", made.mailbox, 16, 0)

    library.note = note
    due = int(time.monotonic() * 1000) + 400
    begin(made, fd=made.wake_writer, deadline=due)
    until(lambda: library.mp_sched_schedule.times)
    assert 0 <= library.mp_sched_schedule.times[0] * 1000 - due < 100


@pytest.mark.parametrize("board", [0.5], indirect=True)
@pytest.mark.parametrize("is_full", [False, True], ids=["", "full queue"])
def test_watchdog_restarts_a_board_whose_callback_is_never_called(
    board: tuple[InterruptThread, Library],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    is_full: bool,
) -> None:
    """MicroPython's queue is full after a few callbacks that were not called."""
    made, library = board
    ends: list[int] = []

    def end(status: int) -> None:
        ends.append(status)
        library.stopped.set()
        threading.Event().wait()  # the thread goes no further, as in a process that ends

    monkeypatch.setattr(os, "_exit", end)
    library.mp_sched_schedule.act = lambda *_: not is_full
    monkeypatch.setattr(interrupt_thread, "_CALLBACK_RETRY_SECONDS", 0.05)
    since = time.monotonic()
    made.mailbox[LATE] = 1
    begin(made)
    until(lambda: ends, 5)
    assert time.monotonic() - since > 0.5
    assert ends == [RESTART]
    assert "[Watchdog: only native code ran for 0.5 s." in (tmp_path / "board.log").read_text()


def test_full_queue_of_callbacks_that_are_called_is_no_reason_to_restart(
    board: tuple[InterruptThread, Library],
) -> None:
    made, library = board

    def note() -> None:
        made.mailbox[LATE] = made.mailbox[NOTED] = 0

    def schedule(*_: object) -> bool:
        if len(library.mp_sched_schedule.times) < 4:
            return False
        note()
        return True

    library.mp_sched_schedule.act = schedule
    made.mailbox[LATE] = 1
    begin(made)
    until(lambda: not made.mailbox[LATE])
    assert made.mailbox[NOTED] == 0


def test_interrupt_waits_for_user_code_and_is_repeated(
    board: tuple[InterruptThread, Library],
) -> None:
    made, library = board
    shots = library.mp_sched_keyboard_interrupt.times
    made.mailbox[FIRE] = 1
    begin(made, fd=made.wake_writer)
    made.mailbox[USER] = 0
    shots.clear()
    time.sleep(0.1)  # our own code runs: nothing may come
    assert shots == []
    made.mailbox[FIRE] = made.mailbox[USER] = 1
    until(lambda: len(shots) == 2)
    assert 0.2 < shots[1] - shots[0] < 0.4


def test_link_of_a_long_cell_is_kept_alive(board: tuple[InterruptThread, Library]) -> None:
    made, _ = board
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as link,
    ):
        begin(made, fd=link.fileno())
        until(lambda: made.mailbox[ASLEEP])
        until(lambda: link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 20
        made.mailbox[RUN] = 0


def test_output_between_jobs_is_copied_to_the_log(
    board: tuple[InterruptThread, Library], printed: tuple[int, int], tmp_path: Path
) -> None:
    made, library = board
    log = tmp_path / "board.log"
    until(lambda: made.mailbox[ASLEEP])
    os.write(printed[1], b"hello")
    until(lambda: log.read_bytes() == b"hello")
    assert library.mp_sched_schedule.times == []
    log.write_bytes(bytes(300 * 1024))
    os.write(printed[1], b"again")
    until(lambda: log.read_bytes() == b"again")


def test_output_of_a_job_is_left_to_the_board(
    board: tuple[InterruptThread, Library], printed: tuple[int, int], tmp_path: Path
) -> None:
    made, library = board

    def note() -> None:
        made.mailbox[NOTED] = 0

    library.note = note
    made.mailbox[CAPTURES] = 1
    begin(made, fd=made.wake_writer)
    os.write(printed[1], b"hello")
    until(lambda: library.mp_sched_schedule.times)
    assert made.mailbox[FULL] == 0
    os.write(printed[1], bytes(40_000))
    until(lambda: made.mailbox[FULL])
    assert len(os.read(printed[0], 65536)) == 40_005
    assert (tmp_path / "board.log").read_bytes() == b""


def test_interrupt_does_not_reach_the_next_cell(board: tuple[InterruptThread, Library]) -> None:
    """The thread may be delayed after it saw that it has to interrupt the previous cell."""
    made, library = board
    begin(made, fd=made.wake_writer)
    made.mailbox[FIRE] = 0
    made._interrupt_cell()
    assert library.mp_sched_keyboard_interrupt.times == []


def test_short_cells_wake_the_thread_rarely(
    board: tuple[InterruptThread, Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of boards that run short cells would use a core for ticks otherwise."""
    made, library = board
    made.mailbox[CAPTURES] = 1
    ticks = Call(made._wake_poll.poll)
    monkeypatch.setattr(made, "_wake_poll", type("Poll", (), {"poll": staticmethod(ticks)}))
    ends = time.monotonic() + 1.0
    while time.monotonic() < ends:
        begin(made)
        made.mailbox[RUN] = 0
        time.sleep(0.06)
    assert library.mp_sched_schedule.times == []
    assert len(ticks.times) < 35  # 50 without what is left out


def test_cell_that_begins_between_two_ticks_is_served(
    board: tuple[InterruptThread, Library],
) -> None:
    made, library = board
    made.mailbox[CAPTURES] = 1
    begin(made)
    made.mailbox[RUN] = 0
    time.sleep(0.05)  # now the thread leaves ticks out
    begin(made)
    made.mailbox[4] = 1  # there is output to be sent
    until(lambda: library.mp_sched_schedule.times)
