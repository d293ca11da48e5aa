"""The pictures of docs/: `make soak ARGS=tests/browser/test_pictures.py` makes them, in build/."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import ViewportSize, expect

from benchmarks.links import linked
from cloudmanager.fleet import Fleet
from tests.conftest import Server

from .conftest import WAIT, Lab
from .test_dashboard import Fleets, at_work

pytestmark = [pytest.mark.timeout(180), pytest.mark.soak]

SIZE: ViewportSize = {"width": 1280, "height": 920}


@pytest.fixture
def farm(server: Server, fleet: Fleet) -> Any:
    """Some hundred simulated links: north and south greenhouses, some of them gone."""
    names = [f"greenhouse-{number}" for number in range(1, 241)]
    with linked(server.url, fleet.enrol(names)[:228], 0.5):
        yield fleet


@pytest.mark.parametrize("dark", [False, True])
def test_dashboard(lab: Lab, farm: Fleet, dark: bool):
    expect.set_options(timeout=WAIT)
    cells = ["%load_ext cm_magics\n%fleet greenhouse-*", "%board_plot greenhouse-[1-6] temp"]
    notebook = lab.open("greenhouses.ipynb", cells, kernel="python3")
    notebook.page.set_viewport_size(SIZE)
    notebook.page.keyboard.press("ControlOrMeta+b")  # without the list of files
    if dark:
        notebook.page.get_by_role("menuitem", name="Settings", exact=True).click()
        notebook.page.locator(".lm-Menu-item", has_text="Theme").first.hover()
        dark_only = re.compile("JupyterLab Dark$")
        notebook.page.locator(".lm-Menu-item").filter(has_text=dark_only).click()
    seen = Fleets(notebook)
    seen.start(1)
    with at_work(farm, "greenhouse-[3-5,9]"):
        seen.row("greenhouse-3").locator(".cm-check").click()
        seen.row("greenhouse-5").locator(".cm-check").click(modifiers=["Shift"])
        notebook.page.wait_for_timeout(8000)
        notebook.page.locator(".jp-NotebookPanel").screenshot(path=picture(notebook, dark))
    notebook.page.close()


def picture(notebook: Any, dark: bool) -> Any:
    return notebook.picture("dashboard-dark" if dark else "dashboard")
