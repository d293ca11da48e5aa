"""Files of boards to this machine. What a board calls its files chooses no place here."""

from __future__ import annotations

import errno
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.file_ops import FileOp
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from . import board_paths, files
from .file_jobs import (
    ProgressCallback,
    as_file_results,
    gather,
    group_equal_plans,
    run_file_ops,
    split_batches,
)
from .files import FileResult
from .verbs import HasTarget

MAX_READ_BYTES: Final = 16 * 1024 * 1024  # of a file that is read into memory
_ILLEGAL_NAME: Final = "its name is no file's name here; it stays on the board"


class RequestedFile(NamedTuple):
    """One file of a board: its path there, its place here, relative, and its size in bytes."""

    path: str
    relative_path: str
    size: int


async def download(
    boards: HasTarget, path: str, folder: Path, progress: ProgressCallback | None
) -> Results:
    """Copy from the boards: see ``FileVerbs.get``."""
    place = board_paths.parse_board_path(path)
    looks = await run_file_ops(
        boards, [["stat", place]], make_value=lambda answers: files.read_stat(answers[0])
    )
    found = {name: result.value for name, result in looks.items() if result.ok}
    name = place.rpartition("/")[2]
    plans: dict[str, tuple[RequestedFile, ...]] = {
        board: (RequestedFile(place, name, stat.size),)
        for board, stat in found.items()
        if not stat.is_dir
    }
    folders = [board for board, stat in found.items() if stat.is_dir]
    lists = await _list_folders(boards, folders, place)
    plans.update({board: told for board, told in lists.items() if isinstance(told, tuple)})
    results: dict[str, Result] = dict(looks)
    results.update({board: told for board, told in lists.items() if isinstance(told, Result)})
    many = len(looks) > 1
    works = [
        _download_files(boards, names, wanted, DownloadSink(folder, many, wanted), progress)
        for names, wanted in group_equal_plans(plans)
    ]
    for part in await gather(*works):
        results.update(part)
    for board in plans:
        if board not in folders and results[board].ok:
            results[board] = as_file_results(results)[board].with_value(results[board].value[0])
    return Results(results, looks.left_out)


async def read_file(boards: HasTarget, path: str, target: str = "") -> Results:
    """Return what a file holds: see ``FileVerbs.read``."""
    kept = _MemorySink()
    results = await run_file_ops(
        boards, [["get", board_paths.parse_board_path(path)]], target=target, sink=kept
    )
    return Results(
        {
            name: result.with_value(bytes(kept.contents.get(name, b"")))
            for name, result in as_file_results(results).items()
        },
        results.left_out,
    )


class _MemorySink:
    """Keeps what boards send."""

    def __init__(self) -> None:
        self.contents: dict[str, bytearray] = {}

    def start_file(self, board: str) -> None:
        self.contents[board] = bytearray()

    def write(self, board: str, data: bytes) -> None:
        kept = self.contents[board]
        kept += data
        if self._is_too_long(len(kept)):
            raise OSError(errno.EFBIG, "too long to be read: use get", f"{board}:")

    def _is_too_long(self, size: int) -> bool:
        return size > MAX_READ_BYTES


async def _list_folders(
    boards: HasTarget, names: Sequence[str], path: str
) -> dict[str, tuple[RequestedFile, ...] | Result]:
    """Return what is in a folder of each board, or why that is not known."""
    if not names:
        return {}
    results = await run_file_ops(
        boards,
        [["ls", path, True]],
        target=fold_names(names),
        make_value=lambda a: files.read_entries(a[0]),
    )
    found: dict[str, tuple[RequestedFile, ...] | Result] = {}
    for board, result in results.items():
        if result.ok:
            above = path.rpartition("/")[0]
            found[board] = tuple(
                RequestedFile(entry.path, entry.path.removeprefix(above).lstrip("/"), entry.size)
                for entry in result.value
                if not entry.is_dir
            )
        else:
            found[board] = result
    return found


async def _download_files(
    boards: HasTarget,
    names: Sequence[str],
    requested: Sequence[RequestedFile],
    sink: DownloadSink,
    progress: ProgressCallback | None,
) -> dict[str, Result]:
    """Copy the same files from some boards."""
    total = sum(each.size for each in requested)
    target, done = fold_names(names), dict.fromkeys(names, 0)
    results = {name: files.empty_result(name) for name in names}

    def moved(board: str, so_far: int) -> None:
        if progress is not None:
            progress(board, done[board] + so_far, total)

    acts: list[FileOp] = [["get", each.path] for each in requested]
    for batch in split_batches(acts):
        part = as_file_results(
            await run_file_ops(boards, batch, target=target, sink=sink, on_moved=moved)
        )
        for board, result in part.items():
            results[board] = sink.finish_job(result)
            done[board] += sum(answer[0] for answer in result.op_results) if result.ok else 0
        if not (well := [name for name in part if results[name].ok]):
            break
        target = fold_names(well)
    return {
        board: result.with_value(sink.finished_paths(board)) for board, result in results.items()
    }


class DownloadSink:
    """Where the bytes go that boards send: beside their place, until a file is whole.

    Args:
        folder: where all of it goes.
        folder_per_board: whether each board has a folder of its own in it.
        requested: the files, in the order in which they come.
    """

    def __init__(
        self, folder: Path, folder_per_board: bool, requested: Sequence[RequestedFile]
    ) -> None:
        self._folder = folder
        self._folder_per_board = folder_per_board
        self._requested = requested
        self._started: dict[str, list[_FileDownload]] = {}
        self._pending: dict[str, Iterator[RequestedFile]] = {}
        self._finished_paths: dict[str, list[Path]] = {}

    def start_file(self, board: str) -> None:
        """Take it that a board's next file begins.

        Raises:
            OSError: it may not be here, or cannot.
        """
        coming = self._pending.setdefault(board, iter(self._requested))
        wanted = next(coming, None)
        if wanted is None:
            raise OSError(errno.EPROTO, "it sends files that nobody asked for", f"{board}:")
        try:
            folder = (
                board_paths.local_path(self._folder, board)
                if self._folder_per_board
                else self._folder
            )
            place = board_paths.local_path(folder, wanted.relative_path)
        except ValueError:
            raise PermissionError(errno.EPERM, _ILLEGAL_NAME, f"{board}:{wanted.path}") from None
        if self._is_taken(board, place):
            raise PermissionError(errno.EPERM, _ILLEGAL_NAME, f"{board}:{wanted.path}")
        self._started.setdefault(board, []).append(_FileDownload(place))

    def _is_taken(self, board: str, path: Path) -> bool:
        """Whether some file system would store this and an earlier file as one."""
        earlier = [download.path for download in self._started.get(board, ())]
        earlier += self._finished_paths.get(board, ())
        return _normalized_path(path) in map(_normalized_path, earlier)

    def write(self, board: str, data: bytes) -> None:
        """Take some of it.

        Raises:
            OSError: it cannot be written.
        """
        self._started[board][-1].write(data)

    def finish_job(self, result: FileResult) -> FileResult:
        """Put the files of a job in their places, if it ended well; else leave nothing of them."""
        begun = self._started.pop(result.board, [])
        failure: Exception | None = None
        for download, answer in zip(begun, result.op_results if result.ok else [], strict=False):
            try:
                self._finished_paths.setdefault(result.board, []).append(download.finish(answer))
            except OSError as error:
                failure = error
        for download in begun:
            download.discard()
        return files.failed_result(result.board, failure) if failure else result

    def finished_paths(self, board: str) -> list[Path]:
        """Return the files that came from a board."""
        return self._finished_paths.get(board, [])


class _FileDownload:
    """One file that comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part_path = path.with_name(path.name + ".part")
        self._size = 0
        self._hash = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._part_path.write_bytes(b"")

    def write(self, data: bytes) -> None:
        with self._part_path.open("ab") as file:  # of a thousand boards, not all can be open
            file.write(data)
        self._size += len(data)
        self._hash.update(data)

    def finish(self, op_result: Any) -> Path:
        """Move it to its place; it must be what the board read."""
        if tuple(op_result) != (self._size, self._hash.hexdigest()):
            raise OSError(errno.EIO, "it is not what the board read", str(self.path))
        self._part_path.replace(self.path)
        return self.path

    def discard(self) -> None:
        self._part_path.unlink(missing_ok=True)


def _normalized_path(path: Path) -> str:
    """Return what two paths share that are one on some system: case and composition differ."""
    return unicodedata.normalize("NFC", str(path)).casefold()
