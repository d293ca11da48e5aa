"""Boards on a cable as members of the fleet: a link for each, and its raw REPL on the other side.

```
server ══ BoardLink ══ Member ══ raw REPL ══ cable ══ board
            one thread for each board; ports may come and go
```

To callers a bridged board is a board like any other: cells, values, output as it comes, interrupts,
timeouts. It differs where a cable has to: ``input()`` raises EOFError, and what its program does
between cells is interrupted, since the REPL is what the bridge needs. For Linux and macOS.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from . import config, wire
from .boardlink import BoardLink
from .cable import Repl, serial_ports
from .errors import CableError, CloudmanagerError, LinkLost, NotAllowed, PeerWireError
from .fleet import Fleet
from .members import Members
from .virtual import Identity
from .wire import Message

VERSION: Final = "bridge 0.1"
PROMPT_SECONDS: Final = 10.0  # that a board may take to show its REPL
PORT_SECONDS: Final = 0.5  # between two looks for a port that is gone
AGAIN_SECONDS: Final = 0.25  # until a cell that swallowed its interrupt gets the next, as on boards
DEAF_SECONDS: Final = 15.0  # that a cell may take to end after its first interrupt
TICK_SECONDS: Final = 0.02  # output that is older goes out
ALONE_SECONDS: Final = 60.0  # that a cell may run without a link
VALUE_BYTES: Final = 1 << 20  # of a value's repr
ERROR_BYTES: Final = 256  # of an error's end, for the next hello
PIECE_BYTES: Final = 16_384  # of output or of a value in one message
_EOT: Final = b"\x04"
_EXEC: Final = struct.Struct(">II")
_OK, _ERROR, _INTERRUPTED, _TIMEOUT = range(4)  # wire.STATUSES
#: What a cell needs on the board: where its value goes, and an input() that cannot be answered.
_PRELUDE: Final = """
def __cm__(v):
 global __cm_v__
 __cm_v__=v
def input(p=''):
 raise EOFError
__cm_v__=None
"""
#: Prints the value as the only element of a tuple, so that no repr is built whole on the board.
_VALUE: Final = b"if __cm_v__ is not None:print((__cm_v__,),end='')\n__cm_v__=None"
_AWAIT: Final = b"\nimport asyncio\nasyncio.run(__cm_cell__())"
_ABOUT: Final = """
try:
 import gc
 gc.collect()
 h=gc.mem_free()
except (ImportError,AttributeError):
 h=0
try:
 from machine import unique_id
 u=''.join(['%02x'%b for b in unique_id()])
except ImportError:
 u=''
print((h,u))
"""
Tell = Callable[[str, str], None]


class Bridge:
    """Serves ports until it is stopped; a context manager.

    Args:
        fleet: whose members the boards become.
        ports: these serial ports; none: all with USB behind them, also those that come later.
        names: what new boards may be called.
        tell: is called with port and what is new, from the boards' threads.
    """

    def __init__(
        self, fleet: Fleet, ports: Sequence[str], names: Sequence[str], tell: Tell
    ) -> None:
        url = config.split(fleet.address.url)
        self._address = (url.hostname or config.DEFAULT_HOST, url.port or config.DEFAULT_TCP_PORT)
        self._members = Members(fleet, names)
        self._ports, self._tell = list(ports), tell
        self._stopped = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> Bridge:
        """Start."""
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of all boards; cells that run go on on them, and are lost."""
        self._stopped.set()
        for thread in (self._watcher, *self._threads.values()):
            thread.join()

    def _watch(self) -> None:
        while True:
            for port in self._ports or [port.device for port in serial_ports()]:
                if port not in self._threads:
                    member = Member(port, self._address, self._members, self._tell, self._stopped)
                    self._threads[port] = threading.Thread(target=member.run)
                    self._threads[port].start()
            if self._stopped.wait(PORT_SECONDS):
                return


class Member:
    """One port's board, in a thread of its own."""

    def __init__(
        self,
        port: str,
        address: tuple[str, int],
        members: Members,
        tell: Tell,
        stopped: threading.Event,
    ) -> None:
        self.port, self._address, self._members = port, address, members
        self._tell, self._stopped = tell, stopped
        self._link: BoardLink | None = None
        self._said = ""
        self._handlers: dict[int, Callable[[Message], None]] = {
            wire.EXEC: self._begin,
            wire.MORE: self._more,
            wire.RESET: self._reset,
        }
        self._begin_life()

    def _begin_life(self) -> None:
        """Forget what was before the board started."""
        self._boot = os.urandom(8).hex()
        self._last: dict[str, Any] | None = None
        self._job = self._timeout_ms = self._size = self._dropped = 0
        self._awaits = False
        self._code = bytearray()
        self._stop = _OK  # why the cell shall end
        self._lost = 0.0  # when its link broke

    def run(self) -> None:
        """Serve the board whenever it is there."""
        while not self._stopped.is_set():
            try:
                with Repl(self.port) as self._repl:
                    self._serve_board()
            except CloudmanagerError as error:
                self._say(error.told())
            finally:
                self._hang_up()
            self._stopped.wait(PORT_SECONDS)

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            self._tell(self.port, what)

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    # The link

    def _serve_board(self) -> None:
        self._repl.await_prompt(PROMPT_SECONDS)
        self._begin_life()
        facts = self._repl.facts()
        heap, hardware = self._repl.told(_ABOUT, 2)
        identity = self._members.identity(hardware or self.port, facts["platform"])
        self._facts = {**facts, "client": VERSION, "heap": heap}
        self._repl.run(_PRELUDE)
        tries = 0
        while not self._stopped.is_set():
            try:
                self._dial(identity)
                tries = 0
                self._serve_link()
            except NotAllowed:
                raise
            except (LinkLost, PeerWireError, CloudmanagerError) as error:
                self._hang_up()
                if isinstance(error, CableError):
                    raise
                self._say(error.told())
            tries += 1
            self._stopped.wait(random.uniform(0, min(2.0, 0.1 * 2**tries)))

    def _dial(self, identity: Identity) -> None:
        about = {"boot": self._boot, "parts": ["run"], "facts": self._facts, "last": self._last}
        self._link = BoardLink(self._address, identity, about)
        self._dropped = 0
        self._say(f"{self._link.name} is in the fleet")

    def _serve_link(self) -> None:
        """Do what the server says, until the link or the cable ends."""
        while (link := self._link) is not None and not self._stopped.is_set():
            self._check_cable()
            if time.monotonic() - link.heard > 2.5 * link.beat:
                raise LinkLost("", None, "the server fell silent")
            for message in link.receive(PORT_SECONDS):
                if handler := self._handlers.get(message.op):
                    handler(message)
                if link.closed:
                    return

    def _check_cable(self) -> None:
        """Notice that the board is unplugged."""
        with self._repl.failing("The board is gone"):
            _ = self._repl.transport.serial.in_waiting  # asks the driver

    def _send(self, op: int, payload: bytes, flags: int = 0) -> None:
        if self._link is not None:
            self._link.send(wire.pack(op, payload, job=self._job, flags=flags))

    # Cells

    def _begin(self, message: Message) -> None:
        self._timeout_ms, self._size = _EXEC.unpack_from(message.payload)
        self._job, self._awaits = message.job, bool(message.flags & wire.AWAITS)
        self._code = bytearray(message.payload[_EXEC.size :])
        self._stop = _OK
        self._run_when_whole()

    def _more(self, message: Message) -> None:
        if message.job == self._job and len(self._code) < self._size:
            self._code += message.payload
            self._run_when_whole()

    def _run_when_whole(self) -> None:
        if len(self._code) >= self._size:
            self._run(bytes(self._code))

    def _run(self, code: bytes) -> None:
        self._last = self._told(wire.RUNNING, "")
        seconds = self._timeout_ms / 1000
        self._deadline = time.monotonic() + seconds if seconds else float("inf")
        has_value = b"__cm__((" in code
        error = self._execute(code + _AWAIT if self._awaits else code, self._output)
        value = bytearray()
        if not error and has_value:
            error = self._execute(_VALUE, value.extend)
        if error:
            self._fail(error)
        else:
            self._succeed(bytes(value))

    def _output(self, data: bytes) -> None:
        if self._link is None:
            self._dropped += len(data)
        else:
            self._send(wire.OUTPUT, data)

    def _succeed(self, printed: bytes) -> None:
        """Send the value; it was printed as the only element of a tuple."""
        value = printed.removeprefix(b"(").removesuffix(b",)")
        cut = wire.CUT if len(value) > VALUE_BYTES else 0
        value = value[:VALUE_BYTES]
        for start in range(0, len(value) - PIECE_BYTES, PIECE_BYTES):
            self._send(wire.VALUE, value[start : start + PIECE_BYTES])
        rest = value[max(0, -(-len(value) // PIECE_BYTES) - 1) * PIECE_BYTES :]
        self._end(_OK, b"\0\0" + rest, "", cut)

    def _fail(self, error: bytes) -> None:
        text = error.decode(errors="replace").replace("\r\n", "\n")
        text = text.replace('File "<stdin>"', 'File "<cell>"')
        status = self._stop or _INTERRUPTED if "KeyboardInterrupt" in text else _ERROR
        self._end(status, b"\0\0" + text.encode()[-PIECE_BYTES:], text)

    def _end(self, status: int, payload: bytes, error: str, flags: int = 0) -> None:
        self._last = self._told(status, error)
        self._send(wire.RESULT, payload, status | flags)

    def _told(self, status: int, error: str) -> dict[str, Any]:
        """Return what the next hello says of this job."""
        last = error[-ERROR_BYTES:]
        job = f"{self._job:08x}"
        return {"job": job, "status": status, "error": last, "dropped": self._dropped}

    def _execute(self, code: bytes, output: Callable[[bytes], None]) -> bytes:
        """Run code on the board to its end; return its traceback."""
        serial = self._repl.transport.serial
        with self._repl.failing("The board stopped answering in the middle of a cell"):
            if serial.in_waiting > 1:  # more than the prompt: what it says by itself is nobody's
                serial.reset_input_buffer()
                serial.write(b"\x01")  # the prompt again
            self._repl.transport.exec_raw_no_follow(code)
            self._fired = self._first = 0.0
            self._follow(serial, output)
            error = bytearray()
            self._follow(serial, error.extend)
        return bytes(error)

    def _follow(self, serial: Any, take: Callable[[bytes], None]) -> None:
        """Take what the board says up to the end sign, byte by byte: what follows is mpremote's."""
        gathered, since = bytearray(), time.monotonic()
        while True:
            byte = _read(serial.fileno())
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
                self._attend(serial, 0 if byte else TICK_SECONDS)

    def _attend(self, serial: Any, timeout: float) -> None:
        """Wait for the board or the server; pass interrupts on, and ends of time."""
        ends = [serial.fileno()] if self._link is None else [serial.fileno(), self._link.fileno()]
        ready, _, _ = select.select(ends, [], [], timeout)
        if self._stopped.is_set():
            raise OSError("the bridge ends")
        if self._link is not None and self._link.fileno() in ready:
            self._listen()
        now = time.monotonic()
        if not self._stop and now > self._deadline:
            self._stop = _TIMEOUT
        if self._link is None and now - self._lost > ALONE_SECONDS:
            self._stop = self._stop or _INTERRUPTED
        if self._stop and now - self._fired > AGAIN_SECONDS:
            self._first = self._first or now
            if now - self._first > DEAF_SECONDS:
                raise OSError(f"it took no Ctrl-C for {DEAF_SECONDS:g} s")
            self._fired = now
            serial.write(b"\x03")

    def _listen(self) -> None:
        """Hear the server while a cell runs; a link that breaks does not disturb the cell."""
        assert self._link is not None
        try:
            for message in self._link.receive(0):
                if message.op == wire.INTERRUPT and message.job == self._job:
                    self._stop = self._stop or _INTERRUPTED
        except CloudmanagerError:
            self._lost = time.monotonic()
            self._hang_up()

    # The rest

    def _reset(self, _: Message) -> None:
        """Restart the interpreter; in the raw REPL no program of the user's is started."""
        self._hang_up()
        with self._repl.failing("The board did not come back from its reset"):
            serial = self._repl.transport.serial
            self._repl.transport.read_until(1, b">", timeout=1)
            serial.write(_EOT)
            self._repl.transport.in_raw_repl = False
        with contextlib.suppress(CableError):
            self._repl.listen(0.2)
        raise CableError(self.port, "The board was reset", "It comes back by itself.")


def _read(handle: int) -> bytes:
    """Return the next byte of a serial port; none where there is none yet (pyserial: 20 us)."""
    try:
        byte = os.read(handle, 1)
    except BlockingIOError:
        return b""
    if not byte:
        raise OSError("it was unplugged")
    return byte
