"""TLS on a caller's link: whom it trusts, and one TLS for two threads.

A server is verified by its own certificate authority, for the one name ``cloudmanager``:
the local one's stands in a file, another one's is fetched from the server itself and must
have the fingerprint that the token carries. A token without one (``--cert``: a public
certificate) leaves it to this machine's own authorities and the server's name.

Imported by the first link over TLS only: ``ssl`` takes 20 ms.
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

READ_BYTES: Final = 16 * 1024  # the longest record (RFC 8446, 5.1)
MAX_PEM_BYTES: Final = 64 * 1024  # bytes of an authority's certificate, as PEM


class TlsSocket:
    """A connected socket under TLS, written to by any thread while one reads.

    OpenSSL's state may be touched by one thread at a time, and a thread that reads waits
    for long: so the socket is read outside of the lock, and TLS works in memory.

    Raises:
        OSError: the other side is not who it should be, or does not speak TLS.
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
        """Go on with the handshake; return whether it is done."""
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
        """Whether bytes were taken from the socket that ``recv`` has not returned yet."""
        return bool(self._incoming.pending or self._tls.pending())

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Return what goes to the socket for this; it has to go there, whole and in this order."""
        with self._tls_lock:
            self._tls.write(data)
            return self._outgoing.read()

    def sendall(self, data: bytes) -> None:
        """Send all of it; from any thread. Where this raises, nothing may be sent any more."""
        with self._write_lock:
            self._sock.sendall(self.encrypt(data))

    def recv(self, _: int) -> bytes:
        """Return what came, b"" at the end; from one thread."""
        while True:
            with self._tls_lock:
                try:
                    if self.has_buffered_data() or self._incoming.eof:
                        return self._tls.read(READ_BYTES)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
            data = self._sock.recv(READ_BYTES)
            with self._tls_lock:
                self._feed(data)


def start_tls(sock: socket.socket, host: str, address: ServerAddress) -> TlsSocket:
    """Put TLS over a connected socket.

    Raises:
        OSError: the server is not who it should be, or does not speak TLS.
    """
    if address.pin:
        pem = _fetch_ca(host, sock.getpeername()[1], address.pin)
        return TlsSocket(sock, _context_for_ca(pem), config.TLS_NAME)
    if address.ca is not None:
        return TlsSocket(sock, ssl.create_default_context(cafile=address.ca), config.TLS_NAME)
    return TlsSocket(sock, ssl.create_default_context(), host)


def _fetch_ca(host: str, tcp_port: int, pin: str) -> str:
    """Return the server's authority as PEM, which is the one with this fingerprint.

    What it is fetched over is not verified: the fingerprint is what counts, and nothing
    secret is sent.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(host, tcp_port, timeout=10, context=context)
    try:
        connection.request("GET", "/ca.pem")
        pem = connection.getresponse().read(MAX_PEM_BYTES).decode("ascii", "replace")
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()
    except (ValueError, http.client.HTTPException) as error:
        raise OSError("what answers there is no Cloudmanager server") from error
    finally:
        connection.close()
    if not _has_fingerprint(digest, pin):
        raise OSError("it is another server than the one that made the token")
    return pem


def _context_for_ca(pem: str) -> ssl.SSLContext:
    """Return a context that trusts one certificate authority and no other."""
    return ssl.create_default_context(cadata=pem)


def _has_fingerprint(digest: bytes, pin: str) -> bool:
    return hmac.compare_digest(_fingerprint(digest), pin.encode("ascii", "replace"))


def _fingerprint(digest: bytes) -> bytes:
    """Return a digest as tokens carry it: its first 128 bits."""
    return base64.urlsafe_b64encode(digest[:16]).rstrip(b"=")
