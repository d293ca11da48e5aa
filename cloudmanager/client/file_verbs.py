"""The verbs for boards' files, as coroutines (see ``verbs``); paths on boards begin with ``:``."""

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
    """Operations on the files of a target's boards.

    Each verb returns ``Results``. A board's failure is in its Result and is not raised; errors of
    the board's file system are of the ``OSError`` family.
    """

    async def ls(self: HasTarget, path: str = ":/", *, recursive: bool = False) -> Results:
        """List a folder; each board's value is a list of ``Entry`` (path, is_dir, size)."""
        return await run_file_ops(
            self,
            [["ls", board_paths.parse_board_path(path), recursive]],
            make_value=_of_first_result(files.read_entries),
        )

    async def stat(self: HasTarget, path: str) -> Results:
        """Return facts about a path; each board's value is a ``Stat`` (is_dir, size, mtime)."""
        return await run_file_ops(
            self,
            [["stat", board_paths.parse_board_path(path)]],
            make_value=_of_first_result(files.read_stat),
        )

    async def df(self: HasTarget, path: str = ":/") -> Results:
        """Return the size of a file system; each value is a ``Space`` (total, used, free bytes)."""
        return await run_file_ops(
            self,
            [["statvfs", board_paths.parse_board_path(path)]],
            make_value=_of_first_result(files.read_space),
        )

    async def mkdir(self: HasTarget, path: str, *, parents: bool = False) -> Results:
        """Make a folder; with ``parents``, missing parents too, and the folder may exist."""
        name = "makedirs" if parents else "mkdir"
        return await run_file_ops(
            self, [[name, board_paths.parse_board_path(path)]], make_value=_no_value
        )

    async def rmdir(self: HasTarget, path: str) -> Results:
        """Remove an empty folder."""
        path = board_paths.parse_board_path(path)
        # With ls, which fails for a file: rmdir on littlefs would remove a file, too.
        return await run_file_ops(
            self, [["ls", path, False], ["rmdir", path]], make_value=_no_value
        )

    async def rm(self: HasTarget, path: str, *, recursive: bool = False) -> Results:
        """Remove a file; with ``recursive``, a folder with its contents."""
        return await run_file_ops(
            self, [["rm", board_paths.parse_board_path(path), recursive]], make_value=_no_value
        )

    async def mv(self: HasTarget, path: str, to: str) -> Results:
        """Rename a file or folder on the boards."""
        ops = [["rename", board_paths.parse_board_path(path), board_paths.parse_board_path(to)]]
        return await run_file_ops(self, ops, make_value=_no_value)

    async def put(
        self: HasTarget,
        source: UploadOrigin | Sequence[PathLike],
        dest: str = ":/",
        *,
        progress: ProgressCallback | None = None,
    ) -> Results:
        """Copy files, folders or bytes to the boards; files that are equal there are not sent.

        If ``dest`` ends in ``/`` or is an existing folder, the files are put into it under their
        own names. Missing folders are made. An interrupted upload resumes where it stopped.

        Args:
            source: a file, a folder, several of them, or the bytes of one file.
            dest: path on the boards, such as ``:lib/``.
            progress: called with a board, the bytes transferred for it and the total; in the
                link's thread, so it must not call verbs of the fleet.

        Returns:
            For each board, how many bytes were written.

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
        """Copy a file or a folder from the boards; from several boards, into a folder per board.

        File names from boards are not trusted: a name that is not a plain file name is an error.

        Args:
            path: what to copy, such as ``:log.txt``.
            folder: the local folder; it is made if missing.
            progress: see ``put``.

        Returns:
            For each board, the local ``Path`` of the file; for a folder, a list of them.
        """
        return await downloads.download(self, path, Path(folder), progress)

    async def read(self: HasTarget, path: str) -> Results:
        """Return the content of a file; each board's value is ``bytes``."""
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
        """Make a folder on the boards equal to a local one; only differences are sent.

        ``.mbmignore`` in the folder has patterns of files to ignore, in the syntax of
        ``.gitignore``. ``delete`` does not remove ignored files, nor those of the board's client.

        Args:
            folder: the local folder; symbolic links that lead out of it are not followed.
            dest: the folder on the boards.
            delete: whether to delete files on the boards that do not exist locally.
            dry_run: only compute the plan.
            progress: see ``put``.

        Returns:
            For each board, a ``SyncPlan``: put, delete, same, size_bytes.

        Raises:
            OSError: a local file cannot be read.
        """
        return await syncing.sync(self, Path(folder), dest, delete, dry_run, progress)


def _of_first_result(read: Callable[[Any], Any]) -> Callable[[list[Any]], Any]:
    return lambda op_results: read(op_results[0])


def _no_value(_: list[Any]) -> None:
    """Return None: the verb has no value."""
