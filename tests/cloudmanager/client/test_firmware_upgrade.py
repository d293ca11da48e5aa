"""Firmware over the network: a real server, and a chip with two slots that are a stand-in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.client.firmware_upgrade import FirmwareUpgrade
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import NotAllowed, ServerError
from tests.board import standin_ota
from tests.cloudmanager.chip import Chip
from tests.conftest import RunningServer
from tests.firmware_images import app_image

pytestmark = pytest.mark.timeout(120)
OLD = "1.28.0"


@pytest.fixture(autouse=True)
def _home(server: RunningServer):
    """Set CM_HOME to the shared server's folder."""


@pytest.fixture
def chip(tmp_path: Path, mbm, fleet: Fleet) -> Iterator[Chip]:
    """A board on an ESP32 with two slots, slot-1."""
    slots = tmp_path / "slots.img"
    flash = standin_ota.Memory()
    flash.write(2 * standin_ota.SECTOR, app_image(OLD))
    slots.write_bytes(flash.data + b"\0")
    with Chip(tmp_path, "esp32", ota=str(slots), port="esp32-1.28") as chip:
        chip.flash[0x1000] = 0xE9
        chip.press_reset()
        done = mbm("flash", "--port", chip.port, "--no-flash", "--name", "slot-1")
        assert done.status == 0, done.err
        yield chip


def until(condition: Callable[[], object], what: str) -> None:
    """Poll until a condition is true; ``what`` describes it."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def facts(fleet: Fleet) -> dict[str, object]:
    (board,) = fleet.boards("slot-1")
    return {name: board[name] for name in ("version", "slots", "generation")}


def test_board_gets_firmware_and_keeps_it(chip: Chip, mbm, fleet: Fleet, tmp_path: Path):
    assert facts(fleet) == {"version": OLD, "slots": standin_ota.SLOT, "generation": ""}
    path = tmp_path / "new.app-bin"
    path.write_bytes(app_image("1.29.0"))
    done = mbm("board-upgrade-firmware", "slot-1", str(path))
    assert (done.status, done.out) == (0, "slot-1: the new firmware is running\n"), done.err
    assert facts(fleet)["version"] == "1.29.0"
    fleet["slot-1"].reset(hard=True).raise_for_error()
    assert facts(fleet)["version"] == "1.29.0"
    states: list[tuple[int, int]] = []
    fleet["slot-1"].upgrade_firmware(
        str(path), progress=lambda _, *state: states.append(state)
    ).raise_for_error()
    size = len(app_image("1.29.0"))
    assert states == [(size, size)], "it is there already"
    listed = fleet["slot-1"].run("import os\nsorted(os.listdir('/.cm'))")
    assert listed.value == []


def write_image(folder: Path, version: str) -> Path:
    path = folder / f"{version}.app-bin"
    path.write_bytes(app_image(version))
    return path


def test_firmware_that_is_not_kept_is_gone_after_a_reset(
    chip: Chip, mbm, fleet: Fleet, tmp_path: Path, monkeypatch
):
    restart = FirmwareUpgrade._restart

    async def restart_twice(self, boards):
        back = await restart(self, boards)
        before = fleet.boards("slot-1")[0]["connected_since"]
        chip.press_reset()
        until(
            lambda: fleet.boards("slot-1")[0]["connected_since"] not in (None, before),
            "it is back",
        )
        return back

    monkeypatch.setattr(FirmwareUpgrade, "_restart", restart_twice)
    done = mbm("board-upgrade-firmware", "slot-1", str(write_image(tmp_path, "1.29.0")))
    assert done.status == 1
    assert done.err.splitlines()[-1] == (
        "mbm: slot-1: the new firmware did not work, and the old one runs: it restarted."
    )
    assert facts(fleet)["version"] == OLD


def test_firmware_that_does_not_suit_is_refused(chip: Chip, fleet: Fleet, tmp_path: Path):
    def why(data: bytes) -> str:
        path = tmp_path / "image"
        path.write_bytes(data)
        (result,) = fleet["slot-1"].upgrade_firmware(str(path)).values()
        return str(result.error)

    assert "the image is for ESP32-S3, but the board is ESP32" in why(app_image(chip=9))
    assert "is of another variant" in why(app_image(machine="Generic ESP32 module with ESP32"))
    assert "the image has 70,144 bytes, and the slot for it 65,536" in why(app_image(size=70_000))
    assert "has bytecode 6.2, and the board has 6.3" in why(app_image("1.22.0"))
    with pytest.raises(ServerError, match="damaged"):
        why(app_image()[:-1])
    assert facts(fleet)["version"] == OLD


def test_only_administrators_change_firmware(boards, server: RunningServer, fleet, tmp_path):
    image = str(write_image(tmp_path, "1.29.0"))
    for role in ("viewer", "operator"):
        made = fleet.request("token-create", name=f"a-{role}", role=role)
        with Fleet(server.url, made["token"]) as other, pytest.raises(NotAllowed):
            other["demo-1"].upgrade_firmware(image)
        fleet.request("token-revoke", name=f"a-{role}")


def test_board_without_slots_is_refused(boards, fleet: Fleet, mbm, tmp_path: Path):
    done = mbm("board-upgrade-firmware", "demo-1", str(write_image(tmp_path, "1.29.0")))
    assert done.status == 1
    assert "a board of the platform linux has no firmware that can be replaced" in done.err


APP = "VERSION = {version}\ndef ok():\n    import sys\n    assert {check}\n"


def apply(fleet: Fleet, folder: Path, version: int, firmware: Path, check: str) -> dict[str, Any]:
    """Bring the board to a program and firmware; return the rollout when it has ended."""
    (folder / "src").mkdir(exist_ok=True)
    (folder / "src/app.py").write_text(APP.format(version=version, check=check))
    path = folder / "fleet.toml"
    path.write_text(
        f'[slots]\ntarget = "slot-1"\napp = "src"\nfirmware = "{firmware.name}"\n[slots.rollout]\n'
        'waves = ["100%"]\nhealth = "import app; app.ok()"\nhealth_timeout = "20s"\n'
    )
    fleet.apply(fleet.plan(path))

    def newest() -> dict[str, Any]:
        (rollout,) = (dict(one) for one in fleet.rollouts() if one["group"] == "slots")
        return rollout

    until(lambda: newest()["state"] != "running", "the rollout has ended")
    return newest()


def test_generation_brings_firmware_and_goes_back_with_it(chip: Chip, fleet: Fleet, tmp_path: Path):
    newer, newest = write_image(tmp_path, "1.29.0"), write_image(tmp_path, "1.29.1")
    rollout = apply(fleet, tmp_path, 1, newer, "sys.implementation.version[:2] == (1, 29)")
    assert rollout["state"] == "done", rollout
    assert facts(fleet)["version"] == "1.29.0"
    assert not fleet.plan(tmp_path / "fleet.toml").changed

    rollout = apply(fleet, tmp_path, 2, newest, "sys.implementation.version[2] == 9")
    assert rollout["state"] == "failed"
    assert rollout["boards"][0]["why"].startswith("health: AssertionError")
    until(lambda: facts(fleet)["version"] == "1.29.0", "it went back")
    assert fleet["slot-1"].run("import app\napp.VERSION", wait=20).value == 1
