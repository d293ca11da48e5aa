"""``Dashboard``, the fleet as a live table: the Python side of the widget in dashboard.js."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import traitlets

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.samples import Sample
from cloudmanager.client.watch import Update
from cloudmanager.display.text_tables import fleet_table, job_text
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.facts import FACT_NAMES, FACTS, Fact, fact_text
from cloudmanager.protocol.targets import Target, parse_target
from cloudmanager.protocol.text import fold_names, sanitize_text

from .board_page import make_section, make_sections
from .dashboard_actions import ACTIONS, Action, ActionFailed, action_buttons
from .live_widget import LiveWidget, javascript_module, run_in_thread
from .plot import numeric_values

_HISTORY_SAMPLES: Final = 1000  # samples that are plotted when a board's page opens
_LISTED_FACTS: Final = tuple(fact for fact in FACTS if fact.in_lists)  # columns of the table
_MAX_FACT_CHARS: Final = 60  # characters of a fact that a board reports, in the table


class _BoardSnapshot(NamedTuple):
    """The attributes of a board that targets refer to; what ``Target.covers`` needs."""

    online: bool
    labels: Mapping[str, str]
    facts: Mapping[str, str]


class Dashboard(LiveWidget):
    """The fleet as a live table, with a page for each board; see ``cm_magics.dashboard``.

    All boards are sent to the page; its filter only selects which of them are shown.
    """

    _esm = javascript_module("Dashboard", "plot.js", "table.js", "dashboard.js")
    actions = traitlets.List(action_buttons()).tag(sync=True)
    #: Of each fact that is a column of the table: name, heading, whether it is a number.
    fact_columns = traitlets.List(
        [(fact.name, fact.heading, fact.is_number) for fact in _LISTED_FACTS]
    ).tag(sync=True)
    #: The target that is in the filter field when the page opens.
    initial_filter = traitlets.Unicode().tag(sync=True)

    def __init__(self, fleet: Fleet, target: Target | None = None) -> None:
        self._boards: dict[str, dict[str, Any]] = {}
        self._server_time = 0.0  # Unix time, by the server's clock, of the last update
        self._lost_reason = ""  # why the server is unreachable; "" if it is reachable
        self._filter = target
        self._open_board: str | None = None  # the board whose page is open
        super().__init__(fleet, "all", initial_filter=target.text if target else "")

    def on_update(self, update: Update) -> None:
        """Send the page what changed."""
        if update.lost:
            self._lost_reason = update.lost
            self.send({"kind": "lost", "reason": sanitize_text(update.lost)})
            return
        self._lost_reason = ""
        self._server_time = update.time
        if update.whole:
            self._boards.clear()
        for name in update.gone:
            self._boards.pop(name, None)
        self._boards.update((board["name"], board) for board in update.boards)
        self._send_boards(
            [board["name"] for board in update.boards], update.gone, is_snapshot=update.whole
        )
        if self._filter is not None and (update.boards or update.gone):
            self._send_filtered_names()
        if self._open_board is not None:
            self._send_page_update(update)

    def send_everything(self) -> None:
        """Send all boards, the names that the filter selects, and whether the server is lost."""
        self._send_boards(list(self._boards), [], is_snapshot=True)
        self._send_filtered_names()
        if self._lost_reason:
            self.send({"kind": "lost", "reason": sanitize_text(self._lost_reason)})

    def on_page_message(self, message: dict[str, Any]) -> None:
        """Handle what the user did in the page; ignore messages that make no sense."""
        kind = message.get("do")
        if kind == "filter":
            self._on_filter(str(message.get("text", "")))
        elif kind == "action":
            names = [str(name) for name in message.get("boards", ())]
            actions = [action for action in ACTIONS if action.name == message.get("action")]
            if names and actions:
                run_in_thread(self._run_action, actions[0], names, str(message.get("text", "")))
        elif kind == "page":
            self._open_board = message.get("board")
            if self._open_board is not None:
                run_in_thread(self._send_page, self._open_board)
        elif kind == "section":
            run_in_thread(self._send_section, message.get("board"), message.get("title"))
        elif kind == "job":
            run_in_thread(self._send_job, message.get("number"))

    def _send_boards(self, names: list[str], gone: list[str], *, is_snapshot: bool = False) -> None:
        rows = [_table_row(self._boards[name]) for name in names]
        self.send(
            {
                "kind": "boards",
                "rows": rows,
                "gone": gone,
                "is_snapshot": is_snapshot,
                "now": self._server_time,
            }
        )

    def _on_filter(self, text: str) -> None:
        error = ""
        try:
            target = parse_target(text) if text.strip() else None
        except CloudmanagerError as target_error:
            error = sanitize_text(str(target_error))
        else:
            with self._lock:
                self._filter = target
        self._send_filtered_names(error)

    def _send_filtered_names(self, error: str = "") -> None:
        """Send the names of the boards that the filter selects; None means all boards."""
        with self._lock:
            names: list[str] | None = None
            if self._filter is not None:
                names = [
                    name
                    for name, board in self._boards.items()
                    if self._filter.covers(name, _board_snapshot(board))
                ]
            self.send({"kind": "filtered", "names": names, "error": error})

    def _run_action(self, action: Action, names: list[str], text: str) -> None:
        target = fold_names(names)
        title = f"{action.title.rstrip('…')}: {target}"

        def show_text(shown: str, state: str = "running") -> None:
            self.send({"kind": "action", "title": title[:200], "text": shown, "state": state})

        show_text("…")
        try:
            outcome = action.handler(self._fleet, target, text, show_text)
        except (CloudmanagerError, ActionFailed, OSError) as error:  # OSError: local or board file
            show_text(sanitize_text(str(error)), "failed")
        else:
            show_text(sanitize_text(outcome), "done")

    def _send_page(self, name: str, history: int = _HISTORY_SAMPLES) -> None:
        board = self._boards.get(name)
        if board is None:
            return
        samples: list[Any] = []
        with contextlib.suppress(CloudmanagerError):  # the sections show the error
            samples = [_plot_sample(sample) for sample in self._fleet.samples(name, history)]
        page = {"board": name, "sections": make_sections(self._fleet, board), "samples": samples}
        if self._open_board == name:
            self.send({"kind": "page", **page})

    def _send_page_update(self, update: Update) -> None:
        """Send the open page what an update contains about its board."""
        samples = [
            _plot_sample(sample) for sample in update.samples if sample.board == self._open_board
        ]
        if samples:
            self.send({"kind": "samples", "board": self._open_board, "samples": samples})
        if any(board["name"] == self._open_board for board in update.boards):
            run_in_thread(self._send_page, self._open_board, 1)

    def _send_section(self, name: Any, title: Any) -> None:
        board = self._boards.get(name)
        if board is not None and (section := make_section(self._fleet, board, title)):
            self.send({"kind": "section", "board": name, "section": section})

    def _send_job(self, number: Any) -> None:
        try:
            text = job_text(self._fleet.job(number))
        except CloudmanagerError as error:
            text = sanitize_text(str(error))
        self.send({"kind": "job", "number": number, "text": text})

    def _repr_mimebundle_(self, **arguments: Any) -> Any:
        """Add the table of the filter's boards as text, for frontends without widgets."""
        bundle = super()._repr_mimebundle_(**arguments)
        try:
            text = fleet_table(self._fleet.boards(self._filter.text if self._filter else None))
        except CloudmanagerError as error:
            text = str(error)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**(data or {}), "text/plain": text}, metadata


def _table_row(board: Mapping[str, Any]) -> dict[str, Any]:
    """Return a board's row in the table; facts that the board reported are sanitized and cut."""
    job = board["job"]
    return {
        "name": board["name"],
        "state": board["state"],
        "facts": {fact.name: _fact_cell(fact, board) for fact in _LISTED_FACTS},
        "booted": board["booted"],
        "online": board["connected_since"] is not None,
        "seen": board["last_seen"],
        "program": sanitize_text(str(board["program"]))[:_MAX_FACT_CHARS],
        "job": job and {key: job[key] for key in ("job", "caller", "started")},
        "queued": board["queued"],
    }


def _fact_cell(fact: Fact, board: Mapping[str, Any]) -> tuple[str, Any]:
    """Return a fact's text, and what its column is sorted by: a number, or the text."""
    text = sanitize_text(fact_text(fact, board))[:_MAX_FACT_CHARS]
    value = board.get(fact.name)
    return text, value if text and isinstance(value, int) else text


def _board_snapshot(board: Mapping[str, Any]) -> _BoardSnapshot:
    facts = {name: str(board.get(name, "")) for name in FACT_NAMES}
    return _BoardSnapshot(board["connected_since"] is not None, board["labels"], facts)


def _plot_sample(sample: Sample) -> tuple[str, float, dict[str, float]]:
    """Return a sample as plot.js expects it: board, Unix time, numbers by name."""
    return sample.board, sample.at, numeric_values(sample)
