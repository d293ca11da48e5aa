"""The magics in an IPython shell of this process, without a kernel."""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from traitlets.config import Config

import cm_magics
from cloudmanager import (
    BoardError,
    Fleet,
    FleetError,
    JobGroup,
    NoSuchBoard,
    Results,
    ServerUnreachable,
)
from cloudmanager.client.cells import prepare_cell
from cloudmanager.virtual.virtual_boards import VirtualBoards
from cm_magics.magic_line import option_names
from cm_magics.magic_options import make_board_parser, make_result_parser

#: Consoles still call the deprecated `ip.complete`.
pytestmark = pytest.mark.filterwarnings("ignore:`Completer.complete`:PendingDeprecationWarning")

SHARED_BOARDS = ("demo-1", "demo-2", "demo-3")
HEAD = "── demo-[1-2] ──────────────────────────────────\n"


class Shell:
    """An IPython shell whose output is captured."""

    def __init__(self, ip: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
        self.ip = ip
        self._capsys = capsys
        self.ran: ExecutionResult

    def run(self, code: str) -> str:
        """Run a cell; return its output."""
        self._capsys.readouterr()
        self.ran = self.ip.run_cell(code, store_history=True)
        out, errors = self._capsys.readouterr()
        return (out + errors).strip("\n")

    def complete(self, line: str) -> list[str]:
        return list(self.ip.complete("", line, len(line))[1])

    @property
    def error(self) -> BaseException | None:
        return self.ran.error_in_exec or self.ran.error_before_exec


@pytest.fixture(scope="module")
def ip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        patch.setattr(sys, "displayhook", sys.displayhook)
        InteractiveShell.clear_instance()
        yield InteractiveShell.instance(config=config)
        InteractiveShell.clear_instance()


@pytest.fixture
def shell(ip: Any, boards: VirtualBoards, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    ip.run_line_magic("load_ext", "cm_magics")
    yield Shell(ip, capsys)
    if "cm_magics" in ip.extension_manager.loaded:
        ip.run_line_magic("unload_ext", "cm_magics")
    ip.reset()


# Values


def test_cell_shows_its_value(shell: Shell):
    assert shell.run("%%board demo-1\n6*7") == "42"


def test_line_shows_its_value_once(shell: Shell):
    assert shell.run("%board demo-1 6*7").count("42") == 1


def test_assigned_results_are_shown_once(shell: Shell):
    assert shell.run("r = %board demo-[1-2] 6*7") == f"{HEAD}42"
    assert shell.run("r").count("42") == 1
    assert shell.run("r['demo-1'].value") == f"Out[{shell.ran.execution_count}]: 42"
    assert isinstance(shell.ip.user_ns["r"], Results)


def test_results_of_a_line_are_the_value_of_its_cell(shell: Shell):
    shell.run("%board demo-1 6*7")
    result: Any = shell.ran.result
    assert isinstance(result, Results)
    assert shell.run("_.value").endswith("42")


def test_results_from_the_library_are_formatted_alike(shell: Shell):
    shell.run("import cm_magics\nr = cm_magics.fleet()['demo-[1-2]'].run('6*7')")
    assert shell.run("r").endswith(f"{HEAD}42")


def test_out_stores_the_results(shell: Shell):
    shell.run("%%board demo-[1-2] -o kept\n6*7")
    assert shell.ip.user_ns["kept"].to_dict() == {"demo-1": 42, "demo-2": 42}


def test_out_stores_the_results_of_a_failure(shell: Shell):
    shell.run("%%board demo-1 --out kept\n1/0")
    assert shell.ip.user_ns["kept"]["demo-1"].status == "error"


def test_code_of_a_line_is_not_changed(shell: Shell):
    shell.run("y = 5\nr = %board demo-1 ('a  b', \"c\", {1: 2}, '$y {y}')")
    assert shell.ip.user_ns["r"].value == ("a  b", "c", {1: 2}, "$y {y}")


def test_long_output_names_the_option_that_stores_it(shell: Shell):
    output = shell.run("%%board demo-[1-2]\nfor n in range(1001): print(n)")
    assert output.startswith(f"{HEAD}… 1 more line, `-o r` stores them in r['demo-1'].stdout")
    output = shell.run("%%board demo-[1-2] -o kept\nfor n in range(1001): print(n)")
    assert output.startswith(f"{HEAD}… 1 more line, in kept['demo-1'].stdout")


# Errors


def test_error_of_one_board_is_shown_once_with_only_its_traceback(shell: Shell):
    output = shell.run("%%board demo-1\nprint('hi')\n\ndef f():\n    return 1/0\nf()")
    assert output.split("\n") == [
        "hi",
        "BoardError: demo-1",
        "Traceback (most recent call last):",
        '  File "<cell>", line 5, in <module>',
        "    f()",
        '  File "<cell>", line 4, in f',
        "    return 1/0",
        "ZeroDivisionError: divide by zero",
    ]
    assert isinstance(shell.error, BoardError)


def test_errors_of_several_boards_are_one_error(shell: Shell):
    output = shell.run("%%board demo-[1-2]\n1/0")
    assert output.count("Traceback") == 1
    assert output.endswith(
        "\nFleetError: demo-[1-2] failed (2 of 2 boards): ZeroDivisionError: divide by zero"
    )
    assert isinstance(shell.error, FleetError)


def test_error_of_one_among_several_boards_is_one_line(shell: Shell):
    shell.run("%board demo-2 odd = 1")
    output = shell.run("%%board demo-[1-2]\nif 'odd' in globals():\n    1/0")
    assert output.endswith(
        "\nBoardError: demo-2 failed (1 of 2 boards): ZeroDivisionError: divide by zero"
    )


def test_timeout_is_an_error(shell: Shell):
    output = shell.run("%%board demo-1 --timeout 0.2\nwhile True: pass")
    assert output.startswith("BoardError: demo-1 · timeout\n")
    shell.run("%board demo-2 odd = 1")
    output = shell.run(
        "%%board demo-[1-2] --timeout 0.2\nif 'odd' in globals():\n  while True: pass"
    )
    assert output.endswith("\nBoardError: demo-2 failed (1 of 2 boards): timeout")


def test_shown_errors_are_not_raised(shell: Shell):
    output = shell.run("%%board demo-1 --on-error show\n1/0")
    assert output.startswith("── demo-1 · error ─")
    assert output.endswith("ZeroDivisionError: divide by zero")
    assert shell.ran.success


def test_ignored_errors_are_neither_shown_nor_raised(shell: Shell):
    assert shell.run("%%board demo-1 --on-error ignore -o kept\nprint('hi')\n1/0") == "hi"
    assert shell.ran.success
    assert not shell.ip.user_ns["kept"].ok


def test_syntax_error_points_into_the_cell(shell: Shell):
    output = shell.run("%%board demo-1\n1\nx = = 3")
    assert output.split("\n")[:3] == [
        "CellSyntaxError: invalid syntax (line 2)",
        "    x = = 3",
        "        ^",
    ]


def test_unknown_board_suggests_a_similar_name(shell: Shell):
    output = shell.run("%board dmo-1 1")
    assert output.startswith("NoSuchBoard: No board is called dmo-1. Did you mean demo-1?")
    assert isinstance(shell.error, NoSuchBoard)


def test_malformed_target_is_an_error(shell: Shell):
    assert shell.run("%%board demo-[1-\n1").startswith("TargetError: This bracket is not closed.")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%board", "UsageError: There is no target: write `%board TARGET CODE`."),
        ("%board demo-1", "UsageError: No code follows the target demo-1: write `%board TARGET"),
        ("%board 6*7", "UsageError: No code follows the target 6*7: write `%board TARGET"),
        ("%%board\n1", "UsageError: There is no target: write it after the magic's name, or"),
        ("%board_ls", "UsageError: There is no target: write it after the magic's name, or"),
        ("%%board --timeot 5\n1", "UsageError: There is no option --timeot."),
    ],
)
def test_wrong_usage_is_one_line(shell: Shell, cell: str, message: str):
    assert shell.run(cell).startswith(message)
    assert not shell.ran.success


def test_unreachable_server_is_one_line(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    cm_magics.magics.close_fleet()
    monkeypatch.setenv("CM_URL", "http://127.0.0.1:1")
    output = shell.run("%board demo-1 1")
    assert output.startswith("ServerUnreachable: No server at http://127.0.0.1:1 (from CM_URL)")
    assert "\n" not in output
    assert isinstance(shell.error, ServerUnreachable)
    assert not [name for name in shell.complete("%board de") if name.startswith("demo")]
    cm_magics.magics.close_fleet()


def test_raised_errors_can_be_pickled(shell: Shell):
    shell.run("%board demo-1 1/0")
    assert str(pickle.loads(pickle.dumps(shell.error))) == str(shell.error)


def test_different_failures_are_counted(shell: Shell):
    shell.run("%board demo-2 odd = 1")
    output = shell.run("%%board demo-[1-2]\nif 'odd' in globals():\n    1/0\nelse:\n    {}[1]")
    assert output.endswith("\nFleetError: demo-[1-2] failed (2 of 2 boards)")


# Variables that are sent with a cell


def test_variables_are_sent_to_boards(shell: Shell):
    shell.run("pins, name = (2, 4), 'twelve'")
    assert shell.run("%%board demo-1 -i pins,name\n(name, pins[1])") == "('twelve', 4)"
    assert shell.run("r = %board -i pins --input name demo-1 name, pins[1]") == "('twelve', 4)"
    assert shell.run("r = %board demo-1 pins") == "(2, 4)"  # they stay, as all variables do


def test_variables_are_sent_with_cells_that_await(shell: Shell):
    shell.run("pause = 0.01")
    output = shell.run("%%board demo-1 -i pause\nimport asyncio\nawait asyncio.sleep(pause)\npause")
    assert output == "0.01"


def test_variables_do_not_change_line_numbers(shell: Shell):
    shell.run("a = b = 0")
    output = shell.run("%%board demo-1 -i a,b\n\n1/a")
    assert '  File "<cell>", line 2, in <module>\n    1/a\n' in output


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "x = object()\n%board -i x demo-1 1",
            "UsageError: x is of type object: boards can receive",
        ),
        ("number = 1\n%board -i nubmer demo-1 1", "UsageError: -i: the notebook has no variable n"),
        ("%board -i 1x demo-1 1", "UsageError: -i/--input: '1x' is not a valid variable name."),
        (
            "%board --wait no demo-1 1",
            "UsageError: --wait: 'no' is not a positive number of seconds.",
        ),
        ("%board --progress-after x demo-1 1", "UsageError: --progress-after: 'x' is not a number"),
        ("%board --progress-after nan demo-1 1", "UsageError: --progress-after: 'nan' is not a n"),
        (
            "%board --group-outputs bord demo-1 1",
            "UsageError: --group-outputs: 'bord' is not valid",
        ),
        ("%board_result", "UsageError: No cell was submitted with --noblock yet"),
        (
            "x = 1\n%board_result x",
            "UsageError: x is not a cell that was submitted with --noblock.",
        ),
        ("%board_result x7", "UsageError: x7 is not a cell that was submitted with --noblock."),
    ],
)
def test_wrong_values_are_one_line(shell: Shell, cell: str, message: str):
    assert shell.run(cell).startswith(message)
    assert not shell.ran.success


def test_missing_variable_suggests_a_similar_name(shell: Shell):
    assert shell.run("number = 1\n%board -i nubmer demo-1 1").endswith("Did you mean number?")


# Cells with --noblock


def test_noblock_returns_the_jobs_for_board_result(shell: Shell):
    output = shell.run("%%board demo-[1-2] --noblock\nimport time\ntime.sleep(0.3)\n6*7")
    found = re.fullmatch(
        r"Out\[\d+\]: <JobGroup: jobs (\d+-\d+) on demo-\[1-2\], 2 running>", output
    )
    assert found
    for _ in range(2):  # results may be shown more than once
        assert shell.run("r = %board_result") == f"{HEAD}42"
    assert shell.run(f"r = %board_result {found[1].partition('-')[0]}") == f"{HEAD}42"
    assert shell.run("%board_result").count("42") == 1
    assert isinstance(shell.ran.result, Results)


def test_noblock_cell_may_have_a_name(shell: Shell):
    shell.run("%%board demo-1 -a -o first\n1")
    shell.run("r = %board -a demo-1 2")
    assert not isinstance(shell.ip.user_ns["r"], Results)
    assert re.fullmatch(r"<JobGroup: job \d+ on demo-1, (running|ok)>", repr(shell.ip.user_ns["r"]))
    assert shell.run("%board_result first -o results") == "1"
    assert shell.ip.user_ns["results"].value == 1
    assert shell.run("r = %board_result r") == "2"
    assert shell.ip.user_ns["r"].to_dict() == {"demo-1": 2}


def test_failure_of_a_noblock_cell_is_raised_by_board_result(shell: Shell):
    shell.run("%%board demo-1 -a\n1/0")
    assert shell.ran.success
    assert shell.run("%board_result").endswith("ZeroDivisionError: divide by zero")
    assert isinstance(shell.error, BoardError)
    assert shell.run("%board_result --on-error show").startswith("── demo-1 · error ─")
    assert shell.ran.success


# Grouping


def test_outputs_may_be_grouped_by_board(shell: Shell):
    output = shell.run("%%board demo-[1-2] --group-outputs board\n6*7")
    assert output.split("\n") == [
        *("── demo-1 ".ljust(48, "─"), "42", ""),
        *("── demo-2 ".ljust(48, "─"), "42"),
    ]


def test_outputs_may_be_in_order_of_arrival(shell: Shell):
    output = shell.run("%%board demo-1 --group-outputs order\nprint('hi')\n6*7")
    assert output == "demo-1  hi\ndemo-1  Out: 42"


# Other options


def test_local_also_runs_the_cell_in_the_notebook(shell: Shell):
    shell.run("import sys")
    output = shell.run("%%board demo-[1-2] --local\nimport sys\nsys.implementation.name")
    assert output.split("\n") == [
        "── here ".ljust(48, "─"),
        f"Out[{shell.ran.execution_count}]: 'cpython'",
        HEAD.strip(),
        "'micropython'",
    ]


def test_local_failure_is_shown_once_and_raised_after_the_boards_are_done(shell: Shell):
    output = shell.run("%%board demo-1 --local -o kept\nimport sys\nsys.getrecursionlimit()")
    assert isinstance(shell.error, BoardError)  # MicroPython has no such function
    output = shell.run("%%board demo-1 --local -o kept\nimport micropython\n7")
    assert isinstance(shell.error, ModuleNotFoundError)
    assert output.count("Traceback") == 1
    assert output.endswith("\n7\nModuleNotFoundError: the cell failed here.")
    assert shell.ip.user_ns["kept"].value == 7
    output = shell.run("%%board demo-1 --local --on-error show\nimport micropython\n7")
    assert output.endswith("\n7")
    assert shell.ran.success


def test_local_interrupt_interrupts_the_boards(shell: Shell):
    code = "try:\n    import micropython\nexcept ImportError:\n    raise KeyboardInterrupt\n"
    shell.run(f"%%board demo-1 --local -o kept\n{code}while True: pass")
    assert shell.ip.user_ns["kept"]["demo-1"].status == "interrupted"


def test_wait_waits_for_an_offline_board(shell: Shell, fleet: Fleet):
    fleet.enrol(["late-1"])
    output = shell.run("%%board late-1 --wait 0.1\n1")
    assert output.startswith("BoardOffline:")
    assert "did not connect within 0.1 s" in output
    fleet.revoke("late-1")


def test_fresh_clears_variables_of_earlier_cells(shell: Shell):
    shell.run("%board demo-3 left = 1")
    assert shell.run("%%board demo-3 --fresh\n'left' in globals()") == "False"


def test_comment_may_replace_the_magic(shell: Shell):
    assert shell.run("# %%board demo-1\n6*7") == "42"
    assert shell.run("\n\n#%%board demo-1 --timeout 5\n6*7") == "42"
    assert shell.run("# about\n# %%board demo-1\n7").endswith(": 7")
    assert shell.run("# %%boards demo-1\n7").endswith(": 7")
    assert shell.run("") == ""


# The fleet, and the default target


def test_boards_are_shown_as_table(shell: Shell):
    lines = shell.run("%boards demo-[1-3]").split("\n")
    assert lines[0].split()[:4] == ["name", "state", "platform", "MicroPython"]
    assert [line.split()[:2] for line in lines[2:]] == [[f"demo-{n}", "idle"] for n in (1, 2, 3)]
    assert len(shell.run("%boards demo-2").split("\n")) == 3


def test_chosen_boards_are_used_by_cells_without_a_target(shell: Shell):
    assert shell.run("%board_use").startswith("No boards are chosen:")
    output = shell.run("%board_use demo-*!demo-3")
    assert output == "%%board without a target means demo-*!demo-3, which is demo-[1-2]."
    assert shell.run("%board_use") == output
    assert shell.run("%%board --timeout 5\n1") == f"{HEAD}1"
    assert shell.run("%%board demo-3\n1") == "1"


def test_unknown_boards_are_not_chosen(shell: Shell):
    assert shell.run("%board_use demo-1") == "%%board without a target means demo-1."
    assert shell.run("%board_use dmo-2").startswith("NoSuchBoard")
    assert shell.run("%board_use") == "%%board without a target means demo-1."


def test_choosing_boards_lists_the_offline_ones(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    boards = [{"name": "lab-1", "connected_since": 1.0}, {"name": "lab-2", "connected_since": None}]
    monkeypatch.setattr(Fleet, "boards", lambda _fleet, _target: boards)
    assert shell.run("%board_use lab-[1-2]").endswith("which is lab-1; not connected: lab-2.")


# Variables in lines


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("%board_use {target}", "means demo-1"),
        ("%board_use $target", "means demo-1"),
        ("%board_use demo-{number}  # the second", "means demo-2"),
        ("%%board {target}\n6*7", "42"),
        ("%%board $target --timeout {seconds}\n6*7", "42"),
        ("%%board {names}\n6*7", "42"),
        ("%board {target} 6*7", "42"),
        ("%board {names[1]} {'a': 6}['a']*7", "42"),
        ("%board $target 6*7", "42"),
        ("%board --timeout {seconds} {target} 6*7", "42"),
        ("%board {target} --timeout $seconds {'a': 6}['a']*7", "42"),
        ("%%board {target}  # not a {variable}\n6*7", "42"),
        ("%boards {names}", "demo-2"),
        ("%board_info {target}", "demo-1"),
        ("%board_cp {target} {file} :", "written"),
        ("%board_ls {target} :{folder}", "/cm.json"),
        ("%board_rm {target} :$file", ""),
        ("%%board_writefile {target} :{file}\nx = {1}", ""),
        ("%board_packages {target}", ""),
        ("%board_plot {target}", ""),
        ("%board_logs {target}", ""),
        ("%fleet {target}", "demo-1"),
    ],
)
def test_variables_of_the_notebook_are_replaced(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, shown: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("x = 1\n")
    shell.run("folder, target, number, seconds, file = '/', 'demo-1', 2, 5, 'a.py'")
    shell.run("names = ['demo-1', 'demo-2']")
    if "board_rm" in line:
        shell.run("%board_cp demo-1 a.py :")
    output = shell.run(line)
    assert shell.error is None, output
    assert shown in output
    shell.run("%board_use demo-[1-3]")


def test_local_variables_of_a_function_are_replaced(shell: Shell):
    code = "def f(where):\n    r = %board {where} 6*7\n    return r\nf('demo-2')['demo-2'].value"
    assert shell.run(code).endswith("42")


@pytest.mark.parametrize("cell", ["%%board demo-1\r\n6*7\r\n", "# why\n%%board demo-1\n6*7", "6*7"])
def test_byte_order_mark_before_a_cell_is_left_out(shell: Shell, cell: str):
    assert shell.run("\ufeff" + cell).endswith("42")


def test_missing_variable_is_named(shell: Shell):
    shell.run("known = 'demo-1'")
    lines = "%board_use {nobody}", "%board {nobody} 1", "%%board {nobody}\n1", "%boards $nobody"
    for line in (*lines, "%board_cp {known} {nobody} :", "%%board_writefile $known :{nobody}\n1"):
        assert "the notebook has no variable nobody." in shell.run(line)


def test_brace_and_dollar_sign_are_written_twice(shell: Shell):
    shell.run("%%board_writefile demo-1 :a{{1}}$$b.txt\nx\n")
    assert "a{1}$b.txt" in shell.run("%board_ls demo-1")
    shell.run("%board_rm demo-1 :a{{1}}$$b.txt")
    assert shell.error is None


def test_last_values_are_those_of_ipython(shell: Shell):
    shell.run("%%board demo-1\n6*7")
    assert shell.run("_").endswith("42")
    shell.run("%%board demo-[1-2]\n[1, 2]")
    assert shell.run("_['demo-2'].value, __").endswith("([1, 2], 42)")
    shell.run("'mine'")
    shell.run("%%board demo-1\nx = 1")
    assert shell.run("_").endswith("'mine'")
    assert shell.run("%%board demo-1 -i _\n_ + ' too'") == "'mine too'"
    assert shell.run("list(Out.values())[-1]").endswith("'mine too'")


def test_logs_are_shown(shell: Shell, fleet: Fleet):
    fleet.enrol(["quiet-1"])
    assert shell.run("%board_logs quiet-1") == "quiet-1: nothing was printed outside of cells."
    assert "is not a span" in shell.run("%board_logs quiet-1 --since yesterday")
    assert "There is no target" in shell.run("%board_logs")


def test_comment_above_a_magic_is_accepted(shell: Shell):
    assert shell.run("# why\n\n# and how\n%%board demo-1  # one\n6*7") == "42"
    assert shell.run("  %%board demo-1\n  6*7") == "42"


# Help and completion


def test_help_lists_options(shell: Shell):
    text = str(shell.ip.find_cell_magic("board").__doc__)
    assert all(word in text for word in ("--out", "--timeout", "--on-error", "%board_use"))
    text = str(shell.ip.find_line_magic("board_result").__doc__)
    assert all(word in text for word in ("--out", "--on-error", "--group-outputs", "interrupt()"))


def test_every_magic_and_option_is_in_the_docs(shell: Shell):
    text = (Path(__file__).parents[2] / "docs/magics.md").read_text()
    for kind, magics in cm_magics.BoardMagics.magics.items():
        signs = {"line": "%", "cell": "%%"}[kind]
        assert [name for name in magics if f"`{signs}{name} " not in text] == []
    for parser in (make_board_parser(), make_result_parser()):
        options = [name for name in option_names(parser) if f"`{name}" not in text]
        assert options == []


@pytest.mark.parametrize("jedi", [True, False])
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%%board demo", ["demo-1", "demo-2", "demo-3"]),
        ("%board demo-1,demo", ["demo-1", "demo-2", "demo-3"]),
        ("%board_use demo-2", ["demo-2"]),
        ("%boards demo-2", ["demo-2"]),
        ("%board --timeout 5 demo-3", ["demo-3"]),
        ("%%board al", ["all"]),
        ("%%board --o", ["--on-error", "--out"]),
        ("%%board --group-outputs ", ["board", "order", "same"]),
        ("%%board -i mine", ["mine_1", "mine_2"]),
        ("%%board -i mine_1,mine_2", ["mine_2"]),
        ("%board_result --gr", ["--group-outputs"]),
        ("%board_result lo", ["long"]),
        ("%%board demo-1 --on-error s", ["show"]),
        ("%%board -o de", []),
    ],
)
def test_tab_completes(shell: Shell, jedi: bool, line: str, found: list[str]):
    shell.ip.Completer.use_jedi = jedi
    shell.ip.user_ns.update(mine_1=1, mine_2=2, long=JobGroup(prepare_cell("1")))
    complete = shell.complete(line)
    assert sorted(complete) == found or (not found and "demo-1" not in complete)
    with provisionalcompleter():
        offered = [each.text for each in shell.ip.Completer.completions(line, len(line))]
    assert set(found) <= set(offered)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("%%board ", ["all", "demo-1", "demo-2", "demo-3", "room=dark"]),
        ("%board_cp ", ["all", "demo-1", "demo-2", "demo-3", "room=dark"]),
        ("r = %board ", ["all", "demo-1", "demo-2", "demo-3", "room=dark"]),
        ("# %%board room=", ["room=dark"]),
        ("%%board demo-1,roo", ["room=dark"]),
        ("%%board demo-* & !demo-2, de", ["demo-1", "demo-2", "demo-3"]),
        ("%%board --on-error ", ["ignore", "raise", "show"]),
        ("%%board demo-1 --on-error=", ["ignore", "raise", "show"]),
        ("%%board demo-1 --on", ["--on-error"]),
        ("%board_rm -", ["--recursive", "-r"]),
        ("%boards {min", ["mine_1", "mine_2"]),
    ],
)
@pytest.mark.parametrize("jedi", [True, False])
def test_nothing_else_is_offered(
    shell: Shell, fleet: Fleet, jedi: bool, line: str, offered: list[str]
):
    shell.ip.Completer.use_jedi = jedi
    shell.ip.user_ns.update(mine_1=1, mine_2=2)
    fleet["demo-2"].label({"room": "dark"})
    with provisionalcompleter():
        found = sorted(each.text for each in shell.ip.Completer.completions(line, len(line)))
    fleet["demo-2"].label({"room": ""})
    assert [each for each in found if each not in _words_of_other_tests(fleet)] == offered


def _words_of_other_tests(fleet: Fleet) -> set[str]:
    """Return the names and labels of boards that other tests left enrolled, not connected."""
    others = [board for board in fleet.boards() if board["name"] not in SHARED_BOARDS]
    labels = {f"{key}={value}" for board in others for key, value in board["labels"].items()}
    return {board["name"] for board in others} | labels


def test_other_lines_are_completed_as_before(shell: Shell):
    shell.ip.user_ns["host_value"] = 1
    for line in ("%%board demo-9", "%%board -o zz", "%%board ", "host_va"):
        with provisionalcompleter():
            found = [each.text for each in shell.ip.Completer.completions(line, len(line))]
    assert found == ["host_value"]


def test_options_of_every_magic_are_offered(shell: Shell):
    line = "%%board --"
    with provisionalcompleter():
        found = {each.text for each in shell.ip.Completer.completions(line, len(line))}
    assert found == {each for each in option_names(make_board_parser()) if each.startswith("--")}


def test_code_is_completed_by_python(shell: Shell):
    shell.ip.Completer.use_jedi = False
    assert "print" in shell.complete("%board demo-1 pri")
    assert "demo-1" not in shell.complete("%board demo-1 de")


# Loading and unloading


def test_unloading_the_extension_removes_everything(shell: Shell):
    shell.run("%unload_ext cm_magics")
    assert "not found" in shell.run("%board demo-1 1")
    assert "demo-1" not in shell.complete("%board demo")
    shell.run("%load_ext cm_magics")
    assert shell.run("%%board demo-1\n1") == "1"
    shell.run("%reload_ext cm_magics")
    assert shell.run("%%board demo-1\n1") == "1"
    shell.run("%unload_ext cm_magics")
    assert shell.run("# %%board demo-1\n7").endswith(": 7")


def test_import_registers_nothing(ip: InteractiveShell):
    assert cm_magics.__name__ in sys.modules
    assert ip.find_line_magic("board") is None


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("%board demo-1 6*7", "42"),
        ("%board demo-1 x = 1", ""),
        ("%board_packages demo-1", "no packages"),
        ("%board_ls demo-1", ""),
    ],
)
def test_results_that_were_shown_have_no_prompt(shell: Shell, line: str, shown: str):
    text = shell.run(line)
    assert "Out[" not in text
    assert text.startswith(shown)
    count = shell.ran.execution_count
    assert isinstance(shell.ip.user_ns["Out"][count], Results)
    assert shell.run("7") == f"Out[{shell.ran.execution_count}]: 7"


def test_terminal_of_ipython_shows_no_empty_prompt(boards: VirtualBoards, tmp_path: Path):
    """IPython in a pty: only there, prompts are drawn by prompt_toolkit."""
    terminal: pexpect.spawn[str] = pexpect.spawn(
        sys.executable,
        ["-m", "IPython", "--no-banner", "--simple-prompt", "--colors=nocolor"],
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "IPYTHONDIR": str(tmp_path), "TERM": "dumb"},
    )
    terminal.logfile_read = shown = io.StringIO()
    for number, line in enumerate(("%load_ext cm_magics", "%board demo-1 6*7", "1000+1"), 1):
        terminal.expect_exact(f"In [{number}]: ")
        terminal.sendline(line)
    terminal.expect_exact("Out[3]: 1001")
    assert "\n42\r\n" in shown.getvalue()
    assert "Out[2]" not in shown.getvalue()
    terminal.sendline("exit")
    terminal.expect(pexpect.EOF)
    terminal.close()


# Names of the notebook


def test_name_that_only_the_notebook_has_is_explained(shell: Shell):
    shell.run("%board demo-[1-2] only_here = 0; del only_here")
    shell.run("only_here = 5")
    one = shell.run("%%board demo-1\nonly_here + 1")
    assert "isn't defined" in one
    assert "The notebook has only_here: use a cell without `%%board`" in one
    assert "`%%board -i only_here TARGET`" in one
    assert "The notebook has only_here" in shell.run("%board demo-[1-2] only_here")
    assert "The notebook has" not in shell.run("%board demo-1 nowhere")
    shell.run("only_here = %board demo-[1-2] 1")
    shown = shell.run("%board demo-1 only_here")
    assert "The notebook has only_here" in shown
    assert "-i" not in shown


def test_value_that_boards_cannot_have_names_where_it_can_be_used(shell: Shell):
    shell.run("value = object()")
    shown = shell.run("%%board -i value demo-1\nvalue")
    assert "boards can receive" in shown
    assert "It can be used in a cell without `%%board`." in shown


def test_magics_reconnect_to_a_restarted_server(
    shell: Shell, start_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cm_magics.magics.close_fleet()
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    with start_server(tmp_path):
        assert shell.run("%boards").startswith("No board is enrolled yet.")
    with start_server(tmp_path):
        shell.run("%boards")  # this may be when the broken link is noticed
        assert shell.run("%boards").startswith("No board is enrolled yet.")
    cm_magics.magics.close_fleet()


def test_session_has_one_fleet(home: Path):
    assert cm_magics.fleet() is cm_magics.fleet()
    cm_magics.magics.close_fleet()
    cm_magics.magics.close_fleet()


def test_dashboard_and_plot_are_text_in_a_terminal(shell: Shell):
    assert "demo-1" in shell.run("%fleet demo-1")
    shell.run("%board demo-2 import cm; cm.emit(level=4)")
    assert shell.run("%board_plot demo-2 level").startswith("Out[")
    assert shell.run("%board_plot demo-2 level --since 1h").startswith("Out[")
    assert "is not a span" in shell.run("%board_plot demo-2 --since yesterday")
    assert "is not a span" in shell.run("%board_plot demo-2 level --since yesterday")
    shell.run("%board_plot demo-9")
    assert isinstance(shell.error, NoSuchBoard)
    assert "There is no target" in shell.run("%board_plot")
    assert "is not closed" in shell.run("%fleet demo-[")
