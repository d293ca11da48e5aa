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
_MAX_BLOCK_CHARS: Final = 8 * 1024  # characters of an output, a value or an error of one result
_CELL_STYLE: Final = "text-align: left"
_ROW_HEAD_STYLE: Final = f"{_CELL_STYLE}; white-space: nowrap"  # names of boards break at hyphens
#: Of ``<pre>`` in a cell; JupyterLab indents it, and breaks long lines inside of words.
_BLOCK_STYLE: Final = "margin: 0; overflow-wrap: anywhere; text-align: left; word-break: normal"
#: The same of one that is no cell: in size and place like JupyterLab's plain text.
BLOCK_STYLE: Final = (
    f"{_BLOCK_STYLE}; font-size: var(--jp-code-font-size, inherit); "
    "line-height: var(--jp-code-line-height, inherit); "
    "margin: 0 0 4px calc(var(--jp-code-padding, -3px) + 3px)"
)
#: Colours of JupyterLab's theme, and for other frontends one that is readable on black and white.
FAILURE_COLOUR: Final = "var(--jp-error-color1, #d9534f)"
WARNING_COLOUR: Final = "var(--jp-warn-color1, #b8860b)"


class ResultView(Protocol):
    """The parts of a `Result` that a table shows."""

    board: str
    status: str
    traceback: str
    why: str

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
    return render_table(["board", *heads], lines[:_MAX_ROWS], notes)


def outcomes_html(results: Mapping[str, ResultView], left_out: Sequence[str] = ()) -> str:
    """Return how results ended as a table: status, output, and value or error of each board.

    Boards with equal outcomes share a row; failures are coloured.

    Args:
        results: board -> its result.
        left_out: boards that were not connected; they are listed below the table.
    """
    boards_by_outcome: dict[tuple[str, ...], list[str]] = {}
    for board, result in results.items():
        outcome = (result.status, result.stdout, result.text, result.traceback, result.why)
        boards_by_outcome.setdefault(outcome, []).append(board)
    groups = list(boards_by_outcome.values())
    hidden_count = sum(len(boards) for boards in groups[_MAX_ROWS:])
    notes = [f"… and {hidden_count:,} more boards"] if hidden_count else []
    notes += [f"not connected: {_short_names(left_out)}"] if left_out else []
    rows = [_outcome_row(boards, results[boards[0]]) for boards in groups[:_MAX_ROWS]]
    head = "".join(_render_cell("th", text) for text in ("board", "status", "output", "value"))
    return _join_table(head, "".join(rows), notes)


def result_html(result: ResultView) -> str:
    """Return how one result ended as a table; see ``outcomes_html``."""
    return outcomes_html({result.board: result})


def _outcome_row(boards: Sequence[str], result: ResultView) -> str:
    style = _CELL_STYLE if result.ok else f"{_CELL_STYLE}; color: {FAILURE_COLOUR}"
    if result.ok:
        as_html = getattr(type(result.value), "_repr_html_", None)  # of a class of this library
        value = as_html(result.value) if as_html else _render_block(result.text)
    else:
        value = _render_block(result.traceback or result.why)
    return (
        f"<tr>{_render_row_head(_short_names(boards))}"
        f'<td style="{style}">{_escape_text(result.status)}</td>'
        f'<td style="{_CELL_STYLE}">{_render_block(result.stdout)}</td>'
        f'<td style="{_CELL_STYLE}">{value}</td></tr>'
    )


def _render_block(text: str) -> str:
    """Return a text in its lines; the end of a long one."""
    if not text:
        return ""
    omitted = len(text) - _MAX_BLOCK_CHARS
    shown = f"… {omitted:,} more characters\n{text[omitted:]}" if omitted > 0 else text
    content = escape(sanitize_text(shown.replace("\r", "\n")).rstrip("\n"))
    return f'<pre style="{_BLOCK_STYLE}">{content}</pre>'


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


def render_table(heads: list[str], rows: list[list[str]], notes: Sequence[str] = ()) -> str:
    """Return a table as HTML, with notes below it; the first cell of a row is its head.

    All text is sanitized, cut and escaped.
    """
    head = "".join(_render_cell("th", text) for text in heads)
    body = "".join(
        "<tr>"
        + _render_row_head(row[0])
        + "".join(_render_cell("td", text) for text in row[1:])
        + "</tr>"
        for row in rows
    )
    return _join_table(head, body, notes)


def _join_table(head: str, body: str, notes: Sequence[str]) -> str:
    """Return a table of HTML parts, with notes below it, which are escaped."""
    below = "".join(f"<div>{_escape_text(note)}</div>" for note in notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def _render_row_head(text: str) -> str:
    return f'<th style="{_ROW_HEAD_STYLE}">{_escape_text(text)}</th>'


def _render_cell(tag: str, text: str) -> str:
    return f'<{tag} style="{_CELL_STYLE}">{_escape_text(text)}</{tag}>'


def _escape_text(text: str) -> str:
    short = text if len(text) <= _MAX_CELL_CHARS else text[: _MAX_CELL_CHARS - 1] + "…"
    return escape(sanitize_text(short).replace("\n", " "))
