"""Many MicroPython processes at low cost: forks of one CPython that has MicroPython loaded.

`python -m benchmarks.micropython_processes COUNT SCRIPT ARG…` runs SCRIPT in COUNT processes, each
with ARG… and its number as arguments, until standard input ends; then it kills each by its pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal that a process receives when its parent dies
_HEAP = "heapsize=64k"


@contextlib.contextmanager
def micropython_processes(count: int, script: Path, *args: str) -> Iterator[None]:
    """Run a script in several MicroPython processes during a `with` block.

    Args:
        count: the number of processes.
        script: the MicroPython script that each runs.
        args: the script's arguments; the number of the process is added.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.micropython_processes",
        str(count),
        str(script),
        *args,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            yield
        finally:
            process.stdin.close()


def _become_micropython(argv: list[str]) -> None:
    """Run MicroPython in the current process until it ends, or the parent process does."""
    import micropython_run

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        micropython_run.run_main(["micropython", "-X", _HEAP, *argv])
    finally:
        os._exit(1)


def _main(count: int, argv: list[str]) -> None:
    import micropython_run  # noqa: F401  (loaded once, before the forks)

    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            _become_micropython([*argv, str(number)])
        pids.append(pid)
    sys.stdin.buffer.read()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _main(int(sys.argv[1]), sys.argv[2:])
