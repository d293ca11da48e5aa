"""The floor: what a round trip costs in Python if a server does only what it must.

Like the bare forwarder, but with what at-most-once and the audit log need: before a cell is sent,
its row and its row in the audit log are committed, and with them the results of earlier cells. The
store is that of the server: the same tables, indexes, triggers and modes. In the place of tornado,
frames are read and written by few lines around a selector, results of one turn are sent together,
and cells that arrive in one turn share a commit. The caller writes and reads in one thread. There
is no authentication, queue, limit, heartbeat, interrupt, log or error: so no server in Python can
be faster, and one that has these things is slower.

`python -m benchmarks.peers.floor` is the server: it prints its TCP port and ends with its standard
input.
"""

from __future__ import annotations

import contextlib
import functools
import selectors
import socket
import sqlite3
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.micropython_processes import micropython_processes
from benchmarks.peers.bare_forwarder import BOARD_SCRIPT, TIMEOUT_SECONDS, running_server
from cm_server.store.store import Store

_BINARY = 0x82  # the first byte of a whole message
_CLOSE = 0x88
_MASK_BIT = 0x80
_SHORT_MAX = 125  # the longest payload whose length is in the second byte
_LEN16 = struct.Struct(">H")
_JOB = struct.Struct(">I")  # the number of a job, before each result
_READ_BYTES = 64 * 1024
_CHECKPOINT_COMMITS = 250  # as rarely as the server; here, the turn waits for it
_UPGRADE = (
    "GET /{kind} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
#: As the server sets them.
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "recursive_triggers=ON",
    "wal_autocheckpoint=0",
)
_INSERT_JOB = "INSERT INTO jobs (id, board, caller, created) VALUES (?, ?, ?, ?)"
_INSERT_AUDIT = (
    "INSERT INTO audit (at, who, address, verb, target, detail, boards, first_job, last_job,"
    " outcome) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_END_JOB = "UPDATE jobs SET ended = ?, status = ?, error = ? WHERE id = ?"


@contextlib.contextmanager
def running_floor(boards: int = 1) -> Iterator[Callable[[], object]]:
    """Yield the call to time: one cell on all boards.

    Raises:
        RuntimeError: a board did not connect, or did not answer 1.
    """
    with _running_server(boards) as tcp_port, _connect(tcp_port, "caller") as link:
        caller = _Caller(link)
        if caller.run(b"print(1)", boards) != [b"1\n"] * boards:
            raise RuntimeError("the boards did not all answer 1")
        yield lambda: caller.run(b"print(1)", boards)


@contextlib.contextmanager
def running_callers(boards: int, callers: int) -> Iterator[list[Callable[[int], object]]]:
    """Yield a call for each of several callers: one cell on the board with a number.

    Raises:
        RuntimeError: a board did not connect.
    """
    with _running_server(boards) as tcp_port, contextlib.ExitStack() as stack:
        links = [stack.enter_context(_connect(tcp_port, "one")) for _ in range(callers)]
        yield [functools.partial(_run_on_one, _Caller(link)) for link in links]


def _run_on_one(caller: _Caller, board: int) -> object:
    return caller.run(board.to_bytes(2, "big") + b"print(1)", 1)


@contextlib.contextmanager
def _running_server(boards: int) -> Iterator[int]:
    """Start the server and its boards; yield its TCP port once all are connected."""
    with (
        running_server(__name__, str(boards)) as (tcp_port, await_boards),
        micropython_processes(boards, BOARD_SCRIPT, str(tcp_port)),
    ):
        await_boards()
        yield tcp_port


@contextlib.contextmanager
def _connect(tcp_port: int, kind: str) -> Iterator[socket.socket]:
    """Connect as a caller of a kind: of all boards, or of one in each cell."""
    with socket.create_connection(("127.0.0.1", tcp_port), TIMEOUT_SECONDS) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(_UPGRADE.format(kind=kind).encode())
        if not link.recv(_READ_BYTES).endswith(b"\r\n\r\n"):
            raise RuntimeError("the server did not accept the caller")
        yield link


class _Caller:
    """A caller that writes and reads in the thread that waits."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._buffer = bytearray()

    def run(self, message: bytes, boards: int) -> list[bytes]:
        """Send a cell; return what its boards have printed, in the order of the results."""
        self._link.send(_pack(message, masked=True))
        outputs: list[bytes] = []
        while len(outputs) < boards:
            self._buffer += self._link.recv(_READ_BYTES)
            outputs += [result[_JOB.size :] for result in _read_frames(self._buffer, masked=False)]
        return outputs


def _pack(message: bytes, *, masked: bool) -> bytes:
    """Return a message as one frame; the mask is zero."""
    bit, key = (_MASK_BIT, b"\0\0\0\0") if masked else (0, b"")
    if len(message) <= _SHORT_MAX:
        return bytes((_BINARY, bit | len(message))) + key + message
    return bytes((_BINARY, bit | 126)) + _LEN16.pack(len(message)) + key + message


def _read_frames(buffer: bytearray, *, masked: bool) -> list[bytes]:
    """Remove all complete frames from a buffer; return their payloads."""
    found: list[bytes] = []
    key_bytes = 4 if masked else 0
    while len(buffer) >= 2:
        if buffer[0] != _BINARY or bool(buffer[1] & _MASK_BIT) is not masked:
            raise ValueError("no whole message of a peer")
        size, at = buffer[1] & 0x7F, 2
        if size == 126:
            if len(buffer) < 4:
                break
            size, at = _LEN16.unpack_from(buffer, 2)[0], 4
        at += key_bytes
        if len(buffer) < at + size:
            break
        found.append(bytes(buffer[at : at + size]))
        del buffer[: at + size]
    return found


class _Link:
    """The link of a board or of a caller.

    Attributes:
        kind: board, caller (of all boards) or one (of one board in each cell).
        asker: of a board: the link of the caller of its job.
        job: of a board: the number of its job; 0 if it is free.
        results: of a caller: what is sent at the end of the turn.
    """

    __slots__ = ("asker", "buffer", "job", "kind", "results", "socket")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.buffer = bytearray()
        self.kind = ""
        self.asker: _Link | None = None
        self.job = 0
        self.results: list[bytes] = []


class _Server:
    """A server that does only what it must."""

    def __init__(self, expected_boards: int, database: Path) -> None:
        Store(database).close()  # makes the tables
        self._store = sqlite3.connect(database)
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "recursive_triggers=ON",
            "wal_autocheckpoint=0",
        ):
            self._store.execute(f"PRAGMA {pragma}")
        self._expected_boards = expected_boards
        self._boards: list[_Link] = []
        self._selector = selectors.DefaultSelector()
        self._next_job = 1
        self._commits = 0
        self._cells: list[tuple[_Link, list[_Link], bytes]] = []  # of this turn
        self._ended: list[tuple[float, str, str, int]] = []  # the results of earlier turns
        self._answered: list[_Link] = []  # callers with results of this turn

    def serve(self) -> None:
        """Serve until the standard input ends."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(sys.stdin, selectors.EVENT_READ, None)
        print(listener.getsockname()[1], flush=True)
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                key.data(key.fileobj)
            self._end_turn()

    def _accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(sock)
        self._selector.register(sock, selectors.EVENT_READ, lambda _: self._read(link))

    def _read(self, link: _Link) -> None:
        data = link.socket.recv(_READ_BYTES)
        link.buffer += data
        if not data or link.buffer[0] == _CLOSE:
            self._selector.unregister(link.socket)
            link.socket.close()
        elif not link.kind:
            self._upgrade(link)
        else:
            for message in _read_frames(link.buffer, masked=True):
                if link.kind == "board":
                    self._on_result(link, message)
                elif link.kind == "one":
                    board = self._boards[int.from_bytes(message[:2], "big")]
                    self._cells.append((link, [board], message[2:]))
                else:
                    self._cells.append((link, self._boards, message))

    def _upgrade(self, link: _Link) -> None:
        if not link.buffer.endswith(b"\r\n\r\n"):
            return
        link.kind = link.buffer.split(b" ", 2)[1].decode()[1:]
        link.buffer.clear()
        link.socket.send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        if link.kind == "board":
            self._boards.append(link)
            if len(self._boards) == self._expected_boards:
                print("all connected", flush=True)

    def _on_result(self, board: _Link, output: bytes) -> None:
        caller = board.asker
        if caller is None:
            return
        self._ended.append((time.time(), "ok", "", board.job))
        if not caller.results:
            self._answered.append(caller)
        caller.results.append(_pack(_JOB.pack(board.job) + output, masked=False))
        board.asker = None

    def _end_turn(self) -> None:
        """Send the results of this turn; then commit its cells, and send them."""
        for caller in self._answered:
            caller.socket.send(b"".join(caller.results))
            caller.results.clear()
        self._answered.clear()
        if self._cells:
            cells, self._cells = self._cells, []
            self._commit(cells)
            for caller, boards, code in cells:
                frame = _pack(code, masked=False)
                for board in boards:
                    board.asker = caller
                    board.socket.send(frame)

    def _commit(self, cells: list[tuple[_Link, list[_Link], bytes]]) -> None:
        """Commit the rows of cells, and the results of those before them."""
        now, rows, audit = time.time(), [], []
        for _, boards, _ in cells:
            first = self._next_job
            self._next_job += len(boards)
            for number, board in enumerate(boards, first):
                board.job = number
                rows.append((number, "0123456789abcdef", "floor", now))
            last = self._next_job - 1
            audit.append(
                (now, "floor", "127.0.0.1", "submit", "", "", len(boards), first, last, "done")
            )
        if self._ended:
            self._store.executemany(_END_JOB, self._ended)
            self._ended.clear()
        self._store.executemany(_INSERT_JOB, rows)
        self._store.executemany(_INSERT_AUDIT, audit)
        self._store.commit()
        self._commits += 1
        if not self._commits % _CHECKPOINT_COMMITS:
            self._store.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _main(boards: int) -> None:
    with tempfile.TemporaryDirectory(prefix="cm-floor-") as folder:
        _Server(boards, Path(folder) / "store.db").serve()


if __name__ == "__main__":
    _main(int(sys.argv[1]))
