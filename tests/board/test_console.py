"""console.py, which serves real ports, against a stand-in for os.dupterm and machine.Timer.

The stand-in (standin_boot.py) is no MicroPython port: it obeys the rules of extmod/os_dupterm.c.
"""

import time

import pytest

from .peer import ERROR, INTERRUPTED, OK, TIMEOUT

BUSY = [
    "while True: pass",
    "while True: print('x' * 40)",
    "import time\ntime.sleep(1000)",
    "while True: [bytearray(50) for _ in range(20)]",
    "while True:\n try:\n  while True: print(1 // 0)\n except Exception: pass",
    "def g():\n while True: yield 1\nfor _ in g(): pass",
]


@pytest.fixture(scope="module")
def peer(console_peer):
    return console_peer


@pytest.fixture
def board(peer):
    """The board's link; afterwards the stream must not have been removed."""
    link = peer.link("id-1")
    yield link
    assert peer.link("id-1").run("__cm__((dropped))").value == b"[]"


def test_board_uses_the_console(board):
    assert (
        board.run("import cm.state\n__cm__((cm.state.console.__name__))").value == b"'cm.console'"
    )
    assert board.run("import sys\n__cm__(('cm.unix' in sys.modules))").value == b"False"


def test_output_comes_through_dupterm_as_the_terminal_writes_it(board):
    job = board.run("print('one', 2)\nprint('three')\n__cm__(([1, 'x']))")
    assert (job.output, job.value) == (b"one 2\r\nthree\r\n", b"[1, 'x']")


def test_many_lines_arrive_whole(board):
    job = board.run("for n in range(1500):\n    print('line', n)")
    assert job.output == b"".join(b"line %d\r\n" % n for n in range(1500))


def test_what_a_repr_prints_is_output_and_not_value(board):
    code = "class R:\n    def __repr__(self):\n        print('in repr')\n        return 'R'\n"
    job = board.run(code + "__cm__(([1, R(), 2]))")
    assert (job.output, job.value) == (b"in repr\r\n", b"[1, R, 2]")


def test_output_is_live(board):
    job = board.submit("import time\nprint('a')\nprint('b')\ntime.sleep(2)")
    job.until(lambda job: job.output == b"a\r\nb\r\n", 1)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED


def test_error_has_status_error(board):
    assert board.run("1/0").error.endswith("ZeroDivisionError: divide by zero\n")


@pytest.mark.parametrize("turn", range(60))
def test_interrupt_ends_busy_cells_and_keeps_the_stream(board, turn):
    job = board.submit(BUSY[turn % len(BUSY)])
    time.sleep((turn % 7) / 100)
    board.interrupt(job)
    job.wait()
    assert (job.status, "KeyboardInterrupt" in job.error) == (INTERRUPTED, True)
    assert board.run("print('well')").output == b"well\r\n"


@pytest.mark.parametrize("code", BUSY)
def test_timeout_ends_busy_cells(board, code):
    assert board.run(code, timeout_ms=150).status == TIMEOUT


def test_caught_interrupt_is_repeated(board):
    code = (
        "n = 0\nwhile n < 3:\n    try:\n        while True: pass\n"
        "    except KeyboardInterrupt:\n        n += 1\n"
    )
    job = board.submit(code)
    begun = time.monotonic()
    board.interrupt(job)
    assert job.wait().status == OK
    assert 0.4 < time.monotonic() - begun < 20


@pytest.mark.parametrize("turn", range(20))
def test_late_interrupt_does_not_reach_the_next_cell(board, turn):
    job = board.submit(f"import time\ntime.sleep({turn / 500})")
    time.sleep(turn / 500)
    board.interrupt(job)
    assert job.wait().status in (OK, INTERRUPTED)
    after = board.submit("n = 0\nfor i in range(3000): n += 1\n__cm__((n))")
    assert (after.wait().status, after.value) == (OK, b"3000")


def test_input_returns_an_answer_and_can_be_interrupted(board):
    job = board.submit("__cm__((input('? ')))")
    job.until(lambda job: job.prompts == ["? "])
    board.answer(job, "yes")
    assert job.wait().value == b"'yes'"
    job = board.submit("input('? ')")
    job.until(lambda job: job.prompts)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED


def test_reset_board_has_a_new_boot_id_and_no_variables(peer, board):
    board.run("gone = 1")
    board.reset()
    again = peer.link("id-1", after=board)
    assert again.proof_fields["boot"] != board.proof_fields["boot"]
    assert "NameError" in again.run("gone").error


def test_busy_board_answers_pings(board):
    job = board.submit("while True: pass")
    assert board.ping() < 1
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED


def test_stream_survives_a_lost_link_in_a_printing_cell(peer, board):
    job = board.submit(
        "import time\nfor n in range(30):\n    print('line', n)\n    time.sleep(0.02)\n1/0"
    )
    job.until(lambda job: job.output)
    board.cut()
    last = peer.link("id-1", after=board).proof_fields["last"]
    assert (last["status"], last["dropped"] > 0) == (ERROR, True)


def test_emit_works_between_two_lines_of_output(board):
    board.samples.clear()
    code = "import cm\nfor n in range(30):\n    print('x' * n)\n    cm.emit(n=n)\n"
    assert board.run(code).output == b"".join(b"x" * n + b"\r\n" for n in range(30))
    assert [values for _, _, values in board.samples] == [{"n": n} for n in range(30)]


@pytest.mark.parametrize("turn", range(20))
def test_interrupt_ends_a_cell_that_only_emits(board, turn):
    job = board.submit("while True: cm.emit(n=1)")
    time.sleep(turn / 200)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED


FULL_HEAP = """
import cm.link, cm.run, time
recv = cm.run.recv
failed = 0
def fails(at):
    global failed
    failed += 1
    cm.link.half = False
    raise MemoryError
cm.run.recv = fails
end = time.ticks_add(time.ticks_ms(), 400)
while time.ticks_diff(end, time.ticks_ms()) > 0: pass
cm.run.recv = recv
__cm__((failed > 2))
"""


def test_heap_that_is_full_for_long_loses_neither_link_nor_value(peer, board):
    """Ticks come meanwhile; the first thing that they do for the link needs memory, on a chip."""
    job = board.run(FULL_HEAP)
    assert (job.status, job.value) == (OK, b"True"), job
    assert peer.link("id-1") is board


# The stack


DOWN = "def down(n):\n    if n:\n        return down(n - 1)\n    print('deep')\n"
LIMIT = """
def limit(n):
    try:
        return limit(n + 1)
    except RuntimeError:
        return n
__cm__((limit(0)))
"""


def test_deep_recursion_loses_no_output_silently(board):
    """Sending needs 2.5 KB of stack; deeper than that output is kept, or its loss noted."""
    limit = int(board.run(DOWN + LIMIT).value)
    for depth in range(limit - 30, limit + 90):
        job = board.run(f"down({depth})")
        if job.status == ERROR:
            break
        assert b"deep" in job.output or b"output was lost" in job.output, depth
    assert depth > limit - 20
    assert job.status == ERROR
    assert board.run("print('next')").output == b"next\r\n"
    assert board.run("while True: pass", timeout_ms=200).status == TIMEOUT


def test_deep_recursion_sends_nothing_and_asks_nothing(board):
    """The deadline still works there."""
    limit = int(board.run(LIMIT).value)
    loop = "def spin(n):\n    if n:\n        return spin(n - 1)\n    while True: pass\n"
    assert board.run(f"{loop}spin({limit - 4})", timeout_ms=300).status == TIMEOUT
    emit = (
        "import cm\ncm.emit(a=1)\ndef sample(n):\n    return sample(n - 1) if n else cm.emit(a=1)\n"
    )
    values = [board.run(f"{emit}__cm__((sample({limit + n})))").value for n in range(-8, 24, 2)]
    assert (values[0], b"False" in values) == (b"True", True)


LOCKED = """
import micropython, os
class Locked:
    schedule = lambda *_: None
    stack_use = micropython.stack_use
import cm.firmware
cm.firmware.micropython = Locked
os.dupterm(None)
__cm__((1))
"""


def test_locked_scheduler_restarts_the_board_after_the_result(peer):
    """extmod/os_dupterm.c can leave it locked; then no timer would interrupt a cell."""
    link = peer.link("id-1")
    before = link.proof_fields["boot"]
    job = link.run(LOCKED)
    assert (job.status, job.value) == (OK, b"1")
    assert b"output was lost" in job.output
    again = peer.link("id-1", after=link)
    assert again.proof_fields["boot"] != before
    assert again.run("while True: pass", timeout_ms=200).status == TIMEOUT
