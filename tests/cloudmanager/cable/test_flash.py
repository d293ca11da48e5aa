"""Flashing: real esptool, an emulated bootloader, a real MicroPython, a real server.

The whole story on both chips; then a failure at each step: what it says, and how the next try goes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
from fnmatch import fnmatch

import esptool.loader
import pytest
from mpremote.transport_serial import SerialTransport

from cloudmanager.board_client import client_files
from cloudmanager.cable import esp_chip as chips
from cloudmanager.cable import flash as flashing
from cloudmanager.cable.flash import FlashOptions, NameAllocator, flash_and_join
from cloudmanager.cable.serial_ports import BoardRepl
from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.board_fixtures import wait_online
from tests.cloudmanager import images
from tests.cloudmanager.chip import Chip
from tests.cloudmanager.rom import DEFL_BEGIN, DEFL_DATA, SYNC
from tests.conftest import RunningServer

PROGRESS: list[tuple[str, str]] = []  # step and message of each progress report
SECRET = 'it\'s "quoted" \\ {0} %s é'


@pytest.fixture(scope="module")
def esp32_image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "esp32.bin"
    path.write_bytes(images.esp32())
    return str(path)


@pytest.fixture
def make_chip(tmp_path, fleet: Fleet):
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def make(kind="esp8266", **options):
            folder = tmp_path / f"chip-{next(numbers)}"
            folder.mkdir()
            chip = stack.enter_context(Chip(folder, kind, **options))
            chip.hold_boot()
            return chip

        yield make


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Shorten timeouts: emulated chips answer immediately, or never."""
    monkeypatch.setattr(chips, "ATTEMPTS", 1)
    monkeypatch.setattr(esptool.loader, "MAX_TIMEOUT", 1)
    monkeypatch.setattr(SerialTransport.read_until, "__defaults__", (1, None, None))


@pytest.fixture
def go(server: RunningServer, fleet: Fleet, tmp_path):
    """Flash chips; afterwards their boards are revoked."""
    names: set[str] = set()

    def run(*chips, act=None, **wished):
        def tell(port, step, what):
            PROGRESS.append((step, what))
            if act:
                act(step, what)

        wished.setdefault("firmware", str(images.small(tmp_path)))
        wish = FlashOptions(wished.pop("server", ("127.0.0.1", server.tcp_port)), **wished)
        outcomes = flash_and_join([chip.port for chip in chips], wish, fleet, tell)
        names.update(outcome.name for outcome in outcomes if outcome.name)
        return outcomes[0] if len(chips) == 1 else outcomes

    PROGRESS.clear()
    yield run
    known = {board["name"] for board in fleet.boards()}
    for name in {name for name in names & known if not name.startswith("demo-")}:
        with contextlib.suppress(Exception):
            fleet.revoke(name)


def settings(chip):
    with BoardRepl(chip.port) as repl:
        repl.await_prompt(60)
        return json.loads(bytes(repl.transport.fs_readfile("/cm.json")))


def test_blank_esp8266_joins_and_runs_a_cell(make_chip, go, fleet: Fleet, tmp_path):
    wifi = [("home 'n' \"work\"", SECRET)]
    chip = make_chip(air=dict(wifi))
    real = str(images.esp8266())
    done = go(chip, names=["flashed-1"], wifi=wifi, labels={"room": "lab"}, firmware=real)
    assert (done.error, done.step, done.chip, done.name) == ("", "join", "ESP8266", "flashed-1")
    steps = [step for step, text in PROGRESS if "1.9.4 is too old" in text]
    assert steps == ["firmware"], "the image's version is known before it is written"
    image = images.esp8266().read_bytes()
    differ = [at for at in range(len(image)) if chip.flash[at] != image[at]]
    assert differ == [3]  # the flash's size, which esptool writes into the header as it found it
    (board,) = fleet["flashed-1"].info()
    assert (board["labels"], board["platform"]) == ({"room": "lab"}, "esp8266")
    assert (
        fleet["flashed-1"].run("import cm.state\ncm.state.console.__name__").value == "cm.console"
    )
    (refused,) = fleet["flashed-1"].put(b"print(1)", ":main.py").values()
    assert "the path belongs to its client" in str(refused.error)
    (tmp_path / "src").mkdir()
    (plan,) = fleet["flashed-1"].sync(tmp_path / "src", delete=True).values()
    assert plan.value.delete == ("/tried",)  # the stand-in's own, and not /main.py
    config = settings(chip)
    assert (config["wifi"], config["name"]) == ([list(wifi[0])], "flashed-1")
    assert SECRET not in repr(PROGRESS)


def test_blank_esp32_without_control_lines_joins_after_reset(
    make_chip, go, esp32_image, fleet: Fleet
):
    chip = make_chip("esp32")

    def press(step, what):
        if what == "press RESET on the board now":  # a stub of an ESP32 cannot, a pty has no RTS
            chip.press_reset()

    done = go(chip, act=press, firmware=esp32_image, names=["flashed-2"])
    assert (done.error, done.chip, done.name) == ("", "ESP32", "flashed-2")
    image = images.esp32()
    assert bytes(chip.flash[0x1000 : 0x1000 + len(image)]) == image
    assert fleet["flashed-2"].run("6 * 7").value == 42


def test_two_boards_are_flashed_in_parallel(make_chip, go, fleet: Fleet):
    outcomes = go(make_chip(), make_chip(), names=["pair-1", "pair-2", "pair-3"])
    assert [outcome.error for outcome in outcomes] == ["", ""]
    assert {outcome.name for outcome in outcomes} == {"pair-1", "pair-2"}
    assert fleet["pair-[1-2]"].run("1").to_dict() == {"pair-1": 1, "pair-2": 1}


def test_no_flash_adds_a_board_that_has_micropython(make_chip, go, fleet: Fleet):
    chip = make_chip()
    chip.flash[0] = 0xE9
    chip.press_reset()
    first = go(chip, flash=False, names=["ready-1"])
    before = time.time()
    looked = go(chip, flash=False, dry_run=True)
    wait_online(fleet, ["ready-1"], since=before)  # its client was interrupted, and goes on
    again = go(chip, flash=False)
    assert (first.error, looked.error, again.error, again.name) == ("", "", "", "ready-1")
    assert (first.chip, first.firmware) == ("", "")


def test_esp8266_uses_macs_instead_of_tls(make_chip, go, fleet: Fleet, monkeypatch):
    chip = make_chip()
    chip.flash[0] = 0xE9
    chip.press_reset()
    facts = BoardRepl.facts
    monkeypatch.setattr(BoardRepl, "facts", lambda repl: {**facts(repl), "platform": "esp8266"})
    done = go(chip, flash=False, names=["plain-1"])
    assert (done.error, done.name) == ("", "plain-1")
    config = settings(chip)
    assert (config["mac"], "ca" in config) == (True, False)


def test_dry_run_changes_nothing(make_chip, go, fleet: Fleet):
    chip = make_chip()
    before = bytes(chip.flash)
    known = {board["name"] for board in fleet.boards()}
    done = go(chip, dry_run=True, names=["dry-1"])
    assert (done.error, done.chip) == ("", "ESP8266")
    assert "49,152 bytes" in repr(PROGRESS)
    assert bytes(chip.flash) == before
    assert {board["name"] for board in fleet.boards()} == known


# A failure at each step: its message, and the next attempt


def again(go, chip, **wished):
    done = go(chip, **wished)
    assert (done.error, done.step) == ("", "join")


#: What goes wrong, one after the other with the same chip: (faults of its loader, what is wished,
#: the step, what is said).
FAILURES = [
    ({SYNC: "silent"}, {}, "chip", "No chip's bootloader answers*Nothing was changed. Hold BOOT"),
    ({}, {"firmware": "esp32"}, "firmware", "for ESP32, but the chip is ESP8266. Nothing was"),
    ({DEFL_BEGIN: "refused"}, {}, "write", "enter compressed flash mode"),
    ({DEFL_DATA: "refused"}, {}, "write", "write compressed data"),
    ({DEFL_DATA: "corrupt"}, {}, "write", "MD5*The chip has no working firmware now"),
]


def test_chip_failure_reports_the_state_and_can_be_retried(make_chip, go, esp32_image):
    chip = make_chip()
    blank = bytes(chip.flash)
    for faults, wished, step, why in FAILURES:
        chip.faults.update(faults)
        done = go(chip, **({"firmware": esp32_image} if wished else {}))
        assert (done.step, fnmatch(done.error, f"*{why}*")) == (step, True), done.error
        assert step == "write" or bytes(chip.flash) == blank
        chip.faults.clear()
        chip.hold_boot()
    again(go, chip, names=["fail-1"])


def test_power_cut_while_writing(make_chip, go):
    chip = make_chip()
    cut = go(chip, act=lambda _, what: what.endswith("% written") and chip.power_off())
    assert cut.step == "write"
    assert "run this again" in cut.error
    chip.hold_boot()
    again(go, chip, names=["fail-4"])


def test_firmware_without_a_repl_is_an_error(make_chip, go, monkeypatch):
    chip = make_chip()
    monkeypatch.setattr(flashing, "REPL_SECONDS", 1)
    done = go(chip, act=lambda step, _: step == "repl" and chip.power_off())
    assert done.step == "repl"
    assert "No REPL answers within 1 s. The firmware is on the chip. Press RESET" in done.error
    monkeypatch.undo()
    chip.press_reset()
    again(go, chip, flash=False, names=["fail-5"])


def test_name_of_a_connected_board_is_refused(make_chip, go, boards, monkeypatch):
    monkeypatch.setattr(flashing, "DISCONNECT_SECONDS", 0.1)
    chip = make_chip()
    done = go(chip, names=["demo-1"])
    assert done.step == "enrol"
    assert "a board called demo-1 is connected already" in done.error
    assert "not in a fleet yet" in done.error
    again(go, chip, flash=False, names=["fail-6"])


def test_board_is_revoked_if_copying_fails(make_chip, go, fleet: Fleet):
    chip = make_chip()
    done = go(
        chip, act=lambda step, _: step == "copy" and chip.power_off(), names=["fail-7", "fail-8"]
    )
    assert done.step == "copy"
    assert "the client on it is incomplete" in done.error
    assert "fail-7" not in {board["name"] for board in fleet.boards()}
    chip.press_reset()
    again(go, chip, flash=False, names=["fail-7"])


def test_server_that_the_board_cannot_reach_is_an_error(make_chip, go, monkeypatch):
    monkeypatch.setattr(flashing, "JOIN_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = closed.getsockname()
    chip = make_chip()
    done = go(chip, names=["fail-9"], server=nowhere)
    assert done.step == "join"
    assert "fail-9 did not connect within 1 s" in done.error
    assert f"reaches 127.0.0.1:{nowhere[1]}, then run this again with --no-flash" in done.error
    monkeypatch.undo()
    again(go, chip, flash=False)


def test_error_quotes_the_boards_console(make_chip, go, monkeypatch):
    monkeypatch.setattr(flashing, "JOIN_SECONDS", 1)
    chip = make_chip(air={"home": "right"})
    done = go(chip, names=["wifi-1"], wifi=[("home", "wrong")])
    assert (
        "did not connect within 1 s: the board printed 'Wi-Fi home: wrong password'" in done.error
    )
    assert "wrong'" not in done.error.replace("wrong password", "")
    monkeypatch.undo()
    again(go, chip, flash=False, wifi=[("home", "right")])
    again(go, chip, flash=False)
    assert settings(chip)["wifi"] == [["home", "right"]]  # it is kept where none is given


def test_old_micropython_is_refused(make_chip, go, monkeypatch):
    chip = make_chip()
    chip.flash[0] = 0xE9
    chip.press_reset()
    facts = {"platform": "esp8266", "version": "1.9.4", "mpy": 2, "machine": ""}
    monkeypatch.setattr(BoardRepl, "facts", lambda _: facts)
    done = go(chip, flash=False)
    assert "MicroPython 1.9.4 is too old for the client, which needs 1.23" in done.error


def test_other_bytecode_version_is_refused(make_chip, go, monkeypatch):
    chip = make_chip()
    chip.flash[0] = 0xE9
    chip.press_reset()
    facts = {"platform": "esp8266", "version": "2.0.0", "mpy": 7, "machine": ""}
    monkeypatch.setattr(BoardRepl, "facts", lambda _: facts)
    assert "needs bytecode version 7, mpy-cross here makes 6" in go(chip, flash=False).error


# UF2, names


def test_uf2_is_copied_to_the_drive(tmp_path, go, monkeypatch):
    (tmp_path / "INFO_UF2.TXT").write_text("UF2 Bootloader")
    image = tmp_path / "pico.uf2"
    image.write_bytes(b"UF2\n" + bytes(508))
    monkeypatch.setattr(flashing, "REPL_SECONDS", 0.2)
    monkeypatch.setattr(flashing, "find_serial_ports", list)
    drive = type("Drive", (), {"port": str(tmp_path)})
    done = go(drive, firmware=str(image))
    assert (tmp_path / "firmware.uf2").read_bytes() == image.read_bytes()
    assert "did not reappear as a serial port" in done.error


def test_folder_that_is_not_a_drive_is_refused(tmp_path, go):
    done = go(type("Drive", (), {"port": str(tmp_path)}))
    assert "not the drive of a board. Nothing was changed. Hold BOOTSEL" in done.error


def test_each_name_is_assigned_once(fleet: Fleet):
    book = NameAllocator(fleet, [])
    assert [book.allocate("esp32"), book.allocate("esp32")] == ["esp32-1", "esp32-2"]


def test_client_on_a_board_has_no_part_of_the_unix_port(server: RunningServer):
    files = client_files()
    assert "/lib/cm/link.mpy" in files
    assert not [path for path in files if "unix" in path]
    assert list(files)[-1] == "/main.py"
