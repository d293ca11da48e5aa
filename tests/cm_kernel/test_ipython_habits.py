"""What users of IPython expect of the kernel: its magics, `_` and `Out`, `exit`, counts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbformat
import pytest

from .conftest import PATHS, Kernel, Output, running_kernel


def texts(outputs: list[Output]) -> str:
    return "".join(each.text for each in outputs)


@pytest.fixture
def one_board(kernel: Kernel) -> Kernel:
    """The kernel, with one board chosen."""
    kernel.run("%board_use demo-1")
    return kernel


#: IPython's own magics, and a part of what they show.
MAGICS = [
    ("%time 6*7", "Wall time"),
    ("%%time\n6*7", "Wall time"),
    ("%timeit -n2 -r2 6*7", "2 runs, 2 loops each"),
    ("%%timeit -n2 -r2 x = 6\nx*7", "2 runs, 2 loops each"),
    ("%%host\n%timeit -n2 -r2 6*7", "2 runs, 2 loops each"),
    ("%prun 6*7", ""),
    ("%%prun\n6*7", ""),
    ("%%host\n%prun 6*7", ""),
    ("%%capture\nprint('no')", ""),
    ("%%host\n%%capture\nprint('no')", ""),
    ("%%host\n%%time\nimport sys\nsys.implementation.name", "cpython"),
    ("%%time\n%%host\nimport sys\nsys.implementation.name", "cpython"),
    ("%%time\n%%board demo-2\n6*7", "42"),
    ("%%time\n%%time\n6*7", "42"),
    ("%%bash\necho from bash", "from bash"),
    ("%%sh\necho from sh", "from sh"),
    ("%%script cat\nfrom cat", "from cat"),
    ("%%html\n<b>x</b>", ""),
    ("%%markdown\n*x*", ""),
    ("%%latex\n$x$", ""),
    ("%%javascript\n1", ""),
    ("%%svg\n<svg></svg>", ""),
    ("%%python\nprint('other python')", "other python"),
    ("%%system\necho from system", "from system"),
    ("%lsmagic", "%%board"),
    ("%pwd", "/"),
    ("%env HOME", ""),
    ("%who", ""),
    ("%whos", ""),
    ("%history -l 1", ""),
    ("%precision 3", ""),
    ("%precision", ""),
    ("%xmode Plain", "Plain"),
    ("%xmode Context", "Context"),
    ("%matplotlib --list", "inline"),
    ("%config BoardShell.autocall", "0"),
    ("%alias_magic tt time", "Created"),
    ("%pdef len", ""),
    ("%pdoc len", ""),
    ("%pinfo len", ""),
    ("%time?", ""),
    ("%%time?", ""),
    ("%quickref", ""),
    ("%system echo from system", "from system"),
    ("%sx echo from sx", "from sx"),
    ("%alias hello echo hello", ""),
    ("%hello", "hello"),
    ("%unalias hello", ""),
    ("%ls /", "tmp"),
    ("%autoawait", "autoawait"),
    ("%autocall 0", "calling is"),
    ("%automagic on", "Automagic is ON"),
    ("%bookmark -l", "bookmarks"),
    ("%cd -q .", ""),
    ("%code_wrap --list", ""),
    ("%colors linux", ""),
    ("%dhist", "Directory history"),
    ("%dirs", ""),
    ("%doctest_mode", "ON"),
    ("%doctest_mode", "OFF"),
    ("%gui", ""),
    ("%hist -l 1", ""),
    ("%killbgscripts", "killed"),
    ("%load_ext autoreload", ""),
    ("%autoreload 0", ""),
    ("%aimport", ""),
    ("%store", ""),
    ("%reload_ext autoreload", ""),
    ("%unload_ext autoreload", ""),
    ("%logstate", "Logging"),
    ("%macro repeated 1", "created"),
    ("%magic", ""),
    ("%page 1", ""),
    ("%pdb off", "OFF"),
    ("%pinfo2 len", ""),
    ("%pprint", "OFF"),
    ("%pprint", "ON"),
    ("%psearch prin*", ""),
    ("%pushd /", "/"),
    ("%popd", ""),
    ("%recall 1", ""),
    ("%rep 1", ""),
    ("%rehashx", ""),
    ("%rerun -l 1", ""),
    ("%reset_selective -f nothing", ""),
    ("%set_env CM_TESTED=1", "CM_TESTED"),
    ("%sc -l said=echo said", ""),
    ("%tb", ""),
    ("%who_ls", "["),
    ("%connect_info", "jupyter"),
    ("%clear", ""),
    ("%autosave 0", "Autosave"),
    ("%subshell", "subshell"),
    ("%%!\necho from the shell", "from the shell"),
    ("%%sx\necho from sx", "from sx"),
    ("%%HTML\n<b>x</b>", ""),
    ("%%SVG\n<svg></svg>", ""),
    ("%%js\n1", ""),
    ("%%perl\nprint 6*7", "42"),
    ("%%python3\nprint(6*7)", "42"),
    ("!echo from the shell", "from the shell"),
    ("!!echo twice", "twice"),
]


@pytest.mark.parametrize(("cell", "shown"), MAGICS, ids=[cell for cell, _ in MAGICS])
def test_magic_of_ipython_works(one_board: Kernel, cell: str, shown: str):
    status, outputs = one_board.run(cell)
    assert status == "ok", texts(outputs)
    assert shown in texts(outputs)


#: Magics of IPython that write or read files of this folder, in this order.
FILE_MAGICS = [
    ("%%writefile a.py\nx = 6", "Writing a.py"),
    ("%%file b.py\ny = 7", "Writing b.py"),
    ("%run a.py", ""),
    ("%%host\nx", "6"),
    ("%load a.py", ""),
    ("%loadpy a.py", ""),
    ("%pycat a.py", ""),
    ("%save -f c.py 1", "written to file"),
    ("%pfile os", ""),
    ("%psource len", ""),
    ("%cat a.py", "x = 6"),
    ("%cp a.py d.py", ""),
    ("%mv d.py e.py", ""),
    ("%mkdir sub", ""),
    ("%rmdir sub", ""),
    ("%rm -f e.py", ""),
    ("%ldir", ""),
    ("%ll", "a.py"),
    ("%lf", "a.py"),
    ("%lk", ""),
    ("%lx", ""),
    ("%less a.py", ""),
    ("%more a.py", ""),
    ("%logstart log.txt over", "Activating auto-logging"),
    ("%logoff", "OFF"),
    ("%logon", "ON"),
    ("%logstop", ""),
    ("%notebook n.ipynb", ""),
    ("%cd -q -", ""),
]
#: Not run here: they ask the user, or need the Internet or a program that may be missing.
OTHER_MAGICS = """
conda debug ed edit mamba man micromamba pastebin pip pylab pypy python2 qtconsole ruby uv xdel
"""


def test_magics_of_ipython_use_the_notebooks_folder(one_board: Kernel, tmp_path: Path):
    one_board.run(f"%cd -q {tmp_path}")
    for cell, shown in FILE_MAGICS:
        status, outputs = one_board.run(cell)
        assert (status, shown in texts(outputs)) == ("ok", True), (cell, texts(outputs))
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.py",
        "b.py",
        "c.py",
        "log.txt",
        "n.ipynb",
    }


def test_all_magics_of_ipython_are_in_the_tables(one_board: Kernel):
    code = """
    %%host
    def is_magic(function):
        return type(function).__name__ not in ("Alias", "MagicAlias")

    kinds = get_ipython().magics_manager.magics.values()
    ' '.join(name for kind in kinds for name, function in kind.items() if is_magic(function))
    """
    names = one_board.run(textwrap.dedent(code))[1][-1].text
    known = set(names.strip("'").split())
    tested = {name for cell, _ in MAGICS + FILE_MAGICS for name in re.findall(r"%([\w!]+)", cell)}
    tested |= {"reset"}  # see test_reset_of_the_outputs
    ours = {name for name in known if name.startswith("board")} | {"parameters"}
    ours |= {name for name in known if name.startswith("fleet")}
    assert known - ours - tested - set(OTHER_MAGICS.split()) == set()


def test_time_is_that_of_the_run_on_the_boards(kernel: Kernel):
    outputs = kernel.run("%%time\nimport time\ntime.sleep(0.3)\nprint('slept')")[1]
    assert "slept" in texts(outputs)
    wall = texts(outputs).rpartition("Wall time: ")[2].split()
    assert (wall[1], float(wall[0]) >= 300) == ("ms", True)


def test_timeit_measures_on_each_board(kernel: Kernel):
    cell = "%%timeit -n1 -r2 import time; t = 5\ntime.sleep_ms(t)"
    lines = texts(kernel.run(cell)[1]).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["demo-1", "demo-2", "demo-3"]
    assert all(4 <= float(line.split()[1]) < 100 and line.split()[2] == "ms" for line in lines)


def test_timeit_warns_of_runs_that_differ(one_board: Kernel):
    assert "ms ± " in texts(one_board.run("%timeit -n1 -r3 __import__('time').sleep_ms(3)")[1])
    one_board.run("import time\ntimes = [1, 1, 90]")
    shown = texts(one_board.run("%timeit -n1 -r3 time.sleep_ms(times.pop())")[1])
    assert "The slowest run took" in shown
    assert shown.endswith("(mean ± std. dev. of 3 runs, 1 loop each)\n")


def test_timeit_returns_its_result_and_names_errors_of_boards(one_board: Kernel):
    one_board.run("t = %timeit -o -q -n3 -r2 'a'")
    assert one_board.run("%%host\nt.loops, t.repeat")[1][0].text == "(3, 2)"
    status, outputs = one_board.run("%timeit 1/0")
    assert status == "error"
    assert "ZeroDivisionError" in texts(outputs)
    assert "__cm_timeit__" not in texts(one_board.run("dir()")[1])


@pytest.mark.parametrize(
    "cell",
    [
        "%timeit -n1 -r1 await read()",
        "%%timeit -n1 -r1\nawait read()",
        "%%timeit -n1 -r1 await read()\n1",
        "%%timeit -n1 -r1\nasync with lock: pass",
    ],
)
def test_timeit_refuses_code_that_awaits(one_board: Kernel, cell: str):
    status, outputs = one_board.run(cell)
    assert (status, "cannot time code that awaits" in texts(outputs)) == ("error", True)


def test_capture_keeps_what_a_board_prints_and_its_value(one_board: Kernel):
    assert one_board.run("%%capture said\nprint('hidden')\n6*7") == ("ok", [])
    code = "%%host\nsaid.stdout.endswith('hidden\\n'), said.outputs[0].data['text/plain']"
    assert one_board.run(code)[1][0].text == "(True, '42')"


def test_capture_keeps_what_several_boards_print(kernel: Kernel):
    assert kernel.run("%%capture said\nprint('hidden')") == ("ok", [])
    shown = kernel.run("%%host\nsaid.outputs[0].data['text/plain']")[1][0].text
    assert "demo-[1-3]" in shown
    assert "hidden" in shown


def test_magic_assigns_the_value_of_a_board(one_board: Kernel):
    one_board.run("r = %time [1, 2]")
    assert one_board.run("%%host\nr")[1][0].text == "[1, 2]"


def test_error_below_a_magic_is_that_of_the_board(one_board: Kernel):
    status, outputs = one_board.run("%%time\nx = 1\n1/0")
    assert status == "error"
    assert outputs[-1].text.endswith(
        "line 2, in <module>\n    1/0\nZeroDivisionError: divide by zero"
    )


def test_magic_is_interrupted_on_the_boards(one_board: Kernel):
    def stop(output: Output) -> None:
        if "going" in output.text:
            one_board.interrupt()

    status, outputs = one_board.run("%%time\nprint('going')\nwhile True: pass", watch=stop)
    assert status == "error"
    assert outputs[-1].text == "KeyboardInterrupt: the cell was stopped on demo-1."
    assert one_board.run("6*7")[1][-1].text == "42"


def test_last_values_are_those_of_ipython(one_board: Kernel):
    one_board.run("6*7")
    one_board.run("[1, 2]")
    one_board.run("x = 1")
    assert one_board.run("%%host\n_, __, list(Out.values())[-2:]")[1][0].text == (
        "([1, 2], 42, [42, [1, 2]])"
    )


def test_last_value_of_several_boards_is_their_results(kernel: Kernel):
    kernel.run("6*7")
    assert kernel.run("%%host\n_['demo-2'].value")[1][0].text == "42"


def test_last_values_can_be_used_on_boards(one_board: Kernel):
    count = one_board.request("6*7")[0]["execution_count"]
    assert one_board.run("_ + 1")[1][-1].text == "43"
    assert one_board.run("__ + _")[1][-1].text == "85"
    assert one_board.run(f"def f():\n    return _{count}\nf()")[1][-1].text == "42"
    assert one_board.run("%%host\n'of the host'")[1][-1].text == "'of the host'"
    assert one_board.run("%%time\n_[:2]")[1][-1].text == "'of'"
    assert "1 loop each" in texts(one_board.run("%timeit -n1 -r1 _[:2]")[1])
    assert one_board.run("%%board demo-[1-2]  # both\n[_, _]")[0] == "ok"
    for cell in ("_", "%timeit _", "%%time\n_"):
        shown = one_board.run(cell)[1][-1].text
        assert "_ is the results of several boards" in shown
        assert "%%host: _['demo-1'].value." in shown
    one_board.run("%%host\nprint")
    shown = one_board.run("_")[1][-1].text
    assert "_ is of type builtin_function" in shown
    assert "It can be used in a cell with `%%host`." in shown


def test_results_in_the_notebook_are_explained_where_a_board_lacks_them(one_board: Kernel):
    one_board.run("r = %board demo-[1-2] 6*7")
    shown = one_board.run("r")[1][-1].text
    assert "NameError" in shown
    assert "The notebook has r: use a cell with `%%host`." in shown


def test_empty_board_cell_is_an_error(one_board: Kernel):
    status, shown = one_board.run("%%board demo-1\n  \n")
    assert status == "error"
    assert "The cell is empty" in shown[-1].text
    assert one_board.run("%%board --fresh demo-1\n")[0] == "ok"
    assert one_board.run("")[0] == "ok"


def test_last_value_is_the_users_once_a_cell_has_bound_it(one_board: Kernel):
    one_board.run("6*7")
    one_board.run("for _ in range(3): pass")
    assert one_board.run("_")[1][-1].text == "2"
    one_board.run("[_ for _ in range(9)]")
    assert one_board.run("_")[1][-1].text == "2"
    one_board.run("del _")
    assert one_board.run("_")[1][-1].text == "2"  # the last value of a cell again
    assert one_board.run("_ + 1")[1][-1].text == "3"
    assert one_board.run("_ + 1")[1][-1].text == "4"


def test_line_numbers_are_those_of_the_cell(one_board: Kernel):
    for cell in ("\n\n1/0", "%pwd\n# note\n1/0", ">>> x = 1\n>>> y = 1\n>>> 1/0"):
        assert "line 3, in <module>" in one_board.run(cell)[1][-1].text


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("x = 1\n!ls", "`!` runs a command of this computer"),
        ("x = 1\nfiles = !ls", "`!` runs a command of this computer"),
        ("x = 1\nx?", "question mark"),
        ("x = 1\n%%board demo-2\n2", "cell magic must be the first line"),
        ("x = 1\n%time x", "Magics run in the notebook"),
    ],
)
def test_lines_for_ipython_below_code_get_a_hint(kernel: Kernel, cell: str, hint: str):
    status, outputs = kernel.run(cell)
    assert status == "error"
    assert "(line 2)" in outputs[0].text
    assert hint in outputs[0].text


def test_silent_request_shows_no_value_and_does_not_count(one_board: Kernel):
    before, _ = one_board.request("5")
    for code in ("print('said')\n5", "%%board demo-[1-2]\nprint('said')\n5"):
        reply, outputs = one_board.request(code, silent=True)
        assert {each.kind for each in outputs} == {"stream"}
        assert "5" not in texts(outputs)
        assert reply["execution_count"] == before["execution_count"]


@pytest.mark.parametrize("code", ["5", "%%host\n5"])
def test_request_without_history_counts_as_its_result(one_board: Kernel, code: str):
    first, _ = one_board.request("5")
    reply, outputs = one_board.request(code, store_history=False)
    assert outputs[-1].content["execution_count"] == reply["execution_count"]
    assert one_board.request("5")[0]["execution_count"] == first["execution_count"] + 1


def test_user_expressions_are_evaluated_where_the_cell_ran(one_board: Kernel):
    expressions = {"a": "x + 1", "b": "nobody_knows", "c": "= 1"}
    values = one_board.request("x = 41", user_expressions=expressions)[0]["user_expressions"]
    assert values["a"]["data"] == {"text/plain": "42"}
    assert (values["b"]["status"], values["b"]["ename"]) == ("error", "BoardError")
    assert values["c"]["ename"] == "CellSyntaxError"
    reply, _ = one_board.request("%%host\nx = 'host'", user_expressions={"a": "x"})
    assert reply["user_expressions"]["a"]["data"] == {"text/plain": "'host'"}


def test_parameters_are_assigned_in_the_notebook_and_on_boards(kernel: Kernel):
    assert kernel.run("%%parameters\n# Parameters\nlimit = 5\n") == ("ok", [])
    assert kernel.run("limit")[1][0].text.endswith("\n5")
    assert kernel.run("%%host\nlimit")[1][0].text == "5"


def test_events_of_ipython_are_triggered(one_board: Kernel):
    code = (
        "%%host\nseen = []\nevents = get_ipython().events\n"
        "def before(info): seen.append(info.raw_cell)\n"
        "def after(result): seen.append((result.success, result.execution_count))\n"
        "events.register('pre_run_cell', before)\nevents.register('post_run_cell', after)\n"
        "seen.clear()"
    )
    one_board.run(code)
    one_board.run("1/0")
    undo = "events.unregister('pre_run_cell', before); events.unregister('post_run_cell', after)"
    shown = one_board.run(
        f"%%host\n{undo}\n[each for each in seen if each in ('1/0',) or each[:1] == (False,)]"
    )[1][0].text
    assert shown.startswith("['1/0', (False, ")


def test_kernel_works_beside_modules_with_names_of_libraries(tmp_path: Path, kernel: Kernel):
    folder = tmp_path / "work"
    folder.mkdir()
    names = "logging select types json secrets queue rich cloudmanager cm_magics anywidget zmq mine"
    for name in names.split():
        (folder / f"{name}.py").write_text("OWN = 1\n")
    with running_kernel(tmp_path, cwd=folder) as other:
        assert other.run("%board_use demo-1")[0] == "ok"
        assert other.run("6*7")[1][-1].text == "42"
        assert other.run("%%host\nimport mine\nmine.OWN")[1][-1].text == "1"
        asked = other.client.execute("exit", allow_stdin=False)
        assert other.reply(asked)["payload"][0]["source"] == "ask_exit"


def write_notebook(path: Path, *cells: Any) -> None:
    """Write a notebook of this kernel that runs its cells on demo-1."""
    metadata = {
        "kernelspec": {"name": "cm_kernel", "display_name": "", "language": "micropython"},
        "language_info": {"name": "micropython"},
    }
    first = nbformat.v4.new_code_cell("%board_use demo-1")
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *cells], metadata=metadata), path)


def run_program(shared: Kernel, name: str, *words: object, **options: Any) -> str:
    """Run a program of Jupyter with the kernel of the tests; return what it prints."""
    command = [str(Path(sys.executable).with_name(name)), *map(str, words)]
    environment = {**os.environ, "JUPYTER_PATH": str(shared.folder / "share/jupyter")}
    environment["PYTHONPATH"] = PATHS
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, **options
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_reset_of_the_outputs(one_board: Kernel):
    """It stands at the end: IPython does not assign `_` any more after it."""
    assert "Flushing output" in texts(one_board.run("%reset -f out")[1])


def test_parameters_are_written_for_the_kernel():
    from papermill.engines import papermill_engines  # loads the engine of the kernel
    from papermill.translators import papermill_translators

    assert papermill_engines.get_engine("cm_kernel")
    translator = papermill_translators.find_translator("cm_kernel", "micropython")
    cell = translator.codify({"n": 5, "target": "demo-*"})
    assert cell == '%%parameters\n# Parameters\nn = 5\ntarget = "demo-*"\n'


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_papermill_gives_parameters_to_a_notebook(shared: Kernel, tmp_path: Path):
    tagged = nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]})
    write_notebook(tmp_path / "in.ipynb", tagged, nbformat.v4.new_code_cell("n + 1"))
    words = tmp_path / "in.ipynb", tmp_path / "out.ipynb", "-p", "n", "5"
    run_program(shared, "papermill", *words)
    cells = nbformat.read(tmp_path / "out.ipynb", 4).cells
    assert cells[2].source == "%%parameters\n# Parameters\nn = 5\n"
    assert cells[-1].outputs[-1].data == {"text/plain": "6"}


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_kernel_runs_in_jupyter_console(shared: Kernel):
    said = "%board_use demo-1\n6*7\nexit\n"
    words = "--kernel", "cm_kernel", "--simple-prompt"
    assert "42" in run_program(shared, "jupyter-console", *words, input=said)


@pytest.mark.soak
@pytest.mark.timeout(180)
@pytest.mark.parametrize("program", ["execute --inplace", "nbconvert --execute --inplace"])
def test_kernel_runs_notebooks_in_jupyter(shared: Kernel, tmp_path: Path, program: str):
    path = tmp_path / "in.ipynb"
    write_notebook(path, nbformat.v4.new_code_cell("6*7"))
    command, *options = program.split()
    run_program(shared, f"jupyter-{command}", *options, path)
    assert nbformat.read(path, 4).cells[-1].outputs[-1].data == {"text/plain": "42"}
