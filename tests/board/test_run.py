"""Cells on a real board: output, values, errors, long cells, harmful cells."""

import struct
import time

import pytest

from .peer import ERROR, EXEC, INTERRUPTED, MORE, OK, Job, message


def test_result_of_a_short_cell_is_one_message(board):
    job = board.run("print('hello')\n__cm__((6 * 7))")
    assert (job.status, job.output, job.value, job.messages) == (OK, b"hello\n", b"42", 1)


def test_variables_persist_between_cells(board):
    board.run("x = 1\ndef f():\n    return x")
    board.run("x = 5")
    assert board.run("__cm__((f(), __name__))").value == b"(5, '__main__')"


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("'a\\'b'", b'"a\'b"'),
        ("(1,)", b"(1,)"),
        ("()", b"()"),
        ("b'(,)'", b"b'(,)'"),
        ("None", b""),
        ("''", b"''"),
        ("0", b"0"),
        ("'é'", b"'\\xe9'"),  # as MicroPython writes it
        ("{'a': [1, 2.5]}", b"{'a': [1, 2.5]}"),
    ],
)
def test_value_is_its_repr(board, expression, shown):
    assert board.run(f"__cm__(({expression}))").value == shown


def test_cell_without_a_value_has_none_after_one_with_a_value(board):
    board.run("__cm__((1))")
    assert board.run("y = 2").value == b""


@pytest.mark.parametrize("length", [*range(848, 888), 1752, 5000])
def test_value_of_any_length_arrives_completely(board, length):
    job = board.run(f"__cm__(('v' * {length}))")
    assert job.value == b"'" + b"v" * length + b"'"


@pytest.mark.parametrize("length", [848, 871, 872, 873, 888, 2700])
def test_output_precedes_a_long_value(board, length):
    job = board.run(f"print('o' * {length})\n__cm__(('v' * {length}))")
    assert job.output == b"o" * length + b"\n"
    assert job.value == b"'" + b"v" * length + b"'"


def test_long_text_as_value_is_about_as_fast_as_its_print(board):
    """MicroPython prints each character of a text in a tuple alone."""

    def fastest(code):
        times = []
        for _ in range(5):
            since = time.monotonic()
            board.run(code)
            times.append(time.monotonic() - since)
        return min(times)

    assert fastest("__cm__(('x' * 15000))") < 10 * fastest("print('x' * 15000)")


def test_value_is_streamed_and_truncated_at_a_mebibyte(board):
    job = board.run("s = 'x' * 400\n__cm__(([s] * 3000))")
    assert (job.status, job.cut, len(job.value)) == (OK, True, 1 << 20)
    assert job.value.startswith(b"['xxx")


def test_repr_that_raises_is_an_error_and_leaves_no_value(board):
    code = "class R:\n    def __repr__(self):\n        raise ValueError('bad repr')\n"
    job = board.run(code + "__cm__((['x' * 3000, R()]))")
    assert (job.status, job.value) == (ERROR, b"")
    assert job.error.endswith("ValueError: bad repr\n")


def test_what_a_repr_prints_is_output(board):
    code = "class R:\n    def __repr__(self):\n        print('in repr')\n        return 'R'\n"
    job = board.run(code + "__cm__(([1, R(), 2]))")
    assert (job.output, job.value) == (b"in repr\n", b"[1, R, 2]")


def test_error_shows_the_cell_and_its_line(board):
    job = board.run("x = 1\n\n1/0")
    assert job.status == ERROR
    assert job.error.startswith("Traceback (most recent call last):\n")
    assert '  File "<cell>", line 3, in <module>\n' in job.error
    assert job.error.endswith("ZeroDivisionError: divide by zero\n")


def test_output_before_an_error_is_kept(board):
    job = board.run("print('before')\nraise OSError(5)")
    assert (job.output, job.status) == (b"before\n", ERROR)
    assert "OSError" in job.error


def test_long_output_before_an_error_is_kept(board):
    job = board.run("print('b' * 838)\ndef f():\n    raise OSError(5)\nf()")
    assert job.output == b"b" * 838 + b"\n"
    assert job.error.startswith("Traceback")


@pytest.mark.parametrize("code", ["x = ", "def", "  1", "x = '"])
def test_syntax_error_is_an_error(board, code):
    job = board.run(code)
    assert job.status == ERROR
    assert "SyntaxError" in job.error or "IndentationError" in job.error


def test_traceback_of_deep_recursion_has_beginning_and_end(board):
    job = board.run("def f(n):\n    return f(n + 1)\nf(0)")
    assert job.status == ERROR
    assert job.error.startswith("Traceback (most recent call last):\n")
    assert "\n...\n" in job.error
    assert job.error.endswith("RuntimeError: maximum recursion depth exceeded\n")


def test_huge_error_message_loses_its_middle(board):
    job = board.run("raise ValueError('m' * 9000 + 'end')")
    assert job.status == ERROR
    assert "ValueError: mmm" in job.error
    assert job.error.endswith("mend\n")


def test_exception_whose_str_raises_is_named(board):
    code = "class E(Exception):\n    def __str__(self):\n        raise KeyError(1)\nraise E()"
    job = board.run(code)
    assert job.status == ERROR
    assert "\nE" in job.error


@pytest.mark.parametrize("code", ["raise SystemExit", "import sys\nsys.exit(3)"])
def test_system_exit_is_an_error_of_the_cell_only(board, code):
    job = board.run(code)
    assert job.status == ERROR
    assert "SystemExit" in job.error


def test_memory_error_is_an_error(board):
    job = board.run("a = bytearray(10_000_000)")
    assert job.status == ERROR
    assert "MemoryError" in job.error


@pytest.mark.parametrize("eater", ["x = [x]", "x = [x, None, 'and', 3]", "x = (x, bytes(200))"])
@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize(
    "free", ["x = None", "del x", "import gc\nx = None\ngc.collect()", "globals().clear()"]
)
def test_full_memory_can_be_freed_by_the_next_cell(board, free, turn, eater):
    assert "MemoryError" in board.run(f"x = None\nwhile True:\n    {eater}").error
    assert board.run(free).status == OK
    assert board.run("import gc\ngc.collect()\n__cm__((gc.mem_free() > 40000))").value == b"True"


def test_long_cell_arrives_in_pieces(board):
    code = "total = 0\n" + "".join(f"total += {n}  # {'.' * 40}\n" for n in range(100))
    assert len(code) > 3 * board.proof_fields["buf"]
    assert board.run(f"{code}\n__cm__((total))").value == b"4950"


@pytest.mark.parametrize("length", [1001, 1002, 1003, 1004, 2011, 2012, 2013, 2014, 9000])
def test_cell_of_any_length_arrives_completely(board, length):
    end = "\n__cm__((1))"
    assert board.run("#" * (length - len(end)) + end).value == b"1"


def test_cell_that_does_not_fit_is_a_memory_error_before_anything_runs(board):
    job = board.submit("ran = 1\n" + "#" * 200_000)
    assert "MemoryError" in job.wait().error
    assert "NameError" in board.run("ran").error


def test_interrupt_before_the_last_piece_ends_a_long_cell(board):
    board.run("ran = 1")
    job = board.jobs[b"half"] = Job(b"half")
    board.send(message(EXEC, b"half", struct.pack(">II", 0, 5000) + b"ran = 2\n"))
    board.send(message(MORE, b"else", b"#" * 100))
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED
    assert board.run("__cm__((ran))").value == b"1"


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print(1, 2, sep='-', end='!')", b"1-2!"),
        ("print()", b"\n"),
        ("import sys\nprint('x', file=sys.stdout)", b"x\n"),
        ("import io\nf = io.StringIO()\nprint('x', file=f)", b""),
        ("print('é' * 3)", "ééé\n".encode()),
        ("print('a' * 5000)", b"a" * 5000 + b"\n"),
    ],
)
def test_print_is_captured(board, code, output):
    job = board.run(code)
    assert (job.status, job.output) == (OK, output)


def test_print_in_modules_is_captured(board):
    board.run("with open('talks.py', 'w') as f:\n    f.write('print(\"hi from module\")')")
    assert board.run("import talks").output == b"hi from module\n"


def test_many_lines_arrive_in_order(board):
    job = board.run("for n in range(3000):\n    print('line', n)")
    assert job.output == b"".join(b"line %d\n" % n for n in range(3000))


def test_output_of_a_long_list_is_complete(board):
    assert board.run("print(list(range(1000)))").output.decode() == f"{list(range(1000))}\n"


def test_output_is_live(board):
    job = board.submit("import time\nprint('one')\ntime.sleep(0.3)\nprint('two')\ntime.sleep(90)")
    job.until(lambda job: job.output == b"one\n")
    job.until(lambda job: job.output == b"one\ntwo\n")
    board.interrupt(job)
    assert job.wait().output == b"one\ntwo\n"


def test_last_line_before_a_sleep_is_sent(board):
    code = "import time\ntime.sleep(0.5)\nprint('a')\nprint('b')\ntime.sleep(90)"
    job = board.submit(code)
    job.until(lambda job: job.output == b"a\nb\n")
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED


@pytest.mark.parametrize(
    "code",
    [
        "import builtins\nbuiltins.print = None\nbuiltins.input = 3\ndel builtins.__cm__",
        "print = input = __cm__ = 1",
        "import builtins\nbuiltins.print = lambda *a: None",
        "import sys\nsys.modules.clear()",
        "__name__ = 5",
        "import gc\ngc.collect()\ngc.threshold(100)",
        "class D:\n    def __del__(self):\n        print('del')\nD()\nD()\nimport gc\ngc.collect()",
        "import micropython\nmicropython.schedule(lambda _: 1/0, 0)",
        "import micropython\nmicropython.kbd_intr(-1)",
        "raise BaseException('base')",
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
        "globals().clear()",
    ],
)
def test_harmful_cells_do_not_harm_the_board(board, code):
    board.run(code)
    board.run("for name in ('print', 'input', '__cm__'):\n    globals().pop(name, 0)")
    job = board.run("print('well')\n__cm__((1))")
    assert (job.status, job.output, job.value) == (OK, b"well\n", b"1")


def test_input_sends_its_prompt_after_earlier_output(board):
    job = board.submit("print('first')\nname = input('who? ')\n__cm__((name))")
    job.until(lambda job: job.prompts == ["who? "])
    assert job.output == b"first\n"
    board.answer(job, "Zoë")
    assert job.wait().value == b"'Zo\\xeb'"


def test_input_accepts_a_long_prompt_and_a_long_answer(board):
    job = board.submit("__cm__((len(input('p' * 2000))))")
    job.until(lambda job: job.prompts)
    assert len(job.output) + len(job.prompts[0]) == 2000
    board.answer(job, "a" * 1000)
    assert job.wait().value == b"1000"


def test_input_without_a_caller_raises_eof_error(board):
    job = board.submit("input()")
    job.until(lambda job: job.prompts)
    board.answer(job, "", flags=1)
    assert job.wait().error.endswith("EOFError: \n")


def test_pings_are_answered_during_input(board):
    job = board.submit("input()")
    job.until(lambda job: job.prompts)
    assert board.ping() < 1
    board.answer(job, "")
    assert job.wait().status == OK


def test_late_answer_is_ignored(board):
    job = board.submit("import time\ntime.sleep(0.3)\n__cm__((1))")
    board.answer(job, "x" * 1000)
    assert job.wait().value == b"1"
    board.answer(job, "x" * 1000)


@pytest.mark.parametrize("code", ["while True: pass", "import time\ntime.sleep(100)"])
def test_busy_board_answers_pings(board, code):
    job = board.submit(code)
    assert board.ping() < 1
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED


ALL_OF_SYS = (
    "from sys import stdout, path, platform\nimport sys\n"
    "sys.path.append('/mine')\nsys.ps1 = 'mine'\nfrom sys import ps1\n"
    "__cm__((stdout is sys.stdout, path is sys.path, '/mine' in path, platform, ps1,"
    " sys.stdin is not None, type(sys) is type(__import__('json')), sys.argv))"
)


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("import sys\nsys.stdout.write('a\\n')\nsys.stdout.write(b'b')", b"a\nb"),
        ("from sys import stdout\nstdout.write('é')\nstdout.flush()", "é".encode()),
        ("import sys\nsys.stdout.buffer.write(b'raw')", b"raw"),
        ("import sys\nprint('x', file=sys.stderr)\nsys.stderr.write('y')", b"x\ny"),
        ("import sys\nprint(sys.stdout.write('five!'))", b"five!5\n"),
    ],
)
def test_writes_to_sys_stdout_are_captured(board, code, output):
    job = board.run(code)
    assert (job.status, job.output) == (OK, output)


@pytest.mark.parametrize("more", ["", ", sys.stdout", ", sys.stderr"])
def test_print_exception_is_captured(board, more):
    code = f"import sys\ntry:\n    1/0\nexcept Exception as e:\n    sys.print_exception(e{more})"
    job = board.run(code)
    assert job.output.startswith(b"Traceback (most recent call last):\n")
    assert job.output.endswith(b"ZeroDivisionError: divide by zero\n")


def test_print_exception_to_a_file_is_not_captured(board):
    code = "import io, sys\nf = io.StringIO()\ntry:\n    1/0\nexcept Exception as e:\n"
    job = board.run(code + "    sys.print_exception(e, f)\n__cm__((f.getvalue()[-8:]))")
    assert (job.output, job.value) == (b"", b"'by zero\\n'")


def test_sys_is_the_real_module_otherwise(board):
    board.run("import sys\nsys.modules.clear()")
    job = board.run(ALL_OF_SYS)
    assert job.value == b"(True, True, True, 'linux', 'mine', True, True, [''])"
    assert board.run("import sys\nsys.path.remove('/mine')\nsys.nope").error.endswith(
        "AttributeError: module 'sys' has no attribute 'nope'\n"
    )
    assert "ImportError" in board.run("from sys import nope").error


def test_replaced_sys_path_is_searched(board):
    board.run(
        "import os\nos.mkdir('/far')\nwith open('/far/away.py', 'w') as f:\n    f.write('x=7')"
    )
    code = "import sys\nkept = sys.path\nsys.path = ['/far']\nimport away\nsys.path = kept\n"
    assert board.run(code + "__cm__((away.x))").value == b"7"


def test_interrupt_ends_a_cell_that_writes_endlessly(board):
    job = board.submit("import sys\nwhile True:\n    sys.stdout.write('x' * 40 + '\\n')")
    job.until(lambda job: len(job.output) > 1000)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED


def test_output_is_live_without_a_newline(board):
    job = board.submit("import sys, time\nsys.stdout.write('half')\ntime.sleep(2)")
    job.until(lambda job: job.output == b"half", 0.5)
    board.interrupt(job)
    assert job.wait().status == INTERRUPTED
