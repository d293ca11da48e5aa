"""Firmware for a chip, from a file, a URL or a version; downloads are cached and verified.

A version is looked up on MicroPython's download pages (or those at CM_FIRMWARE), which have no
hashes: the first download is trusted because of TLS, and its hash is recorded. With
``URL#sha256=HEX`` nothing needs to be trusted.
"""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urldefrag, urljoin, urlsplit

from cloudmanager import config
from cloudmanager.firmware_downloads import (
    BOARD_NAMES,
    FirmwareCache,
    download_pages,
    parse_download_page,
    version_key,
)
from cloudmanager.protocol.errors import CableError
from cloudmanager.protocol.firmware_images import chip_of
from cloudmanager.protocol.text import os_error_text

FETCH_SECONDS: Final = 60.0
MAX_IMAGE_BYTES: Final = 16 * 1024 * 1024  # the largest flash of these chips
_VERSION = re.compile(r"v?(\d+(?:\.\d+){1,2}(?:-preview[\w.]*)?)")
_HINT: Final = "Give --firmware a FILE, a URL or a VERSION such as 1.28.0."


class Firmware(NamedTuple):
    """An image: its source, its bytes and their SHA-256 in hex."""

    source: str
    data: bytes
    sha256: str

    @property
    def chip(self) -> str | None:
        """Esptool's name of the chip that it is for; None if the header does not state it."""
        return chip_of(self.data)


def find_firmware(requested: str | None, chip: str) -> Firmware:
    """Return the requested firmware for a chip.

    Args:
        requested: a file's path, a URL, a version, or None for the newest version.
        chip: esptool's name of it, or "RP2".

    Raises:
        CableError: it does not exist, cannot be read or downloaded, or is for another chip.
    """
    if requested is None or _VERSION.fullmatch(requested):
        found = _find_version(requested.removeprefix("v") if requested else "", chip)
    elif "://" in requested:
        found = _fetch_cached(requested)
    else:
        found = _read_file(requested)
    if found.chip != chip:
        what = f"for {found.chip}" if found.chip else "not a firmware image"
        raise CableError("", f"{found.source} is {what}, but the chip is {chip}", _HINT)
    return found


def check_file(requested: str | None) -> None:
    """Check that a requested firmware can be read, if it is a file.

    Raises:
        OSError: it cannot.
    """
    if requested is not None and not _VERSION.fullmatch(requested) and "://" not in requested:
        with Path(requested).open("rb"):
            pass


def _read_file(path: str) -> Firmware:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CableError("", os_error_text(error), _HINT) from error
    return Firmware(path, data, hashlib.sha256(data).hexdigest())


def _fetch_cached(url: str, key: str = "") -> Firmware:
    """Return the image at a URL, from the cache if it is there."""
    plain, fragment = urldefrag(url)
    wanted = fragment.removeprefix("sha256=").lower() if fragment else ""
    cache = FirmwareCache(config.make_home_folder() / "firmware")
    key = key or plain
    data = cache.get(key, wanted)
    if data is None:
        local = (urlsplit(plain).hostname or "") in config.LOOPBACK_HOSTS
        if urlsplit(plain).scheme != "https" and not wanted and not local:
            hint = "Use https, or add #sha256= and the hash to the URL."
            raise CableError("", f"{plain} could be modified by others in the network", hint)
        data = fetch_url(plain)
        if wanted and hashlib.sha256(data).hexdigest() != wanted:
            hint = "Do not flash it: check the URL and the hash with their source."
            raise CableError("", f"{plain} does not have the SHA-256 of its URL", hint)
        cache.put(key, data)
    return Firmware(plain, data, hashlib.sha256(data).hexdigest())


def _find_version(version: str, chip: str) -> Firmware:
    """Return the firmware of a version, from the download pages; "" is the newest release."""
    if chip not in BOARD_NAMES:
        raise CableError("", f"No version is known for {chip}", "Give --firmware a FILE or a URL.")
    board = BOARD_NAMES[chip]
    pages = download_pages()
    cache = FirmwareCache(config.make_home_folder() / "firmware")
    key = f"{board} {version} {pages}"
    if version and (data := cache.get(key)) is not None:
        return Firmware(f"MicroPython {version}", data, hashlib.sha256(data).hexdigest())
    page = urljoin(pages, f"{board}/")
    links = parse_download_page(fetch_url(page).decode(errors="replace"), board)
    if not version and links:
        version = max(links, key=version_key)
    if version not in links:
        known = ", ".join(sorted(links, key=version_key, reverse=True)[:5]) or "none"
        raise CableError("", f"{page} has no {board} {version}; it has: {known}", _HINT)
    url = urljoin(page, links[version])
    found = _fetch_cached(url, f"{board} {version} {pages}")
    return found._replace(source=f"MicroPython {version}")


def fetch_url(url: str) -> bytes:
    """Download a URL.

    Raises:
        CableError: the download failed, or is larger than ``MAX_IMAGE_BYTES``.
    """
    try:
        with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as reply:
            data: bytes = reply.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors
        why = getattr(error, "reason", None) or error
        hint = "Give --firmware a local FILE, or try again with a network."
        raise CableError("", f"{url} cannot be downloaded: {why}", hint) from error
    if len(data) > MAX_IMAGE_BYTES:
        raise CableError("", f"{url} is larger than any flash", _HINT)
    return data
