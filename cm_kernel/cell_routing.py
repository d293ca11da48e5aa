"""A notebook's cell -> what IPython runs: which of its lines are whose. Pure.

    %boards                  the notebook's own: lines at the top that begin with % or !
    total = 0                the boards': all the rest

``%%host`` makes a whole cell the notebook's own, ``%%board TARGET`` names other boards, every other
cell magic is IPython's, and ``name?`` asks what a name is.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

#: A line of IPython's: a magic, a command of the system, or what one of them is assigned to.
_HOST_LINE: Final = re.compile(r"(?:[\w\s,.*]+=\s*)?[%!]")
_QUESTION: Final = re.compile(r"(?:\?{1,2}\s*([\w.]+)|([\w.]+)\s*\?{1,2})\s*")
_HOST_MAGIC: Final = "%%host"
_BOARD_MAGIC: Final = re.compile(r"%%board(?:\s+(.*))?\Z")


class CellPart(NamedTuple):
    """What a cell's lines are from one of them on.

    ``kind`` is host, board or question; ``line`` what stands behind ``%%board``, None where the
    cell is not marked; ``text`` is the code, or the name in question.
    """

    kind: str
    text: str
    line: str | None = None


def split_cell(text: str) -> tuple[list[str], CellPart | None]:
    """Return the notebook's own lines at the top of a cell, and what comes after them."""
    own: list[str] = []
    lines = text.splitlines(keepends=True)
    while lines and (not lines[0].strip() or _is_host_line(lines[0])):
        own.append(lines.pop(0))
        while own[-1].endswith("\\\n") and lines:
            own.append(lines.pop(0))
    rest = "".join(lines)
    return own, _make_part(lines[0], rest, own) if rest.strip() else None


def _is_host_line(line: str) -> bool:
    return _HOST_LINE.match(line) is not None and not line.startswith("%%")


def _make_part(first: str, rest: str, host_lines: list[str]) -> CellPart:
    if first.split(None, 1)[0] == _HOST_MAGIC:
        below = rest[len(first) :]
        # A comment in its place keeps the numbers of the lines.
        return CellPart("host", below if below.startswith("%%") else f"# {_HOST_MAGIC}\n{below}")
    if found := _BOARD_MAGIC.match(first.rstrip()):
        return CellPart("board", rest[len(first) :], found[1] or "")
    if first.startswith("%%"):
        return CellPart("host", rest)
    if asked := _QUESTION.fullmatch(rest):
        return CellPart("question", asked[1] or asked[2])
    return CellPart("board", rest)


def transform_cell(lines: list[str]) -> list[str]:
    """Make of a cell what IPython runs: one of its ``input_transformers_cleanup``."""
    own, part = split_cell("".join(lines))
    if part is None:
        return lines
    if part.kind == "host":
        return [*own, *part.text.splitlines(keepends=True)]
    call = f"help({part.text!r})"
    if part.kind == "board":
        call = f"run({part.text!r}, {part.line!r}{', after_host_lines=True' if own else ''})"
    return [*own, f"await get_ipython().kernel.boards.{call}\n"]


#: IPython leaves it out when it asks whether a cell is complete: what is in quotes always is.
transform_cell.has_side_effects = True  # type: ignore[attr-defined]
