"""The kernel in JupyterLab: the tutorial, Tab, Shift-Tab, the stop button, input."""

from __future__ import annotations

import pytest

from .conftest import WAIT, Lab, Notebook

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def page(lab: Lab) -> Notebook:
    """A notebook with this kernel, and demo-1 chosen in its first cell."""
    notebook = lab.reuse("new.ipynb", ["", "", ""])
    notebook.run(0, "%board_use demo-1")
    notebook.wait_output(0, "Cells run on demo-1.")
    notebook.wait_idle()
    return notebook


def test_tutorial_runs_from_top_to_bottom(lab: Lab):
    page = lab.open("06_the_kernel.ipynb")
    page.run_all()
    page.wait_output(page.cells.count() - 1, "22")
    texts = [text for cell in range(page.cells.count()) for text in page.outputs(cell)]
    assert any("Hello from micropython" in text for text in texts)
    assert page.area.locator(".jp-RenderedImage img").count() == 1
    page.picture("kernel-tutorial-top")
    page.cells.last.scroll_into_view_if_needed()
    page.picture("kernel-tutorial-end")
    lab.close(page)


def test_tab_completes_from_the_board_and_shift_tab_describes(page: Notebook):
    page.run(1, "def blink(times, *, pause=1):\n    'Blinks.'\n\n\nblip = 42")
    page.wait_idle()
    page.type(2, "bli")
    page.press("Tab")
    offered = page.page.locator(".jp-Completer-item")
    offered.first.wait_for(timeout=WAIT)
    assert {"blink", "blip"} <= {text.split("\n")[-1].strip() for text in _names(page)}
    page.picture("kernel-tab")
    page.press("Enter")
    assert page.source(2) == "blink"
    page.press("Shift+Tab")
    tip = page.page.locator(".jp-Tooltip")
    tip.wait_for(timeout=WAIT)
    assert "blink(times, *, pause=1)" in tip.inner_text()
    page.picture("kernel-shift-tab")


def _names(page: Notebook) -> list[str]:
    return page.page.locator(".jp-Completer-item .jp-Completer-match").all_inner_texts()


def test_endless_cell_is_stopped_and_the_next_one_runs(page: Notebook):
    page.run(1, "x = 7\nprint('going')\nwhile True: pass")
    page.wait_output(1, "going")
    page.stop()
    page.wait_output(1, "KeyboardInterrupt: the cell was stopped on demo-1.")
    page.picture("kernel-stop")
    page.run(2, "x")
    page.wait_output(2, "7")


def test_user_answers_input_of_a_board(page: Notebook):
    page.run(1, "'hello ' + input('name? ')")
    field = page.page.locator(".jp-Stdin-input")
    field.wait_for(timeout=WAIT)
    assert "demo-1: name?" in page.page.locator(".jp-Stdin-prompt").inner_text()
    page.picture("kernel-input")
    field.fill("Ada")
    field.press("Enter")
    page.wait_output(1, "'hello Ada'")


def test_user_chooses_other_boards(page: Notebook):
    page.run(1, "%board_use demo-[2-3]\n6*7")
    page.wait_output(1, "── demo-[2-3] ──")
    page.run(2, "import os\nprint('unlike:', os.urandom(1))")
    page.wait_output(2, "demo-2")
    page.wait_output(2, "demo-3")
    page.picture("kernel-boards")


def test_error_stops_run_all(lab: Lab):
    page = lab.open("error.ipynb", ["%%board demo-1\n6*7", "%%board demo-1\n1/0", "6*7"])
    page.run_all()
    page.wait_output(1, "ZeroDivisionError: divide by zero")
    page.wait_idle()
    assert page.outputs(0) == ["42"]
    assert page.outputs(2) == []
    page.picture("kernel-error")
    lab.close(page)
