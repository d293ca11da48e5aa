"""Run an operation on copies of a folder, and kill it (SIGKILL) at its first, second, ... step.

    python -m tests.cm_server.killed OPERATION FOLDER COPIES [BACKUP]

A step is a call that changes the folder. The copies are numbered; on the last one the operation was
completed. Prints the steps of that one, in JSON: each with its call and the name of its file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Imported by the operations at their first use: once here instead of in each child.
import alembic.command  # noqa: F401
import cryptography.hazmat.primitives.asymmetric.ec
import cryptography.x509  # noqa: F401

from cm_server.net import certificates
from cm_server.store import backup, file_replacement
from cm_server.store.store import Store

STEPS = ("replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir", "fsync")
MOST = 200
SECONDS = 80  # of all copies, on a busy machine; usually 2


def steps_of(operation: str, folder: Path, copies: Path, *more: Path) -> list[tuple[str, str]]:
    """Run this program; return the steps of the completed operation."""
    command = [sys.executable, "-m", "tests.cm_server.killed", operation, folder, copies, *more]
    ran = subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=SECONDS)
    return [(call, name) for call, name in json.loads(ran.stdout)]


def _name(argument: Any) -> str:
    if isinstance(argument, int):
        argument = Path(f"/proc/self/fd/{argument}").readlink()
    return Path(argument).name


def _kill_at(step: int, done: list[tuple[str, str]]) -> None:
    """Kill this process before the call with that number; record the calls before it."""

    def counted(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call_counted(*arguments: Any, **options: Any) -> Any:
            done.append((call, _name(arguments[0])))
            if len(done) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call_counted

    for call in STEPS:
        setattr(os, call, counted(call, getattr(os, call)))


def _run(name: str, home: Path, *more: Path) -> None:
    if name == "restore":
        backup.load(home, more[0])
    elif name == "finish":
        file_replacement.finish(home)
    elif name == "certificates":
        certificates.load(home)
    else:
        Store(home / "server.db").close()


def main() -> None:
    """Run the command line."""
    operation, folder, copies, *more = sys.argv[1], *map(Path, sys.argv[2:])
    for step in range(1, MOST):
        home = copies / str(step)
        shutil.copytree(folder, home)
        child = os.fork()
        if not child:
            done: list[tuple[str, str]] = []
            _kill_at(step, done)
            try:
                _run(operation, home, *more)
                print(json.dumps(done), flush=True)
            finally:
                os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


if __name__ == "__main__":
    main()
