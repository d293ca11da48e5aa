"""Transfer the bytes of a job's files between server and board, with flow control; no sockets.

In both directions there is a window: the number of bytes that may be sent before they are
acknowledged. So an interrupt never waits behind a whole file, a slow board or caller does not fill
the memory, and a chunk does not wait for the acknowledgement of the previous one.

    put:  FILE ──▶  ◀── CHUNK(resume state)   DATA ──▶ …  ◀── CHUNK(bytes written) …   ◀── RESULT
    get:  FILE ──▶  ◀── CHUNK …               DATA(bytes forwarded) ──▶ …              ◀── RESULT
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError, ServerError
from cm_server.jobs.model import JobRefused
from cm_server.limits import Limits

from .content_store import Content

if TYPE_CHECKING:
    from cm_server.jobs.model import Board, BoardChannel, Job

ACKS_PER_WINDOW = 4  # must equal the value in mpy_client/cm/files.py


_OLD_CLIENT = (
    "this board's client is of version 0.1, which would overwrite a file that is called like the "
    "uploaded one with .part at its end: rename or remove that, or run mbm board-upgrade-client"
)


class FileTransferSpec(NamedTuple):
    """The transfers of a job, the same for all boards.

    Attributes:
        ack_bytes: bytes after which the receiver acknowledges; the window is
            ``ACKS_PER_WINDOW`` times as large.
        contents: the contents of the job's puts, in their order.
        reads_files: whether the board sends files to the caller.
        replaces_starter: whether the job replaces the file that starts the client on a board.
    """

    ack_bytes: int
    contents: tuple[Content, ...]
    reads_files: bool
    replaces_starter: bool = False

    @property
    def part(self) -> str:
        """The part of the client that carries it out."""
        return "files"

    @property
    def is_local(self) -> bool:
        """Whether only the server of the caller's own link can do it."""
        return False

    def start(self, job: Job, channel: BoardChannel) -> FileTransfer:
        """Start the transfers on one board.

        Args:
            job: the job on that board.
            channel: to the board.
        """
        is_old = _is_client_of_0_1(job.board)
        return FileTransfer(job.id, self, channel.send, job.board.buffer_size, is_old=is_old)


def _is_client_of_0_1(board: Board) -> bool:
    """Whether a board has the client of version 0.1; its parts are the names of the files."""
    return "link" in board.client_parts and "firmware" not in board.client_parts


def ack_bytes_for(boards: int, limits: Limits) -> int:
    """Return the bytes between acknowledgements for a job on this number of boards.

    The windows of all boards together are bounded by ``Limits.total_window_bytes``.
    """
    share = limits.total_window_bytes // max(boards, 1)
    return max(limits.min_window_bytes, min(limits.window_bytes, share)) // ACKS_PER_WINDOW


class FileTransfer:
    """The state of a job's transfers on one board.

    Args:
        job: the number of the job.
        spec: the transfers.
        send: sends a message to the board.
        buffer_size: the longest message that the board can receive, in bytes.
        is_old: whether the board writes to PATH.part, which may be a file of the user's, instead of
            PATH.mbm-part.

    Attributes:
        transferred: bytes sent to the board, or forwarded from it, in this job.
    """

    def __init__(
        self,
        job: int,
        spec: FileTransferSpec,
        send: Callable[[bytes], object],
        buffer_size: int,
        *,
        is_old: bool = False,
    ) -> None:
        self._job = job
        self._send = send
        self._payload_bytes = buffer_size - wire.HEADER.size
        self._ack_bytes = spec.ack_bytes
        self._reads_files = spec.reads_files
        self._is_old = is_old
        self._pending_contents: list[Content] = list(reversed(spec.contents))
        self._content: Content | None = None  # being sent
        self._offset = 0  # in the content that is being sent
        self.transferred = 0
        self._acknowledged = 0  # bytes of `transferred`
        self._received = 0  # bytes from the board, forwarded or not
        self._reported = 0  # the last acknowledgement that the caller received

    def on_chunk(self, message: wire.Message) -> bool:
        """Handle a CHUNK from the board.

        While the board sends files, it contains their bytes. Otherwise it contains the resume state
        of the next file or the number of bytes that the board has written.

        Returns:
            Whether the caller receives the message too: all but needless acknowledgements.

        Raises:
            JobRefused: the board would overwrite another file.
            PeerWireError: the message is malformed, refers to a file that the job does not have, or
                the board ignores the window.
        """
        if self._reads_files:
            self._received += len(message.payload)
            self._check_window()
            return True
        if message.flags & wire.RESUME_STATE:
            self._start_content(wire.read_resume_state(message))
            self._fill_window()
            return True
        count = wire.read_byte_count(message)
        self._check_acknowledgement(count)
        self._acknowledged = max(self._acknowledged, count)
        self._fill_window()
        return self._is_progress()

    def _is_progress(self) -> bool:
        """Return whether much more is acknowledged than the caller knows, or all that was sent."""
        more = self._acknowledged - self._reported
        if more >= self._ack_bytes or (more and self._acknowledged == self.transferred):
            self._reported = self._acknowledged
            return True
        return False

    def _check_window(self) -> None:
        """Refuse what a board sends beyond the window: nobody has read what was sent before."""
        window_bytes = ACKS_PER_WINDOW * self._ack_bytes
        slack = window_bytes + 2 * self._payload_bytes  # an acknowledgement may be on its way
        if self._received - self.transferred > window_bytes + slack:
            raise PeerWireError("the board sends more of a file than was acknowledged")

    def _check_acknowledgement(self, count: int) -> None:
        if count > self.transferred:
            raise PeerWireError("the board acknowledges more than it was sent")

    def add_contents(self, contents: Sequence[Content]) -> None:
        """Add the contents of further puts."""
        self._pending_contents[:0] = reversed(contents)

    def _start_content(self, have: wire.ResumeState) -> None:
        """Start the next content, where an earlier attempt stopped if the board kept its part.

        Args:
            have: size and hash of the part that the board has.
        """
        if not self._pending_contents:
            raise PeerWireError("the board requests a file that the job does not write")
        content = self._content = self._pending_contents.pop()
        resumes = have.size > 0 and content.starts_with(have.size, have.digest)
        if self._is_old and have.size and not resumes:
            self._send(wire.pack(wire.INTERRUPT, job=self._job))
            raise JobRefused(ServerError(_OLD_CLIENT))
        self._offset = have.size if resumes else 0
        self._send_next(content, 0 if resumes else wire.RESTART_FILE)

    def _fill_window(self) -> None:
        """Send until the window is full or the content ends."""
        content = self._content
        window_bytes = ACKS_PER_WINDOW * self._ack_bytes
        while content is not None and self._offset < content.size:
            if self.transferred - self._acknowledged >= window_bytes:
                return
            self._send_next(content, 0)

    def _send_next(self, content: Content, flags: int) -> None:
        piece = content.read(self._offset, self._payload_bytes)
        self._send(wire.pack(wire.DATA, piece, job=self._job, flags=flags))
        self._offset += len(piece)
        self.transferred += len(piece)

    def on_bytes_forwarded(self, size: int) -> None:
        """Acknowledge bytes of the board that were written to the caller's socket."""
        if self._reads_files:
            self.acknowledge(size)

    def acknowledge(self, size: int) -> None:
        """Count bytes that were received from the board; acknowledge them every ``ack_bytes``."""
        self.transferred += size
        if self.transferred - self._acknowledged >= self._ack_bytes:
            self._acknowledged = self.transferred
            self._send(wire.pack_byte_count(wire.DATA, self.transferred, job=self._job))


class RelayedTransfer(NamedTuple):
    """The transfers of a job that another server, the caller's, controls; messages pass through.

    Attributes:
        reads_files: as in ``FileTransferSpec``.
        replaces_starter: as in ``FileTransferSpec``.
    """

    reads_files: bool
    replaces_starter: bool

    @property
    def part(self) -> str:
        """The part of the client that carries it out."""
        return "files"

    @property
    def is_local(self) -> bool:
        """Whether only the server of the caller's own link can do it."""
        return False

    def start(self, _job: Job, _channel: BoardChannel) -> RelayedTransfer:
        """Return itself, since it has no state."""
        return self

    def on_chunk(self, _message: wire.Message) -> bool:
        """Return True: forward the message to the other server."""
        return True

    def on_bytes_forwarded(self, size: int) -> None:
        """Do nothing: the other server acknowledges."""
