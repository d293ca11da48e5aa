"""A folder here and one on each board: what differs, and making it equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol.file_ops import CLIENT_PATHS, STARTER_BYTES, STARTER_PATH, FileOp
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from . import board_paths, files, sources
from .file_jobs import (
    ProgressCallback,
    as_file_results,
    gather,
    group_equal_plans,
    run_file_ops,
    run_file_ops_in_batches,
)
from .files import Entry
from .uploads import UploadItem, upload_items
from .verbs import HasTarget

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE: Final = ".mbmignore"
#: What nobody wants on a board, whatever ``.mbmignore`` says.
ALWAYS_IGNORED: Final = (
    IGNORE_FILE,
    ".git/",
    ".ipynb_checkpoints/",
    "__pycache__/",
    "*.pyc",
    "*.part",
)


class SyncPlan(NamedTuple):
    """What makes a board's folder equal.

    Attributes:
        put: paths on the board that get a content.
        delete: paths on the board that go.
        same: how many files are equal already.
        size_bytes: how much is to be put there.
    """

    put: tuple[str, ...]
    delete: tuple[str, ...]
    same: int
    size_bytes: int


async def sync(
    boards: HasTarget,
    folder: Path,
    dest: str,
    delete: bool,
    dry_run: bool,
    progress: ProgressCallback | None,
) -> Results:
    """Make a folder on the boards equal to one here: see ``FileVerbs.sync``."""
    base = board_paths.parse_board_path(dest)
    ignored = read_ignore_file(folder)
    items = [
        UploadItem(sources.source_from_file(path), board_paths.join_path(base, str(inner)))
        for inner, path in sources.walk_files(folder)
        if not ignored.match_file(str(inner))
    ]
    asked: list[FileOp] = [["hash", item.path, item.source.size] for item in items]
    told = await run_file_ops_in_batches(boards, asked or [["stat", "/"]])
    results = as_file_results(told)
    extra = await _find_extra_paths(boards, told, base, items, ignored) if delete else {}
    plans = {
        name: _make_plan(items, result.value, extra.get(name, ()))
        for name, result in told.items()
        if result.ok
    }
    if not dry_run:
        results.update(as_file_results(await _apply_plans(boards, plans, items, progress)))
    done = {
        name: result.with_value(plans[name]) if result.ok else result
        for name, result in results.items()
    }
    return Results(done, told.left_out)


def read_ignore_file(folder: Path) -> GitIgnoreSpec:
    """Return what says whether a path in the folder stays out.

    Raises:
        OSError: ``.mbmignore`` cannot be read.
    """
    from pathspec import GitIgnoreSpec  # takes 20 ms to import

    file = folder / IGNORE_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return GitIgnoreSpec.from_lines([*lines, *ALWAYS_IGNORED])


def _make_plan(
    items: Sequence[UploadItem], hashes: Sequence[Any], extra: Sequence[str]
) -> SyncPlan:
    needed = [
        item for item, there in zip(items, hashes, strict=False) if there != item.source.digest
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
    """Return what each board has that is not here, each folder after all that is in it."""
    well = [name for name, result in hash_results.items() if result.ok]
    lists = (
        await run_file_ops(boards, [["ls", base, True]], target=fold_names(well))
        if well
        else Results({})
    )
    wanted = {item.path for item in items}
    return {
        name: _unwanted_paths(files.read_entries(result.value[0]), base, wanted, ignored)
        for name, result in lists.items()
        if result.ok  # else there is no such folder yet
    }


def _unwanted_paths(
    entries: Sequence[Entry], base: str, kept_paths: set[str], ignored: GitIgnoreSpec
) -> tuple[str, ...]:
    def stays(entry: Entry) -> bool:
        inner = entry.path.removeprefix(base).lstrip("/") + ("/" if entry.is_dir else "")
        own = any(entry.path == each or entry.path.startswith(each + "/") for each in CLIENT_PATHS)
        starter = entry.path == STARTER_PATH and entry.size == STARTER_BYTES
        return own or starter or ignored.match_file(inner)

    kept = kept_paths | {entry.path for entry in entries if stays(entry)}
    gone = [
        entry
        for entry in entries
        if entry.path not in kept and not any(path.startswith(entry.path + "/") for path in kept)
    ]
    gone.sort(key=lambda entry: (entry.is_dir, -entry.path.count("/"), entry.path))
    return tuple(entry.path + "/" * entry.is_dir for entry in gone)


async def _apply_plans(
    boards: HasTarget,
    plans: Mapping[str, SyncPlan],
    items: Sequence[UploadItem],
    progress: ProgressCallback | None,
) -> dict[str, Result]:
    """Do what the plans say; boards with the same plan do it together."""
    works = [
        _apply_plan(boards, fold_names(names), plan, items, progress)
        for names, plan in group_equal_plans(plans)
        if plan.put or plan.delete
    ]
    return {name: each for part in await gather(*works) for name, each in part.items()}


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
    acts: list[FileOp] = [
        ["rmdir", path.rstrip("/")] if path.endswith("/") else ["rm", path, False]
        for path in plan.delete
    ]
    return Results(
        {**(results or {}), **await run_file_ops_in_batches(boards, acts, target=target)}
    )
