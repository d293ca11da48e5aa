"""TLS on a caller's link: verification of the server, and a TLS socket for two threads.

A server has its own certificate authority, and a certificate for the name ``cloudmanager``. The
authority's certificate of the local server is in a file; that of another server is fetched from
the server, and must have the fingerprint that is part of the token. If the token has no
fingerprint (a server with ``--cert``, a public certificate), the server is verified by this
machine's certificate authorities and its host name.

Imported only for the first link with TLS: importing ``ssl`` takes 20 ms.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import socket
import ssl
import threading
from typing import Final

from cloudmanager import config
from cloudmanager.config import ServerAddress

from .connecting import open_connection

READ_BYTES: Final = 16 * 1024  # the greatest length of a record (RFC 8446, 5.1)
MAX_PEM_BYTES: Final = 64 * 1024  # of the certificate of an authority, as PEM


class OtherServer(OSError):
    """The server is not the one that issued the token."""

    hint = "Set CM_TOKEN to a token of this server, or CM_URL to the server of the token."

    def __str__(self) -> str:
        return "the token belongs to another server: the certificate fingerprint differs"


class TlsSocket:
    """A connected socket with TLS; any thread can write while one thread reads.

    Only one thread at a time may use OpenSSL's state, and a reading thread waits long. So the
    socket is read without the lock, and TLS works on buffers in memory.

    Raises:
        OSError: the certificate is not trusted, or the peer does not use TLS.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._tls_lock, self._write_lock = threading.Lock(), threading.Lock()
        self.settimeout, self.shutdown, self.close = sock.settimeout, sock.shutdown, sock.close
        self.fileno, self.send_encrypted = sock.fileno, sock.send
        while not self._step_handshake():
            pass

    def _step_handshake(self) -> bool:
        """Continue the handshake; return whether it is complete."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._sock.sendall(self._outgoing.read())
            self._feed(self._sock.recv(READ_BYTES))
            return False
        self._sock.sendall(self._outgoing.read())
        return True

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def has_buffered_data(self) -> bool:
        """Whether bytes were read from the socket that ``recv`` has not returned yet."""
        return bool(self._incoming.pending or self._tls.pending())

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Return encrypted bytes; the caller must send all of them, in the order of the calls."""
        with self._tls_lock:
            self._tls.write(data)
            return self._outgoing.read()

    def sendall(self, data: bytes) -> None:
        """Send all data; from any thread. After an exception nothing more may be sent."""
        with self._write_lock:
            self._sock.sendall(self.encrypt(data))

    def recv(self, _: int, flags: int = 0) -> bytes:
        """Return received bytes, b"" at the end; from one thread at a time.

        Args:
            _: ignored: a record is returned, as long as it is.
            flags: for the socket.

        Raises:
            BlockingIOError: no complete record has arrived, and the flags say not to wait.
        """
        while True:
            with self._tls_lock:
                try:
                    if self.has_buffered_data() or self._incoming.eof:
                        return self._tls.read(READ_BYTES)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
            data = self._sock.recv(READ_BYTES, flags)
            with self._tls_lock:
                self._feed(data)


def start_tls(sock: socket.socket, endpoint: tuple[str, int], address: ServerAddress) -> TlsSocket:
    """Start TLS on a connected socket and verify the server.

    Args:
        sock: connected to the server, maybe through a proxy.
        endpoint: the server's host and TCP port.
        address: how to verify it.

    Raises:
        OSError: the certificate is not trusted, or the server does not use TLS.
    """
    if address.pin:
        pem = _fetch_ca(*endpoint, address.pin)
        return TlsSocket(sock, _context_for_ca(pem), config.TLS_NAME)
    if address.ca is not None:
        return TlsSocket(sock, ssl.create_default_context(cafile=address.ca), config.TLS_NAME)
    return TlsSocket(sock, ssl.create_default_context(), endpoint[0])


def _fetch_ca(host: str, tcp_port: int, pin: str) -> str:
    """Return the certificate of the server's authority as PEM, if it has this fingerprint.

    The connection for this is not verified: the fingerprint identifies the certificate, and
    nothing secret is sent.

    Raises:
        OSError: the fingerprint differs, or no Cloudmanager server answers.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(host, tcp_port, context=context)
    connection.sock = open_connection("https", host, tcp_port, 10)
    try:
        connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
        connection.request("GET", "/ca.pem")
        pem = connection.getresponse().read(MAX_PEM_BYTES).decode("ascii", "replace")
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()
    except (ValueError, http.client.HTTPException) as error:
        raise OSError("the program that answers there is not a Cloudmanager server") from error
    finally:
        connection.close()
    if not _has_fingerprint(digest, pin):
        raise OtherServer
    return pem


def _context_for_ca(pem: str) -> ssl.SSLContext:
    """Return a context that trusts one certificate authority and no other."""
    return ssl.create_default_context(cadata=pem)


def _has_fingerprint(digest: bytes, pin: str) -> bool:
    return hmac.compare_digest(_fingerprint(digest), pin.encode("ascii", "replace"))


def _fingerprint(digest: bytes) -> bytes:
    """Return the fingerprint as it is written in tokens: the first 128 bits in base64."""
    return base64.urlsafe_b64encode(digest[:16]).rstrip(b"=")
