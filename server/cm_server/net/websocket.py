"""The server's side of a WebSocket: the upgrade handshake, then frames.

tornado reads and routes the HTTP request. After the answer 101, the socket moves to an asyncio
transport, where a message costs half of what it costs in tornado's ``IOStream`` (measured: the
round trip of one cell takes 0.55 ms instead of 0.70 ms). Links of boards and of callers both use
this class.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable

from tornado.iostream import IOStream, StreamClosedError
from tornado.web import RequestHandler

from cloudmanager.protocol import frames, proofs
from cloudmanager.protocol.errors import PeerWireError
from cm_server import cleanup
from cm_server.limits import Limits
from cm_server.rate_limits import TokenBucket

from .fair_queue import FairQueue
from .socket_transport import READ_BYTES, SocketTransport
from .tls_transport import TlsTransport
from .work_shares import WorkShare

log = logging.getLogger("cm_server")

_COUNT = struct.Struct("i")  # what TIOCOUTQ returns

#: How TCP notices that a board's machine is gone: it reconnects within seconds. The last breaks
#: the link when data is not acknowledged for this time (ms), or not read.
BOARD_TCP_OPTIONS = {
    "TCP_KEEPIDLE": 10,  # seconds
    "TCP_KEEPINTVL": 5,  # seconds
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 15_000,
}
#: The same for a caller, which may stand still for long (a closed laptop, a debugger, Ctrl-Z) and
#: then reads the results that wait for it: its machine is gone after 10 minutes without an answer.
#: There is no TCP_USER_TIMEOUT: Linux would also apply it to a process that does not read, whose
#: kernel answers (https://blog.cloudflare.com/when-tcp-sockets-refuse-to-die/).
CALLER_TCP_OPTIONS = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 60, "TCP_KEEPCNT": 9}


class WebSocketLink(asyncio.Protocol):
    """A WebSocket after its handshake; each message is sent immediately, in one write.

    Received frames are handled in slices of ``Limits.slice_seconds``. If a slice is used up and
    there are more frames, the link waits in ``queue``, and reading is paused, so that the peer has
    to wait, too. The rate of messages is limited in the same way. Nothing is handled of a peer
    that does not read what was sent to it, or whose other messages have just taken long.

    Args:
        max_size: longest message in bytes that the peer may send.
        queue: where links wait that have more input than one slice.
        is_board: whether the peer is a board: it reconnects by itself, so a dead link is closed
            soon; and reading pauses after each large read, so that a flood of data is read in small
            portions.

    Attributes:
        peer: the peer's address and port, for the log.
        authenticated: whether the peer has authenticated; until then it may send only a few
            messages, and no pings.
        read_pause: returns the seconds to wait after a read, given the number of reads before
            the authentication.
        write_log: logs a line about this peer (level, text, arguments), unless there were too many.
        on_message: called with each message; may raise PeerWireError, which closes the link.
        on_frame: called after frames of any kind: the peer is alive.
        on_drained: called when the peer has read everything, after ``write_blocked``.
        on_open: called once when the link is open, before its first message.
        on_close: called once when the link is closed.
        may_continue: returns whether more may be read of a message that is not complete, given its
            bytes so far.
        queued_bytes: returns the bytes that wait to be sent, besides those of the link.
        work: the time in which the event loop works for the peer.
        handles_unread: whether the peer's messages are handled although it has much to read.
        write_blocked: whether sent bytes wait for the peer to read.
        mac: adds MACs to messages and verifies them, on a board's link without TLS.
    """

    # A server has very many: see ``Board``.
    __slots__ = (
        "_awaits_reader",
        "_backlog",
        "_closed",
        "_early_messages",
        "_early_reads",
        "_held",
        "_limits",
        "_pauses",
        "_pong",
        "_queue",
        "_rate",
        "_reader",
        "_stall_timer",
        "_transport",
        "_written",
        "authenticated",
        "handles_unread",
        "is_board",
        "mac",
        "may_continue",
        "on_close",
        "on_drained",
        "on_frame",
        "on_message",
        "on_open",
        "peer",
        "queued_bytes",
        "read_pause",
        "work",
        "write_blocked",
        "write_log",
    )

    def __init__(
        self, max_size: int, queue: FairQueue, limits: Limits, *, is_board: bool = False
    ) -> None:
        self._limits = limits
        self.is_board = is_board
        self.peer = "a peer"
        self.authenticated = True
        self.read_pause: Callable[[int], float] = no_pause
        self.write_log: Callable[..., None] = _WRITE_LOG
        self.on_message: Callable[[bytes], None] = _ignore_message
        self.on_frame: Callable[[], None] = _do_nothing
        self.on_drained: Callable[[], None] = _do_nothing
        self.on_open: Callable[[], None] = _do_nothing
        self.on_close: Callable[[], None] = _do_nothing
        self.may_continue: Callable[[int], bool] = _always_continue
        self.queued_bytes: Callable[[], int] = _no_bytes
        self.work = WorkShare(limits)
        self.handles_unread = True
        self.write_blocked = False
        self.mac: proofs.LinkMac | None = None
        self._reader = frames.FrameReader(max_size, masked=True)
        self._transport: asyncio.Transport | None = None
        self._queue = queue
        self._rate = TokenBucket(self._limits.messages_per_second, self._limits.messages_at_once)
        self._early_messages = 0  # before the authentication
        self._early_reads = 0
        self._backlog = False  # whether frames wait for the next slice
        self._awaits_reader = False  # whether they wait until the peer has read
        self._written = 0  # bytes, since the start
        self._stall_timer: asyncio.TimerHandle | None = None
        self._pauses = 0  # how many reasons there are not to read now
        self._pong: bytes | None = None  # payload of the newest ping, to be answered after a slice
        self._closed = False  # whether a close frame was sent
        self._held = False

    @property
    def receive_buffer_bytes(self) -> int | None:
        """What to set SO_RCVBUF to; None for the system's default. Linux doubles the value."""
        return self._limits.read_burst_bytes // 2 if self.is_board else None

    @property
    def tcp_options(self) -> dict[str, int]:
        """The options of TCP that decide when a silent peer is gone."""
        return BOARD_TCP_OPTIONS if self.is_board else CALLER_TCP_OPTIONS

    @property
    def is_gone(self) -> bool:
        """Whether the link has ended."""
        return self._transport is None

    def send(self, message: bytes) -> None:
        """Send one message; do nothing if the link is closed."""
        if self.mac is not None:
            message = self.mac.seal(message)
        self._write(frames.encode_frame(message))

    def ping(self) -> None:
        """Send a ping."""
        self._write(frames.encode_frame(b"", frames.PING))

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame and close the connection, after a second even if it is not read.

        Never raises, because callers often close several links in a row.
        """
        try:
            self._close(code, reason)
        except Exception as error:
            cleanup.log_failure("closing a link", error)
            self.abort()

    def _close(self, code: int, reason: str) -> None:
        self._write(frames.encode_close_frame(code, reason))
        self._closed = True
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.close()
            if transport.get_write_buffer_size():
                loop = asyncio.get_running_loop()
                loop.call_later(self._limits.close_seconds, transport.abort)

    def _close_later(self, code: int, reason: str) -> None:
        """Send a close frame now, but close the connection a second later.

        This slows down a peer that reconnects immediately. Nothing is read meanwhile, and the
        connection still counts as unauthenticated.
        """
        transport = self._transport
        if transport is None or self._closed:
            return
        self._pause_reading()
        self._write(frames.encode_close_frame(code, reason))
        self._closed = True
        asyncio.get_running_loop().call_later(self._limits.close_seconds, transport.abort)

    def charge(self, messages: int) -> None:
        """Count additional messages, for one that causes more work than others."""
        self._rate.spend(messages)

    def hold(self) -> None:
        """Handle no more messages until ``release``; those that arrive wait, a bounded number."""
        self._held = True
        self._pause_reading()

    def release(self) -> None:
        """Handle messages again, first those that have waited; do nothing without ``hold``."""
        if self._held:
            self._held = False
            self._resume_reading()
            self._queue.add(self._continue_backlog)

    def abort(self) -> None:
        """Close the connection immediately, without a close frame; never raises."""
        if self._transport is not None:
            cleanup.run_all("a link", self._transport.abort)

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or self._closed or transport.is_closing():
            return
        self._written += len(data)
        transport.write(data)
        if not self.write_blocked:
            return  # the usual case: the machine has taken all of it
        if self._has_too_much_unsent():
            self.write_log(logging.WARNING, "%s does not read: its link is closed", self.peer)
            self._transport = None
            # Later, because this may run inside the transport's own resume_writing().
            asyncio.get_running_loop().call_soon(transport.abort)
            return
        if self._stall_timer is None and self._has_much_unsent():
            self._watch_progress()

    @property
    def unsent_bytes(self) -> int:
        """What the peer has not read yet, as far as this machine knows."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _has_too_much_unsent(self) -> bool:
        """Return whether more waits for a board than a job can cause.

        A board that acknowledges what it does not read would get whole files otherwise.
        """
        return self.is_board and self.unsent_bytes > self._limits.unsent_board_bytes

    def _has_much_unsent(self) -> bool:
        return self.write_blocked and (
            self.unsent_bytes + self.queued_bytes() > self._limits.unsent_bytes
        )

    def _watch_progress(self) -> None:
        """Close the link later, if the peer has read nothing until then."""
        read = self._read_by_peer()
        loop = asyncio.get_running_loop()
        self._stall_timer = loop.call_later(self._limits.stall_seconds, self._check_progress, read)

    def _check_progress(self, read_before: int) -> None:
        self._stall_timer = None
        if self._transport is None or not self._has_much_unsent():
            return
        if self._has_stalled(read_before):
            self.write_log(logging.WARNING, "%s does not read: its link is closed", self.peer)
            self.abort()
        else:
            self._watch_progress()

    def _has_stalled(self, read_before: int) -> bool:
        """Return whether the peer has read nothing since it had read ``read_before`` bytes."""
        return self._read_by_peer() <= read_before

    def _read_by_peer(self) -> int:
        """Return how many bytes the peer's machine has received since the start."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return self._written - self.unsent_bytes - _kernel_unsent_bytes(sock)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the link on its transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        on_open, self.on_open = self.on_open, _do_nothing
        try:
            on_open()
        except Exception as error:
            cleanup.log_failure("opening a link", error)
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Handle the frames in ``data``; a violation of the protocol closes the link."""
        if self._closed:
            return  # data after a close frame is ignored (RFC 6455, 5.5.1)
        self._reader.push(data)
        if not self.authenticated:
            self._early_reads += 1
            if seconds := self.read_pause(self._early_reads):
                self._pause_reading_for(seconds)
        if self.is_board and len(data) >= self._limits.read_burst_bytes // 2:
            self._pause_reading_for(self._limits.read_pause_seconds)
        if self._backlog:
            return
        seconds = self._rate.spend()  # a read counts too: it may contain no whole message
        self._handle_input()
        if seconds and not self._backlog:
            self._pause_reading_for(seconds)

    def _handle_input(self) -> None:
        """Handle frames for the time of one slice; schedule the next slice if there are more."""
        if self.work.pause():
            self._schedule_next_slice(0.0)
            return
        started, processor_started = time.perf_counter(), time.thread_time()
        try:
            seconds = self._handle_slice(started + self._limits.slice_seconds)
        except PeerWireError as error:
            text = "%s broke the protocol: %s"
            self.write_log(logging.WARNING, text, self.peer, error.detail)
            code = getattr(error, "close_code", frames.CLOSE_PROTOCOL_ERROR)
            if code == frames.CLOSE_POLICY:
                self._close_later(code, error.detail)
            else:
                self.close(code, error.detail)
        except Exception as error:
            cleanup.log_failure("handling a message", error)
            self.close(frames.CLOSE_INTERNAL_ERROR, cleanup.FAILED)
        else:
            self._schedule_next_slice(seconds)
        finally:
            # Processor time is a system call; nearly all messages take less, by any clock.
            if time.perf_counter() - started > self._limits.free_work_seconds:
                self.work.record(time.thread_time() - processor_started)

    def _handle_slice(self, end: float) -> float | None:
        """Handle frames until none is complete, or the slice or the rate is used up.

        Args:
            end: of the slice, by ``time.perf_counter``.

        Returns:
            Seconds to wait before the next slice; None if no complete frame is left.
        """
        seconds: float | None = None
        alive = False
        while seconds is None and not self._held:
            if self.write_blocked and self._must_wait_for_reader():
                seconds = 0.0
                break
            frame = self._reader.next_frame()
            if frame is None:
                break
            alive = True
            self._on_frame(frame)
            if self._transport is None or self._closed or self._transport.is_closing():
                return None  # frames after a close frame are ignored
            if self._reader.empty:
                break
            wait = self._count_message()
            if wait or _is_over(end):
                seconds = wait
        if not self.authenticated and self._early_reads > self._limits.unauthenticated_reads:
            raise frames.FrameError("a proof in too many pieces", frames.CLOSE_POLICY)
        if self._pong is not None:
            self._write(frames.encode_frame(self._pong, frames.PONG))
            self._pong = None
        if alive:
            self.on_frame()
        return seconds

    def _count_message(self) -> float:
        """Count a message; return the seconds to wait before the next is handled."""
        return self._rate.spend()

    def _schedule_next_slice(self, seconds: float | None) -> None:
        """Resume reading if no frame is left; else schedule the next slice.

        Args:
            seconds: to wait before the next slice; None if no frame is left.
        """
        if seconds is None:
            is_allowed = self.may_continue(self._reader.pending_bytes)
            if self._backlog and is_allowed:
                self._backlog = False
                self._resume_reading()
            elif not self._backlog and not is_allowed:
                self._backlog = True
                self._pause_reading()
            return
        if not self._backlog:
            self._backlog = True
            self._pause_reading()
        if self._must_wait_for_reader():
            self._awaits_reader = True
        elif self.work.pause():
            self.work.when_free(lambda: self._queue.add(self._continue_backlog))
        elif seconds:
            asyncio.get_running_loop().call_later(seconds, self._continue_backlog)
        else:
            self._queue.add(self._continue_backlog)

    def _must_wait_for_reader(self) -> bool:
        """Return whether the peer has to read before more of its messages are handled."""
        return not self.handles_unread and self._has_much_unsent()

    def continue_message(self) -> None:
        """Read more of a message that ``may_continue`` has stopped."""
        self._queue.add(self._continue_backlog)

    def _continue_backlog(self) -> None:
        """Handle the next slice of a backlog, unless the link has been closed."""
        if self._transport is not None and not self._closed and not self._transport.is_closing():
            self._handle_input()

    def _pause_reading(self) -> None:
        """Stop reading until ``_resume_reading``; TCP's window then makes the peer wait."""
        self._pauses += 1
        if self._transport is not None:
            self._transport.pause_reading()

    def _pause_reading_for(self, seconds: float) -> None:
        self._pause_reading()
        asyncio.get_running_loop().call_later(seconds, self._resume_reading)

    def _resume_reading(self) -> None:
        """Read again, unless there is another reason not to."""
        self._pauses -= 1
        transport = self._transport
        if self._pauses <= 0 and transport is not None and not transport.is_closing():
            transport.resume_reading()

    def _on_frame(self, frame: frames.Frame) -> None:
        if not self.authenticated:
            self._check_before_authentication(frame)
        if frame.opcode != frames.BINARY:
            self.charge(self._limits.rare_messages - 1)
        if frame.opcode == frames.BINARY:
            self.on_message(self.mac.open(frame.payload) if self.mac else frame.payload)
        elif frame.opcode == frames.PING:
            self._pong = frame.payload  # only the newest needs an answer (RFC 6455, 5.5.3)
        elif frame.opcode == frames.CLOSE:
            self.close(frames.read_close_code(frame.payload))

    def _check_before_authentication(self, frame: frames.Frame) -> None:
        """Refuse frames that no board needs to send before it has authenticated."""
        self._early_messages += 1
        self._refuse_ping(frame)
        if self._early_messages > self._limits.unauthenticated_messages:
            raise frames.FrameError("too many messages before the proof", frames.CLOSE_POLICY)

    def _refuse_ping(self, frame: frames.Frame) -> None:
        if frame.opcode in (frames.PING, frames.PONG):
            raise frames.FrameError("no pings and pongs before the proof", frames.CLOSE_POLICY)

    def pause_writing(self) -> None:
        """Note that sent bytes wait for the peer to read."""
        self.write_blocked = True

    def resume_writing(self) -> None:
        """Note that the peer has read everything."""
        self.write_blocked = False
        try:
            self.on_drained()
        except Exception as error:
            cleanup.log_failure("sending what waited for a link", error)
            self.close(frames.CLOSE_INTERNAL_ERROR, cleanup.FAILED)
            return
        if self._awaits_reader and not self._must_wait_for_reader():
            self._awaits_reader = False
            self._queue.add(self._continue_backlog)

    def connection_lost(self, exc: Exception | None) -> None:
        """Call ``on_close``."""
        self._transport = None
        self._reader.clear()  # now, not when the garbage collector finds the link
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        cleanup.run_all("a link", self.on_close)


def _kernel_unsent_bytes(sock: socket.socket | None) -> int:
    """Return the bytes that wait in a socket's buffer; 0 if the platform does not tell.

    The buffer may hold megabytes, and is reported as writable only when a third of it is free: the
    peer of a slow link would seem not to read.
    """
    if sock is None:
        return 0
    with contextlib.suppress(OSError, ValueError):
        return _COUNT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_COUNT.size)))[0]  # type: ignore[no-any-return]
    return 0


# The defaults of a link's callbacks: one object for all links.
_WRITE_LOG = log.log


def no_pause(_reads: int) -> float:
    """Return 0: reads are not limited."""
    return 0.0


def _do_nothing() -> None:
    """Do nothing."""


def _ignore_message(_message: bytes) -> None:
    """Do nothing."""


def _always_continue(_size: int) -> bool:
    """Return True: a message's length is limited by nothing else."""
    return True


def _no_bytes() -> int:
    """Return 0: nothing is queued besides the link's own queue."""
    return 0


def _is_over(end: float) -> bool:
    """Return whether a slice that ends at ``end`` (``time.perf_counter``) is used up."""
    return time.perf_counter() >= end


async def accept_websocket(handler: RequestHandler, link: WebSocketLink) -> bool:
    """Answer a WebSocket handshake (RFC 6455, 4.2) and move the connection to ``link``.

    Returns:
        Whether the link is open now; else the handler has answered with a refusal, or the peer
        has closed the connection.
    """
    headers = handler.request.headers
    key = headers.get("Sec-WebSocket-Key", "")
    is_upgrade = headers.get("Upgrade", "").lower() == "websocket"
    if not is_upgrade or "upgrade" not in headers.get("Connection", "").lower() or not key:
        handler.set_header("Upgrade", "websocket")
        _refuse_upgrade(handler, "This address accepts WebSocket connections only.")
        return False
    if headers.get("Sec-WebSocket-Version") != "13":
        handler.set_header("Sec-WebSocket-Version", "13")
        _refuse_upgrade(handler, "Only WebSocket version 13 is supported.")
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
    """Move the connection from tornado's stream to the link, with data that was read already."""
    await stream.write(answer)
    early = asyncio.ensure_future(stream.read_bytes(READ_BYTES, partial=True))
    early.add_done_callback(lambda future: future.exception())  # retrieved, else asyncio warns
    data = early.result() if early.done() else b""
    sock = stream.socket
    if sock is None:  # the peer hung up meanwhile
        raise StreamClosedError
    stream.io_loop.remove_handler(sock)  # detach the socket, as IOStream.start_tls does
    stream.socket = None  # type: ignore[assignment]
    try:
        _set_socket_options(sock, link.receive_buffer_bytes, link.tcp_options)
        link.peer = _peer_name(sock)
        if isinstance(sock, ssl.SSLSocket):
            TlsTransport(sock, link)
        else:
            SocketTransport(sock, link)
    except BaseException:
        link.abort()  # if it was open already, its on_close releases its counts
        sock.close()
        raise
    if data and not link.is_gone:
        link.data_received(data)


def _set_socket_options(
    sock: socket.socket, receive_buffer_bytes: int | None, tcp_options: dict[str, int]
) -> None:
    """Disable Nagle's algorithm, detect a peer without power, and bound the receive buffer."""
    if receive_buffer_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in tcp_options.items():
        if hasattr(socket, name):  # not every platform has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _peer_name(sock: socket.socket) -> str:
    with contextlib.suppress(OSError):
        host, tcp_port = sock.getpeername()[:2]
        return f"{host}:{tcp_port}"
    return "a disconnected peer"
