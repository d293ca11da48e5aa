"""Tables of boards, jobs, tokens and the audit log as plain text. No I/O.

Boards and callers are not trusted: all cells pass ``sanitize_text``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloudmanager.protocol.facts import FACTS, fact_text
from cloudmanager.protocol.spans import format_duration
from cloudmanager.protocol.text import sanitize_text
from cloudmanager.results.history import HISTORY_HEADINGS, HistoryEntry, history_rows
from cloudmanager.results.rows import (
    JOB_HEADINGS,
    MAX_JOB_CHARS,
    caller_text,
    format_time,
    job_rows,
    labelled_rows,
    labels_text,
    reserved_text,
    shorten,
    sleep_text,
    stay_text,
    what_text,
)

from .folding import head_text

MAX_DETAIL_CHARS: Final = 120  # width of the column `detail` of the audit log
MAX_JOBS: Final = 20  # rows of the table of jobs


def fleet_table(boards: Sequence[Mapping[str, Any]]) -> str:
    """Return boards as a table; a sentence if there are none."""
    if not boards:
        return "No board is enrolled yet. `mbm simulate 3` starts three virtual boards."
    return format_table(*labelled_rows(boards))


def board_facts(board: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the known facts of a board as pairs of name and text."""
    since = board["connected_since"]
    connected = "no"
    if since:
        connected = f"{format_time(since)} ({format_duration(time.time() - since)})"
    facts = {
        "state": board["state"] + sleep_text(board),
        "stays awake": stay_text(board),
        **{fact.heading: fact_text(fact, board) for fact in FACTS},
        "id": board["id"],
        "labels": labels_text(board),
        "serial number": board.get("serial", ""),
        "note": board.get("note", ""),
        "reserved by": reserved_text(board),
        "key": "a new one is waiting for the board" if board.get("new_key") else "",
        "connected": connected,
        "last seen": format_time(board["last_seen"]),
        "job": _job_text(board),
        "packages": ", ".join(" ".join(each) for each in board.get("packages", {}).items()),
    }
    findings = [(each["kind"], each["text"]) for each in board.get("findings", ())]
    shown = [*facts.items(), *findings]
    return [(name, sanitize_text(str(value))) for name, value in shown if value]


def _job_text(board: Mapping[str, Any]) -> str:
    """Return what runs on a board, and how many jobs wait; "" for nothing."""
    job, queued = board.get("job"), board.get("queued") or 0
    running = f"job {job['job']} of {caller_text(job['caller'])}" if job else ""
    return ", ".join(filter(None, (running, f"{queued} queued" if queued else "")))


def boards_text(boards: Sequence[Mapping[str, Any]]) -> str:
    """Return the facts of boards as text, a block for each board."""
    blocks = []
    for board in boards:
        facts = board_facts(board)
        width = max(len(name) for name, _ in facts)
        lines = [f"{name:<{width}}  {value}" for name, value in facts]
        blocks.append("\n".join([head_text(board["name"]), *lines]))
    return "\n".join(blocks)


def job_table(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Return jobs as a table of at most ``MAX_JOBS`` rows; a sentence if there are none."""
    if not jobs:
        return "No jobs are running, and none ended recently."
    rows = job_rows(jobs[:MAX_JOBS])
    omitted = len(jobs) - len(rows)
    note = f"… and {omitted:,} more; `--json` shows all" if omitted else ""
    return format_table(JOB_HEADINGS, rows, note)


def job_text(job: Mapping[str, Any]) -> str:
    """Return the state, output and outcome of one job as text."""
    took = "" if job["elapsed"] is None else f", {job['elapsed']:.3f} s"
    board = job["board"]
    if job.get("board_removed"):
        board = f"a board that was removed from the fleet (id {board})"
    head = f"job {job['job']} on {board}: {job['status'] or job['state']}{took}"
    if job["state"] == "waiting":
        when = f"until {format_time(job['expires'])}, submitted {format_time(job['created'])}"
        what = shorten(what_text(job), MAX_JOB_CHARS)
        return sanitize_text(f"{head} {when}, for {job['caller']}\nwhat: {what}")
    parts = [head + f", for {job['caller']}, started {format_time(job['started'])}"]
    if job["kind"]:
        parts.append(f"what: {shorten(what_text(job), MAX_JOB_CHARS)}")
    if job["truncated"]:
        what = "earlier output was not kept" if job["stdout"] else "output is kept of recent jobs"
        parts.append(f"… ({what})")
    parts += [str(job["stdout"]).rstrip("\n"), str(job["error"]).rstrip("\n")]
    if job["status"] == "ok" and job["value"]:
        parts.append(f"Out: {job['value']}")
    return sanitize_text("\n".join(part for part in parts if part))


def history_table(history: Sequence[HistoryEntry]) -> str:
    """Return what ran on boards as a table, the newest last; a sentence if nothing did."""
    if not history:
        return "Nothing ran there, or the server does not have it any more."
    return format_table(HISTORY_HEADINGS, history_rows(history))


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
    return format_table(headings, [tuple(shorten(str(cell)) for cell in row) for row in rows])


def secret_table(secrets: Sequence[Mapping[str, Any]]) -> str:
    """Return secrets as a table, without their values; a sentence if there are none."""
    if not secrets:
        return "There are no secrets. `mbm secret-set NAME` stores one."
    rows = [(each["name"], each["target"], format_time(each["changed"])) for each in secrets]
    headings = ("name", "target", "changed")
    return format_table(headings, [tuple(map(shorten, row)) for row in rows])


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
        detail = shorten(row["detail"], MAX_DETAIL_CHARS)
        lines.append([*(shorten(str(cell)) for cell in cells), detail])
    return format_table(headings, lines)


def _job_range(row: Mapping[str, Any]) -> str:
    first, last = row["first_job"], row["last_job"]
    if first is None:
        return "-"
    return str(first) if first == last else f"{first}-{last}"


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
