"""Cache contents of packages on disk, by their SHA-256.

Contents are verified when they are read and written atomically. A second part maps addresses whose
content never changes (a file of a repository at a commit, an index's file under its hash) to the
SHA-256 of that content, so that it is fetched only once.

Whoever knows a SHA-256 does not thereby have the content: `TokenCache` gives a token only what was
fetched for it, or sent by it, before.

The functions block: call them in a thread. They may be called from several threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


class PackageCache:
    """Contents in a folder.

    If it is full, the contents that were not used for the longest time are removed.

    Args:
        folder: where the contents are.
        max_bytes: of all of them together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._contents = folder / "sha256"
        self._addresses = folder / "names"
        self._lock = threading.Lock()
        self._total_bytes = -1  # not counted yet

    def get(self, digest: str) -> bytes | None:
        """Return a content by its SHA-256; None if it is not cached, or damaged."""
        if not _SHA256.fullmatch(digest):
            return None
        path = self._content_path(digest)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if sha256(content) != digest:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # it was used: _evict removes the oldest
        return content

    def put(self, content: bytes) -> str:
        """Add a content and return its SHA-256."""
        digest = sha256(content)
        path = self._content_path(digest)
        if not path.exists():
            _write_atomically(path, content)
            self._add_to_total(len(content))
        return digest

    def put_address(self, address: str, digest: str) -> None:
        """Store the SHA-256 of the content of an address whose content never changes."""
        path = self._addresses / sha256(address.encode())
        _write_atomically(path, digest.encode())
        self._add_to_total(len(digest))

    def has_address(self, address: str) -> bool:
        """Return whether an address is known; its content may have been evicted."""
        return (self._addresses / sha256(address.encode())).exists()

    def get_by_address(self, address: str) -> bytes | None:
        """Return the content of an address, or None if it is not cached."""
        try:
            return self.get((self._addresses / sha256(address.encode())).read_text("ascii"))
        except (OSError, ValueError):
            return None

    def _content_path(self, digest: str) -> Path:
        return self._contents / digest[:2] / digest

    def _add_to_total(self, size: int) -> None:
        """Count written bytes; evict contents if there are too many, or at the first write."""
        with self._lock:
            if self._total_bytes >= 0:
                self._total_bytes += size
            if not 0 <= self._total_bytes <= self._max_bytes:
                self._total_bytes = self._evict()

    def _evict(self) -> int:
        """Remove the least recently used files, if necessary; return the bytes that remain."""
        files: list[tuple[int, int, Path]] = []  # time of last use, bytes, path
        for path in self._contents.parent.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file():
                    stat = path.stat()
                    files.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        if total > self._max_bytes:
            for _, size, path in sorted(files):
                path.unlink(missing_ok=True)
                total -= size
                if total <= self._max_bytes * 3 // 4:  # room for several writes
                    break
        return total


class TokenCache:
    """What one token may take out of a cache by its SHA-256.

    Args:
        cache: the contents of all tokens.
        owner: identifies the token.
    """

    def __init__(self, cache: PackageCache, owner: str) -> None:
        self.shared = cache
        self._owner = owner

    def get(self, digest: str) -> bytes | None:
        """Return a content that the token had before; None if it had not, or it is not cached."""
        return self.shared.get_by_address(self._address(digest))

    def put(self, content: bytes) -> str:
        """Add a content that the token has, and return its SHA-256."""
        digest = self.shared.put(content)
        if not self.shared.has_address(self._address(digest)):
            self.shared.put_address(self._address(digest), digest)
        return digest

    def _address(self, digest: str) -> str:
        return f"token:{self._owner}:{digest}"


def _write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all: to a temporary file beside it, then rename."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
