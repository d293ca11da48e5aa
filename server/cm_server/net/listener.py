"""The one TCP port: who knocks, by TLS or without, and what reads their requests.

The first byte tells TLS from plain: 0x16 begins a TLS handshake (RFC 8446, 5.1), and no
HTTP request. Until a request is read, a connection has proven nothing (gate.py).
"""

from __future__ import annotations

import asyncio
import errno
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

from .rate_limits import Entry

if TYPE_CHECKING:
    from cm_server.app import Server

log = logging.getLogger("cm_server")

_HANDSHAKE = b"\x16"


class Door(HTTPServer):
    """Reads requests, one for each connection; until it is done, the connection is unproven."""

    def initialize(self, server: Server, app: Application) -> None:  # type: ignore[override]
        """Take the server whose door it is, and its routes."""
        self._server = server
        self._entries: dict[IOStream, Entry] = {}
        self._listening: list[socket.socket] = []
        super().initialize(
            app,
            no_keep_alive=True,
            idle_connection_timeout=limits.HEAD_SECONDS,
            body_timeout=limits.HEAD_SECONDS,
            max_header_size=limits.HEAD_BYTES,
            max_body_size=limits.HEAD_BYTES,
        )

    def open(self, sockets: list[socket.socket]) -> None:
        """Let people knock."""
        self._listening = sockets
        for sock in sockets:
            self._listen(sock)

    def _listen(self, sock: socket.socket) -> None:
        if sock in self._listening:
            asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        """Take a few, so that those who are in get on first; the others wait in the kernel."""
        for _ in range(limits.ACCEPTED_AT_ONCE):
            try:
                self._knock(*sock.accept())
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no file left, or no memory
                log.error("nobody can be let in for %g s: %s", limits.FULL_SECONDS, error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(sock.fileno())
                loop.call_later(limits.FULL_SECONDS, self._listen, sock)
                return

    def shut(self) -> None:
        """Let nobody in any more; who is in stays."""
        while self._listening:
            sock = self._listening.pop()
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()

    def _knock(self, sock: socket.socket, address: Any) -> None:
        _Knock(self._server, sock, str(address[0]), lambda came: self._let_in(came, address))

    def _let_in(self, sock: socket.socket, address: Any) -> None:
        is_tls = isinstance(sock, ssl.SSLSocket)
        self.handle_stream(SSLIOStream(sock) if is_tls else IOStream(sock), address)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Take a connection in."""

        def cut() -> None:
            if stream.socket is not None:  # else a link has taken it over
                stream.close()

        self._entries[stream] = self._server.unproven.enter(str(address[0]), cut)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: Any) -> None:
        """Note that a connection is gone, or that somebody else has it now."""
        self._server.unproven.leave(self._entries.pop(server_conn.stream))
        super().on_close(server_conn)


class _Knock:
    """A connection of which no request was read: waits for its first byte, or through TLS."""

    def __init__(
        self,
        server: Server,
        sock: socket.socket,
        address: str,
        let_in: Callable[[socket.socket], None],
    ) -> None:
        sock.setblocking(False)
        self._server = server
        self._sock = sock
        self._let_in = let_in
        self._loop = asyncio.get_running_loop()
        self._entry = server.unproven.enter(address, self._end)
        self._timer = self._loop.call_later(limits.HEAD_SECONDS, self._end)
        self._loop.add_reader(sock.fileno(), self._look)

    def _look(self) -> None:
        try:
            first = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            first = b""
        if not first:
            self._end()
        elif first == _HANDSHAKE:
            self._begin_tls()
        else:
            self._enter()

    def _begin_tls(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        context = self._server.certificates.context
        self._sock = context.wrap_socket(
            self._sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        self._loop.add_reader(self._sock.fileno(), self._shake)
        self._shake()

    def _shake(self) -> None:
        """Go on with the handshake; its few bytes always fit in a fresh socket."""
        assert isinstance(self._sock, ssl.SSLSocket)
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            return
        except (OSError, ValueError):
            self._end()
        else:
            self._enter()

    def _enter(self) -> None:
        self._leave()
        self._let_in(self._sock)

    def _end(self) -> None:
        self._leave()
        self._sock.close()

    def _leave(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._server.unproven.leave(self._entry)


def bind(host: str, tcp_port: int) -> list[socket.socket]:
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


def on_loopback(sockets: list[socket.socket]) -> bool:
    """Whether only this machine can reach them."""
    names = (str(sock.getsockname()[0]).partition("%")[0] for sock in sockets)
    return all(ipaddress.ip_address(name).is_loopback for name in names)
