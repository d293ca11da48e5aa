"""Decide which lines of a cell run on boards, and which in the notebook's own Python (the host).

    %boards                  host: the lines at the top that begin with % or !
    total = 0                boards: all lines after them

A cell that begins with ``%%host`` runs on the host, one with ``%%board TARGET`` on these boards,
one with any other cell magic in IPython. ``name?`` runs nowhere: it describes the name.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

#: A line for IPython: a magic, a shell command, or an assignment of one of them.
_HOST_LINE: Final = re.compile(r"(?:[\w\s,.*]+=\s*)?[%!]")
_QUESTION: Final = re.compile(r"(?:\?{1,2}\s*([\w.]+)|([\w.]+)\s*\?{1,2})\s*")
_HOST_MAGIC: Final = "%%host"
_BOARD_MAGIC: Final = re.compile(r"%%board(?:\s+(.*))?\Z")


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
    """Return the leading host lines of a cell, and the rest; None if there is no rest."""
    host_lines: list[str] = []
    lines = text.splitlines(keepends=True)
    while lines and (not lines[0].strip() or _is_host_line(lines[0])):
        host_lines.append(lines.pop(0))
        while host_lines[-1].endswith("\\\n") and lines:  # continued on the next line
            host_lines.append(lines.pop(0))
    rest = "".join(lines)
    return host_lines, _make_part(lines[0], rest) if rest.strip() else None


def _is_host_line(line: str) -> bool:
    return _HOST_LINE.match(line) is not None and not line.startswith("%%")


def _make_part(first: str, rest: str) -> CellPart:
    """Return the part for ``rest``, the lines from ``first`` on."""
    if first.split(None, 1)[0] == _HOST_MAGIC:
        below = rest[len(first) :]
        # A comment in place of the magic keeps the line numbers of tracebacks.
        return CellPart("host", below if below.startswith("%%") else f"# {_HOST_MAGIC}\n{below}")
    if found := _BOARD_MAGIC.match(first.rstrip()):
        return CellPart("board", rest[len(first) :], found[1] or "")
    if first.startswith("%%"):
        return CellPart("host", rest)
    if question := _QUESTION.fullmatch(rest):
        return CellPart("question", question[1] or question[2])
    return CellPart("board", rest)


def transform_cell(lines: list[str]) -> list[str]:
    """Rewrite a cell so that IPython runs it; for IPython's ``input_transformers_cleanup``.

    The lines for boards become one call of ``BoardCells.run``.
    """
    host_lines, part = split_cell("".join(lines))
    if part is None:
        return lines
    if part.kind == "host":
        return [*host_lines, *part.text.splitlines(keepends=True)]
    call = f"help({part.text!r})"
    if part.kind == "board":
        call = f"run({part.text!r}, {part.line!r}{', after_host_lines=True' if host_lines else ''})"
    return [*host_lines, f"await get_ipython().kernel.boards.{call}\n"]


#: IPython then skips this transformer when it checks whether a cell is complete, since the code
#: in quotes would always be.
transform_cell.has_side_effects = True  # type: ignore[attr-defined]
