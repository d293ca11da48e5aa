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
_USER = 0  # 1 while code of the user's runs: only then may it be interrupted
_RUN = 1  # 1 from a cell's start to its end
_FIRE = 2  # the cell shall be interrupted: 1 now, 2 in a while, 3 it was; 4: end the process
_SHOT = 3  # we are about to interrupt: the board waits until we have
_LATE = 4  # output is gathered that nobody will send but our call
_NOTED = 5  # note is on its way
_ASLEEP = 6  # we sleep: a byte through the pipe wakes us
_NOTE = 8  # 8 bytes: the address of note
_DEADLINE = 16  # 8 bytes: milliseconds of the monotonic clock, or 0
_FD = 24  # 4 bytes: the link's socket, or -1
_SIZE = 32

_TICK = 0.02  # seconds: how old output may get; short cells end before we look
_AGAIN = 0.25  # seconds until a cell that swallowed its interrupt gets the next
_ORPHAN = 1.0  # seconds between looks at a cell whose link is gone
_LOST = 2.0  # seconds after which a call that did not come is made again
_QUIET = 10  # ticks without work until we sleep
_LOG_BYTES = 256 * 1024  # of a board's log; then it starts anew
_BLOCK_BYTES = 4096  # as in mpy_client/virtual_boot.py
RESTART = 77  # the exit code of a board that wants to start anew; as in mpy_client/cm/unix.py
_NONE = 1  # MicroPython's small integer 0, the argument of note


class Watcher:
    """Does for a unix board what a timer interrupt does for a real one."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.box = (ctypes.c_uint8 * _SIZE)()
        self.wake, self.pipe = os.pipe()
        self._main = threading.main_thread().ident or 0
        self._schedule = library.mp_sched_schedule
        self._schedule.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._schedule.restype = ctypes.c_bool
        self._interrupt = library.mp_sched_keyboard_interrupt
        self._shot = self._called = 0.0
        signal.signal(signal.SIGUSR1, lambda *_: None)  # without SA_RESTART: it ends system calls
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        quiet = 0
        while True:
            quiet = 0 if self._tick() else quiet + 1
            if quiet < _QUIET:
                time.sleep(_TICK)
            else:
                self._sleep()
                quiet = 0

    def _sleep(self) -> None:
        """Block until the board wakes us, its link has something, or its time is over."""
        self.box[_ASLEEP] = 1
        running = self.box[_RUN]
        fd, deadline = struct.unpack_from("<i", self.box, _FD)[0], self._deadline()
        if not (running and (self.box[_LATE] or self.box[_FIRE])):
            poll = select.poll()
            poll.register(self.wake, select.POLLIN)
            timeout: float | None = None
            if running:
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
                else:
                    timeout = _ORPHAN * 1000
                if deadline:
                    left = max(0.0, deadline - time.monotonic() * 1000)
                    timeout = left if timeout is None else min(timeout, left)
            if any(ready == self.wake for ready, _ in poll.poll(timeout)):
                os.read(self.wake, 4096)
        self.box[_ASLEEP] = 0

    def _deadline(self) -> int:
        return int(struct.unpack_from("<q", self.box, _DEADLINE)[0])

    def _tick(self) -> bool:
        """Look after the cell that runs, if one does; say whether there was work."""
        if not self.box[_RUN]:
            return False
        due = self._due()
        if due:
            self._call()
        if self.box[_FIRE]:
            self._fire()
        return due or bool(self.box[_FIRE])

    def _due(self) -> bool:
        """Say whether the board owes its link something."""
        if self.box[_LATE] or self.box[_NOTED]:
            return True
        deadline = self._deadline()
        if deadline and time.monotonic() * 1000 >= deadline:
            return True
        fd = struct.unpack_from("<i", self.box, _FD)[0]
        if fd < 0:
            return time.monotonic() - self._called >= _ORPHAN
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def _call(self) -> None:
        """Let the board's main thread run note, also if it sleeps in a system call."""
        now = time.monotonic()
        if not self.box[_NOTED] or now - self._called > _LOST:
            self._called = now
            self.box[_NOTED] = 1
            note = struct.unpack_from("<q", self.box, _NOTE)[0]
            if not self._schedule(note, _NONE):  # its queue is full: the next tick
                self.box[_NOTED] = 0
                return
        for _ in range(3):
            time.sleep(0.001)
            if not self.box[_NOTED]:
                return
            signal.pthread_kill(self._main, signal.SIGUSR1)

    def _fire(self) -> None:
        """Raise KeyboardInterrupt in code of the user's, and nowhere else."""
        now = time.monotonic()
        if self.box[_FIRE] == 4:
            os._exit(RESTART)  # what a hard reset is to a chip
        if self.box[_FIRE] == 3:
            self.box[_FIRE] = 2
            self._shot = now
        if self.box[_FIRE] == 2 and now - self._shot < _AGAIN:
            return
        for _ in range(5):
            self.box[_SHOT] = 1  # first this, then the look: the board does it the other way round
            hit = self.box[_USER]
            if hit:
                self._interrupt()
                self.box[_FIRE] = 2
                self._shot = now
            self.box[_SHOT] = 0
            signal.pthread_kill(self._main, signal.SIGUSR1)
            if hit or self.box[_FIRE] != 1:
                break
            time.sleep(0.0005)


def _keep_log(path: Path) -> None:
    """Send what the process says into a file that does not grow for ever."""
    out, into = os.pipe()
    os.dup2(into, 1)
    os.dup2(into, 2)
    os.close(into)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def work() -> None:
        with path.open("ab", buffering=0) as log:
            while data := os.read(out, 4096):
                if log.tell() > _LOG_BYTES:
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
    _keep_log(folder / "board.log")
    watcher = Watcher(library)
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
            "pipe": watcher.pipe,
            "box": ctypes.addressof(watcher.box),
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
