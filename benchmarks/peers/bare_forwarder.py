"""The bare forwarder: the cost of a round trip through a server that only forwards messages.

A blocking caller with an I/O thread, one tornado process, N boards (MicroPython processes with
`boards/bare.py`), TCP_NODELAY everywhere, one message to and one result from each board. There is
no authentication, store, queue, heartbeat or log, and no batching. It is the lower bound for a
server that has all of these.

The caller is the `websockets` library's blocking client, whose thread reads: 0.34 ms for one board
where tornado's client on a loop in a thread took 0.45 ms, and no difference for 200 boards.
`python -m benchmarks.peers.bare_forwarder` is the server: it prints its TCP port and ends with its
standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from benchmarks.micropython_processes import micropython_processes
from benchmarks.timing import time_calls

BOARD_SCRIPT = Path(__file__).parent / "boards" / "bare.py"
TIMEOUT_SECONDS = 30.0  # for all boards to connect, and for each answer


def measure(boards: int = 1, n: int = 500) -> list[float]:
    """Return the seconds of each of `n` cells: `print(1)` on all boards, until the last result.

    Args:
        boards: how many MicroPython processes to start, at most 65,536.
        n: the number of measured cells, after a warm-up.
    """
    with running_forwarder(boards) as once:
        return time_calls(once, n)


@contextlib.contextmanager
def running_forwarder(boards: int = 1) -> Iterator[Callable[[], object]]:
    """Yield the call to time: one cell on all boards.

    Raises:
        RuntimeError: a board did not connect, or did not answer 1.
    """
    with (
        running_server(__name__, str(boards)) as (tcp_port, await_boards),
        micropython_processes(boards, BOARD_SCRIPT, str(tcp_port)),
        connect(f"ws://127.0.0.1:{tcp_port}/caller", compression=None) as link,
    ):
        await_boards()
        caller = _Caller(link, boards)
        answers = caller.run(b"print(1)")
        if len(answers) != boards or set(answers.values()) != {b"1\n"}:
            raise RuntimeError("the bare boards did not all answer 1")
        yield lambda: caller.run(b"print(1)")


@contextlib.contextmanager
def running_callers(boards: int, callers: int) -> Iterator[list[Callable[[int], object]]]:
    """Yield a call for each of several callers: one cell on the board with a number.

    Raises:
        RuntimeError: a board did not connect.
    """
    with (
        running_server(__name__, str(boards)) as (tcp_port, await_boards),
        micropython_processes(boards, BOARD_SCRIPT, str(tcp_port)),
        contextlib.ExitStack() as stack,
    ):
        url = f"ws://127.0.0.1:{tcp_port}/one"
        links = [stack.enter_context(connect(url, compression=None)) for _ in range(callers)]
        await_boards()
        yield [functools.partial(_run_on_one, link) for link in links]


def _run_on_one(link: Connection, board: int) -> object:
    """Run a cell on one board; return its output."""
    link.send(board.to_bytes(2, "big") + b"print(1)")
    return link.recv(TIMEOUT_SECONDS, decode=False)


class _Caller:
    """A blocking caller; the `websockets` library reads from the socket in its own thread."""

    def __init__(self, link: Connection, boards: int) -> None:
        self._link = link
        self._boards = boards

    def run(self, code: bytes) -> dict[bytes, bytes]:
        """Run `code` on all boards; return each board's output by its number."""
        self._link.send(code)
        answers: dict[bytes, bytes] = {}
        while len(answers) < self._boards:
            message = self._link.recv(TIMEOUT_SECONDS, decode=False)
            answers[message[:2]] = message[2:]
        return answers


class _Connections:
    """The connected boards and the caller."""

    def __init__(self, expected: int) -> None:
        self.expected_boards = expected
        self.boards: list[_BoardHandler] = []
        self.caller: _CallerHandler | None = None


class _LinkHandler(WebSocketHandler):
    """Base class of both kinds of link."""

    def initialize(self, hub: _Connections) -> None:
        self.hub = hub

    def open(self, *_args: str) -> None:
        self.set_nodelay(True)


class _BoardHandler(_LinkHandler):
    """A board's link: forwards its messages to the caller, with the board's number."""

    asker: _OneBoardHandler | None = None  # the caller of the board's cell, if it is of one board

    def open(self, *_args: str) -> None:
        super().open()
        self.number = len(self.hub.boards).to_bytes(2, "big")
        self.hub.boards.append(self)
        if len(self.hub.boards) == self.hub.expected_boards:
            print("all connected", flush=True)

    def on_message(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        if self.asker:
            self.asker.write_message(message, binary=True)
        elif self.hub.caller:
            self.hub.caller.write_message(self.number + message, binary=True)


class _CallerHandler(_LinkHandler):
    """The caller's link: forwards its messages to all boards."""

    def open(self, *_args: str) -> None:
        super().open()
        self.hub.caller = self

    def on_message(self, message: str | bytes) -> None:
        for board in self.hub.boards:
            board.write_message(message, binary=True)


class _OneBoardHandler(_LinkHandler):
    """The link of one of several callers: each message is for the board with the number in it."""

    def on_message(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        board = self.hub.boards[int.from_bytes(message[:2], "big")]
        board.asker = self
        board.write_message(message[2:], binary=True)


@contextlib.contextmanager
def running_server(module: str, *arguments: str) -> Iterator[tuple[int, Callable[[], None]]]:
    """Start a server; yield its TCP port and a function that waits for its boards.

    Args:
        module: the module that is the server. It prints its TCP port, and another line when its
            boards are connected; it ends when its input is closed.
        arguments: of its command line.
    """
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        lines = process.stdout

        def await_boards() -> None:
            if not select.select([lines], [], [], TIMEOUT_SECONDS)[0] or not lines.readline():
                raise RuntimeError(f"not all bare boards of {' '.join(command[2:])} connected")

        try:
            yield int(lines.readline()), await_boards
        finally:
            process.stdin.close()


async def _serve(boards: int) -> None:
    hub = {"hub": _Connections(boards)}
    app = Application(
        [
            ("/board", _BoardHandler, hub),
            ("/caller", _CallerHandler, hub),
            ("/one", _OneBoardHandler, hub),
        ]
    )
    sockets = bind_sockets(0, "127.0.0.1", backlog=1024)
    server = HTTPServer(app)
    server.add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, over.set)
    await over.wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
