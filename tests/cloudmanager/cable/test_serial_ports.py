"""The REPL on a serial port (a real MicroPython on a pty), and ports that cannot be used."""

from __future__ import annotations

import errno

import pytest

from cloudmanager.cable import serial_ports
from cloudmanager.cable.serial_ports import BoardRepl
from cloudmanager.protocol.errors import CableError
from tests.cloudmanager.chip import Chip

STARTS = b"with open('/starts', 'a') as f:\n    n = f.write('x')\nprint('begun')\n"


@pytest.fixture(scope="module")
def chip(tmp_path_factory):
    """A chip that runs MicroPython; tests leave it at its REPL."""
    with Chip(tmp_path_factory.mktemp("chip")) as chip:
        chip.flash[0] = 0xE9
        chip.press_reset()
        yield chip


@pytest.fixture
def repl(chip):
    with BoardRepl(chip.port) as repl:
        repl.await_prompt(60)
        yield repl


def test_facts_of_a_board(repl):
    facts = repl.facts()
    assert facts["platform"] == "esp8266"
    assert facts["version"] >= "1.28"
    assert facts["mpy"] == 6


def test_board_without_a_fleet_has_no_identity(repl):
    assert repl.identity() == (None, None)


@pytest.mark.parametrize(
    "data", [b"", b"'quoted' \"twice\" \\ \r\n\x00\xff", bytes(range(256)) * 9]
)
def test_file_arrives_completely_and_is_not_sent_twice(repl, data):
    assert repl.put_file("/deep/er/x.bin", data) is True
    assert bytes(repl.transport.fs_readfile("/deep/er/x.bin")) == data
    assert repl.put_file("/deep/er/x.bin", data) is False


def test_error_quotes_the_boards_exception(repl):
    with pytest.raises(CableError, match="The board raised ZeroDivisionError"):
        repl.run("1/0")


def test_full_flash_is_reported(repl):
    repl.run(
        "f = open('/big', 'wb')\nfor _ in range(970):\n    n = f.write(bytes(1024))\nf.close()"
    )
    with pytest.raises(CableError, match=r"/more could not be written"):
        repl.put_file("/more", bytes(60_000))
    repl.run("import os\nos.remove('/big')\nos.remove('/more')")


@pytest.mark.parametrize(
    "program",
    ["while True: pass", "import time\nwhile True: time.sleep(1)", "while True: print(1)"],
)
def test_running_program_is_interrupted_and_started_again(chip, program):
    with BoardRepl(chip.port) as repl:
        repl.await_prompt(60)
        repl.put_file("/main.py", STARTS + program.encode())
        chip.said.clear()
        repl.restart()
        chip.hear(b"begun")
    with BoardRepl(chip.port) as repl:
        repl.await_prompt(60)
        assert repl.interrupted_program
        assert repl.run("print(open('/starts').read())").strip() == "x"
        chip.said.clear()
        repl.leave_raw_repl()
        chip.hear(b"begun")
    with BoardRepl(chip.port) as repl:
        repl.await_prompt(60)
        assert repl.run("print(open('/starts').read())").strip() == "xx"
        repl.run("import os\nos.remove('/main.py')\nos.remove('/starts')")


def test_board_at_its_prompt_is_not_restarted(chip, repl):
    repl.run("kept = 7")
    repl.leave_raw_repl()
    assert not repl.interrupted_program
    repl.await_prompt(60)
    assert repl.run("print(kept)").strip() == "7"


def test_missing_repl_is_an_error(tmp_path):
    with (
        Chip(tmp_path) as chip,
        BoardRepl(chip.port) as repl,
        pytest.raises(CableError, match="No REPL answers within 1 s"),
    ):
        repl.await_prompt(1)


def test_missing_port_is_an_error():
    with pytest.raises(CableError, match=r"The port does not exist.*mbm board-scan.*only charge"):
        serial_ports.check_port("/dev/ttyUSB99")


def test_device_that_is_no_serial_port_is_an_error():
    with pytest.raises(CableError, match="This is not a serial port.*mbm board-scan"):
        serial_ports.check_port("/dev/null")


def test_busy_port_is_an_error(chip, repl):
    with pytest.raises(CableError, match="Another program has the port open"):
        serial_ports.check_port(chip.port)


def test_error_of_a_forbidden_port_names_the_group():
    error = serial_ports._port_error(
        "/dev/null", PermissionError(errno.EACCES, "Permission denied")
    )
    assert "has no permission to open the port" in str(error)
    assert "usermod -aG" in str(error)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("PermissionError(13, 'Access is denied.', None, 5)", "Another program has the port open"),
        ("PermissionError(13, 'Zugriff verweigert', None, 5)", "Another program has the port open"),
        (
            "FileNotFoundError(2, 'The system cannot find the file specified.', None, 2)",
            "The port does not exist",
        ),
        ("OSError(22, 'The parameter is incorrect.', None, 87)", "The port cannot be opened"),
    ],
)
def test_errors_of_windows_are_explained(text: str, problem: str):
    # What pyserial's serialwin32.py raises: SerialException, without errno.
    import serial

    error = serial.SerialException(f"could not open port 'COM3': {text}")
    found = str(serial_ports._port_error("COM3", error))
    assert problem in found
    assert "usermod" not in found


def test_pty_has_no_control_lines(chip):
    assert serial_ports.check_port(chip.port) is False


def test_file_that_differs_on_the_board_is_an_error(repl, monkeypatch):
    run = repl.transport.exec
    monkeypatch.setattr(repl.transport, "exec", lambda code: run(code.replace("MTIzNDU=", "MTIz")))
    with pytest.raises(CableError, match="/cut.bin on the board differs from what was sent"):
        repl.put_file("/cut.bin", b"12345")


@pytest.mark.parametrize("begin", [b"\x05A\x01", b""], ids=["raw paste", "raw"])
def test_half_a_cell_does_not_run(chip, begin):
    """If the sender of a cell was ended in the middle, the next sender gets a prompt."""
    with BoardRepl(chip.port) as repl:
        repl.await_prompt(60)
        repl.transport.serial.write(begin + b"open('/half', 'w').close()\n")
    with BoardRepl(chip.port) as repl:
        repl.await_prompt(60)
        assert repl.run("import os\nprint('half' in os.listdir('/'))").strip() == "False"
