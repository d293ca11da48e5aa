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

STEPS = 4  # how many words on how far it is a window has room for; as in mpy_client/cm/files.py


class Files(NamedTuple):
    """What a job does with files.

    Attributes:
        step: bytes after which a board tells how far it is; the window is ``STEPS`` of them.
        contents: what its puts write, in their order.
        gets: whether bytes come from the board.
        starter: whether they replace what a flashed board starts its client by.
    """

    step: int
    contents: tuple[Content, ...]
    gets: bool
    starter: bool = False

    def begin(self, job: Job, send: Callable[[bytes], object]) -> Transfer:
        """Return what moves them for one of the boards."""
        return Transfer(job.id, self, send, job.board.buffer_size)


def step_for(boards: int) -> int:
    """Return the step for a job on so many boards at once: together, they stay bounded."""
    share = limits.WINDOWS_BYTES // max(boards, 1)
    return max(limits.WINDOW_LEAST_BYTES, min(limits.WINDOW_BYTES, share)) // STEPS


class Transfer:
    """What of a job's files has moved.

    Args:
        job: its number.
        files: what it does with files.
        send: writes a message to the board.
        room: bytes that a message to the board has room for.
    """

    def __init__(
        self, job: int, files: Files, send: Callable[[bytes], object], buffer_size: int
    ) -> None:
        self._job = job
        self._send = send
        self._room = buffer_size - wire.HEADER.size
        self._step = files.step
        self._gets = files.gets
        self._waiting: list[Content] = list(reversed(files.contents))
        self._content: Content | None = None  # on its way
        self._at = 0  # in that
        self.sent = 0  # bytes of this job, both ways
        self._confirmed = 0

    def on_chunk(self, message: wire.Message) -> bool:
        """Take a board's word on what it has written, or still has of a file; a file's bytes pass.

        Returns:
            Whether the caller is to see it.

        Raises:
            PeerWireError: it is malformed, or about nothing.
        """
        if self._gets:
            return True
        if message.flags & wire.HAVE:
            self._begin(wire.read_have(message))
        else:
            self._confirmed = max(self._confirmed, wire.read_count(message))
        self._pump()
        return True

    def expect(self, contents: Sequence[Content]) -> None:
        """Have more contents ready, for the puts that come."""
        self._waiting[:0] = reversed(contents)

    def _begin(self, have: wire.Have) -> None:
        """Go on where an earlier try stopped, or begin."""
        if not self._waiting:
            raise PeerWireError("the board asks for a file that no job puts there")
        content = self._content = self._waiting.pop()
        goes_on = have.size > 0 and content.begins_with(have.size, have.digest)
        self._at = have.size if goes_on else 0
        self._next(content, 0 if goes_on else wire.FRESH)

    def _pump(self) -> None:
        content, window = self._content, STEPS * self._step
        while content is not None and self._at < content.size:
            if self.sent - self._confirmed >= window:
                return
            self._next(content, 0)

    def _next(self, content: Content, flags: int) -> None:
        piece = content.read(self._at, self._room)
        self._send(wire.pack(wire.DATA, piece, job=self._job, flags=flags))
        self._at += len(piece)
        self.sent += len(piece)

    def on_left(self, size: int) -> None:
        """Note that so many bytes of the board's have left for the caller: it may send more."""
        if self._gets:
            self.take(size)

    def take(self, size: int) -> None:
        """Note that so many bytes of the board's have been taken."""
        self.sent += size
        if self.sent - self._confirmed >= self._step:
            self._confirmed = self.sent
            self._send(wire.pack_count(wire.DATA, self.sent, job=self._job))


class Relay(NamedTuple):
    """A job with files whose caller is at another server, where all is done; here it passes."""

    gets: bool
    starter: bool

    def begin(self, _job: Job, _send: Callable[[bytes], object]) -> Relay:
        """Return itself: there is nothing to keep."""
        return self

    def on_chunk(self, _message: wire.Message) -> bool:
        """Have it go on to the other server."""
        return True

    def on_left(self, size: int) -> None:
        """Do nothing: the other server counts."""
