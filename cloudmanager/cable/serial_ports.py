"""Boards on a cable: which serial ports there are, and the REPL behind one.

mpremote's transport speaks the raw REPL (raw paste where the board has it). What goes to a board
travels as data, in literals: no text of the user's ever becomes code. Import this in a function:
it needs ``pip install 'cloudmanager[flash]'``.
"""

from __future__ import annotations

import ast
import binascii
import contextlib
import errno
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudmanager.protocol.errors import CableError

if TYPE_CHECKING:
    from mpremote.transport_serial import SerialTransport

BAUD = 115_200  # of every MicroPython REPL
CELL_SECONDS = 10.0  # that a cell of ours may run on a board
READ_SECONDS = 1  # that mpremote waits for a byte which has to come
_BUSY_LOOP_CODE = "for _ in range(2000): pass"  # takes a chip some 10 ms
_MAX_TRIES = 5
_PROMPT_SECONDS = 0.3  # that a REPL may take to answer Ctrl-C
_PIECE_BYTES = (
    768  # bytes of a file that travel at once, as 1 KB of text: small boards hold it twice
)
_RETRY_HINT = "Look at `mbm board-scan`, and run this again: that is always safe."
#: What a board is; where MicroPython is old, `_mpy` and `_machine` are missing.
_FACTS_CODE = """
import sys
i = sys.implementation
print((sys.platform, tuple(i[1][:3]), getattr(i, '_mpy', 0) & 255, getattr(i, '_machine', '')))
"""
#: Who a board is in a fleet: the key stays on the board.
_IDENTITY_CODE = """
try:
    import json
    with open('/cm.json') as f:
        c = json.load(f)
    print((c.get('id'), c.get('name')))
except (OSError, ValueError, ImportError):
    print((None, None))
"""
#: The SHA-256 of the file at ``path``, as it stands on the flash.
_HASH_CODE = """
import hashlib
h = hashlib.sha256()
b = bytearray(512)
v = memoryview(b)
try:
    with open(path, 'rb') as f:
        while True:
            n = f.readinto(b)
            if not n:
                break
            h.update(v[:n])
    print((h.digest(),))
except OSError:
    print((None,))
"""
#: What of a board's settings is a person's: flashing it again does not ask for them anew.
_KEPT_SETTINGS_CODE = """
try:
    import json
    with open('/cm.json') as f:
        c = json.load(f)
    print((c.get('wifi'), c.get('lan'), c.get('watchdog')))
except (OSError, ValueError, ImportError):
    print((None, None, None))
"""


class SerialPort(NamedTuple):
    """A serial port of this machine: its device, and what is plugged in."""

    device: str
    description: str


def find_serial_ports() -> list[SerialPort]:
    """Return the serial ports with something on USB behind them."""
    require_tools()
    from serial.tools import list_ports

    return [
        SerialPort(port.device, port.description or "")
        for port in sorted(list_ports.comports())
        if port.vid is not None
    ]


def require_tools() -> None:
    """Refuse where the libraries for cables are missing."""
    try:
        import mpremote  # noqa: F401
        import serial  # noqa: F401
    except ImportError:
        error = CableError("", "Boards on a cable need esptool, mpremote and pyserial")
        error.hint = "Install them: `pip install 'cloudmanager[flash]'`."
        raise error from None


def check_port(port: str) -> bool:
    """Open a port once, and close it; return whether it has the lines RTS and DTR.

    Raises:
        CableError: it is not there, somebody else has it, or this user may not use it.
    """
    require_tools()
    import serial

    try:
        with serial.serial_for_url(port, BAUD, exclusive=True, timeout=0) as opened:
            try:
                return isinstance(opened.cts, bool)  # asks the driver, changes no line
            except OSError:
                return False
    except (OSError, ValueError) as error:
        raise _port_error(port, error) from error


def _port_error(port: str, error: Exception) -> CableError:
    """Say why a port cannot be opened."""
    number = getattr(error, "errno", None)
    told = str(error)
    if number == errno.EACCES or "Permission" in told:
        group = _group_of(port)
        hint = f"Join its group: `sudo usermod -aG {group} $USER`, then log in anew."
        return CableError(port, "This user may not open the port", hint)
    if number in (errno.EAGAIN, errno.EBUSY) or "lock" in told or "busy" in told:
        hint = "Close it there: a terminal, Thonny, mpremote, an `mbm bridge`."
        return CableError(port, "Another program has the port open", hint)
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO) or "No such" in told:
        hint = "Plug the board in; `mbm board-scan` shows what is there. Some cables only charge."
        return CableError(port, "There is no such port", hint)
    return CableError(port, f"The port cannot be opened: {told}", _RETRY_HINT)


def _group_of(port: str) -> str:
    try:
        import grp

        return grp.getgrgid(Path(port).stat().st_gid).gr_name
    except (ImportError, OSError, KeyError):
        return "dialout"


class BoardRepl:
    """The REPL of a board: a context manager, from one thread.

    Args:
        port: the serial port's device.

    Raises:
        CableError: the port cannot be opened.
    """

    def __init__(self, port: str) -> None:
        check_port(port)
        from mpremote.transport import TransportError
        from mpremote.transport_serial import SerialTransport

        self.port = port
        try:
            self.transport: SerialTransport = SerialTransport(port, BAUD, timeout=READ_SECONDS)
        except TransportError as error:
            raise _port_error(port, error) from error
        self._known_folders: set[str] = set()  # that are there
        self.interrupted_program = False  # whether a program was interrupted to get here

    def __enter__(self) -> BoardRepl:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the port."""
        self.close()

    def close(self) -> None:
        """Let go of the port; the board stays as it is."""
        with contextlib.suppress(OSError):
            self.transport.close()

    def await_prompt(self, seconds: float) -> None:
        """Interrupt what runs, and enter the raw REPL as soon as there is one.

        Raises:
            CableError: no REPL within ``seconds``.
        """
        deadline = time.monotonic() + seconds
        with self.cable_errors("No REPL answers"):
            self.transport.serial.write(b"\r\x02\r")
            self.interrupted_program = not self._read_until(b">>> ")
            while not self._send_interrupt():
                if time.monotonic() > deadline:
                    hint = (
                        "Press RESET and run this again; without MicroPython, leave out --no-flash."
                    )
                    raise CableError(self.port, f"No REPL answers within {seconds:g} s", hint)
            self.transport.enter_raw_repl(soft_reset=False, timeout_overall=5)
            for _ in range(_MAX_TRIES):  # a Ctrl-C that comes late ends one of these, and no cell
                if not self.transport.exec_raw(_BUSY_LOOP_CODE)[1]:
                    break

    def _send_interrupt(self) -> bool:
        """Type Ctrl-C twice; a client in the middle of a message needs it."""
        self.transport.serial.write(b"\r\x03\x03\x02")
        return self._read_until(b">>> ")

    def _read_until(self, ending: bytes) -> bool:
        """Read until the board says this and no more; it may print without end."""
        deadline, heard = time.monotonic() + _PROMPT_SECONDS, b""
        while (left := deadline - time.monotonic()) > 0 and not heard.endswith(ending):
            self.transport.serial.timeout = left
            heard += self.transport.serial.read(1)
            heard += self.transport.serial.read(self.transport.serial.in_waiting)
        self.transport.serial.timeout = READ_SECONDS
        return heard.endswith(ending)

    def run(self, code: str) -> str:
        """Run a cell of ours and return what it printed.

        Raises:
            CableError: it failed, or the cable did.
        """
        with self.cable_errors("The board did not do what it was told"):
            output, error = self.transport.exec_raw(code, timeout=CELL_SECONDS)
        if error:
            why = error.decode(errors="replace").strip().rpartition("\n")[2]
            raise CableError(self.port, f"The board raised {why}", _RETRY_HINT)
        return str(output.decode(errors="replace"))

    def facts(self) -> dict[str, Any]:
        """Return platform, version, mpy (of bytecode, 0 where unknown) and machine."""
        platform, version, mpy, machine = self.run_tuple(_FACTS_CODE, 4)
        dotted = ".".join(str(part) for part in version)
        return {"platform": str(platform), "version": dotted, "mpy": mpy, "machine": str(machine)}

    def identity(self) -> tuple[str | None, str | None]:
        """Return the board's id and name in the fleet that it was flashed for."""
        board_id, name = self.run_tuple(_IDENTITY_CODE, 2)
        return board_id, name

    def kept_settings(self) -> dict[str, Any]:
        """Return the networks and the watchdog that the board was given before."""
        told = zip(("wifi", "lan", "watchdog"), self.run_tuple(_KEPT_SETTINGS_CODE, 3), strict=True)
        return {name: value for name, value in told if value}

    def run_tuple(self, code: str, size: int) -> tuple[Any, ...]:
        """Run a cell that prints a tuple of this size, and return it."""
        printed = self.run(code).strip().rpartition("\n")[2]
        try:
            told = ast.literal_eval(printed)
        except (ValueError, SyntaxError):
            told = None
        if not isinstance(told, tuple) or len(told) != size:
            raise CableError(
                self.port, "The board answers, but not as MicroPython does", _RETRY_HINT
            )
        return told

    def put_file(self, path: str, data: bytes) -> bool:
        """Write a file, unless the board has it; return whether it was written.

        Raises:
            CableError: it could not be written, or is not on the board as it was sent.
        """
        digest = hashlib.sha256(data).digest()
        if self._hash(path) == digest:
            return False
        with self.cable_errors(f"{path} could not be written"):
            self._make_folders(path)
            self.transport.exec(f"f = open({path!r}, 'wb')\nfrom binascii import a2b_base64")
            for start in range(0, len(data) or 1, _PIECE_BYTES):
                packed = binascii.b2a_base64(data[start : start + _PIECE_BYTES], newline=False)
                close = "\nf.close()" if start + _PIECE_BYTES >= len(data) else ""
                self.transport.exec(f"n = f.write(a2b_base64({packed!r})){close}")
        if self._hash(path) != digest:
            raise CableError(
                self.port, f"{path} arrived with other bytes than were sent", _RETRY_HINT
            )
        return True

    def _make_folders(self, path: str) -> None:
        """Make the folders that a file is in."""
        folder = path.rpartition("/")[0]
        for end in (i for i, sign in enumerate(folder + "/") if sign == "/" and i):
            if folder[:end] not in self._known_folders:
                with contextlib.suppress(OSError):  # it is there
                    self.transport.fs_mkdir(folder[:end])
                self._known_folders.add(folder[:end])

    def _hash(self, path: str) -> bytes | None:
        """Return the SHA-256 of a file; None where there is none."""
        (digest,) = self.run_tuple(f"path = {path!r}\n{_HASH_CODE}", 1)
        return digest if isinstance(digest, bytes) else None

    def restart(self) -> None:
        """Have the board start anew, as after RESET; do not wait for it."""
        with self.cable_errors("The board was not restarted"):
            self.transport.exec_raw_no_follow("import machine\nmachine.reset()")

    def leave_raw_repl(self) -> None:
        """Leave the raw REPL; a program that was interrupted starts again (a soft reset)."""
        with contextlib.suppress(OSError):
            self.transport.exit_raw_repl()
            if self.interrupted_program:
                self.transport.serial.write(b"\x04")

    def read_output(self, seconds: float) -> str:
        """Return what the board says by itself meanwhile."""
        deadline, heard = time.monotonic() + seconds, b""
        with self.cable_errors("The board cannot be heard"):
            while (left := deadline - time.monotonic()) > 0:
                self.transport.serial.timeout = left
                heard += self.transport.serial.read(1)
                heard += self.transport.serial.read(self.transport.serial.in_waiting)
        self.transport.serial.timeout = READ_SECONDS
        return heard.decode(errors="replace")

    @contextlib.contextmanager
    def cable_errors(self, problem: str) -> Iterator[None]:
        """Raise what mpremote or the driver raise as a sentence of ours; its prints go nowhere."""
        from mpremote.transport import TransportError

        try:
            yield
        except (TransportError, OSError, IndexError) as error:
            told = str(error) or type(error).__name__
            raise CableError(
                self.port, f"{problem}: {told.rpartition(chr(10))[2]}", _RETRY_HINT
            ) from error
