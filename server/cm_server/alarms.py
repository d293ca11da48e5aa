"""Alarms: boards that are lost, overdue or in safe mode, and rollouts that stopped.

Events have kinds, names and counts, and nothing that a board said. They are gathered for a while,
so that the outage of a site is one message; what comes again and again is one every ten minutes.
No sockets, no SQL; call from the thread of the event loop only.
"""

from __future__ import annotations

import heapq
import itertools
import math
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from cloudmanager.protocol.targets import natural_key

from .jobs.model import Board, TimerHandle
from .jobs.registry import Registry

GATHER_SECONDS: Final = 10.0  # from the first event on, until they are sent as one message
#: After an event of a board, until more of the same kind are sent, as one with their number. A
#: board that restarts again and again may be in safe mode every 10 s.
QUIET_SECONDS: Final = 600.0
#: Without a link; a board whose network has a hitch, or whose server stopped, is back before.
LOST_SECONDS: Final = 60.0
_LISTED_NAMES: Final = 50  # of one kind in a message; of the others, only the number
_BOARDS_AT_ONCE: Final = 500  # whose state is examined before others have their turn: 1 ms
_CHECK_SECONDS: Final = 1.0  # after a change, until it is examined
SAFE_MODE: Final = "safe mode"  # how the state of a program begins that the client has left out


class Alarms:
    """Gathers events, and passes them on as one message.

    Args:
        send: sends a message, which can be JSON.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        send: Callable[[dict[str, Any]], object],
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._send = send
        self._call_later = call_later
        self._clock = clock
        self._gathered: dict[str, dict[str, int]] = {}  # kind -> name -> how many events
        self._repeatable: set[tuple[str, str]] = set()  # kinds and names of those gathered
        self._quiet: dict[tuple[str, str], int] = {}  # kind and name -> events since it was sent
        self._timer: TimerHandle | None = None

    def add(self, kind: str, name: str, *, repeats: bool = False) -> None:
        """Add an event.

        Args:
            kind: such as ``board-lost``.
            name: of a board, or of a group of boards.
            repeats: whether it can come again and again by itself.
        """
        key = (kind, name)
        if key in self._quiet:
            self._quiet[key] += 1
            return
        if repeats:
            self._repeatable.add(key)
        self._gather(kind, name, 1)

    def _gather(self, kind: str, name: str, times: int) -> None:
        names = self._gathered.setdefault(kind, {})
        names[name] = names.get(name, 0) + times
        if self._timer is None:
            self._timer = self._call_later(GATHER_SECONDS, self.flush)

    def flush(self) -> None:
        """Send what was gathered, if there is anything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._gathered:
            return
        events = [
            {
                "kind": kind,
                "count": len(names),
                "times": sum(names.values()),
                "names": sorted(names, key=natural_key)[:_LISTED_NAMES],
            }
            for kind, names in self._gathered.items()
        ]
        self._gathered = {}
        self._begin_quiet()
        self._send({"id": secrets.token_hex(8), "at": round(self._clock(), 3), "events": events})

    def _begin_quiet(self) -> None:
        """Count the next events of what is sent now, instead of sending each."""
        keys, self._repeatable = self._repeatable, set()
        if keys:
            self._quiet.update(dict.fromkeys(keys, 0))
            self._call_later(QUIET_SECONDS, lambda: self._end_quiet(keys))

    def _end_quiet(self, keys: set[tuple[str, str]]) -> None:
        """Send how many events there were meanwhile, if there were any."""
        for key in sorted(keys):
            if times := self._quiet.pop(key):
                self._repeatable.add(key)
                self._gather(*key, times)


class BoardAlarms:
    """Notices boards that are lost, overdue, or in safe mode.

    A board counts as lost if it was connected since this server started, and has had no link to
    any server for ``LOST_SECONDS``. Each server notices it; the leading one reports it. Safe mode
    is reported by the server that has the board's link.

    Args:
        registry: all boards.
        alarms: gathers the events.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        is_leader: returns whether this server reports lost and overdue boards.
        clock: seconds since an arbitrary start.
    """

    def __init__(
        self,
        registry: Registry,
        alarms: Alarms,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        *,
        is_leader: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._alarms = alarms
        self._call_later = call_later
        self._is_leader = is_leader
        self._clock = clock
        self._changed: dict[Board, None] = {}
        self._present: set[Board] = set()  # seen since the start, and not reported since
        self._absent: dict[Board, float] = {}  # without a link -> when that is reported
        self._safe: set[Board] = set()  # that were reported as in safe mode
        #: When boards are examined that do not change until then: a heap, with numbers that keep
        #: boards apart, and the time of each board.
        self._due: list[tuple[float, int, Board]] = []
        self._due_at: dict[Board, float] = {}
        self._numbers = itertools.count()
        self._change_timer: TimerHandle | None = None
        self._due_timer: TimerHandle | None = None
        registry.alarm_listener = self.on_changed
        for board in registry.by_id.values():  # those that sleep may be overdue soon
            self.on_changed(board)

    def stop(self) -> None:
        """Stop."""
        self._registry.alarm_listener = None
        for timer in (self._change_timer, self._due_timer):
            if timer is not None:
                timer.cancel()

    def on_changed(self, board: Board) -> None:
        """Examine a board soon: something about it has changed. Each job calls this."""
        self._changed[board] = None
        if self._change_timer is None:
            self._change_timer = self._call_later(_CHECK_SECONDS, self._examine_changed)

    def _examine_changed(self) -> None:
        self._change_timer = None
        for board in list(itertools.islice(self._changed, _BOARDS_AT_ONCE)):
            del self._changed[board]
            self._examine(board, self._clock())
        if self._changed and self._change_timer is None:
            self._change_timer = self._call_later(0.0, self._examine_changed)

    def _examine_due(self) -> None:
        """Examine the boards whose time has come."""
        self._due_timer = None
        now = self._clock()
        for _ in range(_BOARDS_AT_ONCE):
            if not self._due or self._due[0][0] > now:
                break
            at, _, board = heapq.heappop(self._due)
            if self._due_at.get(board) == at:
                del self._due_at[board]
                self._examine(board, now)
        self._schedule_due(now)

    def _schedule_due(self, now: float) -> None:
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None
        if self._due:
            self._due_timer = self._call_later(max(self._due[0][0] - now, 0.0), self._examine_due)

    def _examine(self, board: Board, now: float) -> None:
        if self._registry.by_id.get(board.id) is not board:
            self._present.discard(board)
            self._absent.pop(board, None)
            self._safe.discard(board)
            return
        state = board.state
        if state in ("idle", "busy"):
            self._present.add(board)
            self._absent.pop(board, None)
        elif state == "asleep":
            self._present.add(board)
            self._absent.pop(board, None)
            left = (board.overdue_at or 0.0) - time.time()
            self._examine_at(board, now + max(left, 0.0) + _CHECK_SECONDS, now)
        elif board in self._present:
            self._examine_absent(board, state, now)
        self._examine_program(board)

    def _examine_absent(self, board: Board, state: str, now: float) -> None:
        """Report a board that is overdue, or has been away for long; once."""
        if state == "overdue":
            self._report_absent(board, "board-overdue")
            return
        at = self._absent.setdefault(board, now + LOST_SECONDS)
        if at <= now:
            self._report_absent(board, "board-lost")
        else:
            self._examine_at(board, at, now)

    def _report_absent(self, board: Board, kind: str) -> None:
        self._present.discard(board)
        self._absent.pop(board, None)
        if self._is_leader():
            self._alarms.add(kind, board.name, repeats=True)

    def _examine_program(self, board: Board) -> None:
        """Report that a board has left its program out, once until it runs again."""
        if board.link is None:
            return
        program = board.reported_facts.get("program")
        if not (isinstance(program, str) and program.startswith(SAFE_MODE)):
            self._safe.discard(board)
        elif board not in self._safe:
            self._safe.add(board)
            self._alarms.add("safe-mode", board.name, repeats=True)

    def _examine_at(self, board: Board, at: float, now: float) -> None:
        """Examine a board again at a time, or before, by this class's clock."""
        if self._due_at.get(board, math.inf) <= at:
            return
        self._due_at[board] = at
        heapq.heappush(self._due, (at, next(self._numbers), board))
        if self._due[0][2] is board:
            self._schedule_due(now)
