"""Files of a board that has no folders, such as a micro:bit: what can be done with those."""

from __future__ import annotations

import errno
from typing import Any, Final

from .repl_files import FOLDER, ActFailed, Files

_FILE: Final = 0x8000  # of a mode, as MicroPython has it


class FlatFiles(Files):
    """Does acts on a board's files, which are all in one folder; see Files.

    A file is written in its place: it cannot be renamed. So the power, if it goes meanwhile, leaves
    half of it, and an upload that broke off begins anew.
    """

    def stat(self, path: str) -> Any:
        """Return a stat's type and size."""
        if path == "/":
            return (FOLDER, *[0] * 9)
        return (_FILE, 0, 0, 0, 0, 0, self._os("size", _name(path)), 0, 0, 0)

    def ls(self, path: str, deep: bool) -> list[tuple[str, int, int]]:
        """Return path, type and size of all files."""
        if path != "/":
            raise OSError(errno.ENOENT if self.stat(path) else 0, "")
        return [(f"/{name}", _FILE, self._os("size", name)) for name in self._os("listdir")]

    def rm(self, path: str, deep: bool) -> None:
        """Remove a file."""
        self._os("remove", _name(path))

    def makedirs(self, path: str) -> None:
        """Make no folder but the one that is there."""
        if path != "/":
            _name(path + "/x")

    def mkdir(self, path: str) -> None:
        """Make no folder."""
        self.makedirs(path)

    def rmdir(self, path: str) -> None:
        """Remove no folder."""
        self.makedirs(path)

    def rename(self, path: str, to: str) -> None:
        """Rename nothing."""
        raise ActFailed("NotImplementedError: this board cannot rename its files")

    def finish(self, path: str) -> None:
        """Finish nothing: no package was ever installed."""
        raise ActFailed("NotImplementedError: this board has no folders for packages")

    def statvfs(self, path: str) -> Any:
        """Know nothing of the room that is left."""
        raise ActFailed("NotImplementedError: this board does not tell how much room it has")

    def put(self, path: str, size: int, digest: str, staged: int = 0) -> int:
        """Write a file in its place, and read it back."""
        if self.hash(path, size) == digest:
            self._offer(size, bytes.fromhex(digest))
            return 0
        first = self._offer(0, bytes(len(digest) // 2))
        before = self._moved
        try:
            self._open(path, "wb")
            self._receive(first, size)
            self._close()
            if self._sha(path).hex() != digest:
                raise OSError(errno.EIO, "")
        except (OSError, ActFailed):
            self._tidy(_name(path))
            raise
        return self._moved - before

    def _open(self, path: str, mode: str) -> None:
        super()._open(_name(path), mode)


def _name(path: str) -> str:
    """Return how the board calls a file."""
    name = path.removeprefix("/")
    if "/" in name:
        raise ActFailed("NotImplementedError: this board's files are in no folders")
    return name
