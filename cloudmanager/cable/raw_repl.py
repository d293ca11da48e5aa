"""Code on a board, run through its raw REPL to its end, while somebody else is heard, too.

mpremote's transport begins it; its output is followed here, as it comes. For Linux and macOS.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from .serial_ports import BoardRepl

OUTPUT_FLUSH_SECONDS: Final = 0.02  # output that is older goes out
INTERRUPT_AGAIN_SECONDS: Final = (
    0.25  # until a cell that swallowed its interrupt gets the next, as on boards
)
UNRESPONSIVE_SECONDS: Final = 15.0  # that a cell may take to end after its first interrupt
MAX_OUTPUT_BYTES: Final = 16_384  # of output in one message
_EOT: Final = b"\x04"


class ExecutionMonitor(Protocol):
    """Who is to be heard meanwhile."""

    def fileno(self) -> int | None:
        """Return what becomes readable when there is something to hear, if there is such."""

    def handle_messages(self) -> None:
        """Hear it."""

    def should_stop(self) -> bool:
        """Whether what runs on the board shall end."""


def execute_code(
    repl: BoardRepl,
    code: bytes,
    on_output: Callable[[bytes], object],
    monitor: ExecutionMonitor,
    grace: float = 0.0,
) -> bytes:
    """Run code on a board to its end; return its traceback.

    Args:
        repl: the board's; in its raw mode.
        code: what is run.
        on_output: is called with what it prints, as it comes.
        monitor: is heard meanwhile.
        grace: seconds until it is interrupted, though it shall end: what is short may end well.

    Raises:
        CableError: the board is gone, or does not end.
    """
    serial = repl.transport.serial
    with repl.cable_errors("The board stopped answering in the middle of a cell"):
        if serial.in_waiting > 1:  # more than the prompt: what it says by itself is nobody's
            serial.reset_input_buffer()
            serial.write(b"\x01")  # the prompt again
        repl.transport.exec_raw_no_follow(code)
        run = _Execution(serial, monitor, time.monotonic() + grace)
        run.read_until_eot(on_output)
        error = bytearray()
        run.read_until_eot(error.extend)
    return bytes(error)


class _Execution:
    """What runs on the board now.

    Args:
        serial: its cable.
        monitor: who is heard meanwhile.
        first_interrupt_at: when it may be interrupted.
    """

    def __init__(self, serial: Any, monitor: ExecutionMonitor, first_interrupt_at: float) -> None:
        self._serial, self._monitor = serial, monitor
        self._next_interrupt_at = first_interrupt_at  # when the next Ctrl-C may go out
        self._first_interrupt_at = 0.0  # when the first did

    def read_until_eot(self, on_output: Callable[[bytes], object]) -> None:
        """Take what the board says up to the end sign, byte by byte: what follows is mpremote's."""
        gathered, since = bytearray(), time.monotonic()
        while True:
            byte = _read_byte(self._serial.fileno())
            if byte and byte != _EOT:
                gathered += byte
            late = time.monotonic() - since > OUTPUT_FLUSH_SECONDS
            if gathered and (not byte or byte == _EOT or late or len(gathered) >= MAX_OUTPUT_BYTES):
                on_output(bytes(gathered))
                gathered.clear()
            if byte == _EOT:
                return
            if late or not byte:
                since = time.monotonic()
                self._wait_and_interrupt(0 if byte else OUTPUT_FLUSH_SECONDS)

    def _wait_and_interrupt(self, timeout: float) -> None:
        """Wait for the board or for whom we watch; pass interrupts on."""
        other = self._monitor.fileno()
        ends = [self._serial.fileno()] if other is None else [self._serial.fileno(), other]
        ready, _, _ = select.select(ends, [], [], timeout)
        if other in ready:
            self._monitor.handle_messages()
        now = time.monotonic()
        if self._monitor.should_stop() and now > self._next_interrupt_at:
            self._first_interrupt_at = self._first_interrupt_at or now
            if now - self._first_interrupt_at > UNRESPONSIVE_SECONDS:
                raise OSError(f"it took no Ctrl-C for {UNRESPONSIVE_SECONDS:g} s")
            self._next_interrupt_at = now + INTERRUPT_AGAIN_SECONDS
            self._serial.write(b"\x03")


def _read_byte(handle: int) -> bytes:
    """Return the next byte of a serial port; none where there is none yet (pyserial: 20 us)."""
    try:
        byte = os.read(handle, 1)
    except BlockingIOError:
        return b""
    if not byte:
        raise OSError("it was unplugged")
    return byte
