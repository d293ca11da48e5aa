"""TLS for a link: an asyncio transport over a socket whose handshake is done.

asyncio's own TLS keeps a read buffer of 256 KB for each connection and copies each byte
through two memory BIOs; an idle board may cost 40 KB. Here OpenSSL reads and writes the
socket itself, which also frees its buffers between records.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from . import cleanup

READ_BYTES = 64 * 1024  # handed on at once: what a read of a plain socket takes
_RECORD_BYTES = 16 * 1024  # bytes: the longest record of TLS (RFC 8446, 5.1)
_SHORT_RECORD_BYTES = (
    512  # bytes: a shorter record is a message on its own; to look for another costs a tenth
)


class TlsTransport(asyncio.Transport):
    """What ``websocket.Link`` writes to, over TLS.

    Args:
        sock: the socket, not blocking, past its handshake; it is ours from now on.
        protocol: takes what comes; it is told of the connection before this returns.
    """

    def __init__(self, sock: ssl.SSLSocket, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()  # a socket that failed may tell it no more
        self._protocol = protocol
        self._unsent = bytearray()
        self._closing = self._aborted = self._paused = False
        self._loop.add_reader(self._fd, self._read)
        protocol.connection_made(self)
        self._loop.call_soon(self._read)  # what came with the handshake makes no file readable

    # Reading

    def _read(self) -> None:
        if self._paused or self._aborted:
            return
        data, open_still = self._read_available()
        if data and not self._closing:
            self._protocol.data_received(bytes(data))
        if not open_still:
            self.abort()
        elif self._sock.pending():
            self._loop.call_soon(self._read)

    def _read_available(self) -> tuple[bytearray, bool]:
        """Return what is there, and whether more may come."""
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
        except (OSError, ValueError):  # ValueError: what TLS knew of the connection is gone
            return data, False
        return data, True

    def pause_reading(self) -> None:
        """Leave what comes in the socket."""
        if not self._paused and not self._aborted:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Go on reading; some of it may be deciphered already."""
        if self._paused and not self._aborted:
            self._paused = False
            self._loop.add_reader(self._fd, self._read)
            self._loop.call_soon(self._read)

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, or keep what the socket does not take now."""
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
        """Return how many bytes the socket took."""
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
        sent = self._send(bytes(self._unsent))
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
        """Return how many bytes the socket has not taken yet."""
        return len(self._unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing to set: the protocol is told at the first byte that has to wait."""

    # The end

    def is_closing(self) -> bool:
        """Whether it takes nothing more."""
        return self._closing or self._aborted

    def close(self) -> None:
        """Hang up once all has left."""
        if self.is_closing():
            return
        self._closing = True
        if not self._unsent:
            self._shut_down_tls()

    def _shut_down_tls(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._sock.unwrap()  # says goodbye (RFC 8446, 6.1); the answer is not waited for
        self.abort()

    def abort(self) -> None:
        """Hang up at once."""
        if self._aborted:
            return
        self._aborted = True
        self._loop.call_soon(self._close_socket)  # first: whatever fails below, the end comes
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)

    def _close_socket(self) -> None:
        """Close the socket; the protocol hears of the end even where that fails."""
        cleanup.run_all(
            "a TLS link", self._sock.close, lambda: self._protocol.connection_lost(None)
        )
