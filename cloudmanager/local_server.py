"""Starts, stops, backs up and restores the local server."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from . import config
from .protocol.errors import ServiceError
from .server_options import ServerOptions

START_SECONDS = 60.0  # a start takes half a second; on a small or busy machine, many more
STOP_SECONDS = 10.0
DEFAULT_OPTIONS = ServerOptions()


class StartOutcome(NamedTuple):
    """The outcome of a start.

    Attributes:
        url: the address to which this machine connects.
        already: whether the server was running before.
        listens: the address on which it listens, if it was started now.
        notes: remarks of the server, such as about an incomplete restore.
    """

    url: str
    already: bool
    listens: str = ""
    notes: tuple[str, ...] = ()


class Saved(NamedTuple):
    """The outcome of a backup or a restore.

    Attributes:
        files: the names of the files that were saved or restored.
        notes: remarks for the user, each a sentence.
    """

    files: list[str]
    notes: list[str]


class LaunchedServer:
    """A server that is starting.

    Args:
        process: its process; None if a server was running already.
        url: the address of that one.
    """

    def __init__(self, process: subprocess.Popen[bytes] | None, url: str = "") -> None:
        self._process = process
        self._url = url

    def wait(self) -> StartOutcome:
        """Wait until it listens.

        Raises:
            ServiceError: it did not start, for example because the TCP port is in use.
        """
        process = self._process
        if process is None:
            return StartOutcome(self._url, already=True)
        state = _await_ready(process)
        process.returncode = 0  # prevents Popen's ResourceWarning about a running child
        notes = tuple(map(str, state.get("notes", ())))
        return StartOutcome(
            str(state["url"]), already=False, listens=str(state["listens"]), notes=notes
        )


def launch(options: ServerOptions = DEFAULT_OPTIONS) -> LaunchedServer:
    """Start the local server in the background, unless it runs; do not wait for it.

    Args:
        options: of the server.

    Raises:
        CloudmanagerError: the server does not run on this system.
    """
    config.require_posix("The server needs")
    state = config.read_server_state(config.home_folder())
    if state is not None:
        return LaunchedServer(None, str(state["url"]))
    command = [sys.executable, "-m", "cm_server", *options.arguments()]
    home = config.make_home_folder()
    with config.open_private(home / "server.err") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # so that Ctrl-C in this terminal does not stop it
            cwd="/",
            env={**os.environ, "CM_HOME": str(home)},  # CM_HOME may be a relative path
        )
    return LaunchedServer(process)


def start(options: ServerOptions = DEFAULT_OPTIONS) -> StartOutcome:
    """Start the local server in the background, unless it runs; return when it listens.

    Args:
        options: of the server.

    Raises:
        ServiceError: it did not start, for example because the TCP port is in use.
        CloudmanagerError: the server does not run on this system.
    """
    return launch(options).wait()


def stop() -> str | None:
    """Stop the local server; return its URL, or None if it was not running.

    Raises:
        ServiceError: it still runs after ``STOP_SECONDS``.
    """
    state = config.read_server_state(config.home_folder())
    if state is None:
        return None
    pid = int(state["pid"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while config.read_server_state(config.home_folder()) is not None:
        if time.monotonic() > deadline:
            why = f"The server (process {pid}) does not stop; end it with `kill -9 {pid}`."
            raise ServiceError(why, str(log_file()))
        time.sleep(0.02)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return str(state["url"])


def back_up(path: Path, *, with_samples: bool = True) -> Saved:
    """Save the state of the local server to a file; the server may be running.

    Args:
        path: of the file.
        with_samples: whether it has the samples that are kept for days, too.

    Raises:
        OSError: the folder of the file does not exist.
        ServiceError: the backup failed; the message gives the reason.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    return _run_backup("save", path, *([] if with_samples else ["--without-samples"]))


def restore(path: Path) -> Saved:
    """Restore the state of the local server from a backup; the server must not be running.

    Raises:
        OSError: the file cannot be read.
        ServiceError: the restore failed; the message gives the reason.
    """
    with path.open("rb"):
        pass
    return _run_backup("load", path)


def _run_backup(action: str, path: Path, *flags: str) -> Saved:
    config.require_posix("The server needs")
    command = [sys.executable, "-m", "cm_server.store.backup", action, str(path.absolute()), *flags]
    home = config.make_home_folder()
    completed = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd="/",
        env={**os.environ, "CM_HOME": str(home)},
        check=False,
    )
    report = _parse_json_line(completed.stdout)
    if "files" not in report:
        last_line = completed.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ServiceError(str(report.get("error") or f"It failed: {last_line}"))
    return Saved(list(map(str, report["files"])), list(map(str, report.get("notes", ()))))


def log_file() -> Path:
    """Return the path of the local server's log."""
    return config.home_folder() / "server.log"


def _await_ready(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for the line of JSON that the new process prints when it listens, and return it.

    Raises:
        ServiceError: the process reported an error, ended, or printed nothing in time.
    """
    assert process.stdout is not None
    with process.stdout as pipe:
        ready, _, _ = select.select([pipe], [], [], START_SECONDS)
        report = _parse_json_line(pipe.readline()) if ready else {}
    if "url" not in report:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        why = report.get("error") or _start_failure(answered=bool(ready))
        raise ServiceError(str(why), str(log_file()))
    return report


def _parse_json_line(line: bytes) -> dict[str, Any]:
    """Return a JSON object, or {} if the line is not one."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _start_failure(*, answered: bool) -> str:
    """Return why the server did not start: the last line of its errors, if there is one."""
    with contextlib.suppress(OSError):
        lines = (
            (config.home_folder() / "server.err").read_text(errors="replace").strip().splitlines()
        )
        if lines:
            return f"The server did not start: {lines[-1]}"
    if answered:
        return "The server ended before it listened"
    return f"The server did not answer within {START_SECONDS:g} s"
