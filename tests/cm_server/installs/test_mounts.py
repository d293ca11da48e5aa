"""Mounted folders on the server: what boards may read, who is asked, what is kept. No sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError, ServerError
from cm_server.installs.mounts import Mounts
from cm_server.jobs.model import Board, BoardChannel, Cell, Job, Requester
from cm_server.limits import KIB, Limits
from cm_server.store.rows import BoardRow, CellAudit

LIMITS = Limits(mount_piece_bytes=KIB, mount_cache_bytes=4 * KIB)
FILES = [["a.py", 5], ["big.bin", 3000]]


class Link:
    """Records the messages to a board."""

    def __init__(self) -> None:
        self.received: list[wire.Message] = []

    def send(self, message: bytes) -> None:
        self.received.append(wire.unpack(message))

    def blocks(self) -> list[tuple[int, bytes, int]]:
        """Return number, bytes and flags of all blocks."""
        return [(*wire.read_block(each), each.flags) for each in self.received]


class Owner:
    """A caller's link."""

    token: Any = None

    def __init__(self) -> None:
        self.asked: list[wire.ReadRequest] = []
        self.reachable = True

    def send_read(self, message: bytes) -> None:
        self.asked.append(wire.read_read_request(wire.unpack(message)))

    def reaches(self, _board: Board) -> bool:
        return self.reachable


class Bench:
    """Mounted folders, with boards, a clock that is moved by hand, and the server's own jobs."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.timers: list[Callable[[], None]] = []
        self.jobs: list[tuple[str, bytes, Requester]] = []
        self.mounts = Mounts(limits, self._call_later, self._run_first)
        self.owner = Owner()

    def _call_later(self, _seconds: float, function: Callable[[], None]) -> Any:
        self.timers.append(function)

    def _run_first(self, board: Board, cell: Cell, requester: Requester, _: CellAudit) -> None:
        self.jobs.append((board.name, cell.code, requester))

    def board(self, name: str) -> Board:
        board = Board(BoardRow(name, name, bytes(32), {}, {}, 0.0, None))
        board.connect(Link(), {}, 600, ["files", "mount"])  # type: ignore[arg-type]
        return board

    def mount(self, *boards: Board, owner: Owner | None = None, number: int = 7) -> None:
        request = {"number": number, "path": "/remote", "files": FILES}
        spec, _ = self.mounts.read_request(owner or self.owner, request)
        spec.check_boards(boards)
        for board in boards:
            job = Job(1, board, Cell(spec.code, files=spec), Requester("ann", token="hash"))
            spec.start(job, BoardChannel(lambda _: None, lambda _: None))

    def read(self, board: Board, path: str, offset: int = 0, number: int = 1) -> bool:
        request = wire.ReadRequest(number, offset, 1024, path.encode())
        message = wire.unpack(wire.pack_read_request(request, job=3))
        return self.mounts.on_read(board, message)

    def answer(self, data: bytes, owner: Owner | None = None, flags: int = 0) -> None:
        """Answer the newest request to the caller."""
        message = wire.pack_block(self.owner.asked[-1].number, data, job=7, flags=flags)
        self.mounts.on_block(owner or self.owner, wire.unpack(message))


def blocks(board: Board) -> list[tuple[int, bytes, int]]:
    link: Any = board.link
    return list(link.blocks())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_caller_is_asked_once_for_what_two_boards_read(bench: Bench):
    one, two = bench.board("one"), bench.board("two")
    bench.mount(one, two)
    assert bench.read(one, "a.py", number=4)
    assert bench.read(two, "a.py", number=9)
    assert [request[1:] for request in bench.owner.asked] == [(0, KIB, b"a.py")]
    bench.answer(b"x = 1")
    assert blocks(one) == [(4, b"x = 1", 0)]
    assert blocks(two) == [(9, b"x = 1", 0)]
    assert bench.read(one, "a.py", number=5)
    assert len(bench.owner.asked) == 1
    assert blocks(one)[-1] == (5, b"x = 1", 0)


def test_block_is_as_long_as_the_boards_buffer_allows(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    data = bytes(range(256)) * 4
    bench.read(one, "big.bin", KIB)
    assert bench.owner.asked[-1][1:] == (KIB, KIB, b"big.bin")
    bench.answer(data)
    assert blocks(one) == [(1, data[: 600 - 10], 0)]
    bench.read(one, "big.bin", KIB + 590, number=2)
    assert blocks(one)[-1] == (2, data[590:], 0)
    assert one.link.received[-1].job == 3  # type: ignore[union-attr]


def test_file_that_is_not_listed_is_not_asked_for(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    for path in ("b.py", "", "../a.py", "/a.py", "a.py\0"):
        assert bench.read(one, path)
    assert bench.owner.asked == []
    assert {flags for _, _, flags in blocks(one)} == {wire.UNREADABLE}


def test_board_without_a_folder_is_refused(bench: Bench):
    one, other = bench.board("one"), bench.board("other")
    bench.mount(one)
    assert not bench.read(other, "a.py")
    assert blocks(other) == [(1, b"", wire.UNREADABLE)]


def test_board_that_the_token_does_not_reach_any_more_is_refused(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    bench.owner.reachable = False
    bench.read(one, "a.py")
    assert bench.owner.asked == []
    assert blocks(one) == [(1, b"", wire.UNREADABLE)]
    assert not bench.mounts.has(one)
    bench.mounts.mount_again(one)
    assert bench.jobs == []


def test_pieces_are_not_shared_with_another_request(bench: Bench):
    one, two = bench.board("one"), bench.board("two")
    bench.mount(one)
    bench.read(one, "a.py")
    bench.answer(b"mine!")
    other = Owner()
    bench.mount(two, owner=other)
    bench.read(two, "a.py")
    assert len(other.asked) == 1
    assert blocks(two) == []


def test_block_of_another_caller_is_ignored(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    bench.read(one, "a.py")
    bench.answer(b"evil!", owner=Owner())
    assert blocks(one) == []
    bench.answer(b"x = 1")
    assert blocks(one) == [(1, b"x = 1", 0)]
    bench.answer(b"twice")
    bench.read(one, "a.py", number=2)
    assert blocks(one)[-1] == (2, b"x = 1", 0)


def test_block_that_is_too_long_breaks_the_protocol(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    bench.read(one, "a.py")
    with pytest.raises(PeerWireError, match="more bytes than were asked for"):
        bench.answer(bytes(KIB + 1))


def test_requests_to_the_caller_are_bounded(bench: Bench):
    """A board that asks for one piece after the other, and waits for none."""
    one = bench.board("one")
    bench.mount(one)
    for index in range(100):
        bench.read(one, "big.bin", index * KIB, number=index)
    assert len(bench.owner.asked) < 20


def test_pieces_that_are_kept_are_bounded(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    for index in range(8):
        bench.read(one, "big.bin", index * KIB)
        bench.answer(bytes(KIB))
    asked = len(bench.owner.asked)
    bench.read(one, "big.bin", 7 * KIB)
    assert len(bench.owner.asked) == asked
    bench.read(one, "big.bin", 0)
    assert len(bench.owner.asked) == asked + 1


def test_caller_that_does_not_answer_fails_the_read(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    bench.read(one, "a.py")
    bench.timers.pop()()
    assert blocks(one) == [(1, b"", wire.UNREADABLE)]
    bench.answer(b"late!")
    assert len(blocks(one)) == 1


def test_unreadable_file_fails_the_read(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    bench.read(one, "a.py")
    bench.answer(b"", flags=wire.UNREADABLE)
    assert blocks(one) == [(1, b"", wire.UNREADABLE)]


def test_interrupted_board_gets_no_block_any_more(bench: Bench):
    """It goes on with something else, for which its buffer has little room."""
    one = bench.board("one")
    bench.mount(one)
    bench.read(one, "a.py")
    one.interrupt(3)
    bench.answer(b"x = 1")
    assert [message.op for message in one.link.received] == [wire.INTERRUPT]  # type: ignore[union-attr]


def test_folder_of_a_caller_that_is_gone_is_unmounted(bench: Bench):
    one, two = bench.board("one"), bench.board("two")
    bench.mount(one, two)
    bench.read(one, "a.py")
    two.disconnect()
    bench.mounts.close_owner(bench.owner)
    assert blocks(one) == [(1, b"", wire.UNREADABLE)]
    assert bench.jobs == [("one", b'[0,[["mount","/"]]]', Requester("ann"))]
    assert not bench.mounts.has(one)
    assert not bench.mounts.has(two)


def test_board_that_connects_again_gets_its_folder(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    bench.mounts.mount_again(one)
    code = b'[0,[["mount","/remote","\\na.py\\t5\\nbig.bin\\t3000\\n"]]]'
    assert bench.jobs == [("one", code, Requester("ann", token="hash"))]


def test_folder_that_was_unmounted_while_its_board_was_away_does_not_come_back(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    one.disconnect()
    spec, detail = bench.mounts.read_request(bench.owner, {})
    assert detail == "unmount"
    spec.check_boards([one])
    assert not bench.mounts.has(one)


def test_board_with_the_folder_of_another_caller_is_refused(bench: Bench):
    one = bench.board("one")
    bench.mount(one)
    with pytest.raises(ServerError, match="one has a folder of 'ann' mounted already"):
        bench.mount(one, owner=Owner())
    bench.mount(one, number=8)


@pytest.mark.parametrize(
    "change",
    [
        {"number": -1},
        {"number": 1 << 32},
        {"number": "1"},
        {"number": True},
        {"path": "/"},
        {"path": "/a/b"},
        {"path": "remote"},
        {"path": "/a.b"},
        {"path": "/" + "x" * 40},
        {"path": 5},
        {"files": None},
        {"files": {"a": 1}},
        {"files": [["a.py"]]},
        {"files": [["a.py", "5"]]},
        {"files": [["a.py", True]]},
        {"files": [["a.py", -1]]},
        {"files": [["a.py", 1 << 32]]},
        {"files": [["/a.py", 1]]},
        {"files": [["a/../b.py", 1]]},
        {"files": [["a\tb.py", 1]]},
        {"files": [["a\nb.py", 1]]},
        {"files": [["\udcff.py", 1]]},
        {"files": [["", 1]]},
        {"files": [["x" * 513, 1]]},
        {"files": [[f"{n}.py", 1] for n in range(201)]},
        {"files": [[f"{'x' * 500}{n}.py", 1] for n in range(9)]},
    ],
    ids=lambda change: str(change)[:40],
)
def test_malformed_requests_are_refused(bench: Bench, change: dict[str, Any]):
    request = {"number": 1, "path": "/remote", "files": FILES, **change}
    with pytest.raises(ServerError):
        bench.mounts.read_request(bench.owner, request)


def test_request_that_is_no_object_is_refused(bench: Bench):
    malformed: list[object] = [None, 1, "x", []]
    for request in malformed:
        with pytest.raises(ServerError):
            bench.mounts.read_request(bench.owner, request)
