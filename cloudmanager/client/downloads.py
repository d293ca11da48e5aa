"""Files of boards to this machine. What a board calls its files chooses no place here."""

from __future__ import annotations

import errno
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.file_ops import Act
from cloudmanager.protocol.text import fold
from cloudmanager.results.results import Result, Results

from . import board_paths, files
from .file_jobs import Progress, act, alike, batches, results_of, together
from .files import FileResult
from .verbs import Targeted

READ_BYTES: Final = 16 * 1024 * 1024  # of a file that is read into memory
_UNFIT: Final = "its name is no file's name here; it stays on the board"


class Wanted(NamedTuple):
    """One file of a board: its path there, its place here, relative, and its size in bytes."""

    path: str
    place: str
    size: int


async def get(boards: Targeted, path: str, folder: Path, progress: Progress | None) -> Results:
    """Copy from the boards: see ``FileVerbs.get``."""
    place = board_paths.on_board(path)
    looks = await act(boards, [["stat", place]], read=lambda answers: files.stat(answers[0]))
    found = {name: result.value for name, result in looks.items() if result.ok}
    name = place.rpartition("/")[2]
    plans: dict[str, tuple[Wanted, ...]] = {
        board: (Wanted(place, name, stat.size),) for board, stat in found.items() if not stat.is_dir
    }
    folders = [board for board, stat in found.items() if stat.is_dir]
    lists = await _lists(boards, folders, place)
    plans.update({board: told for board, told in lists.items() if isinstance(told, tuple)})
    results: dict[str, Result] = dict(looks)
    results.update({board: told for board, told in lists.items() if isinstance(told, Result)})
    many = len(looks) > 1
    works = [
        _fetch(boards, names, wanted, Downloads(folder, many, wanted), progress)
        for names, wanted in alike(plans)
    ]
    for part in await together(*works):
        results.update(part)
    for board in plans:
        if board not in folders and results[board].ok:
            results[board] = results_of(results)[board].with_value(results[board].value[0])
    return Results(results, looks.left_out)


async def read(boards: Targeted, path: str, target: str = "") -> Results:
    """Return what a file holds: see ``FileVerbs.read``."""
    kept = _Memory()
    results = await act(boards, [["get", board_paths.on_board(path)]], target=target, sink=kept)
    return Results(
        {
            name: result.with_value(bytes(kept.of.get(name, b"")))
            for name, result in results_of(results).items()
        },
        results.left_out,
    )


class _Memory:
    """Keeps what boards send."""

    def __init__(self) -> None:
        self.of: dict[str, bytearray] = {}

    def begin(self, board: str) -> None:
        self.of[board] = bytearray()

    def write(self, board: str, data: bytes) -> None:
        kept = self.of[board]
        kept += data
        if len(kept) > READ_BYTES:
            raise OSError(errno.EFBIG, "too long to be read: use get", f"{board}:")


async def _lists(
    boards: Targeted, names: Sequence[str], place: str
) -> dict[str, tuple[Wanted, ...] | Result]:
    """Return what is in a folder of each board, or why that is not known."""
    if not names:
        return {}
    results = await act(
        boards, [["ls", place, True]], target=fold(names), read=lambda a: files.entries(a[0])
    )
    found: dict[str, tuple[Wanted, ...] | Result] = {}
    for board, result in results.items():
        if result.ok:
            above = place.rpartition("/")[0]
            found[board] = tuple(
                Wanted(entry.path, entry.path.removeprefix(above).lstrip("/"), entry.size)
                for entry in result.value
                if not entry.is_dir
            )
        else:
            found[board] = result
    return found


async def _fetch(
    boards: Targeted,
    names: Sequence[str],
    wanted: Sequence[Wanted],
    downloads: Downloads,
    progress: Progress | None,
) -> dict[str, Result]:
    """Copy the same files from some boards."""
    total = sum(each.size for each in wanted)
    target, done = fold(names), dict.fromkeys(names, 0)
    results = {name: files.nothing(name) for name in names}

    def moved(board: str, so_far: int) -> None:
        if progress is not None:
            progress(board, done[board] + so_far, total)

    acts: list[Act] = [["get", each.path] for each in wanted]
    for batch in batches(acts):
        part = results_of(await act(boards, batch, target=target, sink=downloads, moved=moved))
        for board, result in part.items():
            results[board] = downloads.end(result)
            done[board] += sum(answer[0] for answer in result.answers) if result.ok else 0
        if not (well := [name for name in part if results[name].ok]):
            break
        target = fold(well)
    return {board: result.with_value(downloads.places(board)) for board, result in results.items()}


class Downloads:
    """Where the bytes go that boards send: beside their place, until a file is whole.

    Args:
        folder: where all of it goes.
        many: whether each board has a folder of its own in it.
        wanted: the files, in the order in which they come.
    """

    def __init__(self, folder: Path, many: bool, wanted: Sequence[Wanted]) -> None:
        self._folder = folder
        self._many = many
        self._wanted = wanted
        self._begun: dict[str, list[_Download]] = {}
        self._iters: dict[str, Iterator[Wanted]] = {}
        self._ended: dict[str, list[Path]] = {}

    def begin(self, board: str) -> None:
        """Take it that a board's next file begins.

        Raises:
            OSError: it may not be here, or cannot.
        """
        coming = self._iters.setdefault(board, iter(self._wanted))
        wanted = next(coming, None)
        if wanted is None:
            raise OSError(errno.EPROTO, "it sends files that nobody asked for", f"{board}:")
        try:
            folder = board_paths.here(self._folder, board) if self._many else self._folder
            place = board_paths.here(folder, wanted.place)
        except ValueError:
            raise PermissionError(errno.EPERM, _UNFIT, f"{board}:{wanted.path}") from None
        begun = self._begun.setdefault(board, [])
        known = {_same(each.place) for each in begun} | {
            _same(each) for each in self._ended.get(board, ())
        }
        if _same(place) in known:
            raise PermissionError(errno.EPERM, _UNFIT, f"{board}:{wanted.path}")
        begun.append(_Download(place))

    def write(self, board: str, data: bytes) -> None:
        """Take some of it.

        Raises:
            OSError: it cannot be written.
        """
        self._begun[board][-1].write(data)

    def end(self, result: FileResult) -> FileResult:
        """Put the files of a job in their places, if it ended well; else leave nothing of them."""
        begun = self._begun.pop(result.board, [])
        failure: Exception | None = None
        for download, answer in zip(begun, result.answers if result.ok else [], strict=False):
            try:
                self._ended.setdefault(result.board, []).append(download.end(answer))
            except OSError as error:
                failure = error
        for download in begun:
            download.drop()
        return files.failed(result.board, failure) if failure else result

    def places(self, board: str) -> list[Path]:
        """Return the files that came from a board."""
        return self._ended.get(board, [])


class _Download:
    """One file that comes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._part = place.with_name(place.name + ".part")
        self._size = 0
        self._hash = hashlib.sha256()
        place.parent.mkdir(parents=True, exist_ok=True)
        self._part.write_bytes(b"")

    def write(self, data: bytes) -> None:
        with self._part.open("ab") as file:  # of a thousand boards, not all can be open
            file.write(data)
        self._size += len(data)
        self._hash.update(data)

    def end(self, answer: Any) -> Path:
        """Move it to its place; it must be what the board read."""
        if tuple(answer) != (self._size, self._hash.hexdigest()):
            raise OSError(errno.EIO, "it is not what the board read", str(self.place))
        self._part.replace(self.place)
        return self.place

    def drop(self) -> None:
        self._part.unlink(missing_ok=True)


def _same(place: Path) -> str:
    """Return what two paths share that are one on some system: case and composition differ."""
    return unicodedata.normalize("NFC", str(place)).casefold()
