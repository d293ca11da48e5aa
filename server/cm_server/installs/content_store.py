"""Store the contents of files that are sent to boards, each content once; no sockets.

A content is identified by its SHA-256. It is kept in an unlinked temporary file, so that memory
stays bounded. The store holds the most recently used contents; an evicted content exists as long
as a job uses it.

Whoever knows a SHA-256 does not thereby have the content: it belongs to the tokens that sent it.
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
from cm_server.limits import MIB, Limits

_DIGEST_CHARS = 64  # length of a SHA-256 in hexadecimal
_HEX_DIGITS = "0123456789abcdef"


class Content:
    """Bytes that are written once and read by any number of jobs.

    Args:
        digest: the SHA-256 of the bytes, in hexadecimal.
        size: the number of bytes.
        folder: where the temporary file is created.
        read_bytes: the most that is read at a time.
    """

    def __init__(
        self, digest: str, size: int, folder: Path, read_bytes: int = Limits.file_read_bytes
    ) -> None:
        self._read_bytes = read_bytes
        self.digest = digest
        self.size = size
        self.written = 0
        self.owners: set[str] = set()  # the tokens that sent it; empty if the server made it
        self._hash = hashlib.sha256()
        self._file, path = tempfile.mkstemp(dir=folder)
        os.unlink(path)  # noqa: PTH108  # freed when the last reader or the process ends
        weakref.finalize(self, os.close, self._file)

    @classmethod
    def from_bytes(
        cls, data: bytes, folder: Path, read_bytes: int = Limits.file_read_bytes
    ) -> Content:
        """Return a complete content."""
        content = cls(hashlib.sha256(data).hexdigest(), len(data), folder, read_bytes)
        content.write(data)
        return content

    def write(self, piece: bytes) -> None:
        """Append the next piece.

        Raises:
            ServerError: the content is longer than announced or has another hash, or the disk is
                full.
        """
        if self.written + len(piece) > self.size:
            raise ServerError("the file is longer than announced: it changed during the upload")
        try:
            os.write(self._file, piece)
        except OSError as error:
            raise ServerError(f"the server cannot store the file: {error.strerror}") from error
        self._hash.update(piece)
        self.written += len(piece)
        if self.written == self.size and self._hash.hexdigest() != self.digest:
            raise ServerError("the file differs from its SHA-256: it changed during the upload")

    def read(self, offset: int, size: int) -> bytes:
        """Return at most ``size`` bytes, starting at ``offset``."""
        return os.pread(self._file, size, offset)

    def starts_with(self, prefix_size: int, prefix_digest: bytes) -> bool:
        """Return whether the first ``prefix_size`` bytes have this SHA-256."""
        if prefix_size >= self.size:
            return prefix_size == self.size and prefix_digest.hex() == self.digest
        prefix_hash = hashlib.sha256()
        for offset in range(0, prefix_size, self._read_bytes):
            size = min(self._read_bytes, prefix_size - offset)
            prefix_hash.update(self.read(offset, size))
        return prefix_hash.digest() == prefix_digest


class ContentStore:
    """The contents that the server holds, and uploads in progress.

    Args:
        folder: where the temporary files are created.
        limits: how many contents and uploads there are, and of which size.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._contents: OrderedDict[str, Content] = OrderedDict()  # complete; oldest first
        #: Upload number -> the link that may write it, its token, and the incomplete content.
        self._uploads: dict[int, tuple[object, str, Content]] = {}
        self._upload_numbers = itertools.count(1)

    def get(self, digest: str, owner: str) -> Content | None:
        """Return a complete content that a token has sent, or None; it counts as used now."""
        content = self._contents.get(digest)
        if content is None or not _may_use(content, owner):
            return None
        self._contents.move_to_end(digest)
        return content

    def start_upload(self, connection: object, owner: str, digest: object, size: object) -> int:
        """Start an upload; return its number, or 0 if the token has sent the content already.

        Args:
            connection: the caller's link; no other may write this upload.
            owner: identifies the caller's token.
            digest: the SHA-256 of the content, in hexadecimal.
            size: its number of bytes.

        Raises:
            ServerError: an argument is malformed, the content is too large, or there are too many
                uploads already.
        """
        if (
            not isinstance(digest, str)
            or len(digest) != _DIGEST_CHARS
            or set(digest) - set(_HEX_DIGITS)
        ):
            raise ServerError("a content needs its SHA-256 in lower-case hexadecimal")
        if not isinstance(size, int) or not 0 <= size <= self._limits.content_bytes:
            max_mib = self._limits.content_bytes // MIB
            raise ServerError(f"a file for boards may have at most {max_mib} MiB")
        if self.get(digest, owner) is not None:
            return 0
        if len(self._uploads) >= self._limits.uploads:
            raise ServerError("too many files are being uploaded to the server; try again")
        content = Content(digest, size, self._folder, self._limits.file_read_bytes)
        number = next(self._upload_numbers)
        self._uploads[number] = (connection, owner, content)
        if size == 0:
            self.write_upload(connection, number, b"")
            return 0
        return number

    def write_upload(self, connection: object, number: int, piece: bytes) -> int:
        """Append the next piece of an upload; return the number of bytes received so far.

        Raises:
            ServerError: this link has no such upload, or the content is not as announced.
        """
        link, owner, content = self._uploads.get(number, (None, "", None))
        if content is None or link is not connection:
            raise ServerError("there is no upload of this number; send the file again")
        try:
            content.write(piece)
        except ServerError:
            del self._uploads[number]
            raise
        if content.written == content.size:
            del self._uploads[number]
            complete = self._contents.setdefault(content.digest, content)
            complete.owners.add(owner)
            self.add(complete)
        return content.written

    def add_bytes(self, data: bytes) -> Content:
        """Add bytes that the server itself sends to boards; return their content."""
        content = self._contents.get(hashlib.sha256(data).hexdigest())
        if content is None:
            content = Content.from_bytes(data, self._folder, self._limits.file_read_bytes)
        self.add(content)
        return content

    def add(self, content: Content) -> None:
        """Add a complete content; evict the oldest ones if there are too many or too large ones."""
        self._contents[content.digest] = content
        self._contents.move_to_end(content.digest)
        total = sum(each.size for each in self._contents.values())
        while (
            total > self._limits.content_store_bytes
            or len(self._contents) > self._limits.content_store_files
        ):
            _, evicted = self._contents.popitem(last=False)
            total -= evicted.size

    def discard_uploads(self, connection: object) -> None:
        """Discard the uploads of a link that was closed."""
        for number, (link, _, _) in list(self._uploads.items()):
            if link is connection:
                del self._uploads[number]


def _may_use(content: Content, owner: str) -> bool:
    """Return whether a token has sent a content itself."""
    return owner in content.owners
