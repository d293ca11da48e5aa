"""Fixtures that run `mbm`, in this process or in a child, and set CM_HOME."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cloudmanager import config, local_server
from cloudmanager.cli import main

from .bridges import bridged_board, bridged_microbit, bridged_unix, chips

__all__ = ["bridged_board", "bridged_microbit", "bridged_unix", "chips"]

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
