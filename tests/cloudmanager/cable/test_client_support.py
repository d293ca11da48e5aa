"""Which versions of MicroPython the client runs on, and what `mbm flash` says about others."""

from __future__ import annotations

import pytest

from cloudmanager.cable import client_support
from cloudmanager.protocol import firmware_images


def uf2(data: bytes) -> bytes:
    """Return a UF2 image; its banner lies in two blocks."""
    blocks = []
    for start in range(0, len(data), 256):
        payload = data[start : start + 256]
        head = b"UF2\n" + bytes(12) + len(payload).to_bytes(4, "little") + bytes(12)
        blocks.append(head + payload.ljust(480, b"\0"))
    return b"".join(blocks)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (b"MicroPython v1.28.0 on 2026-04-06; ", "1.28.0"),
        (b"MicroPython v1.22.0-preview.3.gabc on 2023-11-01; ", "1.22.0"),
        (b"MicroPython v1.29 on 2026-09-01", "1.29"),
        (b"MicroPython", ""),
    ],
)
def test_version_is_found_in_an_image(text, version):
    data = bytes(245) + text + bytes(20)
    assert firmware_images.version_of_image(b"\xe9" + data) == version
    assert firmware_images.version_of_image(uf2(data)) == version


@pytest.mark.parametrize(
    ("machine", "chip"),
    [
        ("Generic ESP32C3 module with ESP32C3", "ESP32-C3"),
        ("Generic ESP32 module with ESP32", "ESP32"),
        ("ESP32-S3 module", "ESP32-S3"),
        ("Raspberry Pi Pico W with RP2040", "RP2"),
        ("ESP module with ESP8266", ""),
    ],
)
def test_chip_is_named_by_the_machine(machine, chip):
    assert firmware_images.chip_of_machine(machine) == chip


@pytest.mark.parametrize(
    ("version", "chip", "note"),
    [
        ("1.23.0", "ESP8266", ""),
        ("1.26.0", "RP2", ""),
        ("1.25.0", "RP2", "no watchdog"),
        ("1.28.0", "ESP32", "a hardware timer"),
        ("1.29.0", "ESP32-C6", ""),
        ("1.24.0", "ESP32-C3", "a hardware timer"),
    ],
)
def test_note_says_what_a_version_lacks(version, chip, note):
    found = client_support.explain_limits(version, chip)
    assert note in found
    assert bool(note) == bool(found)


@pytest.mark.parametrize(
    ("version", "chip", "needs"),
    [
        ("1.22.2", "ESP8266", "1.23"),
        ("1.23.0", "ESP32-C3", "1.24 on ESP32-C3"),
        ("1.24.1", "ESP32-C6", "1.25 on ESP32-C6"),
        ("1.9.4", "", "1.23"),
    ],
)
def test_version_that_does_not_serve_is_refused(version, chip, needs):
    refusal = client_support.explain_refusal(version, chip)
    assert refusal == f"MicroPython {version} is too old for the client, which needs {needs}"
    assert refusal in client_support.explain_limits(version, chip)
