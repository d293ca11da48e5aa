"""Finds names that a file system which ignores case takes for one, before files are copied.

FAT, on boards, and the usual file systems of macOS and Windows ignore case: of ``a.py`` and
``A.py``, the second would replace the first.
"""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from cloudmanager.protocol.file_ops import FileOp
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from . import board_paths, files
from .file_jobs import group_equal_plans, run_file_ops
from .moves import is_folder, kind_op
from .verb import HasTarget

#: A folder that is made, looked for in the other case, and removed again.
_PROBE_NAME: Final = ".mbm-case"


def same_name_key(path: str) -> str:
    """Return a text that is equal for paths that are one path where case is ignored.

    FAT also removes dots and spaces at the end of a name; APFS takes composed and decomposed
    characters for the same.
    """
    parts = (part.rstrip(". ") or part for part in path.split("/"))
    return unicodedata.normalize("NFC", "/".join(parts)).casefold()


def find_same_names(paths: Iterable[str], folders: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Return pairs of paths that cannot both exist where case is ignored.

    Two folders are no such pair: they would be one folder with the files of both.

    Args:
        paths: of files.
        folders: of folders, besides those that the files are in.
    """
    path_by_key: dict[str, str] = {}
    pairs = []
    for path in paths:
        other = path_by_key.setdefault(same_name_key(path), path)
        if other != path:
            pairs.append((other, path))
    parents = {str(parent) for path in (*paths, *folders) for parent in PurePosixPath(path).parents}
    for folder in sorted({*parents, *folders}):
        file = path_by_key.get(same_name_key(folder))
        if file is not None and file != folder:
            pairs.append((file, folder))
    return pairs


def ignores_case(folder: Path, name: str) -> bool:
    """Whether the file system of a local folder ignores case.

    Args:
        folder: it contains ``name``, and no other file with that name in another case.
        name: has letters.
    """
    return (folder / name.swapcase()).exists()


class NameCheck(NamedTuple):
    """On which boards some files can be written.

    Attributes:
        refused: the failed results of the other boards, and which were not connected.
        target: the boards that can have all of the names; "" if there are none.
    """

    refused: Results
    target: str


async def check_names(
    boards: HasTarget, paths: Sequence[str], folders: Sequence[str] = ()
) -> NameCheck:
    """Find out which boards can have all of some paths.

    Nothing is asked if no two paths differ in case only. Otherwise, it is found out whether the
    boards' file systems ignore case.

    Args:
        boards: the boards.
        paths: of the files that are to be written.
        folders: of the folders that are to be made.
    """
    pairs = find_same_names(paths, folders)
    if not pairs:
        return NameCheck(Results({}), boards.target)
    path, other = pairs[0]
    more = f" ({len(pairs) - 1} more such names)" if len(pairs) > 1 else ""
    why = f"it would be the same as :{path}, since this file system ignores case{more}"
    looked, ignoring = await _boards_that_ignore_case(boards, path)
    refused: dict[str, Result] = {}
    for name, result in looked.items():
        if name in ignoring:
            error = FileExistsError(errno.EEXIST, f"{why}; nothing was sent", f"{name}:{other}")
            refused[name] = files.failed_result(name, error)
        elif not result.ok:
            refused[name] = result
    target = fold_names(name for name in looked if name not in refused)
    return NameCheck(Results(refused, looked.left_out), target)


async def _boards_that_ignore_case(boards: HasTarget, path: str) -> tuple[Results, set[str]]:
    """Return the results of a look at all boards, and those whose file system ignores case.

    A board on which that cannot be found out, such as a full one, is not among the latter.

    Args:
        boards: the boards.
        path: the place that the file system is asked about.
    """
    parents = [str(parent) for parent in PurePosixPath(path).parents]
    looked = await run_file_ops(boards, [kind_op(parent) for parent in parents])
    places = {
        name: next(
            (parent for parent, kind in zip(parents, result.value, strict=True) if is_folder(kind)),
            "/",
        )
        for name, result in looked.items()
        if result.ok
    }
    ignoring: set[str] = set()
    for names, place in group_equal_plans(places):
        probe = board_paths.join_path(place, _PROBE_NAME)
        ops: list[FileOp] = [
            ["makedirs", probe],
            kind_op(board_paths.join_path(place, _PROBE_NAME.upper())),
            ["rmdir", probe],
        ]
        probed = await run_file_ops(boards, ops, target=fold_names(names))
        ignoring |= {
            name for name, result in probed.items() if result.ok and is_folder(result.value[1])
        }
    return looked, ignoring
