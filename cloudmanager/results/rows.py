"""Boards and jobs as rows of tables, for terminals and notebooks; no I/O.

Boards and callers are not trusted: all cells pass ``sanitize_text``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloudmanager.protocol.facts import FACTS, fact_text
from cloudmanager.protocol.spans import format_duration, format_moment
from cloudmanager.protocol.text import sanitize_text

from .html_table import render_table

#: A wider cell is cut, so that one long text does not make the whole table unreadable.
MAX_CELL_CHARS: Final = 40
MAX_HTML_ROWS: Final = 200  # rows of a table in a notebook
_LISTED_FACTS: Final = tuple(fact for fact in FACTS if fact.in_lists == "all")
FLEET_HEADINGS: Final = (
    "name",
    "state",
    *(fact.heading for fact in _LISTED_FACTS),
    "connected since",
)
_LOCAL_CALLER: Final = "local"  # the name of the local user's token; no other token has it
JOB_HEADINGS: Final = ("job", "board", "state", "started", "took", "caller", "what")
MAX_JOB_CHARS: Final = 120  # of what a job is, the last column, which a terminal cuts at its width
#: Kind of a job -> what lists show of one without a title.
_KINDS: Final = {"cell": "a cell", "": "-"}


class BoardList(list[dict[str, Any]]):
    """What the server knows about boards; a notebook shows it as a table."""

    def _repr_html_(self) -> str:
        return html_rows(*labelled_rows(self[:MAX_HTML_ROWS]), len(self))


class JobList(list[dict[str, Any]]):
    """What the server knows about jobs; a notebook shows it as a table."""

    def _repr_html_(self) -> str:
        return html_rows(JOB_HEADINGS, job_rows(self[:MAX_HTML_ROWS]), len(self))


def html_rows(headings: Sequence[str], rows: Sequence[Sequence[str]], total: int) -> str:
    """Return the first rows of ``total`` ones as an HTML table; all cells are escaped."""
    omitted = total - len(rows)
    notes = [f"… and {omitted:,} more"] if omitted else []
    return render_table(list(headings), [list(row) for row in rows], notes)


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
    return [tuple(shorten(cell) for cell in row) for row in rows]


def labelled_rows(
    boards: Sequence[Mapping[str, Any]],
) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Return headings and rows of boards, with a column for labels, and one for reservations.

    Either is left out if no board has something to show in it.
    """
    columns = {
        "labels": [shorten(labels_text(board)) for board in boards],
        "reserved by": [shorten(reserved_text(board)) for board in boards],
    }
    shown = {heading: texts for heading, texts in columns.items() if any(texts)}
    headings = (*FLEET_HEADINGS[:2], *shown, *FLEET_HEADINGS[2:])
    rows = []
    for number, row in enumerate(fleet_rows(boards)):
        optional = [texts[number] or "-" for texts in shown.values()]
        rows.append((*row[:2], *optional, *row[2:]))
    return headings, rows


def job_rows(jobs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row for each job, with the columns of ``JOB_HEADINGS``."""
    rows = []
    for job in jobs:
        row = (
            str(job["job"]),
            str(job["board"]),
            str(job["status"] or job["state"]),
            format_time(job["started"]),
            "-" if job["elapsed"] is None else f"{job['elapsed']:.3f} s",
            str(job["caller"]),
        )
        rows.append((*map(shorten, row), shorten(what_text(job), MAX_JOB_CHARS)))
    return rows


def what_text(job: Mapping[str, Any]) -> str:
    """Return what a job is: the first line of its code, or what is done with which files."""
    kind, title = str(job.get("kind", "")), str(job.get("what", ""))  # 0.1 has neither
    if not title:
        return _KINDS.get(kind, kind)
    return title if kind in ("cell", "files") else f"{kind} {title}"


def labels_text(board: Mapping[str, Any]) -> str:
    """Return the labels of a board as text: "room=lab, row=3"."""
    return ", ".join(f"{key}={value}" for key, value in board.get("labels", {}).items())


def format_time(seconds: float | None) -> str:
    """Return a Unix time as local date and time; "-" for None."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def caller_text(name: str) -> str:
    """Return the name of a caller's token as people say it."""
    return "the local user" if name == _LOCAL_CALLER else name


def reservation_text(caller: str, until: float) -> str:
    """Return who has a board to itself: "anna until 14:05" (local time).

    Args:
        caller: the name of the caller's token.
        until: seconds since 1970.
    """
    return f"{caller_text(caller)} until {format_moment(until)}"


def reserved_text(board: Mapping[str, Any]) -> str:
    """Return who has reserved a board, as the verb ``boards`` describes it; "" if nobody has."""
    reserved = board.get("reserved")
    return reservation_text(reserved["caller"], reserved["until"]) if reserved else ""


def _state_text(board: Mapping[str, Any]) -> str:
    state, queued, program = board["state"], board.get("queued") or 0, board.get("program")
    if program and board.get("connected_since"):
        state = f"{state}: {program}" if not board.get("job") else f"{state}; {program}"
    return (
        f"{state}{sleep_text(board)}, {queued} queued" if queued else f"{state}{sleep_text(board)}"
    )


def sleep_text(board: Mapping[str, Any]) -> str:
    """Return what follows the state of a board that sleeps: " until 14:05"; "" of another one."""
    words = {"asleep": "until", "overdue": "since"}
    at, word = board.get("wakes_at"), words.get(board["state"])
    return f" {word} {format_moment(at)}" if word and at else ""


def stay_text(board: Mapping[str, Any]) -> str:
    """Return for how long a board stays awake that sleeps: "until 14:05"; "" if it need not."""
    stay = board.get("stay")
    if not stay:
        return ""
    if stay["seconds"] is None:
        return f"until {format_moment(stay['until'])}"
    return f"for {format_duration(stay['seconds'])} when it wakes"


def _connected_text(board: Mapping[str, Any]) -> str:
    since, seen = board.get("connected_since"), board.get("last_seen")
    if since:
        return f"{format_time(since)} ({format_duration(time.time() - since)})"
    return f"last seen {format_duration(time.time() - seen)} ago" if seen else "never"


def shorten(cell: str, length: int = MAX_CELL_CHARS) -> str:
    """Return a text as one line of at most ``length`` characters that is safe to show."""
    text = sanitize_text(cell).replace("\n", " ").replace("\t", " ")
    return text if len(text) <= length else text[: length - 1] + "…"
