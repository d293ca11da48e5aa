"""``/caller``: the link of a person's program (docs/protocol.md, "Caller link")."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any

from tornado.web import RequestHandler

from cloudmanager import wire
from cloudmanager.errors import CloudmanagerError, PeerWireError, ServerError
from cloudmanager.targets import parse

from . import verbs
from .auth import Caller, find_caller
from .jobs import Cell, Job
from .websocket import Link, accept

if TYPE_CHECKING:
    from .app import Server

log = logging.getLogger("cm_server")

MAX_MESSAGE = 16 * 1024 * 1024  # bytes that a caller may send in one message
#: Output in bytes that may wait for a slow caller; what comes on top is left out.
MAX_WAITING = 1024 * 1024
MAX_FRAME = 1024 * 1024  # bytes, after which one frame takes no more messages
ACCEPT_SECONDS = 0.002  # how long "accepted" may wait for company
MAX_TIMEOUT = 7 * 86400  # seconds


class CallerSocket(RequestHandler):
    """One caller's WebSocket."""

    def initialize(self, server: Server) -> None:
        """Take the server that it belongs to."""
        self._server = server

    async def get(self) -> None:
        """Check token and version, upgrade; from then on the conversation lives by itself."""
        caller = find_caller(self.request.headers.get("Authorization"), self._server.tokens)
        if caller is None:
            log.warning("%s was refused as a caller: wrong token", self.request.remote_ip)
            self.set_status(401)
            self.finish("The token is not known here.\n")
            return
        self.set_header("Cm-Protocol", str(wire.PROTOCOL))
        if self.request.headers.get("Cm-Protocol") != str(wire.PROTOCOL):
            self.set_status(409, "Other Protocol Version")
            self.finish(f"This server speaks version {wire.PROTOCOL} of the protocol.\n")
            return
        link = Link(MAX_MESSAGE)
        conversation = CallerConversation(self._server, caller, link)
        if await accept(self, link) and not link.gone:
            conversation.begin()


class CallerConversation:
    """What is said on one caller's link.

    A write costs more than all that is done here for a message, so messages share frames:
    that a cell was accepted waits a moment for its first answer, and what many boards say
    leaves at the end of the loop's turn. While the caller has not read the last frame,
    they wait; output beyond ``MAX_WAITING`` is left out and the caller is told so. How
    jobs end is never left out.
    """

    def __init__(self, server: Server, caller: Caller, link: Link) -> None:
        self._server = server
        self._caller = caller
        self._link = link
        link.on_message = self._on_message
        link.on_drained = self._flush
        self._outbox: list[bytes] = []
        self._waiting = 0  # bytes in the outbox
        self._soon = False  # whether the outbox leaves at the end of this turn of the loop
        self._timer: asyncio.TimerHandle | None = None  # else by then
        self._truncated: set[tuple[int, int]] = set()
        self._open = 0  # jobs that have not ended

    def begin(self) -> None:
        """Count as one of the server's callers, until the link ends."""
        self._server.callers.add(self)
        self._link.on_end = self._on_end

    def _on_end(self) -> None:
        self._server.callers.discard(self)
        self._server.dispatch.forget(self)

    def close(self, code: int, reason: str) -> None:
        """Send what waits, say why, and hang up."""
        self._flush()
        self._link.close(code, reason)

    # From the caller

    def _on_message(self, data: bytes) -> None:
        message = wire.unpack(data)
        if message.op == wire.SUBMIT:
            self._reply_to(message, self._submit)
        elif message.op == wire.REQUEST:
            self._reply_to(message, self._request)
        elif message.op == wire.ANSWER:
            job = self._server.dispatch.jobs.get(message.job)
            if job is not None and job.watcher is self:
                nobody = bool(message.flags & wire.NOBODY)
                self._server.dispatch.answer(job, message.payload, nobody=nobody)
        else:
            raise PeerWireError(f"a caller may not send op 0x{message.op:02x}")

    def _reply_to(self, message: wire.Message, act: Any) -> None:
        """Do what is asked; what goes wrong is the reply."""
        try:
            act(message)
        except PeerWireError:
            raise
        except CloudmanagerError as error:
            self._link.send(wire.pack_json(wire.REPLY, verbs.pack_error(error), job=message.job))

    def _request(self, message: wire.Message) -> None:
        body = wire.read_json(message.payload)
        verbs.check_role(self._caller, str(body.get("verb")))
        reply = verbs.answer(self._server, body)
        self._link.send(wire.pack_json(wire.REPLY, {"reply": reply}, job=message.job))

    def _submit(self, message: wire.Message) -> None:
        head, code = wire.read_submit(message)
        verbs.check_role(self._caller, "submit")
        cell = Cell(
            code,
            _seconds(head, "timeout"),
            bool(head.get("awaits")),
            bool(head.get("fresh")),
            _seconds(head, "wait") or 0.0,
            bool(head.get("answers")),
        )
        resolution = parse(str(head.get("target", ""))).resolve(self._server.registry.by_name)
        boards = [self._server.registry.by_name[name] for name in resolution.names]
        jobs = self._server.dispatch.submit(boards, cell, self._caller.name, self)
        self._open += len(jobs) + 1  # one more: nothing leaves before "accepted" does
        place = len(self._outbox)
        self._server.dispatch.launch(jobs)
        accepted = {
            "jobs": [[job.id, job.board.name] for job in jobs],
            "left_out": list(resolution.left_out),
            "queued": [[job.id, _before(job)] for job in jobs if job.state == "queued"],
        }
        self._outbox.insert(place, wire.pack_json(wire.ACCEPTED, accepted, job=message.job))
        self._open -= 1
        if not self._open:
            self._flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(ACCEPT_SECONDS, self._flush)

    # To the caller

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Put one message about a job into the outbox."""
        if droppable and self._waiting > MAX_WAITING:
            op, _, job = wire.HEADER.unpack_from(message)
            flags = wire.CUT if op == wire.VALUE else 0
            if (job, flags) not in self._truncated:
                self._truncated.add((job, flags))
                self._outbox.append(wire.pack(wire.TRUNCATED, job=job, flags=flags))
            return
        self._outbox.append(message)
        self._waiting += len(message)
        self._open -= message[0] in wire.ENDINGS
        if not self._open:
            self._flush()
        elif not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send the outbox as one frame, or more than fit; the next when that has been read."""
        self._soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._outbox and not self._link.writing:
            messages, self._outbox = self._outbox, []
            if self._waiting > MAX_FRAME:
                sizes = itertools.accumulate(map(len, messages))
                count = sum(size <= MAX_FRAME for size in sizes) or 1
                messages, self._outbox = messages[:count], messages[count:]
            self._waiting = sum(map(len, self._outbox))
            self._truncated.clear()
            self._link.send(wire.pack_events(messages))


def _before(job: Job) -> int:
    """Return how many jobs its board does first; with none, it is the board that is missing."""
    return job.board.queue.index(job) + (job.board.current is not None)


def _seconds(head: dict[str, Any], name: str) -> float | None:
    value = head.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 < value <= MAX_TIMEOUT:
        raise ServerError(f"{name} is a number of seconds above 0 and at most a week")
    return float(value)
