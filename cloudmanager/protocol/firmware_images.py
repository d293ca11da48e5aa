"""Firmware images: for which chip they are, which MicroPython they contain, whether they are whole.

Headers are those of ESP-IDF (esp_app_format.h, esp_app_desc.h). No I/O.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

from .errors import ServerError

#: Chip's number in an image's extended header -> its name, as esptool calls it.
_CHIP_IDS: Final = {0: "ESP32", 2: "ESP32-S2", 5: "ESP32-C3", 9: "ESP32-S3", 13: "ESP32-C6"}
_IMAGE_MAGIC: Final = 0xE9
_UF2_MAGIC: Final = b"UF2\n"
_UF2_BLOCK: Final = 512  # bytes, of which 32 are a header, and mostly 256 the payload
_HEADER_BYTES: Final = 24
_SEGMENT_BYTES: Final = 8  # of the header of a segment: its address and its size
_MAX_SEGMENTS: Final = 16
_CHECKSUM_SEED: Final = 0xEF
_DIGEST_BYTES: Final = 32
_DESCRIPTION_MAGIC: Final = (0xABCD5432).to_bytes(4, "little")  # of an application's description
_CHIP: Final = re.compile(r"ESP32-?([SCHP]\d)?", re.IGNORECASE)
#: MICROPY_BANNER_NAME_AND_VERSION (py/mpconfig.h), which every image contains.
_BANNER: Final = re.compile(rb"MicroPython v(\d+\.\d+(?:\.\d+)?)\S* on \d{4}-\d\d-\d\d")
#: First version of MicroPython -> the version of its bytecode and its sub-version, which matters
#: for native code only (py/persistentcode.h).
_BYTECODES: Final = (((1, 23), (6, 3)), ((1, 22), (6, 2)), ((1, 20), (6, 1)), ((1, 19), (6, 0)))


def chip_of(image: bytes) -> str | None:
    """Return the chip that an image is made for, by its header; None if it is not an image."""
    if image[:4] == _UF2_MAGIC:
        return "RP2"
    if len(image) < _HEADER_BYTES or image[0] != _IMAGE_MAGIC:
        return None
    # The ESP8266's header ends after eight bytes. Other chips' headers have eight reserved bytes,
    # then a flag for an appended hash (esptool's image_info tests the same).
    if image[23] in (0, 1) and not any(image[15:23]):
        number = int.from_bytes(image[12:14], "little")
        return _CHIP_IDS.get(number, f"an unknown chip ({number})")
    return "ESP8266"


def chip_of_machine(machine: str) -> str:
    """Return the chip that ``sys.implementation._machine`` names, as esptool calls it, or ""."""
    found = _CHIP.search(machine)
    if not found:
        return "RP2" if "RP2" in machine else ""
    return f"ESP32-{found[1].upper()}" if found[1] else "ESP32"


def version_of_image(image: bytes) -> str:
    """Return the version of MicroPython in a firmware image; "" if it is not known."""
    if image[:4] == _UF2_MAGIC:
        starts = range(0, len(image), _UF2_BLOCK)
        sizes = (int.from_bytes(image[at + 16 : at + 20], "little") for at in starts)
        image = b"".join(
            image[at + 32 : at + 32 + min(size, 476)]
            for at, size in zip(starts, sizes, strict=True)
        )
    found = _BANNER.search(image)
    return found[1].decode() if found else ""


def bytecode_of(version: str) -> tuple[int, int] | None:
    """Return version and sub-version of the bytecode of a MicroPython; None before 1.19."""
    number = tuple(map(int, version.split(".")[:2]))
    return next((made for first, made in _BYTECODES if number >= first), None)


class AppImage(NamedTuple):
    """An application for a slot of an ESP32's flash.

    Attributes:
        chip: esptool's name of the chip.
        version: of the MicroPython in it.
        data: its bytes.
    """

    chip: str
    version: str
    data: bytes

    def refusal_reason(self, machine: str, mpy: int) -> str:
        """Return why it does not suit a board; "" if it does.

        Args:
            machine: ``sys.implementation._machine`` of the board.
            mpy: ``sys.implementation._mpy`` of the board, without its architecture.
        """
        chip = chip_of_machine(machine)
        if chip != self.chip:
            return f"the image is for {self.chip}, but the board is {chip or machine or 'unknown'}"
        # MICROPY_BANNER_MACHINE, a string that ends with the chip, "Generic ESP32 module with OTA
        # with ESP32"; up to 1.20 without "Generic".
        text = machine.removeprefix("Generic ").encode()
        if text + b"\0" not in self.data:
            return f"the image is of another variant: the board is {machine!r}"
        made = bytecode_of(self.version)
        if made is None or mpy & 0x3FF != made[0] | made[1] << 8:
            of_image = f"{made[0]}.{made[1]}" if made else "an older one"
            return (
                f"MicroPython {self.version} has bytecode {of_image}, and the board has "
                f"{mpy & 0xFF}.{mpy >> 8 & 3}: its client and packages would not run; flash it "
                "over the cable (mbm flash)"
            )
        return ""


def read_app_image(data: bytes) -> AppImage:
    """Check an image for over-the-air upgrades.

    Raises:
        ServerError: it is another kind of image, it is damaged, or its MicroPython is not known.
    """
    chip = chip_of(data)
    if chip is None:
        raise ServerError("this is no firmware image")
    if not chip.startswith("ESP32") or chip not in _CHIP_IDS.values():
        raise ServerError(
            f"the image is for {chip}, which gets no firmware over the air: use mbm flash"
        )
    start = _HEADER_BYTES + _SEGMENT_BYTES
    if data[start : start + 4] != _DESCRIPTION_MAGIC:
        raise ServerError(
            "the image is no application alone; one with boot loader and partition table is for "
            "mbm flash, and MicroPython offers the other one as .app-bin"
        )
    if len(data) != _image_size(data):
        raise ServerError("the image is damaged: it has another size than its header says")
    if data[23] != 1 or hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise ServerError("the image is damaged: its SHA-256 is another one")
    version = version_of_image(data)
    if not version:
        raise ServerError("the image contains no MicroPython")
    return AppImage(chip, version, data)


def _image_size(data: bytes) -> int:
    """Return the size of an image as its segments say; -1 if they or the checksum are wrong."""
    at = _HEADER_BYTES
    checksum = _CHECKSUM_SEED
    if not 0 < data[1] <= _MAX_SEGMENTS:
        return -1
    for _ in range(data[1]):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += _SEGMENT_BYTES
        if at + size > len(data):
            return -1
        checksum ^= _xor(data[at : at + size])
        at += size
    end = (at // 16 + 1) * 16  # the checksum is the last byte of a line of 16
    if end > len(data) or data[end - 1] != checksum:
        return -1
    return end + _DIGEST_BYTES * (data[23] == 1)


def _xor(data: bytes) -> int:
    """Return all bytes, combined by exclusive or."""
    number = int.from_bytes(data, "little")
    bits = 1 << max(len(data) - 1, 0).bit_length() + 3  # a power of two, at least of 8 bits
    while bits > 8:
        bits //= 2
        number = (number >> bits) ^ (number & ((1 << bits) - 1))
    return number
