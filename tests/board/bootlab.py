"""A chip that is switched off and on: its flash, and the server that it connects to.

The chip is a real MicroPython with stand-ins (tests/cloudmanager/chip.py, standin_boot.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from littlefs import LittleFS

from tests.cloudmanager.chip import Chip

from .peer import Peer

BLOCKS = 256


class Flash:
    """The file system of a chip that is switched off."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _open(self) -> LittleFS:
        fs = LittleFS(block_size=4096, block_count=BLOCKS, mount=False)
        if self.path.exists():
            fs.context.buffer = bytearray(self.path.read_bytes())
        else:
            fs.format()
        fs.mount()
        return fs

    def write(self, files: dict[str, bytes]) -> None:
        fs = self._open()
        for path, data in files.items():
            fs.makedirs(os.path.dirname(path), exist_ok=True)
            with fs.open(path, "wb") as file:
                file.write(data)
        fs.unmount()
        self.path.write_bytes(bytes(fs.context.buffer))

    def read(self, path: str) -> str:
        fs = self._open()  # littlefs-python crashes where this goes before its files
        try:
            with fs.open(path, "rb") as file:
                return file.read().decode()
        except FileNotFoundError:
            return ""
        finally:
            fs.unmount()


class Lab:
    """A chip, the content of its flash, and the server that it connects to."""

    def __init__(self, folder: Path, client: dict[str, bytes]) -> None:
        self.key = os.urandom(32)
        self.peer = Peer({"id-1": self.key}, spread=0.2)
        self.flash = Flash(folder / "files.img")
        self.folder, self.client = folder, client
        self.chip: Chip | None = None

    def boot(self, app="", air=None, chip_options=None, **settings):
        more = {**(chip_options or {}), **({} if air is None else {"air": air})}
        config = {"id": "id-1", "key": self.key.hex(), "host": "127.0.0.1"}
        config |= {"tcp_port": self.peer.tcp_port, **settings}
        files = {**self.client, "/cm.json": json.dumps(config).encode()}
        if app:
            files["/app.py"] = app.encode()
        self.flash.write(files)
        self.chip = Chip(self.folder, **more)
        self.chip.flash[0] = 0xE9
        self.chip.press_reset()
        return self

    def stop(self) -> None:
        """End the chip and the server."""
        if self.chip:
            self.chip.stop()
        self.peer.stop()

    def link(self, **more):
        return self.peer.link("id-1", **more)

    def starts(self) -> list[str]:
        """Switch the chip off; return the lines that its program has written to /starts."""
        assert self.chip
        self.chip.power_off()
        return self.flash.read("/starts").split()
