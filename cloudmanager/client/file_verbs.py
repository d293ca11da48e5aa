"""The verbs for boards' files, written once, as those in verbs.py; ``:`` marks a path on boards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cloudmanager.results.results import Results

from . import board_paths, downloads, files, syncing, uploads
from .file_jobs import ProgressCallback, run_file_ops
from .sources import PathLike, UploadOrigin
from .verbs import HasTarget


class FileVerbs:
    """What can be done with the files of a target's boards.

    Each verb returns ``Results``: a board's failure is in its Result, of the ``OSError``
    family where it is the board's file system that fails.
    """

    async def ls(self: HasTarget, path: str = ":/", *, recursive: bool = False) -> Results:
        """List a folder; each board's value is a list of ``Entry`` (path, is_dir, size)."""
        return await run_file_ops(
            self,
            [["ls", board_paths.parse_board_path(path), recursive]],
            make_value=_of_first_result(files.read_entries),
        )

    async def stat(self: HasTarget, path: str) -> Results:
        """Look at a path; each board's value is a ``Stat`` (is_dir, size, mtime)."""
        return await run_file_ops(
            self,
            [["stat", board_paths.parse_board_path(path)]],
            make_value=_of_first_result(files.read_stat),
        )

    async def df(self: HasTarget, path: str = ":/") -> Results:
        """Return the room on a file system; each board's value is a ``Space``, in bytes."""
        return await run_file_ops(
            self,
            [["statvfs", board_paths.parse_board_path(path)]],
            make_value=_of_first_result(files.read_space),
        )

    async def mkdir(self: HasTarget, path: str, *, parents: bool = False) -> Results:
        """Make a folder; with ``parents``, those that it is in, too, and it may be there."""
        name = "makedirs" if parents else "mkdir"
        return await run_file_ops(
            self, [[name, board_paths.parse_board_path(path)]], make_value=_no_value
        )

    async def rmdir(self: HasTarget, path: str) -> Results:
        """Remove a folder that is empty."""
        place = board_paths.parse_board_path(path)  # littlefs would take a file, too
        return await run_file_ops(
            self, [["ls", place, False], ["rmdir", place]], make_value=_no_value
        )

    async def rm(self: HasTarget, path: str, *, recursive: bool = False) -> Results:
        """Remove a file; with ``recursive``, a folder and all that is in it."""
        return await run_file_ops(
            self, [["rm", board_paths.parse_board_path(path), recursive]], make_value=_no_value
        )

    async def mv(self: HasTarget, path: str, to: str) -> Results:
        """Rename a file or folder on the boards."""
        acts = [["rename", board_paths.parse_board_path(path), board_paths.parse_board_path(to)]]
        return await run_file_ops(self, acts, make_value=_no_value)

    async def put(
        self: HasTarget,
        source: UploadOrigin | Sequence[PathLike],
        dest: str = ":/",
        *,
        progress: ProgressCallback | None = None,
    ) -> Results:
        """Copy files, folders or bytes to the boards; what is there and equal stays as it is.

        A path that ends in ``/``, or a folder that is there, gets them below their own names.
        The folders that are needed are made. An upload that broke off goes on where it stopped.

        Args:
            source: a file, a folder, several of them, or the bytes of one file.
            dest: where it goes, such as ``:lib/``.
            progress: called with a board, the bytes that were moved for it and how many there
                are in all; from the link's thread, so it must not ask the fleet for anything.

        Returns:
            For each board how many bytes were written.

        Raises:
            OSError: a source cannot be read; nothing was sent.
        """
        return await uploads.upload(self, source, dest, progress)

    async def get(
        self: HasTarget,
        path: str,
        folder: PathLike = ".",
        *,
        progress: ProgressCallback | None = None,
    ) -> Results:
        """Copy a file or a folder from the boards; of several boards, into a folder of each.

        No name that a board tells chooses a place here: one that is no plain name fails.

        Args:
            path: what to copy, such as ``:log.txt``.
            folder: where to; it is made.
            progress: as ``put`` takes it.

        Returns:
            For each board the ``Path`` of the file here; of a folder, a list of them.
        """
        return await downloads.download(self, path, Path(folder), progress)

    async def read(self: HasTarget, path: str) -> Results:
        """Return what a file holds: each board's value is its ``bytes``."""
        return await downloads.read_file(self, path)

    async def sync(
        self: HasTarget,
        folder: PathLike,
        dest: str = ":/",
        *,
        delete: bool = False,
        dry_run: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Results:
        """Make a folder on the boards equal to one here; only what differs travels.

        ``.mbmignore`` in the folder names what stays out, as ``.gitignore`` would; with
        ``delete`` that is left on the boards, too, and all that Cloudmanager lives on.

        Args:
            folder: the folder here; links out of it are not followed.
            dest: the folder on the boards.
            delete: whether files go that are not here.
            dry_run: only find out what would be done.
            progress: as ``put`` takes it.

        Returns:
            For each board a ``Plan``: put, delete, same, size_bytes.

        Raises:
            OSError: a file here cannot be read.
        """
        return await syncing.sync(self, Path(folder), dest, delete, dry_run, progress)


def _of_first_result(read: Callable[[Any], Any]) -> Callable[[list[Any]], Any]:
    return lambda answers: read(answers[0])


def _no_value(_: list[Any]) -> None:
    """Return nothing: that it went well is all there is to say."""
