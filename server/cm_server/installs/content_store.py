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

_DIGEST_CHARS = 64  # digits of a SHA-256


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
    def from_bytes(cls, data: bytes, folder: Path) -> Content:
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

    def read(self, offset: int, size: int) -> bytes:
        """Return at most ``size`` bytes from ``offset`` on."""
        return os.pread(self._file, size, offset)

    def starts_with(self, prefix_size: int, prefix_digest: bytes) -> bool:
        """Whether its first ``prefix_size`` bytes have this SHA-256."""
        if prefix_size >= self.size:
            return prefix_size == self.size and prefix_digest.hex() == self.digest
        begun = hashlib.sha256()
        for at in range(0, prefix_size, limits.FILE_READ_BYTES):
            begun.update(self.read(at, min(limits.FILE_READ_BYTES, prefix_size - at)))
        return begun.digest() == prefix_digest


class ContentStore:
    """The contents that the server holds.

    Args:
        folder: where their nameless files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._contents: OrderedDict[str, Content] = OrderedDict()  # whole ones, the oldest first
        self._uploads: dict[int, tuple[object, Content]] = {}
        self._upload_numbers = itertools.count(1)

    def get(self, digest: str) -> Content | None:
        """Return a content that is there as a whole."""
        found = self._contents.get(digest)
        if found is not None:
            self._contents.move_to_end(digest)
        return found

    def start_upload(self, connection: object, digest: object, size: object) -> int:
        """Return the number under which ``connection`` may write a content; 0 where it is there.

        Raises:
            ServerError: it is malformed or too large, or too much is on its way already.
        """
        if (
            not isinstance(digest, str)
            or len(digest) != _DIGEST_CHARS
            or set(digest) - set(_HEX_DIGITS)
        ):
            raise ServerError("a content is named by its SHA-256 in lower case")
        if not isinstance(size, int) or not 0 <= size <= limits.CONTENT_BYTES:
            most = limits.CONTENT_BYTES // limits.MIB
            raise ServerError(f"a file for boards has at most {most} MiB")
        if self.get(digest) is not None:
            return 0
        coming = [content for _, content in self._uploads.values()]
        if len(coming) >= limits.UPLOADS:
            raise ServerError("too many files are on their way to it; try again")
        content = Content(digest, size, self._folder)
        number = next(self._upload_numbers)
        self._uploads[number] = (connection, content)
        if size == 0:
            self.write_upload(connection, number, b"")
            return 0
        return number

    def write_upload(self, connection: object, number: int, piece: bytes) -> int:
        """Take the next piece of a content; return how many bytes of it are there.

        Raises:
            ServerError: nobody offered it, or it is not what was offered.
        """
        whose, content = self._uploads.get(number, (None, None))
        if content is None or whose is not connection:
            raise ServerError("nobody offered this file")
        try:
            content.write(piece)
        except ServerError:
            del self._uploads[number]
            raise
        if content.written == content.size:
            del self._uploads[number]
            self.add(content)
        return content.written

    def add_bytes(self, data: bytes) -> Content:
        """Keep bytes that the server itself has for boards, and return them."""
        content = self.get(hashlib.sha256(data).hexdigest())
        if content is None:
            content = Content.from_bytes(data, self._folder)
            self.add(content)
        return content

    def add(self, content: Content) -> None:
        """Keep a whole content until newer ones need its place."""
        self._contents[content.digest] = content
        held = sum(each.size for each in self._contents.values())
        while held > limits.CONTENT_STORE_BYTES or len(self._contents) > limits.CONTENT_STORE_FILES:
            held -= self._contents.popitem(last=False)[1].size

    def discard_uploads(self, connection: object) -> None:
        """Let go of what somebody began and will not end."""
        for number in [n for n, (whose, _) in self._uploads.items() if whose is connection]:
            del self._uploads[number]


_HEX_DIGITS = "0123456789abcdef"
