"""Asks boards for the SHA-256 of their files."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

from cloudmanager.protocol.file_ops import FileOp
from cloudmanager.results.results import Result, Results

from . import files
from .file_jobs import as_file_results, join_errors, run_file_ops_in_batches
from .moves import is_file, is_folder
from .verb import HasTarget

_ANY_SIZE: Final = -1  # in an operation ``hash``: the file is hashed, whatever its size is


async def hash_files(boards: HasTarget, paths: Sequence[str]) -> Results:
    """Return the SHA-256 of files; each board's value is a list of ``Checksum``.

    Args:
        boards: the boards.
        paths: of the files, absolute.
    """
    ops: list[FileOp] = [["hash", path, _ANY_SIZE] for path in paths]
    hashed = await run_file_ops_in_batches(boards, ops)
    results: dict[str, Result] = {}
    for name, result in as_file_results(hashed).items():
        if not result.ok:
            results[name] = result
            continue
        answers = dict(zip(paths, result.value, strict=True))
        sums = [files.Checksum(each, path) for path, each in answers.items() if is_file(each)]
        errors = [
            _error(errno.EISDIR if is_folder(each) else errno.ENOENT, f"{name}:{path}")
            for path, each in answers.items()
            if not is_file(each)
        ]
        results[name] = result.with_value(sums)
        if errors:
            results[name] = files.failed_result(name, join_errors(errors), partial=sums or None)
    return Results(results, hashed.left_out)


def _error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)
