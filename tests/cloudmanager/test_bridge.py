"""The bridge: a unix-port REPL on a pty and a micro:bit under QEMU as members of the fleet."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager import bridge as bridging
from cloudmanager.bridge import Bridge
from cloudmanager.cable import SerialPort
from cloudmanager.errors import BoardError
from cloudmanager.fleet import Fleet
from cloudmanager.rig import wait_online
from tests.conftest import Server

from .chip import Chip
from .conftest import background
from .microbit import Microbit


@contextlib.contextmanager
def bridged(fleet: Fleet, ports: list[str], *names: str) -> Iterator[list[tuple[str, str]]]:
    """A bridge whose boards are there; afterwards they are out of the fleet."""
    told: list[tuple[str, str]] = []
    try:
        with Bridge(fleet, ports, names, lambda *what: told.append(what)):
            wait_online(fleet, names[: len(ports)])
            yield told
    finally:
        deadline = time.monotonic() + 5
        while any(b["connected_since"] for b in fleet.boards() if b["name"] in names):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        known = {board["name"] for board in fleet.boards()}
        for name in set(names) & known:
            fleet.revoke(name)


@pytest.fixture(scope="module")
def make_chip(tmp_path_factory):
    made = []

    def make() -> Chip:
        chip = Chip(tmp_path_factory.mktemp("chip"))
        made.append(chip)
        chip.flash[0] = 0xE9
        chip.press_reset()
        return chip

    yield make
    for chip in made:
        chip.stop()


@pytest.fixture(scope="module")
def unix(make_chip, fleet: Fleet):
    chip = make_chip()
    with bridged(fleet, [chip.port], "unix-1"):
        yield fleet["unix-1"]


@pytest.fixture(scope="module")
def microbit(server: Server, fleet: Fleet):
    board = Microbit()
    try:
        with bridged(fleet, [board.port], "micro-1"):
            yield fleet["micro-1"]
    finally:
        board.stop()


@pytest.fixture(params=["unix", "microbit"])
def board(request):
    """A bridged board; afterwards it still runs cells."""
    boards = request.getfixturevalue(request.param)
    yield boards
    assert boards.run("6 * 7", timeout=10).value == 42


# What every bridged board can do


def test_value_comes_back(board):
    assert board.run("[1, 'a', None]").value == [1, "a", None]


def test_names_live_from_cell_to_cell(board):
    board.run("kept = 'x'").raise_for_error()
    assert board.run("kept * 3").value == "xxx"


def test_output_and_value_are_told_apart(board):
    result = board.run("print('one', 2)\nprint('(3,)')\n(4,)")
    (told,) = result.values()
    assert (told.stdout, result.value) == ("one 2\n(3,)\n", (4,))


def test_text_beyond_ascii_survives(board):
    result = board.run("print('é✓')\n'ü'")
    assert ([told.stdout for told in result.values()], result.value) == (["é✓\n"], "ü")


def test_error_is_the_boards_own_with_the_cells_line(board):
    results = board.run("x = 1\n1 / 0")
    with pytest.raises(BoardError) as caught:
        results.raise_for_error()
    assert 'File "<cell>", line 2' in str(caught.value)
    assert caught.value.ename == "ZeroDivisionError"


@pytest.mark.parametrize("code", ["while True: pass", "while True: print('x' * 20)"])
def test_interrupt_ends_a_busy_cell(board, code):
    job = board.submit(f"print('begun')\n{code}", timeout=10)
    deadline = time.monotonic() + 5
    while "begun" not in "".join(one.read()[0] for one in job.jobs.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.interrupt()
    assert job.wait(5)
    assert [result.status for result in job.results(1).values()] == ["interrupted"]


def test_timeout_is_the_bridges_to_enforce(board):
    (result,) = board.run("while True: pass", timeout=0.3).values()
    assert result.status == "timeout"
    assert result.elapsed < 1.3


def test_swallowed_interrupt_comes_again(board):
    code = "n = 0\nwhile n < 2:\n try:\n  while True: pass\n except KeyboardInterrupt: n += 1\n"
    (result,) = board.run(code + "print(n)", timeout=0.2).values()
    assert (result.status, result.stdout) == ("ok", "2\n")


def test_input_cannot_be_answered(board):
    (result,) = board.run("input('? ')", timeout=5).values()
    assert result.error.ename == "EOFError"


def test_fresh_starts_anew(board):
    board.run("gone = 1").raise_for_error()
    (result,) = board.run("gone", fresh=True, timeout=20).values()
    assert result.error.ename == "NameError"


def test_file_round_trip(board):
    """By cells: the board's own open, in what heap it has."""
    text = "line 'q' \"Q\" \\ \n" * 40
    write = f"with open('round.txt', 'w') as f:\n    n = f.write({text!r})\n"
    board.run(write).raise_for_error()
    read = "with open('round.txt') as f:\n    t = f.read()\nt"
    assert board.run(read).value == text
    board.run("import os\nos.remove('round.txt')\nt = None").raise_for_error()


# What each is


def test_unix_board_is_a_board_like_any_other(unix):
    (told,) = unix.info()
    assert (told["platform"], told["client"], told["state"]) == ("linux", "bridge 0.1", "idle")
    assert told["mpy"].startswith("6")


def test_microbit_has_its_nine_kilobytes(microbit):
    (told,) = microbit.info()
    assert (told["platform"], told["version"]) == ("microbit", "1.9.2")
    assert 7_000 < told["heap"] < 10_000
    (result,) = microbit.run("list(range(5000))").values()
    assert result.error.ename == "MemoryError"


def test_await_runs_where_there_is_asyncio(unix):
    assert unix.run("import asyncio\nawait asyncio.sleep(0.01)\n7").value == 7


def test_long_cells_and_values_travel_whole(unix):
    assert unix.run(f"x = {list(range(3_000))}\nx").value == list(range(3_000))


def test_value_of_none_is_none(unix):
    assert unix.run("None").value is None
    assert unix.run("x = 1").value is None


def test_repr_that_fails_is_an_error(unix):
    (result,) = unix.run("class R:\n def __repr__(self): 1/0\nR()").values()
    assert result.error.ename == "ZeroDivisionError"


def test_syntax_that_only_the_board_refuses_is_its_error(unix):
    (result,) = unix.run("def f(a, /, b): pass\nf(1, b=2)\nprint(f'{1=}')").values()
    assert result.status == "error"


# Coming and going


def test_plugged_boards_come_and_unplugged_ones_go(make_chip, fleet: Fleet, monkeypatch):
    ports: list[SerialPort] = []
    monkeypatch.setattr(bridging, "serial_ports", lambda: ports)
    monkeypatch.setattr(bridging, "PORT_SECONDS", 0.05)
    chip = make_chip()
    with bridged(fleet, [], "hot-1") as told:
        ports.append(SerialPort(chip.port, ""))
        wait_online(fleet, ["hot-1"])
        assert fleet["hot-1"].run("6 * 7").value == 42
        assert told == [(chip.port, "hot-1 is in the fleet")]


def test_board_that_lost_its_power_is_lost_and_comes_back(make_chip, fleet: Fleet, monkeypatch):
    monkeypatch.setattr(bridging, "PROMPT_SECONDS", 0.5)
    monkeypatch.setattr(bridging, "DEAF_SECONDS", 1)
    chip = make_chip()
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


def test_link_that_breaks_in_a_cell_tells_the_outcome_afterwards(
    make_chip, start_server, tmp_path: Path, monkeypatch
):
    chip = make_chip()
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
            while (told := fleet.job(number))["status"] != "ok":
                assert time.monotonic() < deadline, told
                time.sleep(0.05)
            assert fleet["broken-1"].run("import os\n'mark' in os.listdir('/')").value is True


def test_mbm_bridge_serves_until_ctrl_c(make_chip, fleet: Fleet, server: Server):
    chip = make_chip()
    with background("bridge", chip.port, "--name", "shell-1") as process:
        assert process.stdout
        assert process.stdout.readline() == f"{chip.port}  shell-1 is in the fleet\n"
        assert fleet["shell-1"].run("6 * 7").value == 42
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
