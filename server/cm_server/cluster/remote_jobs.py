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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server import cleanup
from cm_server.jobs.model import BoardChannel, Cell, Job, RemoteBoardState
from cm_server.jobs.scheduler import CONFIRM_SECONDS
from cm_server.store.rows import JobRow

from .hosted_jobs import RELAY_LOST
from .job_streams import CHUNKS, INPUTS, KINDS, OUTPUT, VALUE, kind_of, read_counted
from .peer_messages import ALL

if TYPE_CHECKING:
    from cm_server.jobs.dispatch import Dispatch
    from cm_server.jobs.model import Board

    from .services import ClusterContext

log = logging.getLogger("cm_server")

ACK_SECONDS = 3.0  # in which the other server has to confirm that it has claimed a job
REPEATS = 3  # how often a job is requested in that time: the bus may lose a request
PEER_MARGIN_SECONDS = 0.08  # between the other server's deadline for a result and this one's
MAX_TRIES = 4  # to find the server that has a board, while the board moves
_OTHER_SERVER = (
    "ServerError: the board is connected to another server; a folder can be mounted by a caller of "
    "that server"
)
_UNKNOWN_OWNER = "?"  # the owner of a job, if only the store knows it


class RemoteStream:
    """What was exchanged about one remote job with the server that owns it.

    Attributes:
        received: the number of messages that were received, or are known to be lost, by kind.
        sent_data: the number of messages for its board that were sent.
        asked: the number of the last INPUT that arrived.
        interrupts: how often it was interrupted.
        answer: the last answer to its ``input()``: the number of the INPUT, the text, and whether
            there was nobody to answer.
        failure: why it cannot be continued; "" if it can.
    """

    __slots__ = ("answer", "asked", "failure", "interrupts", "received", "sent_data")

    def __init__(self) -> None:
        self.received = [0] * KINDS
        self.sent_data = 0
        self.asked = 0
        self.interrupts = 0
        self.answer: tuple[int, bytes, bool] | None = None
        self.failure = ""


class _LaunchRequest:
    """A request to another server to run the jobs of one cell.

    Attributes:
        server: its id.
        head: of the message.
        cell: what runs.
        jobs: those that were requested.
        made: how often it was sent.
        due: when it is sent again, or given up, by the monotonic clock.
    """

    __slots__ = ("cell", "due", "head", "jobs", "made", "server")

    def __init__(self, server: str, head: dict[str, Any], cell: Cell, jobs: Sequence[Job]) -> None:
        self.server, self.head, self.cell, self.jobs = server, head, cell, jobs
        self.made = 0
        self.due = 0.0

    def on_sent(self) -> None:
        """Note that it was sent, and has to be confirmed."""
        self.made += 1
        self.due = time.monotonic() + ACK_SECONDS / REPEATS


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
        self._requests: list[_LaunchRequest] = []  # those with jobs that are not confirmed
        self._is_watching = False  # whether a timer runs for them
        self._is_sending = False  # whether the batch is sent in the next iteration of the loop
        self._tries: dict[int, int] = {}  # of jobs that are not confirmed: id -> requests so far
        self._first_asked_at: dict[int, float] = {}  # id -> monotonic time of the first
        self._streams: dict[int, RemoteStream] = {}  # by the job's id
        self._lookups: list[Job] = []  # jobs whose boards the store is asked for next
        self._looked_up: set[int] = set()  # ids of jobs for which the store was asked
        self._seen_ended: set[int] = set()  # ids that the last poll of the store found
        self._peer_messages.handlers |= {
            "taken": self._on_jobs_taken,
            "refused": self._on_jobs_refused,
            "say": self._on_job_messages,
            "states": self._on_states,
        }

    def _stream(self, job: Job) -> RemoteStream:
        """Return what was exchanged about a job."""
        return self._streams.setdefault(job.id, RemoteStream())

    def epoch_for(self, board: Board) -> int | None:
        """Return a board's epoch if a job would be sent to it immediately, else None."""
        return self._epochs.get(board.id) if board.idle else None

    # Requests to other servers

    def launch(self, job: Job) -> None:
        """Ask the server that has the job's board to run it."""
        remote = job.board.remote_state
        assert remote is not None
        job.stop_timer()
        if job.cell.files is not None and job.cell.files.is_local:
            self._job_results.end_job(job, "error", _OTHER_SERVER)
            return
        is_free = remote.state == "idle" and job.board.reservation_against(job) is None
        job.state = "running" if is_free else "queued"
        self._tries[job.id] = self._tries.get(job.id, 0) + 1
        self._first_asked_at.setdefault(job.id, time.monotonic())
        self._queue_launch(job, remote.server)

    def _queue_launch(self, job: Job, server: str) -> None:
        job.owner = server
        self._batch.setdefault((server, job.cell, job.caller, job.token_hash), []).append(job)

    def send_launches(self, *, now: bool = False) -> None:
        """Send each server one message per cell, with all jobs of the cell on its boards.

        Args:
            now: do not wait for what other callers launch in this moment, either. If none of them
                has a request that is not confirmed, nothing waits.
        """
        launched = sum(map(len, self._batch.values()))
        if not launched:
            return
        if now or len(self._tries) == launched:
            self._send_batch()
        elif not self._is_sending:
            self._is_sending = True
            self._call_later(0, self._send_batch)

    def _send_batch(self) -> None:
        self._is_sending = False
        batch, self._batch = self._batch, {}
        for (server, cell, caller, token), jobs in batch.items():
            head = {"caller": caller, "token": token, **_cell_fields(cell)}
            request = _LaunchRequest(server, head, cell, jobs)
            self._send_request(request, jobs)
            self._requests.append(request)
        self._watch_requests()
        self._peer_messages.flush()

    def _send_request(self, request: _LaunchRequest, jobs: Sequence[Job]) -> None:
        """Request jobs, once more or for the first time: a server claims a job only once."""
        requested = [
            [job.id, job.board.id, job.name] for job in jobs if job.id in self._dispatch.jobs
        ]
        request.on_sent()
        if requested:  # else other servers were asked meanwhile
            head = {"jobs": requested, **request.head}
            self._peer_messages.send(request.server, "run", head, request.cell.code)

    def _watch_requests(self) -> None:
        """Look at requests when the first of them is due.

        One timer serves all: nearly every request is confirmed within milliseconds, and a timer
        for each would wake the server long after.
        """
        if self._requests and not self._is_watching:
            self._is_watching = True
            due = min(request.due for request in self._requests)
            self._call_later(max(due - time.monotonic(), 0.0), self._check_requests)

    def _check_requests(self) -> None:
        """Forget confirmed requests; repeat those that are due, or give them up."""
        self._is_watching = False
        now, requests = time.monotonic(), self._requests
        self._requests = []
        for request in requests:
            waiting = [job for job in request.jobs if self._is_unconfirmed(job)]
            if not waiting:
                continue
            if request.due > now:
                self._requests.append(request)
            elif request.made < REPEATS:
                self._send_request(request, [job for job in waiting if job.owner == request.server])
                self._requests.append(request)
            else:
                self._tasks.start(self._ask_again_or_withdraw(waiting))
        self._watch_requests()

    def interrupt_job(self, job: Job) -> None:
        """Ask the owner of a job to interrupt it."""
        stream = self._stream(job)
        stream.interrupts += 1
        recipient = ALL if job.owner == _UNKNOWN_OWNER else job.owner
        head = {"jobs": [job.id], "count": stream.interrupts}
        self._peer_messages.send(recipient, "interrupt", head)

    def answer_input(self, job: Job, text: bytes, *, nobody: bool) -> None:
        """Send the answer to a job's ``input()`` to its owner."""
        stream = self._stream(job)
        stream.answer = stream.asked, text, nobody
        self._send_answer(job, stream)

    def _send_answer(self, job: Job, stream: RemoteStream) -> None:
        assert stream.answer is not None
        number, text, nobody = stream.answer
        head = {"job": job.id, "input": number, "nobody": nobody}
        self._peer_messages.send(job.owner, "answer", head, text)

    def fail_job(self, job: Job, why: str) -> None:
        """Ask the owner to end a job that cannot be continued; its ENDED comes back."""
        self._stream(job).failure = why
        job.transfer = None
        self._peer_messages.send(job.owner, "refuse", {"job": job.id, "why": why})

    def stop(self) -> None:
        """Stop the transfers that this server controls: it stops."""
        for job in self._dispatch.jobs.values():
            if job.owner and job.cell.files is not None:
                self.fail_job(job, "ServerError: the server of its caller stopped")

    def send_requests(self) -> None:
        """Tell the owners of jobs what was sent about them, so that they miss nothing."""
        requests: dict[str, list[list[int]]] = {}
        for job in self._dispatch.jobs.values():
            if not job.owner or job.owner == _UNKNOWN_OWNER or job.id in self._tries:
                continue
            stream = self._stream(job)
            if stream.failure:
                self.fail_job(job, stream.failure)
            fields = [job.id, stream.sent_data, stream.interrupts]
            requests.setdefault(job.owner, []).append(fields)
        for owner, jobs in requests.items():
            self._peer_messages.send(owner, "requests", {"jobs": jobs})
        open_jobs = self._dispatch.jobs.keys()
        for by_number in (self._streams, self._tries, self._first_asked_at):
            for number in by_number.keys() - open_jobs:
                by_number.pop(number)

    def find_board(self, job: Job) -> bool:
        """Launch a job whose board seems to be offline, if the store knows its server.

        Returns:
            Whether the store is asked; otherwise that has been done.
        """
        if job.id in self._tries or job.id in self._looked_up:
            return False
        if not self._lookups:
            self._call_later(0, self._start_lookups)
        self._lookups.append(job)
        self._looked_up.add(job.id)
        job.board.queue.append(job)
        return True

    def _start_lookups(self) -> None:
        jobs, self._lookups = self._lookups, []
        self._tasks.start(self._look_up(jobs))

    async def _look_up(self, jobs: Sequence[Job]) -> None:
        holders = await self._read_holders()
        own_id = self._store_queue.store.server_id
        for job in jobs:
            board = job.board
            if job in board.queue and board.link is None:  # else it was started, or ended
                board.queue.remove(job)
                holder, epoch = holders.get(board.id, ("", 0))
                if holder not in ("", own_id) and epoch >= board.epoch:
                    board.remote_state = RemoteBoardState(holder, epoch, "idle", time.time())
                self._dispatch.scheduler.launch([job])
                if job.owner:
                    job.state = "queued"  # as its caller knows it, until its start is confirmed
            self._looked_up.discard(job.id)

    # Messages of other servers

    def _on_jobs_taken(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Handle the confirmation that another server has claimed jobs."""
        for number, waits, buffer_size in head["jobs"]:
            job = self._find_job(number, sender)
            if job is not None:
                self._on_job_taken(job, waits=waits, buffer_size=buffer_size)

    def _on_job_taken(self, job: Job, *, waits: bool, buffer_size: int) -> None:
        """Note that a job's owner has claimed it, and whether it has started."""
        job.board.buffer_size = buffer_size
        self._stop_tracking(job.id)
        if waits:
            job.state = "queued"
            job.stop_timer()
        elif job.state == "queued":
            job.deliver(wire.pack(wire.STARTED, job=job.id))
            self._on_started(job)
        elif job.started is None:
            self._on_started(job)

    def _on_states(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Compare what a server has sent about jobs of this server's callers with what arrived."""
        forgotten = []
        for number, waits, buffer_size, sent, awaits_input in head["jobs"]:
            job = self._find_job(number, sender)
            if job is None:
                if number not in self._dispatch.jobs:
                    forgotten.append(number)
                continue
            if job.id in self._tries or (job.state == "queued" and not waits):
                self._on_job_taken(job, waits=waits, buffer_size=buffer_size)
            self._note_sent(job, sent)
            if awaits_input:
                self._repeat_input_or_answer(job, sent[INPUTS])
        if forgotten:
            self._peer_messages.send(sender, "forget", {"jobs": forgotten})

    def _repeat_input_or_answer(self, job: Job, number: int) -> None:
        """Repeat what the bus has lost of an open ``input()``: the question, or the answer.

        Args:
            job: its board waits for an answer.
            number: of its INPUT.
        """
        stream = self._stream(job)
        if stream.asked < number:
            self._peer_messages.send(job.owner, "repeat-input", {"job": job.id})
        elif stream.answer is not None and stream.answer[0] == number:
            self._send_answer(job, stream)

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
        stream = self._stream(job)
        stream.sent_data += 1
        self._peer_messages.send(
            job.owner, "data", {"job": job.id, "count": stream.sent_data}, data
        )

    def _on_result_timeout(self, job: Job) -> None:
        """End a job whose owner has not reported its result in time."""
        job.timer = None
        if job.id in self._dispatch.jobs and job.owner:
            self._stop_tracking(job.id)
            why = "the server that has its board does not report a result"
            self._job_results.end_job(job, "lost", why)

    def _on_jobs_refused(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Try the server that has the board now, if any; with a reason, end the jobs."""
        found = [job for number in head["jobs"] if (job := self._find_job(number, sender))]
        jobs = [job for job in found if job.id in self._tries]  # not those confirmed meanwhile
        if head.get("why"):
            for job in jobs:
                self._job_results.end_job(job, "lost", head["why"])
            return
        for number, seconds in head.get("expected", ()):
            job = self._dispatch.jobs.get(number)
            if job in jobs:
                job.board.expect(seconds)  # as soon as it is known not to be there
        self._tasks.start(self._retry_refused(jobs))

    async def _retry_refused(self, jobs: Sequence[Job]) -> None:
        """Launch jobs again that another server refused; follow those that it had claimed before.

        Of the latter, the confirmation and the result were lost. If the store does not answer, the
        request is repeated, or withdrawn, as if it had not been answered.
        """
        owners, numbers = {job: job.owner for job in jobs}, [job.id for job in jobs]
        try:
            located, holders = await self._store_queue.run(
                lambda store: (store.locate_jobs(numbers), store.board_holders())
            )
        except ServerError:
            return
        own_id = self._store_queue.store.server_id
        unclaimed = {number for number, _, owner in located if owner == own_id}
        for job in jobs:
            if not self._is_open(job) or job.owner != owners[job]:
                continue
            if job.id in unclaimed:
                self._retry(job, holders)
            else:
                self.follow_in_store(job)

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

    def _on_job_messages(self, sender: str, _head: dict[str, Any], batch: bytes) -> None:
        """Handle messages of boards; one whose handler fails does not stop those behind it."""
        for data, sent in read_counted(batch):
            try:
                self._on_job_message(sender, data, sent)
            except Exception as error:
                cleanup.log_failure("a message about a job at another server", error)

    def _on_job_message(self, sender: str, data: bytes, sent: list[int]) -> None:
        message = wire.unpack(data)
        job = self._find_job(message.job, sender)
        if job is None:
            return
        self._note_sent(job, sent, arrived=kind_of(data))
        if message.op == wire.INPUT:
            if sent[INPUTS] == self._stream(job).asked:
                return  # it was repeated, and had arrived after all
            self._stream(job).asked = sent[INPUTS]
        if message.op == wire.ENDED:  # by its owner; all others are the board's own
            job.deliver(data)
            why = str(wire.read_json(message.payload)["why"])
            self._record_end(job, wire.STATUSES[message.flags], why)
            return
        if message.op == wire.STARTED:
            self._on_started(job)
        self._dispatch.board_messages.on_job_message(job, message, data)

    def _note_sent(self, job: Job, sent: list[int], *, arrived: int | None = None) -> None:
        """Compare what a job's owner has sent with what arrived.

        Lost pieces of its output, or of its value, are reported to the caller where they are
        missing. A transfer that has lost something is stopped.

        Args:
            job: the job.
            sent: how many messages its owner has sent, by kind.
            arrived: the kind of the message that arrives with it.
        """
        stream = self._stream(job)
        lost = [count - seen for count, seen in zip(sent, stream.received, strict=True)]
        if arrived is not None:
            lost[arrived] -= 1
        stream.received = sent
        if lost[OUTPUT] > 0:
            job.deliver(wire.pack(wire.TRUNCATED, job=job.id))
        if lost[VALUE] > 0:
            flags = wire.VALUE_TRUNCATED
            job.deliver(wire.pack(wire.TRUNCATED, job=job.id, flags=flags))
        is_broken = job.cell.files is not None and job.state == "running" and job.transfer is None
        if (lost[CHUNKS] > 0 or is_broken) and not stream.failure:
            self.fail_job(job, RELAY_LOST)

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
        self._streams.pop(job.id, None)  # a new owner counts from 0
        # Where a server has claimed it and does not confirm that, it may have started at once.
        started = job.started_monotonic or self._first_asked_at.get(job.id)
        self._stop_tracking(job.id)
        if job.cell.options.timeout is not None and started is not None:
            seconds = job.cell.options.timeout + CONFIRM_SECONDS + PEER_MARGIN_SECONDS
            left = max(started + seconds - time.monotonic(), 0.0)
            job.timer = self._call_later(left, lambda: self._on_result_timeout(job))

    def owners(self) -> set[str]:
        """Return the ids of the servers that own remote jobs."""
        return {job.owner for job in self._dispatch.jobs.values()} - {"", _UNKNOWN_OWNER}

    def on_server_lost(self, server: str) -> None:
        """Follow the jobs of a dead server in the store: other servers take them over."""
        for job in list(self._dispatch.jobs.values()):
            if job.owner == server and job.id not in self._tries:
                self.follow_in_store(job)

    def _is_unconfirmed(self, job: Job) -> bool:
        return job.id in self._tries and self._is_open(job)

    async def _ask_again_or_withdraw(self, jobs: Sequence[Job]) -> None:
        holders = await self._read_holders()
        waiting = [job for job in jobs if self._is_unconfirmed(job) and job.owner]
        waiting = [job for job in waiting if not self._ask_again(job, holders)]
        self.send_launches()
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
    what = {"kind": cell.kind, "title": cell.title, "restarts": cell.restarts}
    return {**cell.options.to_fields(), "awaits": cell.awaits, "files": files, **what}
