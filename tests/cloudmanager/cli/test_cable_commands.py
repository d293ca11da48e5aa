"""``mbm flash`` and ``board-scan`` from the arguments to the output."""

from __future__ import annotations

import getpass
import os
import signal
import sys
import types

import pytest

from cloudmanager.cable import bridge, serial_ports
from cloudmanager.cable.flash import FlashOptions
from cloudmanager.cable.serial_ports import BoardRepl, SerialPort
from cloudmanager.cli import cable_commands, flash_main
from cloudmanager.client.fleet import Fleet
from tests.cloudmanager import images
from tests.cloudmanager.chip import Chip
from tests.cloudmanager.conftest import process
from tests.conftest import RunningServer


@pytest.fixture(autouse=True)
def _home(server: RunningServer):
    """Use the shared server's folder as CM_HOME."""


@pytest.fixture
def chip(tmp_path):
    with Chip(tmp_path, air={"lab 'x'": 'it\'s "new"'}) as chip:
        chip.hold_boot()
        yield chip


@pytest.fixture
def no_ports(monkeypatch):
    monkeypatch.setattr(serial_ports, "find_serial_ports", list)


@pytest.fixture
def typed_lines(monkeypatch):
    """The lines that a user types at a terminal, passwords too."""
    lines: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda _: lines.pop(0))
    monkeypatch.setattr("builtins.input", lambda _: lines.pop(0))
    return lines


def record_flash_calls(monkeypatch):
    """Replace flashing; return the list to which the ports and options of each call are added."""
    calls: list[tuple[list[str], FlashOptions]] = []

    def flash(ports, options, *_):
        calls.append((ports, options))
        return []

    monkeypatch.setattr(cable_commands, "flash_and_join", flash)
    return calls


def test_flash_turns_a_new_board_into_a_member_that_ran_a_cell(
    chip, server: RunningServer, fleet: Fleet, tmp_path
):
    done = process(
        *["flash", "--port", chip.port, "--firmware", str(images.small(tmp_path))],
        *["--name", "shelf-[1-9]", "--label", "room=lab"],
    )
    assert done.status == 0, done.err
    assert done.out == f"{chip.port} joined the fleet as shelf-1 and ran a cell.\n"
    assert f"{chip.port}  firmware  the chip is ESP8266\n" in done.err
    assert f"{chip.port}  write     written and verified\n" in done.err
    assert done.err.endswith("shelf-1 is in the fleet and ran a cell\n")
    assert fleet["shelf-1 & room=lab"].run("6 * 7").value == 42
    scan = process("board-scan", chip.port, "--json")
    (row,) = scan.json
    assert (row["name"], row["platform"], row["error"]) == ("shelf-1", "esp8266", "")
    chip.stop = lambda: None  # the fixture must not stop it again
    Chip.stop(chip)  # the board must not be connected when the fleet removes it


def test_failure_of_flash_is_in_json_and_status_is_1(chip, mbm, tmp_path):
    wrong = tmp_path / "fw.bin"
    wrong.write_bytes(images.esp32())
    done = mbm("flash", "--port", chip.port, "--firmware", str(wrong), "--json")
    assert (done.status, done.err) == (1, "")
    outcome = done.json[chip.port]
    assert (outcome["status"], outcome["step"], outcome["chip"]) == ("error", "firmware", "ESP8266")


@pytest.mark.parametrize(
    ("board", "problem"),
    [
        ("COM3", "COM3: The port does not exist"),
        ("com12", "com12: The port does not exist"),
        (r"\\.\COM12", r"\\.\COM12: The port does not exist"),
        ("/dev/ttyUSB99", "/dev/ttyUSB99: The port does not exist"),
        ("compost-1", "No board is called compost-1"),
    ],
)
def test_port_and_name_of_a_board_are_distinguished(mbm, board: str, problem: str):
    done = mbm("board-config", board, "--watchdog", "60")
    assert done.status != 0
    assert problem in done.err


def test_failure_of_flash_is_printed_after_the_port(mbm):
    done = mbm("flash", "--port", "/dev/ttyUSB99", "--no-flash")
    assert (done.status, done.out) == (1, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("mbm: /dev/ttyUSB99: The port does not exist.")


def test_wifi_password_is_asked_for_and_never_shown(chip, mbm, typed_lines, monkeypatch):
    calls = record_flash_calls(monkeypatch)
    typed_lines.append("it's secret")
    done = mbm("flash", "--port", chip.port, "--wifi", "home", "--server", "10.0.0.7")
    assert done.status == 0
    options = calls[0][1]
    assert (options.wifi, options.server[0]) == ([("home", "it's secret")], "10.0.0.7")
    assert "secret" not in repr(options) + done.out + done.err


def test_wifi_password_is_read_from_the_keyring(chip, mbm, typed_lines, monkeypatch):
    calls = record_flash_calls(monkeypatch)
    kept = {("cloudmanager wifi", "home"): "it's kept"}
    keyring = types.SimpleNamespace(get_password=lambda *of: kept.get(of))
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    mbm("flash", "--port", chip.port, "--wifi", "home", "--server", "10.0.0.7")
    assert calls[0][1].wifi == [("home", "it's kept")]


def test_wifi_password_without_a_terminal_is_an_error(chip, mbm, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    done = mbm("flash", "--port", chip.port, "--wifi", "home", "--server", "10.0.0.7")
    assert done.status == 1
    assert "Cannot ask for the password of 'home': not a terminal" in done.err


def test_unclosed_range_of_names_is_refused(mbm, no_ports):
    done = mbm("flash", "--name", "lab-[1-3")
    assert (done.status, "lab-[1-3\n" in done.err) == (2, True)


def test_no_board_found_hints_at_charging_cables(mbm, no_ports):
    done = mbm("flash")
    assert done.status == 1
    assert "No board was found on a cable. Plug one in; some cables only charge." in done.err
    assert "only charge" in mbm("board-scan").out


def test_several_boards_need_a_choice_or_an_option(mbm, monkeypatch, typed_lines):
    found = [SerialPort("/dev/ttyUSB0", "CP2102"), SerialPort("/dev/ttyUSB1", "CH340")]
    monkeypatch.setattr(serial_ports, "find_serial_ports", lambda: found)
    calls = record_flash_calls(monkeypatch)
    typed_lines += ["0", "x", "2"]
    assert "/dev/ttyUSB1  CH340" in mbm("flash").err
    mbm("flash", "--all")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert "Several boards were found: /dev/ttyUSB0, /dev/ttyUSB1" in mbm("flash").err
    assert [ports for ports, _ in calls] == [
        ["/dev/ttyUSB1"],
        ["/dev/ttyUSB0", "/dev/ttyUSB1"],
    ]


def test_wifi_with_a_server_on_loopback_is_refused(server: RunningServer, typed_lines, mbm, chip):
    before = bytes(chip.flash)
    # It fails before it asks for the password: no lines are typed.
    done = mbm("flash", "--port", chip.port, "--wifi", "home")
    assert (done.status, done.out) == (1, "")
    assert "The server listens on this machine only: boards cannot reach it over Wi-Fi." in done.err
    assert "`mbm server-start --listen 0.0.0.0`" in done.err
    assert bytes(chip.flash) == before


def test_board_connects_to_the_given_address_or_the_servers(
    server: RunningServer, typed_lines, mbm, monkeypatch
):
    calls = record_flash_calls(monkeypatch)
    mbm("flash", "--port", "p")
    mbm("flash", "--port", "p", "--server", "lab.example")
    mbm("flash", "--port", "p", "--server", "lab.example:443")
    assert [options.server for _, options in calls] == [
        ("127.0.0.1", server.tcp_port),
        ("lab.example", server.tcp_port),
        ("lab.example", 443),
    ]


def test_board_scan_restarts_the_program_it_interrupted(chip, mbm):
    chip.flash[0] = 0xE9
    chip.press_reset()
    with BoardRepl(chip.port) as repl:
        repl.await_prompt(60)
        repl.put_file("/main.py", b"print('begun')\nwhile True: pass")
        chip.said.clear()
        repl.restart()
        chip.hear(b"begun")
    chip.said.clear()
    done = mbm("board-scan", chip.port)
    assert f"{chip.port}  MicroPython 1." in done.out
    chip.hear(b"begun")


def test_board_scan_reports_a_blank_board(chip, mbm, monkeypatch):
    monkeypatch.setattr(cable_commands, "SCAN_SECONDS", 0.5)
    assert "No REPL answers" in mbm("board-scan", chip.port).out


def test_missing_libraries_are_reported_with_the_install_command(mbm, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpremote", None)
    done = mbm("board-scan")
    assert done.status == 1
    assert "pip install 'cloudmanager[flash]'" in done.err


def test_mbm_flash_is_a_separate_command(nobody, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        flash_main(["--port", os.devnull])
    assert caught.value.code == 3
    assert "No server at" in capsys.readouterr().err


# Bridge


def test_bridge_without_boards_says_that_it_waits(no_ports, mbm, monkeypatch):
    def press_ctrl_c() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bridge, "find_serial_ports", list)
    monkeypatch.setattr(signal, "pause", press_ctrl_c)
    done = mbm("bridge")
    assert (done.status, done.out) == (130, "")
    assert done.err == (
        "No board was found on USB: waiting until one is plugged in. "
        "Press Ctrl-C to stop the bridge.\n"
    )
