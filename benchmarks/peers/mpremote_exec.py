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

from benchmarks.timing import timed

_ANSWER = b"1"
_DEADLINE = 5.0  # seconds; a REPL answers in milliseconds


def measure(n: int) -> list[float]:
    """Returns the seconds that each of `n` times `exec("print(1)")` took, after a warm-up."""
    with running() as once:
        return timed(once, n)


@contextlib.contextmanager
def running() -> Iterator[Callable[[], object]]:
    """Gives the call to time: one `exec`, in a raw REPL that was entered once.

    Raises:
        RuntimeError: the REPL did not answer.
    """
    from mpremote.transport_serial import SerialTransport

    with repl() as device:
        transport = SerialTransport(device)
        transport.enter_raw_repl(soft_reset=False)
        if transport.exec("print(1)").strip() != _ANSWER:
            raise RuntimeError("mpremote's exec did not answer 1")
        try:
            yield lambda: transport.exec("print(1)")
        finally:
            transport.close()


@contextlib.contextmanager
def repl() -> Iterator[str]:
    """Starts a MicroPython REPL on the far end of a pty and gives the near end's name."""
    board, cable = pty.openpty()
    tty.setraw(cable)
    command = [str(Path(sys.executable).with_name("micropython")), "-X", "heapsize=64k", "-i"]
    with subprocess.Popen(
        command, stdin=board, stdout=board, stderr=board, start_new_session=True
    ) as process:
        try:
            select.select([cable], [], [], _DEADLINE)  # its banner
            yield os.ttyname(cable)
        finally:
            process.kill()
            os.close(board)
            os.close(cable)
