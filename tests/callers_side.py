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
from collections.abc import Iterator, Sequence
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

    # A pipe on Windows: it lacks the lines of tables, and more.
    printed = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", write_through=True)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(arguments)
        except SystemExit as ended:
            printed.seek(0)
            return int(ended.code or 0), printed.read()


def command_line_errors(*, has_posix: bool) -> Iterator[str]:
    """Run ``mbm`` in an empty CM_HOME, where no server runs; yield what differs."""
    expected: dict[tuple[str, ...], tuple[int, str]] = {
        ("--version",): (0, "mbm "),
        ("--help",): (0, "usage: mbm"),
        ("board-list",): (3, "No server"),
        ("board-scan", "--json"): (0, "["),
        ("server-stop",): (3, "No local server"),
        ("server-restore", "none.tar"): (2, "No such file"),
        ("flash", "--port", "none"): (3, "No server"),
    }
    if not has_posix:
        expected |= {arguments: (1, text) for arguments, text in REFUSALS.items()}
    for arguments, (status, text) in expected.items():
        yield from mbm_errors(status, text, arguments)


def mbm_errors(status: int, text: str, arguments: Sequence[str]) -> Iterator[str]:
    """Run ``mbm``; yield what differs from an exit status, and a part of what it prints."""
    try:
        found, printed = run_mbm(*arguments)
    except Exception:
        yield f"mbm {' '.join(arguments)}\n{traceback.format_exc()}"
        return
    if found != status or text not in printed:
        yield f"mbm {' '.join(arguments)}: exit status {found}\n{printed}"


def verb_errors(target: str) -> Iterator[str]:
    """Run verbs with the boards of a target, in the working directory; yield what differs.

    Each is an exit status, and a part of what it prints: all verbs but those of REFUSALS and of
    ``command_line_errors``.
    """
    Path("app").mkdir()
    Path("app/app.py").write_text("print('app')\n", encoding="utf-8")
    Path("small.py").write_text("WEIGHT = 7\n", encoding="utf-8")
    Path("fleet.toml").write_text(
        f'[side]\ntarget = "{target}"\napp = "app"\n[side.rollout]\nwaves = ["100%"]\n',
        encoding="utf-8",
    )
    here = Path.cwd()
    verbs: list[tuple[int, str, tuple[str, ...]]] = [
        (0, "42", ("board-execute", target, "-c", "6 * 7")),
        (0, target, ("board-list",)),
        (0, "MicroPython", ("board-info", target)),
        (0, "side=callers", ("board-label", target, "side=callers")),
        (0, "written", ("board-upload", target, str(here / "small.py"), ":")),
        (0, "WEIGHT = 7", ("board", target, "cat", ":small.py")),
        (0, "-- small.py", ("board", target, "tree")),
        (0, "", ("board-download", target, ":small.py", str(here / "fetched.py"))),
        (0, "app.py", ("board-sync", target, "app", ":lib/side", "--delete")),
        (0, "small", ("board-install", target, str(here / "small.py"))),
        (0, "small", ("board-packages", target)),
        (0, "", ("board", target, "set", "interval", "30")),
        (0, "interval = 30", ("board", target, "settings")),
        (0, "", ("board-logs", target, "--since", "1h")),
        (0, "jobs to", ("board-history", target, "--export", str(here / "history.ipynb"))),
        (0, "6 * 7", ("board-history", target, "--since", "1h")),
        (0, "values", ("board-samples", target, "--since", "1h", "--csv", str(here / "a.csv"))),
        (0, "values", ("board-samples", target, "--since", "1h", "--parquet", "a.parquet")),
        (0, "", ("board-export", str(here / "boards.csv"), "--target", target)),
        (0, "", ("board-import", "boards.csv", "--dry-run")),
        (0, "", ("board-reserve", target, "5m")),
        (0, "", ("board-release", target)),
        (0, "app.py", ("fleet-plan", "fleet.toml", "-o", str(here / "saved.plan"))),
        (4, "", ("fleet-plan", "fleet.toml", "--check")),
        (0, "", ("fleet-apply", str(here / "saved.plan"), "--yes")),
        (0, "side", ("fleet-status",)),
        (0, "side", ("fleet-abort", "side")),
        (0, "side", ("fleet-history",)),
        (1, "firmware", ("board-upgrade-firmware", target, "1.29.0")),
        (0, "", ("job-list", target)),
        (0, "", ("token-list",)),
        (0, "", ("secret-list",)),
        (0, "board-execute", ("completion", "bash")),
        (0, "up", ("server-status",)),
        (0, "1 connected", ("fleet-health",)),
        (0, "token-", ("audit",)),
        (0, "", ("fleet-drift",)),
        (0, "not upgraded: small", ("board-upgrade", target)),
        (0, "removed", ("board-uninstall", target, "small")),
        (1, target, ("board-upgrade-client", target)),
        (1, "no settings", ("board-config", target, "--watchdog", "60")),
        (1, "no job", ("job-show", "999999")),
        (1, "does not exist", ("job-interrupt", "999999")),
        (2, "needs a terminal", ("board-repl", target)),
        (2, "No such file", ("board-mount", target, "nothing")),
        (2, "nobody", ("board-watch", "nobody")),
        (2, "no JSON", ("dashboard", "--json")),
        *_administration_verbs(here),
    ]
    for status, text, arguments in verbs:
        if arguments[0] == "secret-set":
            sys.stdin = io.TextIOWrapper(io.BytesIO(b"not shown\n"))
        yield from mbm_errors(status, text, arguments)


def _administration_verbs(here: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """Return verbs about tokens, secrets, rollouts and boards that are not connected."""
    return [
        (0, "side-token", ("token-create", "side-token")),
        (0, "side-token", ("token-revoke", "side-token")),
        (0, "0 jobs", ("history-forget", "--token", "side-token")),
        (0, "side-secret", ("secret-set", "side-secret")),
        (0, "side-secret", ("secret-remove", "side-secret")),
        (0, "Wrote", ("board-enrol", "side-1", "-o", str(here / "side-1.json"))),
        (0, "side-2", ("board-rename", "side-1", "side-2")),
        (0, "side-2", ("board-rotate", "side-2")),
        (1, "password", ("fleet-wifi", "Network", "--target", "side-2", "--yes")),
        (0, "has begun", ("fleet-server", "new.example", "--target", "side-2", "--yes")),
        (0, "paused", ("fleet-pause", "@server")),
        (0, "running", ("fleet-resume", "@server")),
        (0, "aborted", ("fleet-abort", "@server")),
        (1, "no generation before", ("fleet-rollback", "--group", "side", "--yes")),
        (0, "Wrote", ("board-enrol", "side-3", "-o", str(here / "side-3.json"))),
        (0, "side-2", ("board-replace", "side-2", "side-3", "--yes")),
        (0, "removed", ("board-revoke", "side-2", "--yes")),
    ]


def main() -> None:
    """Print what failed; the exit status is 1 if anything did.

    With ``--boards TARGET``, also run verbs with these boards of the server that CM_URL and
    CM_TOKEN name.
    """
    has_posix = os.name == "posix" and "--take-away" not in sys.argv
    if "--take-away" in sys.argv:
        take_away()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as home:
        os.environ["CM_HOME"] = home
        os.chdir(home)
        if "--boards" in sys.argv:
            failures = [*verb_errors(sys.argv[sys.argv.index("--boards") + 1])]
        else:
            os.environ["CM_URL"] = NO_SERVER
            os.environ.pop("CM_TOKEN", None)
            Path(home, "backup.tar").touch()
            failures = [*import_errors(), *command_line_errors(has_posix=has_posix)]
        os.chdir(before)  # Windows removes no folder in which a process is
    print(*failures, sep="\n", end="" if not failures else "\n")
    print(f"callers' side: {len(failures)} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
