"""Renames files and folders on boards, as the shell's ``mv`` does, with the checks it makes.

The file systems of boards check little: littlefs moves a folder into itself, where it is lost, and
FAT removes an empty folder to put a file in its place.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any, Final

from cloudmanager.protocol.file_ops import FileOp, is_inside
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Results

from . import board_paths, files
from .file_jobs import run_file_ops
from .files import FileResult
from .verb import HasTarget

#: The size in an operation ``hash`` with which it only tells what a path is; no file has it.
NO_SIZE: Final = -2


def kind_op(path: str) -> FileOp:
    """Return the operation that tells what a path is: see ``is_folder`` and ``is_file``."""
    return ["hash", path, NO_SIZE]


def is_folder(kind: object) -> bool:
    """Whether the result of ``kind_op``, or of another ``hash``, is that of a folder."""
    return kind is False


def is_file(kind: object) -> bool:
    """Whether the result of ``kind_op``, or of another ``hash``, is that of a file."""
    return isinstance(kind, str)


async def move(boards: HasTarget, source: str, dest: str) -> Results:
    """Rename a file or folder: see ``FileVerbs.mv``."""
    path = board_paths.parse_board_path(source)
    to = board_paths.parse_board_path(dest)
    if path == "/":
        raise ValueError(f"{source} is the root of the boards' files, which cannot be moved")
    if path == to:
        raise ValueError(f"{source} and {dest} are the same path; nothing was moved")
    looked = await run_file_ops(boards, [kind_op(path), kind_op(to)])
    kinds = {name: result.value for name, result in looked.items() if result.ok}
    has_file = {name for name, kind in kinds.items() if dest.endswith("/") and is_file(kind[1])}
    final = to
    if _goes_into_folder(path, dest, to, kinds):
        final = board_paths.join_path(to, path.rpartition("/")[2])
        looked = await run_file_ops(boards, [kind_op(path), kind_op(final)])
        kinds = {name: result.value for name, result in looked.items() if result.ok}
    if final == path:
        raise ValueError(f"{source} is in {dest} already; nothing was moved")
    if is_inside(final, path):
        raise ValueError(f"{source} cannot be moved to {dest}: it would be moved into itself")
    results = dict(looked)
    movable = []
    for name, (path_kind, final_kind) in kinds.items():
        if name in has_file:
            results[name] = _failed_move(name, errno.ENOTDIR, to)
        elif number := _error_number(path_kind, final_kind):
            results[name] = _failed_move(name, number, final)
        else:
            movable.append(name)
    if movable:
        ops: list[FileOp] = [["rename", path, final]]
        if dest.endswith("/") and any(kinds[name][0] is not None for name in movable):
            ops.insert(0, ["makedirs", to])
        moved = await run_file_ops(boards, ops, target=fold_names(movable), make_value=_no_value)
        for name, result in moved.items():
            results[name] = result
            if isinstance(result.error, OSError) and kinds[name][0] is not None:
                results[name] = _failed_move(name, result.error.errno or errno.EIO, final)
    return Results(results, looked.left_out)


def _failed_move(name: str, number: int, place: str) -> FileResult:
    """Return the result of a board where a path cannot be moved to a place."""
    return files.failed_result(name, OSError(number, os.strerror(number), f"{name}:{place}"))


def _goes_into_folder(path: str, dest: str, to: str, kinds: dict[str, Sequence[Any]]) -> bool:
    """Whether the path keeps its name and moves into the folder ``to``, the same on all boards.

    Raises:
        ValueError: ``to`` is a folder on some boards only.
    """
    if dest.endswith("/") or to == "/":
        return True
    if path.lower() == to.lower():
        return False  # another case of the same name: on FAT, both are the same folder
    folders = [name for name, kind in kinds.items() if is_folder(kind[1])]
    others = [
        name for name, kind in kinds.items() if not is_folder(kind[1]) and kind[0] is not None
    ]
    if folders and others:
        raise ValueError(
            f"{dest} is a folder on {fold_names(folders)} but not on {fold_names(others)}: "
            f"nothing was moved. Write {dest}/ to move into the folder on all of them."
        )
    return bool(folders)


def _error_number(path_kind: object, final_kind: object) -> int:
    """Return the number of the error of a move; 0 if it is for the board to decide."""
    if is_folder(final_kind) and is_file(path_kind):
        return errno.EISDIR
    if is_file(final_kind) and is_folder(path_kind):
        return errno.ENOTDIR
    return 0


def _no_value(_: list[Any]) -> None:
    """Return None: a move has no value."""
