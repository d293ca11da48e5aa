"""The window: never more under way than it, never a chunk acknowledged one by one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError
from cm_server import limits
from cm_server.installs.content_store import Content
from cm_server.installs.transfers import (
    ACKS_PER_WINDOW,
    FileTransfer,
    FileTransferSpec,
    ack_bytes_for,
)

ROOM = 100  # bytes of a board's buffer
JOB = 7


class Board:
    """What a board gets, and the words it says."""

    def __init__(self, tmp_path: Path, *contents: bytes, step: int = 200, gets: bool = False):
        made = []
        for data in contents:
            content = Content(hashlib.sha256(data).hexdigest(), len(data), tmp_path)
            content.write(data)
            made.append(content)
        self.came: list[wire.Message] = []
        self.transfer = FileTransfer(
            JOB,
            FileTransferSpec(step, tuple(made), gets),
            lambda data: self.came.append(wire.unpack(data)),
            ROOM,
        )

    def have(self, data: bytes = b"") -> None:
        payload = len(data).to_bytes(4, "big") + hashlib.sha256(data).digest()
        self.transfer.on_chunk(wire.Message(wire.CHUNK, wire.RESUME_STATE, JOB, payload))

    def wrote(self, count: int) -> None:
        self.transfer.on_chunk(wire.Message(wire.CHUNK, 0, JOB, count.to_bytes(4, "big")))

    @property
    def data(self) -> bytes:
        return b"".join(message.payload for message in self.came)


def test_nothing_is_sent_before_the_board_asks(tmp_path: Path):
    assert Board(tmp_path, b"x" * 50).came == []


def test_small_file_is_one_message(tmp_path: Path):
    board = Board(tmp_path, b"x" * 50)
    board.have()
    assert board.came == [(wire.DATA, wire.RESTART_FILE, JOB, b"x" * 50)]


def test_empty_file_is_one_empty_message(tmp_path: Path):
    board = Board(tmp_path, b"")
    board.have()
    assert board.came == [(wire.DATA, wire.RESTART_FILE, JOB, b"")]


def test_sender_stops_at_the_window_and_goes_on_when_a_step_is_confirmed(tmp_path: Path):
    data = bytes(range(256)) * 20
    board = Board(tmp_path, data)
    board.have()
    window = ACKS_PER_WINDOW * 200
    assert window <= len(board.data) < window + ROOM
    assert all(len(message.payload) <= ROOM - wire.HEADER.size for message in board.came)
    sent = len(board.data)
    board.wrote(200)
    assert sent < len(board.data) < sent + 200 + ROOM
    while len(board.data) < len(data):
        board.wrote(len(board.data))
    assert board.data == data
    assert [message.flags for message in board.came[:2]] == [wire.RESTART_FILE, 0]


def test_it_goes_on_where_an_earlier_try_stopped(tmp_path: Path):
    board = Board(tmp_path, b"0123456789")
    board.have(b"01234")
    assert board.came == [(wire.DATA, 0, JOB, b"56789")]


def test_whole_file_that_is_there_is_confirmed_only(tmp_path: Path):
    board = Board(tmp_path, b"0123456789")
    board.have(b"0123456789")
    assert board.came == [(wire.DATA, 0, JOB, b"")]


@pytest.mark.parametrize("rest", [b"01235", b"0123456789x"])
def test_rest_of_another_content_is_begun_anew(tmp_path: Path, rest: bytes):
    board = Board(tmp_path, b"0123456789")
    board.have(rest)
    assert board.came == [(wire.DATA, wire.RESTART_FILE, JOB, b"0123456789")]


def test_files_come_one_after_the_other(tmp_path: Path):
    board = Board(tmp_path, b"first", b"second")
    board.have()
    board.have()
    assert board.data == b"firstsecond"
    with pytest.raises(PeerWireError, match="no job puts there"):
        board.have()


def test_what_left_for_the_caller_is_confirmed_step_by_step(tmp_path: Path):
    board = Board(tmp_path, step=200, gets=True)
    board.transfer.on_chunk(wire.Message(wire.CHUNK, 0, JOB, b"file's bytes"))
    board.transfer.on_bytes_forwarded(150)
    assert board.came == []
    board.transfer.on_bytes_forwarded(60)
    assert [wire.read_byte_count(message) for message in board.came] == [210]


def test_progress_of_a_put_that_reached_the_caller_confirms_nothing(tmp_path: Path):
    board = Board(tmp_path, b"x" * 5000)
    board.transfer.on_bytes_forwarded(1000)
    assert board.came == []


def test_board_that_lies_about_how_far_it_is_gains_nothing(tmp_path: Path):
    board = Board(tmp_path, b"x" * 5000)
    board.have()
    board.wrote(2**32 - 1)
    assert board.data == b"x" * 5000  # it is its own buffer that it fills
    with pytest.raises(PeerWireError, match="malformed"):
        board.transfer.on_chunk(wire.Message(wire.CHUNK, 0, JOB, b"12345"))


def test_windows_of_very_many_boards_are_smaller():
    assert ACKS_PER_WINDOW * ack_bytes_for(1) == limits.WINDOW_BYTES
    assert ACKS_PER_WINDOW * ack_bytes_for(10_000) == limits.MIN_WINDOW_BYTES
    assert ACKS_PER_WINDOW * ack_bytes_for(1_000) * 1_000 <= limits.TOTAL_WINDOW_BYTES
