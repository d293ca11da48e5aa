"""Tutorials in JupyterLab with Run All."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from .conftest import ROOT, Lab

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("name", ["01_first_cells", "05_the_dashboard"])
def test_tutorial_runs_from_top_to_bottom(lab: Lab, name: str):
    notebook = lab.open(f"{name}.ipynb")
    notebook.page.get_by_text("| Idle").wait_for()
    notebook.menu("Run", "Run All Cells")
    table = notebook.page.locator(".cm-fleet:has(.cm-table)")
    if name == "05_the_dashboard":
        for board in ("hall-1", "hall-6"):  # it is updated while the next cells run
            expect(table.get_by_text(board, exact=True)).to_be_visible()
    count = notebook.cells.count()
    for number in range(count):  # also after the cells that raise on purpose
        prompt = notebook.cells.nth(number).locator(".jp-InputPrompt")
        expect(prompt).to_have_text(f"[{number + 1}]:")
    errors = notebook.area.locator('[data-mime-type="application/vnd.jupyter.stderr"]')
    assert errors.count() == count_expected_errors(name), errors.all_inner_texts()
    if name == "05_the_dashboard":  # the reader can still try it
        at_least_nine = re.compile(r"\b(9|[1-9]\d) idle")  # demo-1 to demo-3, hall-1 to hall-6
        expect(table.locator(".cm-count")).to_have_text(at_least_nine)
        picture = notebook.area.locator("img[alt='The dashboard']")
        assert picture.evaluate("image => image.naturalWidth") > 0
    notebook.cells.nth(3).scroll_into_view_if_needed()
    notebook.picture(name)
    lab.close(notebook)


def count_expected_errors(name: str) -> int:
    """Count the cells of a tutorial with the tag raises-exception."""
    cells = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text())["cells"]
    return sum("raises-exception" in cell["metadata"].get("tags", ()) for cell in cells)
