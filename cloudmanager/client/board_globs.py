"""Patterns of paths on boards, such as ``:logs/*.csv``, matched as a shell does."""

from __future__ import annotations

import errno
import re
from fnmatch import fnmatchcase
from typing import Any

from cloudmanager.results.results import Result, Results

from . import board_paths, files
from .file_jobs import run_file_ops
from .files import Entry
from .verb import HasTarget


def has_pattern(text: str) -> bool:
    """Whether a path has one of the characters of patterns: ``*``, ``?`` and ``[``."""
    return re.search(r"[*?[]", text) is not None


async def find(boards: HasTarget, text: str, *, recursive: bool = False) -> Results:
    """Return the entries on each board that match a pattern; ``*`` matches no dot at the beginning.

    A path that is called like the pattern is the only match. A board without a match has a failed
    result with FileNotFoundError.

    Args:
        boards: the boards.
        text: the pattern, with a colon.
        recursive: whether what is in folders that match belongs to the result.
    """
    pattern = board_paths.parse_board_path(text)
    parts = pattern.split("/")[1:]
    first = next(number for number, part in enumerate(parts) if has_pattern(part))
    folder = "/" + "/".join(parts[:first])
    is_deep = recursive or first < len(parts) - 1

    def matches(op_results: list[Any]) -> list[Entry]:
        entries = files.read_entries(op_results[0])
        named = [entry for entry in entries if entry.path == pattern]
        wanted = named or [entry for entry in entries if _is_match(entry.path, parts)]
        folders = tuple(f"{entry.path}/" for entry in wanted if entry.is_dir and recursive)
        return [entry for entry in entries if entry in wanted or entry.path.startswith(folders)]

    results: dict[str, Result] = {}
    listed = await run_file_ops(boards, [["ls", folder, is_deep]], make_value=matches)
    for name, result in listed.items():
        if result.ok and not result.value:
            error = FileNotFoundError(errno.ENOENT, "No file matches", f"{name}:{pattern}")
            results[name] = files.failed_result(name, error)
        else:
            results[name] = result
    return Results(results, listed.left_out)


def _is_match(path: str, parts: list[str]) -> bool:
    names = path.split("/")[1:]
    return len(names) == len(parts) and all(
        fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))
        for name, part in zip(names, parts, strict=True)
    )
