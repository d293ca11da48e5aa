"""What callers ask of jobs, wherever those are: looks and interrupts. No sockets, no SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.targets import fold_names
from cm_server import limits
from cm_server.auth import access
from cm_server.jobs.jobs import MAX_JOB_ID, Job, describe_row
from cm_server.jobs.registry import Board

from .request_context import RequestContext, resolve_boards

if TYPE_CHECKING:
    from cm_server.cluster.membership import Cluster


def interrupt_jobs(context: RequestContext) -> int:
    """Interrupt jobs in reach; return how many there were."""
    numbers, jobs = _read_numbers(context.body), context.server.dispatch.jobs
    context.audit_entry.detail = fold_names(
        str(n) for n in numbers[: limits.REPLY_JOBS] if 0 < n <= MAX_JOB_ID
    )
    found = [
        jobs[number] for number in numbers if number in jobs and _reaches_job(context, jobs[number])
    ]
    boards = {job.board.id for job in found}
    for job in found:
        context.server.dispatch.interrupt(job)
    count = len(found)
    if context.server.cluster is not None:
        more = context.server.cluster.locate_jobs(set(numbers) - jobs.keys())
        reached = [
            (n, board, server) for n, board, server in more if _reaches_board_id(context, board)
        ]
        context.server.cluster.interrupt_jobs(reached)
        boards |= {board for _, board, _ in reached}
        count += len(reached)
    context.audit_entry.boards = len(boards)
    return count


def _reaches_job(context: RequestContext, job: Job) -> bool:
    """Whether a job is on a board that the caller reaches; a name may be another board's now."""
    return access.reaches_all(context.token) or context.boards.get(job.board.name) is job.board


def _reaches_board_id(context: RequestContext, board_id: str) -> bool:
    board = context.server.registry.by_id.get(board_id)
    return access.reaches_all(context.token) or (
        board is not None and context.boards.get(board.name) is board
    )


def list_jobs(context: RequestContext) -> Any:
    """Return the jobs that have not ended, then those that ended lately, newest first."""
    server = context.server
    chosen = resolve_boards(context) if context.body.get("target") is not None else None
    if server.cluster is None:
        return _visible_jobs(context, server.dispatch.describe_jobs(), chosen)
    return _list_cluster_jobs(context, server.cluster, chosen)


async def _list_cluster_jobs(
    context: RequestContext, cluster: Cluster, chosen: list[Board] | None
) -> Any:
    """Return the jobs of all servers; the one that runs a job, which is the last, knows best."""
    return _visible_jobs(context, await cluster.describe_jobs(), chosen)


def _visible_jobs(
    context: RequestContext, lines: list[tuple[str, dict[str, Any]]], chosen: list[Board] | None
) -> list[dict[str, Any]]:
    ids = None if chosen is None else {board.id for board in chosen}
    seen = [
        line
        for board_id, line in lines
        if _reaches_board_id(context, board_id) and (ids is None or board_id in ids)
    ]
    return seen[: limits.REPLY_JOBS]


def show_job(context: RequestContext) -> Any:
    """Return one job with its output's tail; of an older one, its line in the store."""
    server, number = context.server, context.body.get("job")
    if not isinstance(number, int) or not 0 < number < 2**63:
        raise ServerError("a job is named by its number")
    context.audit_entry.detail = str(number)
    job = server.dispatch.jobs.get(number) or server.dispatch.recent_jobs.get(number)
    if job is not None and _reaches_job(context, job):
        return job.describe_with_output()
    if job is None and server.cluster is not None:
        return _show_remote_job(context, server.cluster, number)
    return _show_stored_job(context, number, known=job is not None)


async def _show_remote_job(
    context: RequestContext, cluster: Cluster, number: int
) -> dict[str, Any]:
    line = _show_stored_job(context, number, known=False)  # whether there is one in reach
    shown = await cluster.describe_job(number)
    _show_stored_job(
        context, number, known=False
    )  # again: it may have left the caller's reach meanwhile
    return shown or line


def _show_stored_job(context: RequestContext, number: int, *, known: bool) -> dict[str, Any]:
    server = context.server
    row = None if known else server.store.job(number)
    board = server.registry.by_id.get(row.board) if row else None
    reached = (
        context.boards.get(board.name) is board if board else access.reaches_all(context.token)
    )
    if row is None or not reached:
        raise ServerError(f"there is no job {number}")
    return describe_row(row, board.name if board else row.board)


def _read_numbers(body: dict[str, Any]) -> list[int]:
    numbers = body.get("jobs")
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise ServerError("jobs are given as a list of numbers")
    return numbers
