"""The context of one request: token, boards, body, audit entry. No sockets, no SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cloudmanager.protocol.targets import natural_key, parse_target
from cm_server.auth.audit import AuditEntry, AuditLog
from cm_server.auth.caller_links import CallerLinks
from cm_server.auth.enrolment import Enrolment
from cm_server.auth.tokens import Tokens
from cm_server.board_health import BoardHealth
from cm_server.board_logs import BoardLogs
from cm_server.cluster.membership import Cluster
from cm_server.cluster.single_server import SingleServer
from cm_server.installs.services import InstallServices
from cm_server.jobs.dispatch import Dispatch
from cm_server.jobs.model import Board
from cm_server.jobs.registry import Registry
from cm_server.limits import Limits
from cm_server.rollouts.rollouts import Rollouts
from cm_server.sample_history import SampleHistory
from cm_server.status import ServerStatus
from cm_server.store.rows import TokenRow
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue


@dataclass(frozen=True)
class Services:
    """The parts of the server that requests use.

    Attributes:
        limits: of requests and replies.
        status: what the server reports about itself.
        store_queue: of the store.
        registry: all boards.
        dispatch: all jobs.
        cluster: the other servers, if there are any.
        tokens: all tokens.
        callers: the open links of callers.
        enrolment: changes boards.
        audit_log: records the requests.
        installs: what installs and file transfers need.
        pin: the fingerprint of the server's certificate authority, which follows each token.
        board_logs: what boards print outside of cells.
        board_health: what went wrong on boards.
        sample_history: keeps samples for days.
        rollouts: bring boards to what they should be.
        viewers_read_logs: whether viewers may read that.
        keep_texts_seconds: for how long the texts of cells are shown after they ran.
    """

    limits: Limits
    status: ServerStatus
    store_queue: StoreQueue[Store]
    registry: Registry
    dispatch: Dispatch
    cluster: Cluster | SingleServer
    tokens: Tokens
    callers: CallerLinks
    enrolment: Enrolment
    audit_log: AuditLog
    installs: InstallServices
    pin: str
    board_logs: BoardLogs
    board_health: BoardHealth
    sample_history: SampleHistory
    rollouts: Rollouts
    viewers_read_logs: bool
    keep_texts_seconds: float


class RequestContext(NamedTuple):
    """What a verb's function knows of the request.

    Attributes:
        services: the parts of the server.
        token: the caller's token.
        boards: the boards that the token covers, by name; the function cannot see others.
        body: the request's JSON, not checked.
        audit_entry: becomes the request's row in the audit log; the function adds details.
        connection: the caller's; uploads and plans belong to it.
    """

    services: Services
    token: TokenRow
    boards: Mapping[str, Board]
    body: dict[str, Any]
    audit_entry: AuditEntry
    connection: object = None


def resolve_boards(context: RequestContext) -> list[Board]:
    """Return the boards of a request's target, and count them in the audit entry.

    Without a target, the verbs ``boards`` and ``jobs`` mean all boards that the token covers.

    Raises:
        TargetError: the target is missing, cannot be parsed, or selects no board.
        NoSuchBoard: it names a board that does not exist or that the token does not cover.
    """
    boards, target = context.boards, context.body.get("target")
    if target is None and context.body["verb"] in ("boards", "jobs"):
        return sorted(boards.values(), key=lambda board: natural_key(board.name))
    chosen = [boards[name] for name in parse_target(str(target or "")).resolve(boards).names]
    context.audit_entry.boards = len(chosen)
    return chosen
