"""The server's TCP port: accepts connections with and without TLS, and reads their requests.

The first byte distinguishes the two: 0x16 starts a TLS handshake (RFC 8446, 5.1), and never an
HTTP request. Until its request has been handled, a connection counts as unauthenticated.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate
from tornado.iostream import IOStream, SSLIOStream
from tornado.netutil import bind_sockets
from tornado.web import Application

from cloudmanager.protocol.errors import ServerError
from cm_server import cleanup
from cm_server.jobs.model import TimerHandle
from cm_server.limits import Limits
from cm_server.rate_limits import (
    RateLimiter,
    TokenBucket,
    UnauthenticatedConnections,
    UnauthenticatedEntry,
)

from .certificates import Certificates
from .handlers import REFUSAL_HEADER

log = logging.getLogger("cm_server")

#: Calls a function after the event loop has run for a number of seconds.
CallLater = Callable[[float, Callable[[], None]], TimerHandle]
_NEVER_SECONDS = 10 * 365 * 86400.0
_TLS_HANDSHAKE_BYTE = b"\x16"
#: Cost of a connection that is closed before its request, relative to one with a request.
_ACCEPT_COST = 0.1
_DISCARDED_BYTES = 64 * 1024  # of the request of a connection that is refused
_TOO_MANY = "the server has too many connections for its number of file descriptors; try later"
_TOO_MANY_CONNECTIONS = (
    f"HTTP/1.1 503 Service Unavailable\r\n{REFUSAL_HEADER}: {_TOO_MANY}\r\n"
    f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(_TOO_MANY) + 2}\r\n"
    f"Connection: close\r\n\r\n{_TOO_MANY[0].upper()}{_TOO_MANY[1:]}.\n"
).encode()


class _ConnectionParts(NamedTuple):
    """What each accepted connection needs."""

    limits: Limits
    unauthenticated: UnauthenticatedConnections
    certificates: Certificates
    call_later: CallLater


class Listener(HTTPServer):
    """Accepts connections at a bounded rate and reads one request from each.

    A connection counts as unauthenticated until its request has been handled.
    """

    def initialize(  # type: ignore[override]
        self,
        app: Application,
        limits: Limits,
        unauthenticated: UnauthenticatedConnections,
        certificates: Certificates,
        call_later: CallLater,
    ) -> None:
        """Set the routes, the limits for connections and requests, and the clock of deadlines."""
        self._parts = _ConnectionParts(limits, unauthenticated, certificates, call_later)
        self._unauthenticated_entries: dict[IOStream, UnauthenticatedEntry] = {}
        self._deadlines: dict[IOStream, TimerHandle] = {}  # for the rest of requests
        self._listening_sockets: list[socket.socket] = []
        self._accepts = TokenBucket(limits.accepted_per_second, limits.accepted_at_once)
        self._descriptors = _DescriptorLimit(limits)
        self._problems = cleanup.ProblemLog()
        super().initialize(
            app,
            no_keep_alive=True,
            # tornado's own deadlines would also count a standstill of this process.
            idle_connection_timeout=_NEVER_SECONDS,
            max_header_size=limits.head_bytes,
            max_body_size=limits.head_bytes,
        )

    def start_accepting(self, sockets: list[socket.socket]) -> None:
        """Start accepting connections."""
        self._listening_sockets = sockets
        for sock in sockets:
            self._resume_accepting(sock)

    def _resume_accepting(self, sock: socket.socket) -> None:
        if sock in self._listening_sockets:
            asyncio.get_running_loop().add_reader(sock.fileno(), self._accept_connections, sock)

    def _accept_connections(self, sock: socket.socket) -> None:
        """Accept a few connections; the others wait in the kernel, where they cost nothing.

        Each costs up to a millisecond until it is authenticated or refused. The rate is bounded,
        so that a flood of connections does not delay authenticated links.
        """
        for _ in range(self._parts.limits.accepted_at_once):
            try:
                accepted, address = sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no file descriptor left, or no memory
                text = "no connection can be accepted for %g s: %s"
                seconds = self._parts.limits.accept_retry_seconds
                self._problems.write(logging.ERROR, "", text, seconds, error.strerror)
                self._pause_accepting(sock, seconds)
                return
            if self._descriptors.allows(accepted):
                self._on_accepted(accepted, address)
            else:
                self._descriptors.refuse(accepted)
            ahead = self._accepts.spend(0) - self._parts.limits.accepted_ahead_seconds
            if ahead > 0:
                self._pause_accepting(sock, ahead)
                return

    def _pause_accepting(self, sock: socket.socket, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock.fileno())
        loop.call_later(seconds, self._resume_accepting, sock)

    def stop_accepting(self) -> None:
        """Stop accepting connections and close the listening sockets; open connections stay."""
        while self._listening_sockets:
            sock = self._listening_sockets.pop()
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()

    def _on_accepted(self, sock: socket.socket, address: Any) -> None:
        """Wait for a connection's first byte; a failure closes this connection only."""
        _set_non_blocking(sock)
        try:
            closed = not sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            closed = False
        except OSError:
            closed = True
        if closed:  # not charged: connections behind many closed ones should not wait for them
            sock.close()
            return
        self._accepts.spend(_ACCEPT_COST)
        try:
            on_ready = functools.partial(self._serve_connection, address=address)
            _IncomingConnection(self._parts, sock, str(address[0]), on_ready, self._accepts)
        except Exception as error:
            sock.close()
            cleanup.log_failure("accepting a connection", error)

    def _serve_connection(self, sock: socket.socket, address: Any) -> None:
        """Read the request of a connection whose TLS handshake, if any, is complete."""
        is_tls = isinstance(sock, ssl.SSLSocket)
        stream = _TlsStream(sock) if is_tls else _PlainStream(sock)
        stream.unauthenticated = self._parts.unauthenticated
        stream.max_reads = self._parts.limits.unauthenticated_reads
        self.handle_stream(stream, address)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Count a connection as unauthenticated and read its request."""

        def close() -> None:
            if stream.socket is not None:  # else a WebSocketLink owns the socket now
                stream.close()

        self._unauthenticated_entries[stream] = self._parts.unauthenticated.add(
            str(address[0]), close
        )
        self._set_deadline(stream, _head_timeout(self._parts.limits))
        try:
            super().handle_stream(stream, address)
        except Exception:
            self._stop_counting(stream)
            raise

    def start_request(self, server_conn: Any, request_conn: Any) -> HTTPMessageDelegate:
        """Return what reads a request, until its deadline."""
        delegate = super().start_request(server_conn, request_conn)
        return _TimedRequest(
            delegate, functools.partial(self._set_deadline, server_conn.stream), self._parts.limits
        )

    def _set_deadline(self, stream: IOStream, seconds: float | None) -> None:
        """Close a connection after a number of seconds; None: not any more."""
        deadline = self._deadlines.pop(stream, None)
        if deadline is not None:
            deadline.cancel()
        if seconds is not None:
            self._deadlines[stream] = self._parts.call_later(
                seconds, functools.partial(self._on_deadline, stream)
            )

    def _on_deadline(self, stream: IOStream) -> None:
        del self._deadlines[stream]
        if stream.socket is not None:
            stream.close()

    def on_close(self, server_conn: Any) -> None:
        """Stop counting a connection that is closed, or whose socket a link owns now."""
        self._stop_counting(server_conn.stream)
        super().on_close(server_conn)

    def _stop_counting(self, stream: IOStream) -> None:
        """Remove a connection from the unauthenticated ones, and its deadline."""
        self._set_deadline(stream, None)
        entry = self._unauthenticated_entries.pop(stream, None)
        if entry is not None:
            self._parts.unauthenticated.remove(entry)


class _TimedRequest(HTTPMessageDelegate):
    """Reads one request: passes its parts on, and sets the deadline for the next one.

    Args:
        delegate: reads the request.
        set_deadline: sets the seconds until the connection is closed; None: no deadline.
        limits: how long the body may take.
    """

    def __init__(
        self,
        delegate: HTTPMessageDelegate,
        set_deadline: Callable[[float | None], None],
        limits: Limits,
    ) -> None:
        self._delegate = delegate
        self._set_deadline = set_deadline
        self._limits = limits

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> Awaitable[None] | None:
        """Note that the head is complete."""
        self._set_deadline(_body_timeout(self._limits))
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Pass a part of the body on."""
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        """Note that the request is complete."""
        self._set_deadline(None)
        self._delegate.finish()

    def on_connection_close(self) -> None:
        """Note that the peer has closed the connection."""
        self._set_deadline(None)
        self._delegate.on_connection_close()


class _DescriptorLimit:
    """Keeps file descriptors free for the server's own files, and says so to those it refuses.

    Args:
        limits: how many, how long a refused connection may stay open, and how often it is logged.
    """

    def __init__(self, limits: Limits) -> None:
        total, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._is_limited = total != resource.RLIM_INFINITY
        self._reserved = min(limits.reserved_descriptors, total // 4)
        self._max_descriptor = total - self._reserved
        self._seconds = limits.close_seconds
        self._rate = RateLimiter(limits.failure_lines_per_minute)
        self._refused: set[socket.socket] = set()  # they use reserved descriptors

    def allows(self, sock: socket.socket) -> bool:
        """Return whether a connection leaves enough descriptors: the system gives the lowest."""
        return not self._is_limited or sock.fileno() < self._max_descriptor

    def refuse(self, sock: socket.socket) -> None:
        """Answer a connection's request with 503 and the reason, and close it."""
        if self._rate.allow("") is not None:
            text = "connections are refused: %d file descriptors are in use, of %d (ulimit -n)"
            log.error(text, sock.fileno(), self._max_descriptor + self._reserved)
        if len(self._refused) >= self._reserved // 2:
            sock.close()
            return
        self._refused.add(sock)
        _set_non_blocking(sock)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._seconds, self._close, sock)
        loop.add_reader(sock.fileno(), self._answer, sock, timer)

    def _answer(self, sock: socket.socket, timer: asyncio.TimerHandle) -> None:
        """Answer a request; a TLS handshake is not answered."""
        timer.cancel()
        with contextlib.suppress(OSError):
            if sock.recv(_DISCARDED_BYTES)[:1] != _TLS_HANDSHAKE_BYTE:
                sock.send(_TOO_MANY_CONNECTIONS)
                sock.shutdown(socket.SHUT_WR)
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        if sock in self._refused:
            self._refused.remove(sock)
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()


def _head_timeout(limits: Limits) -> float:
    """Return the seconds until a connection is closed whose request's head is incomplete."""
    return limits.head_seconds


def _body_timeout(limits: Limits) -> float:
    """Return the seconds until a connection is closed whose request's body is incomplete."""
    return limits.head_seconds


def _set_non_blocking(sock: socket.socket) -> None:
    """Make a socket non-blocking, so that a slow TLS handshake never blocks the event loop."""
    sock.setblocking(False)


class _LimitedReadsStream(IOStream):
    """A stream that limits the reads of one request, and their rate.

    A limit on a request's size does not limit the work, because each read costs the same, even
    if it returns a single byte.

    Attributes:
        unauthenticated: the connections that share the rate.
        max_reads: after so many reads, the connection fails.
    """

    unauthenticated: UnauthenticatedConnections
    max_reads: int
    _reads = 0

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Read like the base class; after too many reads, raise as if the peer had closed."""
        count = super().read_from_fd(buf)
        if count:
            self._reads += 1
            if self._has_too_many_reads():
                raise ConnectionResetError(errno.ECONNRESET, "a request in too many pieces")
            if seconds := self.unauthenticated.read_pause(self._reads):
                self.io_loop.update_handler(self.fileno(), self.io_loop.ERROR)
                self.io_loop.call_later(seconds, self._resume_reading)
        return count

    def _has_too_many_reads(self) -> bool:
        return self._reads > self.max_reads

    def _resume_reading(self) -> None:
        """Read again after a pause, unless the connection is closed or a link owns it now."""
        if not self.closed() and self.reading():
            self.io_loop.update_handler(self.fileno(), self.io_loop.READ | self.io_loop.ERROR)


class _PlainStream(_LimitedReadsStream, IOStream):
    """A connection without TLS."""


class _TlsStream(_LimitedReadsStream, SSLIOStream):
    """A connection over TLS whose handshake is complete."""


class _IncomingConnection:
    """An accepted connection: waits for its first byte, and makes the TLS handshake if any.

    Args:
        parts: the certificates, and the count of unauthenticated connections.
        sock: the accepted socket, non-blocking.
        address: the peer's IP address.
        on_ready: called with the socket when its request can be read.
        accepts: the rate at which connections are served.
    """

    def __init__(
        self,
        parts: _ConnectionParts,
        sock: socket.socket,
        address: str,
        on_ready: Callable[[socket.socket], None],
        accepts: TokenBucket,
    ) -> None:
        self._parts = parts
        self._sock = sock
        self._fd = sock.fileno()  # kept: a detached socket does not know it any more
        self._on_ready = on_ready
        self._accepts = accepts
        self._reading = False  # whether the event loop watches the descriptor
        self._stopped = False
        self._handshake_reads = 0
        self._loop = asyncio.get_running_loop()
        self._entry = self._count_as_unauthenticated(address)
        self._timer = self._start_deadline()
        try:
            self._start_reading(self._read_first_byte)
        except BaseException:
            self._close()
            raise

    def _count_as_unauthenticated(self, address: str) -> UnauthenticatedEntry:
        """Count the connection; it is closed if it is the oldest of too many."""
        return self._parts.unauthenticated.add(address, self._close)

    def _start_deadline(self) -> TimerHandle:
        """Close the connection if the first byte or the handshake takes too long."""
        return self._parts.call_later(self._parts.limits.head_seconds, self._close)

    def _start_reading(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever the socket is readable."""
        self._loop.add_reader(self._fd, self._call_guarded, callback)
        self._reading = True

    def _stop_reading(self) -> None:
        """Stop watching the descriptor, whose number may later belong to another connection."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _call_guarded(self, callback: Callable[[], None]) -> None:
        """Call a function; an unexpected exception closes this connection."""
        try:
            callback()
        except Exception as error:
            self._close()
            cleanup.log_failure("an unauthenticated connection", error)

    def _read_first_byte(self) -> None:
        try:
            first = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            first = b""
        if not first:
            self._close()
            return
        next_step = self._start_tls if first == _TLS_HANDSHAKE_BYTE else self._hand_over
        if seconds := self._request_delay():
            self._stop_reading()
            self._loop.call_later(seconds, self._continue, next_step)
        else:
            next_step()

    def _request_delay(self) -> float:
        """Charge the cost of a request; return the seconds to wait before it is read."""
        return self._accepts.spend(1 - _ACCEPT_COST)

    def _continue(self, next_step: Callable[[], None]) -> None:
        """Continue after a pause, unless the connection has been closed meanwhile."""
        if not self._stopped:
            self._call_guarded(next_step)

    def _start_tls(self) -> None:
        self._stop_reading()
        context = self._parts.certificates.context
        try:
            self._sock.getpeername()  # raises ENOTCONN if the peer has closed the connection
            self._sock = context.wrap_socket(
                self._sock,
                server_side=True,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=True,
            )
        except (OSError, ValueError):  # the socket may be detached now, its descriptor closed
            self._accepts.spend(_ACCEPT_COST - 1)  # refund: there is no handshake
            self._close()
            return
        self._start_handshake()
        self._continue_handshake()

    def _start_handshake(self) -> None:
        self._start_reading(self._continue_handshake)

    def _continue_handshake(self) -> None:
        """Process received bytes of the handshake.

        It never waits for the socket to be writable: the few bytes that the server sends always
        fit in the send buffer of a new socket.
        """
        assert isinstance(self._sock, ssl.SSLSocket)
        self._handshake_reads += 1
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            if self._handshake_reads > self._parts.limits.unauthenticated_reads:
                self._close()
            elif seconds := self._parts.unauthenticated.read_pause(self._handshake_reads):
                self._stop_reading()
                self._loop.call_later(seconds, self._continue, self._start_handshake)
        except (OSError, ValueError):
            self._close()
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        """Pass the socket to the listener, which counts it as unauthenticated again."""
        self._stop_waiting()
        try:
            self._on_ready(self._sock)
        except BaseException:
            self._sock.close()
            raise

    def _close(self) -> None:
        self._stop_waiting()
        cleanup.run_all("an unauthenticated connection", self._sock.close)

    def _stop_waiting(self) -> None:
        """Stop counting, timing and reading the connection.

        The count is released first, so that no later failure can leave it too high.
        """
        if self._stopped:
            return
        self._stopped = True
        self._parts.unauthenticated.remove(self._entry)
        self._timer.cancel()
        cleanup.run_all("an unauthenticated connection", self._stop_reading)


def open_listening_sockets(host: str, tcp_port: int) -> list[socket.socket]:
    """Return sockets that listen on an address and a TCP port.

    Raises:
        ServerError: the address or the TCP port cannot be used.
    """
    try:
        return bind_sockets(tcp_port, host, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServerError(
                f"TCP port {tcp_port} of {host} is taken by another program; "
                f"choose another with `mbm server-start --port N`"
            ) from error
        raise ServerError(
            f"The server cannot listen on {host}:{tcp_port}: {error.strerror}"
        ) from error


def all_on_loopback(sockets: list[socket.socket]) -> bool:
    """Return whether only this machine can reach the sockets."""
    names = (str(sock.getsockname()[0]).partition("%")[0] for sock in sockets)
    return all(ipaddress.ip_address(name).is_loopback for name in names)
