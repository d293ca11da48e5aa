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
import time
from collections.abc import Callable

from tornado.iostream import IOStream, StreamClosedError
from tornado.web import RequestHandler

from cloudmanager.protocol import frames, proofs
from cloudmanager.protocol.errors import PeerWireError
from cm_server import limits

from . import cleanup
from .fair_queue import FairQueue
from .rate_limits import TokenBucket
from .tls_transport import READ_BYTES, TlsTransport

log = logging.getLogger("cm_server")

KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds, seconds, probes
USER_TIMEOUT_MS = 15_000  # what was sent and is not acknowledged by then breaks the link


class WebSocketLink(asyncio.Protocol):
    """One WebSocket after its handshake; each message leaves at once, in one write.

    What comes is handled in slices of ``limits.SLICE_SECONDS``. A link that has more waits in
    the ``queue`` for its next turn, and nothing more of it is read meanwhile, so that the peer
    waits, too. A link that sends more messages than anybody needs is read at a bounded rate.

    Args:
        max_size: longest message in bytes that the peer may send.
        queue: where links wait that have more input than one slice.
        throttle_reads: whether a flood of it is read in sips.

    Attributes:
        peer: the other end's address, for the log.
        proven: whether the peer has proven who it is; until then it may send a few messages,
            and no pings.
        read_pause: returns the seconds to wait after so many reads before the proof.
        write_log: writes a line about this peer (level, text, arguments), or leaves it out.
        on_message: takes each message; may raise PeerWireError, which ends the link.
        on_frame: called after frames of any kind: a sign of life.
        on_drained: called when a peer that had not read has read everything.
        on_open: called once when the link is open, before its first message.
        on_close: called once when the link is gone.
        write_blocked: whether bytes wait for the peer to read.
        mac: what seals messages and opens them, on a board's plain link.
    """

    def __init__(self, max_size: int, queue: FairQueue, *, throttle_reads: bool = False) -> None:
        self.throttle_reads = throttle_reads
        self.peer = "a peer"
        self.proven = True
        self.read_pause: Callable[[int], float] = lambda _: 0.0
        self.write_log: Callable[..., None] = log.log
        self.on_message: Callable[[bytes], None] = lambda _: None
        self.on_frame: Callable[[], None] = _do_nothing
        self.on_drained: Callable[[], None] = _do_nothing
        self.on_open: Callable[[], None] = _do_nothing
        self.on_close: Callable[[], None] = _do_nothing
        self.write_blocked = False
        self.mac: proofs.LinkMac | None = None
        self._reader = frames.FrameReader(max_size, masked=True)
        self._transport: asyncio.Transport | None = None
        self._queue = queue
        self._rate = TokenBucket(limits.MESSAGES_PER_SECOND, limits.MESSAGES_AT_ONCE)
        self._early_messages = self._early_reads = 0  # before the proof
        self._backlog = False  # whether frames wait for the next slice
        self._holds = 0  # reasons for which nothing is read now
        self._pong: bytes | None = None  # the answer to the newest ping, which leaves soon
        self._closed = False  # whether a close frame was sent

    @property
    def is_gone(self) -> bool:
        """Whether the link has ended."""
        return self._transport is None

    def send(self, message: bytes) -> None:
        """Send one message; nothing happens on a link that is gone."""
        if self.mac is not None:
            message = self.mac.seal(message)
        self._write(frames.encode_frame(message))

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._write(frames.encode_frame(b"", frames.PING))

    def close(self, code: int, reason: str = "") -> None:
        """Say why, and hang up once that has left; who does not read is not waited for.

        Never raises: many who call it go on to close others.
        """
        try:
            self._close(code, reason)
        except Exception as error:
            cleanup.log_failure("the end of a link", error)
            self.abort()

    def _close(self, code: int, reason: str) -> None:
        self._write(frames.encode_close_frame(code, reason))
        self._closed = True
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.close()
            if transport.get_write_buffer_size():
                loop = asyncio.get_running_loop()
                loop.call_later(limits.CLOSE_SECONDS, transport.abort)

    def _close_later(self, code: int, reason: str) -> None:
        """Say why, and hang up a second later: who dials again at once gets slower by that.

        Nothing is read meanwhile, and the connection goes on to count as unproven.
        """
        transport = self._transport
        if transport is None or self._closed:
            return
        self._hold()
        self._write(frames.encode_close_frame(code, reason))
        self._closed = True
        asyncio.get_running_loop().call_later(limits.CLOSE_SECONDS, transport.abort)

    def charge(self, messages: int) -> None:
        """Count a message that nobody needs often as so many more."""
        self._rate.spend(messages)

    def abort(self) -> None:
        """Hang up at once, without a word; never raises."""
        if self._transport is not None:
            cleanup.run_all("a link", self._transport.abort)

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or self._closed or transport.is_closing():
            return
        transport.write(data)
        if self.write_blocked and transport.get_write_buffer_size() > limits.UNSENT_BYTES:
            self.write_log(logging.WARNING, "%s does not read: its link is cut", self.peer)
            self._transport = None
            # Not now: we may be inside the transport's own resume_writing.
            asyncio.get_running_loop().call_soon(transport.abort)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket over."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        try:
            self.on_open()
        except Exception as error:
            cleanup.log_failure("the beginning of a link", error)
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Handle the frames in ``data``; a broken rule closes the link with its reason."""
        if self._closed:
            return  # what comes behind a close is not heard
        self._reader.push(data)
        if not self.proven:
            self._early_reads += 1
            if seconds := self.read_pause(self._early_reads):
                self._hold_for(seconds)
        if self.throttle_reads and len(data) >= limits.READ_BURST_BYTES // 2:
            self._hold_for(limits.READ_PAUSE_SECONDS)
        if self._backlog:
            return
        seconds = self._rate.spend()  # a read costs as much as a message, if it holds none
        self._serve()
        if seconds and not self._backlog:
            self._hold_for(seconds)

    def _serve(self) -> None:
        """Handle frames for the time of one slice; wait for the next turn if there are more."""
        try:
            seconds = self._handle_slice()
        except PeerWireError as error:
            text = "%s broke the protocol: %s"
            self.write_log(logging.WARNING, text, self.peer, error.detail)
            code = getattr(error, "close_code", frames.CLOSE_PROTOCOL_ERROR)
            (self._close_later if code == frames.POLICY else self.close)(code, error.detail)
        except Exception as error:
            cleanup.log_failure("the handling of a message", error)
            self.close(frames.INTERNAL_ERROR, "the server failed at this message")
        else:
            self._await_turn(seconds)

    def _handle_slice(self) -> float | None:
        """Handle frames until none is whole, or the slice is used up.

        Returns:
            Seconds to wait before the next slice; None where no frame is left.
        """
        end = time.perf_counter() + limits.SLICE_SECONDS
        seconds: float | None = None
        alive = False
        while seconds is None and (frame := self._reader.next_frame()) is not None:
            alive = True
            self._on_frame(frame)
            if self._transport is None or self._closed or self._transport.is_closing():
                return None  # what comes behind a close is not heard
            if self._reader.empty:
                break
            debt = self._rate.spend()
            if debt or time.perf_counter() >= end:
                seconds = debt
        if not self.proven and self._early_reads > limits.UNPROVEN_READS:
            raise frames.FrameError("a proof in too many pieces", frames.POLICY)
        if self._pong is not None:
            self._write(frames.encode_frame(self._pong, frames.PONG))
            self._pong = None
        if alive:
            self.on_frame()
        return seconds

    def _await_turn(self, seconds: float | None) -> None:
        """Read on where no frame is left; else handle the next slice in its turn."""
        if seconds is None:
            if self._backlog:
                self._backlog = False
                self._release()
            return
        if not self._backlog:
            self._backlog = True
            self._hold()
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self._serve_on)
        else:
            self._queue.add(self._serve_on)

    def _serve_on(self) -> None:
        """Handle the next slice of a backlog, if the link is there still."""
        if self._transport is not None and not self._closed and not self._transport.is_closing():
            self._serve()

    def _hold(self) -> None:
        """Read nothing more until ``_release``: then the peer has to wait (TCP's window)."""
        self._holds += 1
        if self._transport is not None:
            self._transport.pause_reading()

    def _hold_for(self, seconds: float) -> None:
        self._hold()
        asyncio.get_running_loop().call_later(seconds, self._release)

    def _release(self) -> None:
        """Read on, unless there is another reason not to."""
        self._holds -= 1
        transport = self._transport
        if self._holds <= 0 and transport is not None and not transport.is_closing():
            transport.resume_reading()

    def _on_frame(self, frame: frames.Frame) -> None:
        if not self.proven:
            self._check_early(frame)
        if frame.opcode != frames.BINARY:
            self.charge(limits.RARE_MESSAGES - 1)
        if frame.opcode == frames.BINARY:
            self.on_message(self.mac.open(frame.payload) if self.mac else frame.payload)
        elif frame.opcode == frames.PING:
            self._pong = frame.payload  # of many, the newest is answered (RFC 6455, 5.5.3)
        elif frame.opcode == frames.CLOSE:
            self.close(frames.read_close_code(frame.payload))

    def _check_early(self, frame: frames.Frame) -> None:
        """Refuse what no board needs before its proof."""
        self._early_messages += 1
        if frame.opcode in (frames.PING, frames.PONG):
            raise frames.FrameError("no pings and pongs before the proof", frames.POLICY)
        if self._early_messages > limits.UNPROVEN_MESSAGES:
            raise frames.FrameError("too many messages before the proof", frames.POLICY)

    def pause_writing(self) -> None:
        """Note that the peer has not read what was sent."""
        self.write_blocked = True

    def resume_writing(self) -> None:
        """Note that it has."""
        self.write_blocked = False
        self.on_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so, once."""
        self._transport = None
        cleanup.run_all("a link", self.on_close)


def _do_nothing() -> None:
    """Do nothing."""


async def accept_websocket(handler: RequestHandler, link: WebSocketLink) -> bool:
    """Answer a WebSocket handshake (RFC 6455, 4.2); return whether ``link`` is open now."""
    headers = handler.request.headers
    key = headers.get("Sec-WebSocket-Key", "")
    is_upgrade = headers.get("Upgrade", "").lower() == "websocket"
    if not is_upgrade or "upgrade" not in headers.get("Connection", "").lower() or not key:
        handler.set_header("Upgrade", "websocket")
        _refuse_upgrade(handler, "This address speaks WebSocket only.")
        return False
    if headers.get("Sec-WebSocket-Version") != "13":
        handler.set_header("Sec-WebSocket-Version", "13")
        _refuse_upgrade(handler, "WebSocket version 13 is spoken here.")
        return False
    answer = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {frames.accept_key(key)}\r\n\r\n"
    )
    try:
        await _move_to_link(handler.detach(), link, answer.encode())
    except (StreamClosedError, OSError):
        return False
    return True


def _refuse_upgrade(handler: RequestHandler, why: str) -> None:
    handler.set_status(426, "Upgrade Required")
    handler.finish(why + "\n")


async def _move_to_link(stream: IOStream, link: WebSocketLink, answer: bytes) -> None:
    """Move the connection from tornado's stream to the link, with what was read already."""
    await stream.write(answer)
    early = asyncio.ensure_future(stream.read_bytes(READ_BYTES, partial=True))
    early.add_done_callback(lambda future: future.exception())  # closing ends it: expected
    data = early.result() if early.done() else b""
    sock = stream.socket
    if sock is None:  # the peer hung up meanwhile
        raise StreamClosedError
    stream.io_loop.remove_handler(sock)  # as IOStream.start_tls lets go of its socket
    stream.socket = None  # type: ignore[assignment]
    try:
        _set_socket_options(sock, sips=link.throttle_reads)
        link.peer = _peer_name(sock)
        if isinstance(sock, ssl.SSLSocket):
            TlsTransport(sock, link)
        else:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: link, sock)
    except BaseException:
        link.abort()  # where it had begun: what it counts is released
        sock.close()
        raise
    if data and not link.is_gone:
        link.data_received(data)


def _set_socket_options(sock: socket.socket, *, sips: bool) -> None:
    """Disable Nagle's algorithm, detect a peer that lost its power, bound what waits unread."""
    if sips:  # Linux doubles it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limits.READ_BURST_BYTES // 2)
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
