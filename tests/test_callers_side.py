"""The library, the magics, the kernel and ``mbm`` without POSIX."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cloudmanager.cli import command_line
from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.plugin import running_server

from . import callers_side
from .conftest import running_boards
from .wheel import ROOT


@pytest.mark.timeout(120)
def test_callers_side_imports_and_runs_without_posix():
    check([sys.executable, "-m", "tests.callers_side", "--take-away"], 0, "0 failures")


@pytest.mark.timeout(300)
def test_verbs_run_without_posix(tmp_path: Path):
    """A server of its own: what verbs about the whole fleet find is what this test has left."""
    with running_server(tmp_path / "home") as server:
        token = (server.home / "token").read_text(encoding="utf-8").strip()
        environment = {**os.environ, "CM_URL": server.url, "CM_TOKEN": token}
        command = [sys.executable, "-m", "tests.callers_side", "--take-away"]
        with Fleet(server.url, token) as fleet, running_boards(server, fleet, ["posixless-1"]):
            check([*command, "--boards", "posixless-1"], 0, "0 failures", environment)


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


def test_every_verb_runs_without_posix():
    """``callers_side`` names each verb of ``mbm`` where it runs it."""
    source = Path(callers_side.__file__).read_text(encoding="utf-8")
    verbs = next(
        list(action.choices)
        for action in command_line._make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    assert len(verbs) > 50
    assert [verb for verb in verbs if f'("{verb}"' not in source] == []
