"""Contents to upload: local files, and bytes; each is identified by its SHA-256."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from cloudmanager.protocol.text import one_line

PathLike = str | os.PathLike[str]
UploadOrigin = PathLike | bytes

PIECE_BYTES: Final = 64 * 1024  # read and sent at a time
MAX_STREAM_BYTES: Final = 64 * 1024 * 1024  # of a pipe; servers refuse a file that is longer
EMPTY_DIGEST: Final = hashlib.sha256().hexdigest()  # of an empty file


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

    A pipe or a device can be read only once, so its content is kept in memory.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            data = file.read(MAX_STREAM_BYTES + 1)
            if len(data) > MAX_STREAM_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
            return source_from_bytes(data)
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return ContentSource(path, size, digest.hexdigest())


def expand_patterns(texts: Sequence[str]) -> list[str]:
    """Return local paths, with patterns such as ``*.py`` replaced by what matches, as a shell does.

    A pattern that is the name of a file stays.

    Raises:
        FileNotFoundError: nothing matches a pattern.
    """
    paths: list[str] = []
    for text in texts:
        if not glob.has_magic(text) or Path(text).exists():
            paths.append(text)
            continue
        found = sorted(glob.glob(os.path.expanduser(text)))  # noqa: PTH111, PTH207  # keeps a final /
        if not found:
            raise FileNotFoundError(errno.ENOENT, "No file matches", text)
        paths += found
    return paths


class LocalEntry(NamedTuple):
    """A file or folder below a local folder: its path relative to that, and its path."""

    inner: PurePosixPath
    path: Path
    is_dir: bool


def local_source(text: PathLike) -> Path:
    """Return the path of what is copied; ``~`` is the home folder, unless a file is called so.

    Raises:
        ValueError: the text is empty, as an unset variable of a shell is. It is not this folder.
    """
    if not os.fspath(text):
        raise ValueError("the name of a local file or folder is empty")
    path = Path(text)
    return path if path.exists() else Path(os.path.expanduser(path))  # noqa: PTH111  # never raises


def resolve_links(path: Path) -> Path:
    """Return what a path refers to.

    Raises:
        OSError: its symbolic links lead in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError:  # of pathlib, up to Python 3.12
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path)) from None


def _raise_error(error: OSError) -> None:
    raise error


def walk(
    folder: Path,
    *,
    is_left_out: Callable[[LocalEntry], bool] = lambda _: False,
    on_error: Callable[[OSError], None] = _raise_error,
    on_link: Callable[[str], None] = lambda _: None,
) -> Iterator[LocalEntry]:
    """Yield what is below a folder, sorted: its files, then each of its folders with its content.

    Symbolic links inside of the folder are followed; links that lead out of it or to nothing, and
    links to a folder that they are in, are skipped.

    Args:
        folder: the folder.
        is_left_out: whether an entry is skipped, with all that is in it.
        on_error: called if a file or folder cannot be looked at, which is then skipped.
        on_link: called with a sentence about a link that leads out of the folder or to nothing.

    Raises:
        OSError: that, if ``on_error`` is not given.
    """
    root = resolve_links(folder)
    return _Walk(root, is_left_out, on_error, on_link).entries()


class _Walk:
    """One walk; see ``walk`` for the arguments."""

    def __init__(
        self,
        root: Path,
        is_left_out: Callable[[LocalEntry], bool],
        on_error: Callable[[OSError], None],
        on_link: Callable[[str], None],
    ) -> None:
        self._root = root
        self._is_left_out = is_left_out
        self._on_error = on_error
        self._on_link = on_link

    def entries(self) -> Iterator[LocalEntry]:
        """Yield what is below the root: of each folder its files, then its folders."""
        #: Of each folder that was begun: its path in truth, and its folders that come next.
        begun: list[tuple[Path, Iterator[tuple[LocalEntry, Path]]]] = []
        parents: set[Path] = set()
        path, inner, target = self._root, PurePosixPath(), self._root
        while True:
            found = self._list_folder(path, inner, target)
            yield from (entry for entry, _ in found if not entry.is_dir)
            begun.append((target, iter([each for each in found if each[0].is_dir])))
            parents.add(target)
            following = None
            while begun and following is None:
                following = next((each for each in begun[-1][1] if each[1] not in parents), None)
                if following is None:
                    parents.remove(begun.pop()[0])
            if following is None:
                return
            entry, target = following
            yield entry
            path, inner = entry.path, entry.inner

    def _is_inside(self, target: Path) -> bool:
        """Whether what a link refers to is inside of the folder that is walked."""
        return target.is_relative_to(self._root)

    def _list_folder(
        self, folder: Path, inner: PurePosixPath, folder_target: Path
    ) -> list[tuple[LocalEntry, Path]]:
        """Return the entries of a folder, with the path that each is in truth.

        Only links are resolved: that asks the system about each folder of a path.
        """
        found: list[tuple[LocalEntry, Path]] = []
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            self._on_error(error)
            return found
        for path in paths:
            try:
                entry = LocalEntry(inner / path.name, path, path.is_dir())
                is_present = entry.is_dir or path.is_file()
                if not (is_present or path.is_symlink()) or self._is_left_out(entry):
                    continue  # neither file, folder nor link: such as a socket
                is_link = is_present and path.is_symlink()
                target = resolve_links(path) if is_link else folder_target / path.name
            except OSError as error:
                self._on_error(error)
                continue
            if not is_present:
                self._on_link(f"{one_line(str(path))} is a link to nothing, and is left out")
            elif self._is_inside(target):
                found.append((entry, target))
            else:
                self._on_link(f"{one_line(str(path))} leads out of its folder, and is left out")
        return found


def walk_files(folder: Path) -> Iterator[tuple[PurePosixPath, Path]]:
    """Yield (relative path, path) of the files below a folder: see ``walk``."""
    return ((entry.inner, entry.path) for entry in walk(folder) if not entry.is_dir)
