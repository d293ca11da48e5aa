"""Frames on their way from a caller to the server: each leaves whole, or nothing follows it.

Half a frame cannot be taken back: the server counts what comes next as its other half. So a stream
is never used again after a frame was left half written.

* The calling thread writes only what the system takes at once, and never waits for the server to
  read. So Ctrl-C and cancellation find a caller while it waits for a reply, not in a write.
* What the system does not take at once, and all that follows, a thread of its own writes. Python
  raises KeyboardInterrupt in the main thread only, so nothing interrupts this thread.
* Where a frame is left half written after all (a second Ctrl-C within microseconds, no memory, a
  caller that does not want its cell any more), the stream is shut down: the server drops the half
  and sees the end. No close frame and no alert of TLS is appended to it.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .tls import TlsSocket

#: Bytes that the writing thread hands to the system in one call: how often progress is noted.
PIECE_BYTES: Final = 16 * 1024
#: The flag of send() for "do not wait". Windows has none: there the thread writes everything.
DO_NOT_WAIT: Final = getattr(socket, "MSG_DONTWAIT", 0)
CLOSE_SECONDS: Final = 2.0  # that what is on its way has to leave before the stream is closed


class OutgoingFrame:
    """One frame on its way.

    Attributes:
        begun: whether a byte of it may have left.
        complete: whether all of it may have left; where not, the server cannot have it.
    """

    __slots__ = ("_outgoing", "begun", "complete", "data", "withdrawn")

    def __init__(self, outgoing: Outgoing, data: bytes) -> None:
        self._outgoing = outgoing
        self.data: bytes | memoryview = data  # what is left to write; clear text until it is begun
        self.begun = self.complete = self.withdrawn = False

    def withdraw(self) -> bool:
        """Keep the server from ever having all of it; return False where that is too late.

        A frame that is not begun is left out. After one that is half written nothing can follow:
        the stream is shut down.
        """
        return self._outgoing.withdraw(self)


class Outgoing:
    """Writes frames to a stream, in the order of ``send``; from any thread.

    Args:
        sock: the connected socket, or TLS over it.

    Attributes:
        written: bytes that the system took from the writing thread: shows that it makes progress.
        why: why the stream was shut down in the middle of a frame; "" where it was not.
    """

    def __init__(self, sock: socket.socket | TlsSocket) -> None:
        self._stream = sock
        if isinstance(sock, socket.socket):
            self._write, self._encrypt = sock.send, None
        else:
            self._write, self._encrypt = sock.send_encrypted, sock.encrypt
        self.written = 0
        self.why = ""
        self._lock = threading.Lock()  # held for moments only: nobody waits for the server with it
        self._halfway: OutgoingFrame | None = None  # what a caller writes just now
        self._closed = False
        self._left = 0  # frames that the thread has not finished
        # SimpleQueue.put and Lock are C code: unlike in Condition or Queue, Ctrl-C cannot leave
        # them half done.
        self._frames: queue.SimpleQueue[OutgoingFrame | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._write_frames, name="cloudmanager-writer", daemon=True
        )
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether frames wait for the server to read."""
        return self._left > 0

    @property
    def closed(self) -> bool:
        """Whether nothing is written any more."""
        return self._closed

    def send(self, data: bytes) -> OutgoingFrame:
        """Write a frame, or leave it to the writing thread; does not wait for the server.

        Where the stream is closed, the frame is not written: it never becomes ``complete``.

        Raises:
            BaseException: what a signal's handler raised meanwhile, such as KeyboardInterrupt; the
                frame is written all the same, or never becomes ``complete``.
        """
        frame = OutgoingFrame(self, data)
        torn = False
        try:
            with self._lock:
                torn = self._is_torn()
                if torn or self._closed:
                    pass
                elif self._must_queue():
                    self._hand_over(frame)
                else:
                    self._halfway = frame
                    self._write_now(frame)
        finally:
            if torn or self._is_halfway(frame):
                self._cut()
        return frame

    def _is_torn(self) -> bool:
        """Whether a thread was stopped inside an earlier frame, before it could cut the stream."""
        return self._halfway is not None

    def _is_halfway(self, frame: OutgoingFrame) -> bool:
        """Whether writing this frame was stopped before the rest was queued."""
        return self._halfway is frame

    def _must_queue(self) -> bool:
        """Whether the next frame is left to the writing thread."""
        return self._left > 0 or not DO_NOT_WAIT

    def _write_now(self, frame: OutgoingFrame) -> None:
        """Write what the system takes at once and leave the rest to the thread; under the lock."""
        frame.begun = True
        if self._encrypt is not None:
            frame.data = self._encrypt(frame.data)
        taken: list[int] = []
        try:
            _write_and_count(self._write, frame.data, taken)
        except OSError:
            if taken:  # it is not of the socket, but of a signal's handler
                raise
        finally:
            if taken and taken[0] == len(frame.data):
                frame.complete, frame.data = True, b""
            else:  # also if the link is broken: the thread notices
                frame.data = memoryview(frame.data)[sum(taken) :]
                self._hand_over(frame)
            self._halfway = None

    def _hand_over(self, frame: OutgoingFrame) -> None:
        self._left += 1  # first: whoever sends next must not overtake this frame
        self._frames.put(frame)

    def withdraw(self, frame: OutgoingFrame) -> bool:
        """See ``OutgoingFrame.withdraw``."""
        with self._lock:
            if frame.complete:
                return False
            frame.withdrawn = True  # the thread does not complete it from here on
            torn = self._is_partly_written(frame)
        if torn:
            self._cut()
        return True

    def _is_partly_written(self, frame: OutgoingFrame) -> bool:
        """Whether the server may have a part of a frame, and could receive the rest."""
        return frame.begun and not self._closed

    def close(self) -> None:
        """Let what is on its way leave, for a short while; then nothing is written any more."""
        self._frames.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS if self._left and not self._closed else 0)
        self.stop()

    def stop(self) -> None:
        """Write nothing more, and shut the stream down; its reader sees the end."""
        with self._lock:
            self._closed = True
        self._frames.put(None)
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)  # ends a write that waits, too

    def _cut(self) -> None:
        """Shut the stream down in the middle of a frame."""
        self.why = self.why or "the link ended, since a message on it was interrupted"
        self.stop()

    # The writing thread

    def _write_frames(self) -> None:
        try:
            while (frame := self._frames.get()) is not None:
                if self._begin(frame):
                    self._write_rest(frame)
                with self._lock:
                    self._left -= 1
        except (OSError, MemoryError):
            pass  # the stream is of no use any more; the reading thread sees its end
        finally:
            self.stop()

    def _begin(self, frame: OutgoingFrame) -> bool:
        """Return whether a frame is to be written, and encrypt it; its order is fixed by now."""
        with self._lock:
            if self._closed or self._halfway is not None:
                raise ConnectionAbortedError
            if frame.withdrawn and not frame.begun:
                return False
            if not frame.begun:
                frame.begun = True
                if self._encrypt is not None:
                    frame.data = self._encrypt(frame.data)
        return True

    def _write_rest(self, frame: OutgoingFrame) -> None:
        """Write what is left of a frame, all of it.

        Raises:
            OSError: the link broke, or was closed.
        """
        rest = memoryview(frame.data)
        while rest:
            if len(rest) <= PIECE_BYTES:
                with self._lock:
                    if not self._may_complete(frame):
                        raise ConnectionAbortedError
                    frame.complete = True  # from here on it may arrive whole
            with contextlib.suppress(TimeoutError, BlockingIOError):  # nothing was taken yet
                count = self._write(rest[:PIECE_BYTES])
                rest = rest[count:]
                self.written += count
        frame.data = b""

    def _may_complete(self, frame: OutgoingFrame) -> bool:
        """Whether the last piece of a frame may be written."""
        return not self._closed and not frame.withdrawn


def _write_and_count(
    write: Callable[[bytes | memoryview, int], int], data: bytes | memoryview, taken: list[int]
) -> None:
    """Call ``write`` and append to ``taken`` how many bytes it wrote.

    A signal handler runs between two bytecodes. ``extend`` is one, so that no handler can run
    after the write and before the number is recorded.
    """
    taken.extend(map(write, (data,), (DO_NOT_WAIT,)))
