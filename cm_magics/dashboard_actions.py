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
from cloudmanager.display.cell_view import Looks, View
from cloudmanager.display.file_report import files_text
from cloudmanager.protocol.errors import TargetError
from cloudmanager.protocol.text import fold
from cloudmanager.results.results import Results

RESET_SECONDS: Final = 30.0  # that boards have to come back
_TICK: Final = 0.25  # seconds between two looks at a running cell

Say = Callable[[str], None]


class Failed(Exception):
    """It did not go well on all boards; says how it went on each."""


class Action(NamedTuple):
    """One button.

    Attributes:
        name: what the page calls it.
        title: what the button says.
        act: does it: fleet, target, what was typed, say -> what is said in the end.
        prompt: what is to be typed; "" where nothing is.
        lines: of the field that it is typed into.
    """

    name: str
    title: str
    act: Callable[[Fleet, str, str, Say], str]
    prompt: str = ""
    lines: int = 1


def _run(fleet: Fleet, target: str, code: str, say: Say) -> str:
    group = fleet[target].submit(code, listen=True)
    view = View(group, Looks("show"))
    due = 0.0

    def draw(_: Event | None) -> None:
        nonlocal due
        if (now := time.monotonic()) >= due:
            due = now + _TICK
            say(view.text())

    terminal.watch(group, view, draw, lambda _: None, lambda: None)
    return _outcome(group.results(), view.text(final=True) or "done")


def _outcome(results: Results, text: str) -> str:
    if not results.ok:
        raise Failed(text)
    return text


def _interrupt(fleet: Fleet, target: str, _: str, __: Say) -> str:
    open_jobs = [job for job in fleet.jobs(target) if job["status"] is None]
    if not open_jobs:
        return "nothing runs there"
    count = fleet.interrupt([job["job"] for job in open_jobs])
    return f"{count:,} {'job' if count == 1 else 'jobs'} interrupted"


def _reset(fleet: Fleet, target: str, _: str, __: Say) -> str:
    results = fleet[target].run("None", fresh=True, timeout=RESET_SECONDS)
    well = fold(name for name, result in results.items() if result.ok)
    failed = [f"{name}: {result.error}" for name, result in results.failed.items()]
    return _outcome(results, "\n".join([f"{well} restarted" if well else "", *failed]).strip())


def _label(fleet: Fleet, target: str, text: str, __: Say) -> str:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals:
        raise TargetError("A label is written key=value.", text, 0, "`room=` takes one away.")
    names = fleet[target].label({key: value})
    return f"{fold(names)}: {key}={value}" if value else f"{fold(names)}: {key} taken away"


def _upload(fleet: Fleet, target: str, text: str, say: Say) -> str:
    boards = fleet[target]
    source, _, dest = text.strip().partition(" ")
    path, place = Path(source).expanduser(), dest.strip() or ":/"
    return _move(lambda tell: FileVerbs.put(boards, path, place, progress=tell), say)


def _install(fleet: Fleet, target: str, text: str, say: Say) -> str:
    boards, wanted = fleet[target], text.split()
    return _move(lambda tell: PackageVerbs.install(boards, *wanted, progress=tell), say)


def _move(work: progress.Work, say: Say) -> str:
    """Do what moves bytes to boards, and say how far it is."""
    results = progress.follow(work, lambda moved: say(moved.text()))
    return _outcome(results, files_text(results) or "done")


def _rename(fleet: Fleet, target: str, name: str, __: Say) -> str:
    return f"it is called {fleet.rename(target, name.strip())} now"


ACTIONS: Final = (
    Action("run", "Run…", _run, "Code for the selected boards", 4),
    Action("interrupt", "Interrupt", _interrupt),
    Action("reset", "Reset", _reset),
    Action("label", "Label…", _label, "room=greenhouse"),
    Action("install", "Install…", _install, "Packages: logging pypi:NAME github:OWNER/REPO ./DIR"),
    Action("upload", "Upload…", _upload, "A file of this machine, and perhaps where to: app.py :/"),
    Action("rename", "Rename…", _rename, "Another name for the one board that is selected"),
)


def buttons() -> list[dict[str, Any]]:
    """Return what the page needs to know of each action."""
    return [{key: value for key, value in a._asdict().items() if key != "act"} for a in ACTIONS]
