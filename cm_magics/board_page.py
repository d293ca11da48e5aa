"""The sections of a board's page in the dashboard; to add one, add a row to ``SECTIONS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cloudmanager.client.files import Entry
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.packages import BoardPackages
from cloudmanager.display.file_report import size_text, value_text
from cloudmanager.display.text_tables import board_facts
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.file_ops import is_undecodable
from cloudmanager.protocol.text import one_line, sanitize_text
from cloudmanager.results.rows import format_time, what_text

_MAX_JOBS: Final = 12  # jobs that are listed
_MAX_FILES: Final = 200  # files that are listed
_MAX_TEXT_CHARS: Final = 100_000  # of a file that is shown
_CLIENT_FOLDER: Final = "/lib/cm/"  # the board client, which is not listed

BoardInfo = Mapping[str, Any]


class Section(NamedTuple):
    """One section of the page.

    Attributes:
        title: its heading.
        make_content: returns the content: ``pairs``, ``jobs``, ``files`` or ``text``.
        on_demand: whether it is filled only when the user requests it, because the board must run
            a job for it.
    """

    title: str
    make_content: Callable[[Fleet, BoardInfo], dict[str, Any]]
    on_demand: bool = False


def _facts_content(_: Fleet, board: BoardInfo) -> dict[str, Any]:
    return {"pairs": board_facts(board)}


def _jobs_content(fleet: Fleet, board: BoardInfo) -> dict[str, Any]:
    """Return the jobs that wait for the board, then those that run or ended recently."""
    waiting = fleet.jobs(board["name"], waiting=True)[:_MAX_JOBS]
    jobs = [
        {"number": job["job"], "line": sanitize_text(_job_line(job))}
        for job in [*waiting, *fleet.jobs(board["name"])[:_MAX_JOBS]]
    ]
    return {"jobs": jobs} if jobs else {"text": "none yet"}


def _job_line(job: BoardInfo) -> str:
    if job["state"] == "waiting":
        until = f"waits until {format_time(job['expires'])}"
        return f"{job['job']} · {until} · for {job['caller']} · {what_text(job)}"
    duration = f" · {job['elapsed']:.3f} s" if job["status"] and job["elapsed"] else ""
    return f"{job['job']} · {job['status'] or job['state']}{duration} · for {job['caller']}"


def _files_content(fleet: Fleet, board: BoardInfo) -> dict[str, Any]:
    boards = fleet[board["name"]]
    entries: list[Entry] = boards.ls(":/", recursive=True).value
    user_entries = [entry for entry in entries if not f"{entry.path}/".startswith(_CLIENT_FOLDER)]
    files = [
        {
            # A path that is not UTF-8 cannot be sent to the browser; it is shown, and not opened.
            "path": one_line(entry.path) if is_undecodable(entry.path) else entry.path,
            "line": one_line(entry.path),
            "size": "folder" if entry.is_dir else size_text(entry.size),
            "is_folder": entry.is_dir,
        }
        for entry in sorted(user_entries)[:_MAX_FILES]
    ]
    free_space = value_text(boards.df().value)
    omitted = len(user_entries) - len(files)
    text = f"… and {omitted:,} more\n{free_space}" if omitted else free_space
    return {"files": files, "text": text}


def read_file(fleet: Fleet, board: str, path: str) -> bytes:
    """Return the content of a board's file.

    Raises:
        CloudmanagerError, OSError: the board's error, or that it is not connected.
    """
    content: bytes = fleet[board].read(f":{path}").value
    return content


def delete_file(fleet: Fleet, board: str, path: str) -> None:
    """Delete a file of a board.

    Raises:
        CloudmanagerError, OSError: the board's error, or that it is not connected.
    """
    fleet[board].rm(f":{path}").raise_for_error()


def file_text(content: bytes) -> str:
    """Return the content of a file as text to show; a sentence for a file that is not text."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return f"This is not a text file: {len(content):,} bytes. Download it to open it."
    cut = text[:_MAX_TEXT_CHARS]
    more = f"\n… {len(text) - len(cut):,} more characters" if len(text) > len(cut) else ""
    return (sanitize_text(cut) or "The file is empty.") + more


def _packages_content(fleet: Fleet, board: BoardInfo) -> dict[str, Any]:
    packages: BoardPackages = fleet[board["name"]].packages().value
    pairs = [(sanitize_text(name), sanitize_text(version)) for name, version in packages.items()]
    pairs += [("drift", sanitize_text(line)) for line in packages.drift]
    if pairs and packages.as_of is not None:
        pairs.append(("as of", format_time(packages.as_of)))
    return {"pairs": pairs} if pairs else {"text": "none"}


SECTIONS: Final = (
    Section("Facts", _facts_content),
    Section("Recent jobs", _jobs_content),
    Section("Files", _files_content, on_demand=True),
    Section("Packages", _packages_content, on_demand=True),
)


def make_sections(fleet: Fleet, board: BoardInfo) -> list[dict[str, Any]]:
    """Return the sections of a board's page; those on demand have a title and no content."""
    return [
        {"title": section.title, "on_demand": True}
        if section.on_demand
        else _fill_section(section, fleet, board)
        for section in SECTIONS
    ]


def make_section(fleet: Fleet, board: BoardInfo, title: str) -> dict[str, Any] | None:
    """Return the section with this title and its content; None if no section has this title."""
    for section in SECTIONS:
        if section.title == title:
            return _fill_section(section, fleet, board)
    return None


def _fill_section(section: Section, fleet: Fleet, board: BoardInfo) -> dict[str, Any]:
    """Return a section with its content, or with the error message if that failed."""
    try:
        return {"title": section.title, **section.make_content(fleet, board)}
    except (CloudmanagerError, OSError) as error:  # OSError: the board's file system
        return {"title": section.title, "text": sanitize_text(str(error))}
