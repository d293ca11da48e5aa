"""Serial ports of this machine, and the REPL of a board on one.

mpremote's transport implements the raw REPL (raw paste mode if the board supports it). Data is sent
to the board in literals: no text of the user's ever becomes code. Import this in a function: it
needs ``pip install 'cloudmanager[flash]'``.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import hashlib
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudmanager.protocol.errors import CableError
from cloudmanager.results.board_values import UnreadableValue, parse_value

if TYPE_CHECKING:
    from mpremote.transport_serial import SerialTransport

BAUD = 115_200  # of every MicroPython REPL
CELL_SECONDS = 10.0  # for a cell that runs on a board
READ_SECONDS = 1  # mpremote's timeout for a byte
#: Parts of pyserial's messages on Windows, where its errors have no number, and where every user
#: may open every port: ERROR_ACCESS_DENIED, and ERROR_FILE_NOT_FOUND or ERROR_PATH_NOT_FOUND.
_IN_USE_ON_WINDOWS = re.compile(r"PermissionError\(.*, None, 5\)")
_MISSING_ON_WINDOWS = re.compile(r"FileNotFoundError\(.*, None, [23]\)")
_BUSY_LOOP_CODE = "for _ in range(2000): pass"  # runs for about 10 ms on a chip
_MAX_TRIES = 5
_PROMPT_SECONDS = 0.3  # until a REPL must answer Ctrl-C
_PIECE_BYTES = 768  # bytes of a file in one cell: 1 KB in base64, which small boards hold twice
_RETRY_HINT = "Check the board with `mbm board-scan`, and run this again: that is always safe."
#: Prints the board's facts; old versions of MicroPython have no `_mpy` and `_machine`.
_FACTS_CODE = """
import sys
i = sys.implementation
print((sys.platform, tuple(i[1][:3]), getattr(i, '_mpy', 0) & 255, getattr(i, '_machine', '')))
"""
#: Prints the board's id and name in the fleet, without its key.
_IDENTITY_CODE = """
try:
    import json
    with open('/cm.json') as f:
        c = json.load(f)
    print((c.get('id'), c.get('name')))
except (OSError, ValueError, ImportError):
    print((None, None))
"""
#: Prints the SHA-256 of the file at ``path`` as it is on the flash.
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
#: Prints settings that the user chose: flashing the board again keeps them.
_KEPT_SETTINGS_CODE = """
try:
    import json
    with open('/cm.json') as f:
        c = json.load(f)
    print(tuple([c.get(n) for n in names]))
except (OSError, ValueError, ImportError):
    print((None,) * len(names))
"""


class SerialPort(NamedTuple):
    """A serial port of this machine: its device, and a description of its USB device."""

    device: str
    description: str


def find_serial_ports() -> list[SerialPort]:
    """Return the USB serial ports of this machine, sorted."""
    require_tools()
    from serial.tools import list_ports

    return [
        SerialPort(port.device, port.description or "")
        for port in sorted(list_ports.comports())
        if port.vid is not None
    ]


def require_tools() -> None:
    """Raise CableError if the libraries for serial ports are not installed."""
    try:
        import mpremote  # noqa: F401
        import serial  # noqa: F401
    except ImportError:
        error = CableError("", "Boards on a serial port need esptool, mpremote and pyserial")
        error.hint = "Install them: `pip install 'cloudmanager[flash]'`."
        raise error from None


def check_port(port: str) -> bool:
    """Open and close a port; return whether it has the control lines RTS and DTR.

    Raises:
        CableError: it does not exist, another program has it open, or permission is denied.
    """
    require_tools()
    import serial

    try:
        with serial.serial_for_url(port, BAUD, exclusive=True, timeout=0) as opened:
            try:
                return isinstance(opened.cts, bool)  # queries the driver, changes no line
            except OSError:
                return False
    except (OSError, ValueError) as error:
        raise _port_error(port, error) from error


def _port_error(port: str, error: Exception) -> CableError:
    """Return an error that explains why a port cannot be opened."""
    number = getattr(error, "errno", None)
    text = str(error)
    if _IN_USE_ON_WINDOWS.search(text):
        number = errno.EBUSY
    elif _MISSING_ON_WINDOWS.search(text):
        number = errno.ENOENT
    elif number == errno.EACCES or "Permission" in text:
        group = _group_of(port)
        hint = f"Join its group: `sudo usermod -aG {group} $USER`, then log in again."
        return CableError(port, "This user has no permission to open the port", hint)
    if number in (errno.EAGAIN, errno.EBUSY) or "lock" in text or "busy" in text:
        hint = "Close it in that program: a terminal, Thonny, mpremote, an `mbm bridge`."
        return CableError(port, "Another program has the port open", hint)
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO) or "No such" in text:
        hint = "Plug the board in; `mbm board-scan` lists the ports. Some cables only charge."
        return CableError(port, "The port does not exist", hint)
    if number == errno.ENOTTY or "Inappropriate ioctl" in text:
        hint = "`mbm board-scan` lists the serial ports with a board."
        return CableError(port, "This is not a serial port", hint)
    return CableError(port, f"The port cannot be opened: {text}", _RETRY_HINT)


def _group_of(port: str) -> str:
    try:
        import grp

        return grp.getgrgid(Path(port).stat().st_gid).gr_name
    except (ImportError, OSError, KeyError):
        return "dialout"


def _explain(error: Exception) -> str:
    """Return why mpremote failed, in words; its own messages quote bytes."""
    from mpremote.transport import TransportExecError

    if isinstance(error, TransportExecError):
        return f"the board raised {error.error_output.strip().rpartition(chr(10))[2]}"
    return "it did not answer as MicroPython's REPL does"


class BoardRepl:
    """The REPL of a board on a serial port; a context manager, to be used by one thread.

    Args:
        port: the serial port's device.

    Attributes:
        interrupted_program: whether ``await_prompt`` has interrupted a program.

    Raises:
        CableError: the port cannot be opened.
    """

    def __init__(self, port: str) -> None:
        check_port(port)
        from mpremote import transport_serial
        from mpremote.transport import TransportError
        from mpremote.transport_serial import SerialTransport

        # It prints bytes that it did not expect; our errors say what happened.
        transport_serial.print = lambda *args: None

        self.port = port
        try:
            self.transport: SerialTransport = SerialTransport(port, BAUD, timeout=READ_SECONDS)
        except TransportError as error:
            raise _port_error(port, error) from error
        self._known_folders: set[str] = set()  # that exist on the board
        self.interrupted_program = False

    def __enter__(self) -> BoardRepl:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the port."""
        self.close()

    def close(self) -> None:
        """Close the port; the board's state is not changed."""
        with contextlib.suppress(OSError):
            self.transport.close()

    def await_prompt(self, seconds: float) -> None:
        """Interrupt a running program, wait for the REPL, and enter the raw REPL.

        Args:
            seconds: how long to wait.

        Raises:
            CableError: no REPL answers in time.
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
            for _ in range(_MAX_TRIES):  # a late Ctrl-C must interrupt this loop and no cell
                if not self.transport.exec_raw(_BUSY_LOOP_CODE)[1]:
                    break

    def _send_interrupt(self) -> bool:
        """Send Ctrl-C twice, which a client that is receiving a message needs; await the prompt."""
        self.transport.serial.write(b"\r\x03\x03\x02")
        return self._read_until(b">>> ")

    def _read_until(self, ending: bytes) -> bool:
        """Return whether the board's output ends with this in time; it may print endlessly."""
        deadline, output = time.monotonic() + _PROMPT_SECONDS, b""
        while (left := deadline - time.monotonic()) > 0 and not output.endswith(ending):
            self.transport.serial.timeout = left
            output += self.transport.serial.read(1)
            output += self.transport.serial.read(self.transport.serial.in_waiting)
        self.transport.serial.timeout = READ_SECONDS
        return output.endswith(ending)

    def run(self, code: str) -> str:
        """Run a cell and return its output.

        Raises:
            CableError: the cell raised an exception, or the serial port failed.
        """
        with self.cable_errors("The board did not run a command"):
            output, error = self.transport.exec_raw(code, timeout=CELL_SECONDS)
        if error:
            why = error.decode(errors="replace").strip().rpartition("\n")[2]
            raise CableError(self.port, f"The board raised {why}", _RETRY_HINT)
        return str(output.decode(errors="replace"))

    def facts(self) -> dict[str, Any]:
        """Return platform, version, mpy (version of bytecode, 0 if unknown) and machine."""
        platform, version, mpy, machine = self.run_tuple(_FACTS_CODE, 4)
        dotted = ".".join(str(part) for part in version)
        return {"platform": str(platform), "version": dotted, "mpy": mpy, "machine": str(machine)}

    def identity(self) -> tuple[str | None, str | None]:
        """Return the board's id and name in its fleet; None and None if it has no fleet."""
        board_id, name = self.run_tuple(_IDENTITY_CODE, 2)
        return board_id, name

    def kept_settings(self) -> dict[str, Any]:
        """Return the board's present settings for networks and watchdog, as far as it has them."""
        names = ("wifi", "lan", "watchdog", "ip", "country")
        values = self.run_tuple(f"names = {names!r}{_KEPT_SETTINGS_CODE}", len(names))
        return {name: value for name, value in zip(names, values, strict=True) if value}

    def run_tuple(self, code: str, size: int) -> tuple[Any, ...]:
        """Run a cell that prints a tuple of this size, and return the tuple.

        Raises:
            CableError: as ``run``; or the output is not such a tuple.
        """
        printed = self.run(code).strip().rpartition("\n")[2]
        try:
            value = parse_value(printed)
        except UnreadableValue:
            value = None
        if not isinstance(value, tuple) or len(value) != size:
            raise CableError(
                self.port, "The board answers, but not as MicroPython does", _RETRY_HINT
            )
        return value

    def put_file(self, path: str, data: bytes) -> bool:
        """Write a file, unless the board has it; return whether it was written.

        Raises:
            CableError: it could not be written, or the file on the board differs afterwards.
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
                self.port, f"{path} on the board differs from what was sent", _RETRY_HINT
            )
        return True

    def _make_folders(self, path: str) -> None:
        """Make the parent folders of a file."""
        folder = path.rpartition("/")[0]
        for end in (i for i, character in enumerate(folder + "/") if character == "/" and i):
            if folder[:end] not in self._known_folders:
                with contextlib.suppress(OSError):  # it exists
                    self.transport.fs_mkdir(folder[:end])
                self._known_folders.add(folder[:end])

    def _hash(self, path: str) -> bytes | None:
        """Return the SHA-256 of a file; None if it does not exist."""
        (digest,) = self.run_tuple(f"path = {path!r}\n{_HASH_CODE}", 1)
        return digest if isinstance(digest, bytes) else None

    def restart(self) -> None:
        """Restart the board, as by RESET, without waiting for it."""
        with self.cable_errors("The board was not restarted"):
            self.transport.exec_raw_no_follow("import machine\nmachine.reset()")

    def leave_raw_repl(self) -> None:
        """Leave the raw REPL; a soft reset restarts a program that was interrupted."""
        with contextlib.suppress(OSError):
            self.transport.exit_raw_repl()
            if self.interrupted_program:
                self.transport.serial.write(b"\x04")

    def read_output(self, seconds: float) -> str:
        """Return what the board prints within some seconds."""
        deadline, output = time.monotonic() + seconds, b""
        with self.cable_errors("The board's output cannot be read"):
            while (left := deadline - time.monotonic()) > 0:
                self.transport.serial.timeout = left
                output += self.transport.serial.read(1)
                output += self.transport.serial.read(self.transport.serial.in_waiting)
        self.transport.serial.timeout = READ_SECONDS
        return output.decode(errors="replace")

    @contextlib.contextmanager
    def cable_errors(self, problem: str) -> Iterator[None]:
        """Convert errors of mpremote and of the serial driver into CableError."""
        from mpremote.transport import TransportError

        try:
            yield
        except OSError as error:
            text = str(error) or type(error).__name__
            raise CableError(self.port, f"{problem}: {text}", _RETRY_HINT) from error
        except (TransportError, IndexError, struct.error) as error:
            raise CableError(self.port, f"{problem}: {_explain(error)}", _RETRY_HINT) from error
