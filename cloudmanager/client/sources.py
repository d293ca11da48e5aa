"""What goes to boards: files of this machine, and bytes; each named by its SHA-256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

PathLike = str | os.PathLike[str]
UploadOrigin = PathLike | bytes

PIECE_BYTES: Final = 64 * 1024  # that are read at once


class ContentSource(NamedTuple):
    """One content: a file of this machine, or bytes."""

    origin: Path | bytes
    size: int
    digest: str

    def pieces(self) -> Iterator[bytes]:
        """Yield it, piece by piece.

        Raises:
            OSError: the file cannot be read.
        """
        if isinstance(self.origin, bytes):
            for at in range(0, self.size, PIECE_BYTES):
                yield self.origin[at : at + PIECE_BYTES]
            return
        with self.origin.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece


def source_from_bytes(data: bytes) -> ContentSource:
    """Return a source that is these bytes."""
    return ContentSource(data, len(data), hashlib.sha256(data).hexdigest())


def source_from_file(path: Path) -> ContentSource:
    """Return a source that is this file, as it stands now.

    Raises:
        OSError: it cannot be read.
    """
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            found.update(piece)
            size += len(piece)
    return ContentSource(path, size, found.hexdigest())


def walk_files(folder: Path) -> Iterator[tuple[PurePosixPath, Path]]:
    """Yield the files below a folder, each with its path in it, in order; no links out of it.

    Raises:
        OSError: a folder cannot be read.
    """
    root = folder.resolve()
    for where, folders, names in os.walk(root, onerror=_raise_error):
        folders[:] = sorted(name for name in folders if not (Path(where) / name).is_symlink())
        for name in sorted(names):
            path = Path(where) / name
            if path.is_file() and path.resolve().is_relative_to(root):
                yield PurePosixPath(path.relative_to(root).as_posix()), path


def _raise_error(error: OSError) -> None:
    raise error
