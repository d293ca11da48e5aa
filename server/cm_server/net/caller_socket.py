"""``/caller``: the link of a notebook, shell or program (docs/protocol.md, "Caller link")."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.protocol import frames, wire
from cloudmanager.protocol.errors import CloudmanagerError, NotAllowed, PeerWireError, ServerError
from cloudmanager.protocol.run_options import OptionLimits, RunOptions
from cloudmanager.protocol.targets import parse_target
from cm_server import cleanup
from cm_server.api import job_requests, replies, verbs
from cm_server.api.request_limits import check_fields, check_size
from cm_server.api.subscriptions import Subscription, WatchRequest
from cm_server.api.waiting_work import WaitingRequest, WaitingWorkReader
from cm_server.auth import access
from cm_server.auth.audit import AuditEntry, shorten
from cm_server.installs.mounts import MountSpec
from cm_server.jobs.dispatch import Submission
from cm_server.jobs.job_texts import JobOrigin
from cm_server.jobs.model import Cell, Requester, TimerHandle
from cm_server.jobs.waiting_jobs import WaitingSubmission
from cm_server.quotas import Quota
from cm_server.rate_limits import address_group
from cm_server.store.rows import CellAudit, TokenRow
from cm_server.store.store_queue import Operation

from .caller_outbox import CallerOutbox
from .fair_queue import FairQueue
from .handlers import BaseHandler, RequestPolicy
from .unfinished_messages import UnfinishedMessages
from .websocket import WebSocketLink, accept_websocket
from .work_shares import Measured, WorkShares

if TYPE_CHECKING:
    from cm_server.api.request_context import Services
    from cm_server.api.subscriptions import Subscriptions
    from cm_server.auth.permission import Permission
    from cm_server.jobs.model import Board
    from cm_server.logs import PeerLog
    from cm_server.rate_limits import RateLimiter

log = logging.getLogger("cm_server")

#: Longest delay of ACCEPTED, so that it can share a frame with the job's first messages.
ACCEPTED_DELAY_SECONDS = 0.002
#: Time between two checks of a token that expires: somebody may set the wall clock.
TOKEN_CHECK_SECONDS = 1.0
#: A request counts as this many messages: it causes more work, and its sender awaits the reply.
REQUEST_MESSAGES = 5
#: Requests that are not refused because others of the link wait for a reply.
_URGENT = ("interrupt", "stop")
#: How many of a link's newest cells are remembered, so that a repeated one is refused.
REMEMBERED_REFS = 64
#: How many different options of a link's cells are remembered: some programs use board after board.
REMEMBERED_HEADS = 16
REMEMBERED_HEAD_BYTES = 512  # of the options of a cell that are remembered
REMEMBERED_CODE_BYTES = 512  # of its code
REMEMBERED_BOARDS = 16  # of its target
#: Messages that are always answered, by a REPLY if the server fails.
_REPLIED_OPS = frozenset((wire.SUBMIT, wire.REQUEST, wire.CONTENT, wire.WATCH))


@dataclass(frozen=True)
class CallerLinkServices:
    """The parts of the server that links of callers use, besides those of requests.

    Attributes:
        requests: what requests use.
        subscriptions: of all callers.
        permission: ends the jobs of a token that is no longer valid.
        peer_log: for lines about callers.
        backlogs: shares the event loop among links.
        bad_login_rate: how many wrong tokens of one address are answered as such.
        work_shares: the time in which the event loop works for each token.
        unfinished: the messages that have begun to arrive.
        waiting_work: packs work that waits for its boards.
        long_replies: lets few long replies be sent as one message at the same time.
        call_later: calls a function after the event loop has run for a number of seconds.
    """

    requests: Services
    subscriptions: Subscriptions
    permission: Permission
    peer_log: PeerLog
    backlogs: FairQueue
    bad_login_rate: RateLimiter
    work_shares: WorkShares
    unfinished: UnfinishedMessages
    waiting_work: WaitingWorkReader
    long_replies: asyncio.Semaphore
    call_later: Callable[[float, Callable[[], None]], TimerHandle]


class _SubmitHead(NamedTuple):
    """The options of a cell, which a caller most often repeats; checked, and never changed.

    Attributes:
        head: the JSON that was read.
        options: those of them that say how the cell is run.
        target: the boards, as the caller wrote them: once parsed, they may be many.
    """

    head: dict[str, Any]
    options: RunOptions
    target: str


class _NamedBoards(NamedTuple):
    """The boards of a target that only names boards; the same until a name or labels change.

    Attributes:
        boards: where cells with this target run, connected or not.
        names_version: of the registry.
    """

    boards: list[Board]
    names_version: int


class _CheckedCell(NamedTuple):
    """What a cell with remembered options is, apart from its boards; never changed.

    Attributes:
        code: as the caller sent it.
        cell: what runs.
        audit: for the audit log.
        origin: for the history.
    """

    code: bytes
    cell: Cell
    audit: CellAudit
    origin: JobOrigin


class _SubmittedCell(NamedTuple):
    """A cell whose jobs are being committed.

    Attributes:
        ref: the caller's number of the SUBMIT.
        submission: the cell and its boards.
        left_out: names of boards of its target that do not run it.
        operation: the commit, which returns the numbers of the jobs.
        expires: until when the jobs wait for their boards in the store, in seconds since 1970;
            None if they start now.
    """

    ref: int
    submission: Submission
    left_out: tuple[str, ...]
    operation: Operation[range]
    expires: float | None = None


class CallerHandler(BaseHandler):
    """Base class of what callers request, who authenticate with tokens."""

    required_credential = "token"

    def initialize(  # type: ignore[override]
        self, policy: RequestPolicy, services: CallerLinkServices
    ) -> None:
        """Set which requests are accepted, and what the links use."""
        super().initialize(policy)
        self._link_services = services
        self._services = services.requests

    async def authenticate(self) -> TokenRow | None:
        """Return the caller's token; refuse the request and return None if it is not valid."""
        tokens, header = self._services.tokens, self.request.headers.get("Authorization")
        caller = tokens.find_caller_token(header)
        if caller is None and self._services.cluster.is_shared:
            await tokens.read_new()
            caller = tokens.find_caller_token(header)
        if caller is None:
            self._refuse_unknown_token()
        elif why := tokens.refusal_reason(caller):
            self.refuse_known_token(caller, 401, why)
        else:
            return caller
        return None

    def _refuse_unknown_token(self) -> None:
        """Refuse an unknown token.

        An address with many wrong tokens gets another status, but is not blocked: a valid token
        from the same address is still accepted.
        """
        self._services.dispatch.counters.refused_links["caller"] += 1
        address = self.address
        logged_reason = self._services.audit_log.log_unauthenticated(
            address, "login", "", "wrong token"
        )
        if logged_reason is not None:
            log.warning("%s was refused as a caller: %s", address, logged_reason)
        if self._sent_too_many_wrong_tokens(address):
            self.refuse(429, "too many wrong tokens came from this address; wait a minute")
        else:
            self.refuse(401, "the server does not know this token")

    def _sent_too_many_wrong_tokens(self, address: str) -> bool:
        """Count a wrong token; return whether its address has exceeded the rate limit."""
        return self._link_services.bad_login_rate.allow(address_group(address)) is None

    def refuse_known_token(self, token: TokenRow, status: int, why: str) -> None:
        """Refuse a request whose token is known."""
        self._services.dispatch.counters.refused_links["caller"] += 1
        note = self._services.audit_log.new_entry(token.name, self.address, "login")
        self._services.audit_log.log_refusal(note, NotAllowed("caller", why))
        self.refuse(status, why)


class CallerSocket(CallerHandler):
    """The WebSocket endpoint for callers."""

    async def get(self) -> None:
        """Check token and protocol version, then upgrade; the link outlives this handler."""
        caller = await self.authenticate()
        if caller is None:
            return
        if why := self._too_many_callers_reason(caller):
            self.refuse_known_token(caller, 503, why)
            return
        self.set_header("Cm-Protocol", str(wire.PROTOCOL))
        if self.request.headers.get("Cm-Protocol") != str(wire.PROTOCOL):
            self.set_status(409, "Other Protocol Version")
            self.finish(f"This server uses version {wire.PROTOCOL} of the protocol.\n")
            return
        limits = self._services.limits
        link = WebSocketLink(limits.caller_message_bytes, self._link_services.backlogs, limits)
        connection = CallerConnection(self._link_services, caller, link)
        link.on_open = connection.start
        await accept_websocket(self, link)

    def _too_many_callers_reason(self, token: TokenRow) -> str:
        """Return why there is no room for another caller; "" if there is."""
        limits, callers = self._services.limits, self._services.callers
        quota = Quota(
            "links of callers",
            total=limits.callers,
            per_token=limits.callers_per_token,
            reserved=limits.reserved_callers,
        )
        return quota.refusal_reason(token, callers.count_of(token), len(callers))


class CallerConnection:
    """The server's end of one caller's link.

    Messages to the caller wait in an outbox. ACCEPTED waits up to ``ACCEPTED_DELAY_SECONDS`` for
    its job's first messages, and messages of many boards are sent together at the end of an
    iteration of the event loop. While the caller has not read the previous frame, messages stay in
    the outbox.

    Args:
        services: the parts of the server.
        token: the caller's token.
        link: the WebSocket.
    """

    def __init__(self, services: CallerLinkServices, token: TokenRow, link: WebSocketLink) -> None:
        self._link_services = services
        self._services = services.requests
        self.token = token
        self._link = link
        link.on_message = self._on_message
        link.on_drained = self._on_drained
        link.may_continue = self._may_continue_message
        link.work = services.work_shares.of(token.hash)
        link.handles_unread = False
        limits = self._services.limits
        self._outbox = CallerOutbox(limits.outbox_bytes, limits.frame_bytes)
        link.queued_bytes = lambda: self._outbox.pending_bytes
        self._is_unfinished = False  # whether a message has begun to arrive
        self._message_timer: TimerHandle | None = None  # for the rest of it
        self._drained: asyncio.Future[None] | None = None  # of those that wait for the caller
        self._flush_scheduled = False  # for the end of this iteration of the event loop
        self._flush_timer: asyncio.TimerHandle | None = None  # of a delayed ACCEPTED
        self._accepted_at = 0.0  # when the last one was put into the outbox, by the loop's clock
        self._heads: dict[bytes, _SubmitHead] = {}  # by their text, the oldest first
        self._cells: dict[bytes, _CheckedCell] = {}  # the last ones with these options
        self._named_boards: dict[bytes, _NamedBoards] = {}  # of these options
        self._requester = Requester(token.name, self, token.hash)
        self._recent_refs: deque[int] = deque(maxlen=REMEMBERED_REFS)  # a cell sent twice runs once
        self._token_timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._closed = False
        self._subscriptions: dict[int, Subscription] = {}  # by the number that the caller chose
        self._reply_tasks: set[asyncio.Task[None]] = set()  # of requests that are answered later

    def start(self) -> None:
        """Register as one of the server's callers until the link ends."""
        self._link.on_close = self._on_close
        self._link.write_log = self._write_log
        self._services.callers.add(self)
        self._check_token()

    def _write_log(self, level: int, text: str, *args: object) -> None:
        """Log a line about this caller, unless its token has caused too many."""
        self._link_services.peer_log.write(f"caller {self.token.name}", level, text, *args)

    def _check_token(self) -> None:
        """Close the link if its token is no longer valid; else check again when it expires.

        The timer uses the monotonic clock of the event loop, but the token expires by the wall
        clock, which somebody may set. So the token is also checked each second.
        """
        if not self._is_valid():
            return
        if (left := self._services.tokens.seconds_left(self.token)) is not None:
            seconds = _seconds_to_next_check(max(left, 0.01))
            loop = asyncio.get_running_loop()
            self._token_timer = loop.call_later(seconds, self._check_token)

    def _is_valid(self) -> bool:
        """Return whether the link's token is valid now; close the link if it is not."""
        why = self._services.tokens.refusal_reason(self.token)
        if why and not self._closing:
            # Ends its jobs, whose results are then still sent.
            self._link_services.permission.review()
            self.close(frames.CLOSE_REVOKED, why)
        return not why

    def _on_close(self) -> None:
        self._closed = True
        cleanup.run_all(
            "a caller's link",
            lambda: self._services.callers.discard(self),
            self._stop_timers,
            lambda: self._link_services.unfinished.update(self, 0),
            lambda: self._services.installs.content_store.discard_uploads(self),
            lambda: self._services.installs.plan_cache.discard_plans(self),
            lambda: self._services.installs.mounts.close_owner(self),
            *(lambda ref=ref: self._unsubscribe(ref) for ref in list(self._subscriptions)),
            *(task.cancel for task in list(self._reply_tasks)),
            lambda: self._services.dispatch.detach_observer(self),
        )

    def _stop_timers(self) -> None:
        for timer in (self._token_timer, self._flush_timer, self._message_timer):
            if timer is not None:
                timer.cancel()

    def close(self, code: int, reason: str) -> None:
        """Send the outbox, then close the link with a reason; never raises."""
        self._closing = True
        cleanup.run_all("a caller's link", self._flush, lambda: self._link.close(code, reason))

    # From the caller

    def _may_continue_message(self, size: int) -> bool:
        """Count the bytes of a message that is not complete; return whether to read more."""
        if not size and not self._is_unfinished:
            return True
        self._is_unfinished = bool(size)
        if not size:
            self._stop_message_timer()
        elif self._message_timer is None:
            self._message_timer = self._link_services.call_later(
                self._services.limits.message_seconds, self._on_message_too_slow
            )
        may_continue = self._link_services.unfinished.update(self, size)
        if not may_continue:
            self._stop_message_timer()  # it has to wait for others
        return may_continue

    def continue_message(self) -> None:
        """Try again to read more of a message that had to wait for others."""
        self._link.continue_message()

    def _stop_message_timer(self) -> None:
        if self._message_timer is not None:
            self._message_timer.cancel()
            self._message_timer = None

    def _on_message_too_slow(self) -> None:
        self._message_timer = None
        self._write_log(logging.WARNING, "%s did not complete a message", self._link.peer)
        self.close(frames.CLOSE_POLICY, "a message took too long")

    def _on_message(self, data: bytes) -> None:
        """Handle one message; a CloudmanagerError of its handler is the reply."""
        message = wire.unpack(data)
        self._stop_message_timer()
        if not self._is_valid_now():
            return
        try:
            if message.op == wire.SUBMIT:
                cell = self._submit(message)
                if cell.operation.done:
                    self._launch(cell)
                else:
                    cell.operation.when_done(lambda _: self._launch_late(cell))
            elif message.op in _HANDLERS:
                _HANDLERS[message.op](self, message)
            else:
                raise PeerWireError(f"a caller may not send op 0x{message.op:02x}")
        except PeerWireError:
            raise
        except CloudmanagerError as error:
            self._link.charge(self._services.limits.rare_messages)
            self._send_error(message.job, error)
        except Exception as error:
            self._report_failure(message, error)

    def _report_failure(self, message: wire.Message, error: Exception) -> None:
        """Reply that the server itself has failed; the link stays open for everything else."""
        cleanup.log_failure(f"a message 0x{message.op:02x} of a caller", error)
        if message.op in _REPLIED_OPS:
            self._send_error(message.job, ServerError(cleanup.FAILED))

    def _is_valid_now(self) -> bool:
        """Return whether the token is valid at this message: timers may be late."""
        return self._is_valid()

    def _send_error(self, ref: int, error: CloudmanagerError) -> None:
        self._link.send(wire.pack_json(wire.REPLY, verbs.pack_error(error), job=ref))

    def _on_request(self, message: wire.Message) -> None:
        self._link.charge(REQUEST_MESSAGES - 1)
        body = self._read_request(message)
        limits = self._services.limits
        if len(self._reply_tasks) >= limits.pending_requests and body.get("verb") not in _URGENT:
            raise ServerError(f"{limits.pending_requests} requests of this link wait for a reply")
        reply = verbs.handle_request(self._services, self.token, body, self._link.peer, self)
        if asyncio.iscoroutine(reply) or replies.is_long(reply):
            task = asyncio.ensure_future(self._send_later(message, reply))
            self._reply_tasks.add(task)
            task.add_done_callback(self._reply_tasks.discard)
            if asyncio.iscoroutine(reply):
                task.add_done_callback(lambda _: reply.close())  # if the link ended before its turn
        else:
            self._link.send(wire.pack_json(wire.REPLY, {"reply": reply}, job=message.job))

    def _read_request(self, message: wire.Message) -> dict[str, Any]:
        """Return the JSON of a REQUEST or a WATCH, which may not be long."""
        check_size(len(message.payload), self._services.limits)
        return wire.read_json(message.payload)

    async def _send_later(self, request: wire.Message, reply: Any) -> None:
        """Send a reply once it is available; other messages are handled meanwhile."""
        ref = request.job
        try:
            if asyncio.iscoroutine(reply):
                await self._link.work.turn()
                reply = await Measured(reply, self._link.work)
            if replies.is_long(reply):
                await self._send_long(ref, reply, parts=bool(request.flags & wire.ACCEPTS_PARTS))
                return
            body = {"reply": reply}
        except CloudmanagerError as error:
            body = verbs.pack_error(error)
        except Exception as error:
            cleanup.log_failure("a request", error)
            body = verbs.pack_error(ServerError(cleanup.FAILED))
        if self._is_valid():
            self._link.send(wire.pack_json(wire.REPLY, body, job=ref))

    async def _send_long(self, ref: int, reply: Any, *, parts: bool) -> None:
        """Send a long reply: part by part as the caller reads them, or for older ones at once."""
        pieces = replies.pieces(reply, self._services.limits.reply_part_bytes, self._take_turn)
        if parts:
            last = await anext(pieces)
            async for piece in pieces:
                await self._send_part(ref, last, wire.MORE_PARTS)
                last = piece
            await self._send_part(ref, last, 0)
            return
        async with self._link_services.long_replies:
            text = replies.join_pieces([piece async for piece in pieces])
            await self._send_part(ref, text, 0)
            await self._wait_until_read()

    async def _take_turn(self, seconds: float) -> None:
        """Let others use the event loop after it has worked for this caller."""
        self._link.work.record(seconds)
        await asyncio.sleep(0)
        await self._link.work.turn()

    async def _send_part(self, ref: int, text: str, flags: int) -> None:
        """Send one part of a reply when the caller has read what was sent before."""
        await self._wait_until_read()
        if self._is_valid():
            message = wire.pack(wire.REPLY, f'{{"reply":{text}}}'.encode(), job=ref, flags=flags)
            self._link.send(message)

    async def _wait_until_read(self) -> None:
        """Wait until the caller has read what was sent."""
        while self._link.write_blocked and not self._link.is_gone:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def _on_drained(self) -> None:
        self._flush()
        if self._drained is not None and not self._link.write_blocked:
            self._drained.set_result(None)
            self._drained = None

    def _on_content(self, message: wire.Message) -> None:
        """Store one piece of an upload; reply with the number of bytes received so far."""
        number, piece = wire.read_content(message)
        received = self._services.installs.content_store.write_upload(self, number, piece)
        self._link.send(wire.pack_json(wire.REPLY, {"reply": received}, job=message.job))

    def _on_watch(self, message: wire.Message) -> None:
        body = self._read_request(message)
        target = str(body.get("target", ""))
        entry = self._new_audit_entry("watch", target[: self._services.limits.audit_chars])
        try:
            verbs.check_role(self.token, "watch")
            check_fields(body, self._services.limits)
            with_logs = bool(body.get("logs", False))
            if with_logs:
                self._check_may_read_logs()
            if why := self._watch_refusal_reason(message.job):
                raise ServerError(why)
            reachable = access.reachable_boards(self.token, self._services.registry.by_name)
            parse_target(target).matching_names(reachable)  # raises for a name that does not exist
            subscription = Subscription(
                WatchRequest(
                    message.job,
                    parse_target(target),
                    reachable,  # evaluated at each access
                    bool(body.get("samples", True)),
                    with_logs,
                ),
                owner=self.token.hash,
                send=self._link.send,
                is_ready=lambda: self._is_valid() and not self._link.write_blocked,
                limits=self._services.limits,
            )
        except CloudmanagerError as error:
            self._services.audit_log.log_refusal(entry, error)
            raise
        self._services.audit_log.log_read(entry)
        self._subscriptions[message.job] = subscription
        self._link_services.subscriptions.add(subscription)

    def _check_may_read_logs(self) -> None:
        """Raise NotAllowed if the token may not read what boards print outside of cells."""
        viewers_read_logs = self._services.viewers_read_logs
        verbs.check_role(self.token, "logs", viewers_read_logs=viewers_read_logs)

    def _new_audit_entry(self, verb: str, target: str) -> AuditEntry:
        return self._services.audit_log.new_entry(self.token.name, self._link.peer, verb, target)

    def _watch_refusal_reason(self, ref: int) -> str:
        """Return why there may not be another subscription; "" if there may."""
        limits = self._services.limits
        if ref in self._subscriptions:
            return f"subscription {ref} exists already"
        if len(self._subscriptions) >= limits.subscriptions_per_link:
            return f"a link may have {limits.subscriptions_per_link} subscriptions at most"
        return self._link_services.subscriptions.refusal_reason(self.token)

    def _on_unwatch(self, message: wire.Message) -> None:
        self._link.charge(self._services.limits.rare_messages - 1)
        self._unsubscribe(message.job)

    def _on_answer(self, message: wire.Message) -> None:
        """Pass the caller's answer on to the cell that waits in ``input()``."""
        job = self._services.dispatch.jobs.get(message.job)
        if job is not None and job.observer is self:
            end_of_input = bool(message.flags & wire.INPUT_EOF)
            self._services.dispatch.board_messages.answer_input(
                job, message.payload, nobody=end_of_input
            )

    def _on_block(self, message: wire.Message) -> None:
        """Pass a piece of a file in a mounted folder on to the boards that wait for it."""
        self._services.installs.mounts.on_block(self, message)

    def _unsubscribe(self, ref: int) -> None:
        subscription = self._subscriptions.pop(ref, None)
        if subscription is not None:
            self._link_services.subscriptions.remove(subscription)

    def _submit(self, message: wire.Message) -> _SubmittedCell:
        """Commit the jobs of a cell; ``_launch`` starts them when they are committed."""
        if self._was_submitted_before(message.job):
            raise PeerWireError("this cell was submitted before")
        self._recent_refs.append(message.job)
        head_bytes = wire.submit_head_bytes(message)
        check_size(head_bytes, self._services.limits)
        text, code = wire.split_submit(message, head_bytes)
        known = self._heads.get(text)
        head = wire.read_json(text) if known is None else known.head
        try:
            verbs.check_role(self.token, "submit")
            if known is None:
                known = self._read_head(text, head)
            if known.options.when_online:
                return self._submit_waiting(message.job, known, code)
            submission, left_out = self._read_submission(text, known, code)
        except CloudmanagerError as error:
            self._log_refused_cell(str(head.get("target", "")), error)
            raise
        operation = self._services.dispatch.submit(submission)
        return _SubmittedCell(message.job, submission, left_out, operation)

    def _log_refused_cell(self, target: str, error: CloudmanagerError) -> None:
        entry = self._new_audit_entry("submit", target)
        self._services.audit_log.log_refusal(entry, error)

    def _launch_late(self, cell: _SubmittedCell) -> None:
        """Launch a cell whose commit has taken a while."""
        try:
            self._launch(cell)
        except CloudmanagerError as error:
            self._send_error(cell.ref, error)
        except Exception as error:
            cleanup.log_failure("starting a cell", error)
            self._send_error(cell.ref, ServerError(cleanup.FAILED))

    def _launch(self, cell: _SubmittedCell) -> None:
        """Start a cell's jobs, which are committed; reply before any message about them.

        If the caller has disconnected meanwhile, they run without it.
        """
        dispatch = self._services.dispatch
        if cell.expires is not None:
            self._accept_waiting(cell, cell.expires)
            return
        try:
            jobs = dispatch.create_jobs(cell.submission, cell.operation.result())
        except ServerError as error:
            self._log_refused_cell(cell.submission.audit.target, error)
            raise
        place = self._outbox.announce(len(jobs))
        dispatch.scheduler.launch(jobs)
        accepted = {
            "jobs": [[job.id, job.board.name] for job in jobs],
            "left_out": cell.left_out,
            "queued": [[job.id, *job.describe_wait()] for job in jobs if job.state == "queued"],
        }
        self._outbox.accept(place, wire.pack_json(wire.ACCEPTED, accepted, job=cell.ref))
        if self._closed:
            dispatch.detach_observer(self)
        elif self._outbox.is_complete:
            self._flush()
        else:
            self._flush_soon()

    def _flush_soon(self) -> None:
        """Send the outbox after a short delay, in which messages of the new jobs may come.

        A timer that is not needed any more goes on, since most cells end before, and the next one
        uses it: it costs as much as reading the cell.
        """
        loop = asyncio.get_running_loop()
        self._accepted_at = loop.time()
        if self._flush_timer is None:
            self._flush_timer = loop.call_later(ACCEPTED_DELAY_SECONDS, self._on_flush_due)

    def _on_flush_due(self) -> None:
        self._flush_timer = None
        if not self._outbox or self._closed:
            return
        loop = asyncio.get_running_loop()
        due = self._accepted_at + ACCEPTED_DELAY_SECONDS
        if due > loop.time() + ACCEPTED_DELAY_SECONDS / 10:  # of a later cell
            self._flush_timer = loop.call_at(due, self._on_flush_due)
        else:
            self._flush()

    def _was_submitted_before(self, ref: int) -> bool:
        return ref in self._recent_refs

    def _read_head(self, text: bytes, head: dict[str, Any]) -> _SubmitHead:
        """Check the options of a cell; remember them if the next one may have the same.

        Args:
            text: the JSON of the SUBMIT.
            head: the same, read.
        """
        limits = self._services.limits
        check_fields(head, limits)
        option_limits = OptionLimits(
            limits.cell_seconds, limits.waiting_seconds, limits.ahead_seconds, time.time()
        )
        options = RunOptions.from_wire(head, option_limits)
        checked = _SubmitHead(head, options, str(head.get("target", "")))
        # The time of "+5s" is another one in each message.
        is_short = len(text) <= REMEMBERED_HEAD_BYTES
        if is_short and options.at is None and job_requests.is_cell(head):
            if len(self._heads) >= REMEMBERED_HEADS:
                oldest = next(iter(self._heads))
                del self._heads[oldest]
                self._cells.pop(oldest, None)
                self._named_boards.pop(oldest, None)
            self._heads[text] = checked
        return checked

    def _submit_waiting(self, ref: int, known: _SubmitHead, code: bytes) -> _SubmittedCell:
        """Commit work that waits for the boards of its target, connected or not."""
        services, limits = self._services, self._services.limits
        head, options, target = known
        reachable = access.reachable_boards(self.token, services.registry.by_name)
        names = parse_target(target).listed_names(reachable)
        boards = [reachable[name] for name in names]
        expires = time.time() + (options.expires or limits.waiting_default_seconds)
        submitted = WaitingRequest(head, code, options, expires, len(boards))
        work, request = self._link_services.waiting_work.pack(self, submitted)
        audit = self._cell_audit(target, request)
        waiting = WaitingSubmission(boards, self.token, work, audit)
        operation = services.dispatch.waiting.submit(waiting)
        origin = job_requests.read_origin(request, head, code)
        submission = Submission(boards, Cell(b"", options), self._requester, audit, origin)
        return _SubmittedCell(ref, submission, (), operation, expires)

    def _accept_waiting(self, cell: _SubmittedCell, expires: float) -> None:
        """Reply with the numbers of jobs that wait; no other message about them follows."""
        try:
            numbers = cell.operation.result()
        except ServerError as error:
            self._log_refused_cell(cell.submission.audit.target, error)
            raise
        boards = cell.submission.boards
        if (origin := cell.submission.origin) is not None:
            self._services.dispatch.job_texts.add(numbers, self.token.hash, origin)
        accepted = {
            "jobs": [[n, board.name] for n, board in zip(numbers, boards, strict=True)],
            "left_out": cell.left_out,
            "queued": [],
            "waiting": expires,
        }
        place = self._outbox.announce(0)
        self._outbox.accept(place, wire.pack_json(wire.ACCEPTED, accepted, job=cell.ref))
        self._flush()

    def _cell_audit(self, target: str, request: job_requests.JobRequest) -> CellAudit:
        """Return what the audit log records about a cell."""
        max_chars = self._services.limits.audit_chars
        return CellAudit(
            address=self._link.peer,
            target=target[:max_chars],
            detail=shorten(request.detail, max_chars),
            verb=request.verb,
        )

    def _read_submission(
        self, text: bytes, known: _SubmitHead, code: bytes
    ) -> tuple[Submission, tuple[str, ...]]:
        """Return a cell for those boards of its target that the token reaches.

        Args:
            text: the JSON of the SUBMIT.
            known: the same, read and checked.
            code: the rest of the SUBMIT.

        Returns:
            The cell, and the names of boards of the target that were left out.
        """
        boards, left_out = self._find_boards(text, known)
        checked = self._cells.get(text)
        if checked is None or checked.code != code:
            checked = self._check_cell(known, code, boards)
            is_short = len(code) <= REMEMBERED_CODE_BYTES
            if text in self._heads and is_short and checked.cell.kind == "cell":
                self._cells[text] = checked
        if why := self._services.dispatch.open_jobs.refusal_reason(
            self.token, len(boards), len(checked.cell.code)
        ):
            raise ServerError(f"{why}; try again when some of them have ended")
        _, cell, audit, origin = checked
        return Submission(boards, cell, self._requester, audit, origin), left_out

    def _find_boards(
        self, text: bytes, known: _SubmitHead
    ) -> tuple[Sequence[Board], tuple[str, ...]]:
        """Return the boards on which a cell runs, and the names of those that are left out."""
        registry = self._services.registry
        named = self._named_boards.get(text)
        if named is not None and named.names_version == registry.names_version:
            return named.boards, ()
        reachable = access.reachable_boards(self.token, registry.by_name)
        target = parse_target(known.target)
        resolution = target.resolve(reachable)
        boards = [reachable[name] for name in resolution.names]
        left_out = resolution.left_out
        if known.options.idle:
            free = [board for board in boards if board.is_free_for(self.token.name)]
            left_out += tuple(board.name for board in boards if board not in free)
            boards = free
        elif (
            text in self._heads
            and len(boards) <= REMEMBERED_BOARDS
            and target.only_names
            and access.reaches_all(self.token)
        ):
            self._named_boards[text] = _NamedBoards(boards, registry.names_version)
        return boards, left_out

    def _check_cell(self, known: _SubmitHead, code: bytes, boards: Sequence[Board]) -> _CheckedCell:
        """Return what a SUBMIT runs on its boards.

        Raises:
            ServerError: it is invalid, or refers to what is not on the server.
        """
        head, options, target = known
        installs = self._services.installs
        inputs = job_requests.inputs_of(installs, self)
        request = job_requests.read_job_request(installs, inputs, head, code, len(boards))
        if options.at is not None and request.kind != "cell":
            raise ServerError("only a cell can start at a time")
        if isinstance(request.files, MountSpec):
            request.files.check_boards(boards)
        cell = job_requests.make_cell(request, head, options, self._services.limits.title_chars)
        origin = job_requests.read_origin(request, head, code)
        return _CheckedCell(code, cell, self._cell_audit(target, request), origin)

    # To the caller

    def send_read(self, message: bytes) -> None:
        """Ask the caller for a piece of a file in a mounted folder (sends READ)."""
        if not self._closing:
            self._link.send(message)

    def reaches(self, board: Board) -> bool:
        """Return whether the caller may use a board: its token is valid and covers the board."""
        if self._services.tokens.refusal_reason(self.token):
            return False
        reachable = access.reachable_boards(self.token, self._services.registry.by_name)
        return reachable.get(board.name) is board

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Put one message about a job into the outbox.

        Args:
            message: the packed message.
            droppable: whether it is dropped where the outbox is full.
        """
        if not self._outbox.add(message, droppable=droppable):
            return  # the outbox is full: it is sent when the caller reads
        if self._outbox.is_complete:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send the outbox, one frame after the other, until the caller has to read.

        The link calls this again when the caller has read everything.
        """
        self._flush_scheduled = False
        if not self._closing and self._services.tokens.refusal_reason(self.token):
            # In the next iteration: the review ends jobs, and the caller of this method may be in
            # the middle of ending one.
            asyncio.get_running_loop().call_soon(self._is_valid)
            return
        while self._outbox and not self._link.write_blocked:
            messages = self._outbox.next_frame()
            self._link.send(wire.pack_events(messages))
            self._report_forwarded(messages)

    def _report_forwarded(self, messages: list[bytes]) -> None:
        """Report the bytes of boards' files that were sent, so that boards may send more."""
        sent: dict[int, int] = {}
        for message in messages:
            if message[0] == wire.CHUNK:
                job = wire.HEADER.unpack_from(message)[2]
                sent[job] = sent.get(job, 0) + len(message) - wire.HEADER.size
        for job, size in sent.items():
            self._services.dispatch.on_bytes_forwarded(job, size)


#: What a caller may send, besides SUBMIT.
_HANDLERS: Final[Mapping[int, Callable[[CallerConnection, wire.Message], None]]] = {
    wire.REQUEST: CallerConnection._on_request,
    wire.CONTENT: CallerConnection._on_content,
    wire.WATCH: CallerConnection._on_watch,
    wire.UNWATCH: CallerConnection._on_unwatch,
    wire.ANSWER: CallerConnection._on_answer,
    wire.BLOCK: CallerConnection._on_block,
}


def _seconds_to_next_check(left: float) -> float:
    """Return when to check a token again that expires in ``left`` seconds."""
    return min(left, TOKEN_CHECK_SECONDS)
