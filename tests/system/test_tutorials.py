"""The tutorials, several times: in any order, twice in a row, and one of them on a flashed board.

`make test` runs each of them once, by nbval (notebooks/conftest.py).
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from cloudmanager.cable import esp_chip
from cloudmanager.cable.flash import FlashOptions, flash_and_join
from cloudmanager.client.fleet import Fleet
from tests.cloudmanager import images
from tests.cloudmanager.chip import Chip
from tests.conftest import RunningServer, running_server
from tests.wheel import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OWN_BOARD = ROOT / "notebooks/08_your_own_board.ipynb"
SEED = int(os.environ.get("SEED", "1"))  # of make soak

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


def run_tutorial(notebook: Path, folder: Path, home: Path, after_cell: Any = None) -> None:
    """Run a tutorial in a new kernel, in an empty folder.

    Args:
        notebook: the tutorial.
        folder: is created.
        home: CM_HOME.
        after_cell: called after each code cell, with the arguments ``cell`` and ``cell_index``.
    """
    folder.mkdir()
    document = nbformat.read(notebook, as_version=4)
    bin_folder = str(Path(sys.executable).parent)
    environment = {"CM_HOME": str(home), "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    with mock.patch.dict(os.environ, environment):
        for name in ("CM_URL", "CM_TOKEN"):
            os.environ.pop(name, None)
        resources = {"metadata": {"path": str(folder)}}
        client = NotebookClient(document, timeout=120, resources=resources)
        client.on_cell_complete = after_cell
        client.execute()


def test_tutorials_run_twice_in_a_row_in_any_order(tmp_path: Path):
    order = random.Random(SEED).sample(NOTEBOOKS, len(NOTEBOOKS))
    home = tmp_path / "home"
    with running_server(home):
        for number, notebook in enumerate(each for each in order for _ in range(2)):
            try:
                run_tutorial(notebook, tmp_path / str(number), home)
            except CellExecutionError as error:
                names = [path.stem for path in order]
                pytest.fail(f"run {number + 1} of {names} (seed {SEED}): {notebook.stem}\n{error}")


@pytest.mark.parametrize("kind", ["esp8266", "esp32"])
def test_tutorial_of_your_own_board_runs_on_a_board_that_was_flashed(
    server: RunningServer, fleet: Fleet, tmp_path: Path, kind: str, monkeypatch
):
    """The chip is emulated; the real esptool writes its flash."""
    monkeypatch.setattr(esp_chip, "ATTEMPTS", 1)
    image = tmp_path / "firmware.bin"
    if kind == "esp32":
        image.write_bytes(images.esp32())
    else:
        image = images.small(tmp_path)
    chip = Chip(tmp_path, kind)
    try:
        chip.hold_boot()
        options = FlashOptions(
            ("127.0.0.1", server.tcp_port), firmware=str(image), names=["shelf-1"]
        )

        def press_reset(port: str, step: str, text: str) -> None:
            if text == "press RESET on the board now":
                chip.press_reset()

        def restart_program(cell: Any, cell_index: int) -> None:
            if "stand_in.power_on" in cell.source:
                chip.press_reset()

        (outcome,) = flash_and_join([chip.port], options, fleet, press_reset)
        assert (outcome.error, outcome.name) == ("", "shelf-1")
        run_tutorial(OWN_BOARD, tmp_path / "notebook", server.home, restart_program)
        assert fleet.boards("shelf-1")[0]["connected_since"], "it stays in the fleet"
    finally:
        chip.stop()
        fleet.revoke("shelf-1")
