"""Jobs that wait on the server for their boards, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import WAITING, Results
from cloudmanager.results.rows import MAX_JOB_CHARS, format_time, shorten, what_text

from .text_tables import format_table

_LIST_HINT = "`mbm job-list --waiting` lists them, `mbm job-show JOB` shows how one ended."


def all_wait(results: Results) -> bool:
    """Whether each board has a job that waits for it."""
    return bool(results) and all(result.status == WAITING for result in results.values())


def waiting_text(results: Results) -> str:
    """Return which jobs wait for which boards, and until when."""
    groups: dict[str, list[str]] = {}
    for name, result in results.items():
        if result.status == WAITING:
            groups.setdefault(result.why, []).append(name)
    lines = [
        f"{fold_names(names)}: {why}, as job "
        f"{fold_names(str(results[name].job) for name in names).strip('[]')}"
        for why, names in groups.items()
    ]
    return "\n".join([*lines, _LIST_HINT])


def waiting_table(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Return jobs that wait as a table; a sentence if there are none."""
    if not jobs:
        return "No jobs wait for boards."
    rows = [
        (
            str(job["job"]),
            str(job["board"]),
            format_time(job["created"]),
            format_time(job["expires"]),
            str(job["caller"]),
        )
        for job in jobs
    ]
    texts = [shorten(what_text(job), MAX_JOB_CHARS) for job in jobs]
    headings = ("job", "board", "submitted", "waits until", "caller", "what")
    shown = [(*map(shorten, row), text) for row, text in zip(rows, texts, strict=True)]
    return format_table(headings, shown)
