"""Files of this machine, and bytes, to boards: the content travels once, whatever their number."""

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
    ProgressCallback,
    as_file_results,
    gather,
    group_equal_plans,
    run_file_ops,
    split_batches,
    upload_content,
)
from .files import FileResult
from .sources import ContentSource, PathLike, UploadOrigin
from .verbs import HasTarget


class UploadItem(NamedTuple):
    """One file on its way: what it holds, and its path on the boards."""

    source: ContentSource
    path: str


async def upload(
    boards: HasTarget,
    source: UploadOrigin | Sequence[PathLike],
    dest: str,
    progress: ProgressCallback | None,
) -> Results:
    """Copy to the boards: see ``FileVerbs.put``."""
    place = board_paths.parse_board_path(dest)
    into = dest.endswith(("/", ":"))
    if isinstance(source, bytes):
        if into:
            raise ValueError(f"bytes need a file's name behind {dest}")
        return await upload_items(
            boards, boards.target, [UploadItem(sources.source_from_bytes(source), place)], progress
        )
    if isinstance(source, str | os.PathLike):
        origins = [Path(source)]
    else:
        origins, into = [Path(each) for each in source], True
    inside = _make_items(origins, place, keep_origin_name=True)
    if not inside:  # folders without a file
        acts = [["makedirs", board_paths.join_path(place, each.resolve().name)] for each in origins]
        return await run_file_ops(
            boards, acts if into else [["makedirs", place]], make_value=_sum_written
        )
    if into:
        return await upload_items(boards, boards.target, inside, progress)
    items = _make_items(origins, place, keep_origin_name=False)
    if origins[0].is_dir():
        return await _upload_folder(boards, place, items, inside, progress)
    return await _upload_file(boards, items, inside, progress)


async def _upload_file(
    boards: HasTarget,
    items: list[UploadItem],
    items_in_folder: list[UploadItem],
    progress: ProgressCallback | None,
) -> Results:
    """Put a file there; where a folder is there, into that."""
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
    """Put a folder there; where one is there already, into that, as ``cp -r`` does."""
    looks = await run_file_ops(boards, [["stat", dest_path]])
    plans = {name: items_in_folder if result.ok else items for name, result in looks.items()}
    return await upload_per_board(boards, plans, progress, looks.left_out)


async def upload_per_board(
    boards: HasTarget,
    plans: dict[str, list[UploadItem]],
    progress: ProgressCallback | None,
    left_out: tuple[str, ...] = (),
) -> Results:
    """Give each board its own files; boards that want the same get them together."""
    parts = await gather(
        *(
            upload_items(boards, fold_names(names), items, progress)
            for names, items in group_equal_plans(plans)
        )
    )
    merged = {name: result for part in parts for name, result in part.items()}
    return Results({name: merged[name] for name in plans if name in merged}, left_out)


def _make_items(origins: list[Path], dest_path: str, *, keep_origin_name: bool) -> list[UploadItem]:
    """Return the files of some origins, each with its path on the board.

    With ``keep_origin_name`` the path begins with the name of the origin.
    """
    found = []
    for origin in origins:
        base = (
            board_paths.join_path(dest_path, origin.resolve().name)
            if keep_origin_name
            else dest_path
        )
        if origin.is_dir():
            found += [
                UploadItem(sources.source_from_file(path), board_paths.join_path(base, str(inner)))
                for inner, path in sources.walk_files(origin)
            ]
        else:
            found.append(UploadItem(sources.source_from_file(origin), base))
    return found


async def upload_items(
    boards: HasTarget, target: str, items: Sequence[UploadItem], progress: ProgressCallback | None
) -> Results:
    """Bring files to all boards of a target, in as many jobs as their memory wants."""
    by_digest = {item.source.digest: item.source for item in items}
    tally = UploadTotals(sum(item.source.size for item in items), progress)
    left_out: tuple[str, ...] | None = None
    for batch in split_batches(_upload_ops(items)):
        for each in batch:
            if each[0] == "put":
                await upload_content(boards.exchange(), by_digest[each[2]])
        results = await run_file_ops(
            boards, batch, target=target, make_value=_sum_written, on_moved=tally.on_moved
        )
        left_out = results.left_out if left_out is None else left_out
        tally.add(results)
        if not (well := [name for name, result in results.items() if result.ok]):
            break
        target = fold_names(well)
    return Results(tally.results(), left_out or ())


def _upload_ops(items: Sequence[UploadItem]) -> list[FileOp]:
    acts: list[FileOp] = []
    made = {"/", ""}
    for item in items:
        folder = item.path.rpartition("/")[0]
        if folder not in made:
            made.add(folder)
            acts.append(["makedirs", folder])
        acts.append(["put", item.path, item.source.digest])
    return acts


def _sum_written(op_results: list[Any]) -> int:
    return sum(answer for answer in op_results if answer is not None)


class UploadTotals:
    """What came of several jobs in a row: one result for each board, and the sum of its bytes."""

    def __init__(self, total: int, progress: ProgressCallback | None) -> None:
        self._total = total
        self._progress = progress
        self._last_results: dict[str, FileResult] = {}
        self._bytes_written: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    def on_moved(self, board: str, moved: int) -> None:
        """Take a board's word on how far its present job is."""
        if self._progress is not None:
            self._progress(board, self._bytes_written.get(board, 0) + moved, self._total)

    def add(self, results: Results) -> None:
        """Take what came of a job; its value is how many bytes it moved."""
        for board, result in as_file_results(results).items():
            self._seconds[board] = self._seconds.get(board, 0.0) + result.elapsed
            self._last_results[board] = result
            if result.ok:
                self._bytes_written[board] = self._bytes_written.get(board, 0) + result.value

    def results(self) -> dict[str, Result]:
        """Return each board's one result."""
        return {
            board: result.with_value(
                self._bytes_written.get(board, 0), self._seconds[board] - result.elapsed
            )
            for board, result in self._last_results.items()
        }
