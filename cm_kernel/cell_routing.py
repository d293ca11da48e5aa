"""Decide which lines of a cell run on boards, and which in the notebook's own Python (the host).

    %boards                  host: the lines at the top that begin with % or !
    total = 0                boards: all lines after them

A cell that begins with ``%%host`` runs on the host, one with ``%%board TARGET`` on these boards,
one with any other cell magic in IPython. ``name?`` runs nowhere: it describes the name. Blank
lines and comments above a magic do not count, and prompts (``>>>``) are removed, as in IPython.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from IPython.core.inputtransformer2 import classic_prompt, ipython_prompt, leading_indent

from cm_magics.comment_magic import uncomment

#: A line for IPython: a magic, a shell command, or an assignment of one of them.
_HOST_LINE: Final = re.compile(r"(?:[\w\s,.*]+=\s*)?[%!]")
_QUESTION: Final = re.compile(r"\s*(?:\?{1,2}\s*([\w.]+)|([\w.]+)\s*\?{1,2})\s*")
#: IPython's objects that end the kernel; a board has none of them.
_EXIT: Final = re.compile(r"\s*(?:exit|quit)\s*(?:\([^()]*\))?\s*;?\s*")
HOST_MAGIC: Final = "%%host"
BOARD_MAGIC: Final = "%%board"
_BOARD_LINE: Final = re.compile(r"%%board(?:\s+(.*))?\Z")


class CellPart(NamedTuple):
    """A cell after its leading host lines.

    Attributes:
        kind: ``host``, ``board`` or ``question``.
        text: the code, or the name in question.
        line: the text after ``%%board``; None if the part does not begin with it.
    """

    kind: str
    text: str
    line: str | None = None


def split_cell(text: str) -> tuple[list[str], CellPart | None]:
    """Return the leading host lines of a cell, and the rest; None if nothing is left to run.

    The rest for boards begins with an empty line for each host line, so that the line numbers of
    tracebacks are those of the cell.
    """
    lines = uncomment(_remove_prompts(text.splitlines(keepends=True)))
    count = 0  # of host lines
    while (first := _first_code_line(lines, count)) < len(lines) and _is_host_line(lines[first]):
        count = first + 1
        while lines[count - 1].endswith("\\\n") and count < len(lines):  # continued
            count += 1
    if first == len(lines):
        return lines[:count], None
    rest = lines[first if lines[first].startswith("%%") else count :]
    return lines[:count], _make_part(rest, count)


def is_host_cell(text: str) -> bool:
    """Return whether a cell begins with ``%%host``."""
    lines = _remove_prompts(text.splitlines(keepends=True))
    first = "".join(lines[_first_code_line(lines, 0) :][:1])
    return first.split(None, 1)[:1] == [HOST_MAGIC]


def _remove_prompts(lines: list[str]) -> list[str]:
    """Remove what IPython removes from a pasted cell: its indentation, and prompts."""
    if first := next((line for line in lines if line.strip()), ""):
        if first[0] in " \t":
            lines = leading_indent(lines)
        if ">>>" in first or "In [" in first:
            lines = ipython_prompt(classic_prompt(lines))
    return lines


def _first_code_line(lines: list[str], start: int) -> int:
    """Return the index of the first line that is neither blank nor a comment."""
    while start < len(lines) and lines[start].strip()[:1] in ("", "#"):
        start += 1
    return start


def _is_host_line(line: str) -> bool:
    return _HOST_LINE.match(line) is not None and not line.startswith("%%")


def _make_part(lines: list[str], host_line_count: int) -> CellPart:
    """Return the part for the lines below ``host_line_count`` host lines."""
    first, rest = lines[0], "".join(lines)
    if first.split(None, 1)[:1] == [HOST_MAGIC]:
        below = rest[len(first) :]
        # A comment in place of the magic keeps the line numbers of tracebacks.
        return CellPart("host", below if below.startswith("%%") else f"# {HOST_MAGIC}\n{below}")
    if found := _BOARD_LINE.match(first.rstrip()):
        return CellPart("board", rest[len(first) :], found[1] or "")
    if first.startswith("%%"):
        return CellPart("host", rest)
    code = "".join(line for line in lines if line.strip()[:1] != "#")
    if question := _QUESTION.fullmatch(code):
        return CellPart("question", question[1] or question[2])
    if _EXIT.fullmatch(code):
        return CellPart("host", rest)
    return CellPart("board", "\n" * host_line_count + rest)
