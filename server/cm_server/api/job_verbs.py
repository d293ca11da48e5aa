"""What callers ask of jobs, wherever those are: looks and interrupts. No sockets, no SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.targets import fold
from cm_server import limits
from cm_server.auth import access
from cm_server.jobs.jobs import MAX_JOB, Job, show_row
from cm_server.jobs.registry import Board

from .request_context import Call, choose

if TYPE_CHECKING:
    from cm_server.cluster.membership import Others


def interrupt(call: Call) -> int:
    """Interrupt jobs in reach; return how many there were."""
    numbers, jobs = _numbers(call.body), call.server.dispatch.jobs
    call.note.detail = fold(str(n) for n in numbers[: limits.REPLY_JOBS] if 0 < n <= MAX_JOB)
    found = [jobs[number] for number in numbers if number in jobs and _reaches(call, jobs[number])]
    boards = {job.board.id for job in found}
    for job in found:
        call.server.dispatch.interrupt(job)
    count = len(found)
    if call.server.others is not None:
        more = call.server.others.places(set(numbers) - jobs.keys())
        reached = [(n, board, server) for n, board, server in more if _reaches_id(call, board)]
        call.server.others.interrupt(reached)
        boards |= {board for _, board, _ in reached}
        count += len(reached)
    call.note.boards = len(boards)
    return count


def _reaches(call: Call, job: Job) -> bool:
    """Whether a job is on a board that the caller reaches; a name may be another board's now."""
    return access.reaches_all(call.caller) or call.boards.get(job.board.name) is job.board


def _reaches_id(call: Call, board_id: str) -> bool:
    board = call.server.registry.by_id.get(board_id)
    return access.reaches_all(call.caller) or (
        board is not None and call.boards.get(board.name) is board
    )


def show_jobs(call: Call) -> Any:
    """Return the jobs that have not ended, then those that ended lately, newest first."""
    server = call.server
    chosen = choose(call) if call.body.get("target") is not None else None
    if server.others is None:
        return _visible(call, server.dispatch.lines(), chosen)
    return _jobs_everywhere(call, server.others, chosen)


async def _jobs_everywhere(call: Call, others: Others, chosen: list[Board] | None) -> Any:
    """Return the jobs of all servers; the one that runs a job, which is the last, knows best."""
    return _visible(call, await others.lines(), chosen)


def _visible(
    call: Call, lines: list[tuple[str, dict[str, Any]]], chosen: list[Board] | None
) -> list[dict[str, Any]]:
    ids = None if chosen is None else {board.id for board in chosen}
    seen = [
        line
        for board_id, line in lines
        if _reaches_id(call, board_id) and (ids is None or board_id in ids)
    ]
    return seen[: limits.REPLY_JOBS]


def show_job(call: Call) -> Any:
    """Return one job with its output's tail; of an older one, its line in the store."""
    server, number = call.server, call.body.get("job")
    if not isinstance(number, int) or not 0 < number < 2**63:
        raise ServerError("a job is named by its number")
    call.note.detail = str(number)
    job = server.dispatch.jobs.get(number) or server.dispatch.recent.get(number)
    if job is not None and _reaches(call, job):
        return job.show()
    if job is None and server.others is not None:
        return _job_elsewhere(call, server.others, number)
    return _job_row(call, number, known=job is not None)


async def _job_elsewhere(call: Call, others: Others, number: int) -> dict[str, Any]:
    line = _job_row(call, number, known=False)  # whether there is one in reach
    shown = await others.show(number)
    _job_row(call, number, known=False)  # again: it may have left the caller's reach meanwhile
    return shown or line


def _job_row(call: Call, number: int, *, known: bool) -> dict[str, Any]:
    server = call.server
    row = None if known else server.store.job(number)
    board = server.registry.by_id.get(row.board) if row else None
    reached = call.boards.get(board.name) is board if board else access.reaches_all(call.caller)
    if row is None or not reached:
        raise ServerError(f"there is no job {number}")
    return show_row(row, board.name if board else row.board)


def _numbers(body: dict[str, Any]) -> list[int]:
    numbers = body.get("jobs")
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise ServerError("jobs are given as a list of numbers")
    return numbers
