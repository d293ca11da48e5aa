"""An asyncio transport over a TLS socket whose handshake is complete.

asyncio's own TLS transport keeps a read buffer of 256 KB for each connection and copies each byte
through two memory BIOs, but an idle board may cost only 40 KB. Here, OpenSSL reads and writes the
socket itself, and frees its buffers between records.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from .socket_transport import READ_BYTES, SocketTransport

_RECORD_BYTES = 16 * 1024  # bytes: the longest record of TLS (RFC 8446, 5.1)
#: A record that is shorter is most often one message: after it, another recv() would most often
#: find nothing, and cost a tenth of the time of the message.
_SHORT_RECORD_BYTES = 512


class TlsTransport(SocketTransport):
    """A transport for ``WebSocketLink`` over TLS.

    Args:
        sock: a non-blocking socket after its handshake, which the transport owns from now on.
        protocol: receives the data; its ``connection_made`` is called here.
    """

    __slots__ = ()
    _sock: ssl.SSLSocket

    def __init__(self, sock: ssl.SSLSocket, protocol: asyncio.Protocol) -> None:
        super().__init__(sock, protocol)
        # Data that was read with the handshake does not make the descriptor readable.
        self._loop.call_soon(self._read)

    # Reading

    def _read(self) -> None:
        if self._paused or self._aborted:
            return
        data, still_open = self._read_available()
        if data and not self._closing:
            self._protocol.data_received(bytes(data))
        if not still_open:
            self.abort()
        elif self._sock.pending():
            self._loop.call_soon(self._read)

    def _read_available(self) -> tuple[bytes | bytearray, bool]:
        """Return the available data, and whether the connection is still open."""
        data = bytearray()
        try:
            while len(data) < READ_BYTES:
                piece = self._sock.recv(_RECORD_BYTES)
                data += piece
                if not piece:
                    return data, False
                if len(piece) < _SHORT_RECORD_BYTES and not self._sock.pending():
                    break
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except (OSError, ValueError):  # ValueError: the SSL object is closed
            return data, False
        return data, True

    def resume_reading(self) -> None:
        """Read again, also what OpenSSL has decrypted already."""
        was_paused = self._paused
        super().resume_reading()
        if was_paused and not self._paused:
            self._loop.call_soon(self._read)

    # Writing

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        """Return how many bytes the socket accepted."""
        view, sent = memoryview(data), 0
        try:
            while sent < len(view):
                sent += self._sock.send(view[sent : sent + _RECORD_BYTES])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except (OSError, ValueError):
            self.abort()
        return sent

    # The end

    def _stop_reading(self) -> None:
        """Go on reading: a peer that closes the connection ends it, too."""

    def _end(self) -> None:
        """Send close_notify (RFC 8446, 6.1), without awaiting the peer's."""
        with contextlib.suppress(OSError, ValueError):
            self._sock.unwrap()
        self.abort()
