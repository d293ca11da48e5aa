"""``mbm fleet-wifi`` and ``mbm fleet-server`` on boards with the client of real chips."""

from __future__ import annotations

import getpass
import json
import re
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.board_fixtures import wait_online
from cm_server.rollouts.network_change import read_wifi
from tests.cloudmanager.chip import Chip
from tests.conftest import RunningServer, running_server

pytestmark = pytest.mark.timeout(180)
OLD, NEW = "the old one", "hunter2-is-new"


@pytest.fixture(autouse=True)
def _home(server: RunningServer):
    """Use the shared server's folder as CM_HOME."""


@pytest.fixture
def chip(tmp_path: Path):
    with Chip(tmp_path, air={"old net": OLD, "new net": NEW}) as chip:
        yield chip


@pytest.fixture
def person(monkeypatch):
    """Simulate a terminal with these lines as input."""
    lines: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda _: lines.pop(0))
    return lines


@pytest.fixture
def member(chip: Chip, mbm, person, server: RunningServer, fleet: Fleet):
    """A function that lets the chip join the fleet over Wi-Fi; it leaves at the end."""
    names: list[str] = []

    def join(name: str) -> None:
        chip.flash[0] = 0xE9
        chip.press_reset()
        person.append(OLD)
        address = f"127.0.0.1:{server.tcp_port}"
        words = ["--no-flash", "--name", name, "--wifi", "old net", "--server", address]
        done = mbm("flash", "--port", chip.port, *words)
        assert done.status == 0, done.err
        names.append(name)
        wait_online(fleet, [name])

    yield join
    for name in names:
        fleet.revoke(name)


def settings_of(fleet: Fleet, name: str) -> dict[str, Any]:
    """Return what the board has in /cm.json, and which files of a change are left."""
    code = """
import json, os
with open("/cm.json") as file:
    c = json.load(file)
{"wifi": c["wifi"], "port": c["tcp_port"], "left": [n for n in os.listdir("/") if "cm." in n]}
"""
    value = fleet[name].run(code, wait=20, timeout=10).value
    assert isinstance(value, dict)
    return value


def rollout_of(fleet: Fleet, group: str) -> dict[str, Any]:
    (found,) = [each for each in fleet.rollouts() if each["group"] == group]
    return found


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def test_wifi_changes_in_a_rollout_and_its_password_is_nowhere(
    member, mbm, fleet: Fleet, person, server: RunningServer
):
    member("wifi-1")
    person.append(NEW)
    done = mbm("fleet-wifi", "new net", "--target", "wifi-1", "--yes", "--watch")
    assert (done.status, done.err) == (0, "")
    first, waves, *_, last = done.out.splitlines()
    assert first == "Wi-Fi 'new net': 1 board (wifi-1)"
    assert waves == "  waves: 1"
    assert re.search("1 +proven +wifi-1", last)
    assert settings_of(fleet, "wifi-1") == {
        "wifi": [["new net", NEW]],
        "port": server.tcp_port,
        "left": ["cm.json"],
    }
    shown = mbm("fleet-status").out + mbm("fleet-history").out + mbm("audit").out
    shown += json.dumps([fleet.rollouts(), fleet.rollout_history(), fleet.jobs("wifi-1")])
    assert "Wi-Fi 'new net'" in shown
    assert NEW not in done.out + shown
    assert NEW not in "".join(path.read_text("utf-8", "replace") for path in logs(server.home))

    until(lambda: NEW not in shared_values(server.home), "the password stays in the store")
    refused = mbm("fleet-rollback", "--group", "@wifi")
    assert "network settings are not rolled back" in refused.err


def logs(home: Path) -> list[Path]:
    return [path for path in home.rglob("*.log") if path.is_file()]


def shared_values(home: Path) -> str:
    """Return all values in the store's table ``shared``."""
    with sqlite3.connect(f"file:{home / 'server.db'}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT name, value FROM shared").fetchall()
    connection.close()
    return repr(rows)


def test_networks_of_before_are_kept_on_request(member, fleet: Fleet):
    member("wifi-2")
    begun = fleet.change_wifi("new net", NEW, "wifi-2", keep=True, pause=0)
    assert begun["what"] == "Wi-Fi 'new net', besides the networks before"
    until(lambda: rollout_of(fleet, "@wifi")["state"] == "done", "it did not end")
    assert settings_of(fleet, "wifi-2")["wifi"] == [["new net", NEW], ["old net", OLD]]
    # The same again changes nothing more: the list does not grow.
    fleet.change_wifi("new net", NEW, "wifi-2", keep=True, pause=0)
    until(lambda: rollout_of(fleet, "@wifi")["state"] == "done", "it did not end again")
    assert settings_of(fleet, "wifi-2")["wifi"] == [["new net", NEW], ["old net", OLD]]


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_board_returns_from_a_network_that_is_not_there(member, fleet: Fleet):
    """A return for want of a link is unproven at first, and failed when it happens each time."""
    member("wifi-3")
    fleet.change_wifi("no such net", NEW, "wifi-3", pause=0)
    rollout = until(
        lambda: (found := rollout_of(fleet, "@wifi"))["boards"][0]["state"] == "unproven" and found,
        "it did not come back",
        120,
    )
    assert rollout["boards"][0]["why"] == "it came back with the old settings"
    assert settings_of(fleet, "wifi-3")["wifi"] == [["old net", OLD]]
    until(lambda: rollout_of(fleet, "@wifi")["state"] == "failed", "it goes on trying", 400)
    (board,) = rollout_of(fleet, "@wifi")["boards"]
    assert board["why"] == "it came back with the old settings, 3 times"


def test_boards_move_to_another_server(
    member, fleet: Fleet, server: RunningServer, tmp_path: Path, mbm, monkeypatch
):
    """The other server has a backup of this one, and a port of its own."""
    member("moved-1")
    backup = tmp_path / "fleet.tar"
    assert mbm("server-backup", str(backup)).status == 0
    home = tmp_path / "other"
    with monkeypatch.context() as patch:
        patch.setenv("CM_HOME", str(home))
        assert mbm("server-restore", str(backup)).status == 0
    with (
        running_server(home) as other,
        Fleet(other.url, (home / "token").read_text().strip()) as new_fleet,
    ):
        begun = fleet.change_server(
            "127.0.0.1", other.tcp_port, "moved-1", pause=0, health_timeout=2
        )
        assert begun["what"] == f"server 127.0.0.1:{other.tcp_port}"
        wait_online(new_fleet, ["moved-1"])
        rollout = until(
            lambda: (found := rollout_of(fleet, "@server"))["state"] == "done" and found, "not done"
        )
        (board,) = rollout["boards"]
        assert board["why"] == "it has left, and did not come back here"
        assert settings_of(new_fleet, "moved-1")["port"] == other.tcp_port
        new_fleet["moved-1"].reset(hard=True).raise_for_error()
        assert settings_of(new_fleet, "moved-1")["port"] == other.tcp_port, "it stays there"
        assert not fleet.boards("moved-1")[0]["connected_since"]


def test_rollout_of_network_settings_is_no_group_of_a_file(fleet: Fleet, boards, tmp_path: Path):
    fleet.change_server("127.0.0.1", 1, "demo-1", dry_run=True)
    path = tmp_path / "fleet.toml"
    path.write_text('["@wifi"]\ntarget = "demo-1"\nsettings = { a = 1 }\n')
    with pytest.raises(Exception, match="a group cannot begin with @"):
        fleet.plan(path)
    with pytest.raises(TypeError, match="no keyword 'paus'"):
        fleet.change_wifi("x", "y", paus=3)  # type: ignore[call-arg]


def test_what_is_shown_of_a_change_has_no_password():
    change = read_wifi({"ssid": "new net", "password": NEW})
    assert NEW not in repr(change) + json.dumps(change.manifest())
