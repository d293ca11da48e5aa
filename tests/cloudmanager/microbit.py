"""A micro:bit on a cable, for tests: its real firmware (MicroPython 1.9.2) under QEMU.

QEMU's UART takes bytes as fast as they come; a micro:bit's does at 115,200 baud, and its firmware
counts on that. So a relay in between keeps to a baud rate towards the board: to a third of that,
since a busy machine slows the emulated processor down, and bytes that it does not fetch are lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import threading
import time
import tty
from pathlib import Path

import pytest

FIRMWARE = Path("/usr/share/firmware-microbit-micropython/firmware.hex")
PIECE = 8  # bytes
PIECE_SECONDS = PIECE * 10 / 38_400


class Microbit:
    """One micro:bit; ``port`` is its cable's end in this machine."""

    def __init__(self) -> None:
        if not shutil.which("qemu-system-arm") or not FIRMWARE.exists():
            pytest.skip("apt-get install qemu-system-arm firmware-microbit-micropython")
        loader = f"loader,file={FIRMWARE}"
        command = ["qemu-system-arm", "-M", "microbit", "-device", loader, "-serial", "pty"]
        self._process = subprocess.Popen(
            [*command, "-display", "none", "-monitor", "none"], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        found = re.search(r"/dev/\S+", self._process.stdout.readline())
        assert found
        self._uart = os.open(found[0], os.O_RDWR | os.O_NOCTTY)
        self._cable, self._cable_end = os.openpty()
        for end in (self._uart, self._cable_end):
            tty.setraw(end)
        self.port = os.ttyname(self._cable_end)
        self._running = True
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def _relay(self) -> None:
        while self._running:
            ready, _, _ = select.select([self._cable, self._uart], [], [], 0.1)
            with contextlib.suppress(OSError):
                if self._uart in ready:
                    os.write(self._cable, os.read(self._uart, 4096))
                if self._cable in ready:
                    os.write(self._uart, os.read(self._cable, PIECE))
                    time.sleep(PIECE_SECONDS)

    def stop(self) -> None:
        """Unplug the cable."""
        self._running = False
        self._thread.join()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()
        for handle in (self._uart, self._cable, self._cable_end):
            os.close(handle)
