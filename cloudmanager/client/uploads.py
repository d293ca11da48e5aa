"""Copies local files, and bytes, to boards; each content is uploaded to the server only once."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cloudmanager.protocol.file_ops import FileOp
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from . import board_paths, sources
from .file_jobs import (
    as_file_results,
    group_equal_plans,
    run_file_ops,
    split_batches,
    upload_content,
)
from .files import FileResult
from .progress import ProgressCallback
from .runner import gather
from .sources import ContentSource, PathLike, UploadOrigin
from .verb import HasTarget


class UploadItem(NamedTuple):
    """One file to copy: its content, and its path on the boards."""

    source: ContentSource
    path: str


async def upload(
    boards: HasTarget,
    source: UploadOrigin | Sequence[PathLike],
    dest: str,
    progress: ProgressCallback | None,
) -> Results:
    """Copy files to the boards: see ``FileVerbs.put``."""
    dest_path = board_paths.parse_board_path(dest)
    is_folder = dest.endswith(("/", ":"))
    if isinstance(source, bytes):
        if is_folder:
            raise ValueError(f"bytes need a file name after {dest}")
        item = UploadItem(sources.source_from_bytes(source), dest_path)
        return await upload_items(boards, boards.target, [item], progress)
    if isinstance(source, str | os.PathLike):
        origins = [Path(source)]
    else:
        origins = [Path(each) for each in source]
        is_folder = True
    items_in_folder = _make_items(origins, dest_path, keep_origin_name=True)
    if not items_in_folder:  # only empty folders
        ops = [["makedirs", dest_path]]
        if is_folder:
            names = [origin.resolve().name for origin in origins]
            ops = [["makedirs", board_paths.join_path(dest_path, name)] for name in names]
        return await run_file_ops(boards, ops, make_value=_sum_written)
    if is_folder:
        return await upload_items(boards, boards.target, items_in_folder, progress)
    items = _make_items(origins, dest_path, keep_origin_name=False)
    if origins[0].is_dir():
        return await _upload_folder(boards, dest_path, items, items_in_folder, progress)
    return await _upload_file(boards, items, items_in_folder, progress)


async def _upload_file(
    boards: HasTarget,
    items: list[UploadItem],
    items_in_folder: list[UploadItem],
    progress: ProgressCallback | None,
) -> Results:
    """Copy a file; on boards where the destination is a folder, into that folder."""
    results = await upload_items(boards, boards.target, items, progress)
    folders = [name for name, result in results.items() if _is_folder(result)]
    if not folders:
        return results
    more = await upload_items(boards, fold_names(folders), items_in_folder, progress)
    return Results({**results, **more}, results.left_out)


def _is_folder(result: Result) -> bool:
    return isinstance(result.error, OSError) and result.error.errno == errno.EISDIR


async def _upload_folder(
    boards: HasTarget,
    dest_path: str,
    items: list[UploadItem],
    items_in_folder: list[UploadItem],
    progress: ProgressCallback | None,
) -> Results:
    """Copy a folder; on boards where the destination exists, into it, as ``cp -r`` does."""
    stats = await run_file_ops(boards, [["stat", dest_path]])
    plans = {name: items_in_folder if result.ok else items for name, result in stats.items()}
    return await upload_per_board(boards, plans, progress, stats.left_out)


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


def _make_items(origins: list[Path], dest_path: str, *, keep_origin_name: bool) -> list[UploadItem]:
    """Return the files of some local paths, each with its path on the board.

    With ``keep_origin_name``, the name of the origin is appended to ``dest_path``.
    """
    items = []
    for origin in origins:
        base = (
            board_paths.join_path(dest_path, origin.resolve().name)
            if keep_origin_name
            else dest_path
        )
        if origin.is_dir():
            items += [
                UploadItem(sources.source_from_file(path), board_paths.join_path(base, str(inner)))
                for inner, path in sources.walk_files(origin)
            ]
        else:
            items.append(UploadItem(sources.source_from_file(origin), base))
    return items


async def upload_items(
    boards: HasTarget, target: str, items: Sequence[UploadItem], progress: ProgressCallback | None
) -> Results:
    """Copy files to all boards of a target, in as many jobs as needed."""
    by_digest = {item.source.digest: item.source for item in items}
    totals = UploadTotals(sum(item.source.size for item in items), progress)
    left_out: tuple[str, ...] | None = None
    for batch in split_batches(_upload_ops(items)):
        for op in batch:
            if op[0] == "put":
                await upload_content(boards.exchange(), by_digest[op[2]])
        results = await run_file_ops(
            boards, batch, target=target, make_value=_sum_written, on_moved=totals.on_moved
        )
        left_out = results.left_out if left_out is None else left_out
        totals.add(results)
        succeeded = [name for name, result in results.items() if result.ok]
        if not succeeded:
            break
        target = fold_names(succeeded)
    return Results(totals.results(), left_out or ())


def _upload_ops(items: Sequence[UploadItem]) -> list[FileOp]:
    """Return the operations that make the folders and write the files."""
    ops: list[FileOp] = []
    existing_folders = {"/", ""}
    for item in items:
        folder = item.path.rpartition("/")[0]
        if folder not in existing_folders:
            existing_folders.add(folder)
            ops.append(["makedirs", folder])
        ops.append(["put", item.path, item.source.digest])
    return ops


def _sum_written(op_results: list[Any]) -> int:
    return sum(count for count in op_results if count is not None)


class UploadTotals:
    """Combines the results of successive jobs: one result per board, with the sum of its bytes."""

    def __init__(self, total: int, progress: ProgressCallback | None) -> None:
        self._total = total
        self._progress = progress
        self._last_results: dict[str, FileResult] = {}
        self._bytes_written: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    def on_moved(self, board: str, moved: int) -> None:
        """Report progress: the bytes that a board's present job has transferred."""
        if self._progress is not None:
            self._progress(board, self._bytes_written.get(board, 0) + moved, self._total)

    def add(self, results: Results) -> None:
        """Add the results of a job; their values are numbers of bytes."""
        for board, result in as_file_results(results).items():
            self._seconds[board] = self._seconds.get(board, 0.0) + result.elapsed
            self._last_results[board] = result
            if result.ok:
                self._bytes_written[board] = self._bytes_written.get(board, 0) + result.value

    def results(self) -> dict[str, Result]:
        """Return the combined result of each board."""
        return {
            board: result.with_value(
                self._bytes_written.get(board, 0), self._seconds[board] - result.elapsed
            )
            for board, result in self._last_results.items()
        }
