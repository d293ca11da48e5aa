"""The first session of a new user with `mbm`, in a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

#: Runs `mbm` with another default port, because a server may run on this machine's default one.
MBM = """
import socket
from cloudmanager import config
with socket.create_server(("127.0.0.1", 0)) as closed:
    config.DEFAULT_TCP_PORT = closed.getsockname()[1]
from cloudmanager.cli import main
main()
"""
Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mbm(tmp_path: Path) -> Iterator[Shell]:
    """Return a function that runs `mbm`; it returns status, standard output, standard error."""
    home = tmp_path / "home"
    environment = {**os.environ, "CM_HOME": str(home), "COLUMNS": "100", "NO_COLOR": "1"}
    for name in ("CM_URL", "CM_TOKEN"):
        environment.pop(name, None)

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        command = [sys.executable, "-c", MBM, *arguments]
        with (tmp_path / "stderr").open("w+") as err:
            done = subprocess.run(
                command,
                input=stdin,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                timeout=20,
                check=False,
            )
            err.seek(0)
            errors = err.read()
        assert 'Traceback (most recent call last):\n  File "/' not in errors
        return done.returncode, done.stdout, errors

    yield run
    run("simulate", "--stop")
    run("server-stop")


def test_first_session_of_a_new_user(mbm: Shell, tmp_path: Path):
    status, out, err = mbm("board-list")
    assert (status, out) == (3, "")
    assert "mbm server-start" in err

    status, out, _ = mbm("server-start", "--port", "0")
    assert status == 0
    url = out.split()[-1]
    assert url.startswith("http://127.0.0.1:")
    assert mbm("server-start", "--port", "0")[1] == f"The server is already running at {url}\n"

    status, out, _ = mbm("simulate", "3", "--name", "shop", "--detach")
    assert (status, out) == (0, f"shop-[1-3] joined {url}\n")

    status, out, _ = mbm("board-list")
    assert status == 0
    assert all(name in out for name in ("shop-1", "shop-2", "shop-3", "idle"))
    boards = json.loads(mbm("board-list", "--json")[1])
    assert [(b["name"], b["state"]) for b in boards] == [(f"shop-{n}", "idle") for n in (1, 2, 3)]
    assert {"platform", "version"} <= set(boards[0])

    status, out, _ = mbm("board-execute", "shop-[1-3]", "-c", "print('hello')\n6*7")
    assert status == 0
    assert out.count("hello") == 1  # equal output of three boards is one block
    assert "42" in out
    assert "shop-[1-3]" in out

    (tmp_path / "cell.py").write_text("import sys\nsys.platform\n")
    status, out, _ = mbm("board-execute", "shop-1", str(tmp_path / "cell.py"), "--json")
    result = json.loads(out)["shop-1"]
    assert (status, result["status"], result["value"]) == (0, "ok", "linux")
    assert set(result) == {"status", "stdout", "value", "error", "elapsed"}

    assert mbm("board-label", "shop-[1-2]", "room=window")[0] == 0
    status, out, _ = mbm("board-execute", "room=window", "--json", stdin="'window seat'")
    assert (status, sorted(json.loads(out))) == (0, ["shop-1", "shop-2"])

    status, out, err = mbm("board-execute", "shop-2", "-c", "1 // 0")
    assert status == 1
    assert "ZeroDivisionError" in out + err

    status, _, err = mbm("board-execute", "shop-4", "-c", "1")
    assert (status, "Did you mean shop-" in err) == (2, True)
    status, _, err = mbm("board-execute", "shop-1", "-c", "print('x'")
    assert status == 2
    assert "line 1" in err
    assert "^" in err

    status, out, _ = mbm("job-list")
    assert (status, "shop-2" in out, "error" in out) == (0, True, True)

    status, out, _ = mbm("server-stop")
    assert (status, out) == (0, f"The server at {url} has stopped.\n")
    assert mbm("server-status")[0] == 3

    # The boards keep trying to reconnect; the user who started them stops them.
    status, out, _ = mbm("simulate", "--stop")
    assert (status, out.partition(". ")[0]) == (0, "Stopped shop-[1-3]")
    home = str(tmp_path)
    left = [
        process.pid
        for process in psutil.process_iter()
        if process.pid != os.getpid() and home in " ".join(_environment(process))
    ]
    assert left == []


def test_detached_boards_close_the_terminals_pipes(mbm: Shell, tmp_path: Path):
    mbm("server-start", "--port", "0")
    command = [sys.executable, "-c", MBM, "simulate", "1", "--detach"]
    environment = {**os.environ, "CM_HOME": str(tmp_path / "home")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as detaching:
        assert detaching.wait(10) == 0
        detaching.communicate(timeout=1)  # returns when no process has the pipe open


def _environment(process: psutil.Process) -> list[str]:
    try:
        return [process.environ().get("CM_HOME", "")]
    except (psutil.Error, OSError):
        return []
