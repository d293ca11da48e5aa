"""A board with the client of version 0.1 works with this server.

``clients/client_0_1.zip`` holds its sources; the tests compile them as `mbm simulate` does.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager import Fleet, board_client
from tests.conftest import RunningServer, running_boards

ARCHIVE = Path(__file__).with_name("clients") / "client_0_1.zip"


@pytest.fixture(scope="module")
def old_board(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("client")
    zipfile.ZipFile(ARCHIVE).extractall(folder)
    with Fleet() as fleet, pytest.MonkeyPatch.context() as patch:
        patch.setattr(board_client, "client_source_folder", lambda: folder / "mpy_client")
        with running_boards(server, fleet, ["old-1"]):
            has_old_name = fleet["old-1"].run("from cm import link\nhasattr(link, 'span')")
            assert has_old_name.value, "the board must run the client of version 0.1"
            yield fleet


def test_cell_returns_output_value_and_error(old_board: Fleet):
    result = old_board["old-1"].run("print('hello')\n6 * 7")["old-1"]
    assert (result.stdout, result.value) == ("hello\n", 42)
    assert old_board["old-1"].run("1 / 0")["old-1"].status == "error"


def test_timeout_interrupts_a_busy_cell_and_names_stay(old_board: Fleet):
    old_board["old-1"].run("kept = 5").raise_for_error()
    assert old_board["old-1"].run("while True: pass", timeout=0.3)["old-1"].status == "timeout"
    assert old_board["old-1"].run("kept").value == 5


def test_files_are_written_and_read(old_board: Fleet):
    old_board["old-1"].put(b"x" * 10_000, ":data.bin").raise_for_error()
    assert old_board["old-1"].read(":data.bin").value == b"x" * 10_000


def test_file_with_the_name_of_a_temporary_one_is_kept(old_board: Fleet):
    board = old_board["old-1"]
    board.put(b"mine", ":own.csv.part").raise_for_error()
    refused = board.put(b"new", ":own.csv")["old-1"]
    assert "rename or remove that, or run mbm board-upgrade-client" in str(refused.error)
    assert board.read(":own.csv.part").value == b"mine"
    assert board.rm(":own.csv.part").ok
    board.put(b"new", ":own.csv").raise_for_error()
    assert board.read(":own.csv").value == b"new"


def test_fresh_cell_restarts_the_interpreter(old_board: Fleet):
    old_board["old-1"].run("gone = 1").raise_for_error()
    assert old_board["old-1"].run("'gone' in globals()", fresh=True, wait=10).value is False
