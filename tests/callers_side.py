"""What callers use, imported and run on a system without POSIX: ``python -m tests.callers_side``.

The public CI runs it on macOS and Windows. With ``--take-away``, on a POSIX system, first take away
what Windows' Python lacks. Imports no part of the tests, since those need POSIX.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Final

#: Modules that Windows' Python lacks.
MODULES: Final = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
#: Names that modules of Windows' Python lack. ``os.getuid`` stays, for other libraries.
NAMES: Final[dict[ModuleType, str]] = {
    os: "chown fchmod fork forkpty geteuid getpgid killpg mkfifo openpty sched_getaffinity setsid",
    select: "epoll kqueue poll",
    signal: "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2"
    " SIGWINCH alarm pause pthread_kill pthread_sigmask setitimer siginterrupt sigwait",
    socket: "AF_UNIX socketpair",
}
#: What runs virtual boards: it is started as a process of its own, on POSIX only.
POSIX_ONLY: Final = {"cloudmanager.virtual.interrupt_thread", "cloudmanager.virtual.supervisor"}
#: Other libraries that choose by ``sys.platform`` what to import: imported before it is taken away.
CHOOSERS: Final = ("esptool", "ipykernel.kernelapp", "mpremote.transport_serial", "serial")
#: Modules that are plugins of libraries, which may be missing.
PLUGINS: Final = {
    "cloudmanager.testing.plugin": "pytest",
    "cm_kernel.papermill_engine": "papermill",
}
#: No server listens there: another user's may listen on the default port.
NO_SERVER: Final = "http://127.0.0.1:1"
#: What `mbm` says, on systems without POSIX, and its exit status.
REFUSALS: Final = {
    ("server-start",): "The server needs Linux or macOS.",
    ("server-backup", "backup.tar"): "The server needs Linux or macOS.",
    ("simulate", "3"): "Virtual boards need Linux or macOS.",
    ("simulate", "--stop"): "Virtual boards need Linux or macOS.",
    ("bridge",): "The bridge needs Linux or macOS.",
    ("demo", "--no-lab"): "The demo needs Linux or macOS.",
}


def take_away() -> None:
    """Take away what Windows' Python lacks; call it before Cloudmanager is imported."""
    for library in CHOOSERS:
        importlib.import_module(library)
    for module in MODULES:
        sys.modules[module] = None  # type: ignore[assignment]  # import raises ImportError
    for owner, names in NAMES.items():
        for name in names.split():
            if hasattr(owner, name):
                delattr(owner, name)


def import_errors() -> Iterator[str]:
    """Import each module of the library, the magics and the kernel; yield what failed."""
    skipped = POSIX_ONLY | {name for name, library in PLUGINS.items() if not find_spec(library)}
    if find_spec("papermill"):
        importlib.import_module("papermill")  # it imports the engine, which cannot be the first
    for package in ("cloudmanager", "cm_magics", "cm_kernel"):
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if module.name in skipped or module.name.endswith(".__main__"):
                continue
            try:
                importlib.import_module(module.name)
            except Exception:
                yield f"import {module.name}\n{traceback.format_exc()}"


def run_mbm(*arguments: str) -> tuple[int, str]:
    """Run ``mbm``; return its exit status, and what it printed."""
    from cloudmanager.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(arguments)
        except SystemExit as ended:
            return int(ended.code or 0), printed.getvalue()


def command_line_errors(*, has_posix: bool) -> Iterator[str]:
    """Run ``mbm`` in an empty CM_HOME, where no server runs; yield what differs."""
    expected: dict[tuple[str, ...], tuple[int, str]] = {
        ("--version",): (0, "mbm "),
        ("--help",): (0, "usage: mbm"),
        ("board-list",): (3, "No server"),
        ("board-scan", "--json"): (0, "["),
    }
    if not has_posix:
        expected |= {arguments: (1, text) for arguments, text in REFUSALS.items()}
    for arguments, (status, text) in expected.items():
        try:
            found, printed = run_mbm(*arguments)
        except Exception:
            yield f"mbm {' '.join(arguments)}\n{traceback.format_exc()}"
            continue
        if found != status or text not in printed:
            yield f"mbm {' '.join(arguments)}: exit status {found}\n{printed}"


def main() -> None:
    """Print what failed; the exit status is 1 if anything did."""
    if "--take-away" in sys.argv:
        take_away()
    with tempfile.TemporaryDirectory() as home:
        os.environ["CM_HOME"] = home
        os.environ["CM_URL"] = NO_SERVER
        os.environ.pop("CM_TOKEN", None)
        Path(home, "backup.tar").touch()
        has_posix = os.name == "posix" and "--take-away" not in sys.argv
        failures = [*import_errors(), *command_line_errors(has_posix=has_posix)]
    print(*failures, sep="\n", end="" if not failures else "\n")
    print(f"callers' side: {len(failures)} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
