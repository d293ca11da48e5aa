"""What may be done with the boards that are selected in the dashboard: the table ``ACTIONS``.

Another action is another row. It gets the boards as a target, what was typed, and ``say``, which
shows how far it is; it returns what is to be said in the end, or raises ``Failed`` with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from cloudmanager.client.file_verbs import FileVerbs
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import Event
from cloudmanager.client.package_verbs import PackageVerbs
from cloudmanager.display import progress, terminal
from cloudmanager.display.cell_view import CellView, DisplayOptions
from cloudmanager.display.file_report import files_text
from cloudmanager.protocol.errors import TargetError
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Results

RESET_SECONDS: Final = 30.0  # that boards have to come back
_REFRESH_SECONDS: Final = 0.25  # seconds between two looks at a running cell

ShowText = Callable[[str], None]


class ActionFailed(Exception):
    """It did not go well on all boards; says how it went on each."""


class Action(NamedTuple):
    """One button.

    Attributes:
        name: what the page calls it.
        title: what the button says.
        handler: does it: fleet, target, what was typed, say -> what is said in the end.
        prompt: what is to be typed; "" where nothing is.
        lines: of the field that it is typed into.
    """

    name: str
    title: str
    handler: Callable[[Fleet, str, str, ShowText], str]
    prompt: str = ""
    lines: int = 1


def _run_code(fleet: Fleet, target: str, code: str, show_text: ShowText) -> str:
    group = fleet[target].submit(code, listen=True)
    view = CellView(group, DisplayOptions("show"))
    due = 0.0

    def draw(_: Event | None) -> None:
        nonlocal due
        if (now := time.monotonic()) >= due:
            due = now + _REFRESH_SECONDS
            show_text(view.text())

    terminal.run_display(group, view, draw, lambda _: None, lambda: None)
    return _check_outcome(group.results(), view.text(final=True) or "done")


def _check_outcome(results: Results, text: str) -> str:
    if not results.ok:
        raise ActionFailed(text)
    return text


def _interrupt_jobs(fleet: Fleet, target: str, _: str, __: ShowText) -> str:
    open_jobs = [job for job in fleet.jobs(target) if job["status"] is None]
    if not open_jobs:
        return "nothing runs there"
    count = fleet.interrupt([job["job"] for job in open_jobs])
    return f"{count:,} {'job' if count == 1 else 'jobs'} interrupted"


def _reset_boards(fleet: Fleet, target: str, _: str, __: ShowText) -> str:
    results = fleet[target].run("None", fresh=True, timeout=RESET_SECONDS)
    well = fold_names(name for name, result in results.items() if result.ok)
    failed = [f"{name}: {result.error}" for name, result in results.failed.items()]
    return _check_outcome(
        results, "\n".join([f"{well} restarted" if well else "", *failed]).strip()
    )


def _set_label(fleet: Fleet, target: str, text: str, __: ShowText) -> str:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals:
        raise TargetError("A label is written key=value.", text, 0, "`room=` takes one away.")
    names = fleet[target].label({key: value})
    return (
        f"{fold_names(names)}: {key}={value}" if value else f"{fold_names(names)}: {key} taken away"
    )


def _upload_file(fleet: Fleet, target: str, text: str, show_text: ShowText) -> str:
    boards = fleet[target]
    source, _, dest = text.strip().partition(" ")
    path, place = Path(source).expanduser(), dest.strip() or ":/"
    return _run_transfer(lambda tell: FileVerbs.put(boards, path, place, progress=tell), show_text)


def _install_packages(fleet: Fleet, target: str, text: str, show_text: ShowText) -> str:
    boards, wanted = fleet[target], text.split()
    return _run_transfer(
        lambda tell: PackageVerbs.install(boards, *wanted, progress=tell), show_text
    )


def _run_transfer(verb: progress.VerbWithProgress, show_text: ShowText) -> str:
    """Do what moves bytes to boards, and say how far it is."""
    results = progress.run_with_progress(verb, lambda moved: show_text(moved.text()))
    return _check_outcome(results, files_text(results) or "done")


def _rename_board(fleet: Fleet, target: str, name: str, __: ShowText) -> str:
    return f"it is called {fleet.rename(target, name.strip())} now"


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
        "upload", "Upload…", _upload_file, "A file of this machine, and perhaps where to: app.py :/"
    ),
    Action("rename", "Rename…", _rename_board, "Another name for the one board that is selected"),
)


def action_buttons() -> list[dict[str, Any]]:
    """Return what the page needs to know of each action."""
    return [{key: value for key, value in a._asdict().items() if key != "handler"} for a in ACTIONS]
