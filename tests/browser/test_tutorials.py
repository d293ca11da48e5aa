"""Tutorials as a person runs them: opened in JupyterLab, Run All, and looked at."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from .conftest import WAIT, Lab

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("name", ["01_first_cells", "04_data", "05_the_dashboard"])
def test_tutorial_runs_from_top_to_bottom(lab: Lab, name: str):
    expect.set_options(timeout=2 * WAIT)
    notebook = lab.open(f"{name}.ipynb")
    notebook.page.get_by_text("| Idle").wait_for()
    notebook.menu("Run", "Run All Cells")
    count = notebook.cells.count()
    for number in range(count):  # those that raise are meant to, and the others go on
        prompt = notebook.cells.nth(number).locator(".jp-InputPrompt")
        expect(prompt).to_have_text(f"[{number + 1}]:")
    errors = notebook.area.locator('[data-mime-type="application/vnd.jupyter.stderr"]')
    assert errors.count() == 0, errors.first.inner_text()
    if name == "05_the_dashboard":
        table = notebook.page.locator(".cm-fleet:has(.cm-table)")
        for board in range(1, 7):
            expect(table.get_by_text(f"lab-{board}", exact=True)).to_be_visible()
        expect(table.locator(".cm-row").last).to_contain_text("offline")  # it cleaned up
    if name == "04_data":
        expect(notebook.page.locator(".cm-legend")).to_contain_text("sensor-1")
    notebook.cells.nth(3).scroll_into_view_if_needed()
    notebook.picture(name)
    notebook.page.close()
