"""Runs jobs with file operations, in sequence and in parallel; used by the file verbs."""

from __future__ import annotations

import errno
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from cloudmanager.protocol.file_ops import FileOp, is_inside
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from .exchange import Exchange
from .files import FileJobGroup, FileResult, failed_result
from .future import Future
from .sources import ContentSource
from .verb import HasTarget

T = TypeVar("T")

#: The greatest length of a job's operations as JSON: a board has the text and the lists in memory.
MAX_OPS_BYTES: Final = 1500
PIECES_IN_FLIGHT: Final = 8  # pieces of an upload that are sent before the first is confirmed


async def run_file_ops(
    boards: HasTarget,
    ops: Sequence[FileOp],
    *,
    target: str = "",
    make_value: Callable[[list[Any]], Any] = list,
) -> Results:
    """Run the same operations on all boards of a target, in one job per board.

    Args:
        boards: the boards.
        ops: the operations.
        target: replaces the target of ``boards``.
        make_value: makes a result's value from the results of the operations.
    """
    return await run_file_jobs(boards, FileJobGroup(ops, make_value=make_value), target)


async def run_file_jobs(boards: HasTarget, group: FileJobGroup, target: str = "") -> Results:
    """Submit the jobs of a group to all boards of a target, and wait for the results.

    Args:
        boards: the boards.
        group: the jobs.
        target: replaces the target of ``boards``.
    """
    boards.exchange().submit(group, target or boards.target)
    return await group.completed()


async def run_file_ops_in_batches(
    boards: HasTarget, ops: Iterable[FileOp], *, target: str = ""
) -> Results:
    """Run many operations, in as many jobs as needed; a value is the list of all op results."""
    op_results: dict[str, list[Any]] = {}
    last: dict[str, FileResult] = {}
    left_out: tuple[str, ...] | None = None
    for batch in split_batches(ops):
        part = await run_file_ops(boards, batch, target=target)
        left_out = part.left_out if left_out is None else left_out
        for name, result in as_file_results(part).items():
            last[name] = result
            op_results.setdefault(name, []).extend(result.op_results if result.ok else [])
        target = fold_names([name for name, result in part.items() if result.ok])
        if not target:
            break
    results = {name: result.with_value(op_results[name]) for name, result in last.items()}
    return Results(results, left_out or ())


async def upload_content(exchange: Exchange, source: ContentSource) -> None:
    """Upload a content to the server, unless it has it already.

    Raises:
        OSError: the file cannot be read.
        ServerError: the file is too large, or changed during the upload.
    """
    upload = await exchange.request("offer", {"sha256": source.digest, "size": source.size})
    if not upload:
        return
    unconfirmed: deque[Future[Any]] = deque()
    for piece in source.pieces():
        unconfirmed.append(exchange.send_content(upload, piece))
        if len(unconfirmed) >= PIECES_IN_FLIGHT:
            await unconfirmed.popleft()
    for reply in unconfirmed:
        await reply


#: Errors of a board that concern more than one file.
_GENERAL_ERRORS: Final = frozenset(
    (errno.EIO, errno.ENODEV, errno.ENOMEM, errno.ENOSPC, errno.EROFS)
)
_MAX_LISTED_ERRORS: Final = 3  # of the files of one board


def is_refusal(error: Exception | None) -> bool:
    """Whether an error concerns one path of a board only, so that other files can be copied."""
    return isinstance(error, OSError) and error.errno not in (None, *_GENERAL_ERRORS)


def join_errors(errors: Sequence[OSError]) -> OSError:
    """Return the first of some errors, with the others in its message."""
    first, *others = errors
    if not others:
        return first
    listed = [f"{each.filename!r}: {each.strerror}" for each in others[:_MAX_LISTED_ERRORS]]
    if len(others) > len(listed):
        listed.append(f"and {len(others) - len(listed)} more")
    why = f"{first.strerror} (also {'; '.join(listed)})"
    return type(first)(first.errno, why, first.filename)


def without_inner(errors: Sequence[OSError]) -> list[OSError]:
    """Return errors without those of what is in a folder that has one itself."""
    kept: list[OSError] = []
    for error in errors:
        if not any(is_inside(str(error.filename), str(other.filename)) for other in kept):
            kept.append(error)
    return kept


def add_errors(results: Results, errors: Sequence[OSError]) -> Results:
    """Make each board's result a failure if there are errors of local files, which name these."""
    if not errors:
        return results
    failed = dict(results)
    for name, result in results.items():
        if result.ok:
            failed[name] = failed_result(name, join_errors(errors))
        elif isinstance(result.error, OSError):
            failed[name] = failed_result(name, join_errors([result.error, *errors]))
    return Results(failed, results.left_out)


def split_batches(ops: Iterable[FileOp]) -> Iterator[list[FileOp]]:
    """Split operations into lists that fit into a board's memory."""
    batch: list[FileOp] = []
    room = MAX_OPS_BYTES
    for each in ops:
        size = len(json.dumps(each))
        if batch and size > room:
            yield batch
            batch, room = [], MAX_OPS_BYTES
        batch.append(each)
        room -= size
    if batch:
        yield batch


def as_file_results(results: Mapping[str, Result]) -> dict[str, FileResult]:
    """Return the results of a job with file operations as a dict; all are ``FileResult``."""
    return cast("dict[str, FileResult]", dict(results))


def group_equal_plans(plans: Mapping[str, T]) -> list[tuple[list[str], T]]:
    """Return each different plan, with the boards that have it."""
    groups: list[tuple[list[str], T]] = []
    for board, plan in plans.items():
        for names, known in groups:
            if known == plan:
                names.append(board)
                break
        else:
            groups.append(([board], plan))
    return groups
