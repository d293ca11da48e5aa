"""The verbs about jobs, on all servers: list, show, interrupt. No sockets, no SQL."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.targets import fold_names
from cm_server.auth import access
from cm_server.jobs.job_history import describe_row
from cm_server.jobs.model import Job
from cm_server.store.rows import MAX_JOB_ID, JobRow
from cm_server.store.waiting_rows import WaitingRow

from .request_context import RequestContext, resolve_boards
from .request_limits import is_whole_number


def interrupt_jobs(context: RequestContext) -> Any:
    """Interrupt jobs on boards that the token covers; return how many were found.

    If other servers may know some of them, the return value is a coroutine function.
    """
    services = context.services
    numbers = _read_numbers(context.body, services.limits.interrupt_jobs)
    valid = [str(n) for n in numbers[: context.services.limits.reply_jobs] if 0 < n <= MAX_JOB_ID]
    context.audit_entry.detail = fold_names(valid)
    jobs = services.dispatch.jobs
    found = [jobs[n] for n in numbers if n in jobs and _may_access_job(context, jobs[n])]
    # Before those that were not sent end, and are forgotten.
    unknown = {n for n in numbers if n not in jobs and 0 < n <= MAX_JOB_ID}
    boards = {job.board.id for job in found}
    for job in found:
        services.dispatch.interrupt(job)
    context.audit_entry.boards = len(boards)
    if unknown:
        return functools.partial(_interrupt_unknown_jobs, context, unknown, boards, len(found))
    return len(found)


async def _interrupt_unknown_jobs(
    context: RequestContext, numbers: set[int], boards: set[str], count: int
) -> int:
    """Interrupt jobs that wait in the store, and those of other servers.

    Returns:
        The number of all that were found.
    """
    waiting = context.services.dispatch.waiting
    rows = await waiting.find(sorted(numbers))
    own = [row for row in rows if _may_access_board(context, row.board_id)]
    board_ids = {row.job: row.board_id for row in own}
    ended = await waiting.interrupt(list(board_ids)) if own else []
    numbers = numbers - {row.job for row in rows}
    boards = boards | {board_ids[number] for number in ended}
    context.audit_entry.boards = len(boards)
    count += len(ended)
    if not context.services.cluster.is_shared or not numbers:
        return count
    cluster = context.services.cluster
    remote = [
        (number, board_id, server_id)
        for number, board_id, server_id in await cluster.locate_jobs(numbers)
        if _may_access_board(context, board_id)
    ]
    cluster.interrupt_jobs(remote)
    context.audit_entry.boards = len(boards | {board_id for _, board_id, _ in remote})
    return count + len(remote)


def _may_access_job(context: RequestContext, job: Job) -> bool:
    """Return whether the token covers the board of a job.

    The boards are compared, not their names: a name may have been given to another board.
    """
    return access.reaches_all(context.token) or context.boards.get(job.board.name) is job.board


def _may_access_board(context: RequestContext, board_id: str) -> bool:
    """Return whether the token covers a board; one that was removed, only if it covers all."""
    board = context.services.registry.by_id.get(board_id)
    return access.reaches_all(context.token) or (
        board is not None and context.boards.get(board.name) is board
    )


async def list_jobs(context: RequestContext) -> list[dict[str, Any]]:
    """Return open jobs, then recently ended ones, newest first; or those that wait for boards."""
    boards = resolve_boards(context) if context.body.get("target") is not None else None
    selected = None if boards is None else {board.id for board in boards}

    @functools.cache
    def is_visible(board_id: str) -> bool:
        return (selected is None or board_id in selected) and _may_access_board(context, board_id)

    if context.body.get("waiting"):
        return await _list_waiting_jobs(context, is_visible)
    jobs = await context.services.cluster.describe_jobs(is_visible)
    newest = itertools.islice(jobs, context.services.limits.reply_jobs)
    visible = [job for board_id, job in newest if _may_access_board(context, board_id)]
    return [_without_code(context, job) for job in visible]


async def _list_waiting_jobs(
    context: RequestContext, is_visible: Callable[[str], bool]
) -> list[dict[str, Any]]:
    """Return jobs that wait for their boards, the oldest first."""
    limits, waiting = context.services.limits, context.services.dispatch.waiting
    found: list[WaitingRow] = []
    after_id, complete = 0, False
    while not complete and len(found) < limits.reply_jobs:
        rows = await waiting.page(after_id, limits.waiting_page)
        complete = len(rows) < limits.waiting_page
        after_id = rows[-1].id if rows else 0
        found += [row for row in rows if is_visible(row.board_id)]
    described = await waiting.describe(found[: limits.reply_jobs])
    return [_without_code(context, job) for job in described]


async def show_job(context: RequestContext) -> dict[str, Any]:
    """Return one job with the end of its output; of an old one, its row in the store.

    Raises:
        ServerError: no job on the boards that the token covers has this number.
    """
    services, number = context.services, context.body.get("job")
    if not is_whole_number(number) or not 0 < number < 2**63:  # what the database can hold
        raise ServerError("a job is named by its number")
    context.audit_entry.detail = str(number)
    job = services.dispatch.jobs.get(number) or services.dispatch.recent_jobs.get(number)
    if job is not None and _may_access_job(context, job):
        return _without_code(context, job.describe_with_output())
    if job is not None:
        raise _no_job_error(number)
    row = await services.store_queue.run(lambda store: store.job(number), refusable=True)
    stored = _describe_stored_job(context, number, row)  # before others are asked
    waiting = await services.dispatch.waiting.find([number])
    if waiting and row is not None and row.status is None:
        (described,) = await services.dispatch.waiting.describe(waiting)
        _describe_stored_job(context, number, row)  # again: access may have been lost meanwhile
        return _without_code(context, {**stored, **described})
    shown = await services.cluster.describe_job(number)
    output = None if shown else await services.dispatch.waiting.read_output(number)
    _describe_stored_job(context, number, row)  # again: access may have been lost meanwhile
    if output is not None:
        texts = {"stdout": output.output, "value": output.value, "error": output.error}
        return {**stored, **texts, "truncated": output.truncated}
    return _without_code(context, shown) if shown else stored


def _without_code(context: RequestContext, job: dict[str, Any]) -> dict[str, Any]:
    """Return a job as the caller may see it.

    A line of a cell, which may contain a password, is for its author and for administrators. Paths
    of files and names of packages are for all who may run jobs.
    """
    token = context.token
    may_read = access.has_role(token, access.SUBMIT_ROLE)
    if job["kind"] == "cell" and job["caller"] != token.name:
        may_read = access.has_role(token, "admin")
    return job if may_read else {**job, "what": ""}


def _describe_stored_job(
    context: RequestContext, number: int, row: JobRow | None
) -> dict[str, Any]:
    """Return a job's row in the form of a reply.

    Raises:
        ServerError: there is none, or the token does not cover its board.
    """
    if row is None:
        raise _no_job_error(number)
    board = context.services.registry.by_id.get(row.board)
    if board is not None:
        visible = context.boards.get(board.name) is board
    else:  # the board was removed
        visible = access.reaches_all(context.token)
    if not visible:
        raise _no_job_error(number)
    return describe_row(row, board.name if board else None)


def _no_job_error(number: int) -> ServerError:
    """Return the error for a job that does not exist, or that the caller may not see."""
    return ServerError(f"there is no job {number}")


def _read_numbers(body: dict[str, Any], max_count: int) -> list[int]:
    """Return the numbers of jobs in a request, each once."""
    numbers = body.get("jobs")
    if not isinstance(numbers, list) or not all(map(is_whole_number, numbers)):
        raise ServerError("jobs must be given as a list of numbers")
    numbers = _without_duplicates(numbers)
    if len(numbers) > max_count:
        raise ServerError(f"at most {max_count} jobs can be interrupted at a time")
    return numbers


def _without_duplicates(numbers: list[int]) -> list[int]:
    return list(dict.fromkeys(numbers))
