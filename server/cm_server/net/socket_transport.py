"""An asyncio transport over a connected socket: less memory and fewer steps than asyncio's own.

A server keeps one for each board. asyncio's has a dictionary of attributes, another one of what
it knows of its socket, and a wrapper around it: 2 KB; and it takes a buffer of 256 KB for each
read.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from cm_server import cleanup

READ_BYTES = 64 * 1024  # longest data of one data_received()
_PIECE_BYTES = 256 * 1024  # of what waits to be sent, in one iteration of the event loop


class SocketTransport(asyncio.Transport):
    """A transport without TLS, for ``WebSocketLink``.

    Args:
        sock: a connected, non-blocking socket, which the transport owns from now on.
        protocol: receives the data; its ``connection_made`` is called here.
    """

    __slots__ = (
        "_aborted",
        "_closing",
        "_fd",
        "_loop",
        "_paused",
        "_protocol",
        "_sock",
        "_unsent",
    )

    def __init__(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        # The base class would make a dictionary for get_extra_info().
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()  # kept: a socket that failed may not know it any more
        self._protocol = protocol
        self._unsent: bytearray | None = None
        self._closing = self._aborted = self._paused = False
        self._loop.add_reader(self._fd, self._read)
        protocol.connection_made(self)

    # Reading

    def _read(self) -> None:
        if self._paused or self._closing or self._aborted:
            return
        try:
            data = self._sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if data:
            self._protocol.data_received(data)
        else:  # the peer may still read
            self._loop.remove_reader(self._fd)
            self.close()

    def pause_reading(self) -> None:
        """Stop reading; received bytes stay in the socket, so that the peer has to wait."""
        if not self._paused and not self.is_closing():
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Read again."""
        if self._paused and not self.is_closing():
            self._paused = False
            self._loop.add_reader(self._fd, self._read)

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
            self._unsent = bytearray(memoryview(data)[sent:])
            self._loop.add_writer(self._fd, self._write_unsent)
            self._protocol.pause_writing()

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        """Return how many bytes the socket accepted."""
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.abort()
            return 0

    def _write_unsent(self) -> None:
        if not self._unsent:
            return
        sent = self._send(bytes(memoryview(self._unsent)[:_PIECE_BYTES]))
        if self._aborted:
            return
        del self._unsent[:sent]
        if self._unsent:
            return
        self._unsent = None
        self._loop.remove_writer(self._fd)
        self._protocol.resume_writing()
        if self._closing:
            self._end()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the socket has not accepted yet."""
        return len(self._unsent) if self._unsent else 0

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
        """Close the connection once all data has been sent; what still arrives is not read."""
        if self.is_closing():
            return
        self._closing = True
        self._stop_reading()
        if not self._unsent:
            self._end()

    def _stop_reading(self) -> None:
        """Do not read any more, because the connection is being closed."""
        self._loop.remove_reader(self._fd)

    def _end(self) -> None:
        """Close the connection, all of whose data was sent."""
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
        cleanup.run_all("a link", self._sock.close, lambda: self._protocol.connection_lost(None))
