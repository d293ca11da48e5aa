"""A chip on a cable, for tests: a pty with a ROM loader behind it, and MicroPython after it.

The loader is emulated (rom.py). What the chip "boots" into is a real MicroPython, its unix port
with stand-ins for what chips have (tests/board/standin_boot.py): a flash of its own, boot.py and
main.py, a REPL. The image that was written is compared, not run: no Xtensa here. A pty has no RTS
and DTR: ``hold_boot`` and ``press_reset`` are a person's fingers.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import tty
from pathlib import Path
from typing import Any, Self

from .rom import FLASH_BYTES, Loader

UNREAD_BYTES = 64 * 1024  # that the driver of a USB bridge may hold
STANDIN = Path(__file__).parent.parent / "board" / "standin_host.py"


class Chip:
    """One chip; ``port`` is its cable's end in this machine: ``with Chip(folder) as chip``.

    Args:
        folder: where it keeps its files' flash.
        kind: "esp8266" or "esp32".
        settings: more settings of the stand-in, such as its Wi-Fi networks.
    """

    def __init__(self, folder: Path, kind: str = "esp8266", **settings: Any) -> None:
        self.folder, self.kind, self.settings = folder, kind, settings
        self.flash = bytearray(os.urandom(64) + b"\x5a" * (FLASH_BYTES - 64))
        self.faults: dict[int, str] = {}
        self.said = bytearray()  # all that MicroPython has printed
        self.loader: Loader | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._sent = bytearray()  # bytes that the cable has not taken yet
        self._cable, self._cable_end = self._pty()
        os.set_blocking(self._cable, False)
        self._uart, self._uart_end = self._pty()
        self.port = os.ttyname(self._cable_end)
        self._wake, self._waker = os.pipe()
        self._orders: list[str] = []
        self._done = threading.Event()
        self._heard = threading.Condition()
        # A daemon: where a test fails before it can stop the chip, pytest ends all the same.
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _pty(self) -> tuple[int, int]:
        outer, inner = os.openpty()
        tty.setraw(inner)
        return outer, inner

    def hold_boot(self) -> None:
        """Press RESET while BOOT is held: the loader starts."""
        self._order("boot")

    def press_reset(self) -> None:
        """Press RESET: the program in the flash starts."""
        self._order("reset")

    def power_off(self) -> None:
        """Cut the power; RESET brings it back."""
        self._order("off")

    def _order(self, order: str) -> None:
        self._done.clear()
        self._orders.append(order)
        os.write(self._waker, b"!")
        assert self._done.wait(10)

    def hear(self, what: bytes, timeout: float = 60) -> None:
        """Wait until the board has printed this."""
        with self._heard:
            assert self._heard.wait_for(lambda: what in self.said, timeout), bytes(self.said[-500:])

    def stop(self) -> None:
        """Unplug the cable."""
        self._order("end")
        self._thread.join(10)
        for handle in (self._cable, self._uart, self._uart_end, self._wake, self._waker):
            os.close(handle)
        with contextlib.suppress(OSError):
            os.close(self._cable_end)

    # What follows runs in the chip's own thread.

    def _work(self) -> None:
        while True:
            ends = [self._cable] if self._sent else []
            ready, free, _ = select.select([self._cable, self._uart, self._wake], ends, [])
            if free:
                del self._sent[: os.write(self._cable, self._sent)]
            if self._wake in ready and self._obey():
                return
            if self._cable in ready:
                self._receive(os.read(self._cable, 65536))
            if self._uart in ready:
                data = os.read(self._uart, 65536)
                with self._heard:
                    self.said += data
                    self._heard.notify_all()
                self._answer(data)

    def _obey(self) -> bool:
        os.read(self._wake, 1)
        order = self._orders.pop(0)
        self._halt()
        if order == "boot":
            self.loader = Loader(self.kind, self.flash, self.faults)
        elif order == "reset":
            self._boot()
        self._done.set()
        return order == "end"

    def _receive(self, data: bytes) -> None:
        """Pass bytes from the cable to the loader or to MicroPython."""
        if self.loader is not None:
            self._answer(self.loader.feed(data))
            if self.loader.run:
                self._boot()
        elif self._process is not None:
            for byte in data:
                self._type(bytes([byte]))

    def _type(self, byte: bytes) -> None:
        """Byte 3 interrupts the program, as with mp_hal_set_interrupt_char on a chip."""
        assert self._process
        assert self._process.stdin
        with contextlib.suppress(OSError):
            if byte == b"\x03" and _runs(self._process.pid):
                os.write(self._process.stdin.fileno(), byte)
            else:
                os.write(self._uart, byte)

    def _answer(self, data: bytes) -> None:
        """Send bytes; those that are not read are lost, as on a cable without flow control."""
        self._sent += data
        del self._sent[:-UNREAD_BYTES]

    def _boot(self) -> None:
        self._halt()
        loader = Loader(self.kind, self.flash)
        if not loader.bootable:
            self._answer(b"\r\nets Jan  8 2013,rst cause:2, boot mode:(3,7)\r\n\r\n")
            return
        flash = self.folder / "files.img"
        if not flash.exists():
            flash.write_bytes(b"\xff" * 1024 * 1024)
        process = subprocess.Popen(
            [sys.executable, str(STANDIN)], stdin=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin
        settings = {"flash": str(flash), "tty": os.ttyname(self._uart_end), **self.settings}
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
        self._process = process

    def _halt(self) -> None:
        self.loader = None
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # the board is its child
        process.wait()
        assert process.stdin
        process.stdin.close()
        termios.tcflush(self._uart_end, termios.TCIOFLUSH)


def _runs(pid: int) -> bool:
    """Whether a program runs: only then does MicroPython catch SIGINT."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            status = Path(f"/proc/{child}/status").read_text()
            caught = int(status.split("SigCgt:")[1].split()[0], 16)
            return bool(caught & 1 << signal.SIGINT - 1)
    return False
