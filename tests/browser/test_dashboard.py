"""The dashboard in JupyterLab: while a cell runs, with 1,000 boards, and with hostile boards."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from benchmarks.emitting_boards import emitting_boards
from cloudmanager.client.fleet import Fleet
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.conftest import RunningServer, running_boards, running_server, wait_online

from .conftest import Lab, Notebook

pytestmark = pytest.mark.timeout(180)

MANY = 1000
#: Records the time from each key press to the next frame, which Chromium rounds to 8 ms, and the
#: times of changes in the dashboard.
RECORD = """() => {
  window.cmInputs = [];
  window.cmUpdates = [];
  const record = (entry) => cmInputs.push([entry.name, entry.duration]);
  new PerformanceObserver((list) => list.getEntries().forEach(record)).observe({
    type: "event", durationThreshold: 16 });
  const onChange = () => cmUpdates.push(performance.now());
  const fleet = document.querySelector(".cm-fleet");
  const all = { subtree: true, characterData: true, childList: true };
  new MutationObserver(onChange).observe(fleet, all);
}"""
HOSTILE = "<img src=x onerror='window.cmEvil=1'><script>window.cmEvil=2</script>\u202e\x1b[2J"


class DashboardPage:
    """A notebook with a dashboard below its first cell."""

    def __init__(self, notebook: Notebook) -> None:
        """Run the first cell; if it has been run before, the new dashboard takes its place."""
        self.notebook = notebook
        self.page = notebook.page
        self.page.get_by_text("| Idle").wait_for()
        self.node = self.page.locator(".cm-fleet:has(.cm-table)")
        self.count = self.node.locator(".cm-count")
        self.table = self.node.locator(".cm-table")
        self.pane = self.node.locator(".cm-pane")
        self.target = self.node.get_by_label("Target")
        old = self.node.element_handles()
        self.page.evaluate("localStorage.removeItem('cloudmanager-columns')")
        self.start()
        for node in old:
            node.wait_for_element_state("hidden")
        expect(self.count).to_contain_text("idle")

    def settle(self) -> None:
        """Wait until the widget's messages have their own subshell (see live_widget.py)."""
        self.page.wait_for_timeout(1500)

    def start(self, cell: int = 0) -> None:
        self.notebook.cells.nth(cell).locator(".jp-InputArea .cm-content").click()
        self.page.keyboard.press("Control+Enter")

    def row(self, name: str) -> Locator:
        return self.node.get_by_role("row").filter(has=self.page.get_by_text(name, exact=True))

    def button(self, name: str) -> Locator:
        return self.node.get_by_role("button", name=re.compile(f"^{re.escape(name)}"))

    def enter(self, name: str, text: str, key: str = "Enter") -> None:
        """Press a button, type a text into its prompt, and submit it."""
        self.button(name).click()
        field = self.node.locator(".cm-prompt :is(input, textarea)")
        field.fill(text)
        field.press(key)

    def busy(self, cell: int = 1) -> bool:
        """Return whether a cell runs; the status line is wrong after a widget's message."""
        return self.notebook.cells.nth(cell).locator(".jp-InputPrompt").inner_text() == "[*]:"


@pytest.fixture
def show(lab: Lab) -> Iterator[Any]:
    """A function that opens a notebook with some cells and runs the first, a dashboard."""
    opened: list[Notebook] = []

    def open_it(name: str, *cells: str) -> DashboardPage:
        opened.append(lab.open(name, list(cells), kernel="python3"))
        return DashboardPage(opened[-1])

    yield open_it
    for notebook in opened:
        lab.close(notebook)


RACK = ("rack-1", "rack-2", "rack-3")


@pytest.fixture(scope="module")
def rack_boards(server: RunningServer, fleet: Fleet) -> Iterator[VirtualBoards]:
    with running_boards(server, fleet, list(RACK)) as boards:
        yield boards


@pytest.fixture
def rack(rack_boards: VirtualBoards, fleet: Fleet) -> VirtualBoards:
    """Boards rack-1 to rack-3, idle and without labels, whatever an earlier test left behind."""
    names = {board.id: board.name for board in rack_boards.identities}
    rows = [row for row in fleet.boards() if row["id"] in names]
    for row in rows:
        if row["labels"]:
            fleet[row["name"]].label(dict.fromkeys(row["labels"], ""))
        if row["name"] != names[row["id"]]:
            fleet.rename(row["name"], names[row["id"]])
    fleet.interrupt([job["job"] for job in fleet.jobs("rack-*") if job["status"] is None])
    for name in set(RACK) - set(rack_boards.pids):
        rack_boards.restart(name)
    wait_online(fleet, RACK)
    return rack_boards


@pytest.fixture
def desk(lab: Lab, rack: VirtualBoards) -> DashboardPage:
    """A dashboard of rack-1 to rack-3, as it is when it has just opened."""
    cell = "import cm_magics\ncm_magics.dashboard('rack-*')"
    view = DashboardPage(lab.reuse("desk.ipynb", [cell], kernel="python3"))
    expect(view.count).to_contain_text("3 of ")
    return view


def test_usual_columns_fit_into_a_window_of_1200_px(desk: DashboardPage):
    size: Any = desk.page.viewport_size
    desk.page.set_viewport_size({"width": 1200, "height": 1000})
    desk.page.keyboard.press("ControlOrMeta+b")  # without the list of files
    try:
        hidden = desk.table.evaluate("table => table.scrollWidth - table.clientWidth")
        assert hidden == 0
    finally:
        desk.page.keyboard.press("ControlOrMeta+b")
        desk.page.set_viewport_size(size)


LONG = "import time\nfor _ in range(1200):\n    time.sleep(0.1)"
SENSOR = "import cm, time\nfor n in range(600):\n    cm.emit(temp=20 + n / 10)\n    time.sleep(0.1)"


PRINTING = """
import asyncio
async def work():
    for n in range(1000):
        print("line", n)
        await asyncio.sleep_ms(50)
task = asyncio.create_task(work())
"""


def filter_boards(view: DashboardPage, fleet: Fleet) -> None:
    """Type valid and invalid targets into the filter, of which the error stays."""
    view.target.fill("rack-[2-3]")
    expect(view.count).to_contain_text("2 of ")
    view.target.fill("rack-[2-")
    error = view.node.locator(".cm-filter-error")
    expect(error).to_contain_text("is not closed")
    fleet["rack-3"].label({"shelf": "left"})
    expect(view.row("rack-3")).to_contain_text("shelf=left")
    expect(error).to_contain_text("is not closed")
    view.target.fill("nobody-*")
    expect(view.table).to_contain_text("No board matches.")
    view.target.fill("rack-*")
    expect(view.count).to_contain_text("3 of ")


def test_dashboard_works_while_a_long_cell_runs(show, rack, fleet: Fleet):
    view = show("long.ipynb", "%load_ext cm_magics\n%fleet rack-*", LONG, "%board_plot rack-1 temp")
    expect(view.count).to_contain_text("3 of ")
    view.settle()
    view.start(2)
    view.start(1)
    expect(view.notebook.cells.nth(1).locator(".jp-InputPrompt")).to_have_text("[*]:")

    filter_boards(view, fleet)

    # Select boards with the keyboard.
    expect(view.button("Interrupt")).to_be_disabled()
    view.table.focus()
    for key in ("ArrowDown", "Shift+ArrowDown"):
        view.page.keyboard.press(key)
    expect(view.count).to_contain_text("2 selected")
    view.page.keyboard.press("Control+a")
    expect(view.count).to_contain_text("3 selected")

    # Run a cell on the selection.
    view.button("Run…").click()
    view.page.keyboard.insert_text("import sys\nprint('from', sys.platform)\n6 * 7")
    view.page.keyboard.press("Control+Enter")
    expect(view.pane).to_contain_text("── rack-[1-3] ")
    expect(view.pane).to_contain_text("from linux\nOut: 42")

    # The plot grows until the cell that emits values is interrupted.
    view.row("rack-1").locator(".cm-name").click()
    view.enter("Run…", SENSOR, "Control+Enter")
    expect(view.row("rack-1")).to_contain_text("busy")
    expect(view.row("rack-1")).to_contain_text("for local")
    legend = view.page.locator(".cm-fleet:not(:has(.cm-table)) .cm-legend")
    for grown in (r"temp  2[0-9]", r"temp  2[1-9]", r"temp  2[2-9]"):
        expect(legend).to_contain_text(re.compile(grown))
    view.button("Interrupt").click()
    expect(view.row("rack-1")).to_contain_text("idle")

    # A board goes offline and returns.
    rack.kill("rack-2")
    expect(view.row("rack-2")).to_contain_text("offline")
    expect(view.row("rack-2")).to_contain_text("ago")
    rack.restart("rack-2")
    expect(view.row("rack-2")).to_contain_text("idle")

    assert view.busy(), "the cell must have run until now"
    view.notebook.stop()
    expect(view.notebook.cells.nth(1).locator(".jp-InputPrompt")).not_to_have_text("[*]:")


def test_boards_page_has_facts_jobs_files_packages_and_a_plot(desk: DashboardPage, fleet: Fleet):
    view = desk
    fleet["rack-3"].run("import cm\nprint('kept output')\ncm.emit(level=5)\ncm.emit(level=6)")
    view.table.focus()
    view.page.keyboard.press("End")
    view.page.keyboard.press("Enter")
    for text in ("rack-3", "MicroPython", "1.", "level  6", "ok"):
        expect(view.pane).to_contain_text(text)
    view.pane.locator(".cm-job").first.click()
    expect(view.pane).to_contain_text("kept output")

    # A section on demand stays while the page is updated, and is not requested again.
    view.button("Packages of").click()
    expect(view.pane).to_contain_text("none")
    view.button("Files of").click()
    expect(view.pane).to_contain_text("/cm.json")
    jobs = len(fleet.jobs("rack-3"))
    fleet["rack-3"].run("cm.emit(level=7)")
    expect(view.pane).to_contain_text("level  7")
    expect(view.pane).to_contain_text("/cm.json")
    assert len(fleet.jobs("rack-3")) == jobs + 1

    # What it prints outside of cells appears as it is printed.
    fleet["rack-3"].run(PRINTING)
    expect(view.pane.locator(".cm-log")).to_contain_text(re.compile(r"\d\d:\d\d:\d\d line 30"))
    view.pane.locator(".cm-log").scroll_into_view_if_needed()
    view.notebook.picture("dashboard-page")
    at_end = "(log) => log.scrollHeight > log.clientHeight && "
    at_end += "log.scrollHeight - log.scrollTop - log.clientHeight < 8"
    assert view.pane.locator(".cm-log").evaluate(at_end)
    fleet["rack-3"].run("task.cancel()")
    view.page.keyboard.press("Escape")
    expect(view.pane).to_be_hidden()


def test_label_and_reset_actions_and_their_errors(desk: DashboardPage, fleet: Fleet):
    view = desk
    view.row("rack-2").locator(".cm-check").click()
    view.enter("Label…", "room=attic")
    expect(view.pane).to_contain_text("rack-2: room=attic")
    view.target.fill("room=attic")
    expect(view.count).to_contain_text("1 of ")
    view.button("Reset").click()
    expect(view.pane).to_contain_text("rack-2 restarted")
    view.enter("Label…", "nonsense")
    expect(view.pane).to_contain_text("A label is written key=value.")
    fleet["rack-2"].label({"room": ""})
    expect(view.count).to_contain_text("0 of ")


def test_message_that_is_lost_is_sent_again_and_handled_once(desk: DashboardPage, fleet: Fleet):
    view = desk
    fleet["rack-1"].run("count = 0")
    jobs = len(fleet.jobs("rack-1"))
    view.row("rack-1").locator(".cm-check").click()
    view.page.evaluate("""window.cmLose = '"do":"action"'""")
    view.enter("Run…", "count += 1", "Control+Enter")
    banner = view.node.locator(".cm-lost")
    expect(banner).to_contain_text("kernel is busy or does not answer")
    expect(view.table).not_to_have_class(re.compile("cm-stale"))
    view.page.evaluate("window.cmLose = ''")
    expect(view.pane).to_contain_text("Run: rack-1")
    expect(banner).to_be_hidden()
    assert fleet["rack-1"].run("count").value == 1
    assert len(fleet.jobs("rack-1")) == jobs + 2


def test_text_can_be_typed_while_boards_change(desk: DashboardPage, fleet: Fleet):
    """A board's page must not take the focus back, nor the place of an action's outcome."""
    view = desk
    view.row("rack-1").locator(".cm-name").dblclick()
    expect(view.pane).to_contain_text("Recent jobs")
    view.enter("Run…", "6 * 7", "Control+Enter")
    expect(view.pane).to_contain_text("42")
    view.button("Label…").click()
    for letter in "key = value":
        view.page.keyboard.type(letter)
        fleet["rack-1"].run("import cm; cm.emit(level=8)")
    assert view.node.locator(".cm-prompt input").input_value() == "key = value"
    expect(view.pane).to_contain_text("42")
    view.page.keyboard.press("Escape")
    view.page.keyboard.press("Escape")
    expect(view.pane).to_be_hidden()


def test_selection_survives_a_rename_and_run_remembers_its_code(desk: DashboardPage, fleet: Fleet):
    view = desk
    view.row("rack-1").locator(".cm-name").click()
    expect(view.count).to_contain_text("1 selected")
    view.enter("Run…", "print('once more')", "Control+Enter")
    expect(view.pane).to_contain_text("once more")
    fleet.rename("rack-1", "rack-9")
    expect(view.row("rack-9")).to_have_attribute("aria-selected", "true")
    expect(view.count).to_contain_text("1 selected")
    view.button("Run…").click()
    field = view.node.locator(".cm-prompt textarea")
    expect(field).to_have_value("print('once more')")
    field.press("Control+Enter")
    expect(view.pane).to_contain_text("Run: rack-9")
    view.row("rack-9").locator(".cm-name").dblclick()
    expect(view.pane.locator("h3")).to_have_text("rack-9")
    fleet.rename("rack-9", "rack-1")
    expect(view.pane.locator("h3")).to_have_text("rack-1")


def test_columns_are_chosen_and_any_text_is_searched_for(desk: DashboardPage, fleet: Fleet):
    view = desk
    view.button("Columns").click()
    view.node.get_by_label("Machine", exact=True).check()
    expect(view.row("rack-1").locator(".cm-fact-machine")).to_contain_text("linux")
    view.node.get_by_label("Machine", exact=True).uncheck()
    expect(view.row("rack-1").locator(".cm-fact-machine")).to_have_count(0)
    view.button("Columns").click()
    fleet["rack-3"].label({"shelf": "upper left"})
    expect(view.row("rack-3").locator(".cm-labels")).to_have_text("shelf=upper left")
    view.target.fill("LEFT upper")
    expect(view.count).to_contain_text(re.compile("1 of .* contain this text"))


def test_files_are_dropped_opened_downloaded_and_deleted(desk, fleet: Fleet, tmp_path: Path):
    view = desk
    view.row("rack-2").locator(".cm-name").dblclick()
    expect(view.pane.locator("h3")).to_have_text("rack-2")
    view.button("Files of").click()
    expect(view.pane).to_contain_text("/cm.json")
    files = view.page.evaluate_handle(
        "() => { const data = new DataTransfer();"
        " data.items.add(new File(['dropped text'], 'drop.txt')); return data; }"
    )
    for event in ("dragover", "drop"):
        view.pane.locator(".cm-content").dispatch_event(event, {"dataTransfer": files})
    expect(view.pane.get_by_role("button", name="Open /drop.txt")).to_be_visible()
    assert fleet["rack-2"].read(":/drop.txt").value == b"dropped text"
    view.pane.get_by_role("button", name="Open /drop.txt").click()
    expect(view.pane.locator(".cm-file")).to_contain_text("dropped text")
    with view.page.expect_download() as download:
        view.pane.get_by_role("button", name="Download /drop.txt").click()
    assert download.value.suggested_filename == "drop.txt"
    assert Path(download.value.path()).read_bytes() == b"dropped text"
    view.pane.get_by_role("button", name="Delete /drop.txt").click()
    expect(view.pane.get_by_role("button", name="Delete /drop.txt")).to_have_text("Delete?")
    view.pane.get_by_role("button", name="Delete /drop.txt").click()
    expect(view.pane.get_by_role("button", name="Open /drop.txt")).to_have_count(0)
    (tmp_path / "chosen.txt").write_text("chosen")
    with view.page.expect_file_chooser() as chooser:
        view.pane.get_by_role("button", name="Upload…", exact=True).click()
    chooser.value.set_files(tmp_path / "chosen.txt")
    expect(view.pane.get_by_role("button", name="Open /chosen.txt")).to_be_visible()
    fleet["rack-2"].rm(":/chosen.txt").raise_for_error()


@pytest.fixture
def plotted(server: RunningServer, fleet: Fleet) -> Iterator[str]:
    """A board whose first samples are those of the test: it is revoked together with them."""
    with running_boards(server, fleet, ["plotted-1"]):
        yield "plotted-1"
    fleet.revoke("plotted-1")


#: Records the texts of each drawing of a plot.
RECORD_TEXTS = """() => {
  window.cmTexts = [];
  const all = CanvasRenderingContext2D.prototype, { fillText, scale } = all;
  all.scale = function (...values) { cmTexts.push([]); return scale.apply(this, values); };
  all.fillText = function (text, ...place) {
    cmTexts.at(-1).push(text);
    return fillText.call(this, text, ...place);
  };
}"""


def test_plot_shows_the_values_at_the_pointer(desk: DashboardPage, plotted: str, fleet: Fleet):
    view = desk
    emit = (
        "import cm, time\nfor n in range(5):\n    cm.emit(one=n, two=100 * n)\n    time.sleep(0.1)"
    )
    fleet[plotted].run(emit).raise_for_error()
    view.page.evaluate(RECORD_TEXTS)
    view.target.fill(plotted)
    view.row(plotted).locator(".cm-name").dblclick()
    chart = view.pane.locator(".cm-chart")
    expect(chart.locator(".cm-legend")).to_contain_text("two  400")
    canvas = chart.locator("canvas")
    before: Any = canvas.bounding_box()
    canvas.hover(position={"x": before["width"] - 13, "y": 40})
    expect(chart.locator(".cm-tip")).to_contain_text("two  400")
    for name in ("one", "two"):
        chart.get_by_role("button", name=name).click()
    expect(chart.get_by_role("button", name="two")).to_have_attribute("aria-pressed", "false")
    after: Any = canvas.bounding_box()
    assert after["height"] < before["height"], "one panel is hidden"
    drawings = [
        [text for text in texts if re.fullmatch(r"\d+:\d\d:\d\d", text)]
        for texts in view.page.evaluate("cmTexts")
    ]
    assert any(drawings)
    assert all(len(set(times)) == len(times) for times in drawings), "half a second has one time"


def test_dashboard_without_its_kernel_is_grey_and_its_last_table_is_saved(lab: Lab, rack):
    notebook = lab.open(
        "saved.ipynb", ["import cm_magics\ncm_magics.dashboard('rack-*')"], kernel="python3"
    )
    view = DashboardPage(notebook)
    expect(notebook.area.locator(".cm-saved")).to_be_hidden()
    notebook.area.locator('[data-jp-item-name="save"]').click()
    expect(notebook.page.locator(".jp-mod-dirty")).to_have_count(0)
    lab.shut_down(notebook)
    expect(view.node.locator(".cm-lost")).to_contain_text("Not connected")
    expect(view.table).to_have_class(re.compile("cm-stale"))
    expect(view.button("Run…")).to_be_disabled()
    notebook.page.close()
    reopened = lab.open("saved.ipynb", keep=True)
    expect(reopened.area.locator(".cm-saved")).to_contain_text("rack-3")
    expect(reopened.area.get_by_text("model not found")).to_be_hidden()
    reopened.picture("dashboard-saved")
    lab.close(reopened)


def test_sorts_by_any_column(desk: DashboardPage, rack):
    view = desk
    first = view.table.get_by_role("row").nth(1)
    expect(first).to_contain_text("rack-1")
    view.button("Name").click()
    expect(first).to_contain_text("rack-3")
    rack.kill("rack-2")
    view.button("State").click()
    view.button("State").click()
    expect(first).to_contain_text("rack-2")
    rack.restart("rack-2")
    expect(view.row("rack-2")).to_contain_text("idle")


def test_server_restart_is_shown_and_survived(show, tmp_path: Path):
    with running_server(tmp_path) as server:
        token, tcp_port = (tmp_path / "token").read_text().strip(), server.tcp_port
        with Fleet(server.url, token) as fleet, running_boards(server, fleet, ["solo-1"]):
            setup = f"import os\nos.environ.update(CM_URL={server.url!r}, CM_TOKEN={token!r})\n"
            view = show("restart.ipynb", setup + "%load_ext cm_magics\n%fleet")
            expect(view.row("solo-1")).to_contain_text("idle")
            server.process.terminate()
            server.process.wait(10)
            expect(view.node.locator(".cm-lost")).to_contain_text("No server at")
            view.notebook.picture("dashboard-lost")
            with running_server(tmp_path, tcp_port=tcp_port):
                expect(view.node.locator(".cm-lost")).to_be_hidden()
                expect(view.row("solo-1")).to_contain_text("idle")
                fleet.enrol(["solo-2"])
                expect(view.row("solo-2")).to_contain_text("offline")


def test_page_stays_responsive_with_a_thousand_boards(show, server: RunningServer, fleet: Fleet):
    """The boards are simulated links with the real protocol and real keys."""
    names = [f"farm-{number}" for number in range(1, MANY + 1)]
    with emitting_boards(server.url, fleet.enrol(names), 1.0):
        view = show("many.ipynb", "%load_ext cm_magics\n%fleet farm-*", LONG)
        expect(view.count).to_contain_text("1,000 of ")
        view.settle()
        view.start(1)
        with at_work(fleet, "farm-*"):
            expect(view.count).to_contain_text("busy")
            view.page.evaluate(RECORD)
            view.target.press("ControlOrMeta+a")
            for char in "farm-[1-999]":
                view.page.keyboard.press(char)
                view.page.wait_for_timeout(100)
            expect(view.count).to_contain_text("999 of ")
            view.table.focus()
            for _ in range(15):
                view.page.keyboard.press("PageDown")
                view.page.wait_for_timeout(100)
        inputs, updates = view.page.evaluate("[cmInputs, cmUpdates]")
        keys = sorted(took for name, took in inputs if name.startswith("key") or name == "input")
        slow = (
            keys[len(keys) * 9 // 10] if keys else 0
        )  # the 90th percentile: the machine may be busy
        gaps = [after - before for before, after in zip(updates, updates[1:], strict=False)]
        print(f"keys {slow} ms (slowest {max(keys, default=0)}), longest gap {max(gaps):.0f} ms")
        assert view.busy()
        assert view.table.locator(".cm-row").count() < 60, "only visible rows may be in the page"
        assert slow < 100
        assert max(gaps) < 1000
        view.notebook.picture("dashboard-thousand")
        view.notebook.stop()
    wait_until_all_offline(fleet)


@contextlib.contextmanager
def at_work(fleet: Fleet, target: str) -> Iterator[None]:
    """Make boards run a short cell twice a second, so that all of them change."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.5):
            fleet[target].run("1")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


def wait_until_all_offline(fleet: Fleet) -> None:
    """Wait until all farm boards are offline, and revoke them."""
    with fleet.watch("farm-*", samples=False) as watch:
        away: dict[str, bool] = {}
        for update in watch:
            away.update((board["name"], board["state"] == "offline") for board in update.boards)
            if len(away) == MANY and all(away.values()):
                break
    fleet.revoke(f"farm-[1-{MANY}]")


def test_text_from_hostile_boards_has_no_effect_in_the_page(
    show, server: RunningServer, fleet: Fleet
):
    script = f"""
import cm
evil = {HOSTILE!r}
print(evil)
cm.emit(**{{evil[:60]: 5, "javascript:alert(1)": 6, "text": evil}})
evil
"""
    facts = dict.fromkeys(("platform", "version", "machine", "client"), HOSTILE)
    with running_boards(server, fleet, ["evil-1"]), hostile(server, fleet, "evil-2", facts):
        cells = ["%load_ext cm_magics\n%fleet evil-*", "%%board evil-1\n" + script]
        cells += ["%board_plot evil-1", "%board evil-2 1", "%board evil-1 raise ValueError(evil)"]
        cells += ["r = cm_magics.fleet()['evil-1'].run('evil')\nr", "%boards evil-*"]
        cells[0] = "import cm_magics\n" + cells[0]
        view = show("evil.ipynb", *cells)
        for at in range(1, len(cells)):
            view.start(at)
            view.notebook.wait_idle()
        for name in ("evil-1", "evil-2"):
            view.row(name).locator(".cm-name").dblclick()
            expect(view.pane).to_contain_text(name)
            expect(view.pane).to_contain_text("Recent jobs")
        view.row("evil-1").locator(".cm-name").dblclick()
        expect(view.pane).to_contain_text("<img src=x")
        view.pane.locator(".cm-job").first.click()
        expect(view.pane.locator(".cm-job-output").first).to_contain_text("Out: ")
        view.notebook.picture("dashboard-hostile")
        assert view.page.evaluate("window.cmEvil") is None
        assert view.page.locator("img[src='x'], .jp-OutputArea script").count() == 0
        text = view.page.locator(".jp-NotebookPanel").inner_text()
        assert "<img src=x onerror=" in text, "it must be shown as text"
        assert "\u202e" not in text
        assert "\x1b" not in text


def hostile(server: RunningServer, fleet: Fleet, name: str, facts: dict[str, str]) -> Any:
    """Run a simulated board with these facts."""
    (board,) = fleet.enrol([name])
    return emitting_boards(server.url, [{**board, "facts": json.dumps(facts)}], 1000)


def test_page_never_creates_html_from_text():
    folder = Path(__file__).parents[2] / "cm_magics"
    code = "".join(path.read_text() for path in folder.glob("*.js"))
    lines = [line for line in code.splitlines() if not line.lstrip().startswith("//")]
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "srcdoc",
    ):
        assert not [line for line in lines if way in line], way
