"""A board's page in the dashboard: the table ``SECTIONS``. Another section is another row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cloudmanager.client.files import Entry
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.packages import BoardPackages
from cloudmanager.display.file_report import size_text, value_text
from cloudmanager.display.tables import board_facts, format_time
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import sanitize_text

_MAX_JOBS: Final = 12  # that are listed
_MAX_FILES: Final = 200
_CLIENT_FOLDER: Final = "/lib/cm/"  # a folder of ours

BoardInfo = Mapping[str, Any]


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        title: its heading.
        make_content: returns its ``pairs``, ``jobs`` or ``text``.
        on_demand: whether it waits until somebody asks for it, since the board works for it.
    """

    title: str
    make_content: Callable[[Fleet, BoardInfo], dict[str, Any]]
    on_demand: bool = False


def _facts_content(_: Fleet, board: BoardInfo) -> dict[str, Any]:
    return {"pairs": board_facts(board)}


def _jobs_content(fleet: Fleet, board: BoardInfo) -> dict[str, Any]:
    jobs = [
        {"number": job["job"], "line": sanitize_text(_job_line(job))}
        for job in fleet.jobs(board["name"])[:_MAX_JOBS]
    ]
    return {"jobs": jobs} if jobs else {"text": "none yet"}


def _job_line(job: BoardInfo) -> str:
    took = f" · {job['elapsed']:.3f} s" if job["status"] and job["elapsed"] else ""
    return f"{job['job']} · {job['status'] or job['state']}{took} · for {job['caller']}"


def _files_content(fleet: Fleet, board: BoardInfo) -> dict[str, Any]:
    boards = fleet[board["name"]]
    found: list[Entry] = boards.ls(":/", recursive=True).value
    shown = [entry for entry in found if not entry.path.startswith(_CLIENT_FOLDER)]
    pairs = [
        (sanitize_text(entry.path), "folder" if entry.is_dir else size_text(entry.size))
        for entry in sorted(shown)[:_MAX_FILES]
    ]
    more = len(shown) - len(pairs)
    left = value_text(boards.df().value)
    return {"pairs": pairs, "text": f"… and {more:,} more\n{left}" if more else left}


def _packages_content(fleet: Fleet, board: BoardInfo) -> dict[str, Any]:
    found: BoardPackages = fleet[board["name"]].packages().value
    pairs = [(sanitize_text(name), sanitize_text(version)) for name, version in found.items()]
    pairs += [("drift", sanitize_text(told)) for told in found.drift]
    if pairs and found.as_of is not None:
        pairs.append(("as of", format_time(found.as_of)))
    return {"pairs": pairs} if pairs else {"text": "none"}


SECTIONS: Final = (
    Section("Facts", _facts_content),
    Section("Recent jobs", _jobs_content),
    Section("Files", _files_content, on_demand=True),
    Section("Packages", _packages_content, on_demand=True),
)


def make_sections(fleet: Fleet, board: BoardInfo) -> list[dict[str, Any]]:
    """Return the page of a board; of what has to be asked for, the titles."""
    return [
        {"title": each.title, "asked": True}
        if each.on_demand
        else _fill_section(each, fleet, board)
        for each in SECTIONS
    ]


def make_section(fleet: Fleet, board: BoardInfo, title: str) -> dict[str, Any] | None:
    """Return one part of the page; None where there is no such part."""
    found = (each for each in SECTIONS if each.title == title)
    return next((_fill_section(each, fleet, board) for each in found), None)


def _fill_section(section: Section, fleet: Fleet, board: BoardInfo) -> dict[str, Any]:
    """Make a part; one that cannot be had says why."""
    try:
        return {"title": section.title, **section.make_content(fleet, board)}
    except (CloudmanagerError, OSError) as error:  # OSError: the board's file system
        return {"title": section.title, "text": sanitize_text(str(error))}
