"""MicroPython's download pages, and the cache of what was downloaded; for mbm and the server."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Final

from . import config

#: Chip as esptool calls it -> MicroPython's own name of its generic board.
BOARD_NAMES: Final = {
    "ESP8266": "ESP8266_GENERIC",
    "ESP32": "ESP32_GENERIC",
    "ESP32-S2": "ESP32_GENERIC_S2",
    "ESP32-S3": "ESP32_GENERIC_S3",
    "ESP32-C3": "ESP32_GENERIC_C3",
    "ESP32-C6": "ESP32_GENERIC_C6",
    "RP2": "RPI_PICO_W",
}


def download_pages() -> str:
    """Return the URL below which each board has a page, such as ``ESP32_GENERIC/``."""
    return os.environ.get("CM_FIRMWARE", "https://micropython.org/download/")


def parse_download_page(page: str, board: str, kind: str = r"(?:bin|uf2)") -> dict[str, str]:
    """Return version -> link of a download page; previews are ignored.

    Args:
        page: its HTML.
        board: the name in the files, such as ESP32_GENERIC or ESP32_GENERIC-OTA.
        kind: the ending of the files, as a regular expression.
    """
    name = rf'href="([^"]*/{re.escape(board)}-\d{{8}}-v(\d+(?:\.\d+){{1,2}})\.{kind})"'
    return {version: link for link, version in re.findall(name, page)}


def version_key(version: str) -> list[int]:
    """Return what versions are sorted by."""
    return [int(part) for part in version.split(".")]


class FirmwareCache:
    """Downloaded images: each in a file named by its SHA-256, with an index.

    Args:
        folder: the folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = folder / "index.json"

    def get(self, key: str, expected_sha256: str = "") -> bytes | None:
        """Return an image; None if there is none, or if its file was changed."""
        digest = expected_sha256 or self._read_index().get(key)
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            return None
        try:
            data = (self._folder / f"{digest}.bin").read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def put(self, key: str, data: bytes) -> None:
        """Save an image; files are replaced atomically."""
        config.make_private_folder(self._folder)
        digest = hashlib.sha256(data).hexdigest()
        for path, content in (
            (self._folder / f"{digest}.bin", data),
            (self._index, json.dumps({**self._read_index(), key: digest}).encode()),
        ):
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            with config.open_private(temporary) as file:
                file.write(content)
            temporary.replace(path)

    def _read_index(self) -> dict[str, Any]:
        try:
            known = json.loads(self._index.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
