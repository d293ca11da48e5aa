"""A caller's link to the server: the one place of the library that opens a socket.

Outgoing frames leave through outgoing.py; a thread of the link reads from the socket and settles
what callers wait for. The conversation itself is in exchange.py.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from cloudmanager import config
from cloudmanager.config import DEFAULT_TCP_PORT, ServerAddress
from cloudmanager.protocol.errors import ServerUnreachable

from .exchange import Exchange
from .outgoing import Outgoing

if TYPE_CHECKING:
    from .tls import TlsSocket

CONNECT_SECONDS: Final = 10.0  # until the server has answered the handshake
#: A server whose machine lost its power is noticed within a minute (seconds, seconds, probes).
TCP_KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
#: Of silence, until the server is asked for a sign of life; after as much again it is gone. TCP
#: does not notice a middlebox that swallows what passes.
HEARTBEAT_SECONDS: Final = 15.0
#: What recv raises then.
RECEIVE_TIMEOUT_ERROR: Final = TimeoutError if sys.platform == "win32" else BlockingIOError
READ_BYTES: Final = 64 * 1024  # more would be mapped and unmapped for each read


class ServerLink:
    """One open WebSocket to the server. From any thread.

    Args:
        address: the server, and the token that opens it.

    Raises:
        ServerUnreachable: nobody answers there, or it is no Cloudmanager server.
        NotAllowed: the server does not know the token.
        VersionMismatch: it speaks another version of the protocol.
    """

    def __init__(self, address: ServerAddress) -> None:
        try:
            self._socket, host = _open_socket(address)
        except (OSError, ValueError) as error:
            raise ServerUnreachable(address.url, address.source, _failure_reason(error)) from error
        self._outgoing = Outgoing(self._socket)
        self.exchange = Exchange(address, host, self._outgoing.send)
        self._reader = threading.Thread(target=self._read_loop, name="cloudmanager", daemon=True)
        try:
            self._outgoing.send(self.exchange.handshake_request())
            self._reader.start()
            self.exchange.opened.result()
        except BaseException:  # such as Ctrl-C: nobody will have this link, so nobody closes it
            self._outgoing.stop()
            raise

    @property
    def closed(self) -> bool:
        """Whether the link is gone; it never comes back, another has to be made."""
        return self.exchange.closed or self._outgoing.closed

    def close(self) -> None:
        """Hang up and wait for the link's thread; what runs goes on on the boards."""
        self._outgoing.close()
        if threading.current_thread() is not self._reader:
            self._reader.join(CONNECT_SECONDS)

    def _read_loop(self) -> None:
        reason, greeting = "it hung up", True
        deadline = time.monotonic() + CONNECT_SECONDS
        try:
            while (data := self._receive()) and self.exchange.handle_data(data):
                if greeting:  # here and not in __init__: a recv keeps the timeout it began with
                    greeting = not self.exchange.opened.done
                    left = max(deadline - time.monotonic(), 0.001)
                    self._socket.settimeout(left if greeting else None)
        except OSError as error:
            reason = _failure_reason(error)
        finally:
            self._outgoing.stop()  # first: what is not complete by now never arrives
            self.exchange.on_link_lost(self._outgoing.why or reason)
            self._socket.close()

    def _receive(self) -> bytes:
        """Return what the server says; a silent one is asked for a sign of life, and then left."""
        ping_sent = False
        written = -1
        while True:
            try:
                return self._socket.recv(READ_BYTES)
            except RECEIVE_TIMEOUT_ERROR:
                if self._outgoing.busy:  # a ping would have to wait behind the other frames
                    if self._has_stopped_reading(written):
                        raise TimeoutError from None
                    written = self._outgoing.written
                elif self._has_stopped_answering(ping_sent):
                    raise TimeoutError from None
                else:
                    ping_sent = True
                    self._outgoing.send(self.exchange.ping_frame())

    def _has_stopped_reading(self, written_before: int) -> bool:
        """Whether the server read nothing since ``written_before`` bytes were written."""
        return self._outgoing.written == written_before

    def _has_stopped_answering(self, ping_sent: bool) -> bool:
        """Whether the server has ignored a ping, given that nothing was received."""
        return ping_sent


def _open_socket(address: ServerAddress) -> tuple[socket.socket | TlsSocket, str]:
    """Return a connected socket and what the Host header says."""
    parts = config.split_url(address.url)
    host, tcp_port = parts.hostname or "", parts.port or DEFAULT_TCP_PORT
    is_tls = parts.scheme in ("https", "wss")
    if not is_tls:
        _check_unencrypted(address.url)
    sock = socket.create_connection((host, tcp_port), CONNECT_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in TCP_KEEPALIVE.items():
        if hasattr(socket, name):  # not every platform has each
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(HEARTBEAT_SECONDS))
    if not is_tls:
        return sock, parts.netloc
    from .tls import start_tls

    try:
        return start_tls(sock, host, address), parts.netloc
    except BaseException:
        sock.close()
        raise


def _check_unencrypted(url: str) -> None:
    """Refuse to send a token without TLS to any other machine.

    Raises:
        ValueError: the server is not on this machine.
    """
    if not config.is_local(url):
        raise ValueError("the token would cross the network in the clear; write https://")


def _timeval(seconds: float) -> bytes:
    """Return a time as the system's sockets take it (POSIX: seconds, us; Windows: ms)."""
    if sys.platform == "win32":
        return struct.pack("L", int(seconds * 1000))
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))


def _failure_reason(error: Exception) -> str:
    """Say in words why the link is not there."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, socket.gaierror):
        return "that name has no address"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if (untrusted := getattr(error, "verify_message", "")) != "":
        return f"its certificate cannot be trusted ({untrusted})"
    if getattr(error, "reason", "") == "WRONG_VERSION_NUMBER":  # ssl.SSLError's
        return "it does not speak TLS there"
    told = error.strerror if isinstance(error, OSError) else None
    return told or str(error) or type(error).__name__
