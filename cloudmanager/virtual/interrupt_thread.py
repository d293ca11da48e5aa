"""The process of one virtual board: MicroPython on the main thread, an interrupt thread beside it.

MicroPython's unix port has no interrupt that is safe for its heap (SIGINT raises in the middle of a
garbage collection) and, without a GIL, no thread that is safe for its collector. So a thread of
CPython in the same process does what a timer interrupt does on a chip: while a cell runs it polls
the link's socket, calls the board's `callback` (cm/unix.py) through `mp_sched_schedule`, and
interrupts through `mp_sched_keyboard_interrupt`; MicroPython performs both at its next safe point.
A signal without effect ends a system call in which the board may be sleeping. Thread and board
share a mailbox of 40 bytes.

Whatever the process prints goes into a pipe. Once the client has started, it reads the pipe; until
then this thread copies what is in it to the board's log.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import math
import mmap
import os
import platform
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from cloudmanager import config

# The mailbox, byte by byte; tests/board/client_numbers.py copies it to mpy_client/cm/unix.py.
_USER_CODE_RUNS = 0  # 1 while user code runs: only then it may be interrupted
_CELL_RUNS = 1  # 1 from a cell's start to its end
_INTERRUPT_STATE = 2  # 1 interrupt now, 2 again later, 3 interrupted, 4 restart, 5 sleep
_INTERRUPTING = 3  # 1 while the thread raises an interrupt: the board waits until it is 0
_OUTPUT_PENDING = 4  # 1 if there is output that only the callback will send
_CALLBACK_SCHEDULED = 5  # 1 while a callback is scheduled
_ASLEEP = 6  # 1 while the thread sleeps: a byte through the pipe wakes it
_CALL_AGAIN = 7  # 1 if the callback ran in client code: the board repeats it
_CALLBACK_ADDRESS = 8  # 8 bytes: the address of callback
_DEADLINE = 16  # 8 bytes: milliseconds of the monotonic clock, or 0
_LINK_FD = 24  # 4 bytes: the link's socket, or -1
_CAPTURES = 28  # 1 once the client reads the pipe
_COPYING = 29  # 1 while the thread copies output to the log: the board waits until it is 0
_OUTPUT_FULL = 30  # 1 if the pipe is so full that the board must read it at once
_OUTPUT_CLOSED = 31  # 1 if stdout or stderr was closed: the thread opens them again
_THREADS = 32  # 1 once the user's code has started a thread
_LOG_ONLY = 33  # 1 while all output is the log's, which may be sent late
_LOG_PENDING = 34  # 1 if a part of the log has been read, and not sent
_MAILBOX_BYTES = 40
_MEMORY_BYTES = 2048 + 6  # as much as the RTC of ESP32 has, after the time and the length

_TICK_SECONDS = 0.02  # between two polls: the maximum age of output
_INTERRUPT_AGAIN_SECONDS = 0.25  # until a cell that caught its interrupt gets the next
_STUCK_SECONDS = 0.005  # in a system call that a signal has restarted
_LOG_SECONDS = 0.2  # between two callbacks for the log alone
_NO_LINK_POLL_SECONDS = 1.0  # between two callbacks in a cell whose link is lost
_CALLBACK_RETRY_SECONDS = 2.0  # until a callback that was not called is scheduled again
_WATCHDOG_SECONDS = 60.0  # until a board whose callback is not called is restarted
_IDLE_TICKS = 10  # ticks without work until the thread sleeps
_FIRST_TICKS = 2  # of these, while which none is left out; then the thread looks at every third
_MORE_TICKS = 3
_FULL_BYTES = 32 * 1024  # of the 64 KB of a pipe: the board prints faster than ticks come
_FAST_TICK_SECONDS = 0.0002  # between two polls then,
_FAST_TICKS = 100  # and until it prints less
_PIPE_BYTES = 64 * 1024  # of output that is moved to the log at once, at most
_READ_BYTES = 4096
_MAX_LOG_BYTES = 256 * 1024  # of a board's log, which is then truncated
_BLOCK_BYTES = 4096  # as in mpy_client/virtual_boot.py
_SYS_FUTEX = {"x86_64": 202, "i686": 240, "armv6l": 240, "armv7l": 240}.get(platform.machine(), 98)
_KEEP_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if sys.platform == "linux":  # seconds until the first probe, and between two; how many
    _KEEP_ALIVE.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20))
    _KEEP_ALIVE.append((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10))
    _KEEP_ALIVE.append((socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3))
RESTART = 77  # the exit status of a board that must be restarted
ASLEEP = 79  # of one that is to start again after the time in its memory, see ``SleepMemory``
_CALLBACK_ARGUMENT = 1  # MicroPython's small integer 0, the argument of callback


class InterruptThread:
    """Does for a virtual board what a timer interrupt does for a real one.

    Args:
        library: MicroPython's unix port as a shared library.
        output: what the process prints.
        watchdog: seconds until a board that runs nothing but C code is restarted, as the timer or
            the watchdog of a chip does; 0 for never.

    Attributes:
        mailbox: the bytes that are shared with the board.
        wake_writer: the descriptor of the pipe through which the board wakes the thread.
    """

    def __init__(
        self, library: ctypes.CDLL, output: BoardOutput, watchdog: float = _WATCHDOG_SECONDS
    ) -> None:
        self._watchdog = watchdog
        self._output = output
        self._writer = os.dup(1)
        self._unanswered_since = 0.0
        self.mailbox = (ctypes.c_uint8 * _MAILBOX_BYTES)()
        self.wake_reader, self.wake_writer = os.pipe()
        self._wake_poll = select.poll()
        self._wake_poll.register(self.wake_reader, select.POLLIN)
        self._main = threading.main_thread().ident or 0
        self._main_id = threading.main_thread().native_id
        self._schedule_call = library.mp_sched_schedule
        self._schedule_call.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._schedule_call.restype = ctypes.c_bool
        self._raise_keyboard_interrupt = library.mp_sched_keyboard_interrupt
        self._interrupted_at = self._scheduled_at = 0.0
        self._fast_ticks = 0
        self._call_seen: str | None = None  # the last look; "" after a signal
        self._sleeps_since = 0.0
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, True)  # it ends system calls
        signal.siginterrupt(signal.SIGUSR2, False)  # it ends those that are never restarted
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        """Serve the board; restart it if this thread fails: nothing could interrupt it any more."""
        try:
            self._serve()
        except BaseException:
            traceback.print_exc()
            os._exit(RESTART)

    def _serve(self) -> None:
        quiet = 0
        while True:
            needed = self._check_output()
            if self._check_cell():
                needed = True
            quiet = 0 if needed else quiet + 1
            if self._fast_ticks:
                self._fast_ticks -= 1
                time.sleep(_FAST_TICK_SECONDS)
            elif quiet < _IDLE_TICKS:
                quiet += self._await_ticks(quiet) - 1
            elif self._log_waits():  # it needs no ticks
                self._sleep()
            elif self._sleep():
                quiet = 0
            else:  # a cell has started: most are short and need nothing
                quiet = 0
                self._await_tick(_TICK_SECONDS)

    def _await_ticks(self, quiet: int) -> int:
        """Wait until a tick at which there may be something to do, or until the thread sleeps.

        Between two cells, a tick is a system call and a look at the mailbox, and most are left out:
        hundreds of boards have 50 of them a second. A board that has just run something may go on.

        Args:
            quiet: for how many ticks there was nothing to do.

        Returns:
            For how many ticks it has waited.
        """
        mailbox, waited = self.mailbox, 0
        while quiet + waited < _IDLE_TICKS:
            ticks = 1 if quiet + waited < _FIRST_TICKS else _MORE_TICKS
            waited += ticks
            if self._await_tick(ticks * _TICK_SECONDS):
                break
            if mailbox[_CELL_RUNS] or not mailbox[_CAPTURES] or mailbox[_OUTPUT_CLOSED]:
                break
        return waited

    def _await_tick(self, seconds: float) -> bool:
        """Wait; return whether the board has woken the thread, to end its process."""
        if not self._wake_poll.poll(seconds * 1000):
            return False
        os.read(self.wake_reader, 4096)
        return True

    def _check_output(self) -> bool:
        """Copy output to the log, unless the client does it; repair closed streams.

        Returns:
            Whether there was something to do.
        """
        if self.mailbox[_OUTPUT_CLOSED]:
            os.dup2(self._writer, 1)
            os.dup2(self._writer, 2)
            self.mailbox[_OUTPUT_CLOSED] = 0
        self._output.limit_log()
        waiting = self._output.waiting()
        self.mailbox[_OUTPUT_FULL] = waiting >= _FULL_BYTES
        if waiting >= _FULL_BYTES:
            self._fast_ticks = _FAST_TICKS
        if not waiting or self.mailbox[_CAPTURES]:
            return False
        # Write _COPYING, then read _CAPTURES; the board does it in reversed order.
        self.mailbox[_COPYING] = 1
        if not self.mailbox[_CAPTURES]:
            self._output.copy_to_log()
        self.mailbox[_COPYING] = 0
        return True

    def _sleep(self) -> bool:
        """Block until the board wakes the thread, prints, its link is readable, or its deadline.

        Returns:
            Whether there may be something to do at once.
        """
        woken = False
        self.mailbox[_ASLEEP] = 1
        running = self.mailbox[_CELL_RUNS]
        fd, deadline = struct.unpack_from("<i", self.mailbox, _LINK_FD)[0], self._deadline()
        if not (running and (self.mailbox[_OUTPUT_PENDING] or self.mailbox[_INTERRUPT_STATE])):
            poll = select.poll()
            poll.register(self.wake_reader, select.POLLIN)
            timeout: float | None = None
            if self._log_waits():
                timeout = _LOG_SECONDS * 1000
            else:
                poll.register(self._output.reader, select.POLLIN)
            if running:
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
                    _keep_alive(fd)
                else:
                    timeout = min(timeout or math.inf, _NO_LINK_POLL_SECONDS * 1000)
                if deadline:
                    left = max(0.0, deadline - time.monotonic() * 1000)
                    timeout = left if timeout is None else min(timeout, left)
            ready = [number for number, _ in poll.poll(timeout)]
            woken = ready == [self.wake_reader]
            if self.wake_reader in ready:
                os.read(self.wake_reader, 4096)
        self.mailbox[_ASLEEP] = 0
        return not (woken and self.mailbox[_CELL_RUNS])

    def _deadline(self) -> int:
        return int(struct.unpack_from("<q", self.mailbox, _DEADLINE)[0])

    def _check_cell(self) -> bool:
        """Schedule a callback in the running cell or interrupt it, if needed.

        Returns:
            Whether something was needed.
        """
        if not self.mailbox[_CELL_RUNS]:
            return False
        needs_callback = self._needs_callback()
        if needs_callback or self._log_is_due():
            self._schedule_callback()
        if self.mailbox[_INTERRUPT_STATE]:
            self._interrupt_cell()
        return needs_callback or bool(self.mailbox[_INTERRUPT_STATE])

    def _needs_callback(self) -> bool:
        """Return whether MicroPython's thread must be called: to send, to read, to end its cell."""
        if self.mailbox[_OUTPUT_PENDING] or self.mailbox[_CALLBACK_SCHEDULED]:
            return True
        if self.mailbox[_OUTPUT_FULL]:
            return True
        if not self.mailbox[_LOG_ONLY] and self._output.waiting():
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

    def _log_waits(self) -> bool:
        """Return whether a part of the log waits for a callback, for which there is time."""
        if not self.mailbox[_CELL_RUNS]:
            return False
        printed = self.mailbox[_LOG_ONLY] and self._output.waiting()
        return bool(self.mailbox[_LOG_PENDING] or printed)

    def _log_is_due(self) -> bool:
        since = time.monotonic() - self._scheduled_at
        return since >= _LOG_SECONDS and self._log_waits()

    def _schedule_callback(self) -> None:
        """Make the main thread call the callback, even if it sleeps in a system call."""
        now = time.monotonic()
        if (
            not self.mailbox[_CALLBACK_SCHEDULED]
            or now - self._scheduled_at > _CALLBACK_RETRY_SECONDS
        ):
            if not self.mailbox[_CALLBACK_SCHEDULED]:
                self._unanswered_since = now
            elif self._watchdog and now - self._unanswered_since > self._watchdog:
                span = f"{self._watchdog:g} s"
                self._output.write_line(
                    f"[Watchdog: only native code ran for {span}. The board restarts.]"
                )
                os._exit(RESTART)
            self._scheduled_at = now
            self.mailbox[_CALLBACK_SCHEDULED] = 1
            callback = struct.unpack_from("<q", self.mailbox, _CALLBACK_ADDRESS)[0]
            if not self._schedule_call(callback, _CALLBACK_ARGUMENT):
                # The queue is full: retry at the next tick. The watchdog goes on: it may be full
                # of callbacks that are not called.
                self._scheduled_at = 0.0
                return
        pause = 0.001
        if self.mailbox[_OUTPUT_FULL]:  # the board may be waiting for room in the pipe
            self._end_system_call()
            pause = 0.0002
        for _ in range(3):
            time.sleep(pause)
            if not self.mailbox[_CALLBACK_SCHEDULED]:
                return
            self._end_system_call()

    def _end_system_call(self) -> None:
        """End a system call in which the board may be sleeping, or writing to a full pipe.

        Once there are threads, MicroPython's collector waits for them by sem_wait, and if a signal
        ends that, it frees what they use (ports/unix/mpthreadport.c). SIGUSR2 ends every sleep, but
        never sem_wait; SIGUSR1 is for other calls, if the board stays in one.
        """
        if not self.mailbox[_THREADS]:
            signal.pthread_kill(self._main, signal.SIGUSR1)
            return
        sleep, now = self._look_at_sleep(), time.monotonic()
        if self._call_seen is None or sleep not in (self._call_seen, None) and self._call_seen:
            signal.pthread_kill(self._main, signal.SIGUSR2)
            self._call_seen = ""
        elif sleep != self._call_seen:
            self._call_seen, self._sleeps_since = sleep, now
        elif now - self._sleeps_since > _STUCK_SECONDS:
            signal.pthread_kill(self._main, signal.SIGUSR1)
            self._call_seen = None

    def _look_at_sleep(self) -> str | None:
        """Return a text that is the same while the board does not leave one system call.

        Returns:
            None if it is not sleeping, or waits for another thread.
        """
        if sys.platform != "linux":
            return "unknown"
        folder = Path(f"/proc/self/task/{self._main_id}")
        try:
            call, status = (folder / "syscall").read_text(), (folder / "status").read_text()
        except OSError:
            return "unknown"
        if call.startswith(("running", f"{_SYS_FUTEX} ")):
            return None
        return call + status[status.index("voluntary_ctxt_switches") :]

    def _interrupt_cell(self) -> None:
        """Raise KeyboardInterrupt, in user code only."""
        now = time.monotonic()
        if self.mailbox[_INTERRUPT_STATE] == 4:
            os._exit(RESTART)  # like a hard reset of a chip
        if self.mailbox[_INTERRUPT_STATE] == 5:
            os._exit(ASLEEP)
        if self.mailbox[_INTERRUPT_STATE] == 3:
            self.mailbox[_INTERRUPT_STATE] = 2
            self._interrupted_at = now
        if (
            self.mailbox[_INTERRUPT_STATE] == 2
            and now - self._interrupted_at < _INTERRUPT_AGAIN_SECONDS
        ):
            return
        for _ in range(5):
            # Write _INTERRUPTING, then read _USER_CODE_RUNS; the board does it in reversed order.
            self.mailbox[_INTERRUPTING] = 1
            user_code_runs = self.mailbox[_USER_CODE_RUNS]
            # Read after it: a new cell clears the state first, and must not get the interrupt.
            if user_code_runs and self.mailbox[_INTERRUPT_STATE]:
                self._raise_keyboard_interrupt()
                self.mailbox[_INTERRUPT_STATE] = 2
                self._interrupted_at = now
            self.mailbox[_INTERRUPTING] = 0
            self._end_system_call()
            if user_code_runs or self.mailbox[_INTERRUPT_STATE] != 1:
                break
            time.sleep(0.0005)


def _keep_alive(fd: int) -> None:
    """Turn on TCP keep-alive, so that a board in a long cell notices that its link is lost."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as link:
        for level, option, value in _KEEP_ALIVE:
            link.setsockopt(level, option, value)


class BoardOutput:
    """What the process of a board prints: the pipe behind stdout and stderr, and the log.

    Args:
        reader: the end of the pipe from which the output is read; it never blocks.
        log: the path of the board's log, which is truncated when it is too large.
    """

    def __init__(self, reader: int, log: Path) -> None:
        self.reader = reader
        self._file = config.open_private(log, append=True)
        self.log = self._file.fileno()
        os.set_blocking(reader, False)

    def waiting(self) -> int:
        """Return how many bytes are in the pipe."""
        count = fcntl.ioctl(self.reader, termios.FIONREAD, bytes(4))
        return int.from_bytes(count, sys.byteorder)

    def copy_to_log(self) -> None:
        """Move what is in the pipe to the log; what does not fit on the disk is lost."""
        with contextlib.suppress(OSError):  # the disk is full, or the pipe is empty
            for _ in range(_PIPE_BYTES // _READ_BYTES):
                data = os.read(self.reader, _READ_BYTES)
                self.limit_log()
                os.write(self.log, data)

    def write_line(self, text: str) -> None:
        """Append a line of our own to the log; do nothing if the disk is full."""
        with contextlib.suppress(OSError):
            os.write(self.log, f"\n{text}\n".encode())

    def limit_log(self) -> None:
        """Truncate the log if it is too large; the client writes to it, too."""
        if os.fstat(self.log).st_size > _MAX_LOG_BYTES:
            os.truncate(self.log, 0)

    def close(self) -> None:
        """Close the log."""
        self._file.close()


def log_path(spec: dict[str, Any]) -> Path:
    """Return the path of a board's log."""
    return Path(spec["folder"]) / "board.log"


class SleepMemory:
    """What a board keeps while it sleeps, as a chip does in the memory of its real-time clock.

    Its process shares it with the supervisor, which starts it again: the ms that it sleeps (4
    bytes), the length of what the client keeps (2 bytes), and that.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _MEMORY_BYTES)

    @property
    def sleep_seconds(self) -> float:
        """How long the board sleeps that has ended with the status ASLEEP."""
        return float(struct.unpack_from("<I", self._memory, 0)[0]) / 1000

    def address(self) -> int:
        """Return where it is in this process."""
        return ctypes.addressof(ctypes.c_uint8.from_buffer(self._memory))

    def clear(self) -> None:
        """Forget everything, as without power."""
        self._memory[:] = bytes(_MEMORY_BYTES)


def run_board(spec: dict[str, Any], library: ctypes.CDLL, reader: int, memory: SleepMemory) -> int:
    """Run a board in the current process until it ends; return its exit status.

    Its stdout and stderr are a pipe.

    Args:
        spec: `folder`, `client` (the folder of the compiled client), `heap` in bytes, `blocks` of
            flash, and `config`, which becomes the board's `/cm.json`.
        library: MicroPython's unix port as a shared library.
        reader: the other end of that pipe.
        memory: what it keeps while it sleeps.
    """
    started = time.monotonic()
    folder = Path(spec["folder"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    output = BoardOutput(reader, log_path(spec))
    thread = InterruptThread(library, output, spec["config"].get("watchdog", _WATCHDOG_SECONDS))
    flash = folder / "flash.img"
    flash.touch(mode=0o600)
    size = spec["blocks"] * _BLOCK_BYTES
    if flash.stat().st_size != size:
        os.truncate(flash, size)
    settings = json.dumps(
        {
            "client": spec["client"],
            "flash": str(flash),
            "blocks": spec["blocks"],
            "pipe": thread.wake_writer,
            "output": output.reader,
            "log": output.log,
            "box": ctypes.addressof(thread.mailbox),
            "rtc": memory.address(),
            "rtc_bytes": _MEMORY_BYTES,
            "started": int(started * 1000),
            "config": spec["config"],
        }
    ).encode()
    buffer = ctypes.create_string_buffer(settings)  # in memory: no secret is on a command line
    os.environ["MICROPYPATH"] = spec["client"]
    arguments = ["micropython", "-X", f"heapsize={spec['heap']}", "-c"]
    arguments.append("__import__('virtual_boot').start()")
    arguments += [str(ctypes.addressof(buffer)), str(len(settings))]
    argv = (ctypes.c_char_p * (len(arguments) + 1))(*(each.encode() for each in arguments))
    with contextlib.suppress(OSError):
        os.chdir(folder)
    return int(library.micropython_unix_main(len(arguments), argv))
