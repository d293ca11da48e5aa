"""Interrupts and timeouts through a raw REPL, on the unix port and on a micro:bit."""

from __future__ import annotations

import time

import pytest


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
