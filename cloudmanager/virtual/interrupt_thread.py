"""One virtual board's process: MicroPython on the main thread, a watcher beside it.

MicroPython's unix port has no interrupt that keeps its heap whole (SIGINT raises in the middle of a
collection) and, without a GIL, no thread that is safe beside its collector. So the watcher is a
thread of CPython, in the same process: it polls the link's socket while a cell runs, calls the
board's `note` through `mp_sched_schedule`, and interrupts through `mp_sched_keyboard_interrupt`,
both of which MicroPython takes at its next safe point. A signal that does nothing ends the system
call that the board may be sleeping in. The two sides share a mailbox of 32 bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import struct
import threading
import time
from pathlib import Path
from typing import Any

# The mailbox, byte by byte; the same table is in mpy_client/cm/unix.py.
_USER_CODE_RUNS = 0  # 1 while code of the user's runs: only then may it be interrupted
_CELL_RUNS = 1  # 1 from a cell's start to its end
_INTERRUPT_STATE = 2  # 1 interrupt now, 2 in a while, 3 interrupted, 4 end the process
_INTERRUPTING = 3  # we are about to interrupt: the board waits until we have
_OUTPUT_PENDING = 4  # output is gathered that nobody will send but our call
_CALLBACK_SCHEDULED = 5  # note is on its way
_ASLEEP = 6  # we sleep: a byte through the pipe wakes us
_CALLBACK_ADDRESS = 8  # 8 bytes: the address of note
_DEADLINE = 16  # 8 bytes: milliseconds of the monotonic clock, or 0
_LINK_FD = 24  # 4 bytes: the link's socket, or -1
_MAILBOX_BYTES = 32

_TICK_SECONDS = 0.02  # seconds: how old output may get; short cells end before we look
_INTERRUPT_AGAIN_SECONDS = 0.25  # seconds until a cell that swallowed its interrupt gets the next
_NO_LINK_POLL_SECONDS = 1.0  # seconds between looks at a cell whose link is gone
_CALLBACK_RETRY_SECONDS = 2.0  # seconds after which a call that did not come is made again
_IDLE_TICKS = 10  # ticks without work until we sleep
_MAX_LOG_BYTES = 256 * 1024  # of a board's log; then it starts anew
_BLOCK_BYTES = 4096  # as in mpy_client/virtual_boot.py
RESTART = 77  # the exit code of a board that wants to start anew; as in mpy_client/cm/unix.py
_CALLBACK_ARGUMENT = 1  # MicroPython's small integer 0, the argument of note


class InterruptThread:
    """Does for a unix board what a timer interrupt does for a real one."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.mailbox = (ctypes.c_uint8 * _MAILBOX_BYTES)()
        self.wake_reader, self.wake_writer = os.pipe()
        self._main = threading.main_thread().ident or 0
        self._schedule_call = library.mp_sched_schedule
        self._schedule_call.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._schedule_call.restype = ctypes.c_bool
        self._raise_keyboard_interrupt = library.mp_sched_keyboard_interrupt
        self._interrupted_at = self._scheduled_at = 0.0
        signal.signal(signal.SIGUSR1, lambda *_: None)  # without SA_RESTART: it ends system calls
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        quiet = 0
        while True:
            quiet = 0 if self._check_cell() else quiet + 1
            if quiet < _IDLE_TICKS:
                time.sleep(_TICK_SECONDS)
            else:
                self._sleep()
                quiet = 0

    def _sleep(self) -> None:
        """Block until the board wakes us, its link has something, or its time is over."""
        self.mailbox[_ASLEEP] = 1
        running = self.mailbox[_CELL_RUNS]
        fd, deadline = struct.unpack_from("<i", self.mailbox, _LINK_FD)[0], self._deadline()
        if not (running and (self.mailbox[_OUTPUT_PENDING] or self.mailbox[_INTERRUPT_STATE])):
            poll = select.poll()
            poll.register(self.wake_reader, select.POLLIN)
            timeout: float | None = None
            if running:
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
                else:
                    timeout = _NO_LINK_POLL_SECONDS * 1000
                if deadline:
                    left = max(0.0, deadline - time.monotonic() * 1000)
                    timeout = left if timeout is None else min(timeout, left)
            if any(ready == self.wake_reader for ready, _ in poll.poll(timeout)):
                os.read(self.wake_reader, 4096)
        self.mailbox[_ASLEEP] = 0

    def _deadline(self) -> int:
        return int(struct.unpack_from("<q", self.mailbox, _DEADLINE)[0])

    def _check_cell(self) -> bool:
        """Look after the cell that runs, if one does; say whether there was work."""
        if not self.mailbox[_CELL_RUNS]:
            return False
        due = self._needs_callback()
        if due:
            self._schedule_callback()
        if self.mailbox[_INTERRUPT_STATE]:
            self._interrupt_cell()
        return due or bool(self.mailbox[_INTERRUPT_STATE])

    def _needs_callback(self) -> bool:
        """Say whether the board owes its link something."""
        if self.mailbox[_OUTPUT_PENDING] or self.mailbox[_CALLBACK_SCHEDULED]:
            return True
        deadline = self._deadline()
        if deadline and time.monotonic() * 1000 >= deadline:
            return True
        fd = struct.unpack_from("<i", self.mailbox, _LINK_FD)[0]
        if fd < 0:
            return time.monotonic() - self._scheduled_at >= _NO_LINK_POLL_SECONDS
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def _schedule_callback(self) -> None:
        """Let the board's main thread run note, also if it sleeps in a system call."""
        now = time.monotonic()
        if (
            not self.mailbox[_CALLBACK_SCHEDULED]
            or now - self._scheduled_at > _CALLBACK_RETRY_SECONDS
        ):
            self._scheduled_at = now
            self.mailbox[_CALLBACK_SCHEDULED] = 1
            note = struct.unpack_from("<q", self.mailbox, _CALLBACK_ADDRESS)[0]
            if not self._schedule_call(
                note, _CALLBACK_ARGUMENT
            ):  # its queue is full: the next tick
                self.mailbox[_CALLBACK_SCHEDULED] = 0
                return
        for _ in range(3):
            time.sleep(0.001)
            if not self.mailbox[_CALLBACK_SCHEDULED]:
                return
            signal.pthread_kill(self._main, signal.SIGUSR1)

    def _interrupt_cell(self) -> None:
        """Raise KeyboardInterrupt in code of the user's, and nowhere else."""
        now = time.monotonic()
        if self.mailbox[_INTERRUPT_STATE] == 4:
            os._exit(RESTART)  # what a hard reset is to a chip
        if self.mailbox[_INTERRUPT_STATE] == 3:
            self.mailbox[_INTERRUPT_STATE] = 2
            self._interrupted_at = now
        if (
            self.mailbox[_INTERRUPT_STATE] == 2
            and now - self._interrupted_at < _INTERRUPT_AGAIN_SECONDS
        ):
            return
        for _ in range(5):
            self.mailbox[_INTERRUPTING] = (
                1  # first this, then the look: the board does it the other way round
            )
            hit = self.mailbox[_USER_CODE_RUNS]
            if hit:
                self._raise_keyboard_interrupt()
                self.mailbox[_INTERRUPT_STATE] = 2
                self._interrupted_at = now
            self.mailbox[_INTERRUPTING] = 0
            signal.pthread_kill(self._main, signal.SIGUSR1)
            if hit or self.mailbox[_INTERRUPT_STATE] != 1:
                break
            time.sleep(0.0005)


def _redirect_output(path: Path) -> None:
    """Send what the process says into a file that does not grow for ever."""
    out, into = os.pipe()
    os.dup2(into, 1)
    os.dup2(into, 2)
    os.close(into)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def work() -> None:
        with path.open("ab", buffering=0) as log:
            while data := os.read(out, 4096):
                if log.tell() > _MAX_LOG_BYTES:
                    log.truncate(0)
                log.write(data)

    threading.Thread(target=work, daemon=True).start()


def run_board(spec: dict[str, Any], library: ctypes.CDLL) -> int:
    """Be this board until it ends; return its exit code. Called in a process of its own.

    Args:
        spec: `folder`, `client` (its compiled files), `heap`, `blocks` of flash, and `config`,
            which becomes the board's `/cm.json`.
        library: the wheel's shared object.
    """
    folder = Path(spec["folder"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _redirect_output(folder / "board.log")
    watcher = InterruptThread(library)
    flash = folder / "flash.img"
    flash.touch(mode=0o600)
    size = spec["blocks"] * _BLOCK_BYTES
    if flash.stat().st_size != size:
        os.truncate(flash, size)
    told = json.dumps(
        {
            "client": spec["client"],
            "flash": str(flash),
            "blocks": spec["blocks"],
            "pipe": watcher.wake_writer,
            "box": ctypes.addressof(watcher.mailbox),
            "config": spec["config"],
        }
    ).encode()
    settings = ctypes.create_string_buffer(told)  # in memory: the key is on no command line
    os.environ["MICROPYPATH"] = spec["client"]
    words = ["micropython", "-X", f"heapsize={spec['heap']}", "-c"]
    words += ["__import__('virtual_boot').start()", str(ctypes.addressof(settings)), str(len(told))]
    argv = (ctypes.c_char_p * (len(words) + 1))(*(word.encode() for word in words))
    with contextlib.suppress(OSError):
        os.chdir(folder)
    return int(library.micropython_unix_main(len(words), argv))
