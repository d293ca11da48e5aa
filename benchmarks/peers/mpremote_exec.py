"""mpremote's `exec` over a pty, to the same MicroPython that virtual boards run."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.timing import time_calls

_EXPECTED_OUTPUT = b"1"
_TIMEOUT_SECONDS = 5.0  # seconds; a REPL answers in milliseconds


def measure(n: int) -> list[float]:
    """Return the seconds of each of `n` calls of `exec("print(1)")`, after a warm-up."""
    with running_mpremote() as once:
        return time_calls(once, n)


@contextlib.contextmanager
def running_mpremote() -> Iterator[Callable[[], object]]:
    """Yield the call to time: one `exec`, in a raw REPL that was entered once.

    Raises:
        RuntimeError: the REPL did not answer.
    """
    from mpremote.transport_serial import SerialTransport

    with running_repl() as device:
        transport = SerialTransport(device)
        transport.enter_raw_repl(soft_reset=False)
        if transport.exec("print(1)").strip() != _EXPECTED_OUTPUT:
            raise RuntimeError("mpremote's exec did not answer 1")
        try:
            yield lambda: transport.exec("print(1)")
        finally:
            transport.close()


@contextlib.contextmanager
def running_repl() -> Iterator[str]:
    """Start a MicroPython REPL on one end of a pty and yield the name of the other end."""
    board, cable = pty.openpty()
    tty.setraw(cable)
    command = [str(Path(sys.executable).with_name("micropython")), "-X", "heapsize=64k", "-i"]
    with subprocess.Popen(
        command, stdin=board, stdout=board, stderr=board, start_new_session=True
    ) as process:
        try:
            select.select([cable], [], [], _TIMEOUT_SECONDS)  # its banner
            yield os.ttyname(cable)
        finally:
            process.kill()
            os.close(board)
            os.close(cable)
