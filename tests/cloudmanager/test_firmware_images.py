"""Firmware images: what is read of them, and hostile ones."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.firmware_images import bytecode_of, read_app_image
from tests.firmware_images import MACHINE, app_image

MPY = 6 | 3 << 8 | 10 << 10


def test_image_is_read():
    image = read_app_image(app_image("1.29.0"))
    assert (image.chip, image.version) == ("ESP32", "1.29.0")
    assert image.refusal_reason(MACHINE, MPY) == ""


def changed(at: int, data: bytes) -> bytes:
    image = bytearray(app_image())
    image[at : at + len(data)] = data
    return bytes(image)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "this is no firmware image"),
        (b"\xe9", "this is no firmware image"),
        (b"MZ" + bytes(5000), "this is no firmware image"),
        (b"UF2\n" + bytes(508), "the image is for RP2, which gets no firmware over the air"),
        (b"\xe9" + b"\x01" * 30, "the image is for ESP8266"),
        (changed(12, b"\x4d\x00"), "for an unknown chip"),
        (changed(32, b"\x00"), "the image is no application alone"),
        (app_image()[:-1], "it has another size than its header says"),
        (app_image() + b"\0", "it has another size than its header says"),
        (changed(1, b"\xff"), "it has another size than its header says"),
        (changed(28, b"\xff\xff\xff\xff"), "it has another size than its header says"),
        (changed(400, b"\x00\x01\x02"), "it has another size than its header says"),
        (app_image()[:-32] + bytes(32), "its SHA-256 is another one"),
        (app_image("?"), "the image contains no MicroPython"),
    ],
)
def test_wrong_or_damaged_image_is_refused_in_a_sentence(data: bytes, why: str):
    with pytest.raises(ServerError) as caught:
        read_app_image(data)
    assert why in caught.value.args[0]


@pytest.mark.parametrize(
    ("machine", "mpy", "why"),
    [
        ("ESP32S3 module with ESP32S3", MPY, "is for ESP32, but the board is ESP32-S3"),
        ("Raspberry Pi Pico with RP2040", MPY, "is for ESP32, but the board is RP2"),
        ("", MPY, "is for ESP32, but the board is unknown"),
        ("Generic ESP32 module with ESP32", MPY, "of another variant"),
        (MACHINE, 5, "has bytecode 6.3, and the board has 5.0"),
    ],
)
def test_image_for_another_board_is_refused(machine: str, mpy: int, why: str):
    assert why in read_app_image(app_image()).refusal_reason(machine, mpy)


def test_names_of_earlier_versions_are_the_same_board():
    image = read_app_image(app_image("1.28.0", "ESP32 module with OTA with ESP32"))
    assert image.refusal_reason(MACHINE, MPY) == ""


def test_bytecode_of_versions():
    assert [bytecode_of(text) for text in ("1.18", "1.19.1", "1.22.2", "1.23.0", "1.29.0")] == [
        None,
        (6, 0),
        (6, 2),
        (6, 3),
        (6, 3),
    ]
