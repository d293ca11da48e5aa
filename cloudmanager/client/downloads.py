"""Copies files from boards to this machine. File names from boards are not trusted."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.file_ops import FileOp
from cloudmanager.protocol.text import fold_names, one_line
from cloudmanager.results.results import Result, Results

from . import board_paths, files, name_case
from .file_jobs import (
    add_errors,
    as_file_results,
    group_equal_plans,
    is_refusal,
    join_errors,
    run_file_jobs,
    run_file_ops,
    split_batches,
    without_inner,
)
from .files import Entry, FileJobGroup, FileResult
from .progress import ProgressCallback
from .runner import gather
from .sources import PathLike, local_source, resolve_links
from .verb import HasTarget

MAX_READ_BYTES: Final = 16 * 1024 * 1024  # of a file that is read into memory
_LEFT: Final = "the file was left on the board"
_ILLEGAL_NAME: Final = f"not a valid local file name; {_LEFT}"
_SAME_NAME: Final = "its name is the same as that of"


class RequestedFile(NamedTuple):
    """One file to copy.

    Attributes:
        path: on the board.
        relative_path: below the local folder.
        size: in bytes.
    """

    path: str
    relative_path: str
    size: int


class DownloadRequest(NamedTuple):
    """What to copy, and to where.

    Attributes:
        origin: the file or folder on the boards, with a colon.
        dest: the local place.
        target: the boards; "" for the boards that the verb was called for.
        folder_per_board: whether each board gets a folder of its own; None if there are several.
    """

    origin: str
    dest: PathLike
    target: str = ""
    folder_per_board: bool | None = None


async def download(
    boards: HasTarget, request: DownloadRequest, progress: ProgressCallback | None
) -> Results:
    """Copy a file or folder from the boards: see ``FileVerbs.get``."""
    device = local_source(request.dest)
    if _is_device(device):
        return await _download_to_device(boards, request.origin, device, progress)
    return await download_from(boards, request, progress)


def _is_device(path: Path) -> bool:
    """Whether a path is that of a device or a pipe, such as ``/dev/stdout``."""
    return path.exists() and not path.is_file() and not path.is_dir()


async def _download_to_device(
    boards: HasTarget, origin: str, device: Path, progress: ProgressCallback | None
) -> Results:
    """Copy a file of one board into a device or a pipe, which is not replaced."""
    with tempfile.TemporaryDirectory() as folder:
        request = DownloadRequest(origin, f"{folder}/")
        results = as_file_results(found := await download_from(boards, request, progress))
        for name, result in results.items():
            if not result.ok:
                continue
            if len(results) > 1 or isinstance(result.value, list):
                error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(device))
                results[name] = files.failed_result(name, error)
                continue
            try:
                with (
                    result.value.open("rb") as source,
                    _named_errors(device),
                    device.open("wb") as sink,
                ):
                    shutil.copyfileobj(source, sink)
                results[name] = result.with_value(device)
            except OSError as error:
                results[name] = files.failed_result(name, error)
        return Results(results, found.left_out)


async def download_from(
    boards: HasTarget, request: DownloadRequest, progress: ProgressCallback | None
) -> Results:
    """Copy a file or folder from some boards: see ``FileVerbs.get``."""
    origin, dest, target, folder_per_board = request
    path = board_paths.parse_board_path(origin)
    folder = local_source(dest)
    stats = await run_file_ops(
        boards,
        [["stat", path]],
        target=target,
        make_value=lambda op_results: files.read_stat(op_results[0]),
    )
    name = path.rpartition("/")[2]
    if folder_per_board is None:
        folder_per_board = len(stats) + len(stats.left_out) > 1
    results: dict[str, Result] = dict(stats)
    plans: dict[str, tuple[RequestedFile, ...]] = {}
    folders = []
    for board, result in stats.items():
        if result.ok and result.value.is_dir:
            folders.append(board)
        elif result.ok:
            is_folder = folder.is_dir() or os.fspath(dest).replace(os.sep, "/").endswith("/")
            if not (folder_per_board or is_folder):
                # As with cp, a link that the user named stays, and what it refers to is written.
                final = resolve_links(folder) if folder.is_symlink() else folder
                folder, name = final.parent, final.name
            plans[board] = (RequestedFile(path, name, result.value.size),)
    top = path if origin.endswith("/") else path.rpartition("/")[0]
    folder_errors: dict[str, list[OSError]] = {}
    for board, listing in (await _list_folders(boards, folders, path)).items():
        if isinstance(listing, Result):
            results[board] = listing
            continue
        sink = DownloadSink(folder, folder_per_board, ())
        folder_errors[board] = sink.make_folders(
            board, [_relative_path(entry.path, top) for entry in listing if entry.is_dir]
        )
        plans[board] = tuple(
            RequestedFile(entry.path, _relative_path(entry.path, top), entry.size)
            for entry in listing
            if not entry.is_dir
        )
    downloads = [
        _download_files(
            boards, names, requested, DownloadSink(folder, folder_per_board, requested), progress
        )
        for names, requested in group_equal_plans(plans)
    ]
    for part in await gather(*downloads):
        results.update(part)
    for board in plans:
        if board not in folders and results[board].ok:
            results[board] = as_file_results(results)[board].with_value(results[board].value[0])
    for board, errors in folder_errors.items():
        if errors and results[board].ok:
            results[board] = add_errors(Results({board: results[board]}), errors)[board]
    return Results(results, stats.left_out)


async def read_file(
    boards: HasTarget, path: str, progress: ProgressCallback | None, *, target: str = ""
) -> Results:
    """Return the content of a file: see ``FileVerbs.read``.

    Args:
        boards: the boards.
        path: of the file, with a colon.
        progress: called with the bytes that were received.
        target: replaces the target of ``boards``.
    """
    path = board_paths.parse_board_path(path)
    sink = _MemorySink()
    sizes: dict[str, int] = {}

    def on_moved(board: str, moved: int) -> None:
        if progress is not None:
            progress(board, moved, sizes.get(board, moved))

    if progress is not None:
        stats = await run_file_ops(boards, [["stat", path]], target=target)
        sizes = {
            name: files.read_stat(result.value[0]).size
            for name, result in stats.items()
            if result.ok
        }
    group = FileJobGroup([["get", path]], sink=sink, on_moved=on_moved)
    results = await run_file_jobs(boards, group, target)
    return Results(
        {
            name: result.with_value(bytes(sink.contents.get(name, b"")))
            for name, result in as_file_results(results).items()
        },
        results.left_out,
    )


class _MemorySink:
    """Collects the files that boards send, in memory."""

    def __init__(self) -> None:
        self.contents: dict[str, bytearray] = {}

    def start_file(self, board: str) -> None:
        self.contents[board] = bytearray()

    def write(self, board: str, data: bytes) -> None:
        content = self.contents[board]
        content += data
        if self._is_too_long(len(content)):
            raise OSError(errno.EFBIG, "too long to read into memory: use get", f"{board}:")

    def _is_too_long(self, size: int) -> bool:
        return size > MAX_READ_BYTES


def _relative_path(path: str, top: str) -> str:
    return path.removeprefix(top).lstrip("/")


async def _list_folders(
    boards: HasTarget, names: Sequence[str], path: str
) -> dict[str, list[Entry] | Result]:
    """Return a folder of each board and what is in it, or the result of the job that failed.

    Args:
        boards: the boards, for the connection.
        names: the names of those that have the folder.
        path: of the folder.
    """
    if not names:
        return {}
    results = await run_file_ops(
        boards,
        [["ls", path, True]],
        target=fold_names(names),
        make_value=lambda op_results: files.read_entries(op_results[0]),
    )
    return {
        board: [Entry(path, True, 0), *result.value] if result.ok else result
        for board, result in results.items()
    }


async def _download_files(
    boards: HasTarget,
    names: Sequence[str],
    requested: Sequence[RequestedFile],
    sink: DownloadSink,
    progress: ProgressCallback | None,
) -> dict[str, Result]:
    """Copy the same files from some boards; return each board's result."""
    total = sum(each.size for each in requested)
    received = dict.fromkeys(names, 0)  # bytes of the finished jobs
    results = {name: files.empty_result(name) for name in names}
    refusals: dict[str, list[OSError]] = {}

    def on_moved(board: str, job_bytes: int) -> None:
        if progress is not None:
            progress(board, received[board] + job_bytes, total)

    async def run(names: list[str], batch: Sequence[RequestedFile]) -> list[str]:
        """Copy files; return the boards that can go on. Where one fails, each is copied alone."""
        sink.expect(names, batch)
        ops: list[FileOp] = [["get", each.path] for each in batch]
        group = FileJobGroup(ops, sink=sink, on_moved=on_moved)
        part = await run_file_jobs(boards, group, fold_names(names))
        going_on: list[str] = []
        refusing: list[str] = []
        for board, result in as_file_results(part).items():
            outcome = sink.finish_job(result)
            error = outcome.error
            if outcome.ok:
                going_on.append(board)
                received[board] += sum(op_result[0] for op_result in result.op_results)
            elif isinstance(error, OSError) and is_refusal(error):
                refusing.append(board)
                if len(batch) == 1:
                    refusals.setdefault(board, []).append(error)
            if outcome.ok or board not in refusing:
                results[board] = outcome
        if len(batch) > 1:
            for each in batch:
                if refusing:
                    refusing = await run(refusing, [each])
        return going_on + refusing

    pending = list(requested)
    going_on = list(names)
    try:
        for batch in split_batches(["get", each.path] for each in requested):
            now, pending = pending[: len(batch)], pending[len(batch) :]
            if going_on:
                going_on = await run(going_on, now)
    finally:
        sink.close()
    for board, errors in refusals.items():
        if results[board].ok:
            results[board] = files.failed_result(board, join_errors(without_inner(errors)))
    return {
        board: result.with_value(sink.finished_paths(board)) for board, result in results.items()
    }


class DownloadSink:
    """Writes the files that boards send: to temporary files until a file is complete.

    Args:
        folder: the local folder.
        folder_per_board: whether each board gets a subfolder with its name.
        requested: the files, in the order in which each board sends them.
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
        self._is_closed = False
        self._lock = threading.Lock()  # data arrives in the link's thread

    def expect(self, names: Sequence[str], requested: Sequence[RequestedFile]) -> None:
        """Prepare for the next job on some boards, which sends these files in this order."""
        for name in names:
            self._pending[name] = iter(requested)

    def start_file(self, board: str) -> None:
        """Begin a board's next file.

        Raises:
            OSError: its name is not allowed, or it cannot be created.
        """
        with self._lock:
            self._start_file(board)

    def _start_file(self, board: str) -> None:
        self._check_open(board)
        pending = self._pending.setdefault(board, iter(self._requested))
        requested = next(pending, None)
        if requested is None:
            raise OSError(errno.EPROTO, "the board sent a file that was not requested", f"{board}:")
        try:
            path = board_paths.local_path(self._board_folder(board), requested.relative_path)
        except ValueError:
            raise PermissionError(errno.EPERM, _ILLEGAL_NAME, f"{board}:{requested.path}") from None
        download = _FileDownload(path)
        self._started.setdefault(board, []).append(download)
        if other := self._find_same(board, download):
            why = f"{_SAME_NAME} {one_line(other.name)} here; {_LEFT}"
            raise FileExistsError(errno.EEXIST, why, f"{board}:{requested.path}")

    def _board_folder(self, board: str) -> Path:
        """Return the local folder of a board's files.

        Raises:
            ValueError: the board's name is not allowed here.
        """
        if self._folder_per_board:
            return board_paths.local_path(self._folder, board)
        return self._folder

    def make_folders(self, board: str, relative_paths: Sequence[str]) -> list[OSError]:
        """Make a board's folders, "" for the one of all; return the errors of those that fail."""
        errors: list[OSError] = []
        for relative_path in relative_paths:
            try:
                folder = self._board_folder(board)
                if relative_path:
                    folder = board_paths.local_path(folder, relative_path)
                _make_folder(folder)
            except ValueError:
                name = f"{board}:{relative_path}"
                errors.append(PermissionError(errno.EPERM, _ILLEGAL_NAME, name))
            except OSError as error:
                errors.append(error)
        return errors

    def _find_same(self, board: str, new: _FileDownload) -> Path | None:
        """Return the path of an earlier file that a new one would replace; None if there is none.

        Two names may become one as escapes, or because the local file system ignores case.
        """
        earlier = [each.path for each in self._started[board] if each is not new]
        earlier += self._finished_paths.get(board, ())
        key = name_case.same_name_key(str(new.path))
        same = [path for path in earlier if name_case.same_name_key(str(path)) == key]
        if new.path in same:
            return new.path
        return same[0] if same and new.is_case_ignored() else None

    def write(self, board: str, data: bytes) -> None:
        """Append to the board's present file.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            self._check_open(board)
            self._started[board][-1].write(data)

    def _check_open(self, board: str) -> None:
        if self._is_closed:
            raise OSError(errno.ECANCELED, "the download was interrupted", f"{board}:")

    def close(self) -> None:
        """Remove the temporary files of a download that was interrupted; refuse further data."""
        with self._lock:
            self._is_closed = True
            for downloads in self._started.values():
                for download in downloads:
                    download.discard()

    def finish_job(self, result: FileResult) -> FileResult:
        """Move the files of a job to their paths if it succeeded, else remove them.

        Returns:
            The same result, or a failed one if a file could not be moved.
        """
        started = self._started.pop(result.board, [])
        op_results = result.op_results if result.ok else []
        failure: Exception | None = None
        for download, op_result in zip(started, op_results, strict=False):
            try:
                path = download.finish(op_result)
                self._finished_paths.setdefault(result.board, []).append(path)
            except OSError as error:
                failure = error
        for download in started:
            download.discard()
        return files.failed_result(result.board, failure) if failure else result

    def finished_paths(self, board: str) -> list[Path]:
        """Return the local paths of the files of a board."""
        return self._finished_paths.get(board, [])


class _FileDownload:
    """One file while it is received."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part_path = path.with_name(f".{secrets.token_hex(8)}.mbm-part")
        self._size = 0
        self._hash = hashlib.sha256()
        _make_folder(path.parent)
        with _named_errors(path):
            self._part_path.open("xb").close()  # never a file of the user's

    def write(self, data: bytes) -> None:
        with _named_errors(self.path), self._part_path.open("ab") as file:
            file.write(data)  # the file is not kept open: there may be 1,000 boards
        self._size += len(data)
        self._hash.update(data)

    def is_case_ignored(self) -> bool:
        """Whether the file system that the file is written to ignores case."""
        return name_case.ignores_case(self._part_path.parent, self._part_path.name)

    def finish(self, op_result: Any) -> Path:
        """Move the file to its path; ``op_result`` is the size and SHA-256 that the board read."""
        if tuple(op_result) != (self._size, self._hash.hexdigest()):
            raise OSError(errno.EIO, "the content differs from what the board read", str(self.path))
        if _is_device(self.path) and not self.path.is_symlink():
            raise OSError(
                errno.EEXIST, "it is a device or a pipe, and was not replaced", str(self.path)
            )
        with _named_errors(self.path):
            self._part_path.replace(self.path)
        return self.path

    def discard(self) -> None:
        self._part_path.unlink(missing_ok=True)


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Make errors name a file: the user's, instead of a temporary one or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _make_folder(path: Path) -> None:
    """Make a local folder, and those above it; they may exist.

    Raises:
        NotADirectoryError: a file is in the place of one of them.
        OSError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        why = os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, why, error.filename) from None
