"""Run code on a board through its raw REPL, with live output, interrupts and a link to serve.

mpremote's transport starts the code; its output is read here as it arrives. Linux and macOS only.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from .serial_ports import BoardRepl

OUTPUT_FLUSH_SECONDS: Final = 0.02  # until output is passed on
#: Until a cell that caught its interrupt gets the next, as on boards.
INTERRUPT_AGAIN_SECONDS: Final = 0.25
UNRESPONSIVE_SECONDS: Final = 15.0  # until a cell must end after its first interrupt
MAX_OUTPUT_BYTES: Final = 16_384  # of output in one message
_EOT: Final = b"\x04"


class ExecutionMonitor(Protocol):
    """What else is served while code runs on a board: the link to the server."""

    def fileno(self) -> int | None:
        """Return a descriptor that is readable if there are messages; None without a link."""

    def handle_messages(self) -> None:
        """Handle the messages that have arrived."""

    def should_stop(self) -> bool:
        """Return whether the code must be interrupted."""


def execute_code(
    repl: BoardRepl,
    code: bytes,
    on_output: Callable[[bytes], object],
    monitor: ExecutionMonitor,
    grace: float = 0.0,
) -> bytes:
    """Run code on a board to its end; return its traceback.

    Args:
        repl: the board's REPL, in raw mode.
        code: the code.
        on_output: is called with output as it arrives.
        monitor: is served meanwhile.
        grace: seconds without an interrupt even if the code must stop, so that short code can end.

    Returns:
        The traceback; empty if the code ended without an error.

    Raises:
        CableError: the board was unplugged, or its code does not end.
    """
    serial = repl.transport.serial
    with repl.cable_errors("The board stopped answering in the middle of a cell"):
        if serial.in_waiting > 1:  # more than the prompt: output that belongs to no job
            serial.reset_input_buffer()
            serial.write(b"\x01")  # Ctrl-A: print the prompt again
        repl.transport.exec_raw_no_follow(code)
        run = _Execution(serial, monitor, time.monotonic() + grace)
        run.read_until_eot(on_output)
        error = bytearray()
        run.read_until_eot(error.extend)
    return bytes(error)


class _Execution:
    """Code that is running on the board.

    Args:
        serial: the board's serial port.
        monitor: is served meanwhile.
        first_interrupt_at: time of the earliest interrupt (``time.monotonic``).
    """

    def __init__(self, serial: Any, monitor: ExecutionMonitor, first_interrupt_at: float) -> None:
        self._serial, self._monitor = serial, monitor
        self._next_interrupt_at = first_interrupt_at  # time of the next Ctrl-C
        self._first_interrupt_at = 0.0  # time of the first Ctrl-C; 0: none was sent

    def read_until_eot(self, on_output: Callable[[bytes], object]) -> None:
        """Read output up to EOT, byte by byte: mpremote's transport reads what follows it."""
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
        """Wait for output or for messages, and handle these; send interrupts."""
        other = self._monitor.fileno()
        ends = [self._serial.fileno()] if other is None else [self._serial.fileno(), other]
        ready, _, _ = select.select(ends, [], [], timeout)
        if other in ready:
            self._monitor.handle_messages()
        now = time.monotonic()
        if self._monitor.should_stop() and now > self._next_interrupt_at:
            self._first_interrupt_at = self._first_interrupt_at or now
            if now - self._first_interrupt_at > UNRESPONSIVE_SECONDS:
                raise OSError(f"it did not react to Ctrl-C for {UNRESPONSIVE_SECONDS:g} s")
            self._next_interrupt_at = now + INTERRUPT_AGAIN_SECONDS
            self._serial.write(b"\x03")


def _read_byte(handle: int) -> bytes:
    """Return the next byte of a serial port; empty if none has arrived.

    It does not use pyserial, whose ``read`` takes 20 us.
    """
    try:
        byte = os.read(handle, 1)
    except BlockingIOError:
        return b""
    if not byte:
        raise OSError("it was unplugged")
    return byte
