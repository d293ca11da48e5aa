"""Boards that sleep: they say when they connect again, and do what waits for them before.

No sockets, no SQL. Call from the thread of the event loop only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cloudmanager.protocol import frames, wire
from cloudmanager.protocol.errors import PeerWireError
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue

from .job_recovery import JobRecovery
from .model import Board, BoardLinkProtocol, Stay, TimerHandle
from .registry import Registry
from .scheduler import Scheduler
from .sleep_facts import facts_asleep

#: Seconds in which a job follows that the server has announced; then the board asks again.
JOB_SECONDS = 10.0
REKEY_SECONDS = 1.0  # the same for a new key
MAX_STAY_SECONDS = 600.0  # until a board that stays awake asks again
TIMER_SLACK_SECONDS = 0.05  # after a board is overdue, until it is looked at
MAX_TIMER_SECONDS = 86400.0  # the wall clock may be set meanwhile


class Sleepers:
    """Answers boards that want to sleep, and knows which of them are late.

    Args:
        store_queue: keeps when they wake.
        registry: the boards.
        scheduler: starts the jobs that wait.
        recovery: settles the jobs of a board that has gone.
        call_later: calls a function after a number of seconds.

    Attributes:
        spread: returns the seconds over which boards spread their connections: so much later they
            may be.
        has_waiting_jobs: returns whether something waits for a board besides its queue.
        when_known: calls a function when that is known, at once if possible.
        is_in_rollout: returns whether a rollout is about to do something on a board.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        registry: Registry,
        scheduler: Scheduler,
        recovery: JobRecovery,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
    ) -> None:
        self._store_queue = store_queue
        self._registry = registry
        self._scheduler = scheduler
        self._recovery = recovery
        self._call_later = call_later
        self._asked_for_key: dict[Board, int] = {}  # the link on which REKEY was sent for it
        self.spread: Callable[[], float] = lambda: 0.0
        self.has_waiting_jobs: Callable[[Board], bool] = lambda _board: False
        self.when_known: Callable[[Board, Callable[[], None]], None] = lambda _board, call: call()
        self.is_in_rollout: Callable[[Board], bool] = lambda _board: False

    def on_sleep(self, board: Board, message: wire.Message) -> None:
        """Answer a board that wants to sleep: it may, or something must be done before.

        A board that may sleep counts as asleep from now on: nothing is sent to it any more, so
        nothing can be lost on the way.

        Raises:
            PeerWireError: the message is malformed.
        """
        request = wire.read_sleep(message)
        link = board.link
        if link is None:
            raise PeerWireError("SLEEP came from a board that is asleep")
        self.when_known(board, lambda: self._answer(board, link, request))

    def _answer(self, board: Board, link: BoardLinkProtocol, request: wire.SleepRequest) -> None:
        if board.link is not link:
            return
        board.blocked = False
        wait = self._seconds_awake(board)
        link.send(wire.pack_sleep_reply(wait))
        if wait is not None:
            board.notify_changed()
            if board.current_job is None:
                self._scheduler.start_next(board)
            return
        self._asked_for_key.pop(board, None)
        late = self.spread() + request.seconds / 10
        facts = facts_asleep(board.reported_facts, request, late)
        board.reported_facts = facts
        self._end_link(board, link)
        self._store_queue.store.mark_board_seen(board.id, facts)
        self._store_queue.flush()
        self.watch(board)

    def _end_link(self, board: Board, link: BoardLinkProtocol) -> None:
        """Close the link of a board that falls asleep: what it still sends is ignored."""
        self._recovery.on_link_closed(board, link)
        link.close(frames.CLOSE_NORMAL, "it sleeps")

    def _seconds_awake(self, board: Board) -> float | None:
        """Return for how long a board stays awake at most, until it asks again; None: not at all.

        It asks again after each job.
        """
        if board.current_job is not None or self._scheduler.has_startable_job(board):
            return JOB_SECONDS
        if self.has_waiting_jobs(board) or self.is_in_rollout(board):
            return JOB_SECONDS
        if board.nonce is not None and self._asked_for_key.get(board) != board.link_count:
            self._asked_for_key[board] = board.link_count
            return REKEY_SECONDS
        stay = self._begin_stay(board)
        return None if stay is None else min(max(stay.until - time.time(), 1.0), MAX_STAY_SECONDS)

    def _begin_stay(self, board: Board) -> Stay | None:
        """Return until when a board stays awake, which begins now if it has just woken."""
        stay = board.stay
        if stay is None or stay.seconds is None:
            return stay
        board.stay = begun = Stay(None, time.time() + stay.seconds)
        changes = {board.id: {"stay_seconds": None, "stay_until": begun.until}}
        self._store_queue.run_later(lambda store: store.update_boards(changes))
        return begun

    def watch(self, board: Board) -> None:
        """Notify others when a board is overdue."""
        overdue_at = board.overdue_at
        if overdue_at is not None and board.state == "asleep":
            seconds = max(overdue_at - time.time(), 0.0) + TIMER_SLACK_SECONDS
            self._call_later(min(seconds, MAX_TIMER_SECONDS), lambda: self._look(board, overdue_at))

    def _look(self, board: Board, overdue_at: float) -> None:
        if self._registry.by_id.get(board.id) is not board or board.overdue_at != overdue_at:
            return
        if board.state == "asleep":
            self.watch(board)
        else:
            board.notify_changed()
