"""``/caller``: the link of a person's program (docs/protocol.md, "Caller link")."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import CloudmanagerError, NotAllowed, PeerWireError, ServerError
from cloudmanager.protocol.targets import parse_target
from cm_server import limits
from cm_server.api import job_requests, verbs
from cm_server.api.subscriptions import Subscription
from cm_server.auth import access
from cm_server.auth.audit import AuditEntry, shorten
from cm_server.auth.enrolment import CLOSE_REVOKED
from cm_server.jobs.jobs import Cell, Job
from cm_server.store.rows import TokenRow

from . import cleanup
from .handlers import BaseHandler
from .rate_limits import address_group
from .websocket import WebSocketLink, accept_websocket

if TYPE_CHECKING:
    from cm_server.app import Server

log = logging.getLogger("cm_server")

ACCEPTED_DELAY_SECONDS = 0.002  # how long "accepted" may wait for company
TOKEN_CHECK_SECONDS = 1.0  # between two looks at a token that expires: the clock may be set
REQUEST_MESSAGES = 5  # as so many messages a request counts: it does more, and waits for a reply
REMEMBERED_REFS = 64  # cells of a link, of which none may come again


class CallerSocket(BaseHandler):
    """One caller's WebSocket: a token opens it, and nothing else does."""

    required_credential = "token"

    async def get(self) -> None:
        """Check token and version, upgrade; from then on the conversation lives by itself."""
        caller = self._server.tokens.find_caller_token(self.request.headers.get("Authorization"))
        if caller is None:
            self._refuse_unknown_token()
            return
        if why := self._server.tokens.refusal_reason(caller):
            self._refuse_known_token(caller, 401, why)
            return
        if why := self._too_many_callers_reason(caller):
            self._refuse_known_token(caller, 503, why)
            return
        self.set_header("Cm-Protocol", str(wire.PROTOCOL))
        if self.request.headers.get("Cm-Protocol") != str(wire.PROTOCOL):
            self.set_status(409, "Other Protocol Version")
            self.finish(f"This server speaks version {wire.PROTOCOL} of the protocol.\n")
            return
        link = WebSocketLink(limits.CALLER_MESSAGE_BYTES, self._server.backlogs)
        conversation = CallerConnection(self._server, caller, link)
        link.on_open = conversation.start
        await accept_websocket(self, link)

    def _refuse_unknown_token(self) -> None:
        """Refuse a token that nobody has; a right one behind the same address still opens."""
        self._server.dispatch.counters.refused_links["caller"] += 1
        address = self.address
        said = self._server.audit_log.log_stranger(address, "login", "", "wrong token")
        if said is not None:
            log.warning("%s was refused as a caller: %s", address, said)
        if self._server.bad_login_rate.allow(address_group(address)) is None:
            self.refuse(429, "too many wrong tokens came from this address; wait a minute")
        else:
            self.refuse(401, "the server does not know this token")

    def _refuse_known_token(self, token: TokenRow, status: int, why: str) -> None:
        self._server.dispatch.counters.refused_links["caller"] += 1
        note = AuditEntry(token.name, self.address, "login")
        self._server.audit_log.log_refusal(note, NotAllowed("caller", why))
        self.refuse(status, why)

    def _too_many_callers_reason(self, token: TokenRow) -> str:
        callers = self._server.callers
        if len(callers) >= limits.CALLERS:
            return f"there are {limits.CALLERS} callers already"
        own = sum(other.token.hash == token.hash for other in callers)
        if own >= limits.CALLERS_PER_TOKEN:
            return f"{limits.CALLERS_PER_TOKEN} callers use the token {token.name!r} already"
        return ""


class CallerConnection:
    """What is said on one caller's link.

    A write costs more than all that is done here for a message, so messages share frames:
    that a cell was accepted waits a moment for its first answer, and what many boards say
    leaves at the end of the loop's turn. While the caller has not read the last frame,
    they wait; output beyond ``OUTBOX_BYTES`` is left out and the caller is told so. How
    jobs end is never left out.
    """

    def __init__(self, server: Server, token: TokenRow, link: WebSocketLink) -> None:
        self._server = server
        self.token = token
        self._link = link
        link.on_message = self._on_message
        link.on_drained = self._flush
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0  # bytes in the outbox
        self._flush_scheduled = (
            False  # whether the outbox leaves at the end of this turn of the loop
        )
        self._flush_timer: asyncio.TimerHandle | None = None  # else by then
        self._truncated: set[tuple[int, int]] = set()
        self._recent_refs: deque[int] = deque(
            maxlen=REMEMBERED_REFS
        )  # a cell that comes twice runs once
        self._open_jobs = 0  # jobs that have not ended
        self._token_timer: asyncio.TimerHandle | None = None  # at the token again
        self._shut = False  # whether it is being closed
        self._subscriptions: dict[int, Subscription] = {}  # by the caller's own number
        self._reply_tasks: set[asyncio.Task[None]] = set()  # replies that take their time

    def start(self) -> None:
        """Count as one of the server's callers, until the link ends."""
        self._link.on_close = self._on_close
        self._link.write_log = self._write_log
        self._server.callers.add(self)
        self._check_token()

    def _write_log(self, level: int, text: str, *args: object) -> None:
        """Write a line about this caller, unless its token has caused too many."""
        self._server.peer_log.write(f"caller {self.token.name}", level, text, *args)

    def _check_token(self) -> None:
        """Close the link of a token that is no longer valid; look again when it expires.

        The timer is of the loop's clock, which nobody sets; the token expires by the wall clock.
        So it looks again each second, too.
        """
        if not self._is_valid():
            return
        if (left := self._server.tokens.seconds_left(self.token)) is not None:
            left = max(left, 0.01)
            loop = asyncio.get_running_loop()
            self._token_timer = loop.call_later(min(left, TOKEN_CHECK_SECONDS), self._check_token)

    def _is_valid(self) -> bool:
        """Return whether the link's token is valid now; else hang up."""
        why = self._server.tokens.refusal_reason(self.token)
        if why and not self._shut:
            self._server.permission.review()  # its jobs' ends leave before the link does
            self.close(CLOSE_REVOKED, why)
        return not why

    def _on_close(self) -> None:
        cleanup.run_all(
            "a caller's link",
            lambda: self._server.callers.discard(self),
            self._stop_timers,
            lambda: self._server.content_store.discard_uploads(self),
            lambda: self._server.plan_cache.discard_plans(self),
            *(lambda ref=ref: self._unsubscribe(ref) for ref in list(self._subscriptions)),
            *(task.cancel for task in list(self._reply_tasks)),
            lambda: self._server.dispatch.detach_observer(self),
        )

    def _stop_timers(self) -> None:
        for timer in (self._token_timer, self._flush_timer):
            if timer is not None:
                timer.cancel()

    def close(self, code: int, reason: str) -> None:
        """Send what waits, say why, and hang up; never raises."""
        self._shut = True
        cleanup.run_all("a caller's link", self._flush, lambda: self._link.close(code, reason))

    # From the caller

    def _on_message(self, data: bytes) -> None:
        message = wire.unpack(data)
        if not self._is_valid():
            return
        if message.op == wire.SUBMIT:
            self._handle_and_reply(message, self._on_submit)
        elif message.op == wire.REQUEST:
            self._link.charge(REQUEST_MESSAGES - 1)
            self._handle_and_reply(message, self._on_request)
        elif message.op == wire.CONTENT:
            self._handle_and_reply(message, self._on_content)
        elif message.op == wire.WATCH:
            self._handle_and_reply(message, self._on_watch)
        elif message.op == wire.UNWATCH:
            self._link.charge(limits.RARE_MESSAGES - 1)
            self._unsubscribe(message.job)
        elif message.op == wire.ANSWER:
            job = self._server.dispatch.jobs.get(message.job)
            if job is not None and job.observer is self:
                nobody = bool(message.flags & wire.INPUT_EOF)
                self._server.dispatch.answer_input(job, message.payload, nobody=nobody)
        else:
            raise PeerWireError(f"a caller may not send op 0x{message.op:02x}")

    def _handle_and_reply(self, message: wire.Message, handler: Any) -> None:
        """Do what is asked; what goes wrong is the reply."""
        try:
            handler(message)
        except PeerWireError:
            raise
        except CloudmanagerError as error:
            self._link.charge(limits.RARE_MESSAGES)
            self._link.send(wire.pack_json(wire.REPLY, verbs.pack_error(error), job=message.job))

    def _on_request(self, message: wire.Message) -> None:
        body = wire.read_json(message.payload)
        reply = verbs.handle_request(self._server, self.token, body, self._link.peer, self)
        if asyncio.iscoroutine(reply):
            task = asyncio.ensure_future(self._send_async_reply(message.job, reply))
            self._reply_tasks.add(task)
            task.add_done_callback(self._reply_tasks.discard)
        else:
            self._link.send(wire.pack_json(wire.REPLY, {"reply": reply}, job=message.job))

    async def _send_async_reply(self, ref: int, reply: Coroutine[Any, Any, Any]) -> None:
        """Send a reply that takes its time: the link and the loop go on meanwhile."""
        try:
            body = {"reply": await reply}
        except CloudmanagerError as error:
            body = verbs.pack_error(error)
        except Exception as error:
            cleanup.log_failure("a request", error)
            body = verbs.pack_error(ServerError("it failed at this; its log says why"))
        if self._is_valid():
            self._link.send(wire.pack_json(wire.REPLY, body, job=ref))

    def _on_content(self, message: wire.Message) -> None:
        """Take a piece of a file; the reply is how much of it is there."""
        number, piece = wire.read_content(message)
        taken = self._server.content_store.write_upload(self, number, piece)
        self._link.send(wire.pack_json(wire.REPLY, {"reply": taken}, job=message.job))

    def _on_watch(self, message: wire.Message) -> None:
        body = wire.read_json(message.payload)
        target = str(body.get("target", ""))
        note = AuditEntry(self.token.name, self._link.peer, "watch", target[: limits.AUDIT_CHARS])
        try:
            verbs.check_role(self.token, "watch")
            if why := self._watch_refusal_reason(message.job):
                raise ServerError(why)
            known = access.reachable_boards(self.token, self._server.registry.by_name)
            parse_target(target).matching_names(known)  # a name that nobody has is an error
            watch = Subscription(
                message.job,
                parse_target(target),
                reachable=known,  # chosen anew at each look
                send=self._link.send,
                is_ready=lambda: self._is_valid() and not self._link.write_blocked,
                samples=bool(body.get("samples", True)),
            )
        except CloudmanagerError as error:
            self._server.audit_log.log_refusal(note, error)
            raise
        self._server.audit_log.log_read(note)
        self._subscriptions[message.job] = watch
        self._server.subscriptions.add(watch)

    def _watch_refusal_reason(self, ref: int) -> str:
        if ref in self._subscriptions:
            return "a watch of that number is there already"
        if len(self._subscriptions) >= limits.SUBSCRIPTIONS_PER_LINK:
            return f"a link watches {limits.SUBSCRIPTIONS_PER_LINK} targets at most"
        if len(self._server.subscriptions) >= limits.SUBSCRIPTIONS:
            return f"{limits.SUBSCRIPTIONS} targets are watched already"
        return ""

    def _unsubscribe(self, ref: int) -> None:
        watch = self._subscriptions.pop(ref, None)
        if watch is not None:
            self._server.subscriptions.remove(watch)

    def _on_submit(self, message: wire.Message) -> None:
        if message.job in self._recent_refs:
            raise PeerWireError("this cell was submitted before")
        self._recent_refs.append(message.job)
        head, code = wire.read_submit(message)
        target = str(head.get("target", ""))
        try:
            jobs, left_out = self._create_jobs(head, target, code)
        except CloudmanagerError as error:
            note = AuditEntry(self.token.name, self._link.peer, "submit", target)
            self._server.audit_log.log_refusal(note, error)
            raise
        self._open_jobs += len(jobs) + 1  # one more: nothing leaves before "accepted" does
        place = len(self._outbox)
        self._server.dispatch.launch(jobs)
        accepted = {
            "jobs": [[job.id, job.board.name] for job in jobs],
            "left_out": left_out,
            "queued": [[job.id, _jobs_ahead(job)] for job in jobs if job.state == "queued"],
        }
        self._outbox.insert(place, wire.pack_json(wire.ACCEPTED, accepted, job=message.job))
        self._open_jobs -= 1
        if not self._open_jobs:
            self._flush()
        elif self._flush_timer is None:
            loop = asyncio.get_running_loop()
            self._flush_timer = loop.call_later(ACCEPTED_DELAY_SECONDS, self._flush)

    def _create_jobs(
        self, head: dict[str, Any], target: str, code: bytes
    ) -> tuple[list[Job], tuple[str, ...]]:
        """Write a cell's jobs down, on the boards that the token reaches; none has begun."""
        verbs.check_role(self.token, "submit")
        known = access.reachable_boards(self.token, self._server.registry.by_name)
        resolution = parse_target(target).resolve(known)
        boards, left_out = [known[name] for name in resolution.names], resolution.left_out
        if head.get("idle"):
            left_out += tuple(board.name for board in boards if board.state != "idle")
            boards = [board for board in boards if board.state == "idle"]
        order = job_requests.read_job_request(self._server, self, head, code, len(boards))
        cell = Cell(
            order.code,
            _read_seconds(head, "timeout"),
            bool(head.get("awaits")),
            bool(head.get("fresh")),
            _read_seconds(head, "wait") or 0.0,
            bool(head.get("answers")),
            order.files,
        )
        jobs = self._server.dispatch.submit(
            boards,
            cell,
            self.token.name,
            self,
            token=self.token.hash,
            address=self._link.peer,
            target=target[: limits.AUDIT_CHARS],
            detail=shorten(order.detail),
            verb=order.verb,
        )
        return jobs, left_out

    # To the caller

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Put one message about a job into the outbox."""
        if droppable and self._outbox_bytes > limits.OUTBOX_BYTES:
            op, _, job = wire.HEADER.unpack_from(message)
            flags = wire.VALUE_TRUNCATED if op == wire.VALUE else 0
            if (job, flags) not in self._truncated:
                self._truncated.add((job, flags))
                self._outbox.append(wire.pack(wire.TRUNCATED, job=job, flags=flags))
            return
        self._outbox.append(message)
        self._outbox_bytes += len(message)
        self._open_jobs -= message[0] in wire.JOB_END_OPS
        if not self._open_jobs:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send the outbox as one frame, or more than fit; the next when that has been read."""
        self._flush_scheduled = False
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if not self._shut and self._server.tokens.refusal_reason(self.token):
            # Not here: a job may be about to end, which is the review's to find ended.
            asyncio.get_running_loop().call_soon(self._is_valid)
            return
        while self._outbox and not self._link.write_blocked:
            messages, self._outbox = self._outbox, []
            if self._outbox_bytes > limits.FRAME_BYTES:
                sizes = itertools.accumulate(map(len, messages))
                count = sum(size <= limits.FRAME_BYTES for size in sizes) or 1
                messages, self._outbox = messages[:count], messages[count:]
            self._outbox_bytes = sum(map(len, self._outbox))
            self._truncated.clear()
            self._link.send(wire.pack_events(messages))
            self._report_forwarded(messages)

    def _report_forwarded(self, messages: list[bytes]) -> None:
        """Let boards send more of their files for what of them has left now."""
        left: dict[int, int] = {}
        for message in messages:
            if message[0] == wire.CHUNK:
                job = wire.HEADER.unpack_from(message)[2]
                left[job] = left.get(job, 0) + len(message) - wire.HEADER.size
        for job, size in left.items():
            self._server.dispatch.on_bytes_forwarded(job, size)


def _jobs_ahead(job: Job) -> int:
    """Return how many jobs its board does first; with none, it is the board that is missing."""
    board = job.board
    if job.owner:
        return board.remote_state.queued + 1 if board.remote_state else 0
    return board.queue.index(job) + (board.current_job is not None or board.blocked)


def _read_seconds(head: dict[str, Any], name: str) -> float | None:
    value = head.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 < value <= limits.CELL_SECONDS:
        raise ServerError(f"{name} is a number of seconds above 0 and at most a week")
    return float(value)
