"""Copies local files, and bytes, to boards; each content is uploaded to the server only once."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.file_ops import FileOp, is_essential, touches_starter
from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunOptions
from cloudmanager.protocol.text import fold_names, one_line
from cloudmanager.results.results import Result, Results

from . import board_paths, files, name_case, sources
from .file_jobs import (
    add_errors,
    as_file_results,
    group_equal_plans,
    is_refusal,
    join_errors,
    run_file_jobs,
    run_file_ops,
    split_batches,
    upload_content,
    without_inner,
)
from .files import FileJobGroup, FileResult
from .moves import is_folder, kind_op
from .progress import ProgressCallback
from .runner import gather
from .sources import ContentSource, PathLike, UploadOrigin
from .verb import HasTarget
from .waiting import submit_upload

#: What is run on boards if there is nothing to do, so that each of them has a result.
_NO_OPS: Final[Sequence[FileOp]] = (["stat", "/"],)


class UploadItem(NamedTuple):
    """One file to copy: its content, and its path on the boards."""

    source: ContentSource
    path: str


class UploadPlan(NamedTuple):
    """What to copy.

    Attributes:
        items: the files.
        folders: paths on the boards of folders without a file.
        unreadable: errors of local files and folders that cannot be read.
        unsendable: errors of local files and folders whose name no board can have.
        notes: remarks for the user on links that are left out, each a sentence.
    """

    items: list[UploadItem]
    folders: list[str]
    unreadable: list[OSError]
    unsendable: list[OSError]
    notes: list[str]

    @classmethod
    def empty(cls) -> UploadPlan:
        """Return a plan without anything."""
        return cls([], [], [], [], [])

    def with_items(self, items: Sequence[UploadItem]) -> UploadPlan:
        """Return a copy with other files."""
        return self._replace(items=list(items))


async def upload(
    boards: HasTarget,
    source: UploadOrigin | Sequence[PathLike],
    dest: str,
    progress: ProgressCallback | None,
    options: RunOptions = DEFAULT_OPTIONS,
) -> Results:
    """Copy files to the boards: see ``FileVerbs.put``."""
    dest_path = board_paths.parse_board_path(dest)
    if not board_paths.is_sendable(dest_path):
        raise ValueError(f"{one_line(dest)} is not UTF-8 text: no file can be written there")
    is_folder = dest == ":" or dest.endswith("/")
    if isinstance(source, bytes):
        if is_folder:
            raise ValueError(f"bytes need a file name after {dest}")
        item = UploadItem(sources.source_from_bytes(source), dest_path)
        if options.when_online:
            return await upload_when_online(boards, UploadPlan.empty().with_items([item]), options)
        return _explain_folders(await upload_items(boards, boards.target, [item], progress), dest)
    if isinstance(source, str | os.PathLike):
        origins = [source]
    else:
        origins = list(source)
        is_folder = True
    plan = _make_plan(origins, dest_path, is_folder=is_folder)
    errors = [*plan.unreadable, *plan.unsendable]
    if errors and not plan.items and not plan.folders:
        raise join_errors(errors)
    if options.when_online:
        return await upload_when_online(boards, plan, options)
    results = await _upload_plan(boards, plan, progress)
    results = add_errors(_add_notes(results, plan.notes), errors)
    return results if is_folder else _explain_folders(results, dest)


async def _upload_plan(
    boards: HasTarget, plan: UploadPlan, progress: ProgressCallback | None
) -> Results:
    """Copy what a plan contains, but nothing to boards that cannot have all of its names."""
    refused, target = await name_case.check_names(
        boards, [item.path for item in plan.items], plan.folders
    )
    if not target:
        return refused
    results = await upload_items(boards, target, plan.items, progress, plan.folders)
    return Results({**refused, **results}, refused.left_out or results.left_out)


async def upload_when_online(boards: HasTarget, plan: UploadPlan, options: RunOptions) -> Results:
    """Let the server copy what a plan contains to each board when that is there.

    Raises:
        ValueError: two names differ in case only: nobody can ask the boards whether that matters.
    """
    pairs = name_case.find_same_names([item.path for item in plan.items], plan.folders)
    if pairs:
        path, other = pairs[0]
        raise ValueError(f":{path} and :{other} may be one file on a board; nothing waits")
    for item in plan.items:
        await upload_content(boards.exchange(), item.source)
    ops = [op for op in _upload_ops(plan.items) if op[0] != "hash"]
    ops += [["makedirs", path] for path in plan.folders]
    if not ops:
        raise ValueError("there is nothing to copy")
    results = await submit_upload(boards, ops, options)
    return add_errors(results, [*plan.unreadable, *plan.unsendable])


def _add_notes(results: Results, notes: Sequence[str]) -> Results:
    """Add remarks to what was written on each board."""
    noted = as_file_results(results)
    for name, result in noted.items() if notes else ():
        if result.ok:
            noted[name] = result.with_value(result.value.with_notes(notes))
    return Results(noted, results.left_out)


def _explain_folders(results: Results, dest: str) -> Results:
    """Add to the errors of boards where the file ``dest`` is a folder how to copy into that."""
    path = board_paths.parse_board_path(dest)
    explained = dict(results)
    for name, result in results.items():
        error = result.error
        if isinstance(error, IsADirectoryError) and error.filename == f"{name}:{path}":
            why = f"Is a directory; {dest}/ is the place for a file in it"
            explained[name] = files.failed_result(
                name, IsADirectoryError(error.errno, why, error.filename)
            )
    return Results(explained, results.left_out)


def _make_plan(origins: Sequence[PathLike], dest_path: str, *, is_folder: bool) -> UploadPlan:
    """Return what to copy, by rsync's rules: a folder keeps its name, unless it ends in a slash.

    Raises:
        OSError: an origin does not exist.
        ValueError: two files would be written to one path.
    """
    plan = UploadPlan.empty()
    origin_by_path: dict[str, PathLike] = {}
    for origin in origins:
        local = sources.local_source(origin)
        name = os.path.basename(os.fspath(origin).replace(os.sep, "/"))  # noqa: PTH119  # "" after /
        is_content = name in ("", ".", "..")
        first_new = len(plan.items)
        local.stat()
        if local.is_dir():
            base = dest_path if is_content else board_paths.join_path(dest_path, name)
            entries = sources.walk(
                local, on_error=plan.unreadable.append, on_link=plan.notes.append
            )
            add_folder(plan, entries, base)
        elif is_content:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(origin))
        else:
            path = board_paths.join_path(dest_path, name) if is_folder else dest_path
            _add_file(plan, local, path)
        for item in plan.items[first_new:]:
            other = origin_by_path.setdefault(item.path, origin)
            if other is not origin:
                raise ValueError(f"{other} and {origin} would both be written to :{item.path}")
    return plan


def add_folder(plan: UploadPlan, entries: Iterable[sources.LocalEntry], base: str) -> None:
    """Add what is in a local folder, so that it is in the folder ``base`` on the boards."""
    empty_folders = {base: True}  # path on the boards -> whether nothing is in it
    for inner, path, is_dir in entries:
        place = board_paths.join_path(base, str(inner))
        parent = place.rpartition("/")[0] or "/"
        empty_folders[parent] = False
        if not is_dir:
            _add_file(plan, path, place)
        elif _is_sendable(plan, path, place):
            empty_folders.setdefault(place, True)
    plan.folders.extend(
        path for path, is_empty in empty_folders.items() if is_empty and path != "/"
    )


def _add_file(plan: UploadPlan, local: Path, path: str) -> None:
    if not _is_sendable(plan, local, path):
        return
    try:
        plan.items.append(UploadItem(sources.source_from_file(local), path))
    except OSError as error:
        plan.unreadable.append(error)


def _is_sendable(plan: UploadPlan, local: Path, path: str) -> bool:
    """Return whether boards can have a path; if not, add an error to the plan."""
    name = one_line(os.fspath(local))
    if not board_paths.is_sendable(path):
        why = OSError(errno.EILSEQ, "not sent: the name is not UTF-8 text", name)
    elif len(path.encode()) > board_paths.MAX_PATH_BYTES:
        why = OSError(errno.ENAMETOOLONG, "not sent: its path on the boards is too long", name)
    elif is_essential(path):
        why = PermissionError(errno.EPERM, f"not sent: :{path} belongs to the board's client", name)
    else:
        return True
    plan.unsendable.append(why)
    return False


async def upload_per_board(
    boards: HasTarget,
    plans: dict[str, list[UploadItem]],
    progress: ProgressCallback | None,
    left_out: tuple[str, ...] = (),
) -> Results:
    """Copy to each board its own files; boards with equal files share one job."""
    parts = await gather(
        *(
            upload_items(boards, fold_names(names), items, progress)
            for names, items in group_equal_plans(plans)
        )
    )
    merged = {name: result for part in parts for name, result in part.items()}
    return Results({name: merged[name] for name in plans if name in merged}, left_out)


async def upload_items(
    boards: HasTarget,
    target: str,
    items: Sequence[UploadItem],
    progress: ProgressCallback | None,
    folders: Sequence[str] = (),
) -> Results:
    """Copy files to all boards of a target, and make folders, in as many jobs as needed.

    A file that a board refuses does not keep the board's other files from it.
    """
    uploader = _Uploader(boards, items, progress)
    ops = [*_upload_ops(items), *_folder_ops(folders)]
    for batch in split_batches(ops or _NO_OPS):
        names = await uploader.run(target, batch)
        if not names:
            break
        target = fold_names(names)
    return add_errors(uploader.results(), list(uploader.local_errors.values()))


async def touch(boards: HasTarget, path: str) -> Results:
    """Make an empty file where there is none: see ``FileVerbs.touch``."""
    looked = await run_file_ops(boards, [kind_op(path)])
    empty = sources.source_from_bytes(b"")
    await upload_content(boards.exchange(), empty)
    results: dict[str, Result] = {}
    missing = []
    for name, result in as_file_results(looked).items():
        if not result.ok:
            results[name] = result
        elif is_folder(result.value[0]):
            error = IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), f"{name}:{path}")
            results[name] = files.failed_result(name, error)
        else:
            results[name] = result.with_value(None)
            missing += [name] if result.op_results[0] is None else []
    if missing:
        op = ["put", path, empty.digest]
        made = await run_file_ops(boards, [op], target=fold_names(missing))
        results |= {name: each.with_value(None) for name, each in as_file_results(made).items()}
    return Results(results, looked.left_out)


def _upload_ops(items: Sequence[UploadItem]) -> list[FileOp]:
    """Return the operations that make the folders and write the files."""
    ops: list[FileOp] = []
    existing_folders = {"/", ""}
    for item in items:
        folder = item.path.rpartition("/")[0]
        if folder not in existing_folders:
            existing_folders.add(folder)
            ops.append(["makedirs", folder])
        if not item.source.size:  # the number of bytes does not tell whether it was written
            ops.append(["hash", item.path, 0])
        ops.append(["put", item.path, item.source.digest])
    return ops


def _folder_ops(folders: Sequence[str]) -> list[FileOp]:
    """Return the operations that make folders; the first of each tells whether it exists."""
    return [op for path in folders for op in (kind_op(path), ["makedirs", path])]


class WrittenBytes(int):
    """How many bytes were written.

    Attributes:
        files: how many files were written; an empty file has no bytes.
        folders: how many folders without a file were made.
        notes: remarks for the user on local files that are left out, each a sentence.
    """

    files: int = 0
    folders: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, size: int, files: int, folders: int = 0) -> WrittenBytes:
        """Return this number of bytes, written to this number of files."""
        written = cls(size)
        written.files = files
        written.folders = folders
        return written

    def plus(self, other: WrittenBytes) -> WrittenBytes:
        """Return what was written in two jobs."""
        return WrittenBytes.of(self + other, self.files + other.files, self.folders + other.folders)

    def with_notes(self, notes: Sequence[str]) -> WrittenBytes:
        """Return a copy with remarks."""
        noted = WrittenBytes.of(self, self.files, self.folders)
        noted.notes = tuple(notes)
        return noted


def _count_written(
    ops: Sequence[FileOp], op_results: Sequence[Any], found: dict[str, Any]
) -> WrittenBytes:
    """Return what the results of a job say was written.

    Args:
        ops: the operations.
        op_results: their results.
        found: path -> the result of an earlier ``hash``, which tells what was there; it is updated.
    """
    size = files_written = folders_made = 0
    for op, op_result in zip(ops, op_results, strict=True):
        name, path = op[:2]
        if name == "hash":
            found[path] = op_result
        elif name == "put":
            size += op_result
            is_new = path in found and found[path] != sources.EMPTY_DIGEST
            files_written += bool(op_result) or is_new
        elif name == "makedirs":
            folders_made += path in found and found[path] is None
    return WrittenBytes.of(size, files_written, folders_made)


class _Uploader:
    """Runs the jobs of an upload and combines their results: one per board, with all its bytes.

    Attributes:
        local_errors: digest of a content that could not be uploaded to the server -> the reason.
    """

    def __init__(
        self, boards: HasTarget, items: Sequence[UploadItem], progress: ProgressCallback | None
    ) -> None:
        self._boards = boards
        self._by_digest = {item.source.digest: item.source for item in items}
        self._total = sum(item.source.size for item in items)
        self._progress = progress
        self.local_errors: dict[str, OSError] = {}
        self._left_out: tuple[str, ...] | None = None
        self._last_results: dict[str, FileResult] = {}
        self._written: dict[str, WrittenBytes] = {}
        self._found: dict[str, dict[str, Any]] = {}
        self._seconds: dict[str, float] = {}
        self._refusals: dict[str, list[OSError]] = {}

    async def run(self, target: str, ops: Sequence[FileOp]) -> list[str]:
        """Run operations on boards; return the boards that can go on.

        Where an operation fails, each of them is run alone. Files that cannot be read any more, or
        that the server refuses, are left out. What some boards refuse as a whole, a file for
        ``/main.py``, is a job of its own.
        """
        alone = [op for op in ops if touches_starter(op)]
        if alone and len(ops) > 1:
            names = await self.run(target, [op for op in ops if op not in alone])
            for op in alone:
                if names:
                    names = await self.run(fold_names(names), [op])
            return names
        ops = [op for op in ops if op[0] != "put" or await self._upload_content(op[2])]
        group = FileJobGroup(ops or _NO_OPS, on_moved=self._on_moved)
        results = _name_refused(await run_file_jobs(self._boards, group, target), ops)
        if self._left_out is None:
            self._left_out = results.left_out
        going_on = [name for name, result in results.items() if result.ok]
        refusing = [name for name, result in results.items() if is_refusal(result.error)]
        is_single = len(ops) <= 1
        for board, result in as_file_results(results).items():
            if is_single or board not in refusing:
                self._add(result, ops)
        if not is_single:
            for op in ops:
                if refusing:
                    refusing = await self.run(fold_names(refusing), [op])
        return going_on + refusing

    async def _upload_content(self, digest: str) -> bool:
        """Upload a content to the server, unless it has it; return whether it has it now."""
        if digest in self.local_errors:
            return False
        source = self._by_digest[digest]
        try:
            await upload_content(self._boards.exchange(), source)
        except (OSError, ServerError) as error:
            if isinstance(source.origin, bytes):
                raise
            why = error.reason if isinstance(error, ServerError) else error.strerror
            number = getattr(error, "errno", None) or errno.EIO
            name = one_line(os.fspath(source.origin))
            self.local_errors[digest] = OSError(number, f"not sent: {why}", name)
        return digest not in self.local_errors

    def _on_moved(self, board: str, moved: int) -> None:
        """Report progress: the bytes that a board's present job has transferred."""
        if self._progress is not None:
            self._progress(board, self._written.get(board, 0) + moved, self._total)

    def _add(self, result: FileResult, ops: Sequence[FileOp]) -> None:
        board = result.board
        self._seconds[board] = self._seconds.get(board, 0.0) + result.elapsed
        self._last_results[board] = result
        error = result.error
        if isinstance(error, OSError) and is_refusal(error):
            self._refusals.setdefault(board, []).append(error)
        elif result.ok:
            found = self._found.setdefault(board, {})
            written = _count_written(ops, result.op_results[: len(ops)], found)
            self._written[board] = self._written.get(board, WrittenBytes()).plus(written)

    def results(self) -> Results:
        """Return the combined result of each board."""
        combined: dict[str, Result] = {}
        for board, result in self._last_results.items():
            outcome = result
            if board in self._refusals and (result.ok or is_refusal(result.error)):
                errors = without_inner(self._refusals[board])
                outcome = files.failed_result(board, join_errors(errors))
            combined[board] = outcome.with_value(
                self._written.get(board, WrittenBytes()), self._seconds[board] - outcome.elapsed
            )
        return Results(combined, self._left_out or ())


def _name_refused(results: Results, ops: Sequence[FileOp]) -> Results:
    """Return results in which a board's refusal of a path as its client's is an OSError."""
    if len(ops) != 1 or not touches_starter(ops[0]):
        return results
    named = dict(results)
    for name, result in results.items():
        if result.status == "error" and result.why:
            error = PermissionError(errno.EPERM, result.why, f"{name}:{ops[0][1]}")
            named[name] = files.failed_result(name, error)
    return Results(named, results.left_out)
