"""Jobs of a bridged board, run through its raw REPL: cells and file operations, one at a time.

It does for a board without the client what mpy_client/cm/run.py does on other boards.
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

from .board_link import BridgedBoardLink
from .flat_files import FlatReplFiles
from .install_helper import JOURNAL_PATH
from .raw_repl import MAX_OUTPUT_BYTES, BoardRestarted, execute_code
from .repl_files import ABILITIES_CODE, FileAbilities, FileOpFailed, ReplFiles
from .repl_output import PRELUDE, Outcome
from .serial_ports import BoardRepl

WITHOUT_LINK_SECONDS: Final = 60.0  # for which a job may run without a link
GRACE_SECONDS: Final = 0.25  # until a piece of a file operation is interrupted
MAX_VALUE_BYTES: Final = 1 << 20  # of a value's repr
MAX_ERROR_CHARS: Final = 256  # of the end of an error that is reported after a reconnection
_EXEC: Final = struct.Struct(">II")
_OK, _ERROR, _INTERRUPTED, _TIMEOUT = range(4)  # wire.STATUSES
#: The raw REPL restarts the interpreter at SystemExit.
_RESTARTED: Final = "SystemExit: the board was restarted: its names are gone"
_RUN_COROUTINE_CODE: Final = b"\nimport asyncio\nasyncio.run(__cm_cell__())"


class ReplJobs:
    """Runs the jobs of one board until the board restarts; to be used by one thread.

    Args:
        repl: the board's REPL, in raw mode.
        heap: roughly how many bytes the board has free.
        stopped: an event of the bridge's end; running code then raises CableError.

    Attributes:
        link: the link to the server, or None.
        boot_id: random at each start.
        last_job: how the last job ended, for the next connection.
        client_parts: what the board can do, for the next connection.
    """

    def __init__(self, repl: BoardRepl, heap: int, stopped: threading.Event) -> None:
        self._repl, self._stopped = repl, stopped
        self.link: BridgedBoardLink | None = None
        self.boot_id = os.urandom(8).hex()
        self.last_job: dict[str, Any] | None = None
        self._job = self._timeout_ms = self._code_size = self._dropped = 0
        self._awaits = self._has_file_ops = False
        self._code = bytearray()
        self._data: list[Message] = []  # of a job with files
        self._stop_status = _OK  # why the job must end; _OK: it need not
        self._deadline = float("inf")
        self._link_lost_at = time.monotonic()
        repl.run(PRELUDE)
        can = FileAbilities(heap, *repl.run_tuple(ABILITIES_CODE, 4))
        self._files = (ReplFiles if can.folders else FlatReplFiles)(self._run_piece, self, can)
        self.client_parts = ["run", *["files"] * can.files, *["switch"] * can.folders]

    def finish_install(self) -> None:
        """Complete an install that a power cut interrupted, if the board can do that."""
        if "switch" in self.client_parts:
            with contextlib.suppress(OSError, FileOpFailed):  # the board must connect in any case
                self._files.finish(JOURNAL_PATH)

    def set_link(self, link: BridgedBoardLink) -> None:
        """Use a new link."""
        self.link = link
        self._dropped = 0

    def close_link(self) -> None:
        """Close the link, if there is one."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def send(self, op: int, payload: bytes, flags: int = 0) -> None:
        """Send a message of the current job, if there is a link."""
        if self.link is not None:
            self.link.send(wire.pack(op, payload, job=self._job, flags=flags))

    def handle_message(self, message: Message) -> None:
        """Handle a message for a job; a job that it starts is run to its end."""
        if message.op in (wire.EXEC, wire.FILE):
            self._start_job(message)
        elif message.op == wire.MORE:
            self._add_code(message)

    def _start_job(self, message: Message) -> None:
        self._timeout_ms, self._code_size = _EXEC.unpack_from(message.payload)
        self._job, self._has_file_ops = message.job, message.op == wire.FILE
        self._awaits = not self._has_file_ops and bool(message.flags & wire.TOP_LEVEL_AWAIT)
        self._code = bytearray(message.payload[_EXEC.size :])
        self._stop_status = _OK
        self._data.clear()
        self._run_when_complete()

    def _add_code(self, message: Message) -> None:
        if message.job == self._job and len(self._code) < self._code_size:
            self._code += message.payload
            self._run_when_complete()

    def _run_when_complete(self) -> None:
        if len(self._code) >= self._code_size:
            self._run_job(bytes(self._code))

    def _run_job(self, code: bytes) -> None:
        self.last_job = self._describe_job(wire.RUNNING, "")
        seconds = self._timeout_ms / 1000
        self._deadline = time.monotonic() + seconds if seconds else float("inf")
        try:
            if self._has_file_ops:
                value = self._files.run_ops(code)
                self._send_value(repr(value).encode() if value else b"")
            else:
                self._run_cell(code)
        except OSError as error:
            number = error.errno or errno.EIO
            name = errno.errorcode.get(number, "EIO")
            self._send_error(f"OSError: [Errno {number}] {name}: {error.filename}")
        except FileOpFailed as failed:
            self._send_error(str(failed))
        except BoardRestarted:
            # Reported by the next link: a cell that was sent on this one would be lost.
            self.last_job = self._describe_job(_ERROR, _RESTARTED)
            raise

    def _run_cell(self, code: bytes) -> None:
        outcome = self._execute(
            code + _RUN_COROUTINE_CODE if self._awaits else code, self._send_output
        )
        if outcome.traceback:
            self._send_error(outcome.traceback.decode(errors="replace"))
        else:
            self._send_value(outcome.value.removeprefix(b"(").removesuffix(b",)"))

    def _send_output(self, data: bytes) -> None:
        if self.link is None:
            self._dropped += len(data)
        else:
            self.send(wire.OUTPUT, data)

    def _send_value(self, value: bytes) -> None:
        """Send a value in pieces, truncated to ``MAX_VALUE_BYTES``, and the job's result."""
        cut = wire.VALUE_TRUNCATED if len(value) > MAX_VALUE_BYTES else 0
        value = value[:MAX_VALUE_BYTES]
        for start in range(0, len(value) - MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES):
            self.send(wire.VALUE, value[start : start + MAX_OUTPUT_BYTES])
        rest = value[max(0, -(-len(value) // MAX_OUTPUT_BYTES) - 1) * MAX_OUTPUT_BYTES :]
        self._send_result(_OK, b"\0\0" + rest, "", cut)

    def _send_error(self, text: str) -> None:
        text = text.replace("\r\n", "\n").replace('File "<stdin>"', 'File "<cell>"')
        interrupted = exception_line(text).startswith("KeyboardInterrupt")
        status = self._stop_status or _INTERRUPTED if interrupted else _ERROR
        self._send_result(status, b"\0\0" + text.encode()[-MAX_OUTPUT_BYTES:], text)

    def _send_result(self, status: int, payload: bytes, error: str, flags: int = 0) -> None:
        self.last_job = self._describe_job(status, error)
        self.send(wire.RESULT, payload, status | flags)

    def _describe_job(self, status: int, error: str) -> dict[str, Any]:
        """Return the job's outcome, for the next connection."""
        last = error[-MAX_ERROR_CHARS:]
        job = f"{self._job:08x}"
        return {"job": job, "status": status, "error": last, "dropped": self._dropped}

    def _execute(
        self, code: bytes, on_output: Callable[[bytes], object], grace: float = 0.0
    ) -> Outcome:
        """Run code on the board to its end; return how it ended."""
        return execute_code(self._repl, code, on_output, self, grace)

    # ExecutionMonitor, for raw_repl.py

    def fileno(self) -> int | None:
        """Return the link's socket, if there is one."""
        return None if self.link is None else self.link.fileno()

    def should_stop(self) -> bool:
        """Return whether the job must end: interrupt, timeout, or too long without a link.

        Raises:
            CableError: the bridge was stopped.
        """
        if self._stopped.is_set():
            raise CableError(self._repl.port, "The bridge was stopped", "")
        now = time.monotonic()
        if not self._stop_status and now > self._deadline:
            self._stop_status = _TIMEOUT
        if self.link is None and now - self._link_lost_at > WITHOUT_LINK_SECONDS:
            self._stop_status = self._stop_status or _INTERRUPTED
        return bool(self._stop_status)

    def handle_messages(self, timeout: float = 0.0) -> None:
        """Handle the server's messages while a job runs; a lost link does not end a cell."""
        assert self.link is not None
        try:
            for message in self.link.receive(timeout):
                if message.job != self._job:
                    continue
                if message.op == wire.INTERRUPT:
                    self._stop_status = self._stop_status or _INTERRUPTED
                elif message.op == wire.DATA:
                    self._data.append(message)
        except CloudmanagerError:
            self._link_lost_at = time.monotonic()
            self.close_link()

    # FileJobChannel, for repl_files.py

    def _run_piece(self, code: str) -> tuple[bytes, str]:
        """Run a short piece of code; return its output and its traceback."""
        printed = bytearray()
        outcome = self._execute(code.encode(), printed.extend, GRACE_SECONDS)
        return bytes(printed), outcome.traceback.decode(errors="replace")

    def send_chunk(self, flags: int, payload: bytes) -> None:
        """Send a CHUNK."""
        self.send(wire.CHUNK, payload, flags)

    def check_running(self) -> None:
        """Raise FileOpFailed if the job must end, or the link that its data uses is lost."""
        if self.should_stop() or self.link is None:
            raise FileOpFailed("KeyboardInterrupt")

    def next_data(self) -> Message:
        """Wait for the job's next DATA and return it."""
        while not self._data:
            self.check_running()
            self.handle_messages(GRACE_SECONDS)
        return self._data.pop(0)


def exception_line(traceback: str) -> str:
    """Return the line of a board's traceback that names the exception.

    The lines of its frames begin with two spaces; its message may have several lines.
    """
    lines = traceback.splitlines() or [""]
    after = (line for line in lines if not line.startswith(("Traceback ", '  File "')))
    return next(after, lines[-1])
