"""The one TCP port: who knocks, by TLS or without, and what reads their requests.

The first byte tells TLS from plain: 0x16 begins a TLS handshake (RFC 8446, 5.1), and no
HTTP request. Until a request is read, a connection has proven nothing (gate.py).
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, SSLIOStream
from tornado.netutil import bind_sockets
from tornado.web import Application

from cloudmanager.protocol.errors import ServerError
from cm_server import limits

from . import cleanup
from .rate_limits import TokenBucket, UnauthenticatedConnections, UnauthenticatedEntry

if TYPE_CHECKING:
    from cm_server.app import Server

log = logging.getLogger("cm_server")

_TLS_HANDSHAKE_BYTE = b"\x16"
_LOOK_COST = 0.1  # of a connection that hangs up before its request, beside one that does not


class Listener(HTTPServer):
    """Reads requests, one for each connection; until it is done, the connection is unproven."""

    def initialize(self, server: Server, app: Application) -> None:  # type: ignore[override]
        """Take the server whose door it is, and its routes."""
        self._server = server
        self._unauthenticated_entries: dict[IOStream, UnauthenticatedEntry] = {}
        self._listening_sockets: list[socket.socket] = []
        self._accepts = TokenBucket(limits.ACCEPTED_PER_SECOND, limits.ACCEPTED_AT_ONCE)
        super().initialize(
            app,
            no_keep_alive=True,
            idle_connection_timeout=limits.HEAD_SECONDS,
            body_timeout=limits.HEAD_SECONDS,
            max_header_size=limits.HEAD_BYTES,
            max_body_size=limits.HEAD_BYTES,
        )

    def start_accepting(self, sockets: list[socket.socket]) -> None:
        """Let people knock."""
        self._listening_sockets = sockets
        for sock in sockets:
            self._resume_accepting(sock)

    def _resume_accepting(self, sock: socket.socket) -> None:
        if sock in self._listening_sockets:
            asyncio.get_running_loop().add_reader(sock.fileno(), self._accept_connections, sock)

    def _accept_connections(self, sock: socket.socket) -> None:
        """Accept a few connections; the others wait in the kernel, where they cost nothing.

        Each costs up to a millisecond until it is proven or refused. So they are accepted at a
        bounded rate, not as fast as somebody dials: then the loop is free for proven links.
        """
        for _ in range(limits.ACCEPTED_AT_ONCE):
            try:
                accepted, address = sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no file left, or no memory
                log.error(
                    "nobody can be let in for %g s: %s", limits.ACCEPT_RETRY_SECONDS, error.strerror
                )
                self._pause_accepting(sock, limits.ACCEPT_RETRY_SECONDS)
                return
            self._on_accepted(accepted, address)
            ahead = self._accepts.spend(0) - limits.ACCEPTED_AHEAD_SECONDS
            if ahead > 0:
                self._pause_accepting(sock, ahead)
                return

    def _pause_accepting(self, sock: socket.socket, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock.fileno())
        loop.call_later(seconds, self._resume_accepting, sock)

    def stop_accepting(self) -> None:
        """Let nobody in any more; who is in stays."""
        while self._listening_sockets:
            sock = self._listening_sockets.pop()
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()

    def _on_accepted(self, sock: socket.socket, address: Any) -> None:
        """Wait for a connection's first byte; what fails there ends this connection only."""
        sock.setblocking(False)
        try:
            gone = not sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:  # many at once may hang up: who waits behind them is not to wait for that
            sock.close()
            return
        self._accepts.spend(_LOOK_COST)
        try:
            let_in = functools.partial(self._serve_connection, address=address)
            _IncomingConnection(self._server, sock, str(address[0]), let_in, self._accepts)
        except Exception as error:
            sock.close()
            cleanup.log_failure("the beginning of a connection", error)

    def _serve_connection(self, sock: socket.socket, address: Any) -> None:
        is_tls = isinstance(sock, ssl.SSLSocket)
        stream = _TlsStream(sock) if is_tls else _PlainStream(sock)
        stream.unproven = self._server.unauthenticated
        self.handle_stream(stream, address)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Take a connection in."""

        def cut() -> None:
            if stream.socket is not None:  # else a link has taken it over
                stream.close()

        self._unauthenticated_entries[stream] = self._server.unauthenticated.add(
            str(address[0]), cut
        )
        try:
            super().handle_stream(stream, address)
        except Exception:
            self._release(stream)
            raise

    def on_close(self, server_conn: Any) -> None:
        """Note that a connection is gone, or that somebody else has it now."""
        self._release(server_conn.stream)
        super().on_close(server_conn)

    def _release(self, stream: IOStream) -> None:
        """Count a connection no more among those that have proven nothing."""
        entry = self._unauthenticated_entries.pop(stream, None)
        if entry is not None:
            self._server.unauthenticated.remove(entry)


class _FewReads(IOStream):
    """A stream that reads slowly what comes in very many pieces.

    The limit on a request's bytes is none on the work: each piece costs as much as a whole.

    Attributes:
        unproven: the connections among which it counts.
    """

    unproven: UnauthenticatedConnections
    _reads = 0

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Read, as the stream's kind does; raise as if the peer had hung up after too many."""
        count = super().read_from_fd(buf)
        if count:
            self._reads += 1
            if self._reads > limits.UNPROVEN_READS:
                raise ConnectionResetError(errno.ECONNRESET, "a request in too many pieces")
            if seconds := self.unproven.read_pause(self._reads):
                self.io_loop.update_handler(self.fileno(), self.io_loop.ERROR)
                self.io_loop.call_later(seconds, self._resume_reading)
        return count

    def _resume_reading(self) -> None:
        """Read again after a pause, unless the connection is gone, or a link's now."""
        if not self.closed() and self.reading():
            self.io_loop.update_handler(self.fileno(), self.io_loop.READ | self.io_loop.ERROR)


class _PlainStream(_FewReads, IOStream):
    """A request without TLS."""


class _TlsStream(_FewReads, SSLIOStream):
    """A request over TLS, whose handshake is done."""


class _IncomingConnection:
    """A connection of which no request was read: waits for its first byte, or through TLS."""

    def __init__(
        self,
        server: Server,
        sock: socket.socket,
        address: str,
        on_ready: Callable[[socket.socket], None],
        accepts: TokenBucket,
    ) -> None:
        self._server = server
        self._sock = sock
        self._fd = sock.fileno()  # a socket that TLS could not take over tells it no more
        self._on_ready = on_ready
        self._accepts = accepts
        self._reading = self._left = False
        self._pieces = 0  # of the TLS handshake
        self._loop = asyncio.get_running_loop()
        self._entry = server.unauthenticated.add(address, self._close)
        self._timer = self._loop.call_later(limits.HEAD_SECONDS, self._close)
        try:
            self._read_by(self._read_first_byte)
        except BaseException:
            self._close()
            raise

    def _read_by(self, act: Callable[[], None]) -> None:
        self._loop.add_reader(self._fd, self._guarded, act)
        self._reading = True

    def _read_no_more(self) -> None:
        """Let go of the descriptor; later, its number may be another connection's."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _guarded(self, act: Callable[[], None]) -> None:
        """Act; a failure that nobody foresaw ends this connection."""
        try:
            act()
        except Exception as error:
            self._close()
            cleanup.log_failure("a connection that has proven nothing", error)

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
        proceed = self._start_tls if first == _TLS_HANDSHAKE_BYTE else self._hand_over
        if seconds := self._accepts.spend(1 - _LOOK_COST):  # many speak at once: one by one
            self._read_no_more()
            self._loop.call_later(seconds, self._proceed, proceed)
        else:
            proceed()

    def _proceed(self, act: Callable[[], None]) -> None:
        """Go on after a pause, if the connection is there still."""
        if not self._left:
            self._guarded(act)

    def _start_tls(self) -> None:
        self._read_no_more()
        context = self._server.certificates.context
        try:
            self._sock.getpeername()  # of a connection that is there no more: ENOTCONN
            self._sock = context.wrap_socket(
                self._sock,
                server_side=True,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=True,
            )
        except (OSError, ValueError):  # the socket may be detached now, its descriptor closed
            self._accepts.spend(_LOOK_COST - 1)  # it hung up: nobody waits for its handshake
            self._close()
            return
        self._read_by(self._continue_handshake)
        self._continue_handshake()

    def _continue_handshake(self) -> None:
        """Go on with the handshake; its few bytes always fit in a fresh socket."""
        assert isinstance(self._sock, ssl.SSLSocket)
        self._pieces += 1
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            if self._pieces > limits.UNPROVEN_READS:
                self._close()
            elif seconds := self._server.unauthenticated.read_pause(self._pieces):
                self._read_no_more()
                self._loop.call_later(seconds, self._proceed, self._shake_on)
        except (OSError, ValueError):
            self._close()
        else:
            self._hand_over()

    def _shake_on(self) -> None:
        self._read_by(self._continue_handshake)

    def _hand_over(self) -> None:
        """Hand the connection on; it counts among the unproven there, too."""
        self._stop_waiting()
        try:
            self._on_ready(self._sock)
        except BaseException:
            self._sock.close()
            raise

    def _close(self) -> None:
        self._stop_waiting()
        cleanup.run_all("a connection that has proven nothing", self._sock.close)

    def _stop_waiting(self) -> None:
        """Release the count first: nothing that fails behind it can keep it."""
        if self._left:
            return
        self._left = True
        self._server.unauthenticated.remove(self._entry)
        self._timer.cancel()
        cleanup.run_all("a connection that has proven nothing", self._read_no_more)


def open_listening_sockets(host: str, tcp_port: int) -> list[socket.socket]:
    """Return sockets that listen there.

    Raises:
        ServerError: the address or the TCP port cannot be had.
    """
    try:
        return bind_sockets(tcp_port, host, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServerError(
                f"TCP port {tcp_port} of {host} is taken by another program; "
                f"choose another with `mbm server-start --port N`"
            ) from error
        raise ServerError(f"It cannot listen on {host}:{tcp_port}: {error.strerror}") from error


def all_on_loopback(sockets: list[socket.socket]) -> bool:
    """Whether only this machine can reach them."""
    names = (str(sock.getsockname()[0]).partition("%")[0] for sock in sockets)
    return all(ipaddress.ip_address(name).is_loopback for name in names)
