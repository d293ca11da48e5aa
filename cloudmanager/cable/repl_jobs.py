"""Jobs of a board behind a raw REPL: cells and acts on files, one at a time.

What a board's own client does (mpy_client/cm/run.py), done from here for one that has none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import CableError, CloudmanagerError
from cloudmanager.protocol.wire import Message

from .board_link import BoardLink
from .flat_files import FlatFiles
from .install_helper import JOURNAL
from .raw_repl import PIECE_BYTES, execute
from .repl_files import ABILITIES, Abilities, ActFailed, Files
from .serial_ports import Repl

ALONE_SECONDS: Final = 60.0  # that a job may run without a link
GRACE_SECONDS: Final = 0.25  # that a piece of an act on files may take until it is interrupted
VALUE_BYTES: Final = 1 << 20  # of a value's repr
ERROR_BYTES: Final = 256  # of an error's end, for the next hello
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


class Jobs:
    """Runs the jobs of one board, from its start to its next; for one thread.

    Args:
        repl: the board's, in its raw mode.
        heap: bytes that the board has free, roughly.
        stopped: ends what runs, and raises.

    Attributes:
        link: to the server, while there is one.
        boot: random at each start.
        last: what the next hello says of the last job.
        parts: what the board can do, as a hello says it.
    """

    def __init__(self, repl: Repl, heap: int, stopped: threading.Event) -> None:
        self._repl, self._stopped = repl, stopped
        self.link: BoardLink | None = None
        self.boot = os.urandom(8).hex()
        self.last: dict[str, Any] | None = None
        self._job = self._timeout_ms = self._size = self._dropped = 0
        self._awaits = self._acts = False
        self._code = bytearray()
        self._data: list[Message] = []  # of a job with files
        self._stop = _OK  # why the job shall end
        self._deadline = float("inf")
        self._lost = time.monotonic()  # when its link broke
        repl.run(_PRELUDE)
        can = Abilities(heap, *repl.told(ABILITIES, 4))
        self._files = (Files if can.folders else FlatFiles)(self._piece, self, can)
        self.parts = ["run", *["files"] * can.files, *["switch"] * can.folders]

    def finish_install(self) -> None:
        """Bring to its end what a power cut left of an install, if the board can do that."""
        if "switch" in self.parts:
            with contextlib.suppress(OSError, ActFailed):  # whatever it is, the board is there
                self._files.finish(JOURNAL)

    def begin_link(self, link: BoardLink) -> None:
        """Go on with a new link."""
        self.link = link
        self._dropped = 0

    def hang_up(self) -> None:
        """Close the link."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def send(self, op: int, payload: bytes, flags: int = 0) -> None:
        """Send a message of the present job, if there is a link."""
        if self.link is not None:
            self.link.send(wire.pack(op, payload, job=self._job, flags=flags))

    def take(self, message: Message) -> None:
        """Take what the server says of a job; return when it has ended, if it began."""
        if message.op in (wire.EXEC, wire.FILE):
            self._begin(message)
        elif message.op == wire.MORE:
            self._more(message)

    def _begin(self, message: Message) -> None:
        self._timeout_ms, self._size = _EXEC.unpack_from(message.payload)
        self._job, self._acts = message.job, message.op == wire.FILE
        self._awaits = not self._acts and bool(message.flags & wire.AWAITS)
        self._code = bytearray(message.payload[_EXEC.size :])
        self._stop = _OK
        self._data.clear()
        self._run_when_whole()

    def _more(self, message: Message) -> None:
        if message.job == self._job and len(self._code) < self._size:
            self._code += message.payload
            self._run_when_whole()

    def _run_when_whole(self) -> None:
        if len(self._code) >= self._size:
            self._run(bytes(self._code))

    def _run(self, code: bytes) -> None:
        self.last = self._told(wire.RUNNING, "")
        seconds = self._timeout_ms / 1000
        self._deadline = time.monotonic() + seconds if seconds else float("inf")
        try:
            if self._acts:
                value = self._files.do(code)
                self._succeed(repr(value).encode() if value else b"")
            else:
                self._run_cell(code)
        except OSError as error:
            number = error.errno or errno.EIO
            name = errno.errorcode.get(number, "EIO")
            self._fail(f"OSError: [Errno {number}] {name}: {error.filename}")
        except ActFailed as failed:
            self._fail(str(failed))

    def _run_cell(self, code: bytes) -> None:
        printed = bytearray()
        error = self._execute(code + _AWAIT if self._awaits else code, self._output)
        if not error and b"__cm__((" in code:
            error = self._execute(_VALUE, printed.extend)
        if error:
            self._fail(error.decode(errors="replace"))
        else:
            self._succeed(bytes(printed).removeprefix(b"(").removesuffix(b",)"))

    def _output(self, data: bytes) -> None:
        if self.link is None:
            self._dropped += len(data)
        else:
            self.send(wire.OUTPUT, data)

    def _succeed(self, value: bytes) -> None:
        """Send the value."""
        cut = wire.CUT if len(value) > VALUE_BYTES else 0
        value = value[:VALUE_BYTES]
        for start in range(0, len(value) - PIECE_BYTES, PIECE_BYTES):
            self.send(wire.VALUE, value[start : start + PIECE_BYTES])
        rest = value[max(0, -(-len(value) // PIECE_BYTES) - 1) * PIECE_BYTES :]
        self._end(_OK, b"\0\0" + rest, "", cut)

    def _fail(self, text: str) -> None:
        text = text.replace("\r\n", "\n").replace('File "<stdin>"', 'File "<cell>"')
        status = self._stop or _INTERRUPTED if "KeyboardInterrupt" in text else _ERROR
        self._end(status, b"\0\0" + text.encode()[-PIECE_BYTES:], text)

    def _end(self, status: int, payload: bytes, error: str, flags: int = 0) -> None:
        self.last = self._told(status, error)
        self.send(wire.RESULT, payload, status | flags)

    def _told(self, status: int, error: str) -> dict[str, Any]:
        """Return what the next hello says of this job."""
        last = error[-ERROR_BYTES:]
        job = f"{self._job:08x}"
        return {"job": job, "status": status, "error": last, "dropped": self._dropped}

    def _execute(self, code: bytes, output: Callable[[bytes], object], grace: float = 0.0) -> bytes:
        """Run code on the board to its end; return its traceback."""
        return execute(self._repl, code, output, self, grace)

    # What rawrepl.py watches while code runs

    def fileno(self) -> int | None:
        """Return the link's socket, if there is one."""
        return None if self.link is None else self.link.fileno()

    def stopping(self) -> bool:
        """Whether what runs shall end: the server says so, its time is over, or nobody hears it."""
        if self._stopped.is_set():
            raise CableError(self._repl.port, "The bridge ends", "")
        now = time.monotonic()
        if not self._stop and now > self._deadline:
            self._stop = _TIMEOUT
        if self.link is None and now - self._lost > ALONE_SECONDS:
            self._stop = self._stop or _INTERRUPTED
        return bool(self._stop)

    def listen(self, timeout: float = 0.0) -> None:
        """Hear the server while a job runs; a link that breaks does not disturb a cell."""
        assert self.link is not None
        try:
            for message in self.link.receive(timeout):
                if message.job != self._job:
                    continue
                if message.op == wire.INTERRUPT:
                    self._stop = self._stop or _INTERRUPTED
                elif message.op == wire.DATA:
                    self._data.append(message)
        except CloudmanagerError:
            self._lost = time.monotonic()
            self.hang_up()

    # What replfiles.py does its acts by

    def _piece(self, code: str) -> tuple[bytes, str]:
        """Run a short piece of code; return what it printed, and its traceback."""
        printed = bytearray()
        error = self._execute(code.encode(), printed.extend, GRACE_SECONDS)
        return bytes(printed), error.decode(errors="replace")

    def tell(self, flags: int, payload: bytes) -> None:
        """Send a CHUNK."""
        self.send(wire.CHUNK, payload, flags)

    def check(self) -> None:
        """End a job with files that shall end, or that nobody would send the rest of."""
        if self.stopping() or self.link is None:
            raise ActFailed("KeyboardInterrupt")

    def hear(self) -> Message:
        """Return the job's next DATA."""
        while not self._data:
            self.check()
            self.listen(GRACE_SECONDS)
        return self._data.pop(0)
