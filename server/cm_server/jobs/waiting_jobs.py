"""Jobs that wait for their boards to connect, for days, in the store. No sockets, no SQL.

A job that waits is a row in the store and nothing else. When its board is there and free, it is
taken out of the store, which counts it as sent from then on, in one transaction; then it is sent
like any other job. So it runs once at most, whenever a server is killed. Jobs for one board run in
the order in which they were submitted. Whether a token permits its job is examined when it starts.

In memory are the first jobs of those boards only that are connected to this server, so that a
board that asks whether something waits for it is answered at once. Call from the thread of the
event loop only.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from cloudmanager.protocol.errors import CloudmanagerError, ServerError
from cloudmanager.protocol.run_options import RunOptions
from cm_server import cleanup
from cm_server.quotas import Quota
from cm_server.store.rows import CellAudit, TokenRow
from cm_server.store.store import Store
from cm_server.store.store_queue import Operation
from cm_server.store.waiting_rows import JobOutput, TakenJob, WaitingRow, WaitingUse, WaitingWork

from .job_results import JobResults
from .job_services import JobServices
from .model import Board, Cell, Job, Requester, TimerHandle

log = logging.getLogger("cm_server")

EXPIRY_SECONDS = 60.0  # between two looks for jobs whose time to wait has ended, at most
RETRY_SECONDS = 1.0  # after the store could not be used
EXPIRED = "its board was not there and free before its time to wait ended; it did not run"
INTERRUPTED = "it was waiting for its board and did not run"
_UNKNOWN = b'{"kind": "", "what": ""}'  # what a job is that was taken meanwhile
REMOVED_BOARD = "it was removed from the fleet; it did not run"


class WaitingSubmission(NamedTuple):
    """Work that a caller submits to run when its boards are there.

    Attributes:
        boards: where it runs.
        token: the caller's.
        work: what runs.
        audit: for the audit log.
    """

    boards: Sequence[Board]
    token: TokenRow
    work: WaitingWork
    audit: CellAudit


class _BoardState:
    """The first jobs that wait for a board with a link to this server.

    Attributes:
        rows: the jobs, in their order.
        is_reading: whether they are read from the store; none is taken meanwhile.
        is_stale: whether they have to be read, or read again.
        when_read: is called when they have been read; None if nobody waits for it.
    """

    __slots__ = ("is_reading", "is_stale", "rows", "when_read")

    def __init__(self) -> None:
        self.rows: deque[WaitingRow] = deque()
        self.is_reading = False
        self.is_stale = False
        self.when_read: Callable[[], None] | None = None


class WaitingJobs:
    """The jobs that wait for their boards.

    Args:
        services: the store, the boards, timers and limits.
        job_results: ends jobs.

    Attributes:
        permission_check: returns why a job may not start; "" if it may.
        read_cell: returns what a job runs, from what the store had; raises CloudmanagerError.
        send: sends a job that is in the store as sent.
        start_next: starts the next job of a board, of those that do not wait in the store, too.
        on_added: called with the ids of boards for which jobs wait now, for other servers.
    """

    def __init__(self, services: JobServices, job_results: JobResults) -> None:
        self._store_queue = services.store_queue
        self._registry = services.registry
        self._call_later = services.call_later
        self._job_results = job_results
        self._boards: dict[Board, _BoardState] = {}  # those with a link to this server
        #: Boards of which a job is being taken out of the store, or put back: their jobs are not
        #: read meanwhile, so that none overtakes it, even if the board connects again.
        self._taking: set[Board] = set()
        self._expiry_timer: TimerHandle | None = None
        self._expiry_at = math.inf  # when it is due, by the monotonic clock
        limits = services.limits
        self._output_chars = limits.output_chars
        self._jobs_quota = Quota(
            "jobs that wait for boards",
            total=limits.waiting_jobs,
            per_token=limits.waiting_jobs_per_token,
            reserved=limits.reserved_waiting_jobs,
        )
        self._bytes_quota = Quota(
            "bytes of work that waits for boards",
            total=limits.blob_bytes,
            per_token=limits.waiting_token_bytes,
            reserved=limits.reserved_waiting_bytes,
        )
        self.permission_check: Callable[[Job], str] = lambda _job: ""
        self.read_cell: Callable[[TakenJob], Cell] = lambda _taken: Cell(b"")
        self.send: Callable[[Job], None] = lambda _job: None
        self.start_next: Callable[[Board], None] = lambda _board: None
        self.on_added: Callable[[list[str]], None] = lambda _ids: None
        #: With one server, the boards for which jobs wait: others need not be looked for. None
        #: where several servers add jobs.
        self._known_ids: set[str] | None = None
        store = self._store_queue.store  # the server does not serve yet
        known_ids = store.read(store.waiting_rows.board_ids)
        if not store.is_shared:
            self._known_ids = known_ids
        if known_ids or store.is_shared:
            self._watch_expiry(EXPIRY_SECONDS)

    # Jobs that begin to wait

    def submit(self, submission: WaitingSubmission) -> Operation[range]:
        """Commit jobs that wait, and the row in the audit log; return their numbers.

        Boards that are there run them at once.
        """
        boards = list(submission.boards)
        board_ids = [board.id for board in boards]
        work, token, audit = submission.work, submission.token, submission.audit
        check = functools.partial(self._refusal_reason, token, len(boards), work.size)
        operation = self._store_queue.run(
            lambda store: store.insert_waiting_jobs(board_ids, token.name, work, check, audit),
            size=work.size,
            refusable=True,
            durable=True,
        )
        operation.when_done(lambda _: self._on_submitted(operation, boards, work.expires))
        return operation

    def _refusal_reason(self, token: TokenRow, jobs: int, size: int, use: WaitingUse) -> str:
        """Return why a token may not let more jobs wait; "" if it may (any thread)."""
        return self._jobs_quota.refusal_reason(
            token, use.own_jobs, use.all_jobs, jobs
        ) or self._bytes_quota.refusal_reason(token, use.own_bytes, use.all_bytes, size)

    def _on_submitted(
        self, operation: Operation[range], boards: Sequence[Board], expires: float
    ) -> None:
        if operation.error is not None:
            return
        self._watch_expiry(expires - time.time())
        ids = [board.id for board in boards]
        # After the reply to the caller: first, it has to know the numbers.
        self._call_later(0, lambda: self.on_rows_added(ids))
        self.on_added(ids)

    def on_rows_added(self, board_ids: Iterable[str]) -> None:
        """Look for jobs for boards; those that are here start the first one."""
        for board_id in board_ids:
            if self._known_ids is not None:
                self._known_ids.add(board_id)
            board = self._registry.by_id.get(board_id)
            if board is not None and board.link is not None:
                self._read_rows(board)

    # Boards that come and go

    def on_connected(self, board: Board) -> None:
        """Look for jobs for a board that has connected to this server."""
        self._boards.pop(board, None)
        if self._known_ids is None or board.id in self._known_ids:
            self._read_rows(board)

    def on_disconnected(self, board: Board) -> None:
        """Forget what was read for a board; it stays in the store."""
        self._boards.pop(board, None)

    def _read_rows(self, board: Board) -> None:
        """Read the first jobs of a board from the store; first, what is in progress ends."""
        state = self._boards.setdefault(board, _BoardState())
        if state.is_reading or board in self._taking:
            state.is_stale = True
            return
        state.is_reading, state.is_stale = True, False
        board_id = board.id
        operation = self._store_queue.run(lambda store: _read_board(store, board_id))
        operation.when_done(lambda _: self._on_read(board, state, operation))

    def _on_read(
        self, board: Board, state: _BoardState, operation: Operation[list[WaitingRow]]
    ) -> None:
        if self._boards.get(board) is not state:
            return  # it has another link, or none
        state.is_reading = False
        if operation.error is not None:
            self._call_later(RETRY_SECONDS, lambda: self._retry(board, state))
            return
        state.rows = deque(operation.result())
        if state.is_stale:
            self._read_rows(board)
            return
        if not state.rows:
            del self._boards[board]
            if self._known_ids is not None:
                self._known_ids.discard(board.id)
        self.start_next(board)
        if state.when_read is not None:
            function, state.when_read = state.when_read, None
            function()

    def _retry(self, board: Board, state: _BoardState) -> None:
        if self._boards.get(board) is state:
            self._read_rows(board)

    # The next job of a board

    def when_read(self, board: Board, function: Callable[[], None]) -> None:
        """Call a function when it is known whether jobs wait for a connected board.

        That is at once, unless they are being read from the store. If the board goes meanwhile, or
        this is called again, the function is not called.
        """
        state = self._boards.get(board)
        if state is not None and state.is_reading:
            state.when_read = function
        else:
            function()

    def has_waiting(self, board: Board) -> bool:
        """Return whether a connected board has a job to run, or may have: pure, from memory.

        A board that wants to sleep asks this; see ``sleepers``.
        """
        state = self._boards.get(board)
        if state is None:
            return False
        if state.is_reading or state.is_stale or board in self._taking:
            return True
        return any(_may_start(board, row) for row in state.rows)

    def start(self, board: Board) -> bool:
        """Take the next job of a board out of the store, if the board can run it now.

        Returns:
            Whether that is in progress: nothing else may be sent meanwhile.
        """
        state = self._boards.get(board)
        if state is None:
            return False
        is_idle = board not in self._taking and not state.is_reading
        if is_idle and (row := _next_row(board, state)) is not None:
            job = self._new_job(board, row)
            self._taking.add(board)
            if why := self._not_startable_reason(job, row):
                status = "offline" if why == EXPIRED else "error"
                ended = self._end_rows([row.job], status, why)
                ended.when_done(functools.partial(self._on_refused, board, row))
            else:
                operation = self._take(row.job)
                operation.when_done(functools.partial(self._on_taken, state, job, row))
        return board in self._taking

    def _on_refused(self, board: Board, row: WaitingRow, operation: Operation[list[int]]) -> None:
        """Continue after the end of a job that may not start any more."""
        if operation.error is not None:
            self._end_taking_later(board)
        else:
            self._end_taking(board, row)
            self._start_later(board)

    def _end_taking(self, board: Board, row: WaitingRow | None) -> None:
        """Let a board's other jobs be taken; after the last one, look whether there are more.

        Args:
            board: whose.
            row: the job, which does not wait any more; None if it does.
        """
        self._taking.discard(board)
        state = self._boards.get(board)
        if state is None:
            return
        if row is not None and row in state.rows:
            state.rows.remove(row)
        if state.is_stale or not state.rows:
            self._read_rows(board)

    def _end_taking_later(self, board: Board) -> None:
        """Try again to take a job when the store may be available."""
        if (state := self._boards.get(board)) is not None:
            state.is_stale = True
        self._call_later(RETRY_SECONDS, lambda: self._end_taking(board, None))

    def _start_later(self, board: Board) -> None:
        """Start a board's next job in the next iteration: there may be very many, one by one."""
        self._call_later(0, lambda: self.start_next(board))

    def _new_job(self, board: Board, row: WaitingRow) -> Job:
        cell = Cell(b"", RunOptions(fresh=row.fresh))
        job = self._job_results.new_job(
            row.job, board, cell, Requester(row.caller, None, row.token)
        )
        job.created = row.created
        job.has_waited = True
        return job

    def _not_startable_reason(self, job: Job, row: WaitingRow) -> str:
        """Return why a job may not start any more; "" if it may."""
        if _is_expired(row):
            return EXPIRED
        return self._not_permitted_reason(job)

    def _not_permitted_reason(self, job: Job) -> str:
        """Return why the token does not permit a job now; "" if it does."""
        refusal = self.permission_check(job)
        return f"{refusal}; it did not run" if refusal else ""

    def _take(self, number: int) -> Operation[TakenJob | None]:
        """Count a job as sent in the store, so that it is never sent again."""
        return self._store_queue.run(lambda store: store.take_waiting_job(number))

    def _on_taken(
        self, state: _BoardState, job: Job, row: WaitingRow, operation: Operation[TakenJob | None]
    ) -> None:
        """Send a job that was taken, unless the board cannot run it any more."""
        board = job.board
        try:
            taken = operation.result()
        except ServerError:  # it still waits
            self._end_taking_later(board)
            return
        if taken is None:  # it was interrupted, or another server has the board
            self._end_taking(board, row)
            self._start_later(board)
        elif self._boards.get(board) is not state or not _can_run(board, row):
            self._put_back(board, taken)
        else:
            self._send_taken(job, taken)
            self._end_taking(board, row)

    def _send_taken(self, job: Job, taken: TakenJob) -> None:
        self._job_results.jobs[job.id] = job
        why = self._not_permitted_reason(job)
        if not why:
            try:
                job.cell = self.read_cell(taken)
            except CloudmanagerError as error:
                why = f"{error}; it did not run"
            except Exception as error:
                cleanup.log_failure("reading a job that waited", error)
                why = f"{cleanup.FAILED}; it did not run"
        if why:
            self._job_results.end_job(job, "error", why)
            self._start_later(job.board)
        else:
            self.send(job)

    def _put_back(self, board: Board, taken: TakenJob) -> None:
        """Let a job wait again whose board went away while it was taken; it was not sent."""
        operation = self._store_queue.run(lambda store: store.put_back_waiting_job(taken))
        operation.when_done(lambda _: self._on_put_back(board, taken, operation))

    def _on_put_back(self, board: Board, taken: TakenJob, operation: Operation[bool]) -> None:
        if operation.error is not None:
            error = "the store could not be written; it did not run"
            self._store_queue.store.end_job(taken.row.job, "lost", error)
            self._job_results.flush_later()
        if (state := self._boards.get(board)) is not None:
            state.is_stale = True
        if self._known_ids is not None:
            self._known_ids.add(board.id)
        self._end_taking(board, None)

    # Jobs that end without running

    def _end_rows(self, numbers: Sequence[int], status: str, why: str) -> Operation[list[int]]:
        """End jobs that wait; return the numbers of those that did."""
        operation = self._store_queue.run(
            lambda store: store.end_waiting_jobs(numbers, status, why)
        )
        operation.when_done(lambda _: _log_ended(operation, status, why))
        return operation

    def interrupt(self, numbers: Sequence[int]) -> Operation[list[int]]:
        """End jobs that wait, by decision of a caller; return the numbers of those that did."""
        return self._end_rows(numbers, "interrupted", INTERRUPTED)

    def find(self, numbers: Sequence[int]) -> Operation[list[WaitingRow]]:
        """Return those of these jobs that wait."""
        return self._store_queue.run(lambda store: _read_jobs(store, numbers))

    def page(self, after_id: int, max_rows: int) -> Operation[list[WaitingRow]]:
        """Return jobs that wait, in their order.

        Args:
            after_id: the ``id`` of the last row of the page before; 0 for the first page.
            max_rows: of the page.
        """
        return self._store_queue.run(
            lambda store: _read_page(store, after_id, max_rows), refusable=True
        )

    async def describe(self, rows: Sequence[WaitingRow]) -> list[dict[str, Any]]:
        """Return jobs that wait as ``Job.describe_with_title`` does."""
        requests = {row.request for row in rows}
        found = await self._store_queue.run(
            lambda store: _read_first_lines(store, requests), refusable=True
        )
        return [self._describe_row(row, found.get(row.request, _UNKNOWN)) for row in rows]

    def _describe_row(self, row: WaitingRow, first_line: bytes) -> dict[str, Any]:
        board = self._registry.by_id.get(row.board_id)
        return {
            "job": row.job,
            "board": board.name if board is not None else row.board_id,
            **json.loads(first_line),
            "caller": row.caller,
            "state": "waiting",
            "status": None,
            "created": row.created,
            "started": None,
            "elapsed": None,
            "expires": row.expires,
        }

    # Jobs whose time to wait has ended

    def _watch_expiry(self, seconds: float) -> None:
        """Look for jobs whose time has ended after some seconds, or after a minute."""
        seconds = min(max(seconds, 0.01), EXPIRY_SECONDS)
        at = time.monotonic() + seconds
        if at < self._expiry_at:
            if self._expiry_timer is not None:
                self._expiry_timer.cancel()
            self._expiry_at = at
            self._expiry_timer = self._call_later(seconds, self._on_expiry_due)

    def _on_expiry_due(self) -> None:
        self._expiry_at, self._expiry_timer = math.inf, None
        operation = self._store_queue.run(lambda store: _end_expired(store, time.time()))
        operation.when_done(lambda _: self._on_expired(operation))

    def _on_expired(self, operation: Operation[float | None]) -> None:
        next_at = None if operation.error is not None else operation.result()
        self._watch_expiry(EXPIRY_SECONDS if next_at is None else next_at - time.time())

    # What jobs printed

    def read_output(self, number: int) -> Operation[JobOutput | None]:
        """Return what is kept of a job that has waited; None if nothing is."""
        return self._store_queue.run(lambda store: _read_output(store, number), refusable=True)

    def keep_output(self, job: Job) -> None:
        """Keep what a job printed that has waited, for callers who ask later."""
        output = JobOutput(
            job.output_tail.text(), job.output_tail.truncated, job.value.text(), job.error
        )
        number, max_chars = job.id, self._output_chars
        self._store_queue.run_later(lambda store: _write_output(store, number, output, max_chars))


def _is_expired(row: WaitingRow) -> bool:
    """Return whether a job's time to wait has ended."""
    return row.expires <= time.time()


def _next_row(board: Board, state: _BoardState) -> WaitingRow | None:
    """Return the first job that a board can run now; None if there is none."""
    return next((row for row in state.rows if _can_run(board, row)), None)


def _can_run(board: Board, row: WaitingRow) -> bool:
    """Return whether a board can run a job now, if it is the first one.

    A board that its own program blocks can run a job that restarts it. What was sent before, and
    waits to be sent again, comes first.
    """
    is_free = board.link is not None and board.current_job is None
    if not is_free or any(job.resends for job in board.queue):
        return False
    return (row.fresh or not board.blocked) and _may_start(board, row)


def _may_start(board: Board, row: WaitingRow) -> bool:
    """Return whether nobody else has reserved a board."""
    reservation = board.reservation
    return reservation is None or reservation.caller == row.caller


def _read_board(store: Store, board_id: str) -> list[WaitingRow]:
    return store.read(lambda: store.waiting_rows.of_board(board_id))


def _read_jobs(store: Store, numbers: Sequence[int]) -> list[WaitingRow]:
    return store.read(lambda: store.waiting_rows.of_jobs(numbers))


def _read_first_lines(store: Store, requests: Collection[str]) -> dict[str, bytes]:
    return store.read(lambda: store.waiting_rows.first_lines(requests))


def _read_page(store: Store, after_id: int, max_rows: int) -> list[WaitingRow]:
    return store.read(lambda: store.waiting_rows.page(after_id, max_rows))


def _end_expired(store: Store, now: float) -> float | None:
    """End jobs whose time to wait has ended; return when the next ones do."""
    expired = store.read(lambda: store.waiting_rows.expired(now))
    if expired:
        store.end_waiting_jobs(expired, "offline", EXPIRED)
    return store.read(store.waiting_rows.next_expiry)


def _read_output(store: Store, number: int) -> JobOutput | None:
    return store.read(lambda: store.waiting_rows.output(number))


def _write_output(store: Store, number: int, output: JobOutput, max_chars: int) -> None:
    store.add_output(number, output, max_chars)


def _log_ended(operation: Operation[list[int]], status: str, why: str) -> None:
    if operation.error is None:
        for number in operation.result():
            log.info("job %d, which waited, ended: %s, %s", number, status, why)
