"""Sends frames to the server: each is sent completely, or nothing is sent after it.

After a partial frame, the server would read the next bytes as the rest of that frame. So a stream
is never used again after a partial frame.

* The calling thread writes only as much as the socket's buffer accepts, and never waits for the
  server to read. So Ctrl-C and cancellation interrupt a caller in a wait for a reply, not in a
  write.
* A separate thread writes the rest of such a frame, and all frames after it. Python raises
  KeyboardInterrupt only in the main thread, so this thread is never interrupted.
* If a frame stays partial all the same (a second Ctrl-C within microseconds, no memory, a
  cancelled cell), the stream is shut down: the server drops the partial frame and sees the end of
  the stream. No close frame and no TLS alert is sent.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from .tls import TlsSocket

#: How much the writing thread passes to one send(); after each, progress is recorded.
PIECE_BYTES: Final = 16 * 1024
#: Flag of send() for a non-blocking call. Windows has none: there the thread writes everything.
DO_NOT_WAIT: Final = getattr(socket, "MSG_DONTWAIT", 0)
#: Appends what a call of send() returns, with one bytecode. A signal handler runs between two, so
#: none can run after a write and before its length is recorded.
_record_all: Final = list[int].extend
CLOSE_SECONDS: Final = 2.0  # how long close() waits until queued frames are sent


class OutgoingFrame:
    """One frame that is being sent.

    Attributes:
        begun: whether a byte of it may have been sent.
        complete: whether all of it may have been sent; if not, the server cannot have it.
        withdrawn: whether it must not be sent completely any more.
        data: the bytes that are not written yet; not encrypted until it is begun.
    """

    __slots__ = ("_outgoing", "begun", "complete", "data", "withdrawn")

    def __init__(self, outgoing: Outgoing, data: bytes) -> None:
        self._outgoing = outgoing
        self.data: bytes | memoryview = data
        self.begun = self.complete = self.withdrawn = False

    def withdraw(self) -> bool:
        """Ensure that the server never gets the whole frame; return False if it is too late.

        A frame that is not begun is skipped. If it is partly written, the stream is shut down.
        """
        return self._outgoing.withdraw(self)


class Outgoing:
    """Writes frames to a stream, in the order of ``send``; from any thread.

    Args:
        sock: the connected socket, or TLS over it.

    Attributes:
        written: how many bytes the writing thread has written: shows whether it makes progress.
        why: why the stream was shut down in the middle of a frame; "" if it was not.
    """

    def __init__(self, sock: socket.socket | TlsSocket) -> None:
        self._stream = sock
        if isinstance(sock, socket.socket):
            self._write, self._encrypt = sock.send, None
        else:
            self._write, self._encrypt = sock.send_encrypted, sock.encrypt
        self.written = 0
        self.why = ""
        self._lock = threading.Lock()  # never held during a wait for the server
        self._current: OutgoingFrame | None = None  # the frame that a calling thread is writing
        self._closed = False
        self._queued_count = 0  # number of queued frames, including the one that the thread writes
        # SimpleQueue.put and Lock are C code: Ctrl-C cannot interrupt them in the middle, as it
        # could in Condition or Queue.
        self._frames: queue.SimpleQueue[OutgoingFrame | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._write_frames, name="cloudmanager-writer", daemon=True
        )

    def start(self) -> None:
        """Start the writing thread, which ends after ``stop`` or ``close``.

        Not in the constructor: Ctrl-C there would leave a thread that nobody can stop.
        """
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether frames are queued until the server reads."""
        return self._queued_count > 0

    @property
    def closed(self) -> bool:
        """Whether the stream is closed for writing."""
        return self._closed

    def send(
        self, data: bytes, register: Callable[[OutgoingFrame], object] | None = None
    ) -> OutgoingFrame:
        """Write a frame, or queue it for the writing thread; does not wait for the server.

        If the stream is closed, the frame is not written and never becomes ``complete``.

        Args:
            data: the frame.
            register: called with the frame before anything of it is sent, so that who wants to
                withdraw it can do so even if this call is interrupted.

        Raises:
            BaseException: raised by a signal handler during the call, such as KeyboardInterrupt;
                the frame is then still written, or never becomes ``complete``.
        """
        frame = OutgoingFrame(self, data)
        if register is not None:
            register(frame)
        torn = False
        try:
            with self._lock:
                torn = self._is_torn()
                if torn or self._closed:
                    pass
                elif self._must_queue():
                    self._queue(frame)
                else:
                    self._current = frame
                    self._write_now(frame)
        finally:
            if torn or self._was_interrupted(frame):
                self._end_torn_stream()
        return frame

    def _is_torn(self) -> bool:
        """Whether a thread was interrupted in an earlier frame before it could end the stream."""
        return self._current is not None

    def _was_interrupted(self, frame: OutgoingFrame) -> bool:
        """Whether writing this frame was interrupted before the rest was queued."""
        return self._current is frame

    def _must_queue(self) -> bool:
        """Whether the next frame is left to the writing thread."""
        return self._queued_count > 0 or not DO_NOT_WAIT

    def _write_now(self, frame: OutgoingFrame) -> None:
        """Write what the socket accepts now and queue the rest; the caller holds the lock."""
        frame.begun = True
        if self._encrypt is not None:
            try:
                frame.data = self._encrypt(frame.data)
            except ssl.SSLError:  # the server has ended TLS: the writing thread meets that, too
                frame.begun = False
                self._queue(frame)
                self._current = None
                return
        written_counts: list[int] = []
        try:
            _record_all(written_counts, map(self._write, (frame.data,), (DO_NOT_WAIT,)))
        except OSError as error:
            # The socket's own error is not raised: the writing thread meets it, too.
            if written_counts or not _is_raised_here(error):
                raise
        finally:
            if written_counts and written_counts[0] == len(frame.data):
                frame.complete, frame.data = True, b""
            else:  # also if the link is broken: the writing thread notices that
                frame.data = memoryview(frame.data)[sum(written_counts) :]
                self._queue(frame)
            self._current = None

    def _queue(self, frame: OutgoingFrame) -> None:
        self._queued_count += 1  # before put(): a later frame must not be written before this one
        self._frames.put(frame)

    def withdraw(self, frame: OutgoingFrame) -> bool:
        """See ``OutgoingFrame.withdraw``."""
        with self._lock:
            if frame.complete:
                return False
            frame.withdrawn = True  # from now on the writing thread does not complete it
            torn = self._is_partly_written(frame)
        if torn:
            self._end_torn_stream()
        return True

    def _is_partly_written(self, frame: OutgoingFrame) -> bool:
        """Whether the server may have a part of a frame, and could receive the rest."""
        return frame.begun and not self._closed

    def close(self) -> None:
        """Wait a short time until queued frames are sent, then stop."""
        self._frames.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS if self._queued_count and not self._closed else 0)
        self.stop()

    def stop(self) -> None:
        """Shut the stream down: nothing is written any more, and recv() returns its end."""
        with self._lock:
            self._closed = True
        self._frames.put(None)
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)  # also ends a write that blocks

    def after_fork_in_child(self) -> None:
        """Write nothing any more; the parent process goes on."""
        self._lock = threading.Lock()  # another thread may have held it during the fork
        self._closed = True

    def _end_torn_stream(self) -> None:
        """Shut the stream down in the middle of a frame."""
        self.why = self.why or "the link was closed because sending a message was interrupted"
        self.stop()

    # The writing thread

    def _write_frames(self) -> None:
        try:
            while (frame := self._frames.get()) is not None:
                if self._begin(frame):
                    self._write_rest(frame)
                with self._lock:
                    self._queued_count -= 1
        except (OSError, MemoryError):
            pass  # the stream is broken; the reading thread notices its end
        finally:
            self.stop()

    def _begin(self, frame: OutgoingFrame) -> bool:
        """Encrypt a queued frame, now that its position in the stream is fixed.

        Returns:
            Whether it must be written: False if it was withdrawn before it was begun.

        Raises:
            ConnectionAbortedError: the stream was stopped.
        """
        with self._lock:
            if self._closed or self._current is not None:
                raise ConnectionAbortedError
            if frame.withdrawn and not frame.begun:
                return False
            if not frame.begun:
                frame.begun = True
                if self._encrypt is not None:
                    frame.data = self._encrypt(frame.data)
        return True

    def _write_rest(self, frame: OutgoingFrame) -> None:
        """Write the rest of a frame.

        Raises:
            OSError: the link broke, or was closed.
        """
        rest = memoryview(frame.data)
        while rest:
            if len(rest) <= PIECE_BYTES:
                with self._lock:
                    if not self._may_complete(frame):
                        raise ConnectionAbortedError
                    frame.complete = True  # from now on the server may get all of it
            with contextlib.suppress(TimeoutError, BlockingIOError):  # nothing was written
                count = self._write(rest[:PIECE_BYTES])
                rest = rest[count:]
                self.written += count
        frame.data = b""

    def _may_complete(self, frame: OutgoingFrame) -> bool:
        """Whether the last piece of a frame may be written."""
        return not self._closed and not frame.withdrawn


def _is_raised_here(error: OSError) -> bool:
    """Return whether the socket or TLS raised an error, and not a signal handler.

    A handler is a Python function of somebody else, so the innermost frame is its own.
    """
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    module = innermost.tb_frame.f_globals.get("__name__", "") if innermost is not None else ""
    return bool(module) and module in (__name__, f"{__package__}.tls", "ssl")
