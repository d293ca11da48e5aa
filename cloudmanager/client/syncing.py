"""Compares a local folder with one on each board, and makes the boards' folders equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol.file_ops import STARTER_PATHS, FileOp, belongs_to_client
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from . import board_paths, files, sources
from .file_jobs import (
    as_file_results,
    group_equal_plans,
    run_file_ops,
    run_file_ops_in_batches,
)
from .files import Entry
from .progress import ProgressCallback
from .runner import gather
from .text_files import read_text
from .uploads import UploadItem, upload_items
from .verb import HasTarget

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE: Final = ".mbmignore"
#: Patterns that are ignored in addition to those in ``.mbmignore``.
ALWAYS_IGNORED: Final = (
    IGNORE_FILE,
    ".git/",
    ".ipynb_checkpoints/",
    "__pycache__/",
    "*.pyc",
    "*.mbm-part",
)


class SyncPlan(NamedTuple):
    """The changes that make a board's folder equal to the local one.

    Attributes:
        put: paths on the board to write.
        delete: paths on the board to delete; folders end in ``/``.
        same: how many files are equal already.
        size_bytes: how many bytes to write.
    """

    put: tuple[str, ...]
    delete: tuple[str, ...]
    same: int
    size_bytes: int


class SyncRequest(NamedTuple):
    """What to make equal, and how; see ``FileVerbs.sync``."""

    folder: Path
    dest: str
    delete: bool
    dry_run: bool


async def sync(
    boards: HasTarget, request: SyncRequest, progress: ProgressCallback | None
) -> Results:
    """Make a folder on the boards equal to a local one: see ``FileVerbs.sync``."""
    folder = request.folder
    base = board_paths.parse_board_path(request.dest)
    ignored = read_ignore_file(folder)
    items = [
        UploadItem(sources.source_from_file(path), board_paths.join_path(base, str(inner)))
        for inner, path in sources.walk_files(folder)
        if not ignored.match_file(str(inner))
    ]
    hash_ops: list[FileOp] = [["hash", item.path, item.source.size] for item in items]
    hashes = await run_file_ops_in_batches(boards, hash_ops or [["stat", "/"]])
    results = as_file_results(hashes)
    extra = await _find_extra_paths(boards, hashes, base, items, ignored) if request.delete else {}
    plans = {
        name: _make_plan(items, result.value, extra.get(name, ()))
        for name, result in hashes.items()
        if result.ok
    }
    if not request.dry_run:
        results.update(as_file_results(await _apply_plans(boards, plans, items, progress)))
    done = {
        name: result.with_value(plans[name]) if result.ok else result
        for name, result in results.items()
    }
    return Results(done, hashes.left_out)


def read_ignore_file(folder: Path) -> GitIgnoreSpec:
    """Return the patterns of the paths in a folder that are not copied.

    Raises:
        OSError, ValueError: ``.mbmignore`` cannot be read.
    """
    from pathspec import GitIgnoreSpec  # takes 20 ms to import

    file = folder / IGNORE_FILE
    lines = read_text(file).split("\n") if file.exists() else []
    return GitIgnoreSpec.from_lines([*lines, *ALWAYS_IGNORED])


def _make_plan(
    items: Sequence[UploadItem], hashes: Sequence[Any], extra: Sequence[str]
) -> SyncPlan:
    needed = [
        item for item, digest in zip(items, hashes, strict=False) if digest != item.source.digest
    ]
    return SyncPlan(
        tuple(item.path for item in needed),
        tuple(extra),
        len(items) - len(needed),
        sum(item.source.size for item in needed),
    )


async def _find_extra_paths(
    boards: HasTarget,
    hash_results: Results,
    base: str,
    items: Sequence[UploadItem],
    ignored: GitIgnoreSpec,
) -> dict[str, tuple[str, ...]]:
    """Return the paths on each board that do not exist locally; contents before their folder."""
    reachable = [name for name, result in hash_results.items() if result.ok]
    lists = Results({})
    if reachable:
        lists = await run_file_ops(boards, [["ls", base, True]], target=fold_names(reachable))
    wanted = {item.path for item in items}
    return {
        name: _unwanted_paths(files.read_entries(result.value[0]), base, wanted, ignored)
        for name, result in lists.items()
        if result.ok  # else the folder does not exist yet
    }


def _unwanted_paths(
    entries: Sequence[Entry], base: str, kept_paths: set[str], ignored: GitIgnoreSpec
) -> tuple[str, ...]:
    """Return the paths to delete, folders with a final ``/``; files first, deep folders first."""
    has_client = any(belongs_to_client(entry.path) for entry in entries)

    def is_kept(entry: Entry) -> bool:
        inner = entry.path.removeprefix(base).lstrip("/") + ("/" if entry.is_dir else "")
        is_starter = has_client and entry.path.lower() in STARTER_PATHS
        return is_starter or belongs_to_client(entry.path) or ignored.match_file(inner)

    kept = kept_paths | {entry.path for entry in entries if is_kept(entry)}
    unwanted = [
        entry
        for entry in entries
        if entry.path not in kept and not any(path.startswith(entry.path + "/") for path in kept)
    ]
    unwanted.sort(key=lambda entry: (entry.is_dir, -entry.path.count("/"), entry.path))
    return tuple(entry.path + "/" * entry.is_dir for entry in unwanted)


async def _apply_plans(
    boards: HasTarget,
    plans: Mapping[str, SyncPlan],
    items: Sequence[UploadItem],
    progress: ProgressCallback | None,
) -> dict[str, Result]:
    """Carry out the plans, one group of boards with equal plans at a time in parallel."""
    groups = [
        _apply_plan(boards, fold_names(names), plan, items, progress)
        for names, plan in group_equal_plans(plans)
        if plan.put or plan.delete
    ]
    return {name: each for part in await gather(*groups) for name, each in part.items()}


async def _apply_plan(
    boards: HasTarget,
    target: str,
    plan: SyncPlan,
    items: Sequence[UploadItem],
    progress: ProgressCallback | None,
) -> Results:
    results: Results | None = None
    if plan.put:
        needed = [item for item in items if item.path in plan.put]
        results = await upload_items(boards, target, needed, progress)
        target = fold_names([name for name, result in results.items() if result.ok])
    if not plan.delete or not target:
        return results or Results({})
    delete_ops: list[FileOp] = [
        ["rmdir", path.rstrip("/")] if path.endswith("/") else ["rm", path, False]
        for path in plan.delete
    ]
    return Results(
        {**(results or {}), **await run_file_ops_in_batches(boards, delete_ops, target=target)}
    )
