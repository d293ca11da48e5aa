"""An asyncio transport over a TLS socket whose handshake is complete.

asyncio's own TLS transport keeps a read buffer of 256 KB for each connection and copies each byte
through two memory BIOs, but an idle board may cost only 40 KB. Here, OpenSSL reads and writes the
socket itself, and frees its buffers between records.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

from cm_server import cleanup

READ_BYTES = 64 * 1024  # longest data of one data_received(), as with a plain socket
_PIECE_BYTES = 256 * 1024  # of what waits to be sent, in one iteration of the event loop
_RECORD_BYTES = 16 * 1024  # bytes: the longest record of TLS (RFC 8446, 5.1)
#: A record that is shorter is most often one message: after it, another recv() would most often
#: find nothing, and cost a tenth of the time of the message.
_SHORT_RECORD_BYTES = 512


class TlsTransport(asyncio.Transport):
    """An asyncio transport for ``WebSocketLink`` over TLS.

    Args:
        sock: a non-blocking socket after its handshake, which the transport owns from now on.
        protocol: receives the data; its ``connection_made`` is called here.
    """

    def __init__(self, sock: ssl.SSLSocket, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()  # kept: a socket that failed may not know it any more
        self._protocol = protocol
        self._unsent = bytearray()
        self._closing = self._aborted = self._paused = False
        self._loop.add_reader(self._fd, self._read)
        protocol.connection_made(self)
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

    def _read_available(self) -> tuple[bytearray, bool]:
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

    def pause_reading(self) -> None:
        """Stop reading; received bytes stay in the socket, so that the peer has to wait."""
        if not self._paused and not self._aborted:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Read again, also what OpenSSL has decrypted already."""
        if self._paused and not self._aborted:
            self._paused = False
            self._loop.add_reader(self._fd, self._read)
            self._loop.call_soon(self._read)

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; keep what the socket does not accept yet until it is writable."""
        if self._aborted or self._closing:
            return
        if self._unsent:
            self._unsent += data
            return
        sent = self._send(data)
        if sent < len(data) and not self._aborted:
            self._unsent += memoryview(data)[sent:]
            self._loop.add_writer(self._fd, self._write_unsent)
            self._protocol.pause_writing()

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

    def _write_unsent(self) -> None:
        sent = self._send(bytes(memoryview(self._unsent)[:_PIECE_BYTES]))
        if self._aborted:
            return
        del self._unsent[:sent]
        if self._unsent:
            return
        self._loop.remove_writer(self._fd)
        self._protocol.resume_writing()
        if self._closing:
            self._shut_down_tls()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the socket has not accepted yet."""
        return len(self._unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: pause_writing() is always called at the first byte that has to wait."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the socket, the only information there is."""
        return self._sock if name == "socket" else default

    # The end

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._closing or self._aborted

    def close(self) -> None:
        """Close the connection once all data has been sent."""
        if self.is_closing():
            return
        self._closing = True
        if not self._unsent:
            self._shut_down_tls()

    def _shut_down_tls(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._sock.unwrap()  # sends close_notify (RFC 8446, 6.1); does not await the peer's
        self.abort()

    def abort(self) -> None:
        """Close the connection immediately."""
        if self._aborted:
            return
        self._aborted = True
        self._loop.call_soon(self._close_socket)  # first: it has to happen if the rest fails
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)

    def _close_socket(self) -> None:
        """Close the socket and notify the protocol, even if closing fails."""
        cleanup.run_all(
            "a TLS link", self._sock.close, lambda: self._protocol.connection_lost(None)
        )
