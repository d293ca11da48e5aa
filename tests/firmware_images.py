"""Firmware images for tests: headers, segments and digests of an ESP32's application, no code."""

from __future__ import annotations

import functools
import hashlib
import operator
import struct

MACHINE = "Generic ESP32 module with OTA with ESP32"


def app_image(
    version: str = "1.29.0", machine: str = MACHINE, *, chip: int = 0, size: int = 9000
) -> bytes:
    """Return an image for a slot.

    Args:
        version: of the MicroPython that it says it contains.
        machine: for which board.
        chip: the chip's number.
        size: bytes of its first segment.
    """
    description = struct.pack("<I", 0xABCD5432) + bytes(252)
    text = f"MicroPython v{version} on 2026-11-01\0{machine.removeprefix('Generic ')}\0".encode()
    filler = hashlib.sha256(version.encode()).digest() * (size // 32 + 1)
    segments = (description + text + filler[: size - len(description) - len(text)], b"\x55" * 64)
    header = struct.pack("<BBBBI4xH9xB", 0xE9, len(segments), 2, 0x20, 0x40081000, chip, 1)
    body = header
    for segment in segments:
        body += struct.pack("<II", 0x3F400020, len(segment)) + segment
    checksum = functools.reduce(operator.xor, b"".join(segments), 0xEF)
    body += bytes(15 - len(body) % 16) + bytes([checksum])
    return body + hashlib.sha256(body).digest()
