"""Flow control: the window bounds unacknowledged bytes; chunks are not acknowledged singly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError
from cm_server.installs.content_store import Content
from cm_server.installs.transfers import (
    ACKS_PER_WINDOW,
    FileTransfer,
    FileTransferSpec,
    ack_bytes_for,
)
from cm_server.limits import Limits

BUFFER_BYTES = 100  # of a board
JOB = 7


class Board:
    """Records the messages to a board, and sends its messages."""

    def __init__(self, tmp_path: Path, *contents: bytes, ack_bytes: int = 200, reads: bool = False):
        made = []
        for data in contents:
            content = Content(hashlib.sha256(data).hexdigest(), len(data), tmp_path)
            content.write(data)
            made.append(content)
        self.received: list[wire.Message] = []
        self.transfer = FileTransfer(
            JOB,
            FileTransferSpec(ack_bytes, tuple(made), reads),
            lambda data: self.received.append(wire.unpack(data)),
            BUFFER_BYTES,
        )

    def send_resume_state(self, data: bytes = b"") -> None:
        payload = len(data).to_bytes(4, "big") + hashlib.sha256(data).digest()
        self.transfer.on_chunk(wire.Message(wire.CHUNK, wire.RESUME_STATE, JOB, payload))

    def acknowledge(self, count: int) -> None:
        self.transfer.on_chunk(wire.Message(wire.CHUNK, 0, JOB, count.to_bytes(4, "big")))

    @property
    def data(self) -> bytes:
        return b"".join(message.payload for message in self.received)


def test_nothing_is_sent_before_the_resume_state(tmp_path: Path):
    assert Board(tmp_path, b"x" * 50).received == []


def test_small_file_is_one_message(tmp_path: Path):
    board = Board(tmp_path, b"x" * 50)
    board.send_resume_state()
    assert board.received == [(wire.DATA, wire.RESTART_FILE, JOB, b"x" * 50)]


def test_empty_file_is_one_empty_message(tmp_path: Path):
    board = Board(tmp_path, b"")
    board.send_resume_state()
    assert board.received == [(wire.DATA, wire.RESTART_FILE, JOB, b"")]


def test_sender_stops_at_the_window_until_bytes_are_acknowledged(tmp_path: Path):
    data = bytes(range(256)) * 20
    board = Board(tmp_path, data)
    board.send_resume_state()
    window = ACKS_PER_WINDOW * 200
    assert window <= len(board.data) < window + BUFFER_BYTES
    assert all(
        len(message.payload) <= BUFFER_BYTES - wire.HEADER.size for message in board.received
    )
    sent = len(board.data)
    board.acknowledge(200)
    assert sent < len(board.data) < sent + 200 + BUFFER_BYTES
    while len(board.data) < len(data):
        board.acknowledge(len(board.data))
    assert board.data == data
    assert [message.flags for message in board.received[:2]] == [wire.RESTART_FILE, 0]


def test_transfer_resumes_after_an_interruption(tmp_path: Path):
    board = Board(tmp_path, b"0123456789")
    board.send_resume_state(b"01234")
    assert board.received == [(wire.DATA, 0, JOB, b"56789")]


def test_complete_file_is_only_confirmed(tmp_path: Path):
    board = Board(tmp_path, b"0123456789")
    board.send_resume_state(b"0123456789")
    assert board.received == [(wire.DATA, 0, JOB, b"")]


@pytest.mark.parametrize("rest", [b"01235", b"0123456789x"])
def test_other_partial_file_is_restarted(tmp_path: Path, rest: bytes):
    board = Board(tmp_path, b"0123456789")
    board.send_resume_state(rest)
    assert board.received == [(wire.DATA, wire.RESTART_FILE, JOB, b"0123456789")]


def test_files_are_sent_in_order(tmp_path: Path):
    board = Board(tmp_path, b"first", b"second")
    board.send_resume_state()
    board.send_resume_state()
    assert board.data == b"firstsecond"
    with pytest.raises(PeerWireError, match="does not write"):
        board.send_resume_state()


def test_forwarded_bytes_are_acknowledged(tmp_path: Path):
    board = Board(tmp_path, ack_bytes=200, reads=True)
    board.transfer.on_chunk(wire.Message(wire.CHUNK, 0, JOB, b"file's bytes"))
    board.transfer.on_bytes_forwarded(150)
    assert board.received == []
    board.transfer.on_bytes_forwarded(60)
    assert [wire.read_byte_count(message) for message in board.received] == [210]


def test_forwarded_progress_of_a_put_is_not_acknowledged(tmp_path: Path):
    board = Board(tmp_path, b"x" * 5000)
    board.transfer.on_bytes_forwarded(1000)
    assert board.received == []


def test_false_acknowledgement_is_refused(tmp_path: Path):
    board = Board(tmp_path, b"x" * 5000)
    board.send_resume_state()
    sent = len(board.data)
    with pytest.raises(PeerWireError, match="acknowledges more than it was sent"):
        board.acknowledge(sent + 1)
    assert len(board.data) == sent
    with pytest.raises(PeerWireError, match="malformed"):
        board.transfer.on_chunk(wire.Message(wire.CHUNK, 0, JOB, b"12345"))


def test_needless_acknowledgements_are_not_forwarded(tmp_path: Path):
    board = Board(tmp_path, b"x" * 5000)
    board.send_resume_state()
    forwarded = [
        board.transfer.on_chunk(wire.Message(wire.CHUNK, 0, JOB, count.to_bytes(4, "big")))
        for count in [*range(1, 401), *[400] * 50]
    ]
    assert sum(forwarded) == 2


def test_board_that_ignores_the_window_is_refused(tmp_path: Path):
    board = Board(tmp_path, ack_bytes=200, reads=True)
    piece = wire.Message(wire.CHUNK, 0, JOB, b"x" * 90)
    window = ACKS_PER_WINDOW * 200
    for _ in range(window // 90):
        board.transfer.on_chunk(piece)

    def send_without_end() -> None:
        for _ in range(3 * window // 90):
            board.transfer.on_chunk(piece)

    with pytest.raises(PeerWireError, match="more of a file than was acknowledged"):
        send_without_end()


def test_board_that_waits_for_acknowledgements_may_send_any_amount(tmp_path: Path):
    board = Board(tmp_path, ack_bytes=200, reads=True)
    for _ in range(100):
        board.transfer.on_chunk(wire.Message(wire.CHUNK, 0, JOB, b"x" * 90))
        board.transfer.on_bytes_forwarded(90)


def test_windows_shrink_with_the_number_of_boards():
    assert ACKS_PER_WINDOW * ack_bytes_for(1, Limits()) == Limits.window_bytes
    assert ACKS_PER_WINDOW * ack_bytes_for(10_000, Limits()) == Limits.min_window_bytes
    assert ACKS_PER_WINDOW * ack_bytes_for(1_000, Limits()) * 1_000 <= Limits.total_window_bytes
