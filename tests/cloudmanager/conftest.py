"""Fixtures that run `mbm`, in this process or in a child, and set CM_HOME."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudmanager import config, local_server
from cloudmanager.cli import main

from .bridges import bridged_board, bridged_microbit, bridged_unix, chips

__all__ = ["bridged_board", "bridged_microbit", "bridged_unix", "chips"]

NOBODY = 65534  # the user id that owns nothing
WAIT = 25.0  # seconds that anything here may take on a busy machine
MBM = str(Path(sys.executable).parent / "mbm")


class Run:
    """The outcome of a run of `mbm`."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err
        assert "Traceback" not in err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def mbm(capsys):
    """Run `mbm` in this process."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        out, err = capsys.readouterr()
        return Run(caught.value.code, out, err)

    return run


def process(*arguments, **more):
    """Run `mbm` as a child process."""
    command = [MBM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, **more)
    return Run(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def background(*arguments):
    """Start an `mbm` that keeps running; it is ended after the test."""
    pipe = subprocess.PIPE
    with subprocess.Popen([MBM, *arguments], text=True, stdout=pipe, stderr=pipe) as begun:
        try:
            yield begun
        finally:
            if begun.poll() is None:
                begun.kill()


@pytest.fixture
def unreadable() -> Iterator[Callable[..., None]]:
    """What makes files and folders unreadable until the test ends; also for root."""
    locked: list[Path] = []

    def lock(*paths: Path) -> None:
        locked.extend(paths)
        for path in paths:
            path.chmod(0)
        if os.geteuid() == 0:
            for folder in {parent for path in paths for parent in path.parents}:
                assert folder.stat().st_mode & 0o001, f"{folder} is not for everybody"
            os.seteuid(NOBODY)

    yield lock
    if os.getuid() == 0:
        os.seteuid(0)
    for path in locked:
        path.chmod(0o700)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this machine may read, unlike ``tmp_path``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """A CM_HOME without a server; one that a test starts is stopped."""
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    yield tmp_path
    local_server.stop()


@pytest.fixture
def nobody(own_home, monkeypatch):
    """Make sure that no server is found, even if one listens at the default address."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        tcp_port = closed.getsockname()[1]
    monkeypatch.setattr(config, "DEFAULT_TCP_PORT", tcp_port)
    return f"http://127.0.0.1:{tcp_port}"
