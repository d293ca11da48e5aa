"""Contents to upload: local files, and bytes; each is identified by its SHA-256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

PathLike = str | os.PathLike[str]
UploadOrigin = PathLike | bytes

PIECE_BYTES: Final = 64 * 1024  # read and sent at a time


class ContentSource(NamedTuple):
    """One content.

    Attributes:
        origin: the path of a local file, or the content itself.
        size: in bytes.
        digest: SHA-256, in hex.
    """

    origin: Path | bytes
    size: int
    digest: str

    def pieces(self) -> Iterator[bytes]:
        """Yield the content in pieces.

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
    """Return a source with this content."""
    return ContentSource(data, len(data), hashlib.sha256(data).hexdigest())


def source_from_file(path: Path) -> ContentSource:
    """Return a source for a file with its present size and digest.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return ContentSource(path, size, digest.hexdigest())


def walk_files(folder: Path) -> Iterator[tuple[PurePosixPath, Path]]:
    """Yield (relative path, path) of the files below a folder, sorted.

    Symbolic links that lead out of the folder, and links to folders, are skipped.

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
