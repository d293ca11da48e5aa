"""The supervisor process of virtual boards: loads MicroPython once and forks a child for each.

It reads commands from its standard input, a line of JSON each, and answers each with a line. It has
one thread, since it forks, and no socket. It ends when its input ends (its parent died), unless it
is detached; its boards end with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from cloudmanager import config

from .interrupt_thread import RESTART as RESTART
from .interrupt_thread import BoardOutput, log_path, run_board

_PR_SET_PDEATHSIG = 1  # prctl's, linux/prctl.h
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Supervisor:
    """Starts, watches and ends the processes of boards."""

    def __init__(self) -> None:
        import micropython_run

        self.library = ctypes.CDLL(micropython_run.__file__)
        self.specs: dict[str, dict[str, Any]] = {}
        self.pids: dict[str, int] = {}
        self.outputs: dict[str, int] = {}  # the ends of the boards' pipes that are read
        self.is_detached = False
        self.is_ending = False

    def start_board(self, spec: dict[str, Any]) -> None:
        """Fork a process for the board that `spec` describes (see ``run_board``).

        What it prints goes into a pipe. This process keeps an end of it too, for what is left in it
        when the board ends.
        """
        self.specs[spec["name"]] = spec
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
                code = run_board(spec, self.library, reader)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def reap_boards(self) -> None:
        """Remove boards whose process has ended; restart those that ended with RESTART."""
        for name, pid in list(self.pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            self._forget_board(name)
            if os.waitstatus_to_exitcode(status) == RESTART and not self.is_ending:
                self.start_board(self.specs[name])

    def signal_board(self, name: str, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to a board; after SIGKILL, wait until its process has ended."""
        pid = self.pids.get(name)
        if pid is None:
            return
        os.kill(pid, signal_number)
        if signal_number == signal.SIGKILL:
            os.waitpid(pid, 0)
            self._forget_board(name)

    def _forget_board(self, name: str) -> None:
        """Remove a board that has ended; copy what it printed last to its log."""
        del self.pids[name]
        reader = self.outputs.pop(name)
        with contextlib.suppress(OSError):  # its folder has been deleted, or the disk is full
            output = BoardOutput(reader, log_path(self.specs[name]))
            output.copy_to_log()
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
            config.write_private(pid_file, str(os.getpid()))
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
            ready, _, _ = select.select(watched, [], [])
            if wake in ready:
                os.read(wake, 4096)
            self.reap_boards()
            if 0 in ready:
                data = os.read(0, 65536)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self.handle_command(json.loads(line))
                    self.reap_boards()
                    _write_all(1, json.dumps(self.pids).encode() + b"\n")
                if not data:
                    watched.remove(0)
                    if not self.is_detached:  # never set it to False: SIGTERM may have set it
                        self.is_ending = True
        for name in list(self.pids):
            self.signal_board(name)

    def _on_signal(self, number: int, _: object) -> None:
        self.is_ending = self.is_ending or number in (signal.SIGTERM, signal.SIGINT)


def _write_all(handle: int, data: bytes) -> None:
    """Write all of it: a signal, such as SIGCHLD, makes a blocked write return early."""
    while data:
        data = data[os.write(handle, data) :]


if __name__ == "__main__":
    Supervisor().serve()
