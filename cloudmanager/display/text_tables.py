"""Tables of boards, jobs, tokens and the audit log as plain text. No I/O.

Boards and callers are not trusted: all cells pass ``sanitize_text``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloudmanager.protocol.facts import FACTS, fact_text
from cloudmanager.protocol.text import sanitize_text

from .folding import head_text

#: A wider cell is cut, so that one long text does not make the whole table unreadable.
MAX_CELL_CHARS: Final = 40
MAX_DETAIL_CHARS: Final = 120  # width of the column `detail` of the audit log
MAX_JOBS: Final = 20  # rows of the table of jobs
_LISTED_FACTS: Final = tuple(fact for fact in FACTS if fact.in_lists == "all")
FLEET_HEADINGS: Final = (
    "name",
    "state",
    *(fact.heading for fact in _LISTED_FACTS),
    "connected since",
)


def fleet_rows(boards: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row for each board, with the columns of ``FLEET_HEADINGS``."""
    rows = [
        (
            str(board["name"]),
            _state_text(board),
            *(fact_text(fact, board) or "-" for fact in _LISTED_FACTS),
            _connected_text(board),
        )
        for board in boards
    ]
    return [tuple(_shorten(cell) for cell in row) for row in rows]


def fleet_table(boards: Sequence[Mapping[str, Any]]) -> str:
    """Return boards as a table; a sentence if there are none."""
    if not boards:
        return "No board is enrolled yet. `mbm simulate 3` starts three virtual boards."
    headings, rows = FLEET_HEADINGS, fleet_rows(boards)
    if any(board.get("labels") for board in boards):
        headings = (*headings[:2], "labels", *headings[2:])
        rows = [
            (*row[:2], _shorten(_labels_text(board)) or "-", *row[2:])
            for row, board in zip(rows, boards, strict=True)
        ]
    return format_table(headings, rows)


def _labels_text(board: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in board.get("labels", {}).items())


def board_facts(board: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the known facts of a board as pairs of name and text."""
    since = board["connected_since"]
    connected = "no"
    if since:
        connected = f"{format_time(since)} ({format_duration(time.time() - since)})"
    facts = {
        "state": board["state"],
        **{fact.heading: fact_text(fact, board) for fact in FACTS},
        "id": board["id"],
        "labels": _labels_text(board),
        "connected": connected,
        "last seen": format_time(board["last_seen"]),
    }
    return [(name, sanitize_text(str(value))) for name, value in facts.items() if value]


def boards_text(boards: Sequence[Mapping[str, Any]]) -> str:
    """Return the facts of boards as text, a block for each board."""
    blocks = []
    for board in boards:
        lines = [f"{name:<11}  {value}" for name, value in board_facts(board)]
        blocks.append("\n".join([head_text(board["name"]), *lines]))
    return "\n".join(blocks)


def job_table(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Return jobs as a table of at most ``MAX_JOBS`` rows; a sentence if there are none."""
    if not jobs:
        return "No jobs are running, and none ended recently."
    rows = [
        (
            str(job["job"]),
            str(job["board"]),
            str(job["status"] or job["state"]),
            format_time(job["started"]),
            "-" if job["elapsed"] is None else f"{job['elapsed']:.3f} s",
            str(job["caller"]),
        )
        for job in jobs[:MAX_JOBS]
    ]
    headings = ("job", "board", "state", "started", "took", "caller")
    omitted = len(jobs) - len(rows)
    note = f"… and {omitted:,} more; `--json` shows all" if omitted else ""
    return format_table(headings, [tuple(_shorten(cell) for cell in row) for row in rows], note)


def job_text(job: Mapping[str, Any]) -> str:
    """Return the state, output and outcome of one job as text."""
    took = "" if job["elapsed"] is None else f", {job['elapsed']:.3f} s"
    head = f"job {job['job']} on {job['board']}: {job['status'] or job['state']}{took}"
    parts = [head + f", for {job['caller']}, started {format_time(job['started'])}"]
    if job["truncated"]:
        parts.append("… (earlier output was not kept)")
    parts += [str(job["stdout"]).rstrip("\n"), str(job["error"]).rstrip("\n")]
    if job["status"] == "ok" and job["value"]:
        parts.append(f"Out: {job['value']}")
    return sanitize_text("\n".join(part for part in parts if part))


def token_table(tokens: Sequence[Mapping[str, Any]]) -> str:
    """Return callers' tokens as a table: their names and rights, not the secrets."""
    headings = ("name", "role", "target", "state", "created", "expires")
    rows = [
        (
            token["name"],
            token["role"],
            token["target"],
            token["state"],
            format_time(token["created"]),
            format_time(token["expires"]) if token["expires"] else "never",
        )
        for token in tokens
    ]
    return format_table(headings, [tuple(_shorten(str(cell)) for cell in row) for row in rows])


def audit_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the audit log as a table, the newest last; a sentence if there are none."""
    if not rows:
        return "The audit log is empty."
    headings = ("when", "who", "from", "verb", "target", "boards", "jobs", "outcome", "detail")
    lines = []
    for row in rows:
        cells = (
            format_time(row["at"]),
            row["who"] or "-",
            row["address"],
            row["verb"],
            row["target"] or "-",
            "-" if row["boards"] is None else row["boards"],
            _job_range(row),
            row["outcome"],
        )
        detail = _shorten(row["detail"], MAX_DETAIL_CHARS)
        lines.append([*(_shorten(str(cell)) for cell in cells), detail])
    return format_table(headings, lines)


def _job_range(row: Mapping[str, Any]) -> str:
    first, last = row["first_job"], row["last_job"]
    if first is None:
        return "-"
    return str(first) if first == last else f"{first}-{last}"


def format_time(seconds: float | None) -> str:
    """Return a Unix time as local date and time; "-" for None."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


class TextTable(str):
    """A table as plain text, which a terminal can draw for its width; see ``format_table``.

    Attributes:
        headings: of the columns.
        rows: the cells.
        note: a line below the table; "" for none.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


def format_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> TextTable:
    """Return a table with aligned columns, a line under the headings, no trailing spaces."""
    widths = [max(len(row[at]) for row in (headings, *rows)) for at in range(len(headings))]
    lines = [headings, ["─" * width for width in widths], *rows]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    table = TextTable("\n".join([*aligned, note] if note else aligned))
    table.headings, table.rows, table.note = headings, rows, note
    return table


def format_duration(seconds: float) -> str:
    """Return a duration in its largest unit: 8 s, 5 min, 3 h, 2 days."""
    for unit, size in (("day", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}"
    return f"{max(int(seconds), 0)} s"


def _state_text(board: Mapping[str, Any]) -> str:
    state, queued, program = board["state"], board.get("queued") or 0, board.get("program")
    if program and board.get("connected_since"):
        state = f"{state}: {program}" if not board.get("job") else f"{state}; {program}"
    return f"{state}, {queued} queued" if queued else str(state)


def _connected_text(board: Mapping[str, Any]) -> str:
    since, seen = board.get("connected_since"), board.get("last_seen")
    if since:
        return f"{format_time(since)} ({format_duration(time.time() - since)})"
    return f"last seen {format_duration(time.time() - seen)} ago" if seen else "never"


def _shorten(cell: str, length: int = MAX_CELL_CHARS) -> str:
    text = sanitize_text(cell).replace("\n", " ").replace("\t", " ")
    return text if len(text) <= length else text[: length - 1] + "…"
