"""The bare cluster: what a cell costs at least that two servers, PostgreSQL and NATS carry out.

A blocking caller, two servers that only forward, a MicroPython board at each (`boards/bare.py`). A
cell on a board of the caller's server needs one commit before anything is sent; a cell on the other
server's board needs a commit of either server and two messages: the request, and the board's result
together with the confirmation that the job was claimed. The statements, their conditions and what
they write are those of `cm_server.store`, as is the way that PostgreSQL gets them: one statement
per commit. There is no authentication, queue, heartbeat, limit, log or history, and the caller and
the servers use the fastest ways that we know:

* PostgreSQL is asked over libpq in the event loop, with a statement that was prepared at the start:
  no thread is woken, and no values are converted.
* The connection to NATS is a plain `asyncio.Protocol`: a message is written where it is made, and
  handled where it is read.

`python -m benchmarks.peers.bare_cluster NAME OTHER POSTGRES NATS_PORT` is one of the servers: it
prints its TCP port, and "connected" when its board is; it ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg
from psycopg import pq
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from benchmarks.micropython_processes import micropython_processes
from benchmarks.peers.bare_forwarder import TIMEOUT_SECONDS, running_server
from cm_server.store.rows import new_board_row
from cm_server.store.shared_store import SharedStore

_BOARD_SCRIPT = Path(__file__).parent / "boards" / "bare.py"
_NAMES = ("A", "B")
_CODE = b"print(1)"

#: Before each cell, the result of the one before is written (a no-op for the first). A server that
#: the others have removed divides by zero.
_END = """part_0 AS (
UPDATE jobs SET ended = $1, status = 'ok', error = '' WHERE id = $2 AND server = $3 AND epoch = 1
RETURNING 1)"""
_MEMBER = """part_1 AS (
SELECT 1 / count(*) FROM (SELECT id FROM servers WHERE id = $3 FOR SHARE) AS required)"""
_RESULTS = """
SELECT 0, to_json(c) FROM (SELECT count(*) FROM part_0) AS c
UNION ALL SELECT 1, to_json(part_1) FROM part_1"""
#: A new job, and its row in the audit log. Its epoch is null if another server has to claim it.
_NEW = """part_2 AS (
INSERT INTO jobs (id, board, caller, created, server, epoch)
VALUES ($4, $5, 'bench', $1, $3, $6)),
part_3 AS (
INSERT INTO audit (at, who, address, verb, target, detail, boards, first_job, last_job, outcome)
VALUES ($1, 'bench', '127.0.0.1', 'submit', $5, 'print(1)', 1, $4, $4, 'done'))"""
#: A job of another server, which this one owns from then on, if it has the board.
_CLAIM = """part_2 AS (
UPDATE jobs SET server = $3, epoch = boards.epoch FROM boards
WHERE jobs.server = $4 AND jobs.epoch IS NULL AND jobs.ended IS NULL AND jobs.id = $5
AND boards.id = jobs.board AND boards.holder = $3
RETURNING jobs.id, jobs.epoch)"""
_STATEMENTS = {
    b"insert": f"WITH {_END}, {_NEW}, {_MEMBER} {_RESULTS}",
    b"claim": f"WITH {_END}, {_CLAIM}, {_MEMBER} {_RESULTS} "
    "UNION ALL SELECT 2, to_json(part_2) FROM part_2",
}


@contextlib.contextmanager
def running_cluster(
    postgres: str, nats_port: int
) -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """Yield the calls to time: a cell on a board of the caller's server, and of the other one.

    Args:
        postgres: the URL of an empty database.
        nats_port: the TCP port of NATS.

    Raises:
        RuntimeError: a server or a board did not start, or did not answer 1.
    """
    _prepare_store(postgres)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(running_server(__name__, name, other, postgres, str(nats_port)))
            for name, other in (_NAMES, _NAMES[::-1])
        ]
        for tcp_port, _ in servers:
            stack.enter_context(micropython_processes(1, _BOARD_SCRIPT, str(tcp_port)))
        for _, await_board in servers:
            await_board()
        link = stack.enter_context(
            connect(f"ws://127.0.0.1:{servers[0][0]}/caller", compression=None)
        )
        for name in _NAMES:
            if (answer := _run(link, name)) != b"1\n":
                raise RuntimeError(f"the bare board of server {name} answered {answer!r}")
        yield (lambda: _run(link, "A")), (lambda: _run(link, "B"))


def _run(link: Connection, name: str) -> object:
    """Run a cell on the board of a server; return its output."""
    link.send(name.encode() + _CODE)
    return link.recv(TIMEOUT_SECONDS, decode=False)


def _prepare_store(location: str) -> None:
    """Create the tables, and insert the servers and their boards."""
    for name in _NAMES:
        store = SharedStore(location, name)
        store.register_server("http://127.0.0.1")
        board = f"board-{name}"
        store.enrol_boards([new_board_row(board, board, bytes(32))])
        store.claim_board(board, {})
        store.close()


class _Database:
    """A connection to PostgreSQL that the event loop reads: one statement at a time."""

    def __init__(self, location: str) -> None:
        self._connection = psycopg.connect(location, autocommit=True)
        self._libpq = self._connection.pgconn
        for name, text in _STATEMENTS.items():
            result = self._libpq.prepare(name, text.encode())
            assert result.status == pq.ExecStatus.COMMAND_OK, result.error_message
        self._on_committed: Callable[[], None] = lambda: None
        asyncio.get_running_loop().add_reader(self._libpq.socket, self._on_readable)

    def execute(
        self, name: bytes, values: Sequence[bytes | None], on_committed: Callable[[], None]
    ) -> None:
        self._on_committed = on_committed
        self._libpq.send_query_prepared(name, values)
        self._libpq.flush()

    def _on_readable(self) -> None:
        self._libpq.consume_input()
        while not self._libpq.is_busy():
            result = self._libpq.get_result()
            if result is None:
                self._on_committed()
                return
            assert result.status == pq.ExecStatus.TUPLES_OK, result.error_message


class _Bus(asyncio.Protocol):
    """A connection to NATS (docs.nats.io/reference/nats-protocol) with one subscription."""

    def __init__(self, subject: str, on_message: Callable[[bytes], None]) -> None:
        self._subject, self._on_message = subject, on_message
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        options = json.dumps({"verbose": False, "pedantic": False, "echo": False})
        transport.write(f"CONNECT {options}\r\nSUB {self._subject} 1\r\n".encode())

    def publish(self, subject: str, data: bytes) -> None:
        self._transport.write(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(data), data))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n")) >= 0:
            words = self._buffer[:end].split()
            rest = self._buffer[end + 2 :]
            if words[0] == b"MSG":
                size = int(words[-1])
                if len(rest) < size + 2:
                    return
                self._buffer = rest[size + 2 :]
                self._on_message(rest[:size])
            else:
                self._buffer = rest
                if words[0] == b"PING":
                    self._transport.write(b"PONG\r\n")


class _BareServer:
    """Forwards cells of its caller to its board, or to the other server for that one's board."""

    def __init__(self, name: str, other: str, database: _Database) -> None:
        self.name, self._other, self._database = name.encode(), other.encode(), database
        self.bus: _Bus
        self.board: _BoardHandler
        self.caller: _CallerHandler
        self._numbers = itertools.count(1 if name == "A" else 1_000_000_000)
        self._is_hosted = False  # whether the job on the board is the other server's
        self._ended = b"0"  # the number of the job whose result is not written yet

    def on_cell(self, message: bytes) -> None:
        """Commit a job of the caller; then send it to its board, or to the other server."""
        where, code, number = message[:1], message[1:], b"%d" % next(self._numbers)
        epoch = b"1" if where == self.name else None

        def on_committed() -> None:
            if epoch:
                self._ended, self._is_hosted = number, False
                self.board.write_message(code, binary=True)
            else:
                self.bus.publish(self._other.decode(), number + b" " + code)

        values = (*self._pending(), self.name, number, b"board-" + where, epoch)
        self._database.execute(b"insert", values, on_committed)

    def on_message(self, data: bytes) -> None:
        """Forward a result of the other server, or claim a job of its caller and send it."""
        number, _, rest = data.partition(b" ")
        if number == b"0":
            self.caller.write_message(rest, binary=True)
            return

        def on_committed() -> None:
            self._ended, self._is_hosted = number, True
            self.board.write_message(rest, binary=True)

        values = (*self._pending(), self.name, self._other, number)
        self._database.execute(b"claim", values, on_committed)

    def _pending(self) -> tuple[bytes, bytes]:
        """Return the time, and the job whose result the next commit writes."""
        return repr(time.time()).encode(), self._ended

    def on_result(self, message: bytes) -> None:
        """Forward the result of the board."""
        if self._is_hosted:
            self.bus.publish(self._other.decode(), b"0 " + message)
        else:
            self.caller.write_message(message, binary=True)


class _LinkHandler(WebSocketHandler):
    """Base class of both kinds of link."""

    def initialize(self, server: _BareServer) -> None:
        self.server = server

    def open(self, *_args: str) -> None:
        self.set_nodelay(True)


class _BoardHandler(_LinkHandler):
    """The board's link."""

    def open(self, *_args: str) -> None:
        super().open()
        self.server.board = self
        print("connected", flush=True)

    def on_message(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        self.server.on_result(message)


class _CallerHandler(_LinkHandler):
    """The caller's link: the first byte of a message is the name of its board's server."""

    def open(self, *_args: str) -> None:
        super().open()
        self.server.caller = self

    def on_message(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        self.server.on_cell(message)


async def _serve(name: str, other: str, postgres: str, nats_port: str) -> None:
    server = _BareServer(name, other, _Database(postgres))
    loop = asyncio.get_running_loop()
    _, server.bus = await loop.create_connection(
        lambda: _Bus(name, server.on_message), "127.0.0.1", int(nats_port)
    )
    routes = {"/board": _BoardHandler, "/caller": _CallerHandler}
    app = Application([(path, handler, {"server": server}) for path, handler in routes.items()])
    sockets = bind_sockets(0, "127.0.0.1")
    HTTPServer(app).add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    over = asyncio.Event()
    loop.add_reader(sys.stdin, over.set)
    await over.wait()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
