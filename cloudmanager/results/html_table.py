"""Values of boards as an HTML table, where every board has one; pure, no I/O.

Boards are untrusted for ever: what they said is cleaned, cut and escaped here, and there is no
other way into the table. Boards with equal values share a row, the many first, so that the odd
one out is the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final, Protocol

from cloudmanager.protocol.text import clean, fold

_ROWS: Final = 100  # of more, the first and a count
_COLUMNS: Final = 12
_TEXT: Final = 120  # characters of a cell
_NAMES: Final = 60  # of a folded list of boards
_STYLE: Final = "text-align: left"


class Outcome(Protocol):
    """The parts of a `Result` that a table shows."""

    @property
    def ok(self) -> bool:
        """Whether the job ended without an error."""

    @property
    def text(self) -> str:
        """The value as text, empty if there is none."""

    @property
    def value(self) -> Any:
        """The value."""

    @property
    def stdout(self) -> str:
        """What the job printed."""


def results_html(results: Mapping[str, Outcome], left_out: Sequence[str] = ()) -> str | None:
    """Return the boards' values as a table; None where text says it as well.

    That is where a board failed or printed, has no value or a long one, or where all of them say
    the same.
    """
    if not all(_fits(result) for result in results.values()):
        return None
    alike: dict[str, list[str]] = {}
    for board, result in results.items():
        alike.setdefault(result.text, []).append(board)
    if len(alike) < 2:
        return None
    groups = sorted(alike.values(), key=lambda boards: -len(boards))
    values = [results[boards[0]].value for boards in groups]
    heads, rows = _columns(values, [results[boards[0]].text for boards in groups])
    lines = [[_names(boards), *row] for boards, row in zip(groups, rows, strict=True)]
    more = sum(len(boards) for boards in groups[_ROWS:])
    notes = [f"… and {more:,} boards more"] if more else []
    notes += [f"not there: {_names(left_out)}"] if left_out else []
    return _table(["board", *heads], lines[:_ROWS], notes)


def _fits(result: Outcome) -> bool:
    """Whether a value is all that a board has to say, and is short."""
    return result.ok and bool(result.text) and not result.stdout and len(result.text) <= 8 * _TEXT


def _columns(values: list[Any], texts: list[str]) -> tuple[list[str], list[list[str]]]:
    """Spread dicts and tuples of one shape over columns; all else is one column."""
    first = values[0]
    keys = list(first) if isinstance(first, dict) else []
    if keys and all(isinstance(value, dict) and list(value) == keys for value in values):
        return _spread([str(key) for key in keys], [list(value.values()) for value in values])
    size = len(first) if isinstance(first, tuple) else 0
    if size and all(isinstance(value, tuple) and len(value) == size for value in values):
        return _spread([str(at) for at in range(size)], [list(value) for value in values])
    return ["value"], [[text] for text in texts]


def _spread(heads: list[str], rows: list[list[Any]]) -> tuple[list[str], list[list[str]]]:
    return heads[:_COLUMNS], [[repr(value) for value in row[:_COLUMNS]] for row in rows]


def _names(boards: Sequence[str]) -> str:
    folded = fold(boards)
    return folded if len(folded) <= _NAMES else f"{folded[:_NAMES]}… ({len(boards):,} boards)"


def _table(heads: list[str], rows: list[list[str]], notes: list[str]) -> str:
    head = "".join(_cell("th", text) for text in heads)
    body = "".join(
        f"<tr>{_cell('th', row[0])}{''.join(_cell('td', text) for text in row[1:])}</tr>"
        for row in rows
    )
    below = "".join(f"<div>{_safe(note)}</div>" for note in notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def _cell(tag: str, text: str) -> str:
    return f'<{tag} style="{_STYLE}">{_safe(text)}</{tag}>'


def _safe(text: str) -> str:
    short = text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
    return escape(clean(short).replace("\n", " "))
