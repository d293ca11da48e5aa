"""The methods of boards in tests, with real boards."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import BoardError, BoardOffline, CellSyntaxError, FleetError
from cloudmanager.testing import board_fixtures
from cloudmanager.testing.board_fixtures import (
    BoardsFactory,
    BoardsUnderTest,
    BoardUnderTest,
    wait_online,
)

Make = Callable[..., BoardsUnderTest]


def test_run_returns_the_result_and_prints_the_output(
    cm_board: BoardUnderTest, capsys: pytest.CaptureFixture[str]
):
    result = cm_board.run("""
        print("indented")
        6 * 7
    """)
    assert (result.value, result.stdout) == (42, "indented\n")
    assert capsys.readouterr().out == "indented\n"


def test_run_accepts_a_file(cm_board: BoardUnderTest, tmp_path: Path):
    (tmp_path / "answer.py").write_text("answer = 42\nanswer")
    assert cm_board.run(tmp_path / "answer.py").value == 42


def test_run_on_several_boards_prints_their_names(
    cm_boards: BoardsUnderTest, capsys: pytest.CaptureFixture[str]
):
    assert cm_boards.run("print('a\\nb')").ok
    said = [f"board-{n} | {line}\n" for n in (1, 2, 3) for line in "ab"]
    assert capsys.readouterr().out == "".join(said)


def test_escape_codes_of_boards_are_replaced(
    cm_board: BoardUnderTest, capsys: pytest.CaptureFixture[str]
):
    cm_board.run("print('\\x1b[2J')")
    assert capsys.readouterr().out == "\\x1b[2J\n"


@pytest.mark.parametrize(
    ("code", "error"), [("1/0", BoardError), ("x = = 1", CellSyntaxError)], ids=["board", "typo"]
)
def test_failure_is_raised_from_the_tests_own_line(cm_board: BoardUnderTest, code, error):
    with pytest.raises(error) as raised:
        cm_board.run(code)
    shown = [entry for entry in raised.traceback if not entry.ishidden(raised)]
    assert [Path(entry.path).name for entry in shown] == ["test_board_fixtures.py"]


def test_failures_of_several_boards_are_one_error(cm_boards: BoardsUnderTest):
    with pytest.raises(FleetError) as raised:
        cm_boards.run("1/0")
    assert sorted(raised.value.errors) == list(cm_boards.names)


def test_failure_is_returned_without_check(cm_boards: BoardsUnderTest):
    assert len(cm_boards.run("1/0", check=False).failed) == 3
    assert cm_boards[0].run("1/0", check=False).status == "error"


def test_endless_cell_is_ended(cm_board: BoardUnderTest):
    assert cm_board.timeout == 10
    cm_board.timeout = 0.3
    assert cm_board.run("while True: pass", check=False).status == "timeout"
    with pytest.raises(BoardError):
        cm_board.run("while True: pass", timeout=0.2)


@pytest.mark.parametrize("size", [0, 1, 1010, 5 * 4096 + 1])
def test_put_copies_every_byte(cm_board: BoardUnderTest, tmp_path: Path, size: int):
    data = bytes(n * 7 % 256 for n in range(size))
    (tmp_path / "data.bin").write_bytes(data)
    cm_board.put(tmp_path / "data.bin")
    cm_board.put(tmp_path / "data.bin")  # replaces it
    code = "import hashlib, os\nwith open('data.bin', 'rb') as file: data = file.read()\ndata"
    assert cm_board.run(code).value == data


@pytest.mark.parametrize(
    ("dest", "path"),
    [
        ("", "/blink.py"),
        (":", "/blink.py"),
        (":lib/", "/lib/blink.py"),
        (":a/b/c.py", "/a/b/c.py"),
        ("/a/c.py", "/a/c.py"),
    ],
)
def test_put_copies_to_the_given_path(cm_boards: BoardsUnderTest, tmp_path: Path, dest, path):
    (tmp_path / "blink.py").write_text("times = 3")
    cm_boards.put(tmp_path / "blink.py", dest)
    cm_boards.put(tmp_path / "blink.py", dest)
    assert set(cm_boards.run(f"open({path!r}).read()").to_dict().values()) == {"times = 3"}


def test_put_defines_no_variables(cm_board: BoardUnderTest, tmp_path: Path):
    (tmp_path / "blink.py").write_text("")
    names = cm_board.run("sorted(globals())").value
    cm_board.put(tmp_path / "blink.py")
    assert cm_board.run("sorted(globals())").value == names


def test_restart_loses_variables_and_keeps_files(cm_board: BoardUnderTest):
    cm_board.run("left = 1\nwith open('left', 'w') as file: file.write('left')")
    cm_board.restart()
    found = cm_board.run("'left' in globals(), open('left').read()")
    assert found.value == (False, "left")


def test_killed_board_is_offline_until_it_is_restarted(cm_boards: BoardsUnderTest):
    cm_boards[1].kill()
    with pytest.raises(BoardOffline):
        cm_boards.run("1")
    cm_boards[1].restart()
    assert cm_boards.run("1").ok


def test_board_can_hang_and_continue(cm_board: BoardUnderTest):
    cm_board.kill(signal.SIGSTOP)
    group = cm_board.submit("6 * 7", timeout=60)
    assert not group.wait(0.1)
    cm_board.kill(signal.SIGCONT)
    assert group.results(30).value == 42


def test_boards_are_a_sequence(cm_boards: BoardsUnderTest):
    assert (len(cm_boards), cm_boards.target) == (3, "board-[1-3]")
    assert [board.name for board in cm_boards] == list(cm_boards.names)
    assert cm_boards[-1].name == cm_boards["board-3"].name == "board-3"
    assert repr(cm_boards[0]) == "<BoardUnderTest board-1>"
    with pytest.raises(KeyError, match="board-9"):
        cm_boards["board-9"]


def test_methods_of_the_library_are_available(cm_board: BoardUnderTest):
    assert [board["name"] for board in cm_board.info()] == ["board-1"]
    with pytest.raises(AttributeError, match="nonsense"):
        cm_board.nonsense  # noqa: B018
    with pytest.raises(AttributeError):
        cm_board._nonsense  # noqa: B018


def test_names_of_further_boards_are_numbered_on(cm_make_boards: Make):
    assert cm_make_boards(2).names == ("board-1", "board-2")
    assert cm_make_boards(1).names == ("board-3",)
    assert cm_make_boards(1, name="lab").names == ("lab-1",)


def test_no_boards_are_refused(cm_make_boards: Make):
    with pytest.raises(ValueError, match="at least one"):
        cm_make_boards(0)


def test_boards_and_their_flash_are_removed(
    cm_boards_factory: BoardsFactory, cm_fleet: Fleet, cm_home: Path
):
    with cm_boards_factory(2, name="gone") as boards:
        assert (cm_home / "virtual/gone-1/flash.img").exists()
        boards[0].kill()
        cm_fleet.revoke("gone-1")  # the test may have done it itself
    assert not [board for board in cm_fleet.boards() if board["name"].startswith("gone")]
    assert not (cm_home / "virtual/gone-1").exists()
    with cm_boards_factory(2, name="gone") as boards:
        assert boards.run("1").ok


def test_error_names_a_board_that_does_not_connect(
    cm_fleet: Fleet, monkeypatch: pytest.MonkeyPatch, cm_boards_factory: BoardsFactory
):
    monkeypatch.setattr(board_fixtures, "JOIN_SECONDS", 0.0)
    monkeypatch.setattr(board_fixtures, "JOIN_SECONDS_EACH", 0.0)
    with pytest.raises(TimeoutError, match=r"not connected: ghost-\[1-2\]"):
        wait_online(cm_fleet, ["ghost-1", "ghost-2"])


def test_power_cut_at_any_write_leaves_the_old_file_or_the_new(cm_board: BoardUnderTest):
    """Power cuts in the middle of writes of a put, when a part of it is on the flash."""
    old, new = os.urandom(9_000), os.urandom(40_000)
    cuts = 0
    for writes in itertools.count(0, 11):
        cm_board.put(old, ":x.bin")
        if not cm_board.cut_power(writes, lambda: cm_board._boards.put(new, ":x.bin")):
            break
        cuts += 1
        assert cm_board.read(":x.bin").value in (old, new)
        cm_board.put(new, ":x.bin")  # and the next try completes it
        assert cm_board.read(":x.bin").value == new
        assert [
            entry.name for entry in cm_board.ls().value if entry.name.endswith(".mbm-part")
        ] == []
    assert cuts > 20
    assert cm_board.read(":x.bin").value == new


def test_upload_is_resumed_after_a_power_cut(cm_board: BoardUnderTest):
    data = os.urandom(200_000)
    assert cm_board.cut_power(1_000, lambda: cm_board._boards.put(data, ":big.bin"))
    assert 0 < cm_board._boards.put(data, ":big.bin")[cm_board.name].value < len(data) - 50_000
    assert cm_board.read(":big.bin").value == data
