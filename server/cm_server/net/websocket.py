"""A WebSocket on the server's side: the handshake, then frames over the socket.

tornado reads the HTTP request and routes it; from the 101 on, the socket is ours, in an
asyncio transport: a message costs half of what it costs through ``IOStream`` (measured:
one cell's round trip 0.70 ms and 0.55 ms). Both kinds of link stand on this:
board_socket.py and caller_socket.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

from tornado.iostream import IOStream, StreamClosedError
from tornado.web import RequestHandler

from cloudmanager.protocol import frames, proofs
from cloudmanager.protocol.errors import PeerWireError
from cm_server import limits

from .tls_transport import READ_BYTES, TlsTransport

log = logging.getLogger("cm_server")

KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds, seconds, probes
USER_TIMEOUT_MS = 15_000  # what was sent and is not acknowledged by then breaks the link


class Link(asyncio.Protocol):
    """One WebSocket after its handshake; each message leaves at once, in one write.

    Args:
        max_size: longest message in bytes that the peer may send.
        sips: whether a flood of it is read in sips.

    Attributes:
        peer: the other end's address, for the log.
        on_message: takes each message; may raise PeerWireError, which ends the link.
        on_frame: called after each frame of any kind: a sign of life.
        on_drained: called when a peer that had not read has read everything.
        on_start: called once when the link is open, before its first message.
        on_end: called once when the link is gone.
        writing: whether bytes wait for the peer to read.
        mac: what seals messages and opens them, on a board's plain link.
    """

    def __init__(self, max_size: int, *, sips: bool = False) -> None:
        self.sips = sips
        self.peer = "a peer"
        self.on_message: Callable[[bytes], None] = lambda _: None
        self.on_frame: Callable[[], None] = _nothing
        self.on_drained: Callable[[], None] = _nothing
        self.on_start: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing
        self.writing = False
        self.mac: proofs.Mac | None = None
        self._reader = frames.FrameReader(max_size, masked=True)
        self._transport: asyncio.Transport | None = None

    @property
    def gone(self) -> bool:
        """Whether the link has ended."""
        return self._transport is None

    def send(self, message: bytes) -> None:
        """Send one message; nothing happens on a link that is gone."""
        if self.mac is not None:
            message = self.mac.seal(message)
        self._write(frames.encode(message))

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._write(frames.encode(b"", frames.PING))

    def close(self, code: int, reason: str = "") -> None:
        """Say why, and hang up once that has left; who does not read is not waited for."""
        self._write(frames.encode_close(code, reason))
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.close()
            if transport.get_write_buffer_size():
                loop = asyncio.get_running_loop()
                loop.call_later(limits.CLOSE_SECONDS, transport.abort)

    def abort(self) -> None:
        """Hang up at once, without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        if self.writing and transport.get_write_buffer_size() > limits.UNSENT_BYTES:
            log.warning("%s does not read: its link is cut", self.peer)
            self._transport = None
            # Not now: we may be inside the transport's own resume_writing.
            asyncio.get_running_loop().call_soon(transport.abort)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket over."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        self.on_start()

    def data_received(self, data: bytes) -> None:
        """Handle the frames in ``data``; a broken rule closes the link with its reason."""
        if len(data) >= limits.SIP_BYTES // 2 and self.sips and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(limits.SIP_PAUSE_SECONDS, self._read_on)
        try:
            for frame in self._reader.feed(data):
                self._on_frame(frame)
                if self._transport is None or self._transport.is_closing():
                    break  # what comes behind a close is not heard
        except PeerWireError as error:
            log.warning("%s broke the protocol: %s", self.peer, error.detail)
            self.close(getattr(error, "close_code", frames.PROTOCOL_ERROR), error.detail)

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _on_frame(self, frame: frames.Frame) -> None:
        if frame.opcode == frames.BINARY:
            self.on_message(self.mac.open(frame.payload) if self.mac else frame.payload)
        elif frame.opcode == frames.PING:
            self._write(frames.encode(frame.payload, frames.PONG))
        elif frame.opcode == frames.CLOSE:
            self.close(frames.close_code(frame.payload))
        self.on_frame()

    def pause_writing(self) -> None:
        """Note that the peer has not read what was sent."""
        self.writing = True

    def resume_writing(self) -> None:
        """Note that it has."""
        self.writing = False
        self.on_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so, once."""
        self._transport = None
        self.on_end()


def _nothing() -> None:
    """Do nothing."""


async def accept(handler: RequestHandler, link: Link) -> bool:
    """Answer a WebSocket handshake (RFC 6455, 4.2); return whether ``link`` is open now."""
    headers = handler.request.headers
    key = headers.get("Sec-WebSocket-Key", "")
    is_upgrade = headers.get("Upgrade", "").lower() == "websocket"
    if not is_upgrade or "upgrade" not in headers.get("Connection", "").lower() or not key:
        handler.set_header("Upgrade", "websocket")
        _refuse(handler, "This address speaks WebSocket only.")
        return False
    if headers.get("Sec-WebSocket-Version") != "13":
        handler.set_header("Sec-WebSocket-Version", "13")
        _refuse(handler, "WebSocket version 13 is spoken here.")
        return False
    answer = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {frames.accept_key(key)}\r\n\r\n"
    )
    try:
        await _take_over(handler.detach(), link, answer.encode())
    except (StreamClosedError, OSError):
        return False
    return True


def _refuse(handler: RequestHandler, why: str) -> None:
    handler.set_status(426, "Upgrade Required")
    handler.finish(why + "\n")


async def _take_over(stream: IOStream, link: Link, answer: bytes) -> None:
    """Move the connection from tornado's stream to the link, with what was read already."""
    await stream.write(answer)
    early = asyncio.ensure_future(stream.read_bytes(READ_BYTES, partial=True))
    early.add_done_callback(lambda future: future.exception())  # closing ends it: expected
    data = early.result() if early.done() else b""
    sock = stream.socket
    stream.io_loop.remove_handler(sock)  # as IOStream.start_tls lets go of its socket
    stream.socket = None  # type: ignore[assignment]
    _tune(sock)
    if link.sips:
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, limits.SIP_BYTES // 2
        )  # Linux doubles it
    link.peer = _peer_name(sock)
    if isinstance(sock, ssl.SSLSocket):
        TlsTransport(sock, link)
    else:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: link, sock)
    if data:
        link.data_received(data)


def _tune(sock: socket.socket) -> None:
    """Disable Nagle's algorithm, and detect a peer that lost its power."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {**KEEPALIVE, "TCP_USER_TIMEOUT": USER_TIMEOUT_MS}
    for name, value in options.items():
        if hasattr(socket, name):  # not every platform has each
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _peer_name(sock: socket.socket) -> str:
    with contextlib.suppress(OSError):
        host, tcp_port = sock.getpeername()[:2]
        return f"{host}:{tcp_port}"
    return "a peer that is gone"
