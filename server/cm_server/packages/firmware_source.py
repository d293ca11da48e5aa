"""MicroPython's published firmware for upgrades over the air; downloads are cached.

The pages have no hashes: the first download of a version is trusted because of TLS, and what it was
is kept. They are those that `mbm flash` uses (CM_FIRMWARE). Only boards with two slots for firmware
can be upgraded; of MicroPython's own images, that is one for the ESP32.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

from cloudmanager.firmware_downloads import (
    FirmwareCache,
    download_pages,
    parse_download_page,
    version_key,
)
from cloudmanager.protocol.errors import PackageError

from .http_fetcher import HttpFetcher, OriginAccess

MAX_IMAGE_BYTES: Final = 4 * 1024 * 1024
_PAGE_BYTES: Final = 4 * 1024 * 1024
#: What `sys.implementation._machine` is -> the board's page, and the name in its files.
_STOCK_BOARDS: Final = {
    "Generic ESP32 module with OTA with ESP32": ("ESP32_GENERIC", "ESP32_GENERIC-OTA"),
}
VERSION: Final = re.compile(r"\d+(?:\.\d+){1,2}", re.ASCII)


class FirmwareSource:
    """Downloads firmware.

    Args:
        fetcher: makes the HTTP requests.
        folder: of the cache.
    """

    def __init__(self, fetcher: HttpFetcher, folder: Path) -> None:
        self._fetcher = fetcher
        self._cache = FirmwareCache(folder)
        self._lock = asyncio.Lock()  # an image is downloaded once

    async def find(self, version: str, machine: str) -> bytes:
        """Return the image of a version of MicroPython for a board.

        Args:
            version: such as 1.29.0.
            machine: what the board calls itself, ``sys.implementation._machine``.

        Raises:
            PackageError: there is none, or it cannot be downloaded.
        """
        if machine not in _STOCK_BOARDS:
            raise PackageError(
                f"MicroPython publishes no image with slots for {machine or 'this board'}: give "
                "the file of one (.app-bin)"
            )
        page, name = _STOCK_BOARDS[machine]
        pages = download_pages()
        key = f"{name} {version} app {pages}"
        async with self._lock:
            data = await asyncio.to_thread(self._cache.get, key)
            if data is None:
                data = await self._download(version, urljoin(pages, f"{page}/"), name)
                await asyncio.to_thread(self._cache.put, key, data)
        return data

    async def _download(self, version: str, page: str, name: str) -> bytes:
        access = OriginAccess.to_source(page, may_be_private=True)
        reply = await self._fetcher.fetch(page, limit=_PAGE_BYTES, access=access)
        links = parse_download_page(reply.body.decode(errors="replace"), name, "app-bin")
        if version not in links:
            known = ", ".join(sorted(links, key=version_key, reverse=True)[:5]) or "none"
            raise PackageError(f"{page} has no {name} {version}; it has: {known}")
        url = urljoin(page, links[version])
        return (await self._fetcher.fetch(url, limit=MAX_IMAGE_BYTES, access=access)).body
