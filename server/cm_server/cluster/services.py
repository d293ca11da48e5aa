"""What a member of a cluster needs of its own server, and what its parts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cm_server.auth.caller_links import CallerLinks
from cm_server.auth.enrolment import Enrolment
from cm_server.auth.tokens import Tokens
from cm_server.board_logs import LogText
from cm_server.jobs.dispatch import Dispatch
from cm_server.jobs.model import Board, TimerHandle
from cm_server.jobs.reconnects import Reconnects
from cm_server.jobs.registry import Registry
from cm_server.limits import Limits
from cm_server.logs import PeerLog
from cm_server.sample_collector import SampleCollector
from cm_server.store.shared_store import SharedStore
from cm_server.store.store_queue import StoreQueue

from .background import BackgroundTasks
from .peer_messages import PeerMessages


class LogListener(Protocol):
    """Hands what boards print to those who follow it."""

    def on_log(self, board: Board, text: LogText) -> None:
        """Hand on what a board printed."""

    def on_logs_left_out(self, count: int) -> None:
        """Count texts that were dropped."""


@dataclass(frozen=True)
class ClusterServices:
    """The parts of a server that other servers influence.

    Attributes:
        limits: of replies, and of what is queued for the bus.
        registry: the boards; those of other servers get their state.
        dispatch: the jobs.
        tokens: read again when another server changes one.
        callers: closed when their token is no longer valid, or this server was suspended.
        enrolment: applies changes of boards.
        samples: receives the samples of other servers' boards.
        log_listener: receives what other servers' boards print.
        reconnects: depends on the number of servers.
        peer_log: for lines about boards.
    """

    limits: Limits
    registry: Registry
    dispatch: Dispatch
    tokens: Tokens
    callers: CallerLinks
    enrolment: Enrolment
    samples: SampleCollector
    log_listener: LogListener
    reconnects: Reconnects
    peer_log: PeerLog


@dataclass(frozen=True)
class ClusterContext:
    """What the parts of the membership share.

    Attributes:
        store_queue: of the store, which has the leases of boards and the ownership of jobs.
        peer_messages: to the other servers.
        tasks: run what has to wait for the store.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        epochs: of the boards that this server had last, by their ids; ``BoardDirectory`` keeps them
            up to date.
    """

    store_queue: StoreQueue[SharedStore]
    peer_messages: PeerMessages
    tasks: BackgroundTasks
    call_later: Callable[[float, Callable[[], None]], TimerHandle]
    epochs: dict[str, int]
