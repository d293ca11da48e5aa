"""Jobs of callers at other servers, on boards whose link is here; no sockets, no SQL."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server import limits
from cm_server.installs.transfers import RelayedTransfer
from cm_server.jobs.jobs import Cell, Job

if TYPE_CHECKING:
    from cm_server.jobs.dispatch import Dispatch
    from cm_server.jobs.registry import Board, Registry
    from cm_server.store.shared_store import SharedStore

    from .peer_messages import PeerMessages

log = logging.getLogger("cm_server")


class RemoteObserver:
    """The callers at another server, as far as a job here sees them."""

    def __init__(self, peer_messages: PeerMessages, server: str) -> None:
        self._peer_messages = peer_messages
        self._server = server
        self._truncated: set[tuple[int, int]] = set()  # of which something was left out

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Pass on one message; where the bus does not keep up, output is left out."""
        if droppable and self._peer_messages.pubsub.pending_bytes > limits.UNSENT_BYTES:
            op, _, job = wire.HEADER.unpack_from(message)
            flags = wire.VALUE_TRUNCATED if op == wire.VALUE else 0
            if (job, flags) in self._truncated:
                return
            self._truncated.add((job, flags))
            message = wire.pack(wire.TRUNCATED, job=job, flags=flags)
        elif self._truncated and self._peer_messages.pubsub.pending_bytes <= limits.UNSENT_BYTES:
            self._truncated.clear()
        self._peer_messages.send(self._server, "say", {}, message)


class HostedJobs:
    """Runs them.

    Args:
        dispatch: which has the queues.
        store: which says whose a job is.
        registry: the boards.
        peer_messages: letters to the other servers.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        store: SharedStore,
        registry: Registry,
        peer_messages: PeerMessages,
    ) -> None:
        self._dispatch, self._store, self._registry = dispatch, store, registry
        self._peer_messages = peer_messages
        self._observers: dict[str, RemoteObserver] = {}
        peer_messages.handlers |= {
            "run": self._on_run,
            "interrupt": self._on_interrupt,
            "answer": self._on_answer,
            "data": self._on_data,
            "refuse": self._on_refuse,
        }

    def _on_run(self, sender: str, head: dict[str, Any], code: bytes) -> None:
        """Take the jobs whose boards are here, and run them; refuse the others."""
        boards = {
            number: self._registry.by_id.get(board_id) for number, board_id, _ in head["jobs"]
        }
        names = {number: name for number, _, name in head["jobs"]}
        here = {n: board for n, board in boards.items() if board is not None and board.link}
        now = [number for number, board in here.items() if board.idle]
        try:
            taken = self._store.claim_jobs(sender, now, here.keys() - set(now)) if here else set()
        except ServerError as error:
            why = f"{error.reason}; it did not run"
            self._peer_messages.send(sender, "refused", {"jobs": list(boards), "why": why})
            return
        cell = _read_cell(code, head)
        who = {"caller": head["caller"], "token": head["token"]}
        jobs = [
            self._make_job(number, here[number], cell, sender, name=names[number], **who)
            for number in taken
        ]
        told = [[job.id, not job.board.idle, job.board.buffer_size] for job in jobs]
        self._peer_messages.send(sender, "taken", {"jobs": told})
        if gone := boards.keys() - taken:
            self._peer_messages.send(sender, "refused", {"jobs": sorted(gone)})
        self._dispatch.add_hosted_jobs(jobs)
        self._dispatch.launch(jobs)

    def _make_job(
        self, number: int, board: Board, cell: Cell, sender: str, *, caller: str, **more: str
    ) -> Job:
        """Return a job; it may be one of this server's own that comes back with its board."""
        own = self._dispatch.jobs.get(number)
        if own is not None:
            own.owner, own.state = "", "queued"
            return own
        absent = self._observers.setdefault(sender, RemoteObserver(self._peer_messages, sender))
        return Job(number, board, cell, caller, absent, **more)

    def on_server_lost(self, server: str) -> None:
        """Go on without the callers at a server that is gone."""
        absent = self._observers.pop(server, None)
        if absent is not None:
            self._dispatch.detach_observer(absent)

    def _on_interrupt(self, _sender: str, head: dict[str, Any], _payload: bytes) -> Any:
        found = [job for number in head["jobs"] if (job := self._dispatch.jobs.get(number))]
        for job in found:
            if not job.owner:
                self._dispatch.interrupt(job)
        return {"found": len(found)}, b""

    def _on_answer(self, _sender: str, head: dict[str, Any], text: bytes) -> None:
        job = self._dispatch.jobs.get(head["job"])
        if job is not None:
            self._dispatch.answer_input(job, text, nobody=head["nobody"])

    def _on_data(self, _sender: str, head: dict[str, Any], data: bytes) -> None:
        job = self._dispatch.jobs.get(head["job"])
        if job is not None and job.state == "running" and job.board.link is not None:
            job.board.link.send(data)

    def _on_refuse(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        job = self._dispatch.jobs.get(head["job"])
        if job is not None and not job.owner:
            self._dispatch.fail_job(job, head["why"])


def _read_cell(code: bytes, head: dict[str, Any]) -> Cell:
    files = RelayedTransfer(*head["files"]) if head["files"] else None
    how = head["timeout"], head["awaits"], head["fresh"]
    return Cell(code, *how, wait=0.0, answers=head["answers"], files=files)
