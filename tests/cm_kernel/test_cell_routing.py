"""Which lines of a cell run on boards, and which on the host."""

from __future__ import annotations

import pytest

from cm_kernel.cell_routing import CellPart, is_host_cell, split_cell


@pytest.mark.parametrize(
    ("cell", "host_lines", "part"),
    [
        ("", [], None),
        ("\n \n", [], None),
        ("# note\n", [], None),
        ("x = 1", [], CellPart("board", "x = 1")),
        ("x = 5 % 3", [], CellPart("board", "x = 5 % 3")),
        ("x = 5\n% 3", [], CellPart("board", "x = 5\n% 3")),
        ("%boards", ["%boards"], None),
        ("!ls\nx", ["!ls\n"], CellPart("board", "\nx")),
        ("r = %board demo-1 1\nx", ["r = %board demo-1 1\n"], CellPart("board", "\nx")),
        ("a, b = !ls\nx", ["a, b = !ls\n"], CellPart("board", "\nx")),
        ("%boards \\\n demo-1\nx", ["%boards \\\n", " demo-1\n"], CellPart("board", "\n\nx")),
        ("\n%boards\n# note\n\nx", ["\n", "%boards\n"], CellPart("board", "\n\n# note\n\nx")),
        ("# note\n%boards\nx", ["# note\n", "%boards\n"], CellPart("board", "\n\nx")),
        ("\nx", [], CellPart("board", "\nx")),
        ("# note\nx", [], CellPart("board", "# note\nx")),
        ("# note\n\n%%board demo-1\nx", [], CellPart("board", "x", "demo-1")),
        ("%boards\n# note\n%%board demo-1\nx", ["%boards\n"], CellPart("board", "x", "demo-1")),
        ("# note\n%%time\nx", [], CellPart("host", "%%time\nx")),
        ("  %%board demo-1\n  if x:\n    y", [], CellPart("board", "if x:\n  y", "demo-1")),
        ("  x\n  y", [], CellPart("board", "x\ny")),
        (">>> x = 1\n>>> x", [], CellPart("board", "x = 1\nx")),
        (">>> if x:\n...     y\n", [], CellPart("board", "if x:\n    y\n")),
        (">>> %%board demo-1\n>>> x", [], CellPart("board", "x", "demo-1")),
        ("In [1]: x", [], CellPart("board", "x")),
        ("exit", [], CellPart("host", "exit")),
        ("quit()", [], CellPart("host", "quit()")),
        ("# bye\nexit(0)\n", [], CellPart("host", "# bye\nexit(0)\n")),
        ("exit_code", [], CellPart("board", "exit_code")),
        ("# what is it\nx?", [], CellPart("question", "x")),
        ("%%board demo-1\nx", [], CellPart("board", "x", "demo-1")),
        ("%%board\nx", [], CellPart("board", "x", "")),
        ("%%board_writefile a.py\nx", [], CellPart("host", "%%board_writefile a.py\nx")),
        ("%%host\nx", [], CellPart("host", "# %%host\nx")),
        ("%%host\n%%time\nx", [], CellPart("host", "%%time\nx")),
        ("%%time\nx", [], CellPart("host", "%%time\nx")),
        ("x?", [], CellPart("question", "x")),
        ("??os.path", [], CellPart("question", "os.path")),
        ("x = 'why?'", [], CellPart("board", "x = 'why?'")),
    ],
)
def test_split(cell: str, host_lines: list[str], part: CellPart | None):
    assert split_cell(cell) == (host_lines, part)


@pytest.mark.parametrize("cell", ["%%host\nx", "# note\n%%host\n%%time\nx", "\n  %%host\n  x"])
def test_host_cells_are_recognized(cell: str):
    assert is_host_cell(cell)


@pytest.mark.parametrize("cell", ["", "x", "%%hosts", "%%time\n%%host\nx", "# %%host"])
def test_other_cells_are_no_host_cells(cell: str):
    assert not is_host_cell(cell)
