"""Store the contents of files that are sent to boards, each content once; no sockets.

A content is identified by its SHA-256. It is kept in an unlinked temporary file, so that memory
stays bounded. The store holds the most recently used contents; an evicted content exists as long
as a job or a plan uses it. All of them count, and unfinished uploads too: if nothing more can be
evicted, no more is stored.

Whoever knows a SHA-256 does not thereby have the content: it belongs to the tokens that sent it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cloudmanager.protocol.errors import ServerError
from cm_server.limits import MIB, Limits
from cm_server.quotas import Quota, Shares
from cm_server.store.rows import TokenRow

_DIGEST_CHARS = 64  # length of a SHA-256 in hexadecimal
_HEX_DIGITS = "0123456789abcdef"


class Content:
    """Bytes that are written once and read by any number of jobs.

    Args:
        digest: the SHA-256 of the bytes, in hexadecimal.
        size: the number of bytes.
        folder: where the temporary file is created.
        read_bytes: the most that is read at a time.

    Raises:
        ServerError: the disk is full, or the server has no file descriptor left.
    """

    def __init__(
        self, digest: str, size: int, folder: Path, read_bytes: int = Limits.file_read_bytes
    ) -> None:
        self._read_bytes = read_bytes
        self.digest = digest
        self.size = size
        self.written = 0
        self.owners: set[str] = set()  # the tokens that sent it; empty if the server made it
        self.charged_to = ""  # the token whose share of the disk it uses
        self._hash = hashlib.sha256()
        self._file = _create_unnamed_file(folder)  # freed when the last reader or the process ends
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
            rest = memoryview(piece)
            while rest:  # a disk that becomes full takes a part first
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise _storage_error(error) from error
        self._hash.update(piece)
        self.written += len(piece)
        if self.written == self.size and self._hash.hexdigest() != self.digest:
            raise ServerError("the file differs from its SHA-256: it changed during the upload")

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes, starting at ``offset``; fewer at the end.

        Raises:
            ServerError: the disk has lost them.
        """
        expected = min(size, self.size - offset)
        try:
            data = os.pread(self._file, expected, offset)
        except OSError as error:
            raise _storage_error(error) from error
        if len(data) < expected:
            raise ServerError("the server cannot read the file back from its disk")
        return data

    def starts_with(self, prefix_size: int, prefix_digest: bytes) -> bool:
        """Return whether the first ``prefix_size`` bytes have this SHA-256."""
        if prefix_size >= self.size:
            return prefix_size == self.size and prefix_digest.hex() == self.digest
        prefix_hash = hashlib.sha256()
        for offset in range(0, prefix_size, self._read_bytes):
            size = min(self._read_bytes, prefix_size - offset)
            prefix_hash.update(self.read(offset, size))
        return prefix_hash.digest() == prefix_digest


def _create_unnamed_file(folder: Path) -> int:
    """Return the descriptor of a new file without a name.

    Raises:
        ServerError: the disk is full, or the server has no file descriptor left.
    """
    try:
        handle, path = tempfile.mkstemp(dir=folder)
        os.unlink(path)  # noqa: PTH108
    except OSError as error:
        raise _storage_error(error) from error
    return handle


def _storage_error(error: OSError) -> ServerError:
    """Return the error of a file that the server could not store, without the server's paths."""
    return ServerError(f"the server cannot store the file: {error.strerror}")


class _Upload(NamedTuple):
    """An unfinished upload.

    Attributes:
        connection: the link that may write it.
        owner: the token of the link.
        content: what has been received.
        deadline: when it is discarded unless another piece arrives; a list of one number.
    """

    connection: object
    owner: TokenRow
    content: Content
    deadline: list[float]


class ContentStore:
    """The contents that the server holds, and uploads in progress.

    Args:
        folder: where the temporary files are created.
        limits: how many contents and uploads there are, and of which size.
        call_later: calls a function after a number of seconds by that clock.
        clock: seconds since an arbitrary start.
    """

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._call_later = call_later
        self._clock = clock
        self._timer_runs = False
        self._contents: OrderedDict[str, Content] = OrderedDict()  # complete; oldest first
        self._existing: weakref.WeakSet[Content] = weakref.WeakSet()  # whoever uses them
        self._uploads: dict[int, _Upload] = {}
        self._upload_numbers = itertools.count(1)
        self._upload_shares = Shares(
            Quota(
                "unfinished uploads",
                total=limits.uploads,
                per_token=limits.uploads_per_token,
                reserved=limits.reserved_uploads,
            )
        )
        self._disk = Quota(
            "bytes of files in use on the server",
            total=limits.content_store_bytes,
            per_token=limits.content_store_token_bytes,
            reserved=limits.reserved_content_store_bytes,
        )

    def get(self, digest: str, owner: str) -> Content | None:
        """Return a complete content that a token has sent, or None; it counts as used now."""
        content = self._contents.get(digest)
        if content is None or not _may_use(content, owner):
            return None
        self._contents.move_to_end(digest)
        return content

    def start_upload(
        self, connection: object, owner: TokenRow, digest: object, size: object
    ) -> int:
        """Start an upload; return its number, or 0 if the token has sent the content already.

        Args:
            connection: the caller's link; no other may write this upload.
            owner: the caller's token.
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
        if type(size) is not int or not 0 <= size <= self._limits.content_bytes:
            max_mib = self._limits.content_bytes // MIB
            raise ServerError(f"a file for boards may have at most {max_mib} MiB")
        if self.get(digest, owner.hash) is not None:
            return 0
        self.discard_idle_uploads()
        if why := self._upload_shares.refusal_reason(owner):
            raise ServerError(f"{why}; try again when they have ended")
        content = self._new_content(digest, size, owner.hash)
        number = next(self._upload_numbers)
        self._uploads[number] = _Upload(connection, owner, content, [self._next_deadline()])
        self._upload_shares.add(owner.hash)
        self._start_timer()
        if size == 0:
            self.write_upload(connection, number, b"")
            return 0
        return number

    def _new_content(self, digest: str, size: int, charged_to: str) -> Content:
        content = Content(digest, size, self._folder, self._limits.file_read_bytes)
        content.charged_to = charged_to
        self._existing.add(content)
        return content

    def _next_deadline(self) -> float:
        return self._clock() + self._limits.upload_idle_seconds

    def write_upload(self, connection: object, number: int, piece: bytes) -> int:
        """Append the next piece of an upload; return the number of bytes received so far.

        Raises:
            ServerError: this link has no such upload, the content is not as announced, or there is
                no space for it.
        """
        upload = self._uploads.get(number)
        if upload is None or upload.connection is not connection:
            raise ServerError("there is no upload of this number; send the file again")
        content = upload.content
        try:
            self._make_space(len(piece), upload.owner)
            content.write(piece)
        except ServerError:
            self._discard_upload(number)
            raise
        upload.deadline[0] = self._next_deadline()
        if content.written == content.size:
            self._discard_upload(number)
            complete = self._contents.setdefault(content.digest, content)
            complete.owners.add(upload.owner.hash)
            self.add(complete)
        return content.written

    def _make_space(self, size: int, owner: TokenRow) -> None:
        """Delete contents that nothing uses, oldest first, until a token may store more bytes.

        If the token has used up its own share, only its own contents are deleted.

        Raises:
            ServerError: all that is left is in use.
        """
        self.discard_idle_uploads()
        while why := self._space_refusal_reason(size, owner):
            is_own_share = self._used_by(owner) + size > self._disk.per_token
            evicted = next(
                (
                    content
                    for content in self._contents.values()
                    if not is_own_share or content.charged_to == owner.hash
                ),
                None,
            )
            if evicted is None:
                raise ServerError(f"{why}; try again when the installs and jobs that need them end")
            del self._contents[evicted.digest]

    def _space_refusal_reason(self, size: int, owner: TokenRow) -> str:
        """Return why a token may not store more bytes now; "" if it may."""
        return self._disk.refusal_reason(owner, self._used_by(owner), self.used_bytes, size)

    def _used_by(self, owner: TokenRow) -> int:
        return sum(each.written for each in self._existing if each.charged_to == owner.hash)

    @property
    def used_bytes(self) -> int:
        """The bytes on disk of all contents that exist, complete or not."""
        return sum(each.written for each in self._existing)

    def add_bytes(self, data: bytes, owner: TokenRow | None = None) -> Content:
        """Add bytes that the server itself sends to boards; return their content.

        Args:
            data: the bytes.
            owner: the token whose share of the disk they use; None for what is small.

        Raises:
            ServerError: there is no space for them.
        """
        digest = hashlib.sha256(data).hexdigest()
        content = self._contents.get(digest)
        if content is None:
            if owner is not None:
                self._make_space(len(data), owner)
            content = self._new_content(digest, len(data), owner.hash if owner else "")
            content.write(data)
        self.add(content)
        return content

    def make_unshared(self, data: bytes) -> Content:
        """Return a content for one job, which is gone when the job has ended.

        Raises:
            ServerError: there is no space for it.
        """
        content = self._new_content(hashlib.sha256(data).hexdigest(), len(data), "")
        content.write(data)
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
        for number, upload in list(self._uploads.items()):
            if upload.connection is connection:
                self._discard_upload(number)

    def _start_timer(self) -> None:
        if not self._timer_runs:
            self._timer_runs = True
            first = min(upload.deadline[0] for upload in self._uploads.values())
            self._call_later(max(0.0, first - self._clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer_runs = False
        self.discard_idle_uploads()
        if self._uploads:
            self._start_timer()

    def discard_idle_uploads(self) -> None:
        """Discard the uploads whose next piece has not arrived in time."""
        now = self._clock()
        for number, upload in list(self._uploads.items()):
            if upload.deadline[0] <= now:
                self._discard_upload(number)

    def _discard_upload(self, number: int) -> None:
        upload = self._uploads.pop(number)
        self._upload_shares.add(upload.owner.hash, -1)


def _may_use(content: Content, owner: str) -> bool:
    """Return whether a token has sent a content itself."""
    return owner in content.owners
