"""The bridge: a unix-port REPL on a pty and a micro:bit under QEMU as members of the fleet."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path

import pytest

from cloudmanager.cable import bridge as bridging
from cloudmanager.cable import raw_repl
from cloudmanager.cable.bridge import Bridge
from cloudmanager.cable.serial_ports import SerialPort
from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.board_fixtures import wait_online
from tests.cloudmanager.bridges import bridged
from tests.cloudmanager.conftest import background
from tests.conftest import RunningServer


def test_fresh_cell_has_no_earlier_variables(bridged_board):
    bridged_board.run("gone = 1").raise_for_error()
    (result,) = bridged_board.run("gone", fresh=True, timeout=20).values()
    assert result.error.ename == "NameError"


def test_unix_board_is_a_board_like_any_other(bridged_unix):
    (facts,) = bridged_unix.info()
    assert (facts["platform"], facts["client"], facts["state"]) == ("esp8266", "bridge 0.1", "idle")
    assert facts["mpy"].startswith("6")


def test_microbit_reports_its_free_heap(bridged_microbit):
    (facts,) = bridged_microbit.info()
    assert (facts["platform"], facts["version"]) == ("microbit", "1.9.2")
    assert 7_000 < facts["heap"] < 10_000
    (result,) = bridged_microbit.run("list(range(5000))").values()
    assert result.error.ename == "MemoryError"


# Plugging and unplugging


def test_plugged_boards_join_and_unplugged_boards_leave(chips, fleet: Fleet, monkeypatch):
    ports: list[SerialPort] = []
    monkeypatch.setattr(bridging, "find_serial_ports", lambda: ports)
    monkeypatch.setattr(bridging, "PORT_POLL_SECONDS", 0.05)
    chip = chips()
    with bridged(fleet, [], "hot-1") as events:
        ports.append(SerialPort(chip.port, ""))
        wait_online(fleet, ["hot-1"])
        assert fleet["hot-1"].run("6 * 7").value == 42
        assert events == [(chip.port, "hot-1 is in the fleet")]


def test_board_reconnects_after_a_power_cut(chips, fleet: Fleet, monkeypatch):
    monkeypatch.setattr(bridging, "PROMPT_SECONDS", 1)
    monkeypatch.setattr(raw_repl, "UNRESPONSIVE_SECONDS", 1)
    chip = chips()
    with bridged(fleet, [chip.port], "power-1"):
        job = fleet["power-1"].submit("while True: pass", timeout=1)
        chip.power_off()
        assert job.wait(20)
        (result,) = job.results(1).values()
        assert result.status in ("lost", "timeout")
        chip.press_reset()
        wait_online(fleet, ["power-1"])
        (result,) = fleet["power-1"].run("6 * 7", wait=20, timeout=10).values()
        assert result.value == 42


def test_reset_between_cells_is_noticed(chips, fleet: Fleet, monkeypatch):
    """The port stays open, as that of a board with a USB bridge; RESET costs no cell."""
    monkeypatch.setattr(bridging, "PORT_POLL_SECONDS", 0.05)
    chip = chips()
    with bridged(fleet, [chip.port], "button-1"):
        fleet["button-1"].run("kept = 1").raise_for_error()
        (before,) = fleet["button-1"].info()
        chip.press_reset()
        deadline = time.monotonic() + 10
        while True:
            (now,) = fleet["button-1"].info()
            if now["connected_since"] not in (None, before["connected_since"]):
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (result,) = fleet["button-1"].run("kept", timeout=10).values()
        assert "NameError" in result.traceback


def test_known_board_gets_the_requested_name(chips, fleet: Fleet):
    chip = chips()
    with Bridge(fleet, [chip.port], ["first-name"], lambda *_: None):
        wait_online(fleet, ["first-name"])
        (before,) = fleet["first-name"].info()
    with bridged(fleet, [chip.port], "second-name"):
        (after,) = fleet["second-name"].info()
        assert after["id"] == before["id"]


def test_outcome_of_a_cell_is_reported_after_a_lost_link(
    chips, start_server, tmp_path: Path, monkeypatch
):
    chip = chips()
    monkeypatch.setenv("CM_HOME", str(tmp_path / "home"))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(start_server(tmp_path / "home"))
        with Fleet() as fleet:
            stack.enter_context(Bridge(fleet, [chip.port], ["broken-1"], lambda *_: None))
            wait_online(fleet, ["broken-1"])
            job = fleet["broken-1"].submit("import time\ntime.sleep(1)\nopen('/mark', 'w').close()")
            while not job.jobs or job.jobs["broken-1"].state != "running":
                time.sleep(0.01)
            number = job.jobs["broken-1"].number
        server.process.kill()
        server.process.wait()
        stack.enter_context(start_server(tmp_path / "home", tcp_port=server.tcp_port))
        with Fleet() as fleet:
            wait_online(fleet, ["broken-1"])
            deadline = time.monotonic() + 10
            while (row := fleet.job(number))["status"] != "ok":
                assert time.monotonic() < deadline, row
                time.sleep(0.05)
            assert fleet["broken-1"].run("import os\n'mark' in os.listdir('/')").value is True


def test_bridged_board_uses_tls_and_changes_its_key(
    chips, start_server, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("CM_HOME", str(tmp_path / "home"))
    with (
        start_server(tmp_path / "home", "--listen", "0.0.0.0") as server,
        Fleet() as fleet,
        bridged(fleet, [chips().port], "tls-1"),
    ):
        assert server.url.startswith("https:")
        board = fleet["tls-1"]
        assert board.put(bytes(5000), ":x").value == 5000
        assert board.run("6 * 7").value == 42
        (old,) = json.loads((server.home / "bridge.json").read_text()).values()
        assert fleet.rotate("tls-1") == {"tls-1": "asked"}
        assert board.run("1", fresh=True, timeout=20).value == 1  # by a new link, with the new key
        (new,) = json.loads((server.home / "bridge.json").read_text()).values()
        assert new == {**old, "key": new["key"], "gen": 1}
        assert new["key"] != old["key"]


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["words", "json"])
def test_mbm_bridge_serves_until_ctrl_c(chips, fleet: Fleet, server: RunningServer, options):
    chip = chips()
    with background("bridge", chip.port, "--name", "shell-1", *options) as process:
        assert process.stdout
        said = process.stdout.readline()
        if options:
            assert json.loads(said) == {"port": chip.port, "says": "shell-1 is in the fleet"}
        else:
            assert said == f"{chip.port}  shell-1 is in the fleet\n"
        assert fleet["shell-1"].run("6 * 7").value == 42
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
