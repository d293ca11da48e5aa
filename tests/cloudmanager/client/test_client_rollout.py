"""``client = "current"`` in a rollout: a real server, and a chip with the client of version 0.1."""

from __future__ import annotations

import os
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cloudmanager import board_client
from cloudmanager.board_client import client_paths
from cloudmanager.client import fleet_desired
from cloudmanager.client.fleet import Fleet
from tests.board.test_old_client import ARCHIVE
from tests.cloudmanager.chip import Chip
from tests.conftest import RunningServer, running_server

pytestmark = pytest.mark.timeout(240)
WAIT = 90.0  # seconds that anything here may take on a busy machine
FILE = """
[field]
target = "field-1"
app = "src"
client = "current"
[field.rollout]
waves = ["100%"]
health = "import app; assert app.VERSION == 1"
"""
LISTED = "import os\nsorted(os.listdir('/lib')), 'trial.mpy' in os.listdir('/lib/cm')"


class Field(NamedTuple):
    """A server, a link to it, and ``fleet.toml``."""

    server: RunningServer
    fleet: Fleet
    path: Path

    def apply(self) -> None:
        self.fleet.apply(self.fleet.plan(self.path))

    def board(self) -> dict[str, Any]:
        """Return the board as the newest rollout has it."""
        ((board,),) = [each["boards"] for each in self.fleet.rollouts()]
        return dict(board)

    def wait(self, *states: str) -> dict[str, Any]:
        until(lambda: self.board()["state"] in states, f"{states}: {self.fleet.rollouts()!r}")
        return self.board()


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def field(tmp_path: Path, mbm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    """A chip with the client of version 0.1, field-1, and its ``fleet.toml``."""
    home, source = tmp_path / "home", tmp_path / "old"
    zipfile.ZipFile(ARCHIVE).extractall(source)
    monkeypatch.setenv("CM_HOME", str(home))
    chip = Chip(tmp_path)
    chip.flash[0] = 0xE9
    chip.press_reset()
    try:
        with running_server(home) as server, Fleet() as fleet:
            with monkeypatch.context() as patched:
                patched.setattr(board_client, "client_source_folder", lambda: source / "mpy_client")
                done = mbm("flash", "--port", chip.port, "--no-flash", "--name", "field-1")
            assert done.status == 0, done.err
            assert fleet["field-1"].run(LISTED).value == (["cm", "cm_start.mpy"], False)
            (tmp_path / "src").mkdir()
            (tmp_path / "src/app.py").write_text("VERSION = 1\n")
            path = tmp_path / "fleet.toml"
            path.write_text(FILE)
            yield Field(server, fleet, path)
    finally:
        chip.stop()


def test_old_client_is_replaced_before_the_switch_and_a_broken_one_is_a_failure(
    field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fleet = field.fleet
    broken = tmp_path / "link.py"  # it is found before link.mpy
    broken.write_text("1 / 0\n")
    with monkeypatch.context() as patched:
        paths = {**client_paths(), "/lib/cm/link.py": broken}
        patched.setattr(fleet_desired, "client_paths", lambda: paths)
        assert "client 0.1, with other files (" in repr(fleet.plan(field.path))
        field.apply()
        failed = field.wait("failed", "proven")
    assert (failed["state"], failed["why"]) == (
        "failed",
        "client: the new client did not start; the old one was restored",
    )
    assert fleet["field-1"].run(LISTED, wait=WAIT).value[1] is False, "it has the old client"

    field.apply()
    field.wait("starting", "switching", "trial", "proven")
    os.kill(fleet.status()["pid"], signal.SIGKILL)
    with running_server(field.server.home, tcp_port=field.server.tcp_port):
        assert field.wait("failed", "proven")["state"] == "proven", repr(fleet.rollouts())
        listed = fleet["field-1"].run(LISTED, wait=WAIT).value
        assert listed == (["cm", "cm_start.mpy"], True)
        assert fleet["field-1"].run("import app; app.VERSION").value == 1
        assert fleet.plan(field.path).changed == 0
        assert fleet.health().findings == ()
