"""A board's page in the dashboard: the table ``SECTIONS``. Another section is another row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cloudmanager.client.files import Entry
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.packages import Packages
from cloudmanager.display.file_report import size_text, value_text
from cloudmanager.display.tables import facts, moment
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import clean

_JOBS: Final = 12  # that are listed
_FILES: Final = 200
_CLIENT: Final = "/lib/cm/"  # a folder of ours

Board = Mapping[str, Any]


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        title: its heading.
        make: returns its ``pairs``, ``jobs`` or ``text``.
        asked: whether it waits until somebody asks for it, since the board works for it.
    """

    title: str
    make: Callable[[Fleet, Board], dict[str, Any]]
    asked: bool = False


def _facts(_: Fleet, board: Board) -> dict[str, Any]:
    return {"pairs": facts(board)}


def _jobs(fleet: Fleet, board: Board) -> dict[str, Any]:
    jobs = [
        {"number": job["job"], "line": clean(_line(job))}
        for job in fleet.jobs(board["name"])[:_JOBS]
    ]
    return {"jobs": jobs} if jobs else {"text": "none yet"}


def _line(job: Board) -> str:
    took = f" · {job['elapsed']:.3f} s" if job["status"] and job["elapsed"] else ""
    return f"{job['job']} · {job['status'] or job['state']}{took} · for {job['caller']}"


def _files(fleet: Fleet, board: Board) -> dict[str, Any]:
    boards = fleet[board["name"]]
    found: list[Entry] = boards.ls(":/", recursive=True).value
    shown = [entry for entry in found if not entry.path.startswith(_CLIENT)]
    pairs = [
        (clean(entry.path), "folder" if entry.is_dir else size_text(entry.size))
        for entry in sorted(shown)[:_FILES]
    ]
    more = len(shown) - len(pairs)
    left = value_text(boards.df().value)
    return {"pairs": pairs, "text": f"… and {more:,} more\n{left}" if more else left}


def _packages(fleet: Fleet, board: Board) -> dict[str, Any]:
    found: Packages = fleet[board["name"]].packages().value
    pairs = [(clean(name), clean(version)) for name, version in found.items()]
    pairs += [("drift", clean(told)) for told in found.drift]
    if pairs and found.as_of is not None:
        pairs.append(("as of", moment(found.as_of)))
    return {"pairs": pairs} if pairs else {"text": "none"}


SECTIONS: Final = (
    Section("Facts", _facts),
    Section("Recent jobs", _jobs),
    Section("Files", _files, asked=True),
    Section("Packages", _packages, asked=True),
)


def sections(fleet: Fleet, board: Board) -> list[dict[str, Any]]:
    """Return the page of a board; of what has to be asked for, the titles."""
    return [
        {"title": each.title, "asked": True} if each.asked else _made(each, fleet, board)
        for each in SECTIONS
    ]


def section(fleet: Fleet, board: Board, title: str) -> dict[str, Any] | None:
    """Return one part of the page; None where there is no such part."""
    found = (each for each in SECTIONS if each.title == title)
    return next((_made(each, fleet, board) for each in found), None)


def _made(part: Section, fleet: Fleet, board: Board) -> dict[str, Any]:
    """Make a part; one that cannot be had says why."""
    try:
        return {"title": part.title, **part.make(fleet, board)}
    except (CloudmanagerError, OSError) as error:  # OSError: the board's file system
        return {"title": part.title, "text": clean(str(error))}
