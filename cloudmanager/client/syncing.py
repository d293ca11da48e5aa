"""Compares a local folder with one on each board, and makes the boards' folders equal."""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol.file_ops import STARTER_PATHS, FileOp, belongs_to_client
from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunOptions
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from . import board_paths, files, name_case, sources
from .file_jobs import (
    add_errors,
    as_file_results,
    group_equal_plans,
    run_file_ops,
    run_file_ops_in_batches,
)
from .files import Entry
from .moves import is_file, is_folder, kind_op
from .progress import ProgressCallback
from .runner import gather
from .text_files import read_text
from .uploads import UploadItem, UploadPlan, add_folder, upload_items, upload_when_online
from .verb import HasTarget

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE: Final = ".mbmignore"
#: Patterns before those of ``.mbmignore``, which can undo them: ``!.env``.
DEFAULT_IGNORED: Final = (
    ".venv/",
    ".env",
    ".vscode/",
    ".idea/",
    ".DS_Store",
    "*~",
)
#: Patterns that are ignored in addition to those in ``.mbmignore``.
ALWAYS_IGNORED: Final = (
    IGNORE_FILE,
    ".git/",
    ".ipynb_checkpoints/",
    "__pycache__/",
    "*.pyc",
    "*.mbm-part",
)


_NOTHING_DELETED: Final = "nothing was deleted from the boards, since not all of it can be read"


class SyncPlan(NamedTuple):
    """The changes that make a board's folder equal to the local one.

    Attributes:
        put: paths on the board to write.
        delete: paths on the board to delete; folders end in ``/``.
        same: how many files are equal already.
        size_bytes: how many bytes to write.
        notes: remarks for the user on local files that are left out, each a sentence.
    """

    put: tuple[str, ...]
    delete: tuple[str, ...]
    same: int
    size_bytes: int
    notes: tuple[str, ...] = ()


class SyncDryRun(SyncPlan):
    """The plan of a dry run: nothing was changed."""


class SyncRequest(NamedTuple):
    """What to make equal, and how; see ``FileVerbs.sync``."""

    folder: Path
    dest: str
    delete: bool
    dry_run: bool
    options: RunOptions = DEFAULT_OPTIONS


async def sync(
    boards: HasTarget, request: SyncRequest, progress: ProgressCallback | None
) -> Results:
    """Make a folder on the boards equal to a local one: see ``FileVerbs.sync``."""
    folder = request.folder
    base = board_paths.parse_board_path(request.dest)
    folder.stat()
    ignored = read_ignore_file(folder)
    local = UploadPlan.empty()
    entries = sources.walk(
        folder,
        is_left_out=lambda entry: is_ignored(ignored, entry),
        on_error=local.unreadable.append,
        on_link=local.notes.append,
    )
    add_folder(local, entries, base)
    if request.delete and not _may_delete(local):
        request = request._replace(delete=False)
        local.unreadable.append(OSError(errno.EIO, _NOTHING_DELETED, str(folder)))
    local = local._replace(folders=[path for path in local.folders if path != base])
    if request.options.when_online:
        return await upload_when_online(boards, local, request.options)
    wanted = _WantedPaths(local, base)
    refused, target = await name_case.check_names(boards, list(wanted.sizes), local.folders)
    if not target:
        return refused
    looked = await run_file_ops_in_batches(boards, wanted.look_ops(), target=target)
    results = as_file_results({**refused, **looked})
    states = {
        name: _BoardState(wanted, dict(zip(wanted.paths(), result.value, strict=True)))
        for name, result in looked.items()
        if result.ok
    }
    await _add_listings(boards, states, base, delete=request.delete)
    plans: dict[str, SyncPlan] = {}
    for name, state in states.items():
        try:
            plan = state.plan(base, ignored, delete=request.delete)
            plans[name] = plan._replace(notes=tuple(local.notes))
        except OSError as error:
            error.filename = f"{name}:{error.filename}"
            results[name] = files.failed_result(name, error)
    if request.dry_run:
        plans = {name: SyncDryRun(*plan) for name, plan in plans.items()}
    else:
        results.update(as_file_results(await _apply_plans(boards, plans, local.items, progress)))
    done = {
        name: result.with_value(plans[name]) if result.ok else result
        for name, result in results.items()
    }
    errors = [*local.unreadable, *local.unsendable]
    return add_errors(Results(done, refused.left_out or looked.left_out), errors)


def _may_delete(local: UploadPlan) -> bool:
    """Whether all wanted files are known: the copies of unreadable ones are wanted, too."""
    return not local.unreadable


def is_ignored(ignored: GitIgnoreSpec, entry: sources.LocalEntry) -> bool:
    """Return whether the patterns of ``read_ignore_file`` exclude an entry of the folder."""
    return ignored.match_file(str(entry.inner) + "/" * entry.is_dir)


def read_ignore_file(folder: Path) -> GitIgnoreSpec:
    """Return the patterns of the paths in a folder that are not copied.

    Raises:
        OSError, ValueError: ``.mbmignore`` cannot be read.
    """
    from pathspec import GitIgnoreSpec  # takes 20 ms to import

    file = folder / IGNORE_FILE
    lines = read_text(file).split("\n") if file.exists() else []
    return GitIgnoreSpec.from_lines([*DEFAULT_IGNORED, *lines, *ALWAYS_IGNORED])


class _WantedPaths:
    """The paths on boards that are compared: files, empty folders, and the folders above both.

    Args:
        local: the local files and empty folders.
        base: the folder on the boards.
    """

    def __init__(self, local: UploadPlan, base: str) -> None:
        self.sizes = {item.path: item.source.size for item in local.items}
        self.digests = {item.path: item.source.digest for item in local.items}
        self.empty_folders = set(local.folders)
        leaves = [*self.sizes, *local.folders, posixpath.join(base, "x")]
        parents = {str(parent) for path in leaves for parent in PurePosixPath(path).parents}
        self.folders = sorted({*parents, *self.empty_folders} - {"/"})

    def paths(self) -> list[str]:
        """Return all paths, in the order of ``look_ops``."""
        return [*self.sizes, *self.folders] or ["/"]

    def look_ops(self) -> list[FileOp]:
        """Return the operations that tell what is at each path."""
        hash_ops: list[FileOp] = [["hash", path, size] for path, size in self.sizes.items()]
        return [*hash_ops, *map(kind_op, self.folders)] or [kind_op("/")]

    def kept_paths(self) -> set[str]:
        """Return the paths that are not deleted; folders end in ``/``."""
        return {*self.sizes, *(folder + "/" for folder in self.folders)}


class _BoardState:
    """What a board has at the wanted paths, and what else it has.

    Args:
        wanted: the paths.
        found: path -> the result of its operation.

    Attributes:
        entries: what is in the folder, or only in folders that are in the place of a file.
    """

    def __init__(self, wanted: _WantedPaths, found: dict[str, Any]) -> None:
        self._wanted = wanted
        self._found = found
        self.entries: list[Entry] = []

    def blocked_files(self) -> list[str]:
        """Return the paths of files that are folders on the board."""
        return [path for path in self._wanted.sizes if is_folder(self._found[path])]

    def plan(self, base: str, ignored: GitIgnoreSpec, *, delete: bool) -> SyncPlan:
        """Return what makes the board's folder equal to the local one.

        A file in the place of a folder is replaced, and an empty folder in the place of a file; a
        folder with content is only if ``delete`` deletes all of it.

        Raises:
            OSError: something that is not deleted is in the place of a file or folder.
        """
        extra = self._extra_paths(base, ignored) if delete else ()
        needed = [
            path for path, digest in self._wanted.digests.items() if self._found[path] != digest
        ]
        new_folders = [
            path + "/"
            for path in self._wanted.folders
            if path in self._wanted.empty_folders and not is_folder(self._found[path])
        ]
        removed = [*extra, *self._obstacles(base, ignored, extra)]
        return SyncPlan(
            (*needed, *new_folders),
            tuple(removed),
            len(self._wanted.sizes) - len(needed),
            sum(self._wanted.sizes[path] for path in needed),
        )

    def _extra_paths(self, base: str, ignored: GitIgnoreSpec) -> tuple[str, ...]:
        listed = {entry.path for entry in self.entries}
        # Paths that exist and are not listed: FAT ignores case, and lists them in another case.
        aliases = {
            path.lower()
            for path, found in self._found.items()
            if found is not None and path not in listed and path.startswith(base.rstrip("/") + "/")
        }
        entries = [
            entry
            for entry in self.entries
            if entry.path.lower() not in aliases or entry.path in self._found
        ]
        return _unwanted_paths(entries, base, self._wanted.kept_paths(), ignored)

    def _obstacles(self, base: str, ignored: GitIgnoreSpec, extra: Sequence[str]) -> list[str]:
        """Return what has to be deleted besides ``extra``, so that the wanted paths can be made."""
        obstacles = []
        for path in self._wanted.folders:
            if not is_file(self._found[path]) or path in extra:
                continue
            inner = path.removeprefix(base).lstrip("/")
            if not path.startswith(base.rstrip("/") + "/") or ignored.match_file(inner):
                raise NotADirectoryError(
                    errno.ENOTDIR, "it is a file there, and has to be a folder", path
                )
            obstacles.append(path)
        for path in self.blocked_files():
            if path + "/" in extra:
                continue
            if any(entry.path.startswith(path + "/") for entry in self.entries):
                raise IsADirectoryError(
                    errno.EISDIR,
                    "it is a folder with files there, and has to be a file: remove it, or sync "
                    "with --delete, which keeps ignored files",
                    path,
                )
            obstacles.append(path + "/")
        return obstacles


async def _add_listings(
    boards: HasTarget, states: Mapping[str, _BoardState], base: str, *, delete: bool
) -> None:
    """List what is on the boards where that matters: all, or the folders in the place of files."""
    paths = {
        name: (base,) if delete else tuple(state.blocked_files()) for name, state in states.items()
    }
    groups = [
        (names, await run_file_ops(boards, [["ls", path, True]], target=fold_names(names)))
        for names, listed in group_equal_plans(paths)
        for path in listed
    ]
    for _, lists in groups:
        for name, result in lists.items():
            if result.ok:  # else the folder does not exist yet
                states[name].entries += files.read_entries(result.value[0])


def _unwanted_paths(
    entries: Sequence[Entry], base: str, kept_paths: set[str], ignored: GitIgnoreSpec
) -> tuple[str, ...]:
    """Return the paths to delete, folders with a final ``/``; files first, deep folders first."""
    has_client = any(belongs_to_client(entry.path) for entry in entries)

    def is_kept(entry: Entry) -> bool:
        inner = entry.path.removeprefix(base).lstrip("/") + ("/" if entry.is_dir else "")
        is_starter = has_client and entry.path.lower() in STARTER_PATHS
        return is_starter or belongs_to_client(entry.path) or ignored.match_file(inner)

    kept = {
        entry.path
        for entry in entries
        if entry.path + "/" * entry.is_dir in kept_paths or is_kept(entry)
    }
    unwanted = [
        entry
        for entry in entries
        if entry.path not in kept
        and not (entry.is_dir and any(path.startswith(entry.path + "/") for path in kept))
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
    results = Results({})
    if plan.delete:
        delete_ops: list[FileOp] = [
            ["rmdir", path.rstrip("/")] if path.endswith("/") else ["rm", path, False]
            for path in plan.delete
        ]
        results = await run_file_ops_in_batches(boards, delete_ops, target=target)
        target = fold_names([name for name, result in results.items() if result.ok])
    if not plan.put or not target:
        return results
    needed = [item for item in items if item.path in plan.put]
    folders = [path.rstrip("/") for path in plan.put if path.endswith("/")]
    return Results({**results, **await upload_items(boards, target, needed, progress, folders)})
