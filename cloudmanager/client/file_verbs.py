"""The verbs for boards' files; paths on boards begin with ``:``."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from cloudmanager.protocol.file_ops import FileOp
from cloudmanager.protocol.run_options import WaitKeywords
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Results

from . import (
    board_copies,
    board_globs,
    board_paths,
    checksums,
    downloads,
    files,
    moves,
    sources,
    syncing,
    uploads,
)
from .file_jobs import (
    add_errors,
    as_file_results,
    group_equal_plans,
    run_file_ops,
    run_file_ops_in_batches,
)
from .keywords import wait_keywords
from .progress import ProgressCallback
from .settings_jobs import run_settings_jobs
from .several_paths import BoardPaths, SomeBoards, run_for_paths
from .sources import PathLike, UploadOrigin
from .verb import HasTarget, verb
from .waiting import wait_options


class FileVerbs(HasTarget):
    """Operations on the files of a target's boards.

    Each verb returns ``Results``. A board's failure is in its Result and is not raised; errors of
    the board's file system are of the ``OSError`` family.
    """

    @verb
    async def ls(
        self, path: BoardPaths = ":/", *, recursive: bool = False, glob: bool = False
    ) -> Results:
        """List a folder, or several; each value is a list of ``Entry`` (path, is_dir, size).

        With ``glob``, a path may be a pattern, such as ``:logs/*.csv``; what matches is listed.
        """

        async def list_path(boards: HasTarget, each: str) -> Results:
            if glob and board_globs.has_pattern(each):
                return await board_globs.find(boards, each, recursive=recursive)
            return await _list_folder(boards, each, recursive=recursive)

        return await run_for_paths(self, path, list_path, _joined_lists)

    @verb
    async def tree(self, path: BoardPaths = ":/") -> Results:
        """Return folders with all that is in them; each board's value is a list of ``FolderTree``.

        Shown as text, that is a tree as mpremote draws it.
        """

        async def list_tree(boards: HasTarget, each: str) -> Results:
            found = await _list_folder(boards, each, recursive=True)
            top = board_paths.parse_board_path(each)
            trees = {
                name: result.with_value([files.FolderTree(top, result.value)])
                if result.ok
                else result
                for name, result in as_file_results(found).items()
            }
            return Results(trees, found.left_out)

        return await run_for_paths(self, path, list_tree, _joined_lists)

    @verb
    async def stat(self, path: str) -> Results:
        """Return facts about a path; each board's value is a ``Stat`` (is_dir, size, mtime)."""
        return await run_file_ops(
            self,
            [["stat", board_paths.parse_board_path(path)]],
            make_value=_of_first_result(files.read_stat),
        )

    @verb
    async def settings(self) -> Results:
        """Return ``:settings.json``, a file for the settings of one's own programs.

        Each board's value is a dict; where it has a secret, ``{"secret": name}``. Of a file that is
        no JSON object it is the text.
        """
        return await run_settings_jobs(self, None)

    @verb
    @wait_keywords
    async def change_settings(
        self, changes: Mapping[str, Any], **options: Unpack[WaitKeywords]
    ) -> Results:
        """Change keys of ``:settings.json``; the others stay as they are on each board.

        A value ``{"secret": name}``, also inside of other objects, is replaced by the secret on its
        way to the board, by the server; secrets that the board had before get their present values.
        Each board's value is a dict of all settings then, with the references. With
        ``when_online``, each board gets the secrets as they are when its job starts.

        Args:
            changes: key -> value of JSON.
            options: see ``RunOptions``.

        Raises:
            ValueError: JSON has no such value; nothing was sent.
        """
        return await run_settings_jobs(self, changes, wait_options(options))

    @verb
    async def df(self, path: str = ":/") -> Results:
        """Return the size of a file system; each value is a ``Space`` (total, used, free bytes)."""
        return await run_file_ops(
            self,
            [["statvfs", board_paths.parse_board_path(path)]],
            make_value=_of_first_result(files.read_space),
        )

    @verb
    async def mkdir(self, path: BoardPaths, *, parents: bool = False) -> Results:
        """Make a folder, or several; with ``parents``, missing parents too, and it may exist."""
        name = "makedirs" if parents else "mkdir"

        async def make_folder(boards: HasTarget, each: str) -> Results:
            op = [name, board_paths.parse_board_path(each)]
            return await run_file_ops(boards, [op], make_value=_no_value)

        return await run_for_paths(self, path, make_folder, _no_value)

    @verb
    async def rmdir(self, path: BoardPaths) -> Results:
        """Remove an empty folder, or several."""

        async def remove_folder(boards: HasTarget, each: str) -> Results:
            each = board_paths.parse_board_path(each)
            # With ls, which fails for a file: rmdir on littlefs would remove a file, too.
            ops: list[FileOp] = [["ls", each, False], ["rmdir", each]]
            return await run_file_ops(boards, ops, make_value=_no_value)

        return await run_for_paths(self, path, remove_folder, _no_value)

    @verb
    async def rm(
        self,
        path: BoardPaths,
        *,
        recursive: bool = False,
        glob: bool = False,
        missing_ok: bool = False,
    ) -> Results:
        """Remove a file, or several.

        Args:
            path: the file.
            recursive: whether it may be a folder, which is removed with its contents.
            glob: whether the path may be a pattern, such as ``:logs/*.csv``.
            missing_ok: whether a file may be missing.
        """

        async def remove(boards: HasTarget, each: str) -> Results:
            if glob and board_globs.has_pattern(each):
                removed = await _remove_matches(boards, each, recursive=recursive)
            else:
                op = ["rm", board_paths.parse_board_path(each), recursive]
                removed = await run_file_ops(boards, [op], make_value=_no_value)
            return _without_missing(removed) if missing_ok else removed

        return await run_for_paths(self, path, remove, _no_value)

    @verb
    async def touch(self, path: BoardPaths) -> Results:
        """Make an empty file, or several; a file that exists stays as it is."""

        async def touch_path(boards: HasTarget, each: str) -> Results:
            return await uploads.touch(boards, board_paths.parse_board_path(each))

        return await run_for_paths(self, path, touch_path, _no_value)

    @verb
    async def sha256sum(self, path: BoardPaths, *, glob: bool = False) -> Results:
        """Return the SHA-256 of a file, or of several; each value is a list of ``Checksum``.

        With ``glob``, a path may be a pattern, such as ``:*.py``. Boards compute it themselves.
        """

        async def hash_path(boards: HasTarget, each: str) -> Results:
            if glob and board_globs.has_pattern(each):
                return await _hash_matches(boards, each)
            return await checksums.hash_files(boards, [board_paths.parse_board_path(each)])

        return await run_for_paths(self, path, hash_path, _joined_lists)

    @verb
    async def mv(self, path: str, to: str) -> Results:
        """Rename a file or folder on the boards; an existing file is replaced.

        If ``to`` is a folder, or ends in ``/``, the path keeps its name and moves into the folder.

        Raises:
            ValueError: it would be moved into itself, or ``to`` is a folder on some of the boards
                only; nothing was moved.
        """
        return await moves.move(self, path, to)

    @verb
    async def cp(
        self, path: BoardPaths, to: str, *, progress: ProgressCallback | None = None
    ) -> Results:
        """Copy a file or a folder, or several, to another place on the same board.

        The places are those of ``put``. The files pass through this computer.

        Args:
            path: what to copy; it may be a pattern, such as ``:*.py``.
            to: the place on the same board.
            progress: see ``put``.

        Returns:
            For each board, how many bytes were written, as ``put``.
        """
        return await board_copies.copy(self, path, to, progress)

    @verb
    @wait_keywords
    async def put(
        self,
        source: UploadOrigin | Sequence[PathLike],
        dest: str = ":/",
        *,
        progress: ProgressCallback | None = None,
        **options: Unpack[WaitKeywords],
    ) -> Results:
        """Copy files, folders or bytes to the boards; files that are equal there are not sent.

        The places are those of rsync, the same on all boards, whatever is there: a folder ``app``
        is copied to ``DEST/app``, the content of ``app/`` into ``DEST``. A single file is written
        as ``DEST``, or into ``DEST`` if that ends in ``/``. Missing folders are made. An
        interrupted upload resumes where it stopped. A file that cannot be read here, or that a
        board refuses, does not keep the other files from it.

        Args:
            source: a file, a folder, several of them, or the bytes of one file.
            dest: path on the boards, such as ``:lib/``.
            progress: called with a board, the bytes transferred for it and the total; see
                ``ProgressCallback``.
            options: see ``RunOptions``.

        Returns:
            For each board, how many bytes were written; its ``files`` says to how many files. With
            ``when_online``, results with the status ``waiting``: ``Fleet.job`` returns how they
            ended.

        Raises:
            OSError: a source does not exist, or the only one cannot be read; nothing was sent.
            ValueError: two files would be written to one path; nothing was sent.
        """
        return await uploads.upload(self, source, dest, progress, wait_options(options))

    @verb
    async def put_each(
        self,
        contents: Mapping[str, bytes],
        dest: str,
        *,
        progress: ProgressCallback | None = None,
    ) -> Results:
        """Write one file on several boards, with its own content on each.

        Args:
            contents: name of a board -> content of its file.
            dest: path of the file on the boards.
            progress: see ``put``.

        Returns:
            For each board, how many bytes were written.
        """
        path = board_paths.parse_board_path(dest)
        plans = {
            name: [uploads.UploadItem(sources.source_from_bytes(content), path)]
            for name, content in contents.items()
        }
        return await uploads.upload_per_board(self, plans, progress)

    @verb
    async def get(
        self,
        path: BoardPaths,
        folder: PathLike = ".",
        *,
        glob: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Results:
        """Copy a file or a folder from the boards; from several boards, into a folder per board.

        A file of one board is copied as ``cp`` does: to the name ``folder``, or into the folder
        ``folder`` if that exists or ends in ``/``. A folder ``:log`` is copied to ``folder/log``,
        the content of ``:log/`` into ``folder``. Several paths are copied into the folder
        ``folder``. Missing local folders are made.

        File names from boards are not trusted: a name that is not a plain file name is an error,
        and the other files are copied.

        Args:
            path: what to copy, such as ``:log.txt``; or several paths.
            folder: the local place.
            glob: whether the path may be a pattern, such as ``:*.log``; what matches is copied
                into the folder ``folder``.
            progress: see ``put``.

        Returns:
            For each board, the local ``Path`` of the file; for a folder, or several paths, a list
            of them.
        """
        dest = folder if isinstance(path, str) else f"{os.fspath(folder)}/"

        folder_per_board: bool | None = None  # the same for all paths, though a board may fail

        async def copy_path(boards: HasTarget, each: str) -> Results:
            nonlocal folder_per_board
            request = downloads.DownloadRequest(each, dest, "", folder_per_board)
            if glob and board_globs.has_pattern(each):
                results = await _download_matches(boards, request, progress)
            else:
                results = await downloads.download(boards, request, progress)
            if folder_per_board is None:
                folder_per_board = len(results) + len(results.left_out) > 1
            return results

        return await run_for_paths(self, path, copy_path, _joined_paths)

    @verb
    async def read(
        self, path: BoardPaths, *, glob: bool = False, progress: ProgressCallback | None = None
    ) -> Results:
        """Return the content of a file; each board's value is ``bytes``.

        Args:
            path: the file; or several, whose contents are joined.
            glob: whether the path may be a pattern, such as ``:*.log``; the contents of the files
                that match are joined.
            progress: see ``put``; the size is requested first.
        """

        async def read_path(boards: HasTarget, each: str) -> Results:
            if glob and board_globs.has_pattern(each):
                return await _read_matches(boards, each, progress)
            return await downloads.read_file(boards, each, progress)

        return await run_for_paths(self, path, read_path, b"".join)

    @verb
    @wait_keywords
    async def sync(
        self,
        folder: PathLike,
        dest: str = ":/",
        *,
        delete: bool = False,
        dry_run: bool = False,
        progress: ProgressCallback | None = None,
        **options: Unpack[WaitKeywords],
    ) -> Results:
        """Make a folder on the boards equal to a local one; only differences are sent.

        ``.mbmignore`` in the folder has patterns of files to ignore, in the syntax of
        ``.gitignore``. ``delete`` does not remove ignored files, nor those of the board's client;
        it deletes before it writes. A file is also replaced by a folder, and an empty folder by a
        file; a folder with content only with ``delete``.

        Args:
            folder: the local folder; symbolic links that lead out of it are not followed.
            dest: the folder on the boards.
            delete: whether to delete files on the boards that do not exist locally.
            dry_run: only compute the plan.
            progress: see ``put``.
            options: see ``RunOptions``.

        Returns:
            For each board, a ``SyncPlan``: put, delete, same, size_bytes. It has failed if a local
            file cannot be read; nothing was deleted then, and the other files were written.

        Raises:
            OSError: the folder does not exist.
            ValueError: the options exclude each other.
        """
        run_options = wait_options(options)
        if run_options.when_online and (delete or dry_run):
            raise ValueError("delete and dry_run look at the boards: they cannot wait for them.")
        local = sources.local_source(folder)
        request = syncing.SyncRequest(local, dest, delete, dry_run, run_options)
        return await syncing.sync(self, request, progress)


async def _list_folder(boards: HasTarget, path: str, *, recursive: bool) -> Results:
    """List a folder of each board."""
    return await run_file_ops(
        boards,
        [["ls", board_paths.parse_board_path(path), recursive]],
        make_value=_of_first_result(files.read_entries),
    )


async def _hash_matches(boards: HasTarget, pattern: str) -> Results:
    """Return the SHA-256 of what matches a pattern on each board."""
    found = await board_globs.find(boards, pattern)
    results = dict(found)
    for names, paths in group_equal_plans(_matches(found)):
        results.update(await checksums.hash_files(SomeBoards(boards, names), paths))
    return Results(results, found.left_out)


def _without_missing(removed: Results) -> Results:
    """Return results in which a missing file is no error."""
    results = {
        name: files.empty_result(name).with_value(None)
        if isinstance(result.error, FileNotFoundError)
        else result
        for name, result in removed.items()
    }
    return Results(results, removed.left_out)


async def _remove_matches(boards: HasTarget, pattern: str, *, recursive: bool) -> Results:
    """Remove what matches a pattern on each board; without ``recursive``, folders are errors."""
    found = await board_globs.find(boards, pattern)
    results = dict(found)
    entries = {name: tuple(result.value) for name, result in found.items() if result.ok}
    for names, matches in group_equal_plans(entries):
        removable = [entry.path for entry in matches if recursive or not entry.is_dir]
        folders = [entry.path for entry in matches if entry.is_dir and not recursive]
        ops: list[FileOp] = [["rm", path, recursive] for path in removable]
        part = found
        if ops:
            part = await run_file_ops_in_batches(boards, ops, target=fold_names(names))
        for name in names:
            errors = [
                IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), f"{name}:{path}")
                for path in folders
            ]
            removed = {name: as_file_results(part)[name].with_value(None)}
            results.update(add_errors(Results(removed), errors))
    return Results(results, found.left_out)


async def _read_matches(
    boards: HasTarget, pattern: str, progress: ProgressCallback | None
) -> Results:
    """Return the contents of the files that match a pattern on each board, joined."""

    async def read(some: HasTarget, path: str) -> Results:
        return await downloads.read_file(some, path, progress)

    found = await board_globs.find(boards, pattern)
    results = dict(found)
    for names, paths in group_equal_plans(_matches(found)):
        places = [board_paths.display_path(path) for path in paths]
        some = SomeBoards(boards, names)
        results.update(await run_for_paths(some, places, read, b"".join))
    return Results(results, found.left_out)


async def _download_matches(
    boards: HasTarget, request: downloads.DownloadRequest, progress: ProgressCallback | None
) -> Results:
    """Copy what matches a pattern from each board."""
    pattern = request.origin
    found = await board_globs.find(boards, pattern)
    if set(_matches(found).values()) == {(board_paths.parse_board_path(pattern),)}:
        return await downloads.download(boards, request, progress)  # it is a file's name
    many = request.folder_per_board
    if many is None:
        many = len(found) + len(found.left_out) > 1

    async def copy(some: HasTarget, path: str) -> Results:
        each = downloads.DownloadRequest(path, f"{request.dest}/", folder_per_board=many)
        return await downloads.download_from(some, each, progress)

    results = dict(found)
    for names, paths in group_equal_plans(_matches(found)):
        places = [board_paths.display_path(path) for path in paths]
        some = SomeBoards(boards, names)
        results.update(await run_for_paths(some, places, copy, _joined_paths))
    return Results(results, found.left_out)


def _matches(found: Results) -> dict[str, tuple[str, ...]]:
    """Return the paths that ``board_globs.find`` found on each board."""
    return {
        name: tuple(entry.path for entry in result.value)
        for name, result in found.items()
        if result.ok
    }


def _of_first_result(read: Callable[[Any], Any]) -> Callable[[list[Any]], Any]:
    return lambda op_results: read(op_results[0])


def _no_value(_: list[Any]) -> None:
    """Return None: the verb has no value."""


def _joined_lists(values: list[list[Any]]) -> list[Any]:
    return [each for value in values for each in value]


def _joined_paths(values: list[Path | list[Path]]) -> list[Path]:
    """Return the local paths of several downloads, of which each has one or a list."""
    return _joined_lists([value if isinstance(value, list) else [value] for value in values])
