"""Fixtures that run `mbm`, in this process or in a child, and set CM_HOME."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudmanager import config, local_server
from cloudmanager.cli import main

from .bridges import bridged_board, bridged_microbit, bridged_unix, chips

__all__ = ["bridged_board", "bridged_microbit", "bridged_unix", "chips"]

WAIT = 60.0  # seconds that anything here may take on a busy machine
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


def set_root_override(enabled: bool) -> None:
    """Let this thread's root ignore the permissions of files, or not; see capabilities(7)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    override = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    data[0] = data[0] | (data[1] & override) if enabled else data[0] & ~override
    assert libc.capset(header, data) == 0


@pytest.fixture
def unreadable() -> Iterator[Callable[..., None]]:
    """What makes files and folders unreadable until the test ends; also for root, in Linux."""
    locked: list[Path] = []

    def lock(*paths: Path) -> None:
        locked.extend(paths)
        for path in paths:
            path.chmod(0)
        if os.geteuid() == 0:
            set_root_override(False)

    yield lock
    if os.geteuid() == 0:
        set_root_override(True)
    for path in locked:
        path.chmod(0o700)


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
