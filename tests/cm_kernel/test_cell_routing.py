"""Whose a cell's lines are."""

from __future__ import annotations

import pytest

from cm_kernel.cell_routing import Part, split, transform


@pytest.mark.parametrize(
    ("cell", "own", "part"),
    [
        ("", [], None),
        ("\n \n", ["\n", " \n"], None),
        ("x = 1", [], Part("board", "x = 1")),
        ("x = 5 % 3", [], Part("board", "x = 5 % 3")),
        ("x = 5\n% 3", [], Part("board", "x = 5\n% 3")),
        ("%boards", ["%boards"], None),
        ("!ls\nx", ["!ls\n"], Part("board", "x")),
        ("r = %board demo-1 1\nx", ["r = %board demo-1 1\n"], Part("board", "x")),
        ("a, b = !ls\nx", ["a, b = !ls\n"], Part("board", "x")),
        ("%boards \\\n demo-1\nx", ["%boards \\\n", " demo-1\n"], Part("board", "x")),
        ("%%board demo-1\nx", [], Part("board", "x", "demo-1")),
        ("%%board\nx", [], Part("board", "x", "")),
        ("%%board_writefile a.py\nx", [], Part("host", "%%board_writefile a.py\nx")),
        ("%%host\nx", [], Part("host", "# %%host\nx")),
        ("%%host\n%%time\nx", [], Part("host", "%%time\nx")),
        ("%%time\nx", [], Part("host", "%%time\nx")),
        ("x?", [], Part("question", "x")),
        ("??os.path", [], Part("question", "os.path")),
        ("x = 'why?'", [], Part("board", "x = 'why?'")),
    ],
)
def test_split(cell: str, own: list[str], part: Part | None):
    assert split(cell) == (own, part)


def test_transform_of_a_cell_for_boards():
    lines = ["%boards\n", "x = 1\n"]
    assert transform(lines) == [
        "%boards\n",
        "await get_ipython().kernel.boards.run('x = 1\\n', None, below=True)\n",
    ]


def test_transform_leaves_the_notebooks_own_alone():
    assert transform(["%boards\n"]) == ["%boards\n"]
    assert transform(["%%time\n", "x\n"]) == ["%%time\n", "x\n"]
