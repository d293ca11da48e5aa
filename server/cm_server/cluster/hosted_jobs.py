"""Hosted jobs: of callers of other servers, on boards of this server. No sockets, no SQL."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.run_options import RunOptions
from cm_server.installs.transfers import RelayedTransfer
from cm_server.jobs.model import Cell, Job, Requester

if TYPE_CHECKING:
    from cm_server.jobs.model import Board
    from cm_server.store.rows import TokenRow
    from cm_server.store.store_queue import Operation

    from .peer_messages import PeerMessages
    from .services import ClusterContext, ClusterServices

log = logging.getLogger("cm_server")


#: The messages that are counted; ``sent`` of a job's last message has their numbers in this order.
COUNTED_OPS: Final = (wire.OUTPUT, wire.VALUE)


class RemoteObserver:
    """The observer of hosted jobs: forwards their messages to the caller's server.

    Args:
        peer_messages: to the other servers.
        server: the id of the caller's server.
        max_pending_bytes: when the bus has more to send, it counts as congested.
    """

    def __init__(self, peer_messages: PeerMessages, server: str, max_pending_bytes: int) -> None:
        self._max_pending_bytes = max_pending_bytes
        self._peer_messages = peer_messages
        self._server = server
        self._truncated: set[tuple[int, int]] = set()  # job and flags, of dropped messages
        self._sent: dict[int, Counter[int]] = {}  # job -> number of messages by op, of COUNTED_OPS

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Forward one message; output is dropped while the bus is congested (sends TRUNCATED).

        The last message of a job says how many pieces of output and of its value were sent, so that
        the other server knows whether the bus has lost some.
        """
        op, _, job = wire.HEADER.unpack_from(message)
        head: dict[str, Any] = {}
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
        if message[0] in COUNTED_OPS:
            self._sent.setdefault(job, Counter())[op] += 1
        elif op in (wire.RESULT, wire.ENDED) and (counts := self._sent.pop(job, None)):
            head["sent"] = [counts[counted] for counted in COUNTED_OPS]
        self._peer_messages.send(self._server, "say", head, message)


class _Claim(NamedTuple):
    """The jobs of a "run" message, which are being claimed in the store.

    Attributes:
        sender: the id of the caller's server.
        head: of the message.
        code: of the cell.
        names: of the boards, as the caller knows them, by job number.
        connected: the boards that are connected here, by job number.
        operation: returns the numbers of the claimed jobs.
    """

    sender: str
    head: dict[str, Any]
    code: bytes
    names: dict[int, str]
    connected: dict[int, Board]
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
        self._claiming: dict[int, bool] = {}  # jobs being claimed -> whether they were interrupted
        self._observers: dict[str, RemoteObserver] = {}
        self._peer_messages.handlers |= {
            "run": self._on_run,
            "interrupt": self._on_interrupt,
            "answer": self._on_answer,
            "data": self._on_data,
            "refuse": self._on_refuse,
        }

    def _on_run(self, sender: str, head: dict[str, Any], code: bytes) -> None:
        """Claim and run the jobs whose boards are connected here; refuse the others."""
        names: dict[int, str] = {}
        connected: dict[int, Board] = {}
        for number, board_id, name in head["jobs"]:
            names[number] = name
            board = self._registry.by_id.get(board_id)
            if board is not None and board.link:
                connected[number] = board
        idle = [number for number, board in connected.items() if board.idle]
        busy = connected.keys() - set(idle)
        self._claiming |= dict.fromkeys(connected, False)
        if self._tokens.by_hash(head["token"]) is None:
            self._store_queue.run(lambda store: store.tokens()).when_done(self._on_tokens_read)
        operation = self._store_queue.run(
            lambda store: store.claim_jobs(sender, idle, busy) if connected else set()
        )
        claim = _Claim(sender, head, code, names, connected, operation)
        operation.when_done(lambda _: self._on_claimed(claim))

    def _on_tokens_read(self, operation: Operation[list[TokenRow]]) -> None:
        if operation.error is None:
            self._tokens.apply_rows(operation.result())

    def _on_claimed(self, claim: _Claim) -> None:
        """Run the jobs that this server owns now."""
        sender, head, names, connected = claim.sender, claim.head, claim.names, claim.connected
        interrupted = {number for number in connected if self._claiming.pop(number, False)}
        try:
            claimed = claim.operation.result()
        except ServerError as error:
            why = f"{error.reason}; it did not run"
            self._peer_messages.send(sender, "refused", {"jobs": list(names), "why": why})
            return
        cell = _read_cell(claim.code, head)
        observer = self._observers.setdefault(
            sender, RemoteObserver(self._peer_messages, sender, self._max_pending_bytes)
        )
        requester = Requester(head["caller"], observer, head["token"])
        jobs = [
            self._make_job(
                number, connected[number], cell, requester._replace(board_name=names[number])
            )
            for number in claimed
        ]
        accepted = [[job.id, not job.board.idle, job.board.buffer_size] for job in jobs]
        self._peer_messages.send(sender, "taken", {"jobs": accepted})
        if refused := names.keys() - claimed:
            self._peer_messages.send(sender, "refused", {"jobs": sorted(refused)})
        self._dispatch.jobs.update((job.id, job) for job in jobs)
        self._dispatch.scheduler.launch(jobs)
        for job in jobs:
            if job.id in interrupted and job.state != "ended":
                self._dispatch.interrupt(job)

    def _make_job(self, number: int, board: Board, cell: Cell, requester: Requester) -> Job:
        """Return a new job, or the one of this server's callers that comes back with its board."""
        own = self._dispatch.jobs.get(number)
        if own is not None:
            own.owner, own.state = "", "queued"
            return own
        return self._dispatch.job_results.new_job(number, board, cell, requester)

    def on_server_lost(self, server: str) -> None:
        """Continue the jobs of a dead server's callers without observer."""
        observer = self._observers.pop(server, None)
        if observer is not None:
            self._dispatch.detach_observer(observer)

    def _on_interrupt(self, _sender: str, head: dict[str, Any], _payload: bytes) -> Any:
        """Interrupt jobs that this server owns; reply with the number of those it knows."""
        for number in head["jobs"]:
            if number in self._claiming:
                self._claiming[number] = True
        found = [job for number in head["jobs"] if (job := self._dispatch.jobs.get(number))]
        for job in found:
            if not job.owner:
                self._dispatch.interrupt(job)
        return {"found": len(found)}, b""

    def _on_answer(self, _sender: str, head: dict[str, Any], text: bytes) -> None:
        """Forward the answer to an ``input()``."""
        job = self._dispatch.jobs.get(head["job"])
        if job is not None:
            self._dispatch.board_messages.answer_input(job, text, nobody=head["nobody"])

    def _on_data(self, _sender: str, head: dict[str, Any], data: bytes) -> None:
        """Forward a message of a file transfer, which the caller's server controls."""
        job = self._dispatch.jobs.get(head["job"])
        if job is not None and job.state == "running" and job.board.link is not None:
            job.board.link.send(data)

    def _on_refuse(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """End a job that its caller's server cannot continue."""
        job = self._dispatch.jobs.get(head["job"])
        if job is not None and not job.owner:
            self._dispatch.job_results.end_job(job, "error", head["why"])


def _read_cell(code: bytes, head: dict[str, Any]) -> Cell:
    """Return the cell of a "run" message; its caller's server waits for the board itself."""
    options = dataclasses.replace(RunOptions.from_fields(head), wait=0.0)
    files = RelayedTransfer(*head["files"]) if head["files"] else None
    return Cell(code, options, head["awaits"], files)
