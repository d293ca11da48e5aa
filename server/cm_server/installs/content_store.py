"""What files hold that are on their way to boards: each content once, whoever gets it.

A content is named by its SHA-256. It lives in a file without a name, so that memory stays
bounded; the newest stay for a while, older ones as long as a job needs them. No sockets.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import weakref
from collections import OrderedDict
from pathlib import Path

from cloudmanager.protocol.errors import ServerError
from cm_server import limits

_HEX = 64  # digits of a SHA-256


class Content:
    """Some bytes, written once and then read by many; ``digest`` is their SHA-256 in hex."""

    def __init__(self, digest: str, size: int, folder: Path) -> None:
        self.digest = digest
        self.size = size
        self.written = 0
        self._hash = hashlib.sha256()
        self._file, path = tempfile.mkstemp(dir=folder)
        os.unlink(path)  # noqa: PTH108  # it goes with its last user, or with the process
        weakref.finalize(self, os.close, self._file)

    @classmethod
    def of(cls, data: bytes, folder: Path) -> Content:
        """Return a whole one."""
        made = cls(hashlib.sha256(data).hexdigest(), len(data), folder)
        made.write(data)
        return made

    def write(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            ServerError: it is more than was announced, another content, or the disk is full.
        """
        if self.written + len(piece) > self.size:
            raise ServerError("the file is longer than was announced")
        try:
            os.write(self._file, piece)
        except OSError as error:
            raise ServerError(f"it cannot keep the file: {error.strerror}") from error
        self._hash.update(piece)
        self.written += len(piece)
        if self.written == self.size and self._hash.hexdigest() != self.digest:
            raise ServerError("the file is not what was announced: it changed meanwhile")

    def read(self, at: int, size: int) -> bytes:
        """Return at most ``size`` bytes from ``at`` on."""
        return os.pread(self._file, size, at)

    def begins_with(self, size: int, digest: bytes) -> bool:
        """Whether its first ``size`` bytes have this SHA-256."""
        if size >= self.size:
            return size == self.size and digest.hex() == self.digest
        begun = hashlib.sha256()
        for at in range(0, size, limits.PIECE_BYTES):
            begun.update(self.read(at, min(limits.PIECE_BYTES, size - at)))
        return begun.digest() == digest


class Contents:
    """The contents that the server holds.

    Args:
        folder: where their nameless files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: OrderedDict[str, Content] = OrderedDict()  # whole ones, the oldest first
        self._coming: dict[int, tuple[object, Content]] = {}
        self._numbers = itertools.count(1)

    def get(self, digest: str) -> Content | None:
        """Return a content that is there as a whole."""
        found = self._held.get(digest)
        if found is not None:
            self._held.move_to_end(digest)
        return found

    def offer(self, owner: object, digest: object, size: object) -> int:
        """Return the number under which ``owner`` may write a content; 0 where it is there.

        Raises:
            ServerError: it is malformed or too large, or too much is on its way already.
        """
        if not isinstance(digest, str) or len(digest) != _HEX or set(digest) - set(_DIGITS):
            raise ServerError("a content is named by its SHA-256 in lower case")
        if not isinstance(size, int) or not 0 <= size <= limits.CONTENT_BYTES:
            most = limits.CONTENT_BYTES // limits.MIB
            raise ServerError(f"a file for boards has at most {most} MiB")
        if self.get(digest) is not None:
            return 0
        coming = [content for _, content in self._coming.values()]
        if len(coming) >= limits.UPLOADS:
            raise ServerError("too many files are on their way to it; try again")
        content = Content(digest, size, self._folder)
        number = next(self._numbers)
        self._coming[number] = (owner, content)
        if size == 0:
            self.write(owner, number, b"")
            return 0
        return number

    def write(self, owner: object, number: int, piece: bytes) -> int:
        """Take the next piece of a content; return how many bytes of it are there.

        Raises:
            ServerError: nobody offered it, or it is not what was offered.
        """
        whose, content = self._coming.get(number, (None, None))
        if content is None or whose is not owner:
            raise ServerError("nobody offered this file")
        try:
            content.write(piece)
        except ServerError:
            del self._coming[number]
            raise
        if content.written == content.size:
            del self._coming[number]
            self.hold(content)
        return content.written

    def keep(self, data: bytes) -> Content:
        """Keep bytes that the server itself has for boards, and return them."""
        content = self.get(hashlib.sha256(data).hexdigest())
        if content is None:
            content = Content.of(data, self._folder)
            self.hold(content)
        return content

    def hold(self, content: Content) -> None:
        """Keep a whole content until newer ones need its place."""
        self._held[content.digest] = content
        held = sum(each.size for each in self._held.values())
        while held > limits.CONTENTS_BYTES or len(self._held) > limits.CONTENTS:
            held -= self._held.popitem(last=False)[1].size

    def forget(self, owner: object) -> None:
        """Let go of what somebody began and will not end."""
        for number in [n for n, (whose, _) in self._coming.items() if whose is owner]:
            del self._coming[number]


_DIGITS = "0123456789abcdef"
