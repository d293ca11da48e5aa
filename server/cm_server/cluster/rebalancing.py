"""Boards connect again where one server has far more of them than the others: after restarts.

A load balancer distributes connections when they are opened, so a server that was restarted has
few boards until others reconnect. A server that has too many lets some idle boards connect again,
few at a time. Cells for them wait until they are back. If they do not come back, or always come
back here because there is no load balancer, it stops.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cm_server.jobs.model import Board

    from .services import ClusterContext, ClusterServices

log = logging.getLogger("cm_server")


@dataclass(frozen=True)
class Pace:
    """How many boards connect again, and when; times in seconds.

    Attributes:
        settled: after a server has come or gone; boards reconnect by themselves then.
        between: two groups of boards.
        quiet: since a board has connected, or its last cell has ended.
        again: until a board is asked once more.
        absent: more than the spread of reconnects, until a board counts as absent.
        pause: after it turned out to be useless.
        begin: by which factor the number of a server's boards may differ from its share; twice
            the square root of the share is chance, and allowed too.
        group: the part of the server's boards that is asked at the same time.
        judged: after how many boards it is judged whether it is of use.
    """

    settled: float = 60.0
    between: float = 5.0
    quiet: float = 60.0
    again: float = 600.0
    absent: float = 10.0
    pause: float = 3600.0
    begin: float = 1.1
    group: float = 0.02
    judged: int = 10


DEFAULT_PACE = Pace()


class Rebalancer:
    """Lets idle boards connect again while this server has far more than its share.

    Args:
        services: the parts of this server.
        context: the timers.
        is_reserved: returns whether a job is about to be sent to a board.

    Attributes:
        pace: how fast.
    """

    def __init__(
        self,
        services: ClusterServices,
        context: ClusterContext,
        is_reserved: Callable[[Board], bool],
    ) -> None:
        self._registry, self._reconnects = services.registry, services.reconnects
        self._call_later = context.call_later
        self._is_reserved = is_reserved
        self.pace = pace = DEFAULT_PACE
        self._servers: set[str] = set()
        self._settled_at = self._next_at = time.monotonic() + pace.settled
        self._is_active = False
        self._asked_at: dict[str, float] = {}  # by the board's id
        self._outcomes: deque[str] = deque(maxlen=pace.judged)  # "here", "elsewhere" or "absent"

    def tick(self, servers: Iterable[str], *, is_complete: bool) -> None:
        """Let some boards connect again if that is due; call it once a second.

        Args:
            servers: the ids of the live servers.
            is_complete: whether this server knows how many boards each of them has.
        """
        now = time.monotonic()
        if set(servers) != self._servers or not is_complete:
            self._servers = set(servers)
            self._settled_at = now + self.pace.settled
        if len(self._servers) < 2 or now < max(self._settled_at, self._next_at):
            return
        self._next_at = now + self.pace.between
        boards = [board for board in self._registry.by_id.values() if board.link is not None]
        surplus = self._surplus(len(boards))
        if surplus > 0:
            self._ask(boards, min(surplus, math.ceil(len(boards) * self.pace.group)), now)

    def _surplus(self, own: int) -> int:
        """Return how many boards are too many; 0 while the servers' numbers differ by chance.

        Once it has begun, it ends at the share, so that it does not start again after each board.
        """
        counts = Counter(dict.fromkeys(self._servers, 0))
        for board in self._registry.by_id.values():
            state = board.remote_state
            if board.link is None and state is not None and state.online and state.server in counts:
                counts[state.server] += 1
        others = sorted(counts.values())[1:]  # this server is one of those with 0
        share = (own + sum(others)) / len(self._servers)
        chance = 2 * math.sqrt(share)
        most, least = max(own, *others), min(own, *others)
        is_even = (
            share / self.pace.begin - chance <= least <= most <= share * self.pace.begin + chance
        )
        was_active, self._is_active = self._is_active, own > share + 1
        self._is_active = self._is_active and (was_active or not is_even)
        if self._is_active and not was_active:
            text = "this server has %d boards, its share is %d: some of them connect again"
            log.info(text, own, share)
        return math.ceil(own - share) if self._is_active else 0

    def _ask(self, boards: list[Board], count: int, now: float) -> None:
        recently = now - self.pace.again
        self._asked_at = {id_: at for id_, at in self._asked_at.items() if at > recently}
        candidates = [board for board in boards if self._is_candidate(board, now)]
        candidates.sort(key=lambda board: board.free_since)
        for board in candidates[:count]:
            self._asked_at[board.id] = now
            seconds = self._reconnects.spread + self.pace.absent
            self._call_later(seconds, functools.partial(self._judge, board))
            board.expect(seconds)
            assert board.link is not None
            board.link.abort()

    def _is_candidate(self, board: Board, now: float) -> bool:
        """Return whether a board may be asked: nobody uses it, and it was not asked lately."""
        is_free = board.idle and not self._is_reserved(board)
        is_quiet = now > board.free_since + self.pace.quiet
        return is_free and is_quiet and board.id not in self._asked_at

    def _judge(self, board: Board) -> None:
        """Note where a board is that was asked; stop if that is of no use."""
        board.notify_changed()  # it is not expected any more
        where = "here" if board.link is not None else "elsewhere" if board.online else "absent"
        self._outcomes.append(where)
        is_useless = self._outcomes.count("here") == self.pace.judged
        if not is_useless and "absent" not in self._outcomes:
            return
        why = "all came back here" if is_useless else "one did not come back"
        text = "no more boards are asked to connect again for %.0f minutes: %s"
        log.warning(text, self.pace.pause / 60, why)
        self._outcomes.clear()
        self._is_active = False
        self._next_at = time.monotonic() + self.pace.pause
