"""A board's page in the dashboard: the table ``SECTIONS``. Another section is another row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cloudmanager.errors import CloudmanagerError
from cloudmanager.fleet import Fleet
from cloudmanager.tables import duration, moment
from cloudmanager.text import clean

_JOBS: Final = 12  # that are listed

Board = Mapping[str, Any]


class Section(NamedTuple):
    """A part of the page; ``make`` returns its ``pairs``, ``jobs`` or ``text``."""

    title: str
    make: Callable[[Fleet, Board], dict[str, Any]]


def _facts(_: Fleet, board: Board) -> dict[str, Any]:
    since = board["connected_since"]
    told = {
        "state": board["state"],
        "platform": board["platform"],
        "MicroPython": board["version"],
        "bytecode": board["mpy"],
        "machine": board["machine"],
        "client": board["client"],
        "id": board["id"],
        "labels": ", ".join(f"{key}={value}" for key, value in board["labels"].items()),
        "connected": f"{moment(since)} ({duration(time.time() - since)})" if since else "no",
        "last seen": moment(board["last_seen"]),
    }
    return {"pairs": [(name, clean(str(value))) for name, value in told.items() if value]}


def _jobs(fleet: Fleet, board: Board) -> dict[str, Any]:
    jobs = [
        {"number": job["job"], "line": clean(_line(job))}
        for job in fleet.jobs(board["name"])[:_JOBS]
    ]
    return {"jobs": jobs} if jobs else {"text": "none yet"}


def _line(job: Board) -> str:
    took = f" · {job['elapsed']:.1f} s" if job["status"] and job["elapsed"] else ""
    return f"{job['job']} · {job['status'] or job['state']}{took} · for {job['caller']}"


SECTIONS: Final = (
    Section("Facts", _facts),
    Section("Recent jobs", _jobs),
)


def sections(fleet: Fleet, board: Board) -> list[dict[str, Any]]:
    """Return the page of a board; what cannot be had says why."""
    made = []
    for title, make in SECTIONS:
        try:
            made.append({"title": title, **make(fleet, board)})
        except CloudmanagerError as error:
            made.append({"title": title, "text": clean(str(error))})
    return made
