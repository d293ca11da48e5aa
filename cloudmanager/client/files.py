"""Jobs with file operations, their results, and the bytes that boards send; no I/O here.

A board's ``OSError`` is raised as Python's own, with ``BOARD:PATH`` as file name:
``FileNotFoundError: [Errno 2] No such file or directory: 'lab-1:/a.py'``.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import (
    CloudmanagerError,
    PackageError,
    PeerWireError,
    ServerError,
)
from cloudmanager.protocol.file_ops import FileOp, decode_path, disk_space
from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunOptions
from cloudmanager.results.board_values import UnreadableValue, parse_value
from cloudmanager.results.results import Result

from .cells import prepare_cell
from .jobs import Event, Job, JobGroup

#: MicroPython writes ``[Errno 2] ENOENT: /a``, and ``(28, '/a')`` for a number without a name.
_OSERROR_PATTERN: Final = re.compile(
    r"^OSError: (?:\[Errno (\d+)\] \w+(?:: (.*?))?|\((\d+), (b?(['\"]).*\5)\))\n?\Z",
    re.MULTILINE | re.DOTALL,  # a path may contain newlines
)
_BYTES_PATTERN: Final = re.compile(r"b(['\"]).*\1", re.DOTALL)  # a path that is not UTF-8
_PACKAGE_ERROR_PREFIX: Final = "PackageError: "
_SERVER_ERROR_PREFIX: Final = "ServerError: "
_EMPTY_CELL: Final = prepare_cell("")
_FOLDER_MODE: Final = 0x4000  # in the mode of MicroPython's ilistdir and stat (S_IFDIR)


class Entry(NamedTuple):
    """One file or folder of a board; ``size`` in bytes is 0 for a folder.

    A byte of its path that is not UTF-8 is U+DC80 to U+DCFF, as in ``os.fsdecode``.
    """

    path: str
    is_dir: bool
    size: int

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


class FolderTree(NamedTuple):
    """A folder of a board with all that is in it, sorted; to be shown as a tree.

    Attributes:
        path: of the folder.
        entries: what is in it and in its subfolders.
        sizes: how sizes are shown: "" not at all, "bytes", or "units" such as 1.5K.
    """

    path: str
    entries: list[Entry]
    sizes: str = ""


class Checksum(NamedTuple):
    """The SHA-256 of a file on a board, in hex, and its path."""

    sha256: str
    path: str


class Stat(NamedTuple):
    """Facts about a path on a board; ``mtime`` is in seconds, by the board's clock and epoch."""

    is_dir: bool
    size: int
    mtime: int


class Space(NamedTuple):
    """The size of a file system of a board, in bytes."""

    total: int
    used: int
    free: int


def read_entries(listing: Any) -> list[Entry]:
    """Return the entries of the op ``ls``, sorted: folders first."""
    found = [
        Entry(_path_text(path), kind == _FOLDER_MODE, int(size)) for path, kind, size in listing
    ]
    return sorted(found, key=lambda entry: (not entry.is_dir, entry.path))


def _path_text(path: Any) -> str:
    """Return a path from a board as text; a board sends bytes if it is not UTF-8."""
    return decode_path(path) if isinstance(path, bytes) else str(path)


def read_stat(stat_tuple: Any) -> Stat:
    """Return the result of the op ``stat``."""
    is_dir = bool(
        stat_tuple[0] & _FOLDER_MODE
    )  # the size that littlefs returns for a folder is undefined
    return Stat(is_dir, 0 if is_dir else int(stat_tuple[6]), int(stat_tuple[8]))


def read_space(statvfs: Any) -> Space:
    """Return the result of the op ``statvfs``: block size, fragment size, blocks, free blocks."""
    total, free = disk_space(statvfs)
    return Space(total, total - free, free)


class FileResult(Result):
    """How one job with file operations ended.

    ``error`` is of the ``OSError`` family if the board's was.

    Attributes:
        op_results: the result of each operation, as the board sent it; empty if the job failed.
        partial: the value of what succeeded, if the verb failed for some of several paths.
    """

    partial: Any = None

    def __init__(
        self,
        board: str,
        job: int,
        status: str,
        *,
        make_value: Callable[[list[Any]], Any] = list,
        failure: Exception | None = None,
        **fields: Any,
    ) -> None:
        self.op_results: list[Any] = []
        self._value: Any = None
        self._failure = failure
        if status == "ok" and failure is None:
            try:
                self.op_results = list(parse_value(fields.pop("text")))
                self._value = make_value(self.op_results)
            except (ArithmeticError, LookupError, TypeError, ValueError):
                self._failure = PeerWireError("the board sent malformed results of file operations")
        fields["text"] = "" if self._value is None else repr(self._value)
        super().__init__(board, job, "error" if self._failure else status, **fields)
        if self._failure is None:
            self._failure = _board_error(board, self.traceback or self.why)
        if self._failure is not None:
            self.traceback = _error_line(board, self._failure)

    @property
    def value(self) -> Any:
        """The value that the verb returns for this board.

        Raises:
            OSError, CloudmanagerError: the job failed; the same exception as ``error``.
        """
        if self.error is not None:
            raise self.error
        return self._value

    @property
    def error(self) -> Exception | None:
        """The exception that ``raise_for_error`` raises for this board; None if ok."""
        return self._failure or super().error

    def to_json(self) -> dict[str, Any]:
        """Return what ``mbm --json`` prints for this result."""
        value = self.partial if self._value is None else self._value
        return {**super().to_json(), "value": _to_json(value)}

    def with_value(self, value: Any, earlier_elapsed: float = 0.0) -> FileResult:
        """Return a copy with another value, and with the seconds of earlier jobs added."""
        copy = FileResult.__new__(FileResult)
        copy.__dict__.update(self.__dict__)
        if self.ok:
            copy._value = value
            copy.text = "" if value is None else repr(value)
        copy.elapsed = self.elapsed + earlier_elapsed
        return copy

    def with_partial(self, value: Any) -> FileResult:
        """Return a copy of a failed result with the value of what succeeded."""
        copy = FileResult.__new__(FileResult)
        copy.__dict__.update(self.__dict__)
        copy.partial = value
        return copy


def empty_result(board: str) -> FileResult:
    """Return the result for a board on which nothing had to be done."""
    return FileResult(board, 0, "ok", text="[]")


def failed_result(board: str, error: Exception, partial: Any = None) -> FileResult:
    """Return the result for a board on which a verb failed; see ``FileResult.partial``."""
    return FileResult(board, 0, "error", failure=error).with_partial(partial)


def _board_error(board: str, traceback: str) -> Exception | None:
    """Return the OSError or PackageError at the end of a traceback or reason, or None."""
    if traceback.startswith(_PACKAGE_ERROR_PREFIX):
        return PackageError(traceback.removeprefix(_PACKAGE_ERROR_PREFIX))
    if traceback.startswith(_SERVER_ERROR_PREFIX):
        return ServerError(traceback.removeprefix(_SERVER_ERROR_PREFIX))
    found = _OSERROR_PATTERN.search(traceback)
    if found is None:
        return None
    number, path = int(found[1] or found[3]), found[2] or found[4] or ""
    if found[4] or _BYTES_PATTERN.fullmatch(path):
        with contextlib.suppress(UnreadableValue):
            path = _path_text(parse_value(path))
    return OSError(number, os.strerror(number), f"{board}:{path}")


def _error_line(board: str, error: Exception) -> str:
    """Return an error in one line, without the board's name."""
    name = type(error).__name__
    return f"{name}: {error}".replace(f"'{board}:", "':")


def _to_json(value: Any) -> Any:
    """Return a value that JSON can encode: named tuples as objects, paths and bytes as text.

    Bytes that are not UTF-8 are an object: ``{"base64": …}``.
    """
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _to_json(each) for name, each in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [_to_json(each) for each in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return str(value) if isinstance(value, os.PathLike) else value


class ByteSink(Protocol):
    """Receives the files that boards send; called in the link's thread."""

    def start_file(self, board: str) -> None:
        """Begin a board's next file."""

    def write(self, board: str, data: bytes) -> None:
        """Append to the board's present file."""


#: Called with a board and the bytes that its job has transferred so far.
OnMoved = Callable[[str, int], None]


class FileJob(Job):
    """A job with file operations on one board, while it runs."""

    group: FileJobGroup

    def _on_chunk(self, message: wire.Message) -> list[Event]:
        self.group.on_chunk(self, message)
        return []

    def _make_result(self, status: str, **fields: Any) -> Result:
        group = self.group
        failure = group.failures.get(self.board)
        return FileResult(
            self.board, self.number, status, make_value=group.make_value, failure=failure, **fields
        )


class FileJobGroup(JobGroup):
    """The same file operations on several boards.

    Args:
        ops: the operations, in order; a board stops at the first that fails.
        make_value: makes a result's value from the results of the operations.
        sink: receives the bytes of files that boards send.
        on_moved: called with a board and the bytes that its job has transferred.
        options: how they are run.

    Attributes:
        failures: board -> the local error that ended its job, such as a full disk.
    """

    def __init__(
        self,
        ops: Sequence[FileOp],
        *,
        make_value: Callable[[list[Any]], Any] = list,
        sink: ByteSink | None = None,
        on_moved: OnMoved | None = None,
        options: RunOptions = DEFAULT_OPTIONS,
    ) -> None:
        super().__init__(_EMPTY_CELL, options)
        self.ops = ops
        self.make_value = make_value
        self.failures: dict[str, Exception] = {}
        self._sink = sink
        self._on_moved = on_moved
        self._bytes_moved: dict[str, int] = {}

    @property
    def is_silent(self) -> bool:
        """Whether nobody hears of its jobs before they have ended; here, files are received."""
        return False

    def submit_head(self) -> dict[str, Any]:
        """Return the entries of the group in the JSON of a SUBMIT."""
        return {**super().submit_head(), "acts": self.ops}

    def _make_job(self, number: int, board: str) -> Job:
        job = FileJob(number, board, self.cell, self._submitted_at)
        job.group = self
        return job

    def on_chunk(self, job: Job, message: wire.Message) -> None:
        """Handle a piece of a file, or a board's report of its progress."""
        if self._sink is None:
            if not message.flags & wire.RESUME_STATE:
                self._report_moved(job.board, wire.read_byte_count(message))
            return
        if job.board in self.failures:
            return
        try:
            if message.flags & wire.RESUME_STATE:
                self._sink.start_file(job.board)
            else:
                self._sink.write(job.board, message.payload)
        except (OSError, ValueError, CloudmanagerError) as error:
            self.failures[job.board] = error
            self._interrupt_jobs([job.number])
        self._report_moved(job.board, self._bytes_moved.get(job.board, 0) + len(message.payload))

    def _report_moved(self, board: str, moved: int) -> None:
        self._bytes_moved[board] = moved
        if self._on_moved is not None:
            self._on_moved(board, moved)
