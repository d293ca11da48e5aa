"""Everything that is printed on a virtual board comes back: by threads and by C code, too."""

import time

import pytest

from .peer import ERROR, INTERRUPTED, OK, TIMEOUT

THREAD = """
import _thread, time
done = []
def talk():
    for k in range(300):
        print("thread", k)
        time.sleep_ms(1)
    done.append(1)
_thread.start_new_thread(talk, ())
k = 0
while not done:
    print("main", k)
    k += 1
    time.sleep_ms(1)
"""
IN_THREAD = """
import _thread, time, cm
seen = []
def other():
    try:
        {call}
        seen.append("done")
    except Exception as e:
        seen.append(type(e).__name__)
_thread.start_new_thread(other, ())
while not seen: time.sleep_ms(1)
__cm__((seen[0]))
"""
ENDLESS = """
import _thread, time
stop = False
def talk():
    while not stop:
        print("endless" * 20)
_thread.start_new_thread(talk, ())
time.sleep_ms(100)
"""


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("help()", b"Welcome to MicroPython"),
        ("help('modules')", b"asyncio"),
        ("help(1)", b"is of type int"),
        ("import micropython\nmicropython.mem_info()", b"GC: total"),
        ("exec(compile('10 + 1', '', 'single'))", b"11\n"),
        ("import builtins\nbuiltins.print('hello')", b"hello\n"),
        ("import os\nos.system('echo from a process')", b"from a process\n"),
        ("import sys\nsys.stderr.write('oops')", b"oops"),
        ("import micropython\nmicropython.schedule(lambda _: 1 / 0, 0)", b"ZeroDivisionError"),
        (
            "def print(*a):\n    import builtins\n    builtins.print('log:', *a)\nprint(1)\n"
            "del print",
            b"log: 1\n",
        ),
        (
            "import micropython\nmicropython.heap_lock()\nprint('locked', 1)\n"
            "micropython.heap_unlock()",
            b"locked 1\n",
        ),
        ("import micropython\nmicropython.heap_lock()\nprint('left locked')", b"left locked\n"),
        (
            "import _thread, time\n_thread.start_new_thread(lambda: 1 / 0, ())\ntime.sleep_ms(100)",
            b"ZeroDivisionError",
        ),
    ],
)
def test_output_is_that_of_the_cell(board, code, shown):
    job = board.run(code)
    assert job.status == OK
    assert shown in job.output


@pytest.mark.parametrize("turn", range(3))
def test_lines_of_threads_arrive_whole_and_completely(board, turn):
    lines = board.run(THREAD).output.decode().splitlines()
    count = sum(line.startswith("main") for line in lines)
    expected = [f"thread {k}" for k in range(300)]
    assert [line for line in lines if line.startswith("thread")] == expected
    assert [line for line in lines if line.startswith("main")] == [
        f"main {k}" for k in range(count)
    ]
    assert len(lines) == 300 + count


@pytest.mark.parametrize(
    ("call", "error"), [("cm.emit(n=1)", b"'RuntimeError'"), ("input('? ')", b"'EOFError'")]
)
def test_thread_that_would_use_the_link_is_refused(board, call, error):
    board.samples.clear()
    job = board.run(IN_THREAD.format(call=call))
    assert (job.status, job.value, job.prompts, board.samples) == (OK, error, [], [])


def test_thread_that_prints_endlessly_keeps_no_cell_from_ending(lab, board):
    job = board.run(ENDLESS)
    assert job.status == OK
    assert b"endlessendless" in job.output
    job = board.submit("while True: pass")
    time.sleep(0.1)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED
    assert board.run("while True: pass", timeout_ms=200).status == TIMEOUT
    assert board.run("stop = True\nimport time\ntime.sleep_ms(50)").status == OK
    assert board.run("print('next')").output == b"next\n"
    assert "endless" in lab.log()


def test_output_between_two_cells_is_in_the_log_and_in_no_cell(lab, board):
    code = (
        "import _thread, time\ndef late():\n    time.sleep_ms(80)\n    print('too late')\n"
        "_thread.start_new_thread(late, ())\nprint('now')"
    )
    assert board.run(code).output == b"now\n"
    time.sleep(0.3)
    assert board.run("print('next')").output == b"next\n"
    assert "too late" in lab.log()
    code = "import asyncio\nasync def task():\n    print('a task')\nt = asyncio.create_task(task())"
    assert board.run(code).output == b""
    time.sleep(0.2)
    assert board.run("print('next')").output == b"next\n"
    assert "a task" in lab.log()


def test_output_precedes_what_follows_it(board):
    board.samples.clear()
    job = board.run("import cm\nprint('before')\ncm.emit(n=1)\nprint('after')\n1 / 0")
    assert (job.output, job.status) == (b"before\nafter\n", ERROR)
    assert job.error.startswith("Traceback")
    job = board.submit("print('before')\nx = input('? ')\nprint(x)")
    job.until(lambda job: job.prompts == ["? "])
    assert job.output == b"before\n"
    board.answer(job, "answer")
    assert job.wait().output == b"before\nanswer\n"


@pytest.mark.parametrize("size", [1, 40, 3000, 5000])
def test_unbounded_output_can_be_interrupted(board, size):
    job = board.submit(f"while True: print('x' * {size})")
    job.until(lambda job: len(job.output) > 200_000)
    begun = time.monotonic()
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED
    assert time.monotonic() - begun < 20


def test_much_output_arrives_completely(board):
    job = board.run("for n in range(300): print('y' * 5000)")
    assert job.output == (b"y" * 5000 + b"\n") * 300


def test_output_survives_a_full_heap(board):
    job = board.run("print('before')\na = []\nwhile True: a.append(bytearray(500))")
    assert (job.output, job.status) == (b"before\n", ERROR)
    assert board.run("a = None").status == OK


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_closed_stream_is_open_in_the_next_cell(board, stream):
    job = board.run(f"import sys\nprint('open')\nsys.{stream}.close()")
    assert (job.status, job.output) == (OK, b"open\n")
    assert board.run("print('again')\nhelp(1)").output.startswith(b"again\nobject 1")
    assert board.run("import sys\nsys.stderr.write('too')").output == b"too"


def test_log_holds_the_last_words_of_a_board(make_lab):
    lab = make_lab()
    link = lab.link()
    link.submit("print('last words')\nimport os\nos.system('kill -9 $PPID')")
    deadline = time.monotonic() + 5
    while "last words" not in lab.log() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "last words" in lab.log()
