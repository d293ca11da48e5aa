"""Values of boards as an HTML table, for notebooks; no I/O.

Boards are never trusted: all their text is sanitized, cut and escaped in one function. Boards with
equal values share a row; the largest groups come first, so that exceptions are at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final, Protocol

from cloudmanager.protocol.text import fold_names, sanitize_text

_MAX_ROWS: Final = 100  # of the rest, the number of boards is shown
_MAX_COLUMNS: Final = 12
_MAX_CELL_CHARS: Final = 120  # characters of a cell
_MAX_NAMES_CHARS: Final = 60  # of a folded list of boards
_CELL_STYLE: Final = "text-align: left"


class ResultView(Protocol):
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


def results_html(results: Mapping[str, ResultView], left_out: Sequence[str] = ()) -> str | None:
    """Return the boards' values as a table; None if plain text shows them as well.

    Plain text is used if a board failed or printed something, has no value or a long one, or if
    all boards have the same value.

    Args:
        results: board -> its result.
        left_out: boards that were not connected; they are listed below the table.
    """
    if not all(_has_short_value(result) for result in results.values()):
        return None
    boards_by_value: dict[str, list[str]] = {}
    for board, result in results.items():
        boards_by_value.setdefault(result.text, []).append(board)
    if len(boards_by_value) < 2:
        return None
    groups = sorted(boards_by_value.values(), key=lambda boards: -len(boards))
    values = [results[boards[0]].value for boards in groups]
    heads, rows = _value_columns(values, [results[boards[0]].text for boards in groups])
    lines = [[_short_names(boards), *row] for boards, row in zip(groups, rows, strict=True)]
    hidden_count = sum(len(boards) for boards in groups[_MAX_ROWS:])
    notes = [f"… and {hidden_count:,} more boards"] if hidden_count else []
    notes += [f"not connected: {_short_names(left_out)}"] if left_out else []
    return _render_table(["board", *heads], lines[:_MAX_ROWS], notes)


def _has_short_value(result: ResultView) -> bool:
    """Whether a board returned a short value, and printed nothing."""
    return (
        result.ok
        and bool(result.text)
        and not result.stdout
        and len(result.text) <= 8 * _MAX_CELL_CHARS
    )


def _value_columns(values: list[Any], texts: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: a column for each item of equal dicts or tuples, else one column."""
    first = values[0]
    keys = list(first) if isinstance(first, dict) else []
    if keys and all(isinstance(value, dict) and list(value) == keys for value in values):
        return _limit_columns(
            [str(key) for key in keys], [list(value.values()) for value in values]
        )
    size = len(first) if isinstance(first, tuple) else 0
    if size and all(isinstance(value, tuple) and len(value) == size for value in values):
        is_named = all(type(value) is type(first) for value in values)
        names = getattr(first, "_fields", range(size)) if is_named else range(size)
        return _limit_columns([str(name) for name in names], [list(value) for value in values])
    return ["value"], [[text] for text in texts]


def _limit_columns(heads: list[str], rows: list[list[Any]]) -> tuple[list[str], list[list[str]]]:
    return heads[:_MAX_COLUMNS], [[repr(value) for value in row[:_MAX_COLUMNS]] for row in rows]


def _short_names(boards: Sequence[str]) -> str:
    folded = fold_names(boards)
    return (
        folded
        if len(folded) <= _MAX_NAMES_CHARS
        else f"{folded[:_MAX_NAMES_CHARS]}… ({len(boards):,} boards)"
    )


def _render_table(heads: list[str], rows: list[list[str]], notes: list[str]) -> str:
    head = "".join(_render_cell("th", text) for text in heads)
    body = "".join(
        "<tr>"
        + _render_cell("th", row[0])
        + "".join(_render_cell("td", text) for text in row[1:])
        + "</tr>"
        for row in rows
    )
    below = "".join(f"<div>{_escape_text(note)}</div>" for note in notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def _render_cell(tag: str, text: str) -> str:
    return f'<{tag} style="{_CELL_STYLE}">{_escape_text(text)}</{tag}>'


def _escape_text(text: str) -> str:
    short = text if len(text) <= _MAX_CELL_CHARS else text[: _MAX_CELL_CHARS - 1] + "…"
    return escape(sanitize_text(short).replace("\n", " "))
