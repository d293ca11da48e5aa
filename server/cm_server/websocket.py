"""A WebSocket on the server's side: the handshake, then frames over the raw stream.

tornado reads the HTTP request and routes it; from the 101 on, the stream is ours. Both
kinds of link stand on this: board_socket.py and caller_socket.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from tornado.iostream import IOStream, StreamClosedError
from tornado.web import RequestHandler

from cloudmanager import frames
from cloudmanager.errors import PeerWireError

log = logging.getLogger("cm_server")

READ_BYTES = 64 * 1024
#: Bytes that may wait for a peer that does not read; one more and its link is cut.
MAX_UNSENT = 8 * 1024 * 1024
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds, seconds, probes
USER_TIMEOUT_MS = 15_000  # what was sent and is not acknowledged by then breaks the link


class Link:
    """One WebSocket after its handshake; frames leave at once, in one write each."""

    def __init__(self, stream: IOStream, max_size: int) -> None:
        self._stream = stream
        self._reader = frames.FrameReader(max_size, masked=True)
        self._unsent = 0
        self.peer = _peer_name(stream)
        _tune(stream)

    @property
    def writing(self) -> bool:
        """Whether bytes wait for the peer to read."""
        return self._stream.writing()

    def send(self, message: bytes) -> asyncio.Future[None] | None:
        """Send one message; returns what ends when the peer took it all, None if closed."""
        return self._write(frames.encode(message))

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._write(frames.encode(b"", frames.PING))

    def close(self, code: int, reason: str = "") -> None:
        """Say why, and hang up."""
        self._write(frames.encode_close(code, reason))
        self._stream.close()

    def _write(self, data: bytes) -> asyncio.Future[None] | None:
        if self._stream.closed():
            return None
        self._unsent = self._unsent + len(data) if self._stream.writing() else len(data)
        if self._unsent > MAX_UNSENT:
            log.warning("%s does not read: its link is cut", self.peer)
            self._stream.close()
            return None
        try:
            return self._stream.write(data)
        except StreamClosedError:
            return None

    async def serve(self, on_message: Callable[[bytes], None]) -> None:
        """Hand each message to ``on_message`` until the link ends.

        A broken rule (PeerWireError, also out of ``on_message``) closes the link with
        the reason; it never leaves this function.
        """
        try:
            while self._take(await self._stream.read_bytes(READ_BYTES, partial=True), on_message):
                pass
        except StreamClosedError:
            pass
        except PeerWireError as error:
            log.warning("%s broke the protocol: %s", self.peer, error)
            self.close(getattr(error, "close_code", frames.PROTOCOL_ERROR), str(error))
        finally:
            self._stream.close()

    def _take(self, data: bytes, on_message: Callable[[bytes], None]) -> bool:
        """Handle the frames in ``data``; False once the peer hung up."""
        for frame in self._reader.feed(data):
            if frame.opcode == frames.BINARY:
                on_message(frame.payload)
            elif frame.opcode == frames.PING:
                self._write(frames.encode(frame.payload, frames.PONG))
            elif frame.opcode == frames.CLOSE:
                self._write(frames.encode(frame.payload, frames.CLOSE))
                return False
            self.heard()
        return True

    def heard(self) -> None:
        """Note a sign of life; a board's socket replaces this."""


def upgrade(handler: RequestHandler, max_size: int) -> Link | None:
    """Answer a WebSocket handshake (RFC 6455, 4.2); None when it was refused."""
    headers = handler.request.headers
    key = headers.get("Sec-WebSocket-Key", "")
    is_upgrade = headers.get("Upgrade", "").lower() == "websocket"
    if not is_upgrade or "upgrade" not in headers.get("Connection", "").lower() or not key:
        handler.set_status(426, "Upgrade Required")
        handler.set_header("Upgrade", "websocket")
        handler.finish("This address speaks WebSocket only.\n")
        return None
    if headers.get("Sec-WebSocket-Version") != "13":
        handler.set_status(426)
        handler.set_header("Sec-WebSocket-Version", "13")
        handler.finish()
        return None
    stream = handler.detach()
    link = Link(stream, max_size)
    answer = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {frames.accept_key(key)}\r\n\r\n"
    )
    stream.write(answer.encode())
    return link


def _tune(stream: IOStream) -> None:
    """No Nagle (DESIGN.md 12); notice a peer that lost its power."""
    stream.set_nodelay(True)
    sock = stream.socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {**KEEPALIVE, "TCP_USER_TIMEOUT": USER_TIMEOUT_MS}
    for name, value in options.items():
        if hasattr(socket, name):  # not every platform has each
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _peer_name(stream: IOStream) -> str:
    try:
        return "{}:{}".format(*stream.socket.getpeername()[:2])
    except OSError:
        return "a peer that is gone"
