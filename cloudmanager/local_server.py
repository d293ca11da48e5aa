"""Start and stop the local server's process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import config
from .protocol.errors import ServiceError

START_SECONDS = 15.0  # a start takes half a second; a busy machine may take a few
STOP_SECONDS = 10.0


class StartOutcome(NamedTuple):
    """What a start found or made."""

    url: str  # what this machine dials
    already: bool  # whether the server ran before
    listens: str = ""  # where it listens, if it was started now
    notes: tuple[str, ...] = ()  # what it found, such as a restore that was broken off


class Saved(NamedTuple):
    """What a backup holds, or gave back."""

    files: list[str]
    notes: list[str]  # what else is to be known, a sentence each


def start(
    host: str = config.DEFAULT_HOST,
    tcp_port: int = config.DEFAULT_TCP_PORT,
    options: Sequence[str] = (),
) -> StartOutcome:
    """Start the local server in the background, unless it runs; return when it answers.

    Args:
        host: the address that it listens on.
        tcp_port: where there.
        options: more options of ``python -m cm_server``.

    Raises:
        ServiceError: it did not start: the TCP port is taken, for example.
    """
    state = config.read_server_state(config.home_folder())
    if state is not None:
        return StartOutcome(str(state["url"]), already=True)
    command = [sys.executable, "-m", "cm_server", "--listen", host, "--port", str(tcp_port)]
    command += options
    home = config.make_home_folder()
    with (home / "server.err").open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C in this terminal is not meant for it
            cwd="/",
            env={**os.environ, "CM_HOME": str(home)},  # it may have been given as a relative path
        )
    said = _await_ready(process)
    process.returncode = 0  # it lives on by design: no warning about that; stop() reaps it
    notes = tuple(map(str, said.get("notes", ())))
    return StartOutcome(str(said["url"]), already=False, listens=str(said["listens"]), notes=notes)


def stop() -> str | None:
    """Stop the local server; return the address that it had, None when none ran.

    Raises:
        ServiceError: it is still there after ``STOP_SECONDS``.
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
            why = f"The server (process {pid}) does not stop; `kill -9 {pid}` ends it."
            raise ServiceError(why, str(log_file()))
        time.sleep(0.02)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return str(state["url"])


def back_up(path: Path) -> Saved:
    """Save all that makes the local server what it is into a file; it may run meanwhile.

    Raises:
        ServiceError: it cannot be done; the message says why.
    """
    return _run_backup("save", path)


def restore(path: Path) -> Saved:
    """Make the local server what it was at a backup; it must not run.

    Raises:
        ServiceError: it cannot be done; the message says why.
    """
    return _run_backup("load", path)


def _run_backup(action: str, path: Path) -> Saved:
    command = [sys.executable, "-m", "cm_server.store.backup", action, str(path.absolute())]
    home = config.make_home_folder()
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd="/",
        env={**os.environ, "CM_HOME": str(home)},
        check=False,
    )
    said = _parse_json_line(ran.stdout)
    if "files" not in said:
        last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ServiceError(str(said.get("error") or f"It failed: {last}"))
    return Saved(list(map(str, said["files"])), list(map(str, said.get("notes", ()))))


def log_file() -> Path:
    """Return where the local server writes its log."""
    return config.home_folder() / "server.log"


def _await_ready(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Return what the new process says: the addresses that it listens on."""
    assert process.stdout is not None
    with process.stdout as pipe:
        ready, _, _ = select.select([pipe], [], [], START_SECONDS)
        said = _parse_json_line(pipe.readline()) if ready else {}
    if "url" not in said:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        why = said.get("error") or _start_failure(answered=bool(ready))
        raise ServiceError(str(why), str(log_file()))
    return said


def _parse_json_line(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _start_failure(*, answered: bool) -> str:
    with contextlib.suppress(OSError):
        lines = (
            (config.home_folder() / "server.err").read_text(errors="replace").strip().splitlines()
        )
        if lines:
            return f"The server did not start: {lines[-1]}"
    late = f"The server did not answer within {START_SECONDS:g} s"
    return "The server ended before it listened" if answered else late
