"""A caller's jobs on boards whose link another server has; no sockets, no SQL.

The job is written down here, and the other server asked to run it: it takes the job in the
store, runs it, and says what the board says. So what was asked twice, or too late, runs once. Where
no word comes, the store has the outcome: whatever became of the other server or of the bus.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server.jobs.jobs import Cell, Job, TimerHandle
from cm_server.jobs.scheduler import CONFIRM_SECONDS
from cm_server.store.rows import JobRow

from .peer_messages import ALL

if TYPE_CHECKING:
    from cm_server.jobs.dispatch import Dispatch
    from cm_server.jobs.job_results import JobResults
    from cm_server.jobs.registry import Board
    from cm_server.store.shared_store import SharedStore

    from .peer_messages import PeerMessages

log = logging.getLogger("cm_server")

ACK_SECONDS = 3.0  # that the other server has to say that it has a job
PEER_MARGIN_SECONDS = 0.08  # after the other server's own deadline
MAX_TRIES = 4  # at finding the server that has a board, while it moves
_UNKNOWN_OWNER = "?"  # who has a job that the store alone knows about


class RemoteJobs:
    """The jobs that other servers run for callers here.

    Args:
        dispatch: whose jobs they are.
        store: which says whose a job is.
        peer_messages: letters to the other servers.
        call_later: calls a function after so many seconds and returns what calls it off.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        job_results: JobResults,
        store: SharedStore,
        peer_messages: PeerMessages,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
    ) -> None:
        self._dispatch, self._job_results = dispatch, job_results
        self._store, self._peer_messages, self._call_later = store, peer_messages, call_later
        self._batch: dict[tuple[str, Cell, str, str], list[Job]] = {}
        self._tries: dict[int, int] = {}  # of jobs of which no word has come
        self._first_asked_at: dict[int, float] = {}  # when for the first, by the monotonic clock
        self._seen_ended: set[int] = set()  # that the last look at the store saw
        peer_messages.handlers |= {
            "taken": self._on_jobs_taken,
            "refused": self._on_jobs_refused,
            "say": self._on_job_message,
        }

    # Out

    def launch(self, job: Job) -> None:
        """Have a job run by the server that has its board."""
        away = job.board.remote_state
        assert away is not None
        job.stop_timer()
        job.state = "running" if away.state == "idle" else "queued"
        self._tries[job.id] = self._tries.get(job.id, 0) + 1
        self._first_asked_at.setdefault(job.id, time.monotonic())
        self._queue_launch(job, away.server)

    def _queue_launch(self, job: Job, server: str) -> None:
        job.owner = server
        if not self._batch:
            self._call_later(0, self._send_batch)
        self._batch.setdefault((server, job.cell, job.caller, job.token_hash), []).append(job)

    def _send_batch(self) -> None:
        """Ask each server once for all that one cell is to it."""
        batch, self._batch = self._batch, {}
        for (server, cell, caller, token), jobs in batch.items():
            asked = [
                [job.id, job.board.id, job.name] for job in jobs if job.id in self._dispatch.jobs
            ]
            who = {"caller": caller, "token": token}
            self._peer_messages.send(
                server, "run", {"jobs": asked, **who, **_cell_fields(cell)}, cell.code
            )
            self._call_later(ACK_SECONDS, lambda jobs=jobs: self._on_ack_timeout(jobs))  # type: ignore[misc]

    def interrupt_job(self, job: Job) -> None:
        """Interrupt it, wherever it is."""
        to = ALL if job.owner == _UNKNOWN_OWNER else job.owner
        self._peer_messages.send(to, "interrupt", {"jobs": [job.id]})

    def answer_input(self, job: Job, text: bytes, *, nobody: bool) -> None:
        """Answer its ``input()``."""
        self._peer_messages.send(job.owner, "answer", {"job": job.id, "nobody": nobody}, text)

    def fail_job(self, job: Job, why: str) -> None:
        """Have a job ended that goes no further: the word comes back as its ending."""
        self._peer_messages.send(job.owner, "refuse", {"job": job.id, "why": why})

    # What the other servers say

    def _on_jobs_taken(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
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
        """Know that a job is another server's, or has ended."""
        self._tries.pop(number, None)
        self._first_asked_at.pop(number, None)
        self._store.release_job(number)

    def _find_job(self, number: int, sender: str) -> Job | None:
        job = self._dispatch.jobs.get(number)
        if job is not None and job.owner == _UNKNOWN_OWNER:
            job.owner = sender  # who speaks of it has it
        return job if job is not None and job.owner == sender else None

    def _on_started(self, job: Job) -> None:
        job.stop_timer()
        job.state, job.started = "running", time.time()
        if job.cell.files is not None:
            job.transfer = job.cell.files.start(job, lambda data: self._send_to_board(job, data))
        if job.cell.timeout is not None:
            seconds = job.cell.timeout + CONFIRM_SECONDS + PEER_MARGIN_SECONDS
            job.timer = self._call_later(seconds, lambda: self._on_result_timeout(job))

    def _send_to_board(self, job: Job, data: bytes) -> None:
        """Send a board what belongs to a job's files: they are moved from here."""
        self._peer_messages.send(job.owner, "data", {"job": job.id}, data)

    def _on_result_timeout(self, job: Job) -> None:
        """The other server should have said by now how the job ended."""
        job.timer = None
        if job.id in self._dispatch.jobs and job.owner:
            self._stop_tracking(job.id)
            self._job_results.end_job(
                job, "lost", "the server that has its board does not say more"
            )

    def _on_jobs_refused(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Try another server, or none: the board has moved, or is gone."""
        jobs = [job for number in head["jobs"] if (job := self._find_job(number, sender))]
        if head.get("why"):
            for job in jobs:
                self._job_results.end_job(job, "lost", head["why"])
            return
        holders = self._read_holders()
        for job in jobs:
            self._retry(job, holders)

    def _read_holders(self) -> dict[str, tuple[str, int]]:
        try:
            return self._store.board_holders()
        except ServerError:
            return {}

    def _retry(self, job: Job, holders: dict[str, tuple[str, int]]) -> None:
        board = job.board
        holder, epoch = holders.get(board.id, ("", 0))
        tried, job.owner, job.state = job.owner, "", "queued"
        if holder == tried or self._tries.get(job.id, 0) >= MAX_TRIES:
            holder = ""
        if board.link is None and board.remote_state is not None:
            state = "idle" if holder else "offline"
            since = time.time() if holder else None
            board.remote_state = board.remote_state._replace(
                server=holder, epoch=epoch, state=state, since=since
            )
        self._dispatch.launch([job])

    def _on_job_message(self, sender: str, _head: dict[str, Any], data: bytes) -> None:
        message = wire.unpack(data)
        job = self._find_job(message.job, sender)
        if job is not None:
            self._handle_job_message(job, message, data)

    def _handle_job_message(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Take what a board says of its job, as dispatch.py does from a board itself."""
        if message.op in (wire.OUTPUT, wire.VALUE):
            (job.output_tail if message.op == wire.OUTPUT else job.value).add(message.payload)
            job.deliver(data, droppable=True)
        elif message.op == wire.RESULT:
            self._dispatch.handle_result(job, message, data)
        elif message.op == wire.ENDED:
            job.deliver(data)
            why = str(wire.read_json(message.payload)["why"])
            self._record_end(job, wire.STATUSES[message.flags], why)
        elif message.op == wire.INPUT:
            self._dispatch.handle_input(job, data)
        elif message.op == wire.CHUNK:
            self._dispatch.handle_chunk(job, message, data)
        else:
            if message.op == wire.STARTED:
                self._on_started(job)
            job.deliver(data)

    def _record_end(self, job: Job, status: str, why: str) -> None:
        self._stop_tracking(job.id)
        self._job_results.record_end(job, status, why)

    # What the store says

    def follow_in_store(self, job: Job) -> None:
        """Leave a job to others, whoever they are; its outcome comes out of the store."""
        job.stop_timer()
        job.owner, job.awaiting_input, job.transfer = _UNKNOWN_OWNER, False, None
        self._stop_tracking(job.id)
        if job.cell.timeout is not None and job.started_monotonic is not None:
            until = job.started_monotonic + job.cell.timeout + CONFIRM_SECONDS + PEER_MARGIN_SECONDS
            left = max(until - time.monotonic(), 0.0)
            job.timer = self._call_later(left, lambda: self._on_result_timeout(job))

    def on_server_lost(self, server: str) -> None:
        """Note that a server is gone: what it had goes to others."""
        for job in list(self._dispatch.jobs.values()):
            if job.owner == server and job.id not in self._tries:
                self.follow_in_store(job)

    def _on_ack_timeout(self, jobs: Sequence[Job]) -> None:
        """Ask whoever has their boards by now, or end jobs so that nobody will take them."""
        open_jobs = self._dispatch.jobs
        waiting = [job for job in jobs if job.id in self._tries and open_jobs.get(job.id) is job]
        holders = self._read_holders() if waiting else {}
        waiting = [job for job in waiting if job.owner and not self._ask_again(job, holders)]
        if waiting:
            self._withdraw_jobs(waiting)

    def _ask_again(self, job: Job, holders: dict[str, tuple[str, int]]) -> bool:
        """Ask again for a job that nobody has taken: another server, or while its caller waits."""
        holder = holders.get(job.board.id, (job.owner, 0))[0]
        patient = time.monotonic() < self._first_asked_at.get(job.id, 0.0) + job.cell.wait
        if holder == job.owner and not patient:
            return False
        if holder == job.owner:
            self._queue_launch(job, holder)
        else:
            self._retry(job, holders)
        return True

    def _withdraw_jobs(self, waiting: Sequence[Job]) -> None:
        why = "the server that has its link does not answer; it did not run"
        try:
            ended = self._store.withdraw_jobs([job.id for job in waiting], "offline", why)
        except ServerError:
            self._call_later(ACK_SECONDS, lambda: self._withdraw_jobs(waiting))
            return
        for job in waiting:
            self._stop_tracking(job.id)
            if job.id in ended:
                self._job_results.end_job(job, "offline", why)
            else:
                self.follow_in_store(job)

    def poll_outcomes(self) -> None:
        """Look for outcomes that nobody has told; twice, since a word may be on its way.

        Raises:
            ServerError: the store is away.
        """
        numbers = [job.id for job in self._dispatch.jobs.values() if job.owner]
        rows = self._store.ended_jobs(numbers) if numbers else []
        for row in rows:
            if row.id in self._seen_ended and (job := self._dispatch.jobs.get(row.id)) is not None:
                self._end_from_row(job, row)
        self._seen_ended = {row.id for row in rows}

    def _end_from_row(self, job: Job, row: JobRow) -> None:
        self._stop_tracking(job.id)
        self._job_results.end_job(job, str(row.status), row.error or "", output_lost=True)

    def on_board_moved(self, board: Board) -> None:
        """Give up what was here of a board that another server has now."""
        self._dispatch.hand_over_current(board)
        jobs = list(board.queue)
        board.queue.clear()
        for job in jobs:
            if job.resends:  # it was sent: the store knows whose it is now
                self.follow_in_store(job)
        self._dispatch.launch([job for job in jobs if not job.resends])


def _cell_fields(cell: Cell) -> dict[str, Any]:
    """Return a cell as it travels, but for its code."""
    told = cell._asdict()
    del told["code"]
    if cell.files is not None:
        told["files"] = [cell.files.reads_files, cell.files.replaces_starter]
    return told
