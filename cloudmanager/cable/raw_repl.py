"""Code on a board, run through its raw REPL to its end, while somebody else is heard, too.

mpremote's transport begins it; its output is followed here, as it comes. For Linux and macOS.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from .serial_ports import Repl

TICK_SECONDS: Final = 0.02  # output that is older goes out
AGAIN_SECONDS: Final = 0.25  # until a cell that swallowed its interrupt gets the next, as on boards
DEAF_SECONDS: Final = 15.0  # that a cell may take to end after its first interrupt
PIECE_BYTES: Final = 16_384  # of output in one message
_EOT: Final = b"\x04"


class Watch(Protocol):
    """Who is to be heard meanwhile."""

    def fileno(self) -> int | None:
        """Return what becomes readable when there is something to hear, if there is such."""

    def listen(self) -> None:
        """Hear it."""

    def stopping(self) -> bool:
        """Whether what runs on the board shall end."""


def execute(
    repl: Repl, code: bytes, output: Callable[[bytes], object], watch: Watch, grace: float = 0.0
) -> bytes:
    """Run code on a board to its end; return its traceback.

    Args:
        repl: the board's; in its raw mode.
        code: what is run.
        output: is called with what it prints, as it comes.
        watch: is heard meanwhile.
        grace: seconds until it is interrupted, though it shall end: what is short may end well.

    Raises:
        CableError: the board is gone, or does not end.
    """
    serial = repl.transport.serial
    with repl.failing("The board stopped answering in the middle of a cell"):
        if serial.in_waiting > 1:  # more than the prompt: what it says by itself is nobody's
            serial.reset_input_buffer()
            serial.write(b"\x01")  # the prompt again
        repl.transport.exec_raw_no_follow(code)
        run = _Run(serial, watch, time.monotonic() + grace)
        run.follow(output)
        error = bytearray()
        run.follow(error.extend)
    return bytes(error)


class _Run:
    """What runs on the board now.

    Args:
        serial: its cable.
        watch: who is heard meanwhile.
        after: when it may be interrupted.
    """

    def __init__(self, serial: Any, watch: Watch, after: float) -> None:
        self._serial, self._watch = serial, watch
        self._next = after  # when the next Ctrl-C may go out
        self._first = 0.0  # when the first did

    def follow(self, take: Callable[[bytes], object]) -> None:
        """Take what the board says up to the end sign, byte by byte: what follows is mpremote's."""
        gathered, since = bytearray(), time.monotonic()
        while True:
            byte = _read(self._serial.fileno())
            if byte and byte != _EOT:
                gathered += byte
            late = time.monotonic() - since > TICK_SECONDS
            if gathered and (not byte or byte == _EOT or late or len(gathered) >= PIECE_BYTES):
                take(bytes(gathered))
                gathered.clear()
            if byte == _EOT:
                return
            if late or not byte:
                since = time.monotonic()
                self._attend(0 if byte else TICK_SECONDS)

    def _attend(self, timeout: float) -> None:
        """Wait for the board or for whom we watch; pass interrupts on."""
        other = self._watch.fileno()
        ends = [self._serial.fileno()] if other is None else [self._serial.fileno(), other]
        ready, _, _ = select.select(ends, [], [], timeout)
        if other in ready:
            self._watch.listen()
        now = time.monotonic()
        if self._watch.stopping() and now > self._next:
            self._first = self._first or now
            if now - self._first > DEAF_SECONDS:
                raise OSError(f"it took no Ctrl-C for {DEAF_SECONDS:g} s")
            self._next = now + AGAIN_SECONDS
            self._serial.write(b"\x03")


def _read(handle: int) -> bytes:
    """Return the next byte of a serial port; none where there is none yet (pyserial: 20 us)."""
    try:
        byte = os.read(handle, 1)
    except BlockingIOError:
        return b""
    if not byte:
        raise OSError("it was unplugged")
    return byte
