"""The Python side of the dashboard and the plot, with a real server and boards.

A recorder takes the place of the page: it keeps the messages that would be sent to it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cm_magics
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.samples import Sample
from cloudmanager.protocol.errors import TargetError
from cloudmanager.protocol.targets import parse_target
from cm_magics import board_page, live_widget, plot, saved_output
from cm_magics.dashboard_actions import ACTIONS, action_buttons
from cm_magics.dashboard_widget import Dashboard
from cm_magics.live_widget import LiveWidget
from cm_magics.plot import Plot
from tests.conftest import running_boards

WAIT = 60.0  # seconds: the maximum wait for a message, on a busy machine
HOSTILE = "<script>\x1b[2J\u202e"


class Page:
    """Records the messages to the page, and sends messages from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[dict[str, Any]] = []
        self._received = threading.Condition()
        self._next_seqs: dict[tuple[LiveWidget, str], int] = {}

        def send(_: LiveWidget, content: Any, buffers: Any = None) -> None:
            with self._received:
                message = json.loads(json.dumps(content, allow_nan=False))
                self.messages.append(message | ({"buffers": buffers} if buffers else {}))
                self._received.notify_all()

        monkeypatch.setattr(LiveWidget, "send", send)

    def until(self, kind: str, matches: Callable[[Any], object] = lambda _: True) -> Any:
        """Wait for a message of this kind; discard it and those before it."""

        def found() -> list[int]:
            return [
                index
                for index, message in enumerate(self.messages)
                if message["kind"] == kind and matches(message)
            ]

        with self._received:
            assert self._received.wait_for(found, WAIT), self.messages[-5:]
            index = found()[0]
            message = self.messages[index]
            del self.messages[: index + 1]
            return message

    def send(self, widget: LiveWidget, *buffers: bytes, view: str = "v0", **message: Any) -> None:
        """Send the next message from a view of the page to a widget."""
        seq = self._next_seqs.get((widget, view), 0)
        self._next_seqs[widget, view] = seq + 1
        self.send_numbered(widget, seq, *buffers, view=view, **message)

    def send_numbered(self, widget: LiveWidget, seq: int, *buffers: bytes, **message: Any) -> None:
        """Send the message with this sequence number."""
        widget._on_message(widget, {**message, "seq": seq}, list(buffers))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(monkeypatch)


@pytest.fixture
def dashboard(page: Page, fleet: Fleet, boards: Any) -> Iterator[Dashboard]:
    shown = Dashboard(fleet)
    page.until("boards", lambda message: message["is_snapshot"])
    yield shown
    shown.close()


def test_reservation_is_shown_where_a_board_runs_nothing(dashboard: Dashboard, page: Page):
    fleet = Fleet()
    fleet["demo-2"].reserve("1h")
    try:

        def reserved(message: Any) -> list[Any]:
            rows = [row for row in message["rows"] if row["name"] == "demo-2"]
            return [row for row in rows if row["program"].startswith("reserved by the local user")]

        assert page.until("boards", reserved)
    finally:
        fleet["demo-2"].release()
        fleet.close()


def row_of(message: Any, name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [row for row in message["rows"] if row["name"] == name]
    return rows[0] if rows else {}


def test_new_page_gets_all_boards_then_changes(page: Page, dashboard: Dashboard, fleet):
    page.send(dashboard, do="open", view="v1")
    whole = page.until("boards", lambda message: message["is_snapshot"])
    assert {"demo-1", "demo-2", "demo-3"} <= {row["name"] for row in whole["rows"]}
    row = row_of(whole, "demo-1")
    assert (row["state"], row["online"], row["job"]) == ("idle", True, None)
    group = fleet["demo-1"].submit("while True: pass")
    try:
        busy = page.until(
            "boards", lambda message: row_of(message, "demo-1").get("state") == "busy"
        )
    finally:
        group.interrupt()
    assert row_of(busy, "demo-1")["job"]["caller"] == "local"
    # Another board may have changed at the same time: it reports its heap one second after a cell.
    assert not busy["is_snapshot"]
    assert len(busy["rows"]) < len(whole["rows"])
    page.until("boards", lambda message: row_of(message, "demo-1").get("state") == "idle")


def is_watching(widget: LiveWidget) -> bool:
    return widget._watch is not None


def test_subscription_ends_when_the_last_page_closes(page: Page, dashboard: Dashboard):
    for view in ("v1", "v2"):
        page.send(dashboard, do="open", view=view)
    page.send(dashboard, do="close", view="v1")
    assert is_watching(dashboard)
    page.send(dashboard, do="close", view="v2")
    assert not is_watching(dashboard)
    page.send(dashboard, do="open", view="v3")
    assert is_watching(dashboard)
    page.until("boards", lambda message: message["is_snapshot"])


def test_unloading_the_magics_ends_subscriptions(page: Page, dashboard: Dashboard):
    cm_magics.magics.close_fleet()
    assert not is_watching(dashboard)


def test_filter_accepts_targets_and_reports_errors(page: Page, dashboard: Dashboard, fleet):
    page.send(dashboard, do="filter", text="demo-[1-2]")
    assert page.until("filtered")["names"] == ["demo-1", "demo-2"]
    page.send(dashboard, do="filter", text="demo-[")
    message = page.until("filtered")
    assert "is not closed" in message["error"]
    assert message["names"] == ["demo-1", "demo-2"]
    page.send(dashboard, do="filter", text="dash=yes")
    assert page.until("filtered")["names"] == []
    fleet["demo-3"].label({"dash": "yes"})
    # In one message, or a table would show the wrong boards for a moment.
    change = page.until("boards", lambda message: row_of(message, "demo-3").get("labels"))
    assert change["filtered"] == {"names": ["demo-3"], "searched": False}
    fleet["demo-3"].label({"dash": ""})
    page.send(dashboard, do="filter", text=" ")
    assert page.until("filtered", lambda message: message["names"] is None)["error"] == ""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("attic", ["demo-3"]),  # a name that no board has, and a label's value
        ("ATT", ["demo-3"]),
        ("mo-2", ["demo-2"]),
        ("linux attic", ["demo-3"]),  # not a target; each word occurs
        ("attic demo-2", []),
        ("1.29", ["demo-1", "demo-2", "demo-3"]),
        ("demo-1", ["demo-1"]),  # a target
    ],
)
def test_text_that_selects_no_board_is_searched_for(page, dashboard, fleet, text, names):
    fleet["demo-3"].label({"dash": "attic"})
    page.until("boards", lambda message: "attic" in row_of(message, "demo-3").get("labels", ""))
    page.send(dashboard, do="filter", text="demo-*")
    page.until("filtered", lambda message: message["names"])
    page.send(dashboard, do="filter", text=text)
    message = page.until("filtered")
    shown = [name for name in message["names"] if name.startswith("demo-")]
    if message["error"]:
        assert names == []  # neither a target nor found: the last target holds
    else:
        assert (shown, message["searched"]) == (names, text != "demo-1")
    fleet["demo-3"].label({"dash": ""})
    page.until("boards", lambda message: row_of(message, "demo-3").get("labels") == "")


def run_action(
    page: Page, dashboard: Dashboard, name: str, text: str = "", on: Any = ("demo-1",)
) -> Any:
    """Perform an action; return its last message."""
    (title,) = (action.title.rstrip("…") for action in ACTIONS if action.name == name)
    page.send(dashboard, do="action", action=name, boards=list(on), text=text)
    # By its title, because the last message of an earlier action may arrive late.
    return page.until(
        "action",
        lambda message: message["state"] != "running" and message["title"].startswith(f"{title}:"),
    )


def test_actions_run_interrupt_reset_and_label(page: Page, dashboard: Dashboard, fleet: Fleet):
    message = run_action(page, dashboard, "run", "print('hi')\n6 * 7", ["demo-1", "demo-2"])
    assert message["title"] == "Run: demo-[1-2]"
    assert message["text"].endswith("hi\nOut: 42")
    group = fleet["demo-1"].submit("while True: pass")
    assert run_action(page, dashboard, "interrupt")["text"] == "1 job interrupted"
    assert group.results(WAIT)["demo-1"].status == "interrupted"
    assert (
        run_action(page, dashboard, "interrupt")["text"]
        == "no jobs are running or queued on these boards"
    )
    fleet["demo-1"].run("x = 1")
    assert run_action(page, dashboard, "reset")["text"] == "demo-1 restarted"
    assert not fleet["demo-1"].run("x").ok
    assert run_action(page, dashboard, "label", "dash = yes")["text"] == "demo-1: dash=yes"
    assert run_action(page, dashboard, "label", "dash=")["text"] == "demo-1: dash removed"


def test_running_action_shows_output_and_errors(page, dashboard, fleet):
    endless = "print('going')\nwhile True: pass"
    page.send(dashboard, do="action", action="run", boards=["demo-1"], text=endless)
    page.until("action", lambda message: "going" in message["text"])
    page.send(dashboard, do="action", action="interrupt", boards=["demo-1"])
    page.until("action", lambda m: "KeyboardInterrupt" in m["text"] and m["state"] == "failed")
    for name, text, wrong in [
        ("run", "1 +", "invalid syntax"),
        ("run", "1/0", "ZeroDivisionError"),
        ("label", "nonsense", "key=value"),
    ]:
        message = run_action(page, dashboard, name, text)
        assert (wrong in message["text"], message["state"]) == (True, "failed"), message
    assert run_action(page, dashboard, "run", "1", ["nobody-9"])["state"] == "failed"


def test_message_that_is_sent_again_is_handled_once_and_in_order(page, dashboard, fleet):
    def send(seq: int, code: str) -> int:
        action = {"do": "action", "action": "run", "boards": ["demo-1"], "text": code}
        page.messages.clear()
        page.send_numbered(dashboard, seq, view="v1", **action)
        next_seq: int = page.until("received")["next"]
        return next_seq

    def wait_done() -> None:
        page.until("action", lambda message: message["state"] == "done")

    assert send(0, "count = 1") == 1
    wait_done()
    assert send(2, "count *= 10") == 1, "it comes before its turn"
    assert send(1, "count += 1") == 2
    wait_done()
    assert send(1, "count += 1") == 2, "it was handled before"
    assert send(2, "count *= 10") == 3
    wait_done()
    assert fleet["demo-1"].run("count").value == 20
    page.send_numbered(dashboard, 0, view="v2", do="open")
    assert page.until("received", lambda message: message["view"] == "v2")["next"] == 1


def test_action_without_boards_fails(page: Page, dashboard: Dashboard):
    message = run_action(page, dashboard, "label", "a=b", [])
    assert (message["state"], message["text"]) == ("failed", "No board is selected.")


def test_error_in_the_code_of_an_action_is_shown_and_raised(page: Page, dashboard: Dashboard):
    def fail(*_: object) -> str:
        raise KeyError("wrong")

    with pytest.raises(KeyError):
        dashboard._report("Try", ["demo-1"], fail)
    message = page.until("action", lambda message: message["state"] != "running")
    assert (message["title"], message["state"]) == ("Try: demo-1", "failed")
    assert message["text"] == "KeyError: 'wrong'"


def test_board_that_is_gone_is_named_as_the_reason(page: Page, dashboard: Dashboard):
    page.send(dashboard, do="section", board="nobody-9", title="Files")
    assert "renamed or revoked" in page.until("section")["section"]["text"]
    page.send(dashboard, do="file", board="nobody-9", path="/x", verb="open")
    message = page.until("file")
    assert ("renamed or revoked" in message["text"], message["failed"]) == (True, True)


def test_error_in_a_thread_is_raised_unless_the_interpreter_exits(monkeypatch):
    errors: list[threading.ExceptHookArgs] = []
    ended = threading.Event()

    def on_error(error: threading.ExceptHookArgs) -> None:
        errors.append(error)
        ended.set()

    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(threading, "excepthook", on_error)
    monkeypatch.setattr(live_widget, "EXIT_SECONDS", 0.0)
    live_widget.run_in_thread(fail)
    assert ended.wait(WAIT)
    assert errors[0].exc_type is RuntimeError

    code = """
import threading, time
from cm_magics.live_widget import run_in_thread
def fail_late():
    threading.main_thread().join()
    threading.Thread(target=print).start()
    raise RuntimeError("as a loop that is closed")
run_in_thread(fail_late)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_actions_upload_files_and_rename_one_board(page: Page, dashboard, fleet, tmp_path):
    (tmp_path / "hello.txt").write_text("hi")
    message = run_action(page, dashboard, "upload", f"{tmp_path / 'hello.txt'} :/up/hello.txt")
    assert (message["state"], message["text"]) == ("done", "2 bytes written")
    assert fleet["demo-1"].run("open('/up/hello.txt').read()").value == "hi"
    assert run_action(page, dashboard, "upload", "/no/such/file")["state"] == "failed"
    assert run_action(page, dashboard, "rename", "x", ["demo-1", "demo-2"])["state"] == "failed"
    assert (
        run_action(page, dashboard, "rename", "demo-9", ["demo-1"])["text"]
        == "demo-1 was renamed to demo-9"
    )
    assert run_action(page, dashboard, "rename", "demo-1", ["demo-9"])["state"] == "done"


def test_installed_packages_are_listed_on_the_boards_page(page: Page, dashboard, fleet, tmp_path):
    (tmp_path / "blinker.py").write_text("RATE = 7\n")
    on = ["demo-1", "demo-2"]
    message = run_action(page, dashboard, "install", f"{tmp_path / 'blinker.py'}", on)
    assert message["title"] == "Install: demo-[1-2]"
    assert (message["state"], "blinker" in message["text"]) == ("done", True), message
    assert fleet["demo-2"].run("import blinker; blinker.RATE").value == 7
    assert "/no/such.py" in run_action(page, dashboard, "install", "/no/such.py")["text"]
    assert run_action(page, dashboard, "install", "")["state"] == "failed"

    def section(title: str, board: str = "demo-1") -> Any:
        page.send(dashboard, do="section", board=board, title=title)
        return page.until("section", lambda message: message["section"]["title"] == title)[
            "section"
        ]

    ((package, _),) = section("Packages")["pairs"]
    assert "blinker" in package
    files = section("Files")
    assert [file["line"] for file in files["files"] if "blinker" in file["path"]], files
    assert not [file for file in files["files"] if file["path"].startswith("/lib/cm/")]
    assert " free of " in files["text"]
    fleet["demo-1"].rm(":/lib/blinker.mpy").raise_for_error()
    _, (word, missing) = section("Packages")["pairs"]
    assert (word, "/lib/blinker.mpy is missing" in missing) == ("drift", True)
    fleet["demo-[1-2]"].uninstall(package).raise_for_error()
    assert section("Packages") == {"title": "Packages", "text": "none"}
    page.send(dashboard, do="section", board="demo-1", title="nonsense")
    fleet.enrol(["unseen-1"])
    try:
        page.until("boards", lambda message: row_of(message, "unseen-1"))
        assert "unseen-1" in section("Files", "unseen-1")["text"]
    finally:
        fleet.revoke("unseen-1")


def test_files_are_written_opened_downloaded_and_deleted(page: Page, dashboard, fleet):
    page.send(dashboard, do="page", board="demo-1")
    page.until("page")
    page.send(dashboard, b"t\xc3\xa4glich", do="upload", boards=["demo-1"], path="/up/note.txt")
    done = page.until("action", lambda message: message["state"] == "done")
    assert (done["title"], done["text"]) == ("Upload /up/note.txt: demo-1", "8 bytes written")
    files = page.until("section")["section"]["files"]
    assert {"path": "/up", "line": "/up", "size": "folder", "is_folder": True} in files
    assert "/up/note.txt" in [file["path"] for file in files]

    def run_action(verb: str, path: str = "/up/note.txt") -> Any:
        page.send(dashboard, do="file", board="demo-1", path=path, verb=verb)
        return page.until("file")

    assert run_action("open")["text"] == "täglich"
    download = run_action("download")
    assert (download["file_name"], download["buffers"]) == ("note.txt", ["täglich".encode()])
    assert run_action("open", "/up")["failed"]
    assert run_action("delete")["text"] == "/up/note.txt was deleted."
    files = page.until("section")["section"]["files"]
    assert "/up/note.txt" not in [file["path"] for file in files]
    assert "No such file" in run_action("download")["text"]
    fleet["demo-1"].rm(":/up", recursive=True).raise_for_error()
    page.send(dashboard, b"x", do="upload", boards=["nobody-9"], path="/x")
    assert page.until("action", lambda m: m["state"] == "failed")["title"].endswith("nobody-9")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "The file is empty."),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"\xff\x00\x01", "This is not a text file: 3 bytes. Download it to open it."),
        (b"x" * 100_003, "x" * 100_000 + "\n… 3 more characters"),
    ],
)
def test_content_of_a_file_as_text(content: bytes, text: str):
    assert board_page.file_text(content) == text


def test_open_page_follows_a_rename(page: Page, dashboard, fleet):
    page.send(dashboard, do="page", board="demo-2")
    page.until("page")
    fleet.rename("demo-2", "demo-8")
    try:
        page.until("page", lambda message: message["board"] == "demo-8")
    finally:
        fleet.rename("demo-8", "demo-2")
    assert page.until("page", lambda message: message["board"] == "demo-2")


def test_action_closes_the_page_of_a_board(page: Page, dashboard, fleet):
    page.send(dashboard, do="page", board="demo-2")
    page.until("page")
    run_action(page, dashboard, "run", "1")
    page.messages.clear()
    fleet["demo-2"].run("import cm; cm.emit(temp=6)")
    time.sleep(0.6)  # two updates
    assert [m for m in page.messages if m["kind"] in ("samples", "page")] == []


def test_rows_have_labels_and_all_facts(page: Page, dashboard, fleet):
    fleet["demo-1"].label({"b": "2", "a": "1"})
    labelled = lambda message: row_of(message, "demo-1").get("labels")  # noqa: E731
    row = row_of(page.until("boards", labelled), "demo-1")
    assert row["labels"] == "a=1, b=2"
    assert row["facts"]["client"][0]
    assert set(row["facts"]) == {column[0] for column in dashboard.fact_columns}
    extra = [name for name, _, _, is_extra in dashboard.fact_columns if is_extra]
    assert {"client", "address", "mac"} <= set(extra)
    fleet["demo-1"].label({"a": "", "b": ""})


def test_page_gets_signs_of_life(page: Page, dashboard):
    page.messages.clear()
    page.until("alive")


def test_invalid_messages_are_ignored(page: Page, dashboard: Dashboard):
    for message in (
        {},
        {"do": "action"},
        {"do": "action", "action": "run"},
        {"do": "action", "boards": [1]},
        {"do": "upload", "boards": ["demo-1"], "path": "/x"},
        {"do": "file", "board": "demo-1", "path": "/x", "verb": "format"},
        {"do": "file", "board": "nobody-9", "path": "/x", "verb": "open"},
    ):
        page.send(dashboard, **message)
    page.send(dashboard, do="action", action="format", boards=["demo-1"])
    page.send(dashboard, do="page", board="nobody-9")
    page.send(dashboard, do="job", number="x")
    assert "a job is named by its number" in page.until("job")["text"]


def test_boards_page_has_facts_jobs_and_samples_and_is_updated(page: Page, dashboard, fleet):
    fleet["demo-2"].run("import cm; cm.emit(temp=3, on=True, s='x'); print('kept')")
    page.send(dashboard, do="page", board="demo-2")
    message = page.until("page")
    facts, jobs, *on_demand = message["sections"]
    assert [part["title"] for part in on_demand if part["on_demand"]] == ["Files", "Packages"]
    assert ["platform", "linux"] in facts["pairs"]
    assert message["samples"][-1][2] == {"temp": 3}
    page.send(dashboard, do="job", number=jobs["jobs"][0]["number"])
    assert "kept" in page.until("job")["text"]
    fleet["demo-2"].run("cm.emit(temp=4)")
    page.until("samples", lambda message: message["samples"][-1][2] == {"temp": 4})
    page.send(dashboard, do="page", board=None)
    page.messages.clear()
    fleet["demo-2"].run("cm.emit(temp=5)")
    time.sleep(0.6)  # two updates
    assert [m for m in page.messages if m["kind"] in ("samples", "page")] == []


PRINTING = """
import asyncio
async def work():
    n = 0
    while True:
        print("tick", n, evil)
        n += 1
        await asyncio.sleep_ms(50)
evil = {evil!r}
task = asyncio.create_task(work())
"""


@pytest.fixture
def printing(fleet: Fleet, boards: Any) -> Iterator[None]:
    """A task on demo-3 that prints."""
    fleet["demo-3"].run(PRINTING.format(evil=HOSTILE))
    yield
    fleet["demo-3"].run("task.cancel()")


@pytest.mark.usefixtures("printing")
def test_boards_page_has_the_log_stored_and_new(page: Page, dashboard: Dashboard, fleet: Fleet):
    fleet["demo-3"].run("None")  # the log goes on beside cells
    page.send(dashboard, do="page", board="demo-3")
    page.until("page")
    first = page.until("log", lambda message: message["lines"])
    assert first["board"] == "demo-3"
    assert re.fullmatch(r"\d\d:\d\d:\d\d tick \d+ <script>.*", first["lines"][-1])
    assert "\x1b" not in str(first["lines"])
    assert "\u202e" not in str(first["lines"])
    page.until("log", lambda message: message["lines"] != first["lines"])
    page.send(dashboard, do="page", board=None)
    assert dashboard._board_log._follower is None


@pytest.mark.usefixtures("printing")
def test_action_ends_the_log_of_the_page_that_it_closes(page: Page, dashboard: Dashboard):
    page.send(dashboard, do="page", board="demo-3")
    page.until("log")
    page.send(dashboard, do="action", action="run", boards=["demo-1"], text="1")
    page.until("action", lambda message: message["state"] == "done")
    assert dashboard._board_log._follower is None


def test_viewer_is_shown_why_there_is_no_log(page: Page, fleet: Fleet, boards: Any):
    token = fleet.request("token-create", name="log-viewer", role="viewer")["token"]
    with Fleet(token=token) as viewers:
        shown = Dashboard(viewers)
        page.until("boards", lambda message: message["is_snapshot"])
        page.send(shown, do="page", board="demo-1")
        (line,) = page.until("log")["lines"]
        shown.close()
    fleet.request("token-revoke", name="log-viewer")
    assert "operator" in line


def test_text_from_boards_is_sanitized(page: Page, dashboard: Dashboard, fleet: Fleet):
    message = run_action(
        page, dashboard, "run", f"print({HOSTILE!r})\nraise ValueError({HOSTILE!r})"
    )
    assert "<script>\\x1b[2J\\u202e" in message["text"]
    assert "\x1b" not in message["text"]


def test_every_action_is_a_button():
    assert [button["name"] for button in action_buttons()] == [action.name for action in ACTIONS]
    assert all(set(button) == {"name", "title", "prompt", "lines"} for button in action_buttons())


def test_unreachable_server_is_reported(page: Page):
    with Fleet("http://127.0.0.1:9", "cm_x") as nowhere:
        lost = Dashboard(nowhere)
        assert "No server at http://127.0.0.1:9" in page.until("lost")["reason"]
        page.send(lost, do="open", view="v1")
        assert page.until("boards")["rows"] == []
        page.until("lost")
        assert "No server" in lost._repr_mimebundle_()[0]["text/plain"]
        lost.close()


def test_dashboard_as_text_shows_the_boards_of_its_filter(fleet: Fleet):
    shown = Dashboard(fleet, parse_target("demo-2"))
    text = shown._repr_mimebundle_()[0]["text/plain"]
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["demo-2"]
    shown.close()


def test_dashboard_as_text_is_the_table(dashboard: Dashboard):
    assert "demo-1" in dashboard._repr_mimebundle_()[0]["text/plain"]


def test_saved_table_has_the_boards_of_the_target(page: Page, boards: Any):
    shown = cm_magics.dashboard("demo-[1-2]")
    state = shown.make_saved_state()
    for text in (state["text/plain"], state["text/html"]):
        assert ("demo-1" in text, "demo-2" in text, "demo-3" in text) == (True, True, False)
    assert shown.make_saved_state() is state, "nothing has changed"
    shown.close()
    nobody = cm_magics.dashboard("nobody-*")
    assert nobody.make_saved_state()["text/plain"].startswith("No board matches.")
    nobody.close()
    cm_magics.magics.close_fleet()


def test_saved_table_escapes_what_boards_report():
    html = saved_output.table_html(("name",), [("<script>&",)])
    assert html.count(">&lt;script&gt;&amp;</td>") == 1


def test_dashboard_has_an_initial_filter(page: Page, boards: Any):
    shown = cm_magics.dashboard("demo-1")
    page.send(shown, do="open", view="v1")
    page.until("boards", lambda message: (message["filtered"] or {}).get("names") == ["demo-1"])
    shown.close()
    with pytest.raises(TargetError):
        cm_magics.dashboard("demo-[")
    cm_magics.magics.close_fleet()


# Plots


def samples(*values: dict[str, Any], board: str = "lab-1") -> list[Sample]:
    return [Sample(board, 100.0 + at, at, 0, each) for at, each in enumerate(values)]


def test_plot_gets_earlier_samples_then_new_ones(page: Page, fleet: Fleet, boards: Any):
    fleet["demo-3"].run("import cm; cm.emit(level=1, other=2)")
    shown = Plot(fleet, "demo-3", ["level"])
    page.send(shown, do="open", view="v1")
    message = page.until("samples", lambda message: message["samples"])
    assert message["samples"][-1][0] == "demo-3"
    fleet["demo-3"].run("cm.emit(level=7)")
    page.until("samples", lambda m: bool(m["samples"]) and m["samples"][-1][2] == {"level": 7})
    bundle = shown._repr_mimebundle_()[0]
    assert bundle["text/plain"].startswith("demo-3 level  ")
    assert bundle["text/plain"].endswith("  7")
    assert bundle["image/svg+xml"].startswith("<svg ")
    assert '<img alt="demo-3 level' in bundle["text/html"]
    shown.close()


def test_plot_keeps_the_values_of_boards_that_were_removed(page: Page, server, fleet: Fleet):
    with running_boards(server, fleet, ["brief-1"]):
        fleet["brief-1"].run("import cm; cm.emit(level=3)")
        shown = Plot(fleet, "brief-1")
    fleet.revoke("brief-1")
    page.send(shown, do="open", view="v1")
    # On a busy machine, the plot of the test before may still be sending.
    message = page.until("samples", lambda m: m["samples"] and m["samples"][-1][0] == "brief-1")
    assert message["samples"][-1][2] == {"level": 3}
    assert shown.make_saved_state()["text/plain"] == "brief-1 level  ▁  3"
    assert not [message for message in page.messages if message["kind"] == "lost"]
    shown.close()


def test_lines_contain_only_numbers_with_the_wanted_names():
    received = samples({"t": 1, "on": True, "s": "x", "n": None}, {"t": 2.5, "h": 3})
    assert set(plot.make_plot_lines(received, None)) == {("lab-1", "t"), ("lab-1", "h")}
    assert plot.make_plot_lines(received, ["t"]) == {("lab-1", "t"): [(100.0, 1), (101.0, 2.5)]}


@pytest.mark.parametrize(
    ("received", "text"),
    [
        ([], "No values yet: boards emit them with `cm.emit(temp=21.5)`."),
        (samples({"t": 5}), "lab-1 t  ▁  5"),
        (samples({"t": 0}, {"t": 7}), "lab-1 t  ▁█  7"),
        (samples({HOSTILE: 1}), "lab-1 <script>\\x1b[2J\\u202e  ▁  1"),
    ],
)
def test_plot_as_text(received, text):
    assert plot.lines_text(plot.make_plot_lines(received, None)) == text


def test_plot_as_an_image_escapes_names_from_boards():
    svg = plot.lines_svg(plot.make_plot_lines(samples({HOSTILE: 1}, {HOSTILE: 2}), None))
    assert "&lt;script&gt;" in svg
    assert not set("\x1b\u202e") & set(svg)
    assert plot.lines_svg({}).startswith("<svg ")


def test_image_has_a_panel_for_each_quantity():
    received = samples({"temp": 20, "light": 900}, {"temp": 21, "light": 800})
    svg = plot.lines_svg(plot.make_plot_lines(received, None))
    assert svg.count("<g transform=") == 2
    for text in (">21<", ">20<", ">900<", ">800<", ">temp<", ">light<"):
        assert text in svg


@pytest.mark.parametrize(
    ("names", "values", "text"),
    [
        (
            ["tmep"],
            {"temp": 1, "hum": 2},
            "No value is called tmep. The numbers are hum, temp. Did you mean temp?",
        ),
        (["zzz"], {"temp": 1}, "No value is called zzz. The numbers are temp."),
        (["door"], {"door": "open"}, "door is not a number."),
        (["temp"], {"door": "open"}, "No value is called temp."),
        (["temp", "zzz"], {"temp": 1}, "No value is called zzz. The numbers are temp."),
        (["temp"], {"temp": 1}, ""),
        ([], {"temp": 1}, ""),
        (
            [HOSTILE],
            {"temp": 1},
            "No value is called <script>\\x1b[2J\\u202e. The numbers are temp.",
        ),
    ],
)
def test_names_of_values_that_do_not_exist(names, values, text):
    received = samples(values)
    numbers = set(plot.numeric_values(received[0]))
    assert plot.missing_text(names, set(values), numbers) == text
    lines = plot.make_plot_lines(received, names)
    shown = plot.lines_text(lines, text)
    assert shown.endswith(text)
    assert ("▁" in shown) == bool(lines)
    assert plot.missing_text(names, set(), set()) == ""


def test_plot_says_which_values_exist(page: Page, fleet: Fleet, boards: Any):
    fleet["demo-3"].run("import cm; cm.emit(level=1)")
    shown = Plot(fleet, "demo-3", ["levle"])
    page.send(shown, do="open", view="v1")
    message = page.until("samples", lambda message: message["samples"])
    assert message["note"].startswith("No value is called levle. The numbers are ")
    assert message["note"].endswith("Did you mean level?")
    assert shown.make_saved_state()["text/plain"] == message["note"]
    shown.close()


def test_number_of_lines_is_limited():
    received = [sample for n in range(60) for sample in samples({"t": n}, board=f"lab-{n}")]
    assert len(plot.make_plot_lines(received, None)) == 24


def test_rollouts_are_shown_and_changed(dashboard: Dashboard, page: Page, fleet: Fleet, tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text('[pane]\ntarget = "away-[1-2]"\nsettings = { a = 1 }\n')
    fleet.enrol(["away-1", "away-2"])
    try:
        fleet.apply(fleet.plan(path))

        def in_state(state: str) -> dict[str, Any]:
            def ours(message: Any) -> list[dict[str, Any]]:
                rollouts = [each for each in message["rollouts"] if each["group"] == "pane"]
                return [each for each in rollouts if each["state"] == state]

            (rollout,) = ours(page.until("rollouts", ours))
            return dict(rollout)

        shown = in_state("running")
        assert (shown["group"], shown["wave"], shown["is_open"]) == ("pane", 1, True)
        waiting = {"proven": 0, "failed": 0, "active": 0, "waiting": 1}
        assert shown["waves"] == [waiting, waiting]
        assert shown["lines"] == [
            {"state": "waiting", "count": "2", "text": "waiting", "boards": "away-[1-2]"}
        ]
        assert shown["verbs"] == [["pause", "Pause"], ["abort", "Abort"]]
        page.send(dashboard, do="rollout", verb="pause", group="pane")
        assert in_state("paused")["verbs"] == [["resume", "Resume"], ["abort", "Abort"]]
        page.send(dashboard, do="rollout", verb="burn", group="pane")  # no such verb
        page.send(dashboard, do="rollout", verb="abort", group=HOSTILE)
        failed = page.until("action")
        assert failed["state"] == "failed"
        assert "\x1b" not in failed["title"] + failed["text"]
        page.send(dashboard, do="rollout", verb="abort", group="pane")
        assert in_state("aborted")["verbs"] == []
        page.send(dashboard, do="open", view="v9")
        assert in_state("aborted"), "a page that opens gets them, too"
    finally:
        fleet.revoke("away-1,away-2")
