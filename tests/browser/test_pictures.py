"""Make the pictures for docs/, in build/: `make soak ARGS=tests/browser/test_pictures.py`."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.emitting_boards import emitting_boards
from cloudmanager.client.fleet import Fleet
from tests.conftest import RunningServer, running_boards

from .conftest import Lab
from .test_dashboard import DashboardPage, at_work

pytestmark = [pytest.mark.timeout(180), pytest.mark.soak]

SIZE: Any = {"width": 1280, "height": 920}
CELLS = (
    "%load_ext cm_magics",
    "%%board lab-[1-6]\nprint('reading the sensor')\nread()",
    "%board lab-[1-3,5-6] {'temp': read(), 'door': 'closed'}",
)


SENSOR = """
class Sensor:
    "A thermometer."
    def __init__(self, offset):
        self.offset = offset
    def read(self, digits=1):
        "Degrees Celsius."
        return round(21.5 + self.offset, digits)

sensor = Sensor(%d)
"""
SCREEN = """%board_use lab-1
import framebuf
screen = bytearray(64 * 16 // 8)
canvas = framebuf.FrameBuffer(screen, 64, 16, framebuf.MONO_VLSB)
canvas.text(f"{sensor.read()} C", 8, 4)
{"framebuf": screen, "width": 64, "height": 16, "format": framebuf.MONO_VLSB}"""
KERNEL_CELLS = ("%board_use lab-[1-6]", "print('reading the sensor')\nsensor.read()", SCREEN, "")


@pytest.fixture
def farm(server: RunningServer, fleet: Fleet) -> Any:
    """240 simulated boards, of which 12 are offline."""
    names = [f"greenhouse-{number}" for number in range(1, 241)]
    with emitting_boards(server.url, fleet.enrol(names)[:228], 0.5):
        yield fleet
    fleet.revoke("greenhouse-[1-240]")  # and delete their samples, for the next plot


def test_notebook(lab: Lab, server: RunningServer, fleet: Fleet):
    with running_boards(server, fleet, [f"lab-{number}" for number in range(1, 7)]):
        fleet["lab-[1-6]"].run("def read():\n    return 21.5").raise_for_error()
        fleet["lab-2"].run("def read():\n    return 85.0").raise_for_error()
        broken = "def read():\n    raise OSError('the sensor is unplugged')"
        fleet["lab-4"].run(broken).raise_for_error()
        notebook = lab.open("cells.ipynb", CELLS, kernel="python3")
        notebook.page.set_viewport_size({"width": 1000, "height": 680})
        notebook.page.keyboard.press("ControlOrMeta+b")
        notebook.page.get_by_text("| Idle").wait_for()
        for number in range(len(CELLS)):
            notebook.cells.nth(number).locator(".cm-content").click()
            notebook.page.keyboard.press("Control+Enter")
            notebook.page.wait_for_timeout(1000)
        notebook.page.locator(".jp-NotebookPanel").screenshot(path=notebook.picture("notebook"))
        lab.close(notebook)


def test_kernel(lab: Lab, server: RunningServer, fleet: Fleet):
    with running_boards(server, fleet, [f"lab-{number}" for number in range(1, 7)]):
        fleet["lab-[1-6]"].run(SENSOR % 0).raise_for_error()
        fleet["lab-4"].run("sensor.offset = 63.5").raise_for_error()
        notebook = lab.open("kernel.ipynb", KERNEL_CELLS)
        notebook.page.set_viewport_size({"width": 1000, "height": 900})
        notebook.page.keyboard.press("ControlOrMeta+b")
        for number, text in enumerate(("Cells run on", "85.0", "Cells run on lab-1")):
            notebook.cells.nth(number).locator(".cm-content").click()
            notebook.page.keyboard.press("Control+Enter")
            notebook.wait_output(number, text)
        notebook.wait_idle()
        notebook.type(3, "sensor.")
        notebook.press("Tab")
        notebook.page.locator(".jp-Completer-item").first.wait_for()
        panel: Any = notebook.page.locator(".jp-NotebookPanel").bounding_box()
        part: Any = {**panel, "height": 640}  # the page is higher, so that the completer fits below
        notebook.page.screenshot(path=notebook.picture("kernel"), clip=part)
        lab.close(notebook)


@pytest.mark.parametrize("dark", [False, True])
def test_dashboard(lab: Lab, farm: Fleet, dark: bool):
    cells = ["%load_ext cm_magics\n%fleet greenhouse-*", "%board_plot greenhouse-[1-6] temp"]
    notebook = lab.open(f"greenhouses{dark:d}.ipynb", cells, kernel="python3")
    notebook.page.set_viewport_size(SIZE)
    notebook.page.keyboard.press("ControlOrMeta+b")  # without the list of files
    if dark:
        notebook.page.get_by_role("menuitem", name="Settings", exact=True).click()
        notebook.page.locator(".lm-Menu-item", has_text="Theme").first.hover()
        dark_only = re.compile("JupyterLab Dark$")
        notebook.page.locator(".lm-Menu-item").filter(has_text=dark_only).click()
    view = DashboardPage(notebook)
    view.start(1)
    some = "greenhouse-[3-5,9]"
    with at_work(farm, some), at_work(farm, some), at_work(farm, some), at_work(farm, some):
        view.row("greenhouse-3").locator(".cm-check").click()
        view.row("greenhouse-5").locator(".cm-check").click(modifiers=["Shift"])
        notebook.page.wait_for_timeout(8000)
        notebook.page.locator(".jp-WindowedPanel-outer").evaluate("all => all.scrollTop = 0")
        notebook.page.locator(".jp-NotebookPanel").screenshot(path=picture(notebook, dark))
    lab.close(notebook)


def picture(notebook: Any, dark: bool) -> Any:
    return notebook.picture("dashboard-dark" if dark else "dashboard")
