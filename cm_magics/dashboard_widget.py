"""``Dashboard``: the fleet as a live table. The page is dashboard.js; this is what it talks to."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import traitlets

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.samples import Sample
from cloudmanager.client.watch import Update
from cloudmanager.display.tables import fleet_table, job_text
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.names import FACT_NAMES
from cloudmanager.protocol.targets import Target, parse
from cloudmanager.protocol.text import clean, fold

from .board_page import section, sections
from .dashboard_actions import ACTIONS, Action, Failed, buttons
from .live_widget import Live, in_thread, module
from .plot import numbers

_HISTORY: Final = 1000  # samples that a board's page begins with
_TEXT: Final = 60  # characters of what a board says of itself, in a row


class _Seen(NamedTuple):
    """A board as a target sees it."""

    online: bool
    labels: Mapping[str, str]
    facts: Mapping[str, str]


class Dashboard(Live):
    """The fleet as a live table, with a page for each board; see ``cm_magics.dashboard``."""

    _esm = module("Dashboard", "plot.js", "table.js", "dashboard.js")
    actions = traitlets.List(buttons()).tag(sync=True)

    begins = traitlets.Unicode().tag(sync=True)  # with this target in its filter

    def __init__(self, fleet: Fleet, target: Target | None = None) -> None:
        self._boards: dict[str, dict[str, Any]] = {}
        self._time = 0.0  # the server's clock
        self._lost = ""
        self._filter = target
        self._page: str | None = None  # the board whose page is open
        super().__init__(fleet, "all", begins=target.text if target else "")

    def take(self, update: Update) -> None:
        """Show what changed."""
        if update.lost:
            self._lost = update.lost
            self.send({"kind": "lost", "why": clean(update.lost)})
            return
        self._lost, self._time = "", update.time
        if update.whole:
            self._boards.clear()
        for name in update.gone:
            self._boards.pop(name, None)
        self._boards.update((board["name"], board) for board in update.boards)
        self._tell([board["name"] for board in update.boards], update.gone, whole=update.whole)
        if self._filter is not None and (update.boards or update.gone):
            self._tell_shown()
        if self._page is not None:
            self._tell_page(update)

    def greet(self) -> None:
        """Tell all boards."""
        self._tell(list(self._boards), [], whole=True)
        self._tell_shown()
        if self._lost:
            self.send({"kind": "lost", "why": clean(self._lost)})

    def hear(self, message: dict[str, Any]) -> None:
        """Do what somebody did in the page."""
        kind = message.get("do")
        if kind == "filter":
            self._on_filter(str(message.get("text", "")))
        elif kind == "act":
            names = [str(name) for name in message.get("boards", ())]
            chosen = [action for action in ACTIONS if action.name == message.get("action")]
            if names and chosen:
                in_thread(self._act, chosen[0], names, str(message.get("text", "")))
        elif kind == "page":
            self._page = message.get("board")
            if self._page is not None:
                in_thread(self._open_page, self._page)
        elif kind == "section":
            in_thread(self._show_section, message.get("board"), message.get("title"))
        elif kind == "job":
            in_thread(self._show_job, message.get("number"))

    def _tell(self, names: list[str], gone: list[str], *, whole: bool = False) -> None:
        rows = [_row(self._boards[name]) for name in names]
        self.send({"kind": "boards", "rows": rows, "gone": gone, "whole": whole, "now": self._time})

    def _on_filter(self, text: str) -> None:
        error = ""
        try:
            wanted = parse(text) if text.strip() else None
        except CloudmanagerError as problem:
            error = clean(str(problem))
        else:
            with self._lock:
                self._filter = wanted
        self._tell_shown(error)

    def _tell_shown(self, error: str = "") -> None:
        with self._lock:
            wanted, names = self._filter, None
            if wanted is not None:
                boards = self._boards.items()
                names = [name for name, board in boards if wanted.covers(name, _seen(board))]
            self.send({"kind": "shown", "names": names, "error": error})

    def _act(self, action: Action, names: list[str], text: str) -> None:
        target = fold(names)
        title = f"{action.title.rstrip('…')}: {target}"

        def say(told: str, state: str = "running") -> None:
            self.send({"kind": "say", "title": title[:200], "text": told, "state": state})

        say("…")
        try:
            say(clean(action.act(self._fleet, target, text, say)), "done")
        except (CloudmanagerError, Failed, OSError) as error:  # OSError: a file, here or there
            say(clean(str(error)), "failed")

    def _open_page(self, name: str, history: int = _HISTORY) -> None:
        board = self._boards.get(name)
        if board is None:
            return
        samples: list[Any] = []
        with contextlib.suppress(CloudmanagerError):  # the sections say why
            samples = [_plain(sample) for sample in self._fleet.samples(name, history)]
        page = {"board": name, "sections": sections(self._fleet, board), "samples": samples}
        if self._page == name:
            self.send({"kind": "page", **page})

    def _tell_page(self, update: Update) -> None:
        """Bring the open page up to date."""
        told = [_plain(sample) for sample in update.samples if sample.board == self._page]
        if told:
            self.send({"kind": "samples", "board": self._page, "samples": told})
        if any(board["name"] == self._page for board in update.boards):
            in_thread(self._open_page, self._page, 1)

    def _show_section(self, name: Any, title: Any) -> None:
        board = self._boards.get(name)
        if board is not None and (made := section(self._fleet, board, title)):
            self.send({"kind": "section", "board": name, "section": made})

    def _show_job(self, number: Any) -> None:
        try:
            text = job_text(self._fleet.job(number))
        except CloudmanagerError as error:
            text = clean(str(error))
        self.send({"kind": "job", "number": number, "text": text})

    def _repr_mimebundle_(self, **given: Any) -> Any:
        """Add the table as text, for where there are no widgets."""
        bundle = super()._repr_mimebundle_(**given)
        try:
            text = fleet_table(self._fleet.boards())
        except CloudmanagerError as error:
            text = str(error)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**(data or {}), "text/plain": text}, metadata


def _row(board: Mapping[str, Any]) -> dict[str, Any]:
    """Return a board as its row in the page; what it said of itself is cleaned and cut."""
    job = board["job"]
    return {
        "name": board["name"],
        "state": board["state"],
        "platform": clean(str(board["platform"]))[:_TEXT],
        "version": clean(str(board["version"]))[:_TEXT],
        "heap": board["heap"],
        "rssi": board["rssi"],
        "booted": board["booted"],
        "online": board["connected_since"] is not None,
        "seen": board["last_seen"],
        "program": clean(str(board["program"]))[:_TEXT],
        "job": job and {key: job[key] for key in ("job", "caller", "started")},
        "queued": board["queued"],
    }


def _seen(board: Mapping[str, Any]) -> _Seen:
    facts = {name: str(board.get(name, "")) for name in FACT_NAMES}
    return _Seen(board["connected_since"] is not None, board["labels"], facts)


def _plain(sample: Sample) -> tuple[str, float, dict[str, float]]:
    """Return a sample as the page's plot takes it."""
    return sample.board, sample.at, numbers(sample)
