"""The dashboard as a person uses it, in JupyterLab: while a cell runs, and with 1,000 boards."""

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

from benchmarks.links import emitting_boards
from cloudmanager.client.fleet import Fleet
from tests.conftest import RunningServer, running_boards, running_server

from .conftest import Lab, Notebook

pytestmark = pytest.mark.timeout(180)

MANY = 1000
#: What Chromium says of each key: from the press to the next picture, in steps of 8 ms.
RECORD = """() => {
  window.cmInputs = [];
  window.cmUpdates = [];
  const told = (entry) => cmInputs.push([entry.name, entry.duration]);
  new PerformanceObserver((list) => list.getEntries().forEach(told)).observe({
    type: "event", durationThreshold: 16 });
  const look = () => cmUpdates.push(performance.now());
  const fleet = document.querySelector(".cm-fleet");
  const all = { subtree: true, characterData: true, childList: true };
  new MutationObserver(look).observe(fleet, all);
}"""
EVIL = "<img src=x onerror='window.cmEvil=1'><script>window.cmEvil=2</script>\u202e\x1b[2J"


class Fleets:
    """A notebook with a dashboard below its first cell."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.page = notebook.page
        self.page.get_by_text("| Idle").wait_for()
        self.start()
        self.node = self.page.locator(".cm-fleet:has(.cm-table)")
        self.count = self.node.locator(".cm-count")
        self.table = self.node.locator(".cm-table")
        self.pane = self.node.locator(".cm-pane")
        self.target = self.node.get_by_label("Target")
        expect(self.count).to_contain_text("idle")

    def settle(self) -> None:
        """Wait until its messages have a thread of their own, beside the cells'."""
        self.page.wait_for_timeout(1500)

    def start(self, cell: int = 0) -> None:
        self.notebook.cells.nth(cell).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")

    def row(self, name: str) -> Locator:
        return self.node.get_by_role("row").filter(has=self.page.get_by_text(name, exact=True))

    def button(self, name: str) -> Locator:
        return self.node.get_by_role("button", name=re.compile(f"^{re.escape(name)}"))

    def tell(self, name: str, text: str, key: str = "Enter") -> None:
        """Press a button that asks for something, and type that."""
        self.button(name).click()
        field = self.node.locator(".cm-prompt :is(input, textarea)")
        field.fill(text)
        field.press(key)

    def busy(self, cell: int = 1) -> bool:
        """Whether a cell runs; the status line forgets it when a widget's message was heard."""
        return self.notebook.cells.nth(cell).locator(".jp-InputPrompt").inner_text() == "[*]:"


@pytest.fixture
def show(lab: Lab) -> Iterator[Any]:
    """What opens a notebook of these cells and runs the first, which makes a dashboard."""
    opened: list[Notebook] = []

    def open_it(name: str, *cells: str) -> Fleets:
        opened.append(lab.open(name, list(cells), kernel="python3"))
        return Fleets(opened[-1])

    yield open_it
    for notebook in opened:
        lab.close(notebook)


@pytest.fixture(scope="module")
def rack(server: RunningServer, fleet: Fleet, tmp_path_factory: Any) -> Iterator[Any]:
    """Boards that may come and go: rack-1 to rack-3."""
    with running_boards(server, fleet, [f"rack-{n}" for n in (1, 2, 3)]) as boards:
        yield boards


@pytest.fixture(scope="module")
def desk(lab: Lab, rack: Any) -> Iterator[Fleets]:
    """One dashboard for several tests, each of which leaves it as it was."""
    notebook = lab.open(
        "desk.ipynb", ["import cm_magics\ncm_magics.dashboard('rack-*')"], kernel="python3"
    )
    yield Fleets(notebook)
    lab.close(notebook)


LONG = "import time\nfor _ in range(1200):\n    time.sleep(0.1)"
SENSOR = "import cm, time\nfor n in range(600):\n    cm.emit(temp=20 + n / 10)\n    time.sleep(0.1)"


def filter_boards(seen: Fleets) -> None:
    """Type targets, right and wrong ones."""
    seen.target.fill("rack-[2-3]")
    expect(seen.count).to_contain_text("2 of ")
    seen.target.fill("nobody-*")
    expect(seen.table).to_contain_text("No board matches.")
    seen.target.fill("rack-[2-")
    expect(seen.node.locator(".cm-filter-error")).to_contain_text("is not closed")
    seen.target.fill("rack-*")
    expect(seen.count).to_contain_text("3 of ")


def test_a_person_works_with_the_fleet_while_a_long_cell_runs(show, rack, fleet: Fleet):
    seen = show("long.ipynb", "%load_ext cm_magics\n%fleet rack-*", LONG, "%board_plot rack-1 temp")
    expect(seen.count).to_contain_text("3 of ")
    seen.settle()
    seen.start(2)
    seen.start(1)
    expect(seen.notebook.cells.nth(1).locator(".jp-InputPrompt")).to_have_text("[*]:")

    filter_boards(seen)

    # Selects, by the keyboard.
    expect(seen.button("Interrupt")).to_be_disabled()
    seen.table.focus()
    for key in ("ArrowDown", "Shift+ArrowDown"):
        seen.page.keyboard.press(key)
    expect(seen.count).to_contain_text("2 selected")
    seen.page.keyboard.press("Control+a")
    expect(seen.count).to_contain_text("3 selected")

    # Runs on the selection.
    seen.button("Run…").click()
    seen.page.keyboard.insert_text("import sys\nprint('from', sys.platform)\n6 * 7")
    seen.page.keyboard.press("Control+Enter")
    expect(seen.pane).to_contain_text("── rack-[1-3] ")
    expect(seen.pane).to_contain_text("from linux\nOut: 42")

    # A plot grows, and interrupts end what makes it.
    seen.row("rack-1").locator(".cm-name").click()
    seen.tell("Run…", SENSOR, "Control+Enter")
    expect(seen.row("rack-1")).to_contain_text("busy")
    expect(seen.row("rack-1")).to_contain_text("for local")
    legend = seen.page.locator(".cm-fleet:not(:has(.cm-table)) .cm-legend")
    for grown in (r"temp  2[0-9]", r"temp  2[1-9]", r"temp  2[2-9]"):
        expect(legend).to_contain_text(re.compile(grown))
    seen.button("Interrupt").click()
    expect(seen.row("rack-1")).to_contain_text("idle")

    # A board vanishes and returns.
    rack.kill("rack-2")
    expect(seen.row("rack-2")).to_contain_text("offline")
    expect(seen.row("rack-2")).to_contain_text("ago")
    rack.restart("rack-2")
    expect(seen.row("rack-2")).to_contain_text("idle")

    assert seen.busy(), "all of it while the cell ran"
    seen.notebook.stop()
    expect(seen.notebook.cells.nth(1).locator(".jp-InputPrompt")).not_to_have_text("[*]:")


def test_a_boards_page_has_facts_jobs_files_packages_and_a_plot(desk: Fleets, fleet: Fleet):
    seen = desk
    fleet["rack-3"].run("import cm\nprint('kept output')\ncm.emit(level=5)\ncm.emit(level=6)")
    seen.table.focus()
    seen.page.keyboard.press("End")
    seen.page.keyboard.press("Enter")
    for told in ("rack-3", "MicroPython", "1.", "level  6", "ok"):
        expect(seen.pane).to_contain_text(told)
    seen.pane.locator(".cm-job").first.click()
    expect(seen.pane).to_contain_text("kept output")

    # What is asked for stays while the rest of the page goes on, and asks no more by itself.
    seen.button("Packages of").click()
    expect(seen.pane).to_contain_text("none")
    seen.button("Files of").click()
    expect(seen.pane).to_contain_text("/cm.json")
    jobs = len(fleet.jobs("rack-3"))
    fleet["rack-3"].run("cm.emit(level=7)")
    expect(seen.pane).to_contain_text("level  7")
    expect(seen.pane).to_contain_text("/cm.json")
    assert len(fleet.jobs("rack-3")) == jobs + 1
    seen.notebook.picture("dashboard-page")
    seen.page.keyboard.press("Escape")
    expect(seen.pane).to_be_hidden()


def test_labels_and_resets_are_actions_and_errors_are_said(desk: Fleets, fleet: Fleet):
    seen = desk
    seen.row("rack-2").locator(".cm-check").click()
    seen.tell("Label…", "room=attic")
    expect(seen.pane).to_contain_text("rack-2: room=attic")
    seen.target.fill("room=attic")
    expect(seen.count).to_contain_text("1 of ")
    seen.button("Reset").click()
    expect(seen.pane).to_contain_text("rack-2 restarted")
    seen.tell("Label…", "nonsense")
    expect(seen.pane).to_contain_text("A label is written key=value.")
    fleet["rack-2"].label({"room": ""})
    expect(seen.count).to_contain_text("0 of ")
    seen.target.fill("rack-*")
    expect(seen.count).to_contain_text("3 of ")


def test_sorts_by_any_column(desk: Fleets, rack):
    seen = desk
    first = seen.table.get_by_role("row").nth(1)
    expect(first).to_contain_text("rack-1")
    seen.button("Name").click()
    expect(first).to_contain_text("rack-3")
    rack.kill("rack-2")
    seen.button("State").click()
    seen.button("State").click()
    expect(first).to_contain_text("rack-2")
    rack.restart("rack-2")
    expect(seen.row("rack-2")).to_contain_text("idle")


def test_survives_a_restart_of_the_server_and_says_that_it_is_gone(show, tmp_path: Path):
    with running_server(tmp_path) as server:
        token, tcp_port = (tmp_path / "token").read_text().strip(), server.tcp_port
        with Fleet(server.url, token) as fleet, running_boards(server, fleet, ["solo-1"]):
            setup = f"import os\nos.environ.update(CM_URL={server.url!r}, CM_TOKEN={token!r})\n"
            seen = show("restart.ipynb", setup + "%load_ext cm_magics\n%fleet")
            expect(seen.row("solo-1")).to_contain_text("idle")
            server.process.terminate()
            server.process.wait(10)
            expect(seen.node.locator(".cm-lost")).to_contain_text("No server at")
            seen.notebook.picture("dashboard-lost")
            with running_server(tmp_path, tcp_port=tcp_port):
                expect(seen.node.locator(".cm-lost")).to_be_hidden()
                expect(seen.row("solo-1")).to_contain_text("idle")
                fleet.enrol(["solo-2"])
                expect(seen.row("solo-2")).to_contain_text("offline")


def test_a_thousand_boards_update_and_the_page_stays_quick(
    show, server: RunningServer, fleet: Fleet
):
    """The boards are simulated links that speak the real protocol with real proofs."""
    names = [f"farm-{number}" for number in range(1, MANY + 1)]
    with emitting_boards(server.url, fleet.enrol(names), 1.0):
        seen = show("many.ipynb", "%load_ext cm_magics\n%fleet farm-*", LONG)
        expect(seen.count).to_contain_text("1,000 of ")
        seen.settle()
        seen.start(1)
        with at_work(fleet, "farm-*"):
            expect(seen.count).to_contain_text("busy")
            seen.page.evaluate(RECORD)
            seen.target.press("ControlOrMeta+a")
            for char in "farm-[1-999]":
                seen.page.keyboard.press(char)
                seen.page.wait_for_timeout(100)
            expect(seen.count).to_contain_text("999 of ")
            seen.table.focus()
            for _ in range(15):
                seen.page.keyboard.press("PageDown")
                seen.page.wait_for_timeout(100)
        inputs, updates = seen.page.evaluate("[cmInputs, cmUpdates]")
        keys = sorted(took for name, took in inputs if name.startswith("key") or name == "input")
        slow = keys[len(keys) * 9 // 10] if keys else 0  # of a machine that others use, too
        gaps = [after - before for before, after in zip(updates, updates[1:], strict=False)]
        print(f"keys {slow} ms (slowest {max(keys, default=0)}), longest gap {max(gaps):.0f} ms")
        assert seen.busy()
        assert seen.table.locator(".cm-row").count() < 60, "only what is in sight is in the page"
        assert slow < 100
        assert max(gaps) < 1000
        seen.notebook.picture("dashboard-thousand")
        seen.notebook.stop()
    fleet_is_gone(fleet)


@contextlib.contextmanager
def at_work(fleet: Fleet, target: str) -> Iterator[None]:
    """Have boards run a short cell twice a second: all of them change, again and again."""
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


def fleet_is_gone(fleet: Fleet) -> None:
    with fleet.watch("farm-*", samples=False) as watch:
        away: dict[str, bool] = {}
        for update in watch:
            away.update((board["name"], board["state"] == "offline") for board in update.boards)
            if len(away) == MANY and all(away.values()):
                break
    fleet.revoke(f"farm-[1-{MANY}]")


def test_what_hostile_boards_say_does_nothing_in_the_page(
    show, server: RunningServer, fleet: Fleet
):
    script = f"""
import cm
evil = {EVIL!r}
print(evil)
cm.emit(**{{evil[:60]: 5, "javascript:alert(1)": 6, "text": evil}})
evil
"""
    facts = dict.fromkeys(("platform", "version", "machine", "client"), EVIL)
    with running_boards(server, fleet, ["evil-1"]), hostile(server, fleet, "evil-2", facts):
        cells = ["%load_ext cm_magics\n%fleet evil-*", "%%board evil-1\n" + script]
        cells += ["%board_plot evil-1", "%board evil-2 1", "%board evil-1 raise ValueError(evil)"]
        cells += ["r = cm_magics.fleet()['evil-1'].run('evil')\nr", "%boards evil-*"]
        cells[0] = "import cm_magics\n" + cells[0]
        seen = show("evil.ipynb", *cells)
        for at in range(1, len(cells)):
            seen.start(at)
            seen.notebook.wait_idle()
        for name in ("evil-1", "evil-2"):
            seen.row(name).locator(".cm-name").dblclick()
            expect(seen.pane).to_contain_text(name)
            expect(seen.pane).to_contain_text("Recent jobs")
        seen.row("evil-1").locator(".cm-name").dblclick()
        expect(seen.pane).to_contain_text("<img src=x")
        seen.pane.locator(".cm-job").first.click()
        expect(seen.pane.locator(".cm-job-output").first).to_contain_text("Out: ")
        seen.notebook.picture("dashboard-hostile")
        assert seen.page.evaluate("window.cmEvil") is None
        assert seen.page.locator("img[src='x'], .jp-OutputArea script").count() == 0
        text = seen.page.locator(".jp-NotebookPanel").inner_text()
        assert "<img src=x onerror=" in text, "it is shown, as text"
        assert "\u202e" not in text
        assert "\x1b" not in text


def hostile(server: RunningServer, fleet: Fleet, name: str, facts: dict[str, str]) -> Any:
    """A simulated link whose facts are as given; it answers each cell with them."""
    (board,) = fleet.enrol([name])
    return emitting_boards(server.url, [{**board, "facts": json.dumps(facts)}], 1000)


def test_nothing_in_the_page_is_made_of_text_as_html():
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
