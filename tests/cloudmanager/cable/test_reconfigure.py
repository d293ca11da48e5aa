"""``mbm board-config``: change settings, over the serial port and over the link."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import sys
import time

import pytest

from cloudmanager.cli import cable_commands
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.testing.board_fixtures import wait_online
from tests.cloudmanager.chip import Chip
from tests.conftest import RunningServer


@pytest.fixture(autouse=True)
def _home(server: RunningServer):
    """Use the shared server's folder as CM_HOME."""


@pytest.fixture
def chip(tmp_path):
    with Chip(tmp_path, air={"lab 'x'": 'it\'s "new"'}) as chip:
        yield chip


@pytest.fixture
def person(monkeypatch):
    """Simulate a terminal with these lines as input."""
    lines: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda _: lines.pop(0))
    return lines


def member(chip, mbm, name):
    chip.flash[0] = 0xE9
    chip.press_reset()
    assert mbm("flash", "--port", chip.port, "--no-flash", "--name", name).status == 0


def settings_of(fleet, name):
    code = "import json\nwith open('/cm.json') as f:\n    c = json.load(f)\n"
    code += "c['wifi'], c.get('watchdog')"
    return fleet[name].run(code, wait=10, timeout=10).value


def back(fleet, name, before):
    wait_online(fleet, [name], since=before)


def test_settings_change_over_the_serial_port(chip, mbm, fleet: Fleet, person):
    member(chip, mbm, "set-1")
    person.append('it\'s "new"')
    before = time.time()
    done = mbm("board-config", chip.port, "--wifi", "lab 'x'")
    assert "If it cannot connect, it restores the old ones." in done.out
    back(fleet, "set-1", before)
    assert settings_of(fleet, "set-1") == ([["lab 'x'", 'it\'s "new"']], None)
    done = mbm("board-config", chip.port, "--name", "set-9")
    assert done.out == "Renamed the board to set-9.\n"
    assert "set-9" in {board["name"] for board in fleet.boards()}


def test_settings_change_over_the_link(chip, mbm, fleet: Fleet):
    member(chip, mbm, "set-2")
    before = time.time()
    done = mbm("board-config", "set-2", "--watchdog", "60", "--name", "set-8")
    assert done.out.startswith("set-2 is restarting with the new settings.")
    assert done.out.endswith("\nRenamed the board to set-8.\n")
    back(fleet, "set-8", before)
    assert settings_of(fleet, "set-8") == ([], 60)


def test_settings_wait_for_the_board(chip, mbm, fleet: Fleet):
    member(chip, mbm, "set-4")
    before = time.time()
    done = mbm("board-config", "set-4", "--watchdog", "70", "--when-online", "--expires", "2h")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("set-4: waits for the board until 20")
    back(fleet, "set-4", before)  # the restart before the cell
    deadline = time.monotonic() + 60
    watchdog = None
    while watchdog != 70:
        assert time.monotonic() < deadline
        with contextlib.suppress(CloudmanagerError):  # it restarts
            watchdog = settings_of(fleet, "set-4")[1]
        time.sleep(0.1)


def test_settings_that_cannot_wait_are_usage_errors(mbm, boards):
    for words, why in (
        (["/dev/ttyX0", "--watchdog", "60"], "is for boards of the fleet, not on a cable"),
        (["demo-1", "--watchdog", "60", "--name", "x"], "--name changes the fleet at once"),
    ):
        done = mbm("board-config", *words, "--when-online")
        assert (done.status, why in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "No setting to change was given"),
        (["--watchdog", "5"], "A watchdog of 5 s is too short"),
    ],
)
def test_invalid_settings_are_refused(mbm, options, why):
    done = mbm("board-config", "set-3", *options)
    assert (done.status, why in done.err) == (1, True)


def test_invalid_address_is_refused_before_a_board_is_changed(mbm, boards):
    for server in ("http://10.0.0.7", "10.0.0.7:x", "a/b", "u@h", "h:", ""):
        done = mbm("board-config", "demo-1", "--server", server)
        assert (done.status, "is not HOST or HOST:PORT" in done.err) == (2, True), server


def test_virtual_board_has_no_settings_to_change(mbm, boards, fleet: Fleet):
    done = mbm("board-config", "demo-1", "--watchdog", "60")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("mbm: demo-1: it has no settings to change: its client was not")
    assert not fleet["demo-1"].stat(":/cm.new").ok


def test_board_without_a_fleet_cannot_be_configured(chip, mbm):
    chip.flash[0] = 0xE9
    chip.press_reset()
    done = mbm("board-config", chip.port, "--watchdog", "60")
    assert "The board is not in a fleet. Add it: `mbm flash --no-flash`." in done.err


def test_static_address_and_country_are_written(chip, mbm, fleet: Fleet):
    member(chip, mbm, "static-1")
    before = time.time()
    options = ["--ip", "192.168.4.9/24,192.168.4.1", "--country", "de"]
    assert mbm("board-config", "static-1", *options).status == 0
    back(fleet, "static-1", before)
    code = "import json\nconfig = json.load(open('/cm.json'))\nconfig['ip'], config['country']"
    expected = ["192.168.4.9", "255.255.255.0", "192.168.4.1", "192.168.4.1"]
    assert fleet["static-1"].run(code).value == (expected, "DE")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("dhcp", []),
        ("10.0.0.5/8,10.0.0.1", ["10.0.0.5", "255.0.0.0", "10.0.0.1", "10.0.0.1"]),
        ("10.0.0.5/8,10.0.0.1,9.9.9.9", ["10.0.0.5", "255.0.0.0", "10.0.0.1", "9.9.9.9"]),
    ],
)
def test_static_address_is_read(text, address):
    assert cable_commands._parse_ip(text) == address


@pytest.mark.parametrize(
    "text", ["", "10.0.0.5", "10.0.0.5,10.0.0.1", "10.0.0.5/8", "10.0.0.5/24,10.0.1.1", "x/8,y"]
)
def test_wrong_static_address_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cable_commands._parse_ip(text)
