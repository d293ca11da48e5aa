"""The cache: contents under their SHA-256, in the server's own folder.

What is read is verified; what is written is there whole or not at all. A second, small part
remembers which content an address had that never changes (a forge's file at a commit, an
index's file under its hash), so that the same thing is not fetched twice.

Blocking: call it in a thread. Several threads may.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
from pathlib import Path

from cm_server import limits

_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256(content: bytes) -> str:
    """Return a content's name."""
    return hashlib.sha256(content).hexdigest()


class PackageCache:
    """Contents in `folder`, at most `limits.PACKAGE_CACHE_BYTES` of them: the oldest go."""

    def __init__(self, folder: Path) -> None:
        self._contents = folder / "sha256"
        self._addresses = folder / "names"
        self._lock = threading.Lock()
        self._total_bytes = -1  # bytes; not counted yet

    def get(self, name: str) -> bytes | None:
        """Return the content called `name`; None when it is not here, or not whole."""
        if not _SHA256.fullmatch(name):
            return None
        path = self._content_path(name)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if sha256(content) != name:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def put(self, content: bytes) -> str:
        """Keep a content and return its name."""
        name = sha256(content)
        path = self._content_path(name)
        if not path.exists():
            _write_atomically(path, content)
            self._add_to_total(len(content))
        return name

    def put_address(self, address: str, name: str) -> None:
        """Note which content an address has, that has it for ever."""
        path = self._addresses / sha256(address.encode())
        _write_atomically(path, name.encode())
        self._add_to_total(len(name))

    def get_by_address(self, address: str) -> bytes | None:
        """Return the content that an address has, if it is here."""
        try:
            return self.get((self._addresses / sha256(address.encode())).read_text("ascii"))
        except (OSError, ValueError):
            return None

    def _content_path(self, name: str) -> Path:
        return self._contents / name[:2] / name

    def _add_to_total(self, size: int) -> None:
        with self._lock:
            if self._total_bytes >= 0:
                self._total_bytes += size
            if not 0 <= self._total_bytes <= limits.PACKAGE_CACHE_BYTES:
                self._total_bytes = self._evict()

    def _evict(self) -> int:
        """Let the files go that were not used for longest; return the bytes that stay."""
        files = []
        for path in self._contents.parent.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file():
                    stat = path.stat()
                    files.append((stat.st_mtime_ns, stat.st_size, path))
        size = sum(size for _, size, _ in files)
        if size > limits.PACKAGE_CACHE_BYTES:
            for _, bytes_, path in sorted(files):
                path.unlink(missing_ok=True)
                size -= bytes_
                if size <= limits.PACKAGE_CACHE_BYTES * 3 // 4:  # not at every write again
                    break
        return size


def _write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
