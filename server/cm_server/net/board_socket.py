"""``/board``: the link of one board, from its first message to its end (docs/protocol.md)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import frames, proofs, wire
from cloudmanager.protocol.errors import CloudmanagerError, PeerWireError, ServerError
from cloudmanager.protocol.facts import read_facts
from cm_server import cleanup
from cm_server.auth import credentials
from cm_server.jobs.job_history import read_last_result
from cm_server.jobs.model import MIN_BUFFER, Board, BoardLinkProtocol, TimerHandle
from cm_server.jobs.sleep_facts import facts_awake, facts_of_wake
from cm_server.rate_limits import UnauthenticatedEntry

from .fair_queue import FairQueue
from .handlers import BaseHandler, RequestPolicy
from .websocket import WebSocketLink, accept_websocket, no_pause

if TYPE_CHECKING:
    from cm_server.auth.audit import AuditLog
    from cm_server.auth.enrolment import Enrolment
    from cm_server.board_health import BoardHealth
    from cm_server.cluster.membership import Cluster
    from cm_server.cluster.single_server import SingleServer
    from cm_server.jobs.dispatch import Dispatch
    from cm_server.jobs.reconnects import Reconnects
    from cm_server.jobs.registry import Registry
    from cm_server.limits import Limits
    from cm_server.logs import PeerLog
    from cm_server.rate_limits import UnauthenticatedConnections
    from cm_server.store.replaced_rows import ReplacedBoard
    from cm_server.store.rows import ClaimedBoard
    from cm_server.store.store_queue import Operation

log = logging.getLogger("cm_server")

_REKEYED = bytes((wire.REKEYED,))
#: First bytes of messages that a board seldom has to send; each counts as several.
_RARE_OPS = tuple(
    bytes((op,))
    for op in (wire.EMIT, wire.FACTS, wire.PROGRAM, wire.REKEYED, wire.SLEEP, wire.TIME)
)


@dataclass(frozen=True)
class BoardLinkServices:
    """The parts of the server that links of boards use.

    Attributes:
        limits: of messages and times.
        beat: seconds between two pings to a board.
        backlogs: shares the event loop among links.
        unauthenticated: counts links until their boards have authenticated.
        peer_log: for lines about boards.
        audit_log: records refusals.
        registry: the boards.
        dispatch: their jobs.
        health: records their restarts.
        cluster: the other servers: a board may have been connected to one of them.
        enrolment: enrols boards, and replaces their keys.
        reconnects: tells boards how to spread their reconnects.
        call_later: calls a function after the event loop has run for a number of seconds.
    """

    limits: Limits
    beat: float
    backlogs: FairQueue
    unauthenticated: UnauthenticatedConnections
    peer_log: PeerLog
    audit_log: AuditLog
    registry: Registry
    dispatch: Dispatch
    health: BoardHealth
    cluster: Cluster | SingleServer
    enrolment: Enrolment
    reconnects: Reconnects
    call_later: Callable[[float, Callable[[], None]], TimerHandle]


class BoardSocket(BaseHandler):
    """The WebSocket endpoint for boards, which authenticate with their keys."""

    required_credential = "key"

    def initialize(  # type: ignore[override]
        self, policy: RequestPolicy, services: BoardLinkServices
    ) -> None:
        """Set which requests are accepted, and what the links use."""
        super().initialize(policy)
        self._services = services

    async def get(self) -> None:
        """Upgrade to a WebSocket; the link outlives this handler."""
        limits = self._services.limits
        link = WebSocketLink(
            limits.board_message_bytes, self._services.backlogs, limits, is_board=True
        )
        connection = BoardConnection(self._services, link, self.address, secure=self.is_secure)
        link.on_open = connection.start
        await accept_websocket(self, link)


class BoardConnection:
    """The server's end of one board's link: authentication, then messages and heartbeats.

    Args:
        services: the parts of the server.
        link: the WebSocket.
        address: the board's IP address.
        secure: whether nobody on the network path can read or change messages.
    """

    # A server has very many: see ``Board``.
    __slots__ = (
        "_address",
        "_board",
        "_closed",
        "_deadline",
        "_enrol_task",
        "_heard",
        "_heartbeat_timer",
        "_hello",
        "_key",
        "_link",
        "_nonce",
        "_secure",
        "_services",
        "_unanswered_pings",
        "_unauthenticated_entry",
    )

    def __init__(
        self, services: BoardLinkServices, link: WebSocketLink, address: str, *, secure: bool
    ) -> None:
        self._services = services
        self._link = link
        self._address = address
        self._secure = secure
        link.on_message = self._on_hello
        link.on_frame = self._note_activity
        self._board: Board | None = None  # set once it has authenticated
        self._hello: proofs.Hello | None = None
        self._nonce = b""
        self._key = b""
        self._unauthenticated_entry: UnauthenticatedEntry | None = None
        self._enrol_task: asyncio.Task[None] | None = None
        self._closed = False
        self._heard = True  # since the last ping
        self._unanswered_pings = 0
        self._deadline: TimerHandle | None = None  # for the authentication
        self._heartbeat_timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Count the link as unauthenticated and start the deadline of its authentication."""
        self._link.on_close = self._on_close
        self._link.authenticated = False
        self._link.read_pause = self._services.unauthenticated.read_pause
        self._link.write_log = self._write_log
        self._unauthenticated_entry = self._services.unauthenticated.add(
            self._address, self._link.abort
        )
        self._start_deadline()

    def _start_deadline(self) -> None:
        """Refuse the board unless it authenticates in time."""
        self._deadline = self._services.call_later(
            self._services.limits.authentication_seconds,
            lambda: self._refuse(frames.CLOSE_NOT_AUTHENTICATED, "too slow"),
        )

    def _write_log(self, level: int, text: str, *args: object) -> None:
        """Log a line about this peer, unless it has caused too many."""
        if self._board is not None:
            self._services.peer_log.write(self._board.name, level, text, *args)
        else:
            self._services.peer_log.write_of_stranger(self._address, level, text, *args)

    def _on_close(self) -> None:
        self._closed = True
        cleanup.run_all(
            "a board's link", self._leave_unauthenticated, self._stop_timers, self._detach_board
        )

    def _stop_timers(self) -> None:
        for timer in (self._deadline, self._heartbeat_timer):
            if timer is not None:
                timer.cancel()

    def _detach_board(self) -> None:
        if self._board is not None:
            self._services.dispatch.recovery.on_link_closed(self._board, self._link)

    def _leave_unauthenticated(self) -> None:
        """Stop counting the link as unauthenticated."""
        if self._unauthenticated_entry is not None:
            entry, self._unauthenticated_entry = self._unauthenticated_entry, None
            self._services.unauthenticated.remove(entry)

    def _refuse(self, code: int, reason: str) -> None:
        """Close the link of a peer that has not authenticated, and record the refusal."""
        if self._board is not None:
            return
        self._services.dispatch.counters.refused_links["board"] += 1
        claimed_id = self._hello.board_id if self._hello else ""
        logged_reason = self._services.audit_log.log_unauthenticated(
            self._address, "board", claimed_id, reason
        )
        if logged_reason is not None:
            log.warning("%s was refused as a board: %s", self._link.peer, logged_reason)
        self._link.close(code, reason)

    # Authentication

    def _on_hello(self, data: bytes) -> None:
        """Answer HELLO with a challenge, or ENROL with an identity."""
        message = wire.unpack(data)
        wire.check_op("new", message)
        if message.op == wire.ENROL:
            self._enrol_task = asyncio.ensure_future(self._enrol(wire.read_json(message.payload)))
            return
        hello = proofs.read_hello(message)
        if hello.version != wire.PROTOCOL:
            self._refuse(
                frames.CLOSE_WRONG_VERSION, f"this server does not support protocol {hello.version}"
            )
            return
        self._hello = hello
        self._nonce = credentials.new_nonce()
        self._key = self._key_or_random(hello)
        self._link.send(proofs.pack_challenge(self._key, hello, self._nonce))
        self._link.on_message = self._on_proof

    async def _enrol(self, body: dict[str, Any]) -> None:
        """Enrol a board that has a token; it sends HELLO next, on the same link."""
        try:
            self._require_tls_to_enrol()
            row = await self._services.enrolment.enrol_with_token(body, self._address)
        except CloudmanagerError as error:
            self._refuse(frames.CLOSE_NOT_AUTHENTICATED, getattr(error, "reason", error.detail))
        except Exception as error:
            cleanup.log_failure("enrolling a board", error)
            self._link.close(frames.CLOSE_INTERNAL_ERROR, cleanup.FAILED)
        else:
            self._link.send(wire.pack_json(wire.ENROLLED, {"id": row.id, "name": row.name}))

    def _require_tls_to_enrol(self) -> None:
        if not self._secure:
            raise ServerError("a board can enrol itself over TLS only")

    def _find_key(self, hello: proofs.Hello) -> bytes | None:
        board = self._services.registry.by_id.get(hello.board_id)
        known = board or self._services.enrolment.find_replaced(hello.board_id)
        return known.key_for(hello.gen) if known else None

    def _key_or_random(self, hello: proofs.Hello) -> bytes:
        """Return the board's key; a random one for an unknown board.

        So an unknown board gets a challenge too, and fails only at its proof: the answers do not
        reveal which ids exist.
        """
        return self._find_key(hello) or credentials.new_key()

    def _on_proof(self, data: bytes) -> None:
        assert self._hello is not None
        hello = self._hello
        body = proofs.check_proof(self._key, hello, self._nonce, wire.unpack(data))
        board = self._services.registry.by_id.get(hello.board_id)
        replaced = self._services.enrolment.find_replaced(hello.board_id)
        if body is None or self._find_key(hello) != self._key or (board is None and not replaced):
            self._refuse(frames.CLOSE_NOT_AUTHENTICATED, "authentication failed")
        elif board is None:
            assert replaced is not None
            self._refuse(frames.CLOSE_REVOKED, _replaced_text(replaced))
        elif not self._is_protected(hello, board):
            advice = f"`mbm board-enrol {board.name}` prints the settings that it needs"
            self._refuse(frames.CLOSE_NOT_SECURE, f"{board.name} connected without TLS; {advice}")
        else:
            self._accept_board(board, body)

    def _is_protected(self, hello: proofs.Hello, board: Board) -> bool:
        """Return whether the link has TLS, or MACs on a board that was enrolled to use them."""
        return self._secure or (hello.mac and board.plain)

    def _accept_board(self, board: Board, body: dict[str, Any]) -> None:
        """Claim an authenticated board for this server; then ``_attach_board`` follows."""
        boot = str(body.get("boot", ""))[:64]
        reported = facts_of_wake(board.reported_facts, body.get("wake"))
        if reported is None:
            reported = {**read_facts(body.get("facts")), "parts": _read_parts(body)}
            if "wake" in body:  # it reports less than the server needs; it tries again at once
                self._link.close(frames.CLOSE_GOING_AWAY, "its facts are not known here")
                return
        facts = reported
        same_boot = bool(boot) and boot == board.reported_facts.get("boot")
        started = time.time() - (facts.get("uptime") or 0)
        booted = board.reported_facts.get("booted") if same_boot else started
        facts |= {"boot": boot, "booted": booted}
        facts = facts_awake(facts, board.reported_facts)
        claim = self._services.cluster.claim_board(board, facts)
        if not claim.done:
            self._link.hold()  # a board may send what it has right behind its proof
        claim.when_done(lambda _: self._attach_claimed(board, body, facts, claim))

    def _attach_claimed(
        self,
        board: Board,
        body: dict[str, Any],
        facts: dict[str, Any],
        claim: Operation[ClaimedBoard | None],
    ) -> None:
        """Attach a board; if the server itself fails, close the link: the board connects again."""
        try:
            self._attach_board(board, body, facts, claim)
        except Exception as error:
            cleanup.log_failure(f"accepting {board.name}", error)
            self._link.close(frames.CLOSE_INTERNAL_ERROR, cleanup.FAILED)
        self._link.release()

    def _attach_board(
        self,
        board: Board,
        body: dict[str, Any],
        facts: dict[str, Any],
        claim: Operation[ClaimedBoard | None],
    ) -> None:
        """Attach a board to this link; its newest link replaces an older one."""
        services, dispatch = self._services, self._services.dispatch
        same_boot = bool(facts["boot"]) and facts["boot"] == board.reported_facts.get("boot")
        reported = read_last_result(body.get("last"))
        if board.link is not None:
            text = "%s connected again: its older link is closed"
            services.peer_log.write(board.name, logging.WARNING, text, board.name)
            old = board.link
            dispatch.recovery.on_link_closed(board, old)
            _close_replaced_link(old)
            board.consecutive_takeovers += 1
        else:
            board.consecutive_takeovers = 0
        try:
            services.cluster.apply_claim(board, claim, reported)
        except ServerError as error:
            text = "%s cannot be accepted now: %s"
            services.peer_log.write(board.name, logging.WARNING, text, board.name, error.reason)
            self._link.close(frames.CLOSE_GOING_AWAY, "the server cannot accept the board now")
            return
        is_valid = services.registry.by_id.get(board.id) is board and not self._key_is_outdated()
        if self._closed or not is_valid:  # it changed while the store was asked
            board.notify_changed()
            dispatch.scheduler.start_grace_period(board)
            self._refuse(frames.CLOSE_NOT_AUTHENTICATED, "authentication failed")
            return
        dispatch.counters.board_links += 1
        buffer_size = _read_buffer_size(body, self._services.limits.board_buffer_bytes)
        services.health.on_connected(board, facts)
        board.connect(self._link, facts, buffer_size, facts["parts"])
        self._board = board
        if self._hello is not None:
            services.enrolment.on_key_used(board, self._hello.gen)
        self._leave_unauthenticated()
        self._link.authenticated = True
        self._link.on_message = self._on_board_message
        if self._hello is not None and self._hello.mac:
            nonces = self._hello.nonce + self._nonce
            self._link.mac = proofs.LinkMac(proofs.session_key(self._key, nonces, board.id))
        welcome = {
            "name": board.name,
            "beat": services.beat,
            "spread": self._reconnect_spread(board),
            "time": time.time_ns() // 1_000_000,
        }
        self._link.send(wire.pack_json(wire.WELCOME, welcome))
        dispatch.recovery.on_link_opened(board, same_boot=same_boot, reported=reported)
        self._heartbeat_timer = asyncio.get_running_loop().call_later(
            services.beat, self._send_heartbeat
        )
        self._write_log(logging.INFO, "%s is connected, from %s", board.name, self._link.peer)
        self._end_authentication()

    def _end_authentication(self) -> None:
        """Drop what only the authentication needed: a server has very many links."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._hello = None
        self._nonce = self._key = b""
        self._enrol_task = None
        self._link.read_pause = no_pause

    def _key_is_outdated(self) -> bool:
        """Return whether the board has another key than when it proved this one."""
        return self._hello is not None and self._find_key(self._hello) != self._key

    def _reconnect_spread(self, board: Board) -> float:
        """Return the seconds over which the board spreads its reconnects.

        Two boards with the same key close each other's links in turn, so the time doubles with
        each takeover after the first.
        """
        spread = self._services.reconnects.spread
        if board.consecutive_takeovers > 1:
            spread = min(
                spread * 2.0**board.consecutive_takeovers,
                max(spread, self._services.limits.takeover_spread_seconds),
            )
        return spread

    # After the authentication

    def _on_board_message(self, data: bytes) -> None:
        assert self._board is not None
        if data[:1] in _RARE_OPS:
            self._link.charge(self._services.limits.rare_messages - 1)
        if data[:1] == _REKEYED:
            proof = wire.unpack(data).payload
            self._services.enrolment.on_rekeyed(self._board, proof)
        else:
            self._handle(self._board, data)

    def _handle(self, board: Board, data: bytes) -> None:
        """Handle a message; if the server itself fails, its job ends, and the link stays open."""
        messages = self._services.dispatch.board_messages
        try:
            messages.on_message(board, data)
        except PeerWireError:
            raise
        except Exception as error:
            messages.on_failure(board, data, error)

    def _note_activity(self) -> None:
        self._heard = True

    def _send_heartbeat(self) -> None:
        """Ping the board; close the link if it is idle and has not answered two pings.

        Pings are counted, not seconds: while the server itself stands still, it sends none. A board
        that runs a job may be silent for longer: the job blocks its interpreter.
        """
        assert self._board is not None
        self._unanswered_pings = 0 if self._heard else self._unanswered_pings + 1
        if self._is_silent():
            text = "%s does not answer pings: its link is closed"
            self._write_log(logging.WARNING, text, self._board.name)
            self._services.dispatch.counters.silent_links += 1
            self._link.close(frames.CLOSE_GOING_AWAY, "silent")
            return
        self._heard = False
        self._link.ping()
        loop = asyncio.get_running_loop()
        self._heartbeat_timer = loop.call_later(self._services.beat, self._send_heartbeat)

    def _is_silent(self) -> bool:
        """Return whether the board is idle and has not answered two pings."""
        assert self._board is not None
        return self._board.current_job is None and self._unanswered_pings >= 2


def _replaced_text(replaced: ReplacedBoard) -> str:
    """Return why a board is refused that another one has replaced, as short as a close frame."""
    day = time.strftime("%Y-%m-%d", time.gmtime(replaced.at))
    return f"it was replaced on {day}; enrol this board again to use it ({replaced.name})"


def _close_replaced_link(link: BoardLinkProtocol) -> None:
    """Close the older link of a board that has connected again."""
    link.close(frames.CLOSE_REPLACED, "a newer link took over")


def _read_buffer_size(body: dict[str, Any], max_bytes: int) -> int:
    size = body.get("buf")
    return min(max(size, MIN_BUFFER), max_bytes) if isinstance(size, int) else MIN_BUFFER


def _read_parts(body: dict[str, Any]) -> list[str]:
    """Return which parts of the client the board reports to have, bounded."""
    parts = body.get("parts")
    return [str(part)[:32] for part in parts[:64]] if isinstance(parts, list) else []
