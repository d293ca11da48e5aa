"""Thousands of simulated boards: links with the real protocol and real authentication.

`python -m benchmarks.simulated_boards HOST TCP_PORT [CA]`, with the identities (the JSON of
`fleet.enrol`) on standard input, opens a link for each, and reconnects as mpy_client/cm/dial.py
does, until standard input ends. The boards do not run code: each answers a cell immediately as if
it had printed 1, and reports its last job when it reconnects. They are for measurements with more
boards than the machine could run as MicroPython processes; the results state that they are
simulated.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import os
import random
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloudmanager import config
from cloudmanager.protocol import frames, proofs, wire
from cm_server.net.tls_transport import TlsTransport

PROCESSES = 2
_CONCURRENT_DIALS = 50  # boards of one process that connect at the same time when it starts
_ADDRESSES = 16  # of 127.0.0.0/8, from which they connect
#: Linux: choose the port when the socket connects, so that many may have the same one.
_BIND_WITHOUT_PORT: int | None = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", None)
_STEP_SECONDS = 10.0  # to connect, and then to authenticate, as on a board
_FACTS = {"platform": "simulated", "version": "1.28.0", "mpy": 0x0306, "machine": "none"}
_BUFFER_BYTES = 1016  # as on a board
_RESULT_PAYLOAD = b"\0\x031\r\n"  # RESULT with 3 bytes of output
_HEAD_END = b"\r\n\r\n"


@contextlib.contextmanager
def simulated_boards(
    host: str, tcp_port: int, boards: list[dict[str, Any]], ca: Path | None
) -> Iterator[None]:
    """Keep a link open for each board during a `with` block, in separate processes.

    Args:
        host: the server's address.
        tcp_port: the server's TCP port.
        boards: the result of `fleet.enrol`.
        ca: file of the certificate authority that verifies the server; None: without TLS.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.simulated_boards",
        host,
        str(tcp_port),
        str(ca or ""),
    ]
    with contextlib.ExitStack() as stack:
        for number in range(PROCESSES):
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            process.stdin.write(json.dumps(boards[number::PROCESSES]).encode() + b"\n")
            process.stdin.flush()
        yield


class Dialler:
    """Opens connections to the server.

    Args:
        host: the server's address.
        tcp_port: the server's TCP port.
        ca: file of the certificate authority that verifies the server; "": without TLS.

    Attributes:
        dial_slots: limits how many boards connect at the same time.
    """

    def __init__(self, host: str, tcp_port: int, ca: str) -> None:
        self._address = (host, tcp_port)
        self._context = ssl.create_default_context(cafile=ca) if ca else None
        self.dial_slots = asyncio.Semaphore(_CONCURRENT_DIALS)

    async def dial(self, board: SimulatedBoard) -> None:
        """Connect a board."""
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._bind(sock, board.number)
            await loop.sock_connect(sock, self._address)
            if self._context is None:
                await loop.create_connection(lambda: board, sock=sock)
                return
            secure = self._context.wrap_socket(
                sock, server_hostname=config.TLS_NAME, do_handshake_on_connect=False
            )
            await _do_handshake(loop, secure)
        except BaseException:
            sock.close()
            raise
        TlsTransport(secure, board)

    def _bind(self, sock: socket.socket, number: int) -> None:
        """Let groups of boards have addresses of their own: one has 28,000 ports at most."""
        if self._address[0] == "127.0.0.1" and _BIND_WITHOUT_PORT is not None:
            sock.setsockopt(socket.IPPROTO_IP, _BIND_WITHOUT_PORT, 1)
            sock.bind((f"127.0.1.{1 + number % _ADDRESSES}", 0))


async def _do_handshake(loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket) -> None:
    while True:
        with contextlib.suppress(ssl.SSLWantReadError):
            sock.do_handshake()
            return
        readable = asyncio.Event()
        loop.add_reader(sock.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(sock.fileno())


class SimulatedBoard(asyncio.Protocol):
    """One simulated board.

    Args:
        enrolment: its identity, as ``fleet.enrol`` returns it.
        dialler: opens its connections.
        number: decides from which address it connects.
    """

    def __init__(self, enrolment: dict[str, Any], dialler: Dialler, number: int = 0) -> None:
        self.number = number
        self.id, self.key = enrolment["id"], bytes.fromhex(enrolment["key"])
        self._dialler = dialler
        self._boot_id = os.urandom(8).hex()
        self._last_job: dict[str, Any] | None = None
        self._reconnect_spread = 2.0  # seconds over which reconnections are spread
        self._tries = 0

    # Connecting, as dial.py does it

    async def dial_first(self) -> None:
        """Connect for the first time, when a slot is free."""
        async with self._dialler.dial_slots:
            await self._dial()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._open.wait(), 10)

    async def _dial(self) -> None:
        self._tries += 1
        self._open = asyncio.Event()
        try:
            await asyncio.wait_for(self._dialler.dial(self), _STEP_SECONDS)
        except (TimeoutError, OSError):
            self._dial_later()
        else:
            self._step_timer = asyncio.get_running_loop().call_later(
                _STEP_SECONDS, self._transport.abort
            )

    def _dial_later(self) -> None:
        span = self._reconnect_spread / 2 ** max(0, 3 - self._tries)
        loop = asyncio.get_running_loop()
        loop.call_later(random.random() * span, lambda: _keep_task(loop.create_task(self._dial())))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the WebSocket handshake."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._response_head = b""
        self._frames: frames.FrameReader | None = None
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            "GET /board HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Handle the handshake's response, then frames."""
        if self._frames is None:
            self._response_head += data
            head, ends, data = self._response_head.partition(_HEAD_END)
            if not ends:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._transport.abort()
                return
            self._frames = frames.FrameReader(_BUFFER_BYTES, masked=False)
            self._send_hello()
        for frame in self._frames.feed(data):
            if frame.opcode == frames.BINARY:
                self._on_message(wire.unpack(frame.payload))
            elif frame.opcode == frames.PING:
                self._transport.write(frames.encode_frame(frame.payload, frames.PONG, mask=True))
            elif frame.opcode == frames.CLOSE:
                self._tries = (
                    3  # the server asks to reconnect later: wait for up to the whole spread
                )
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Reconnect after a random delay."""
        self._step_timer.cancel()
        self._open.set()
        self._dial_later()

    # Messages

    def _send(self, op: int, payload: bytes, *, job: int = 0) -> None:
        self._transport.write(frames.encode_frame(wire.pack(op, payload, job=job), mask=True))

    def _send_hello(self) -> None:
        self._nonce = os.urandom(16)
        hello = {"v": wire.PROTOCOL, "id": self.id, "nonce": self._nonce.hex()}
        self._send(wire.HELLO, json.dumps(hello).encode())

    def _on_message(self, message: wire.Message) -> None:
        if message.op == wire.EXEC:
            self._last_job = {"job": f"{message.job:08x}", "status": 0, "error": "", "dropped": 0}
            self._send(wire.RESULT, _RESULT_PAYLOAD, job=message.job)
        elif message.op == wire.CHALLENGE:
            self._send_proof(message.payload)
        elif message.op == wire.WELCOME:
            self._reconnect_spread, self._tries = wire.read_json(message.payload)["spread"], 1
            self._step_timer.cancel()
            self._open.set()

    def _send_proof(self, challenge: bytes) -> None:
        """Verify the server's proof, then send the board's."""
        nonces = self._nonce + challenge[:16]
        wanted = proofs.server_proof(self.key, nonces, self.id, challenge[48:])
        if not hmac.compare_digest(challenge[16:48], wanted):
            raise SystemExit("the server's proof is wrong")
        fields = {"boot": self._boot_id, "buf": _BUFFER_BYTES, "parts": ["run"], "facts": _FACTS}
        text = json.dumps({**fields, "last": self._last_job}).encode()
        self._send(wire.PROOF, proofs.board_proof(self.key, nonces, self.id, text) + text)


_tasks: set[asyncio.Task[None]] = set()


def _keep_task(task: asyncio.Task[None]) -> None:
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def _main(host: str, tcp_port: int, ca: str) -> None:
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    dialler = Dialler(host, tcp_port, ca)
    for number, enrolment in enumerate(json.loads(sys.stdin.buffer.readline())):
        board = SimulatedBoard(enrolment, dialler, number)
        _keep_task(asyncio.create_task(board.dial_first()))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
