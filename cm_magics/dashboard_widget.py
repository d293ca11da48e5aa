"""``Dashboard``, the fleet as a live table: the Python side of the widget in dashboard.js."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

import traitlets

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.samples import Sample
from cloudmanager.client.watch import Update, Watch
from cloudmanager.display.text_tables import fleet_table, job_text
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.facts import FACT_NAMES, FACTS, Fact, fact_text
from cloudmanager.protocol.targets import Target, parse_target
from cloudmanager.protocol.text import fold_names, sanitize_text
from cloudmanager.results.rows import (
    FLEET_HEADINGS,
    fleet_rows,
    format_time,
    reserved_text,
    sleep_text,
)

from .board_log import BoardLog
from .board_page import delete_file, file_text, make_section, make_sections, read_file
from .dashboard_actions import (
    ACTIONS,
    Action,
    ActionFailed,
    ShowText,
    action_buttons,
    upload_content,
)
from .dashboard_rollouts import VERBS, rollout_views
from .live_widget import LiveWidget, javascript_module, run_in_thread
from .plot import numeric_values
from .saved_output import Bundle, saved_html, saved_text, table_html

_HISTORY_SAMPLES: Final = 1000  # samples that are plotted when a board's page opens
#: The program is in the column "Runs".
_COLUMN_FACTS: Final = tuple(fact for fact in FACTS if fact.name != "program")
#: Of each fact, for a column of the table: name, heading, whether it is a number, and whether it is
#: hidden until the user chooses it.
FACT_COLUMNS: Final = [
    (fact.name, fact.heading, fact.is_number, not fact.in_lists) for fact in _COLUMN_FACTS
]
_MAX_FACT_CHARS: Final = 60  # characters of a fact that a board reports, in the table
#: The files of the page, in the order in which they are joined.
JAVASCRIPT: Final = ("plot.js", "table.js", "rollouts.js", "dashboard.js")
#: Seconds between two looks at rollouts, while one is in progress, and otherwise.
_OPEN_SECONDS: Final = 1.0
_ENDED_SECONDS: Final = 5.0
_NO_BOARD: Final = "This board was renamed or revoked."
_MAX_SAVED_ROWS: Final = 500  # rows of the table that the notebook keeps
#: Fields of a row that a text in the filter is searched in, in addition to the facts.
_SEARCHED_FIELDS: Final = ("name", "state", "labels", "program")


class _BoardSnapshot(NamedTuple):
    """The attributes of a board that targets refer to; what ``Target.covers`` needs."""

    online: bool
    labels: Mapping[str, str]
    facts: Mapping[str, str]


class Dashboard(LiveWidget):
    """The fleet as a live table, with a page for each board; see ``cm_magics.dashboard``.

    All boards are sent to the page; its filter only selects which of them are shown.
    """

    _esm = javascript_module("Dashboard", *JAVASCRIPT)
    actions = traitlets.List(action_buttons()).tag(sync=True)
    fact_columns = traitlets.List(FACT_COLUMNS).tag(sync=True)
    #: The target that is in the filter field when the page opens.
    initial_filter = traitlets.Unicode().tag(sync=True)

    def __init__(self, fleet: Fleet, target: Target | None = None) -> None:
        self._boards: dict[str, dict[str, Any]] = {}
        self._server_time = 0.0  # Unix time, by the server's clock, of the last update
        self._lost_reason = ""  # why the server is unreachable; "" if it is reachable
        self._filter = target
        #: The text of the filter in lower case, as words to search.
        self._search_words = target.text.lower().split() if target else []
        self._open_board: str | None = None  # the board whose page is open
        self._saved_rows: list[tuple[str, ...]] = []  # without what changes all the time
        self._saved_state: Bundle = {}
        self._board_log = BoardLog(fleet, self.send)
        self._rollouts: list[dict[str, Any]] = []  # as the page shows them
        self._rollouts_due = threading.Event()  # set when they are to be read at once
        super().__init__(fleet, "all", initial_filter=target.text if target else "")

    def start_watching(self) -> None:
        """Subscribe to the boards, and look at rollouts, unless that is in progress."""
        with self._lock:
            before = self._watch
            super().start_watching()
            if self._watch is not before:
                run_in_thread(self._watch_rollouts, self._watch)

    def _watch_rollouts(self, watch: Watch) -> None:
        """Look at rollouts, more often while one is in progress, until the subscription ends."""
        while self._watch is watch:
            self._rollouts_due.clear()
            with contextlib.suppress(CloudmanagerError):  # the page shows that the server is lost
                views = rollout_views(self._fleet.rollouts())
                with self._lock:
                    if views != self._rollouts and self._watch is watch:
                        self._rollouts = views
                        self._send_rollouts()
            is_open = any(view["is_open"] for view in self._rollouts)
            self._rollouts_due.wait(_OPEN_SECONDS if is_open else _ENDED_SECONDS)

    def _send_rollouts(self) -> None:
        self.send({"kind": "rollouts", "rollouts": self._rollouts})

    def _change_rollout(self, verb: Any, group: str) -> None:
        """Pause, resume, abort or roll back the rollout of a group."""
        if verb not in VERBS:
            return
        label, change = VERBS[verb]
        try:
            change(self._fleet, group)
        except CloudmanagerError as error:
            title = f"{label} {sanitize_text(group)}"[:200]
            text = sanitize_text(str(error))
            self.send({"kind": "action", "title": title, "text": text, "state": "failed"})
        self._rollouts_due.set()

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
        old_name = self._follow_rename(update)
        for name in update.gone:
            self._boards.pop(name, None)
        self._boards.update((board["name"], board) for board in update.boards)
        self._send_boards(
            [board["name"] for board in update.boards], update.gone, is_snapshot=update.whole
        )
        if old_name and self._open_board is not None:
            run_in_thread(self._send_page, self._open_board, _HISTORY_SAMPLES, old_name)
        elif self._open_board is not None:
            self._send_page_update(update)

    def _follow_rename(self, update: Update) -> str:
        """Keep the page of a renamed board open; return its old name, "" if it was not renamed."""
        old = self._boards.get(self._open_board or "")
        if old is None or old["name"] not in update.gone:
            return ""
        for board in update.boards:
            if board["id"] == old["id"]:
                self._open_board = board["name"]
                return str(old["name"])
        return ""

    def send_everything(self) -> None:
        """Send all boards, the names that the filter selects, and whether the server is lost."""
        self._send_boards(list(self._boards), [], is_snapshot=True)
        self._send_rollouts()
        if self._lost_reason:
            self.send({"kind": "lost", "reason": sanitize_text(self._lost_reason)})

    def on_page_message(self, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Handle what the user did in the page; ignore messages that make no sense."""
        kind = message.get("do")
        if kind == "filter":
            self._on_filter(str(message.get("text", "")))
        elif kind == "action":
            actions = [action for action in ACTIONS if action.name == message.get("action")]
            if actions:
                self._close_page()  # it makes room for the outcome
                text = str(message.get("text", ""))
                run_in_thread(self._run_action, actions[0], _names_in(message), text)
        elif kind == "upload":
            names, path = _names_in(message), str(message.get("path", ""))
            if path and len(buffers) == 1:
                run_in_thread(self._upload, names, path, bytes(buffers[0]))
        elif kind == "file":
            run_in_thread(
                self._on_file, message.get("board"), str(message.get("path")), message.get("verb")
            )
        elif kind == "page":
            self._close_page()
            self._open_board = message.get("board")
            if self._open_board is not None:
                run_in_thread(self._send_page, self._open_board)
        elif kind == "section":
            run_in_thread(self._send_section, message.get("board"), message.get("title"))
        elif kind == "rollout":
            group = str(message.get("group", ""))
            run_in_thread(self._change_rollout, message.get("verb"), group)
        elif kind == "job":
            run_in_thread(self._send_job, message.get("number"))

    def _send_boards(self, names: list[str], gone: list[str], *, is_snapshot: bool = False) -> None:
        """Send rows, and in the same message which boards the filter selects now.

        With two messages, a table would show a new board, or lose a renamed one, for a moment: a
        click would hit another row, and the selection would be empty.
        """
        changes_filtered = is_snapshot or (self._search_words and (names or gone))
        self.send(
            {
                "kind": "boards",
                "rows": [_table_row(self._boards[name]) for name in names],
                "gone": gone,
                "is_snapshot": is_snapshot,
                "now": self._server_time,
                "filtered": self._filtered() if changes_filtered else None,
            }
        )

    def _on_filter(self, text: str) -> None:
        error, target = "", None
        try:
            target = parse_target(text) if text.strip() else None
        except CloudmanagerError as target_error:
            error = sanitize_text(str(target_error))
        words = text.lower().split()
        with self._lock:
            if error and not self._search_boards(words):
                words = self._search_words  # half a target: keep what the last text selected
            else:
                self._filter = target
            self._search_words = words
            filtered = self._filtered()
            error = "" if filtered["searched"] else error
            self.send({"kind": "filtered", **filtered, "error": error})

    def _filtered(self) -> dict[str, Any]:
        """Return what the filter selects: `names`, None for all boards, and whether by its words.

        These are the boards of the target; if there are none, those with all words of the text.
        """
        names: list[str] | None = None
        searched = False
        if self._search_words:
            names = self._boards_of_target()
            searched = not names and bool(found := self._search_boards(self._search_words))
            names = found if searched else names
        return {"names": names, "searched": searched}

    def _boards_of_target(self) -> list[str]:
        if self._filter is None:
            return []
        return [
            name
            for name, board in self._boards.items()
            if self._filter.covers(name, _board_snapshot(board))
        ]

    def _search_boards(self, words: Sequence[str]) -> list[str]:
        """Return the names of the boards in whose row each of these words occurs."""
        found = []
        for name, board in self._boards.items():
            row = _table_row(board)
            texts = [row[field] for field in _SEARCHED_FIELDS]
            texts += [cell[0] for cell in row["facts"].values()]
            text = " ".join(texts).lower()
            if all(word in text for word in words):
                found.append(name)
        return found

    def _run_action(self, action: Action, names: list[str], text: str) -> None:
        self._report(
            action.title.rstrip("…"),
            names,
            lambda target, show_text: action.handler(self._fleet, target, text, show_text),
        )

    def _upload(self, names: list[str], path: str, content: bytes) -> None:
        """Write a file that the user dropped or chose in the browser."""
        self._report(
            f"Upload {sanitize_text(path)}",
            names,
            lambda target, show_text: upload_content(self._fleet, target, path, content, show_text),
        )
        if self._open_board in names:
            self._send_section(self._open_board, "Files")

    def _report(self, what: str, names: list[str], act: Callable[[str, ShowText], str]) -> None:
        """Do something on boards that takes time, and show its progress and outcome in the page.

        Args:
            what: the beginning of the title.
            names: the boards.
            act: called with the boards as a target, and with what shows a text.
        """
        target = fold_names(names)
        title = f"{what}: {target}"[:200]

        def show_text(shown: str, state: str = "running") -> None:
            self.send({"kind": "action", "title": title, "text": shown, "state": state})

        show_text("…")
        try:
            if not names:
                raise ActionFailed("No board is selected.")
            outcome = act(target, show_text)
        except (CloudmanagerError, ActionFailed, OSError) as error:  # OSError: local or board file
            show_text(sanitize_text(str(error)), "failed")
        except Exception as error:
            show_text(f"{type(error).__name__}: {sanitize_text(str(error))}", "failed")
            raise  # it is an error in the code: its traceback goes to the kernel's log
        else:
            show_text(sanitize_text(outcome), "done")

    def _on_file(self, name: Any, path: str, verb: Any) -> None:
        """Open, download or delete a file of a board."""
        answer = {"kind": "file", "board": name, "path": sanitize_text(path), "verb": verb}
        if name not in self._boards:
            self.send({**answer, "text": _NO_BOARD, "failed": True})
            return
        try:
            if verb == "open":
                self.send({**answer, "text": file_text(read_file(self._fleet, name, path))})
            elif verb == "download":
                content = read_file(self._fleet, name, path)
                file_name = sanitize_text(PurePosixPath(path).name)
                self.send({**answer, "file_name": file_name}, [content])
            elif verb == "delete":
                delete_file(self._fleet, name, path)
                self.send({**answer, "text": f"{sanitize_text(path)} was deleted."})
                self._send_section(name, "Files")
        except (CloudmanagerError, OSError) as error:  # OSError: the board's file system
            self.send({**answer, "text": sanitize_text(str(error)), "failed": True})

    def _send_page(
        self, name: str, history: int = _HISTORY_SAMPLES, renamed_from: str = ""
    ) -> None:
        board = self._boards.get(name)
        if board is None:
            return
        samples: list[Any] = []
        with contextlib.suppress(CloudmanagerError):  # the sections show the error
            samples = [_plot_sample(sample) for sample in self._fleet.samples(name, history)]
        page = {
            "board": name,
            "renamed_from": renamed_from,
            "sections": make_sections(self._fleet, board),
            "samples": samples,
        }
        with self._lock:
            if self._open_board == name:
                self.send({"kind": "page", **page})
                self._board_log.show(name)

    def _close_page(self) -> None:
        with self._lock:
            self._open_board = None
            self._board_log.show(None)

    def stop_watching(self) -> None:
        """End the subscription and the log of the board whose page is open."""
        self._close_page()
        super().stop_watching()

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
        if board is None:
            section: Any = {"title": title, "text": _NO_BOARD}
        else:
            section = make_section(self._fleet, board, title)
        if section:
            self.send({"kind": "section", "board": name, "section": section})

    def _send_job(self, number: Any) -> None:
        try:
            text = job_text(self._fleet.job(number))
        except CloudmanagerError as error:
            text = sanitize_text(str(error))
        self.send({"kind": "job", "number": number, "text": text})

    def make_saved_state(self) -> Bundle:
        """Return the table of the boards that the dashboard was opened for.

        It is renewed only when a board's state, labels or software changed: free heap and times
        change all the time, and each change makes the notebook one with unsaved changes.
        """
        try:
            boards = self._fleet.boards(self.initial_filter or None)
        except CloudmanagerError as error:
            return saved_text(str(error))
        stable = [tuple(str(board[key]) for key in _STABLE_FIELDS) for board in boards]
        if stable != self._saved_rows or not self._saved_state:
            self._saved_rows, self._saved_state = stable, _saved_table(boards)
        return self._saved_state


_STABLE_FIELDS: Final = ("id", "name", "state", "labels", "version", "client", "program")


def _saved_table(boards: Sequence[Mapping[str, Any]]) -> Bundle:
    text = fleet_table(boards)
    if not boards:
        return saved_text(text)
    rows = fleet_rows(boards)
    omitted = len(rows) - _MAX_SAVED_ROWS
    more = f" {omitted:,} more boards are left out." if omitted > 0 else ""
    note = f"The boards at {format_time(time.time())}.{more} Run the cell for the live table."
    table = table_html(FLEET_HEADINGS, rows[:_MAX_SAVED_ROWS])
    return {"text/plain": text, "text/html": saved_html(f"{table}<p>{escape(note)}</p>")}


def _names_in(message: Mapping[str, Any]) -> list[str]:
    """Return the boards that a message of the page names."""
    return [str(name) for name in message.get("boards", ())]


def _table_row(board: Mapping[str, Any]) -> dict[str, Any]:
    """Return a board's row in the table; facts that the board reported are sanitized and cut."""
    job = board["job"]
    return {
        "id": board["id"],
        "name": board["name"],
        "state": board["state"],
        "labels": ", ".join(f"{key}={value}" for key, value in sorted(board["labels"].items())),
        "facts": {fact.name: _fact_cell(fact, board) for fact in _COLUMN_FACTS},
        "booted": board["booted"],
        "online": board["connected_since"] is not None,
        "seen": board["last_seen"],
        "program": sanitize_text(_activity(board))[:_MAX_FACT_CHARS],
        "sleeps": sleep_text(board).strip(),
        "job": job and {key: job[key] for key in ("job", "caller", "started")},
        "queued": board["queued"],
    }


def _activity(board: Mapping[str, Any]) -> str:
    """Return what a board does without a job: its own program, and who has it reserved."""
    reserved = reserved_text(board)
    parts = (f"reserved by {reserved}" if reserved else "", str(board["program"]))
    return "; ".join(filter(None, parts))


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
