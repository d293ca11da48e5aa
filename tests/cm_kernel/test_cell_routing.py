"""Which lines of a cell run on boards, and which on the host."""

from __future__ import annotations

import pytest

from cm_kernel.cell_routing import CellPart, split_cell, transform_cell


@pytest.mark.parametrize(
    ("cell", "host_lines", "part"),
    [
        ("", [], None),
        ("\n \n", ["\n", " \n"], None),
        ("x = 1", [], CellPart("board", "x = 1")),
        ("x = 5 % 3", [], CellPart("board", "x = 5 % 3")),
        ("x = 5\n% 3", [], CellPart("board", "x = 5\n% 3")),
        ("%boards", ["%boards"], None),
        ("!ls\nx", ["!ls\n"], CellPart("board", "x")),
        ("r = %board demo-1 1\nx", ["r = %board demo-1 1\n"], CellPart("board", "x")),
        ("a, b = !ls\nx", ["a, b = !ls\n"], CellPart("board", "x")),
        ("%boards \\\n demo-1\nx", ["%boards \\\n", " demo-1\n"], CellPart("board", "x")),
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


def test_transform_of_a_cell_for_boards():
    lines = ["%boards\n", "x = 1\n"]
    assert transform_cell(lines) == [
        "%boards\n",
        "await get_ipython().kernel.boards.run('x = 1\\n', None, after_host_lines=True)\n",
    ]


def test_transform_does_not_change_host_cells():
    assert transform_cell(["%boards\n"]) == ["%boards\n"]
    assert transform_cell(["%%time\n", "x\n"]) == ["%%time\n", "x\n"]
