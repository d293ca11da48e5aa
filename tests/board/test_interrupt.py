"""Interrupts and timeouts end every kind of cell, and never the next cell."""

import time

import pytest

from .peer import ERROR, INTERRUPTED, OK, TIMEOUT

LISTEN = """
import socket
s = socket.socket()
s.bind(socket.getaddrinfo("127.0.0.1", 0)[0][-1])
s.listen(1)
try:
    s.accept()
finally:
    s.close()
"""
BUSY = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "allocate": "while True: [bytearray(50) for _ in range(20)]",
    "print": "while True: print('x' * 40)",
    "except": "while True:\n try:\n  while True: 1 // 0\n except Exception: pass",
    "generator": "def g():\n while True: yield 1\nfor _ in g(): pass",
    "sort": "a = list(range(500))\nwhile True:\n a.sort(key=lambda v: -v)\n a.sort()",
    "socket": LISTEN,
    "poll": "import select\nselect.poll().poll(100_000)",
}
AWAITING = "import asyncio\nasync def __cm_cell__():\n    "


def test_three_hundred_interrupts_in_a_row_over_nine_kinds_of_busy_cell(board):
    board.run("kept = 41")
    for turn in range(300):
        kind = list(BUSY)[turn % len(BUSY)]
        job = board.submit(BUSY[kind])
        if turn % 5:
            time.sleep((0.001, 0.01, 0.03, 0.06)[turn % 4])  # at every stage of a cell's life
        board.interrupt(job)
        job.wait()
        assert (kind, turn, job.status) == (kind, turn, INTERRUPTED)
        assert "KeyboardInterrupt" in job.error
        assert board.run("__cm__((kept + 1))").value == b"42"


@pytest.mark.parametrize("kind", BUSY)
def test_timeout_ends_every_kind_of_busy_cell(board, kind):
    begun = time.monotonic()
    job = board.run(BUSY[kind], timeout_ms=200)
    assert (job.status, job.error[:9]) == (TIMEOUT, "Traceback")
    assert 0.2 <= time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("code", "awaits"),
    [("input()", False), (AWAITING + "await asyncio.sleep(100)", True), ("input()\nx", False)],
)
def test_timeout_ends_a_cell_that_waits(board, code, awaits):
    begun = time.monotonic()
    assert board.run(code, timeout_ms=200, awaits=awaits).status == TIMEOUT
    assert 0.2 <= time.monotonic() - begun < 10


def test_interrupt_ends_a_cell_in_input(board):
    job = board.submit("input('? ')")
    job.until(lambda job: job.prompts)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED


def test_interrupt_in_input_is_raised_once(board):
    tidy = "    time.sleep(0.15)\n    print('tidy')"
    code = f"import time\ntry:\n    input()\nexcept KeyboardInterrupt:\n{tidy}"
    job = board.submit(code)
    job.until(lambda job: job.prompts)
    board.interrupt(job)
    assert (job.wait().status, job.output) == (OK, b"tidy\n")


def test_interrupted_cell_may_clean_up(board):
    code = (
        "import time\ntry:\n    while True: pass\nfinally:\n    time.sleep(0.15)\n    print('tidy')"
    )
    job = board.submit(code)
    board.interrupt(job)
    assert (job.wait().status, job.output) == (INTERRUPTED, b"tidy\n")


def test_cell_that_catches_its_interrupt_gets_another(board):
    code = (
        "n = 0\nwhile n < 3:\n    try:\n        while True: pass\n"
        "    except KeyboardInterrupt:\n        n += 1\n        print(n)\n"
    )
    job = board.submit(code)
    begun = time.monotonic()
    board.interrupt(job)
    assert (job.wait().status, job.output) == (OK, b"1\n2\n3\n")
    assert 0.4 < time.monotonic() - begun < 10


def test_interrupt_that_is_caught_in_a_print_is_repeated(board):
    code = (
        "import time\nn = 0\nbegun = time.ticks_ms()\nwhile n < 3:\n    try:\n"
        "        while True: print('x' * 100)\n    except KeyboardInterrupt:\n        n += 1\n"
        "__cm__((time.ticks_diff(time.ticks_ms(), begun)))"
    )
    job = board.submit(code)
    board.interrupt(job)
    assert job.wait(20).status == OK
    assert 450 < int(job.value) < 2000


@pytest.mark.parametrize("turn", range(40))
def test_late_interrupt_does_not_reach_the_next_cell(board, turn):
    job = board.submit(f"import time\ntime.sleep({turn / 2000})")
    time.sleep(turn / 2000)
    board.interrupt(job)
    assert job.wait().status in (OK, INTERRUPTED)
    after = board.submit("n = 0\nfor i in range(3000): n += 1\n__cm__((n))")
    board.interrupt(job)
    assert (after.wait().status, after.value) == (OK, b"3000")


def test_interrupt_of_another_job_is_ignored(board):
    job = board.submit("import time\ntime.sleep(0.3)\n__cm__((1))")
    board.interrupt(type(job)(b"else"))
    assert job.wait().value == b"1"


def test_interrupt_ends_an_endless_value(board):
    job = board.submit("class R:\n    def __repr__(self):\n        while True: pass\n__cm__((R()))")
    time.sleep(0.1)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED


def test_cell_may_raise_its_own_interrupt(board):
    job = board.run("raise KeyboardInterrupt")
    assert job.status == INTERRUPTED
    assert job.error.endswith("KeyboardInterrupt: \n")


def test_cell_with_await_has_a_value(board):
    job = board.run(AWAITING + "await asyncio.sleep(0.05)\n    __cm__((5))", awaits=True)
    assert (job.status, job.value) == (OK, b"5")


def test_cell_with_await_raises_its_error(board):
    job = board.run(AWAITING + "await asyncio.sleep(0)\n    1/0", awaits=True)
    assert job.status == ERROR
    assert '  File "<cell>", line 4, in __cm_cell__\n' in job.error
    assert job.error.endswith("ZeroDivisionError: divide by zero\n")


def interrupted_beside_a_task(board, after) -> bool:
    """Interrupt a cell with await beside an earlier cell's task; return whether the task runs."""
    back = (
        "import asyncio\nticks = 0\nasync def tick():\n    global ticks\n"
        "    while True:\n        ticks += 1\n        await asyncio.sleep_ms(5)\n"
        "task = asyncio.create_task(tick())"
    )
    board.run(back)
    own = "try:\n        while True: await asyncio.sleep_ms(7)\n    finally:\n        print('tidy')"
    job = board.submit(AWAITING + own, awaits=True)
    time.sleep(after)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED
    assert job.output == b"tidy\n"
    before = int(board.run("__cm__((ticks))").value)
    time.sleep(0.1)
    goes_on = int(board.run("__cm__((ticks))").value) >= before + 5
    board.run("task.cancel()")
    return goes_on


@pytest.mark.parametrize("turn", range(10))
def test_interrupt_cancels_only_the_cell_s_own_task(board, turn):
    """About one interrupt in several hundred ends the other task (docs/decisions/0015)."""
    assert any(interrupted_beside_a_task(board, 0.02 * turn) for _ in range(3))


def test_tasks_that_fail_between_cells_do_not_harm_the_board(board):
    code = (
        "import asyncio, sys\nasync def bad(e):\n    await asyncio.sleep_ms(20)\n    raise e\n"
        "for e in (ValueError(1), SystemExit(), OSError(5)):\n    asyncio.create_task(bad(e))"
    )
    board.run(code)
    time.sleep(0.2)
    assert board.run("__cm__((1))").value == b"1"


def test_asyncio_run_in_a_plain_cell_works_beside_tasks(board):
    code = "import asyncio\nasync def main():\n    await asyncio.sleep_ms(20)\n    return 7\n"
    assert board.run(code + "__cm__((asyncio.run(main())))").value == b"7"
    job = board.submit(code.replace("_ms(20)", "(100)") + "asyncio.run(main())")
    time.sleep(0.1)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED
    assert board.run(code + "__cm__((asyncio.run(main())))").value == b"7"


def test_interrupted_asyncio_run_does_not_continue_between_cells(board):
    code = (
        "import asyncio\nblinks = 0\nasync def blink():\n    global blinks\n    while True:\n"
        "        blinks += 1\n        await asyncio.sleep_ms(5)\nasyncio.run(blink())"
    )
    job = board.submit(code)
    time.sleep(0.1)
    board.interrupt(job)
    job.wait()
    before = int(board.run("__cm__((blinks))").value)
    assert before > 3
    time.sleep(0.1)
    assert int(board.run("__cm__((blinks))").value) == before
