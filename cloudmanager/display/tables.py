"""Plain-text tables, the fleet's first of all; no I/O. What boards said is cleaned."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloudmanager.protocol.text import sanitize_text

from .layout import head_text

#: A wider cell is cut, so that no board can push the others out of sight.
MAX_CELL_CHARS: Final = 40
MAX_DETAIL_CHARS: Final = 120  # characters of the last column of the audit log
MAX_JOBS: Final = 20  # jobs in a table
FLEET_HEADINGS: Final = ("name", "state", "platform", "MicroPython", "free heap", "connected since")


def fleet_rows(boards: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return one row of text for each board, as ``HEADS`` names the columns."""
    labelled = [
        (
            str(board["name"]),
            _state_text(board),
            str(board.get("platform") or "-"),
            str(board.get("version") or "-"),
            _size_text(board.get("heap")) if board.get("connected_since") else "-",
            _connected_text(board),
        )
        for board in boards
    ]
    return [tuple(_shorten(cell) for cell in row) for row in labelled]


def fleet_table(boards: Sequence[Mapping[str, Any]]) -> str:
    """Return the fleet as a table; one sentence where there is no board."""
    if not boards:
        return "No board is enrolled yet. `mbm simulate 3` makes three virtual ones."
    return format_table(FLEET_HEADINGS, fleet_rows(boards))


def board_facts(board: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what there is to say of a board: what, and how it is."""
    since = board["connected_since"]
    told = {
        "state": board["state"],
        "platform": board["platform"],
        "MicroPython": board["version"],
        "bytecode": board["mpy"],
        "machine": board["machine"],
        "client": board["client"],
        "id": board["id"],
        "program": board["program"],
        "labels": ", ".join(f"{key}={value}" for key, value in board["labels"].items()),
        "connected": f"{format_time(since)} ({format_duration(time.time() - since)})"
        if since
        else "no",
        "last seen": format_time(board["last_seen"]),
    }
    return [(name, sanitize_text(str(value))) for name, value in told.items() if value]


def boards_text(boards: Sequence[Mapping[str, Any]]) -> str:
    """Return what there is to say of boards, one below the other."""
    blocks = []
    for board in boards:
        lines = [f"{name:<11}  {value}" for name, value in board_facts(board)]
        blocks.append("\n".join([head_text(board["name"]), *lines]))
    return "\n".join(blocks)


def job_table(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Return jobs as a table; one sentence where there is none."""
    if not jobs:
        return "No job runs, and none ended lately."
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
    heads = ("job", "board", "state", "started", "took", "caller")
    shown = format_table(heads, [tuple(_shorten(cell) for cell in row) for row in rows])
    more = len(jobs) - len(rows)
    return f"{shown}\n… and {more:,} more; `--json` has all" if more else shown


def job_text(job: Mapping[str, Any]) -> str:
    """Return all that is known of one job."""
    took = "" if job["elapsed"] is None else f", {job['elapsed']:.3f} s"
    head = f"job {job['job']} on {job['board']}: {job['status'] or job['state']}{took}"
    parts = [head + f", for {job['caller']}, started {format_time(job['started'])}"]
    if job["truncated"]:
        parts.append("… (what it printed before is not kept)")
    parts += [str(job["stdout"]).rstrip("\n"), str(job["error"]).rstrip("\n")]
    if job["status"] == "ok" and job["value"]:
        parts.append(f"Out: {job['value']}")
    return sanitize_text("\n".join(part for part in parts if part))


def token_table(tokens: Sequence[Mapping[str, Any]]) -> str:
    """Return callers' tokens as a table; never the tokens themselves."""
    heads = ("name", "role", "target", "state", "created", "expires")
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
    return format_table(heads, [tuple(_shorten(str(cell)) for cell in row) for row in rows])


def audit_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the audit log as a table, the newest last; one sentence for none."""
    if not rows:
        return "Nobody has done anything yet."
    heads = ("when", "who", "from", "verb", "target", "boards", "jobs", "outcome", "detail")
    shown = [
        (
            format_time(row["at"]),
            row["who"] or "nobody",
            row["address"],
            row["verb"],
            row["target"] or "-",
            "-" if row["boards"] is None else row["boards"],
            _job_range(row),
            row["outcome"],
        )
        for row in rows
    ]
    details = [_shorten(row["detail"], MAX_DETAIL_CHARS) for row in rows]
    lines = [
        [*(_shorten(str(cell)) for cell in row), detail]
        for row, detail in zip(shown, details, strict=True)
    ]
    return format_table(heads, lines)


def _job_range(row: Mapping[str, Any]) -> str:
    first, last = row["first_job"], row["last_job"]
    return "-" if first is None else str(first) if first == last else f"{first}-{last}"


def format_time(seconds: float | None) -> str:
    """Return seconds since 1970 as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns under their heads, without trailing blanks."""
    widths = [max(len(row[at]) for row in (headings, *rows)) for at in range(len(headings))]
    lines = [headings, ["─" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def format_duration(seconds: float) -> str:
    """Return a span as people say it: 8 s, 5 min, 3 h, 2 days."""
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


def _size_text(size_bytes: Any) -> str:
    return f"{size_bytes / 1024:.1f} KB" if isinstance(size_bytes, int) else "-"


def _shorten(cell: str, length: int = MAX_CELL_CHARS) -> str:
    text = sanitize_text(cell).replace("\n", " ").replace("\t", " ")
    return text if len(text) <= length else text[: length - 1] + "…"
