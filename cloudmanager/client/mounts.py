"""Folders of this computer that are mounted on boards: their list, and their files on demand.

Boards get the list of the files once; they ask for the bytes of a file when it is opened. A thread
answers, and looks at the folder a few times a second: boards get a new list when a file changed.
Only files of the list are served, and only while they are inside of the folder.
"""

from __future__ import annotations

import errno
import os
import queue
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunOptions
from cloudmanager.protocol.text import fold_names, one_line
from cloudmanager.results.results import Results

from . import board_paths, sources
from .exchange import Exchange
from .files import FileJobGroup
from .jobs import JobGroup
from .runner import run_blocking
from .syncing import is_ignored, read_ignore_file

MOUNT_PATH: Final = ":/remote"  # where folders are mounted, as mpremote does
MAX_FILES: Final = 200  # of a folder; servers accept no more
MAX_LIST_BYTES: Final = 4096  # of their list on a board; servers accept no more
MAX_PATH_BYTES: Final = 512  # of a file, relative to its folder
_MAX_READ_BYTES: Final = 64 * 1024  # of a file in one answer
_LOOK_SECONDS: Final = 0.25  # between two looks at the folder
_RECONNECT_SECONDS: Final = 1.0  # between two attempts
_WAIT_SECONDS: Final = 86400.0  # that a new list waits for a board that is away
_UNMOUNT_SECONDS: Final = 5.0  # that the end waits for boards, which may be busy


class LocalFile(NamedTuple):
    """A file of a mounted folder.

    Attributes:
        path: where it is.
        size: in bytes.
        mtime_ns: when it was last changed, in ns since 1970.
    """

    path: Path
    size: int
    mtime_ns: int


class FolderList(NamedTuple):
    """The files of a folder that boards may read: name relative to it -> file; and remarks.

    Attributes:
        files: by their names relative to the folder.
        notes: sentences about what is left out.
    """

    files: dict[str, LocalFile]
    notes: tuple[str, ...]

    def rows(self) -> list[list[Any]]:
        """Return the list as it is sent to the server: names and sizes."""
        return [[name, file.size] for name, file in self.files.items()]


def list_folder(folder: Path) -> FolderList:
    """Return the files of a folder that boards may read: those that ``sync`` would copy.

    Raises:
        OSError: the folder does not exist, or cannot be read.
        ValueError: there are too many files.
    """
    if not folder.is_dir():
        folder.stat()
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    ignored = read_ignore_file(folder)
    notes: list[str] = []
    files: dict[str, LocalFile] = {}
    list_bytes = 1
    for entry in sources.walk(
        folder,
        is_left_out=lambda entry: is_ignored(ignored, entry),
        on_error=lambda error: notes.append(f"{error.filename}: {error.strerror}; left out"),
        on_link=notes.append,
    ):
        if entry.is_dir:
            continue
        name = entry.inner.as_posix()
        if not name.isprintable() or len(name.encode()) > MAX_PATH_BYTES:
            notes.append(f"{one_line(name)} has a name that boards cannot read, and is left out")
            continue
        try:
            facts = entry.path.stat()
        except OSError:  # it was removed meanwhile
            continue
        files[name] = LocalFile(entry.path, facts.st_size, facts.st_mtime_ns)
        list_bytes += len(f"{name}\t{facts.st_size}\n".encode())
        if len(files) > MAX_FILES or list_bytes > MAX_LIST_BYTES:
            raise ValueError(
                f"{folder} has too many files to be mounted: at most {MAX_FILES}, and "
                f"{MAX_LIST_BYTES:,} bytes of names; .mbmignore can leave some out, and "
                "`mbm board-sync --watch` copies any number"
            )
    return FolderList(files, tuple(notes))


class _MountJobGroup(FileJobGroup):
    """The jobs that mount a folder, replace its list, or unmount it.

    Args:
        request: the JSON of the request: docs/protocol.md.
        options: how long it waits for boards that are away.
    """

    def __init__(self, request: dict[str, Any], options: RunOptions = DEFAULT_OPTIONS) -> None:
        super().__init__((), make_value=_no_value)
        self.options = options
        self._request = request

    def submit_head(self) -> dict[str, Any]:
        """Return the entries of the group in the JSON of a SUBMIT."""
        return {**JobGroup.submit_head(self), "mount": self._request}


def _no_value(_: list[Any]) -> None:
    return None


class MountedFolder:
    """A local folder that boards have as a read-only file system, until ``close``.

    Use it in a ``with`` statement. See ``Boards.mount``.

    Args:
        connect: returns the exchange with the server; connects if there is no link.
        target: the boards.
        folder: the local folder.
        path: where it is mounted, such as ``:/remote``.
        on_note: called in another thread with remarks, each a sentence.

    Attributes:
        results: how mounting ended on each board.
    """

    def __init__(
        self,
        connect: Callable[[], Exchange],
        target: str,
        folder: Path,
        path: str = MOUNT_PATH,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.results = Results({})
        self._connect = connect
        self._target = target
        self._folder = folder
        self._path = board_paths.parse_board_path(path)
        self._on_note = on_note
        self._lock = threading.RLock()  # of what follows
        self._exchange: Exchange | None = None
        #: The lists that boards may have, by the numbers that the server uses.
        self._sent: dict[int, FolderList] = {}
        self._listing = FolderList({}, ())
        self._problem = ""  # that was reported
        self._group: _MountJobGroup | None = None  # that sends the newest list
        self._requests: queue.SimpleQueue[tuple[Exchange, wire.Message] | None] = (
            queue.SimpleQueue()
        )
        self._closed = False
        self._sending = False  # a list, which is no cell
        self._thread = threading.Thread(target=self._run, name="mounted folder", daemon=True)

    def __repr__(self) -> str:
        return f"<{self._folder} at :{self._path} on {fold_names(self.boards) or 'no board'}>"

    @property
    def boards(self) -> list[str]:
        """The names of the boards that have mounted it."""
        return [name for name, result in self.results.items() if result.ok]

    def open(self) -> Self:
        """Mount the folder on the boards.

        Raises:
            OSError, ValueError: the folder cannot be listed, or has too many files.
            CloudmanagerError: the server refuses it, or all boards do.
        """
        with self._lock:
            self._listing = list_folder(self._folder)
            self._exchange = exchange = self._connect()
            group = self._send_list(exchange, self._target, DEFAULT_OPTIONS)
        self._thread.start()
        try:
            self.results = run_blocking(group.completed())
            if not self.boards:
                self.results.raise_for_error()
        except BaseException:
            self.close()
            raise
        exchange.add_folder(self)
        for note in self._listing.notes:
            self._on_note(note)
        return self

    def close(self) -> None:
        """Unmount the folder; a board that is busy does it as soon as it is not."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            exchange, numbers = self._exchange, list(self._sent)
        if exchange is not None:
            exchange.remove_folder(self)
            if self.boards and not exchange.closed:
                group = _MountJobGroup({})
                exchange.submit(group, fold_names(self.boards))
                group.wait(_UNMOUNT_SECONDS)
            exchange.forget_mounts(numbers)
        self._requests.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> None:
        """Look at the folder; if it has changed, send boards the new list.

        Each cell of the same Fleet calls this first, so it runs what is on the disk.
        """
        with self._lock:
            exchange = self._exchange
            if self._closed or self._sending or exchange is None or exchange.closed:
                return
            if not self.boards:
                return
            listing = self._look()
            if listing is None or listing.files == self._listing.files:
                return
            changed = {
                name
                for name in {*listing.files, *self._listing.files}
                if listing.files.get(name) != self._listing.files.get(name)
            }
            self._listing = listing
            self._send_list(exchange, fold_names(self.boards), RunOptions(wait=_WAIT_SECONDS))
        names = ", ".join(map(one_line, sorted(changed)[:3]))
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        self._on_note(f"changed: {names}{more}")

    def _look(self) -> FolderList | None:
        """Return the present files; None, with one note, if the folder cannot be mounted now."""
        try:
            listing = list_folder(self._folder)
        except (OSError, ValueError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._on_note(f"boards keep the old list: {error}")
            return None
        self._problem = ""
        return listing

    def _send_list(self, exchange: Exchange, target: str, options: RunOptions) -> _MountJobGroup:
        """Send boards the list, in the place of one that has not reached all of them yet."""
        number = exchange.add_mount(self._on_read)
        self._sent[number] = self._listing
        request = {"number": number, "path": self._path, "files": self._listing.rows()}
        if self._group is not None and not self._group.finished.done:
            self._group.interrupt()
        group = self._group = _MountJobGroup(request, options)
        group.finished.add_done_callback(lambda: self._on_sent(exchange, group, number))
        self._sending = True
        try:
            exchange.submit(group, target)
        finally:
            self._sending = False
        return group

    def _on_sent(self, exchange: Exchange, group: JobGroup, number: int) -> None:
        """Forget older lists, if all boards have the newest one; called in the link's thread."""
        if exchange is not self._exchange or group is not self._group:
            return
        if not group.jobs or not all(job.result and job.result.ok for job in group.jobs.values()):
            return
        older = [each for each in list(self._sent) if each < number]
        for each in older:
            self._sent.pop(each, None)
        exchange.forget_mounts(older)

    def _on_read(self, exchange: Exchange, message: wire.Message) -> None:
        """Leave a READ of the server to the thread; called in the link's thread."""
        self._requests.put((exchange, message))

    # In the thread

    def _run(self) -> None:
        """Answer the server's requests, and look at the folder, until ``close``."""
        look_at = time.monotonic() + _LOOK_SECONDS
        while True:
            try:
                request = self._requests.get(timeout=max(look_at - time.monotonic(), 0))
            except queue.Empty:
                look_at = time.monotonic() + self._look_again()
                continue
            if request is None:
                return
            self._serve(*request)

    def _look_again(self) -> float:
        """Refresh the boards' list, or mount again after a lost link.

        Returns:
            The seconds until the next time.
        """
        with self._lock:
            if self._closed or self._exchange is None:
                return _LOOK_SECONDS
            is_lost = self._exchange.closed
        try:
            if not is_lost:
                self.refresh()
            elif self.boards:
                self._mount_again()
        except CloudmanagerError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._on_note(str(error))
            return _RECONNECT_SECONDS
        return _LOOK_SECONDS

    def _mount_again(self) -> None:
        """Connect again after the link to the server broke, and mount the folder again."""
        listing = self._look()
        if listing is None:
            return
        exchange = self._connect()
        with self._lock:
            if self._closed:
                return
            self._exchange, self._listing = exchange, listing
            self._sent.clear()
            self._send_list(exchange, fold_names(self.boards), RunOptions(wait=_WAIT_SECONDS))
        exchange.add_folder(self)
        self._problem = ""
        self._on_note("the server was connected again, and the folder is mounted again")

    def _serve(self, exchange: Exchange, message: wire.Message) -> None:
        """Answer a READ."""
        request = wire.read_read_request(message)
        listing = self._sent.get(message.job)
        data, flags = b"", wire.UNREADABLE
        if listing is not None:
            try:
                data, flags = self._read(listing, request), 0
            except OSError as error:
                path = one_line(request.path.decode("utf-8", "replace"))
                self._on_note(f"{path} could not be read by a board: {error.strerror}")
        exchange.send_block(message.job, request.number, data, flags)

    def _read(self, listing: FolderList, request: wire.ReadRequest) -> bytes:
        """Return bytes of a file.

        Raises:
            OSError: the file cannot be read, has changed, or boards may not read it.
        """
        name = request.path.decode("utf-8", "replace")
        file = listing.files.get(name)
        if file is None or not is_inside(self._folder, file.path) or not file.path.is_file():
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), name)
        with file.path.open("rb") as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), name)
            # A board would put pieces of two versions together.
            if not is_unchanged(file, facts):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
            stream.seek(request.offset)
            return stream.read(min(request.size, _MAX_READ_BYTES))


def is_unchanged(file: LocalFile, facts: os.stat_result) -> bool:
    """Return whether a file is as it was when it was listed."""
    return (facts.st_size, facts.st_mtime_ns) == (file.size, file.mtime_ns)


def is_inside(folder: Path, path: Path) -> bool:
    """Return whether a path leads to a place in the folder, now.

    Raises:
        OSError: links lead in a circle.
    """
    return sources.resolve_links(path).is_relative_to(sources.resolve_links(folder))


def mounted_folder(
    connect: Callable[[], Exchange],
    target: str,
    folder: sources.PathLike,
    path: str,
    on_note: Callable[[str], None] | None,
) -> MountedFolder:
    """Return a folder that is not mounted yet; see ``Boards.mount`` for the arguments."""
    return MountedFolder(
        connect, target, sources.local_source(folder), path, on_note or (lambda _: None)
    )
