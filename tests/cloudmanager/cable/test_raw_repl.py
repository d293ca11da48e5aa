"""Interrupts and timeouts through a raw REPL, on the unix port and on a micro:bit."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from cloudmanager.cable.raw_repl import BoardRestarted, execute_code
from cloudmanager.cable.repl_output import PRELUDE, Outcome
from cloudmanager.cable.serial_ports import BoardRepl


@pytest.fixture
def board(bridged_board):
    return bridged_board


@pytest.mark.parametrize("code", ["while True: pass", "while True: print('x' * 20)"])
def test_interrupt_ends_a_busy_cell(board, code):
    job = board.submit(f"print('begun')\n{code}", timeout=10)
    deadline = time.monotonic() + 5
    while "begun" not in "".join(one.read_output()[0] for one in job.jobs.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.interrupt()
    assert job.wait(5)
    assert [result.status for result in job.results(1).values()] == ["interrupted"]


def test_bridge_enforces_timeouts(board):
    (result,) = board.run("while True: pass", timeout=0.3).values()
    assert result.status == "timeout"
    assert result.elapsed < 1.3


def test_caught_interrupt_is_repeated(board):
    code = "n = 0\nwhile n < 2:\n try:\n  while True: pass\n except KeyboardInterrupt: n += 1\n"
    (result,) = board.run(code + "print(n)", timeout=0.2).values()
    assert (result.status, result.stdout) == ("ok", "2\n")


def _wait(condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds, without a pause."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        pass
    return condition()


class NoLink:
    """What a bridge without a server serves while code runs."""

    def fileno(self) -> None: ...

    def handle_messages(self) -> None: ...

    def should_stop(self) -> bool:
        return False


def test_prompts_that_arrive_late_are_not_taken_for_answers(chips, monkeypatch):
    """The REPL answers probes of a cell that has ended one after the other, on a slow port."""
    with BoardRepl(chips().port) as repl:
        arrived = type(repl.transport.serial).in_waiting.fget
        slow = property(lambda port: min(arrived(port), 10))  # bytes; a prompt has more
        monkeypatch.setattr(type(repl.transport.serial), "in_waiting", slow)
        repl.await_prompt(20)
        repl.run(PRELUDE)
        serial = repl.transport.serial
        for probes in (1, 2, 7):
            assert _wait(lambda: serial.in_waiting == 1)
            serial.write(b"\x01" * probes)
            assert _wait(lambda: serial.in_waiting > 1)  # some of them have arrived
            outcome = execute_code(repl, b"__cm__(6 * 7)", lambda data: None, NoLink())
            assert outcome == Outcome(value=b"(42,)")


def test_restarted_interpreter_is_noticed(chips):
    with BoardRepl(chips().port) as repl:
        repl.await_prompt(20)
        repl.run(PRELUDE)
        repl.transport.serial.write(b"\x04")  # Ctrl-D: a soft reset
        time.sleep(0.5)
        with pytest.raises(BoardRestarted):
            execute_code(repl, b"1", lambda data: None, NoLink())
