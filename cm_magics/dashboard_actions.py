"""The actions that the dashboard offers for the selected boards: the table ``ACTIONS``.

To add an action, add a row. Its handler is called with the fleet, the boards as a target, the text
that the user typed, and ``show_text``, which shows progress. It returns the final message, or
raises ``ActionFailed`` with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import Event
from cloudmanager.client.runner import run_blocking
from cloudmanager.display import progress
from cloudmanager.display.cell_view import CellView, DisplayOptions
from cloudmanager.display.file_report import files_text
from cloudmanager.display.following import follow_cell
from cloudmanager.display.wait_notice import new_waits
from cloudmanager.protocol.errors import TargetError
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Results

RESET_SECONDS: Final = 30.0  # time that boards have to reconnect
_REFRESH_SECONDS: Final = 0.25  # time between two updates of a running cell's output

ShowText = Callable[[str], None]


class ActionFailed(Exception):
    """The action failed on at least one board; the message lists the outcome for each."""


class Action(NamedTuple):
    """One action and its button.

    Attributes:
        name: its key in messages from the page.
        title: the button's label.
        handler: called with fleet, target, typed text and ``show_text``; returns the message.
        prompt: the placeholder of the input field; "" if the action needs no text.
        lines: height of the input field.
    """

    name: str
    title: str
    handler: Callable[[Fleet, str, str, ShowText], str]
    prompt: str = ""
    lines: int = 1


def _run_code(fleet: Fleet, target: str, code: str, show_text: ShowText) -> str:
    group = fleet[target].submit(code, listen=True)
    view = CellView(group, DisplayOptions("show"))
    results = run_blocking(follow_cell(group, view, _TextOutput(view, show_text)))
    return _check_outcome(results, view.text(final=True) or "done")


class _TextOutput:
    """Shows the output of a cell as text; nobody answers ``input()``."""

    def __init__(self, view: CellView, show_text: ShowText) -> None:
        self._view = view
        self._show_text = show_text
        self._next_draw = 0.0

    def handle_event(self, event: Event) -> None:
        pass

    def draw(self) -> None:
        if (now := time.monotonic()) >= self._next_draw:
            self._next_draw = now + _REFRESH_SECONDS
            self._show_text(self._view.text())

    def ask(self, _: str) -> str | None:
        return None

    def close(self) -> None:
        pass


def _check_outcome(results: Results, text: str) -> str:
    """Return ``text``.

    Raises:
        ActionFailed: a board failed; with ``text`` as its message.
    """
    if not results.ok:
        raise ActionFailed(text)
    return text


def _interrupt_jobs(fleet: Fleet, target: str, _: str, __: ShowText) -> str:
    open_jobs = [job for job in fleet.jobs(target) if job["status"] is None]
    if not open_jobs:
        return "no jobs are running or queued on these boards"
    count = fleet.interrupt([job["job"] for job in open_jobs])
    return f"{count:,} {'job' if count == 1 else 'jobs'} interrupted"


def _reset_boards(fleet: Fleet, target: str, _: str, show_text: ShowText) -> str:
    with _live_progress(fleet, show_text, unit="boards") as report:
        results = fleet[target].run("None", fresh=True, timeout=RESET_SECONDS, progress=report)
    lines = [f"{name}: {result.error}" for name, result in results.failed.items()]
    if succeeded := fold_names(name for name, result in results.items() if result.ok):
        lines.insert(0, f"{succeeded} restarted")
    return _check_outcome(results, "\n".join(lines))


def _set_label(fleet: Fleet, target: str, text: str, __: ShowText) -> str:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals:
        raise TargetError("A label is written key=value.", text, 0, "`room=` removes a label.")
    names = fleet[target].label({key: value})
    outcome = f"{key}={value}" if value else f"{key} removed"
    return f"{fold_names(names)}: {outcome}"


def _upload_file(fleet: Fleet, target: str, text: str, show_text: ShowText) -> str:
    boards = fleet[target]
    source, _, dest = text.strip().partition(" ")
    path = Path(source).expanduser()
    dest = dest.strip() or ":/"
    return _run_transfer(fleet, lambda report: boards.put(path, dest, progress=report), show_text)


def upload_content(
    fleet: Fleet, target: str, path: str, content: bytes, show_text: ShowText
) -> str:
    """Write a file on boards; return the outcome for each.

    Raises:
        ActionFailed: it failed on a board.
        CloudmanagerError: the target or the path is wrong.
    """
    return _run_transfer(
        fleet, lambda report: fleet[target].put(content, f":{path}", progress=report), show_text
    )


def _install_packages(fleet: Fleet, target: str, text: str, show_text: ShowText) -> str:
    boards = fleet[target]
    packages = text.split()
    return _run_transfer(
        fleet, lambda report: boards.install(*packages, progress=report), show_text
    )


def _run_transfer(fleet: Fleet, verb: progress.VerbWithProgress, show_text: ShowText) -> str:
    """Run a verb that sends files to boards, and show its progress."""
    with _live_progress(fleet, show_text) as report:
        results = verb(report)
    return _check_outcome(results, files_text(results) or "done")


def _live_progress(fleet: Fleet, show_text: ShowText, unit: str = "bytes") -> progress.LiveProgress:
    """Return a context manager that shows the progress of a verb, and what it waits for."""
    waits = new_waits(fleet.queued_jobs)
    return progress.LiveProgress(lambda meter: show_text(meter.text()), unit=unit, waits=waits)


def _rename_board(fleet: Fleet, target: str, name: str, __: ShowText) -> str:
    return f"{target} was renamed to {fleet.rename(target, name.strip())}"


ACTIONS: Final = (
    Action("run", "Run…", _run_code, "Code for the selected boards", 4),
    Action("interrupt", "Interrupt", _interrupt_jobs),
    Action("reset", "Reset", _reset_boards),
    Action("label", "Label…", _set_label, "room=greenhouse"),
    Action(
        "install",
        "Install…",
        _install_packages,
        "Packages: logging pypi:NAME github:OWNER/REPO ./DIR",
    ),
    Action(
        "upload",
        "Upload…",
        _upload_file,
        "A local file, optionally followed by its destination: app.py :/",
    ),
    Action(
        "rename", "Rename…", _rename_board, "New name of the selected board (select exactly one)"
    ),
)


def action_buttons() -> list[dict[str, Any]]:
    """Return the data for the page's buttons: name, title, prompt and lines of each action."""
    return [
        {
            "name": action.name,
            "title": action.title,
            "prompt": action.prompt,
            "lines": action.lines,
        }
        for action in ACTIONS
    ]
