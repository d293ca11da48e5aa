"""File operations on a board whose file system has no folders, such as a micro:bit."""

from __future__ import annotations

import errno
from typing import Any, Final

from .repl_files import FOLDER_MODE, FileOpFailed, ReplFiles

FILE_MODE: Final = 0x8000  # of a mode, as MicroPython has it


class FlatReplFiles(ReplFiles):
    """File operations on a board without folders and without renames; see ReplFiles.

    A file is written in place, since it cannot be renamed: a power cut leaves half of it, and an
    interrupted upload starts again from the beginning.
    """

    def stat(self, path: str) -> Any:
        """Return a stat tuple with type and size."""
        if path == "/":
            return (FOLDER_MODE, *[0] * 9)
        return (FILE_MODE, 0, 0, 0, 0, 0, self._call_os("size", _flat_name(path)), 0, 0, 0)

    def hash(self, path: Any, size: int) -> str | bool | None:
        """Return the SHA-256 of a file; None for a path with a folder, which cannot exist."""
        is_inner = isinstance(path, str) and "/" in path.removeprefix("/")
        return None if is_inner else super().hash(path, size)

    def ls(self, path: str, deep: bool) -> list[tuple[str, int, int]]:
        """Return path, type and size of all files."""
        if path != "/":
            raise OSError(errno.ENOENT if self.stat(path) else 0, "")
        return [
            (f"/{name}", FILE_MODE, self._call_os("size", name))
            for name in self._call_os("listdir")
        ]

    def rm(self, path: str, deep: bool) -> None:
        """Remove a file."""
        self._call_os("remove", _flat_name(path))

    def makedirs(self, path: str) -> None:
        """Accept the root folder only."""
        if path != "/":
            _flat_name(path + "/x")

    def mkdir(self, path: str) -> None:
        """Accept the root folder only."""
        self.makedirs(path)

    def rmdir(self, path: str) -> None:
        """Accept the root folder only, which is not removed."""
        self.makedirs(path)

    def rename(self, path: str, to: str) -> None:
        """Raise FileOpFailed: not supported."""
        raise FileOpFailed("NotImplementedError: this board cannot rename its files")

    def finish(self, path: str) -> None:
        """Raise FileOpFailed: packages need folders."""
        raise FileOpFailed("NotImplementedError: this board has no folders for packages")

    def statvfs(self, path: str) -> Any:
        """Raise FileOpFailed: not supported."""
        raise FileOpFailed("NotImplementedError: this board does not report its free space")

    def put(self, path: str, size: int, digest: str, staged: int = 0) -> int:
        """Write a file in place, and verify it; return how many bytes were written."""
        if self.hash(path, size) == digest:
            self._send_resume_state(size, bytes.fromhex(digest))
            return 0
        first = self._send_resume_state(0, bytes(len(digest) // 2))
        before = self._bytes_moved
        try:
            self._open_file(path, "wb")
            self._receive_file(first, size)
            self._close_file()
            if self._file_sha256(path).hex() != digest:
                raise OSError(errno.EIO, "")
        except (OSError, FileOpFailed):
            self._clean_up(_flat_name(path))
            raise
        return self._bytes_moved - before

    def _open_file(self, path: str, mode: str) -> None:
        super()._open_file(_flat_name(path), mode)


def _flat_name(path: str | bytes) -> str:
    """Return a path without its leading slash, as such boards name files."""
    if isinstance(path, bytes):  # not UTF-8: no file is called so
        raise OSError(errno.ENOENT, "")
    name = path.removeprefix("/")
    if "/" in name:
        raise FileOpFailed("NotImplementedError: this board has no folders")
    return name
