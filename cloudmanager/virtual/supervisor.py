"""The supervisor process of virtual boards: loads MicroPython once and forks a child for each.

It reads commands from its standard input, a line of JSON each, and answers each with a line. It has
one thread, since it forks, and no socket. It ends when its input ends (its parent died), unless it
is detached; its boards end with it. A board whose process ends by itself, such as by a crash of
native code or by the system's out-of-memory killer, is started again, and its log says why it
ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from cloudmanager import config

from .interrupt_thread import ASLEEP, BoardOutput, SleepMemory, log_path, run_board
from .interrupt_thread import RESTART as RESTART

_PR_SET_PDEATHSIG = 1  # prctl's, linux/prctl.h
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FIRST_PAUSE_SECONDS = 1.0  # until a board that ended by itself starts again, doubled each time
_MAX_PAUSE_SECONDS = 60.0
_GOOD_SECONDS = 60.0  # a board that ran for so long had started well: the pause is the first one


class Supervisor:
    """Starts, watches and ends the processes of boards."""

    def __init__(self) -> None:
        import micropython_run

        self.library = ctypes.CDLL(micropython_run.__file__)
        self.specs: dict[str, dict[str, Any]] = {}
        self.pids: dict[str, int] = {}
        self.outputs: dict[str, int] = {}  # the ends of the boards' pipes that are read
        self.crashes: dict[str, int] = {}  # how often boards have ended by themselves
        self.due: dict[str, float] = {}  # when boards that sleep, or have crashed, start again
        self._memories: dict[str, SleepMemory] = {}
        self._started: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self.is_detached = False
        self.is_ending = False

    def start_board(self, spec: dict[str, Any]) -> None:
        """Fork a process for the board that `spec` describes (see ``run_board``).

        What it prints goes into a pipe. This process keeps an end of it too, for what is left in it
        when the board ends.
        """
        self.specs[spec["name"]] = spec
        self.due.pop(spec["name"], None)
        self._started[spec["name"]] = time.monotonic()
        memory = self._memories.setdefault(spec["name"], SleepMemory())
        reader, writer = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid:
            os.close(writer)
            self.pids[spec["name"]] = pid
            self.outputs[spec["name"]] = reader
            return
        code = 1
        try:
            for number in self.outputs.values():
                os.close(number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number in (1, 2):
                os.dup2(writer, number)
            os.close(writer)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == parent:
                code = run_board(spec, self.library, reader, memory)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def reap_boards(self) -> None:
        """Remove boards whose process has ended, and start them again.

        A board that ended with RESTART starts at once; one that sleeps, when it wakes, and one that
        crashed or was killed, after a pause, in `start_due_boards`.
        """
        for name, pid in list(self.pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            code = os.waitstatus_to_exitcode(status)
            if code == RESTART:
                self._forget_board(name)
                if not self.is_ending:
                    self.start_board(self.specs[name])
                continue
            if code == ASLEEP:
                self._forget_board(name)
                self.due[name] = time.monotonic() + self._memories[name].sleep_seconds
                continue
            self._memories[name].clear()
            pause = self._next_pause(name)
            self.due[name] = time.monotonic() + pause
            self.crashes[name] = self.crashes.get(name, 0) + 1
            why = f"[The board's process {_describe_end(code)}. It starts again in {pause:g} s.]"
            self._forget_board(name, why)

    def _next_pause(self, name: str) -> float:
        """Return the seconds until a board starts again that has ended by itself."""
        ran = time.monotonic() - self._started[name]
        before = self._pauses.get(name, 0.0) if ran < _GOOD_SECONDS else 0.0
        self._pauses[name] = min(before * 2 or _FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
        return self._pauses[name]

    def start_due_boards(self) -> float | None:
        """Start boards whose pause is over; return the seconds until the next one, if any."""
        for name, due in list(self.due.items()):
            if time.monotonic() >= due:
                self.start_board(self.specs[name])
        return max(0.0, min(self.due.values()) - time.monotonic()) if self.due else None

    def signal_board(self, name: str, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to a board; after SIGKILL, wait until its process has ended.

        SIGKILL is a power cut: the board stays off until it is started.
        """
        if signal_number == signal.SIGKILL:
            self.due.pop(name, None)
        pid = self.pids.get(name)
        if pid is not None:
            os.kill(pid, signal_number)
        if signal_number == signal.SIGKILL:
            if pid is not None:
                os.waitpid(pid, 0)
                self._forget_board(name)
            self._memories.pop(name, None)  # without power nothing is kept

    def _forget_board(self, name: str, why: str = "") -> None:
        """Remove a board that has ended; copy what it printed last, and why, to its log."""
        del self.pids[name]
        reader = self.outputs.pop(name)
        with contextlib.suppress(OSError):  # its folder has been deleted, or the disk is full
            output = BoardOutput(reader, log_path(self.specs[name]))
            output.copy_to_log()
            if why:
                output.write_line(why)
            output.close()
        os.close(reader)

    def handle_command(self, command: dict[str, Any]) -> None:
        """Execute one command; "list" needs only the answer that follows each command."""
        verb = command["do"]
        if verb == "start":
            self.start_board(command["spec"])
        elif verb == "kill":
            self.signal_board(command["name"], command["signal"])
        elif verb == "restart":
            self.signal_board(command["name"])
            self.start_board(self.specs[command["name"]])
        elif verb == "stay":
            self.is_detached = True
            pid_file = Path(command["pid_file"])
            config.write_private(pid_file, "\n".join([str(os.getpid()), *self.specs]))
            # Close the parent's stderr: a program that reads it to its end would wait for boards.
            with config.open_private(pid_file.with_name("supervisor.log"), append=True) as log:
                os.dup2(log.fileno(), 2)
        elif verb == "stop":
            self.is_ending = True

    def serve(self) -> None:
        """Execute commands until the end, then end every board."""
        wake, wake_into = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wake_into, False)
        signal.set_wakeup_fd(wake_into)
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        watched = [0, wake]
        rest = b""
        while not self.is_ending:
            ready, _, _ = select.select(watched, [], [], self.start_due_boards())
            if wake in ready:
                os.read(wake, 4096)
            self.reap_boards()
            if 0 in ready:
                data = os.read(0, 65536)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self.handle_command(json.loads(line))
                    self.reap_boards()
                    answer = {"pids": self.pids, "crashes": self.crashes}
                    _write_all(1, json.dumps(answer).encode() + b"\n")
                if not data:
                    watched.remove(0)
                    if not self.is_detached:  # never set it to False: SIGTERM may have set it
                        self.is_ending = True
        for name in list(self.pids):
            self.signal_board(name)

    def _on_signal(self, number: int, _: object) -> None:
        self.is_ending = self.is_ending or number in (signal.SIGTERM, signal.SIGINT)


def _describe_end(code: int) -> str:
    """Return how a process ended, such as "was killed by SIGSEGV".

    Args:
        code: its exit status, or the number of a signal as a negative number.
    """
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _write_all(handle: int, data: bytes) -> None:
    """Write all of it: a signal, such as SIGCHLD, makes a blocked write return early."""
    while data:
        data = data[os.write(handle, data) :]


if __name__ == "__main__":
    Supervisor().serve()
