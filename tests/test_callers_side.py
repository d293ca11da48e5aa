"""The library, the magics, the kernel and ``mbm`` without POSIX."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from cloudmanager.client.fleet import Fleet

from .conftest import RunningServer, running_boards
from .wheel import ROOT


@pytest.mark.timeout(120)
def test_callers_side_imports_and_runs_without_posix():
    check([sys.executable, "-m", "tests.callers_side", "--take-away"], 0, "0 failures")


@pytest.mark.timeout(120)
def test_verbs_run_without_posix(server: RunningServer, fleet: Fleet):
    token = fleet.request("token-create", name="callers-side", role="admin")["token"]
    environment = {**os.environ, "CM_URL": server.url, "CM_TOKEN": token}
    command = [sys.executable, "-m", "tests.callers_side", "--take-away", "--boards", "posixless-1"]
    with running_boards(server, fleet, ["posixless-1"]):
        check(command, 0, "0 failures", environment)
    fleet.request("token-revoke", name="callers-side")


@pytest.mark.timeout(120)
def test_server_says_that_it_needs_posix():
    program = "import runpy, tests.callers_side; tests.callers_side.take_away(); "
    program += "runpy.run_module('cm_server', run_name='__main__')"
    check([sys.executable, "-c", program], 1, "The server needs Linux or macOS. On Windows,")


@pytest.mark.timeout(120)
def test_virtual_boards_say_that_they_need_posix():
    program = """
import pathlib, tests.callers_side
tests.callers_side.take_away()
from cloudmanager.virtual.virtual_boards import VirtualBoards
VirtualBoards([], ("127.0.0.1", 7), pathlib.Path("none")).start()
"""
    check([sys.executable, "-c", program], 1, "Virtual boards need Linux or macOS. On Windows,")


def check(
    command: list[str], status: int, text: str, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command in the repository; it must end with a status, and print a text."""
    ran = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment
    )
    printed = ran.stdout + ran.stderr
    assert (ran.returncode, text in printed) == (status, True), printed
