"""The bytes of one job with files, on their way between server and board; no sockets.

Both ways there is a window: so many bytes may be under way that nobody has confirmed. So an
interrupt never waits behind a whole file, a slow board or caller never fills the memory, and
no chunk waits for the one before it.

    put:  FILE ──▶  ◀── CHUNK(HAVE)   DATA ──▶ …  ◀── CHUNK(written) …   RESULT
    get:  FILE ──▶  ◀── CHUNK …       DATA(taken) ──▶ …                  RESULT
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError
from cm_server import limits

from .content_store import Content

if TYPE_CHECKING:
    from cm_server.jobs.jobs import Job

ACKS_PER_WINDOW = (
    4  # how many words on how far it is a window has room for; as in mpy_client/cm/files.py
)


class FileTransferSpec(NamedTuple):
    """What a job does with files.

    Attributes:
        ack_bytes: bytes after which a board tells how far it is; the window is ``STEPS`` of them.
        contents: what its puts write, in their order.
        reads_files: whether bytes come from the board.
        replaces_starter: whether they replace what a flashed board starts its client by.
    """

    ack_bytes: int
    contents: tuple[Content, ...]
    reads_files: bool
    replaces_starter: bool = False

    def start(self, job: Job, send: Callable[[bytes], object]) -> FileTransfer:
        """Return what moves them for one of the boards."""
        return FileTransfer(job.id, self, send, job.board.buffer_size)


def ack_bytes_for(boards: int) -> int:
    """Return the step for a job on so many boards at once: together, they stay bounded."""
    share = limits.TOTAL_WINDOW_BYTES // max(boards, 1)
    return max(limits.MIN_WINDOW_BYTES, min(limits.WINDOW_BYTES, share)) // ACKS_PER_WINDOW


class FileTransfer:
    """What of a job's files has moved.

    Args:
        job: its number.
        spec: what it does with files.
        send: writes a message to the board.
        room: bytes that a message to the board has room for.
    """

    def __init__(
        self, job: int, spec: FileTransferSpec, send: Callable[[bytes], object], buffer_size: int
    ) -> None:
        self._job = job
        self._send = send
        self._payload_bytes = buffer_size - wire.HEADER.size
        self._ack_bytes = spec.ack_bytes
        self._reads_files = spec.reads_files
        self._pending_contents: list[Content] = list(reversed(spec.contents))
        self._content: Content | None = None  # on its way
        self._offset = 0  # in that
        self.sent = 0  # bytes of this job, both ways
        self._confirmed = 0

    def on_chunk(self, message: wire.Message) -> bool:
        """Take a board's word on what it has written, or still has of a file; a file's bytes pass.

        Returns:
            Whether the caller is to see it.

        Raises:
            PeerWireError: it is malformed, or about nothing.
        """
        if self._reads_files:
            return True
        if message.flags & wire.RESUME_STATE:
            self._start_content(wire.read_resume_state(message))
        else:
            self._confirmed = max(self._confirmed, wire.read_byte_count(message))
        self._fill_window()
        return True

    def add_contents(self, contents: Sequence[Content]) -> None:
        """Have more contents ready, for the puts that come."""
        self._pending_contents[:0] = reversed(contents)

    def _start_content(self, have: wire.ResumeState) -> None:
        """Go on where an earlier try stopped, or begin."""
        if not self._pending_contents:
            raise PeerWireError("the board asks for a file that no job puts there")
        content = self._content = self._pending_contents.pop()
        goes_on = have.size > 0 and content.starts_with(have.size, have.digest)
        self._offset = have.size if goes_on else 0
        self._send_next(content, 0 if goes_on else wire.RESTART_FILE)

    def _fill_window(self) -> None:
        content, window = self._content, ACKS_PER_WINDOW * self._ack_bytes
        while content is not None and self._offset < content.size:
            if self.sent - self._confirmed >= window:
                return
            self._send_next(content, 0)

    def _send_next(self, content: Content, flags: int) -> None:
        piece = content.read(self._offset, self._payload_bytes)
        self._send(wire.pack(wire.DATA, piece, job=self._job, flags=flags))
        self._offset += len(piece)
        self.sent += len(piece)

    def on_bytes_forwarded(self, size: int) -> None:
        """Note that so many bytes of the board's have left for the caller: it may send more."""
        if self._reads_files:
            self.acknowledge(size)

    def acknowledge(self, size: int) -> None:
        """Note that so many bytes of the board's have been taken."""
        self.sent += size
        if self.sent - self._confirmed >= self._ack_bytes:
            self._confirmed = self.sent
            self._send(wire.pack_byte_count(wire.DATA, self.sent, job=self._job))


class RelayedTransfer(NamedTuple):
    """A job with files whose caller is at another server, where all is done; here it passes."""

    reads_files: bool
    replaces_starter: bool

    def start(self, _job: Job, _send: Callable[[bytes], object]) -> RelayedTransfer:
        """Return itself: there is nothing to keep."""
        return self

    def on_chunk(self, _message: wire.Message) -> bool:
        """Have it go on to the other server."""
        return True

    def on_bytes_forwarded(self, size: int) -> None:
        """Do nothing: the other server counts."""
