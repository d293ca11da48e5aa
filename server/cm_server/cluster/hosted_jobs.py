"""Hosted jobs: of callers of other servers, on boards of this server. No sockets, no SQL."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.run_options import RunOptions
from cm_server.installs.transfers import RelayedTransfer
from cm_server.jobs.dispatch import ROW_BYTES
from cm_server.jobs.model import Cell, Job, Requester
from cm_server.store.rows import JobClaim
from cm_server.store.shared_store import SharedStore

from .job_streams import INPUTS, KINDS, kind_of, pack_counted

if TYPE_CHECKING:
    from cm_server.jobs.model import Board
    from cm_server.store.rows import TokenRow
    from cm_server.store.store_queue import Operation

    from .peer_messages import PeerMessages
    from .services import ClusterContext, ClusterServices

log = logging.getLogger("cm_server")


#: Without a message of the caller's server for so long, the file transfers that it controls end.
RELAY_SECONDS: Final = 5.0
RELAY_LOST: Final = (
    "ServerError: messages between the servers were lost; the transfer was stopped: try again"
)
RELAY_GONE: Final = (
    "ServerError: the server of its caller is gone or does not answer; the transfer was stopped"
)


class HostedStream:
    """What was exchanged about one hosted job with its caller's server.

    Attributes:
        sent: the number of messages that were sent, by kind (see ``job_streams.kind_of``).
        received_data: the number of messages for its board that were received.
        interrupts: the number of its caller's interrupts that were received.
        input_message: the last INPUT of its board.
        running: the numbers of the jobs of its cell that were started with it, and have not ended.
    """

    __slots__ = ("input_message", "interrupts", "received_data", "running", "sent")

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.sent = [0] * KINDS
        self.received_data = 0
        self.interrupts = 0
        self.input_message = b""


class RemoteObserver:
    """The observer of hosted jobs: forwards their messages to the caller's server.

    Each message about a job says how many of each kind were sent until now, so that the other
    server notices those that the bus has lost.

    Args:
        peer_messages: to the other servers.
        server: the id of the caller's server.
        max_pending_bytes: when the bus has more to send, it counts as congested.

    Attributes:
        server: the id of the caller's server.
        streams: what was exchanged about each job, by its number.
        heard_at: when the caller's server last sent something about its jobs here, by the
            monotonic clock.
    """

    def __init__(self, peer_messages: PeerMessages, server: str, max_pending_bytes: int) -> None:
        self._max_pending_bytes = max_pending_bytes
        self._peer_messages = peer_messages
        self.server = server
        self.heard_at = time.monotonic()
        self.streams: dict[int, HostedStream] = {}
        self._truncated: set[tuple[int, int]] = set()  # job and flags, of dropped messages

    def stream(self, job: int) -> HostedStream:
        """Return what was exchanged about a job."""
        return self.streams.setdefault(job, HostedStream())

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Forward one message; output is dropped while the bus is congested (sends TRUNCATED)."""
        op, _, job = wire.HEADER.unpack_from(message)
        if droppable and self._peer_messages.pubsub.pending_bytes > self._max_pending_bytes:
            flags = wire.VALUE_TRUNCATED if op == wire.VALUE else 0
            if (job, flags) in self._truncated:
                return
            self._truncated.add((job, flags))
            message = wire.pack(wire.TRUNCATED, job=job, flags=flags)
        elif (
            self._truncated and self._peer_messages.pubsub.pending_bytes <= self._max_pending_bytes
        ):
            self._truncated.clear()
        stream = self.stream(job)
        kind = kind_of(message)
        if kind is not None:
            stream.sent[kind] += 1
        if op == wire.INPUT:
            stream.input_message = message
        if op in wire.JOB_END_OPS:
            self.streams.pop(job, None)
            stream.running.discard(job)
            # The last result of many takes the others along.
            self._send(stream, message, more_follow=bool(stream.running))
            if not self.streams:  # nothing else can come in this moment
                self._peer_messages.flush()
        else:
            self._send(stream, message)

    def expect_results(self, jobs: Collection[int]) -> None:
        """Note jobs that start together: their results share messages, if they end together."""
        running = set(jobs)
        for job in jobs:
            self.stream(job).running = running

    def repeat_input(self, job: int) -> None:
        """Forward the last INPUT of a job again, since the bus has lost it."""
        stream = self.stream(job)
        if stream.input_message:
            self._send(stream, stream.input_message)

    def _send(self, stream: HostedStream, message: bytes, *, more_follow: bool = False) -> None:
        piece = pack_counted(message, stream.sent)
        self._peer_messages.send_piece(self.server, "say", piece, more_follow=more_follow)


class _Claim(NamedTuple):
    """The jobs of a "run" message, which are being claimed in the store.

    Attributes:
        sender: the id of the caller's server.
        head: of the message.
        cell: what runs.
        names: of the boards, as the caller knows them, by job number.
        connected: the boards that are connected here, by job number.
        expected: the seconds in which boards are back that were asked to connect again, or 0.
        operation: returns the numbers of the claimed jobs.
    """

    sender: str
    head: dict[str, Any]
    cell: Cell
    names: dict[int, str]
    connected: dict[int, Board]
    expected: dict[int, float]
    operation: Operation[set[int]]


class HostedJobs:
    """Runs jobs for other servers.

    Args:
        services: the parts of this server.
        context: the store and the other servers.
    """

    def __init__(self, services: ClusterServices, context: ClusterContext) -> None:
        self._dispatch, self._registry = services.dispatch, services.registry
        self._tokens = services.tokens
        self._store_queue, self._peer_messages = context.store_queue, context.peer_messages
        self._max_pending_bytes = services.limits.unsent_bytes
        self._claiming: dict[int, int] = {}  # jobs being claimed -> how often they were interrupted
        self._claims: dict[Operation[set[int]], _Claim] = {}  # those that wait for the store
        self._observers: dict[str, RemoteObserver] = {}
        self._peer_messages.handlers |= {
            "run": self._on_run,
            "interrupt": self._on_interrupt,
            "answer": self._on_answer,
            "data": self._on_data,
            "refuse": self._on_refuse,
            "repeat-input": self._on_repeat_input,
            "requests": self._on_requests,
            "forget": self._on_forget,
        }

    def _observer(self, server: str) -> RemoteObserver:
        """Return the observer of the jobs of a server's callers."""
        if server not in self._observers:
            self._observers[server] = RemoteObserver(
                self._peer_messages, server, self._max_pending_bytes
            )
        return self._observers[server]

    def _find_job(self, sender: str, number: int) -> Job | None:
        """Return a job that runs here for a caller of the sender; None if there is none."""
        job, observer = self._dispatch.jobs.get(number), self._observers.get(sender)
        is_hosted = job is not None and not job.owner and observer is not None
        return job if is_hosted and job is not None and job.observer is observer else None

    def _on_run(self, sender: str, head: dict[str, Any], code: bytes) -> None:
        """Claim and run the jobs whose boards are connected here; refuse the others."""
        names: dict[int, str] = {}
        connected: dict[int, Board] = {}
        expected: dict[int, float] = {}
        for number, board_id, name in head["jobs"]:
            names[number] = name
            board = self._registry.by_id.get(board_id)
            if board is not None and board.link:
                connected[number] = board
            elif board is not None:
                expected[number] = board.expected_seconds
        idle = [number for number, board in connected.items() if board.idle]
        busy = connected.keys() - set(idle)
        for number in connected:
            self._claiming.setdefault(number, 0)
        if self._tokens.by_hash(head["token"]) is None:
            self._store_queue.run(lambda store: store.tokens()).when_done(self._on_tokens_read)
        operation = self._store_queue.run_shared(
            SharedStore.claim_all,
            JobClaim(sender, idle, busy),
            size=ROW_BYTES * len(connected),
        )
        # The cell is read while the store answers.
        claim = _Claim(sender, head, _read_cell(code, head), names, connected, expected, operation)
        self._claims[operation] = claim
        operation.when_done(lambda _: self._on_claimed(claim))

    def is_claiming(self, board: Board) -> bool:
        """Return whether a job for a board is being claimed."""
        return any(board in claim.connected.values() for claim in self._claims.values())

    def _on_tokens_read(self, operation: Operation[list[TokenRow]]) -> None:
        if operation.error is None:
            self._tokens.apply_rows(operation.result())

    def _on_claimed(self, claim: _Claim) -> None:
        """Run the jobs that this server owns now."""
        del self._claims[claim.operation]
        sender, head, names, connected = claim.sender, claim.head, claim.names, claim.connected
        interrupts = {number: self._claiming.pop(number, 0) for number in connected}
        try:
            claimed = claim.operation.result()
        except ServerError as error:
            why = f"{error.reason}; it did not run"
            self._peer_messages.send(sender, "refused", {"jobs": list(names), "why": why})
            return
        observer = self._observer(sender)
        observer.heard_at = time.monotonic()
        requester = Requester(head["caller"], observer, head["token"])
        jobs = [
            self._make_job(
                number, connected[number], claim.cell, requester._replace(board_name=names[number])
            )
            for number in claimed
        ]
        accepted = [[job.id, not job.board.idle, job.board.buffer_size] for job in jobs]
        self._dispatch.jobs.update((job.id, job) for job in jobs)
        observer.expect_results(claimed)
        self._dispatch.scheduler.launch(jobs)
        # In a message of its own, sent before any result: one that is lost loses no value with it.
        self._peer_messages.send(sender, "taken", {"jobs": accepted})
        self._report_not_claimed(claim, names.keys() - claimed)
        for job in jobs:
            observer.stream(job.id).interrupts = interrupts[job.id]
            if interrupts[job.id] and job.state != "ended":
                self._dispatch.interrupt(job)

    def _report_not_claimed(self, claim: _Claim, numbers: Collection[int]) -> None:
        """Report jobs that could not be claimed; those that run here already were requested twice.

        The confirmation of the latter was lost.
        """
        sender = claim.sender
        hosted = [job for number in numbers if (job := self._find_job(sender, number))]
        if hosted:
            taken = [[job.id, job.state == "queued", job.board.buffer_size] for job in hosted]
            self._peer_messages.send(sender, "taken", {"jobs": taken})
        if refused := set(numbers) - {job.id for job in hosted}:
            expected = {number: seconds for number, seconds in claim.expected.items() if seconds}
            head = {"jobs": sorted(refused), "expected": list(expected.items())}
            self._peer_messages.send(sender, "refused", head)

    def _make_job(self, number: int, board: Board, cell: Cell, requester: Requester) -> Job:
        """Return a new job, or the one of this server's callers that comes back with its board."""
        own = self._dispatch.jobs.get(number)
        if own is not None:
            own.owner, own.state = "", "queued"
            return own
        return self._dispatch.job_results.new_job(number, board, cell, requester)

    # Servers of callers that are gone, or do not answer

    @property
    def servers(self) -> list[str]:
        """The ids of the servers whose callers have, or had, jobs here."""
        return list(self._observers)

    def on_server_lost(self, server: str) -> None:
        """Continue the jobs of a dead server's callers without observer; stop their transfers."""
        observer = self._observers.pop(server, None)
        if observer is not None:
            self._stop_transfers(observer, RELAY_GONE)
            self._dispatch.detach_observer(observer)

    def _stop_transfers(self, observer: RemoteObserver, why: str) -> None:
        """End the file transfers that a server controls which does not do so any more."""
        for job in list(self._dispatch.jobs.values()):
            if job.observer is observer and job.cell.files is not None:
                self._dispatch.fail_job(job, why)

    def send_states(self) -> None:
        """Tell the servers of callers what was sent about their jobs, so that they miss nothing.

        The transfers of a server that has sent nothing for a while end: it sends something each
        second, and does not control them any more.
        """
        states: dict[RemoteObserver, list[Any]] = {}
        for job in self._dispatch.jobs.values():
            if isinstance(job.observer, RemoteObserver):
                stream = job.observer.stream(job.id)
                waits = job.state in ("queued", "resetting")
                fields = [job.id, waits, job.board.buffer_size, stream.sent, job.awaiting_input]
                states.setdefault(job.observer, []).append(fields)
        for observer, jobs in states.items():
            self._peer_messages.send(observer.server, "states", {"jobs": jobs})
            if time.monotonic() - observer.heard_at > RELAY_SECONDS:
                self._stop_transfers(observer, RELAY_GONE)
        for observer in self._observers.values():
            for number in observer.streams.keys() - self._dispatch.jobs.keys():
                del observer.streams[number]  # another server has taken the job over

    def _on_forget(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Continue jobs without observer that their caller's server has ended."""
        for number in head["jobs"]:
            job = self._find_job(sender, number)
            if job is None:
                continue
            if job.cell.files is not None:
                self._dispatch.fail_job(job, RELAY_GONE)
            else:
                self._dispatch.detach_job(job)

    # Requests about jobs

    def _on_interrupt(self, sender: str, head: dict[str, Any], _payload: bytes) -> Any:
        """Interrupt jobs that this server owns; reply with the number of those it knows."""
        for number in head["jobs"]:
            if number in self._claiming:
                self._claiming[number] = head.get("count", 1)
        found = [job for number in head["jobs"] if (job := self._dispatch.jobs.get(number))]
        for job in found:
            if "count" in head:
                self._note_interrupts(sender, job, head["count"])
            if not job.owner:
                self._dispatch.interrupt(job)
        return {"found": len(found)}, b""

    def _note_interrupts(self, sender: str, job: Job, count: int) -> bool:
        """Note how often a job's caller interrupted it; return whether that is news."""
        if self._find_job(sender, job.id) is None:
            return False
        stream = self._observer(sender).stream(job.id)
        is_news = count > stream.interrupts
        stream.interrupts = max(count, stream.interrupts)
        return is_news

    def _on_requests(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Compare what a server has sent about its callers' jobs with what was received."""
        self._observer(sender).heard_at = time.monotonic()
        for number, sent_data, interrupts in head["jobs"]:
            job = self._find_job(sender, number)
            if job is None:
                continue
            if sent_data > self._observer(sender).stream(number).received_data:
                self._dispatch.fail_job(job, RELAY_LOST)
            elif self._note_interrupts(sender, job, interrupts):
                self._dispatch.interrupt(job)

    def _on_answer(self, sender: str, head: dict[str, Any], text: bytes) -> None:
        """Forward the answer to the ``input()`` for which it was given."""
        job = self._find_job(sender, head["job"])
        if job is not None and self._observer(sender).stream(job.id).sent[INPUTS] == head["input"]:
            self._dispatch.board_messages.answer_input(job, text, nobody=head["nobody"])

    def _on_repeat_input(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Ask again for the answer to an open ``input()``: the first question was lost."""
        job = self._find_job(sender, head["job"])
        if job is not None and job.awaiting_input:
            self._observer(sender).repeat_input(job.id)

    def _on_data(self, sender: str, head: dict[str, Any], data: bytes) -> None:
        """Forward a message of a file transfer, which the caller's server controls."""
        job = self._find_job(sender, head["job"])
        if job is None or job.state != "running" or job.board.link is None:
            return
        observer = self._observer(sender)
        observer.heard_at = time.monotonic()
        stream = observer.stream(job.id)
        if head["count"] != stream.received_data + 1:
            self._dispatch.fail_job(job, RELAY_LOST)
            return
        stream.received_data += 1
        job.board.link.send(data)

    def _on_refuse(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """End a job that its caller's server cannot continue."""
        job = self._find_job(sender, head["job"])
        if job is not None:
            self._dispatch.fail_job(job, head["why"])


def _read_cell(code: bytes, head: dict[str, Any]) -> Cell:
    """Return the cell of a "run" message; its caller's server waits for the board itself."""
    options = dataclasses.replace(RunOptions.from_fields(head), wait=0.0)
    files = RelayedTransfer(*head["files"]) if head["files"] else None
    # A server of an earlier version does not say what the job is, and whether it restarts boards.
    kind, title = head.get("kind", ""), head.get("title", "")
    return Cell(code, options, head["awaits"], files, kind, title, head.get("restarts", False))
