"""Remote jobs: of callers of this server, on boards of other servers. No sockets, no SQL.

This server commits the job and asks the other server to run it. That server claims the job in the
store, which can succeed only once, runs it and forwards the board's messages. So a request that is
repeated or late runs once. If no messages arrive, the result is read from the store, whatever
happened to the other server or to the bus.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server.jobs.model import BoardChannel, Cell, Job
from cm_server.jobs.scheduler import CONFIRM_SECONDS
from cm_server.store.rows import JobRow

from .hosted_jobs import COUNTED_OPS
from .peer_messages import ALL

if TYPE_CHECKING:
    from cm_server.jobs.dispatch import Dispatch
    from cm_server.jobs.model import Board

    from .services import ClusterContext

log = logging.getLogger("cm_server")

ACK_SECONDS = 3.0  # in which the other server has to confirm that it has claimed a job
PEER_MARGIN_SECONDS = 0.08  # between the other server's deadline for a result and this one's
MAX_TRIES = 4  # to find the server that has a board, while the board moves
_UNKNOWN_OWNER = "?"  # the owner of a job, if only the store knows it


class RemoteJobs:
    """Follows the jobs that other servers run for callers of this one.

    Args:
        dispatch: has the jobs.
        context: the store, the other servers, and the epochs of this server's boards.
    """

    def __init__(self, dispatch: Dispatch, context: ClusterContext) -> None:
        self._dispatch, self._job_results = dispatch, dispatch.job_results
        self._store_queue, self._peer_messages = context.store_queue, context.peer_messages
        self._tasks, self._call_later = context.tasks, context.call_later
        self._epochs = context.epochs
        self._batch: dict[tuple[str, Cell, str, str], list[Job]] = {}
        self._tries: dict[int, int] = {}  # of jobs that are not confirmed: id -> requests so far
        self._first_asked_at: dict[int, float] = {}  # id -> monotonic time of the first
        self._received: dict[int, Counter[int]] = {}  # id -> number of messages by op
        self._seen_ended: set[int] = set()  # ids that the last poll of the store found
        self._peer_messages.handlers |= {
            "taken": self._on_jobs_taken,
            "refused": self._on_jobs_refused,
            "say": self._on_job_message,
        }

    def epoch_for(self, board: Board) -> int | None:
        """Return a board's epoch if a job would be sent to it immediately, else None."""
        return self._epochs.get(board.id) if board.idle else None

    # Requests to other servers

    def launch(self, job: Job) -> None:
        """Ask the server that has the job's board to run it."""
        remote = job.board.remote_state
        assert remote is not None
        job.stop_timer()
        job.state = "running" if remote.state == "idle" else "queued"
        self._tries[job.id] = self._tries.get(job.id, 0) + 1
        self._first_asked_at.setdefault(job.id, time.monotonic())
        self._queue_launch(job, remote.server)

    def _queue_launch(self, job: Job, server: str) -> None:
        job.owner = server
        if not self._batch:
            self._call_later(0, self._send_batch)
        self._batch.setdefault((server, job.cell, job.caller, job.token_hash), []).append(job)

    def _send_batch(self) -> None:
        """Send each server one message per cell, with all jobs of the cell on its boards."""
        batch, self._batch = self._batch, {}
        for (server, cell, caller, token), jobs in batch.items():
            open_jobs = [
                [job.id, job.board.id, job.name] for job in jobs if job.id in self._dispatch.jobs
            ]
            head = {"jobs": open_jobs, "caller": caller, "token": token, **_cell_fields(cell)}
            self._peer_messages.send(server, "run", head, cell.code)
            self._call_later(ACK_SECONDS, lambda jobs=jobs: self._on_ack_timeout(jobs))  # type: ignore[misc]

    def interrupt_job(self, job: Job) -> None:
        """Ask the owner of a job to interrupt it."""
        recipient = ALL if job.owner == _UNKNOWN_OWNER else job.owner
        self._peer_messages.send(recipient, "interrupt", {"jobs": [job.id]})

    def answer_input(self, job: Job, text: bytes, *, nobody: bool) -> None:
        """Send the answer to a job's ``input()`` to its owner."""
        self._peer_messages.send(job.owner, "answer", {"job": job.id, "nobody": nobody}, text)

    def fail_job(self, job: Job, why: str) -> None:
        """Ask the owner to end a job that cannot be continued; its ENDED comes back."""
        self._peer_messages.send(job.owner, "refuse", {"job": job.id, "why": why})

    # Messages of other servers

    def _on_jobs_taken(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Handle the confirmation that another server has claimed jobs."""
        for number, waits, buffer_size in head["jobs"]:
            job = self._find_job(number, sender)
            if job is None:
                continue
            job.board.buffer_size = buffer_size
            self._stop_tracking(number)
            if waits:
                job.state = "queued"
            elif job.state == "queued":
                job.deliver(wire.pack(wire.STARTED, job=number))
                self._on_started(job)
            else:
                self._on_started(job)

    def _stop_tracking(self, number: int) -> None:
        """Stop waiting for a confirmation: another server owns the job, or it has ended."""
        self._tries.pop(number, None)
        self._first_asked_at.pop(number, None)
        self._store_queue.store.release_job(number)

    def _find_job(self, number: int, sender: str) -> Job | None:
        """Return an open job if a message about it comes from its owner, else None."""
        job = self._dispatch.jobs.get(number)
        if job is not None and job.owner == _UNKNOWN_OWNER:
            job.owner = sender  # only the owner sends messages about a job
        return job if job is not None and job.owner == sender else None

    def _on_started(self, job: Job) -> None:
        job.stop_timer()
        job.state, job.started = "running", time.time()
        if job.cell.files is not None:
            channel = BoardChannel(
                functools.partial(self._send_to_board, job),
                functools.partial(self._dispatch.scheduler.refuse_transfer, job),
            )
            job.transfer = job.cell.files.start(job, channel)
        if job.cell.options.timeout is not None:
            seconds = job.cell.options.timeout + CONFIRM_SECONDS + PEER_MARGIN_SECONDS
            job.timer = self._call_later(seconds, lambda: self._on_result_timeout(job))

    def _send_to_board(self, job: Job, data: bytes) -> None:
        """Send a message of a file transfer, which this server controls, to the job's board."""
        self._peer_messages.send(job.owner, "data", {"job": job.id}, data)

    def _on_result_timeout(self, job: Job) -> None:
        """End a job whose owner has not reported its result in time."""
        job.timer = None
        if job.id in self._dispatch.jobs and job.owner:
            self._received.pop(job.id, None)
            self._stop_tracking(job.id)
            why = "the server that has its board does not report a result"
            self._job_results.end_job(job, "lost", why)

    def _on_jobs_refused(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Try the server that has the board now, if any; with a reason, end the jobs."""
        jobs = [job for number in head["jobs"] if (job := self._find_job(number, sender))]
        if head.get("why"):
            for job in jobs:
                self._job_results.end_job(job, "lost", head["why"])
            return
        self._tasks.start(self._retry_refused(jobs))

    async def _retry_refused(self, jobs: Sequence[Job]) -> None:
        owners = {job: job.owner for job in jobs}
        holders = await self._read_holders()
        for job in jobs:
            if self._is_open(job) and job.owner == owners[job]:
                self._retry(job, holders)

    def _is_open(self, job: Job) -> bool:
        """Return whether a job has not ended while the store was asked."""
        return self._dispatch.jobs.get(job.id) is job

    async def _read_holders(self) -> dict[str, tuple[str, int]]:
        """Return the server and epoch of each held board; empty if the store is unavailable."""
        try:
            return await self._store_queue.run(lambda store: store.board_holders())
        except ServerError:
            return {}

    def _retry(self, job: Job, holders: dict[str, tuple[str, int]]) -> None:
        """Launch a job again, at the server that has its board according to the store."""
        board = job.board
        holder, epoch = holders.get(board.id, ("", 0))
        previous = job.owner
        job.owner = ""
        job.state = "queued"
        if holder == previous or self._tries.get(job.id, 0) >= MAX_TRIES:
            holder = ""
        if board.link is None and board.remote_state is not None:
            state = "idle" if holder else "offline"
            since = time.time() if holder else None
            board.remote_state = board.remote_state._replace(
                server=holder, epoch=epoch, state=state, since=since
            )
        self._dispatch.scheduler.launch([job])

    def _on_job_message(self, sender: str, head: dict[str, Any], data: bytes) -> None:
        message = wire.unpack(data)
        job = self._find_job(message.job, sender)
        if job is None:
            return
        if message.op in COUNTED_OPS:
            self._received.setdefault(job.id, Counter())[message.op] += 1
        elif message.op in (wire.RESULT, wire.ENDED):
            self._report_lost_pieces(job, head.get("sent", ()))
        if message.op == wire.ENDED:  # by its owner; all others are the board's own
            job.deliver(data)
            why = str(wire.read_json(message.payload)["why"])
            self._record_end(job, wire.STATUSES[message.flags], why)
            return
        if message.op == wire.STARTED:
            self._on_started(job)
        self._dispatch.board_messages.on_job_message(job, message, data)

    def _report_lost_pieces(self, job: Job, sent: Sequence[int]) -> None:
        """Tell the caller if the bus has lost pieces of a job's output, or of its value."""
        received = self._received.pop(job.id, Counter())
        for op, count in zip(COUNTED_OPS, sent, strict=False):
            if received[op] < count:
                flags = wire.VALUE_TRUNCATED if op == wire.VALUE else 0
                job.deliver(wire.pack(wire.TRUNCATED, job=job.id, flags=flags))

    def _record_end(self, job: Job, status: str, why: str) -> None:
        self._stop_tracking(job.id)
        self._job_results.record_end(job, status, why)

    # Results in the store

    def follow_in_store(self, job: Job) -> None:
        """Leave a job to its owner, and read its result from the store."""
        job.stop_timer()
        job.owner = _UNKNOWN_OWNER
        job.awaiting_input = False
        job.transfer = None
        self._received.pop(job.id, None)  # a new owner counts from 0
        self._stop_tracking(job.id)
        if job.cell.options.timeout is not None and job.started_monotonic is not None:
            seconds = job.cell.options.timeout + CONFIRM_SECONDS + PEER_MARGIN_SECONDS
            left = max(job.started_monotonic + seconds - time.monotonic(), 0.0)
            job.timer = self._call_later(left, lambda: self._on_result_timeout(job))

    def on_server_lost(self, server: str) -> None:
        """Follow the jobs of a dead server in the store: other servers take them over."""
        for job in list(self._dispatch.jobs.values()):
            if job.owner == server and job.id not in self._tries:
                self.follow_in_store(job)

    def _on_ack_timeout(self, jobs: Sequence[Job]) -> None:
        """Request unconfirmed jobs again where that makes sense; withdraw the others."""
        if any(self._is_unconfirmed(job) for job in jobs):
            self._tasks.start(self._ask_again_or_withdraw(jobs))

    def _is_unconfirmed(self, job: Job) -> bool:
        return job.id in self._tries and self._is_open(job)

    async def _ask_again_or_withdraw(self, jobs: Sequence[Job]) -> None:
        holders = await self._read_holders()
        waiting = [job for job in jobs if self._is_unconfirmed(job) and job.owner]
        waiting = [job for job in waiting if not self._ask_again(job, holders)]
        if waiting:
            await self._withdraw_jobs(waiting)

    def _ask_again(self, job: Job, holders: dict[str, tuple[str, int]]) -> bool:
        """Request a job again that no server has claimed.

        Returns:
            False if that makes no sense: the board has not moved to another server, and its caller
            does not wait any longer (``wait``).
        """
        holder = holders.get(job.board.id, (job.owner, 0))[0]
        caller_waits = (
            time.monotonic() < self._first_asked_at.get(job.id, 0.0) + job.cell.options.wait
        )
        if holder == job.owner and not caller_waits:
            return False
        if holder == job.owner:
            self._queue_launch(job, holder)
        else:
            self._retry(job, holders)
        return True

    async def _withdraw_jobs(self, waiting: Sequence[Job]) -> None:
        """End jobs in the store, so that none can be claimed; follow those that were claimed."""
        why = "the server that has its link does not answer; it did not run"
        numbers = [job.id for job in waiting]
        try:
            ended = await self._store_queue.run(
                lambda store: store.withdraw_jobs(numbers, "offline", why)
            )
        except ServerError:
            retry = functools.partial(self._withdraw_later, waiting)
            self._call_later(ACK_SECONDS, retry)
            return
        for job in waiting:
            if not self._is_unconfirmed(job):
                continue  # it was confirmed, or ended, meanwhile
            self._stop_tracking(job.id)
            if job.id in ended:
                self._job_results.end_job(job, "offline", why)
            else:
                self.follow_in_store(job)

    def _withdraw_later(self, waiting: Sequence[Job]) -> None:
        still_waiting = [job for job in waiting if self._is_unconfirmed(job)]
        if still_waiting:
            self._tasks.start(self._withdraw_jobs(still_waiting))

    async def poll_outcomes(self) -> None:
        """End remote jobs that have ended in the store, if no message reported it.

        A job ends at the second poll that finds it ended, because its messages may be on their way
        at the first.

        Raises:
            ServerError: the store is unavailable.
        """
        numbers = [job.id for job in self._dispatch.jobs.values() if job.owner]
        if numbers:
            rows = await self._store_queue.run(lambda store: store.ended_jobs(numbers))
        else:
            rows = []
        for row in rows:
            job = self._dispatch.jobs.get(row.id)
            if row.id in self._seen_ended and job is not None and job.owner:
                self._end_from_row(job, row)
        self._seen_ended = {row.id for row in rows}

    def _end_from_row(self, job: Job, row: JobRow) -> None:
        self._received.pop(job.id, None)
        self._stop_tracking(job.id)
        self._job_results.end_job(job, str(row.status), row.error or "", output_lost=True)

    def on_board_moved(self, board: Board) -> None:
        """Hand over the jobs of a board that has connected to another server."""
        self._dispatch.recovery.hand_over_current(board)
        jobs = list(board.queue)
        board.queue.clear()
        store = self._store_queue.store
        for job in jobs:
            if job.resends or store.is_marked_sent(job.id):
                self.follow_in_store(job)  # the board's new server has taken it over
            else:
                self._dispatch.scheduler.launch([job])


def _cell_fields(cell: Cell) -> dict[str, Any]:
    """Return the fields of a cell for a "run" message; its code is the message's payload."""
    files = cell.files and [cell.files.reads_files, cell.files.replaces_starter]
    return {**cell.options.to_fields(), "awaits": cell.awaits, "files": files}
