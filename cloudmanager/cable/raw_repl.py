"""Run code on a board through its raw REPL, with live output, interrupts and a link to serve.

mpremote's transport starts the code; its output is read here as it arrives. Linux and macOS only.
"""

from __future__ import annotations

import os
import secrets
import select
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from cloudmanager.protocol.errors import CableError

from .repl_output import Outcome, OutputParser
from .serial_ports import BoardRepl

OUTPUT_FLUSH_SECONDS: Final = 0.02  # until output is passed on
QUIET_SECONDS: Final = 0.002  # without output, until what seems to be a prompt is one
#: Until a cell that caught its interrupt gets the next, as on boards.
INTERRUPT_AGAIN_SECONDS: Final = 0.25
UNRESPONSIVE_SECONDS: Final = 15.0  # until a cell must end after its first interrupt
#: Without output, until the REPL is asked for its prompt: each time twice as long. Code that still
#: runs leaves the question unread; a board that was reset answers, even if it prints nothing else.
PROBE_SECONDS: Final = 1.0
MAX_PROBES: Final = 10  # unread bytes: a full input buffer would keep Ctrl-C out
_SYNC_SECONDS: Final = 2.0  # without output, until the REPL is asked again
_SYNC_ATTEMPTS: Final = 2  # what prints between cells, such as a timer, can get into an answer
MAX_OUTPUT_BYTES: Final = 16_384  # of output in one message
_MARKER_BYTES: Final = 8  # random bytes of a marker


class BoardRestarted(CableError):
    """The board's interpreter has restarted, so its names are gone."""

    def __init__(self, port: str) -> None:
        super().__init__(port, "The board was restarted", "It reconnects by itself.")


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
) -> Outcome:
    """Run code on a board to its end; return how it ended.

    Args:
        repl: the board's REPL, in raw mode; the board has the prelude of repl_output.py.
        code: the code.
        on_output: is called with output as it arrives.
        monitor: is served meanwhile.
        grace: seconds without an interrupt even if the code must stop, so that short code can end.

    Raises:
        BoardRestarted: the code, or something else, has restarted the board.
        CableError: the board was unplugged, or its code does not end.
    """
    discard_output(repl)
    marker = secrets.token_hex(_MARKER_BYTES)
    with repl.cable_errors("The board stopped answering in the middle of a cell"):
        repl.transport.exec_raw_no_follow(code + b"\n__cm_z__('%s')" % marker.encode())
        parser = OutputParser(marker)
        run = _Execution(repl.transport.serial, parser, monitor, time.monotonic() + grace)
        outcome = run.await_end(on_output)
        if outcome.restarted:
            raise BoardRestarted(repl.port)
        if run.probes:
            _synchronize(repl)
    return outcome


def discard_output(repl: BoardRepl) -> None:
    """Discard output that belongs to no job.

    Raises:
        BoardRestarted: the interpreter was restarted.
        CableError: the board was unplugged.
    """
    with repl.cable_errors("The board is gone"):
        if repl.transport.serial.in_waiting > 1:  # more than the prompt
            _synchronize(repl)


def _synchronize(repl: BoardRepl) -> None:
    """Read what the REPL has printed, and prints for probes, up to its last prompt.

    That prompt stays unread. A second one must not be pending then: mpremote's transport would
    take it for the answer to what it sends next.

    Raises:
        BoardRestarted: the prelude is gone.
    """
    for _ in range(_SYNC_ATTEMPTS):
        token = secrets.token_hex(_MARKER_BYTES).encode()
        repl.transport.serial.write(b"\x01__cm_p__('%s',end='')\x04" % token)
        end = token + b"\x04\x04"
        if repl.transport.read_until(1, end, timeout=_SYNC_SECONDS).endswith(end):
            return
    raise BoardRestarted(repl.port)


class _Execution:
    """Code that is running on the board.

    Args:
        serial: the board's serial port.
        parser: finds the end of its output.
        monitor: is served meanwhile.
        first_interrupt_at: time of the earliest interrupt (``time.monotonic``).

    Attributes:
        probes: how often the REPL was asked for its prompt.
    """

    def __init__(
        self,
        serial: Any,
        parser: OutputParser,
        monitor: ExecutionMonitor,
        first_interrupt_at: float,
    ) -> None:
        self._serial, self._parser, self._monitor = serial, parser, monitor
        self._next_interrupt_at = first_interrupt_at  # time of the next Ctrl-C
        self._first_interrupt_at = 0.0  # time of the first Ctrl-C; 0: none was sent
        self.probes = 0
        self._has_read, self._quiet_since = False, time.monotonic()

    def await_end(self, on_output: Callable[[bytes], object]) -> Outcome:
        """Read to the end of the code, byte by byte: mpremote's transport reads what follows it."""
        parser, since, count = self._parser, time.monotonic(), 0
        while parser.outcome is None:
            byte = _read_byte(self._serial.fileno())
            if byte:
                parser.feed(byte)
                count += 1
                self._has_read = True
            late = time.monotonic() - since > OUTPUT_FLUSH_SECONDS
            if late or not byte or count >= MAX_OUTPUT_BYTES:
                count = 0
                if output := parser.take_output():
                    on_output(output)
            if late or not byte:
                since = time.monotonic()
                if self._has_read:
                    self._has_read, self._quiet_since = False, since
                ended = parser.may_have_ended()
                quiet = QUIET_SECONDS if ended else OUTPUT_FLUSH_SECONDS
                self._wait_and_interrupt(0 if byte else quiet)
        if output := parser.take_output():
            on_output(output)
        return parser.outcome

    def _wait_and_interrupt(self, timeout: float) -> None:
        """Wait for output or for messages, and handle these; send interrupts."""
        other = self._monitor.fileno()
        ends = [self._serial.fileno()] if other is None else [self._serial.fileno(), other]
        ready, _, _ = select.select(ends, [], [], timeout)
        if other in ready:
            self._monitor.handle_messages()
        if timeout and not ready and self._parser.may_have_ended():
            self._serial.write(self._parser.make_question(secrets.token_hex(_MARKER_BYTES)))
        now = time.monotonic()
        if self.probes < MAX_PROBES and now - self._quiet_since > PROBE_SECONDS * 2**self.probes:
            self.probes += 1
            self._serial.write(b"\x01")
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
