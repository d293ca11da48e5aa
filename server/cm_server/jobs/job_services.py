"""What the parts that deal with jobs use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cm_server.limits import Limits
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue

from .model import TimerHandle
from .registry import Registry


@dataclass(frozen=True)
class JobServices:
    """The parts of a server that jobs need.

    Attributes:
        store_queue: where jobs and their results are written.
        registry: the boards.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        limits: how much is queued for a board, and kept of a job.
        lost_after: returns the seconds that a board has to reconnect after its link broke.
    """

    store_queue: StoreQueue[Store]
    registry: Registry
    call_later: Callable[[float, Callable[[], None]], TimerHandle]
    limits: Limits
    lost_after: Callable[[], float]
