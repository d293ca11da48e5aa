"""The dashboard's and the plot's Python side, on a real server and boards; what the page gets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cm_magics
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.samples import Sample
from cloudmanager.protocol.errors import TargetError
from cm_magics import plot
from cm_magics.dashboard_actions import ACTIONS, action_buttons
from cm_magics.dashboard_widget import Dashboard
from cm_magics.live_widget import LiveWidget
from cm_magics.plot import Plot

WAIT = 15.0  # seconds that anything here may take
EVIL = "<script>\x1b[2J\u202e"


class Page:
    """What a page would be told, and what it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[dict[str, Any]] = []
        self._came = threading.Condition()

        def send(_: LiveWidget, content: Any, buffers: Any = None) -> None:
            with self._came:
                self.told.append(json.loads(json.dumps(content, allow_nan=False)))
                self._came.notify_all()

        monkeypatch.setattr(LiveWidget, "send", send)

    def until(self, kind: str, true: Callable[[Any], object] = lambda _: True) -> Any:
        """Wait for a message, and forget those before it."""

        def found() -> list[int]:
            told = enumerate(self.told, 1)
            return [at for at, message in told if message["kind"] == kind and true(message)]

        with self._came:
            assert self._came.wait_for(found, WAIT), self.told[-5:]
            at = found()[0]
            message = self.told[at - 1]
            del self.told[:at]
            return message

    def say(self, live: LiveWidget, **message: Any) -> None:
        live._on_message(live, message, [])


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(monkeypatch)


@pytest.fixture
def dashboard(page: Page, fleet: Fleet, boards: Any) -> Iterator[Dashboard]:
    shown = Dashboard(fleet)
    page.until("boards", lambda message: message["is_snapshot"])
    yield shown
    shown.close()


def row_of(message: Any, name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [row for row in message["rows"] if row["name"] == name]
    return rows[0] if rows else {}


def test_a_page_that_opens_is_told_all_then_what_changes(page: Page, dashboard: Dashboard, fleet):
    page.say(dashboard, do="open", view="v1")
    whole = page.until("boards", lambda message: message["is_snapshot"])
    assert {"demo-1", "demo-2", "demo-3"} <= {row["name"] for row in whole["rows"]}
    row = row_of(whole, "demo-1")
    assert (row["state"], row["online"], row["job"]) == ("idle", True, None)
    group = fleet["demo-1"].submit("while True: pass")
    busy = page.until("boards", lambda message: row_of(message, "demo-1").get("state") == "busy")
    assert row_of(busy, "demo-1")["job"]["caller"] == "local"
    assert [row["name"] for row in busy["rows"]] == ["demo-1"]
    group.interrupt()
    page.until("boards", lambda message: row_of(message, "demo-1").get("state") == "idle")


def follows(live: LiveWidget) -> bool:
    return live._watch is not None


def test_nobody_looks_nothing_is_followed(page: Page, dashboard: Dashboard):
    for view in ("v1", "v2"):
        page.say(dashboard, do="open", view=view)
    page.say(dashboard, do="close", view="v1")
    assert follows(dashboard)
    page.say(dashboard, do="close", view="v2")
    assert not follows(dashboard)
    page.say(dashboard, do="open", view="v3")
    assert follows(dashboard)
    page.until("boards", lambda message: message["is_snapshot"])


def test_unloading_the_magics_ends_what_is_followed(page: Page, dashboard: Dashboard):
    cm_magics.magics.close_fleet()
    assert not follows(dashboard)


def test_filter_takes_targets_and_says_what_is_wrong(page: Page, dashboard: Dashboard, fleet):
    page.say(dashboard, do="filter", text="demo-[1-2]")
    assert page.until("filtered")["names"] == ["demo-1", "demo-2"]
    page.say(dashboard, do="filter", text="demo-[")
    told = page.until("filtered")
    assert "is not closed" in told["error"]
    assert told["names"] == ["demo-1", "demo-2"]
    page.say(dashboard, do="filter", text="dash=yes")
    assert page.until("filtered")["names"] == []
    fleet["demo-3"].label({"dash": "yes"})
    assert page.until("filtered", lambda message: message["names"])["names"] == ["demo-3"]
    fleet["demo-3"].label({"dash": ""})
    page.say(dashboard, do="filter", text=" ")
    assert page.until("filtered", lambda message: message["names"] is None)["error"] == ""


def act(page: Page, dashboard: Dashboard, name: str, text: str = "", on: Any = ("demo-1",)) -> Any:
    page.say(dashboard, do="action", action=name, boards=list(on), text=text)
    return page.until("action", lambda message: message["state"] != "running")


def test_actions_run_interrupt_reset_and_label(page: Page, dashboard: Dashboard, fleet: Fleet):
    told = act(page, dashboard, "run", "print('hi')\n6 * 7", ["demo-1", "demo-2"])
    assert told["title"] == "Run: demo-[1-2]"
    assert told["text"].endswith("hi\nOut: 42")
    group = fleet["demo-1"].submit("while True: pass")
    assert act(page, dashboard, "interrupt")["text"] == "1 job interrupted"
    assert group.results(WAIT)["demo-1"].status == "interrupted"
    assert (
        act(page, dashboard, "interrupt")["text"] == "no jobs are running or queued on these boards"
    )
    fleet["demo-1"].run("x = 1")
    assert act(page, dashboard, "reset")["text"] == "demo-1 restarted"
    assert not fleet["demo-1"].run("x").ok
    assert act(page, dashboard, "label", "dash = yes")["text"] == "demo-1: dash=yes"
    assert act(page, dashboard, "label", "dash=")["text"] == "demo-1: dash removed"


def test_a_running_action_is_shown_while_it_runs_and_what_is_wrong_is_said(page, dashboard, fleet):
    endless = "print('going')\nwhile True: pass"
    page.say(dashboard, do="action", action="run", boards=["demo-1"], text=endless)
    page.until("action", lambda message: "going" in message["text"])
    page.say(dashboard, do="action", action="interrupt", boards=["demo-1"])
    page.until("action", lambda m: "KeyboardInterrupt" in m["text"] and m["state"] == "failed")
    for name, text, wrong in [
        ("run", "1 +", "invalid syntax"),
        ("run", "1/0", "ZeroDivisionError"),
        ("label", "nonsense", "key=value"),
    ]:
        told = act(page, dashboard, name, text)
        assert (wrong in told["text"], told["state"]) == (True, "failed"), told
    assert act(page, dashboard, "run", "1", ["nobody-9"])["state"] == "failed"


def test_files_are_copied_and_one_board_is_renamed(page: Page, dashboard, fleet, tmp_path):
    (tmp_path / "hello.txt").write_text("hi")
    told = act(page, dashboard, "upload", f"{tmp_path / 'hello.txt'} :/up/hello.txt")
    assert (told["state"], told["text"]) == ("done", "2 bytes written")
    assert fleet["demo-1"].run("open('/up/hello.txt').read()").value == "hi"
    assert act(page, dashboard, "upload", "/no/such/file")["state"] == "failed"
    assert act(page, dashboard, "rename", "x", ["demo-1", "demo-2"])["state"] == "failed"
    assert (
        act(page, dashboard, "rename", "demo-9", ["demo-1"])["text"]
        == "demo-1 was renamed to demo-9"
    )
    assert act(page, dashboard, "rename", "demo-1", ["demo-9"])["state"] == "done"


def test_packages_are_installed_and_are_on_a_boards_page(page: Page, dashboard, fleet, tmp_path):
    (tmp_path / "blinker.py").write_text("RATE = 7\n")
    on = ["demo-1", "demo-2"]
    told = act(page, dashboard, "install", f"{tmp_path / 'blinker.py'}", on)
    assert told["title"] == "Install: demo-[1-2]"
    assert (told["state"], "blinker" in told["text"]) == ("done", True), told
    assert fleet["demo-2"].run("import blinker; blinker.RATE").value == 7
    assert "/no/such.py" in act(page, dashboard, "install", "/no/such.py")["text"]
    assert act(page, dashboard, "install", "")["state"] == "failed"

    def section(title: str, board: str = "demo-1") -> Any:
        page.say(dashboard, do="section", board=board, title=title)
        return page.until("section")["section"]

    ((package, _),) = section("Packages")["pairs"]
    assert "blinker" in package
    files = section("Files")
    assert [pair[0] for pair in files["pairs"] if "blinker" in pair[0]], files
    assert not [pair for pair in files["pairs"] if pair[0].startswith("/lib/cm/")]
    assert " free of " in files["text"]
    fleet["demo-1"].rm(":/lib/blinker.mpy").raise_for_error()
    _, (word, missing) = section("Packages")["pairs"]
    assert (word, "/lib/blinker.mpy is missing" in missing) == ("drift", True)
    fleet["demo-[1-2]"].uninstall(package).raise_for_error()
    assert section("Packages") == {"title": "Packages", "text": "none"}
    page.say(dashboard, do="section", board="demo-1", title="nonsense")
    fleet.enrol(["gone-1"])
    page.until("boards", lambda message: row_of(message, "gone-1"))
    assert "gone-1" in section("Files", "gone-1")["text"]
    fleet.revoke("gone-1")


def test_messages_that_make_no_sense_are_passed_over(page: Page, dashboard: Dashboard):
    for message in (
        {},
        {"do": "action"},
        {"do": "action", "action": "run"},
        {"do": "action", "boards": [1]},
    ):
        page.say(dashboard, **message)
    page.say(dashboard, do="action", action="format", boards=["demo-1"])
    page.say(dashboard, do="page", board="nobody-9")
    page.say(dashboard, do="job", number="x")
    assert "a job is named by its number" in page.until("job")["text"]


def test_page_of_a_board_has_facts_jobs_and_samples_and_keeps_up(page: Page, dashboard, fleet):
    fleet["demo-2"].run("import cm; cm.emit(temp=3, on=True, s='x'); print('kept')")
    page.say(dashboard, do="page", board="demo-2")
    told = page.until("page")
    facts, jobs, *asked = told["sections"]
    assert [part["title"] for part in asked if part["on_demand"]] == ["Files", "Packages"]
    assert ["platform", "linux"] in facts["pairs"]
    assert told["samples"][-1][2] == {"temp": 3}
    page.say(dashboard, do="job", number=jobs["jobs"][0]["number"])
    assert "kept" in page.until("job")["text"]
    fleet["demo-2"].run("cm.emit(temp=4)")
    assert page.until("samples")["samples"][-1][2] == {"temp": 4}
    page.say(dashboard, do="page", board=None)
    page.told.clear()
    fleet["demo-2"].run("cm.emit(temp=5)")
    time.sleep(0.6)  # two updates
    assert [m for m in page.told if m["kind"] in ("samples", "page")] == []


def test_what_boards_say_is_cleaned_on_its_way(page: Page, dashboard: Dashboard, fleet: Fleet):
    told = act(page, dashboard, "run", f"print({EVIL!r})\nraise ValueError({EVIL!r})")
    assert "<script>\\x1b[2J\\u202e" in told["text"]
    assert "\x1b" not in told["text"]


def test_every_action_is_a_button():
    assert [button["name"] for button in action_buttons()] == [action.name for action in ACTIONS]
    assert all(set(button) == {"name", "title", "prompt", "lines"} for button in action_buttons())


def test_a_server_that_is_gone_is_said(page: Page):
    with Fleet("http://127.0.0.1:9", "cm_x") as nowhere:
        lost = Dashboard(nowhere)
        assert "No server at http://127.0.0.1:9" in page.until("lost")["reason"]
        page.say(lost, do="open", view="v1")
        assert page.until("boards")["rows"] == []
        page.until("lost")
        assert "No server" in lost._repr_mimebundle_()[0]["text/plain"]
        lost.close()


def test_dashboard_as_text_is_the_table(dashboard: Dashboard):
    assert "demo-1" in dashboard._repr_mimebundle_()[0]["text/plain"]


def test_dashboard_begins_with_a_target(page: Page, boards: Any):
    shown = cm_magics.dashboard("demo-1")
    page.say(shown, do="open", view="v1")
    assert page.until("filtered", lambda message: message["names"])["names"] == ["demo-1"]
    shown.close()
    with pytest.raises(TargetError):
        cm_magics.dashboard("demo-[")
    cm_magics.magics.close_fleet()


# Plots


def samples(*values: dict[str, Any], board: str = "lab-1") -> list[Sample]:
    return [Sample(board, 100.0 + at, at, 0, each) for at, each in enumerate(values)]


def test_plot_begins_with_what_there_is_and_goes_on(page: Page, fleet: Fleet, boards: Any):
    fleet["demo-3"].run("import cm; cm.emit(level=1, other=2)")
    shown = Plot(fleet, "demo-3", ["level"])
    page.say(shown, do="open", view="v1")
    told = page.until("samples", lambda message: message["samples"])
    assert told["samples"][-1][0] == "demo-3"
    fleet["demo-3"].run("cm.emit(level=7)")
    page.until("samples", lambda m: bool(m["samples"]) and m["samples"][-1][2] == {"level": 7})
    bundle = shown._repr_mimebundle_()[0]
    assert bundle["text/plain"].startswith("demo-3 level  ")
    assert bundle["text/plain"].endswith("  7")
    assert bundle["image/svg+xml"].startswith("<svg ")
    shown.close()


def test_lines_are_the_numbers_of_the_names_that_are_wanted():
    told = samples({"t": 1, "on": True, "s": "x", "n": None}, {"t": 2.5, "h": 3})
    assert set(plot.make_plot_lines(told, None)) == {("lab-1", "t"), ("lab-1", "h")}
    assert plot.make_plot_lines(told, ["t"]) == {("lab-1", "t"): [(100.0, 1), (101.0, 2.5)]}


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ([], "No values yet: boards emit them with `cm.emit(temp=21.5)`."),
        (samples({"t": 5}), "lab-1 t  ▁  5"),
        (samples({"t": 0}, {"t": 7}), "lab-1 t  ▁█  7"),
        (samples({EVIL: 1}), "lab-1 <script>\\x1b[2J\\u202e  ▁  1"),
    ],
)
def test_plot_as_text(told, text):
    assert plot.lines_text(plot.make_plot_lines(told, None)) == text


def test_plot_as_an_image_escapes_what_boards_say():
    svg = plot.lines_svg(plot.make_plot_lines(samples({EVIL: 1}, {EVIL: 2}), None))
    assert "&lt;script&gt;" in svg
    assert not set("\x1b\u202e") & set(svg)
    assert plot.lines_svg({}).startswith("<svg ")


def test_very_many_lines_are_cut():
    told = [sample for n in range(60) for sample in samples({"t": n}, board=f"lab-{n}")]
    assert len(plot.make_plot_lines(told, None)) == 24
