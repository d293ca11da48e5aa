"""Writing firmware with the real esptool to an emulated ROM loader on a pty."""

from __future__ import annotations

import pytest

from cloudmanager.cable import esp_chip as chips
from cloudmanager.protocol.errors import CableError
from tests.cloudmanager import images
from tests.cloudmanager.chip import Chip
from tests.cloudmanager.rom import DEFL_DATA, ERASE_FLASH, FLASH_DATA, MEM_BEGIN, SYNC

BOOT = {"esp8266": 0, "esp32": 0x1000}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    small = images.small(tmp_path_factory.mktemp("images")).read_bytes()
    return {"esp8266": small, "esp32": images.esp32()}


@pytest.fixture(params=["esp8266", "esp32"])
def chip(request, tmp_path):
    with Chip(tmp_path, request.param) as chip:
        chip.hold_boot()
        yield chip


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(chips, "ATTEMPTS", 1)


def written(chip, image):
    start = BOOT[chip.kind]
    return bytes(chip.flash[start : start + len(image)])


def as_esptool_writes(kind, image):
    """An ESP8266 reads its flash's size from the header, where esptool writes it (4 MB)."""
    return image[:3] + bytes([0x40 | image[3] & 15]) + image[4:] if kind == "esp8266" else image


def test_flash_contains_exactly_the_image(chip, image):
    parts: list[float] = []
    with chips.open_chip(chip.port) as opened:
        assert opened.name == chip.kind.upper()
        opened.write_image(image[chip.kind], parts.append)
        assert opened.uses_stub
    wanted = as_esptool_writes(chip.kind, image[chip.kind])
    assert written(chip, wanted) == wanted
    assert chip.flash.count(b"\xff") > len(chip.flash) - len(wanted)
    assert ERASE_FLASH in chip.loader.seen
    assert parts == sorted(parts)
    assert parts[-1] == 1


def test_chip_that_refuses_the_stub_is_written_by_its_rom_loader(chip, image):
    chip.faults[MEM_BEGIN] = "refused"
    with chips.open_chip(chip.port) as opened:
        opened.write_image(image[chip.kind], lambda _: None)
        assert not opened.uses_stub
    wanted = as_esptool_writes(chip.kind, image[chip.kind])
    assert written(chip, wanted) == wanted
    assert FLASH_DATA in chip.loader.seen


def test_wrong_bytes_in_flash_are_detected(chip, image):
    chip.faults[DEFL_DATA] = chip.faults[FLASH_DATA] = "corrupt"  # random bytes go uncompressed
    with chips.open_chip(chip.port) as opened, pytest.raises(CableError, match="MD5") as caught:
        opened.write_image(image[chip.kind], lambda _: None)
    assert "no working firmware now; run this again" in str(caught.value)


def test_error_of_a_silent_chip_advises_to_hold_boot(chip):
    chip.faults[SYNC] = "silent"
    with (
        pytest.raises(CableError, match=r"No chip's bootloader answers: .*Hold BOOT"),
        chips.open_chip(chip.port),
    ):
        pass


def test_nothing_is_printed(chip, image, capfd):
    with chips.open_chip(chip.port) as opened:
        opened.write_image(image[chip.kind], lambda _: None)
    assert capfd.readouterr() == ("", "")


def test_port_is_free_afterwards(chip):
    for _ in range(2):
        with chips.open_chip(chip.port):
            pass


def test_chip_without_control_lines_is_started_by_a_command(chip, image):
    with chips.open_chip(chip.port) as opened:
        opened.write_image(image[chip.kind], lambda _: None)
        assert opened.start_firmware() is (chip.kind == "esp8266")
