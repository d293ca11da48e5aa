"""What went wrong on boards: unexpected restarts, and errors that ended their programs.

No sockets, no SQL. Everything is written to the store once a second, for all boards together. Call
from the thread of the event loop only.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from cloudmanager.protocol.facts import RESET_CAUSES, WAKE_CAUSE

from .board_logs import LogText
from .jobs.model import Board, TimerHandle
from .jobs.registry import Registry
from .limits import Limits
from .store.health_rows import HOUR, KEPT_CRASHES, Crash, Restart
from .store.store import Store
from .store.store_queue import Operation, StoreQueue

#: The state of a program that an error has ended, as clients report it (mpy_client/cm/app.py).
_ENDED_BY_ERROR: Final = re.compile(r"(?:app\.py ended|safe mode, without app\.py): (.+)", re.S)
_TRACEBACK: Final = "Traceback (most recent call last):"


class BoardHealth:
    """Records restarts and errors of boards.

    Args:
        store_queue: of the store.
        registry: all boards; what concerns one that is not enrolled any more is not stored.
        call_later: calls a function after a number of seconds.
        limits: how long a traceback may be, and when it is written.

    Attributes:
        is_switch_restart: returns whether a board has restarted for a rollout, of its facts
            ``generation`` before and after that.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        registry: Registry,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        limits: Limits,
    ) -> None:
        self._store_queue = store_queue
        self._registry = registry
        self._call_later = call_later
        self._limits = limits
        # What waits for the store; bounded, whatever a board reports.
        self._restarts: Counter[tuple[str, int, str]] = Counter()  # board's id, hour, cause
        self._crashes: dict[Board, dict[str, Crash]] = {}  # each board's last ones, by digest
        self._tracebacks: dict[Board, str] = {}  # those whose end was not received yet
        self._timer: TimerHandle | None = None
        self.is_switch_restart: Callable[[object, object], bool] = lambda _before, _after: False

    def on_connected(self, board: Board, facts: Mapping[str, Any]) -> None:
        """Record a restart, if this is the first link since then that nobody asked for.

        Args:
            board: has just authenticated; it still has the facts of its last link.
            facts: the new ones, with ``boot``, which changes with each start.
        """
        known, boot = board.reported_facts.get("boot"), facts.get("boot")
        cause = facts.get("reset")
        if known and boot and known != boot:
            self._tracebacks.pop(board, None)
            generations = board.reported_facts.get("generation"), facts.get("generation")
            is_expected = board.was_asked_to_restart or self.is_switch_restart(*generations)
            if not is_expected and cause != WAKE_CAUSE:
                hour = int(time.time() // HOUR)
                self._restarts[board.id, hour, _known_cause(cause)] += 1
                self._write_later()
        state = facts.get("program")
        if known != boot or state != board.reported_facts.get("program"):  # else it is known
            self.on_program(board, str(state or ""))

    def on_program(self, board: Board, state: str) -> None:
        """Record the error that has ended a board's program, if that is its state."""
        if found := _ENDED_BY_ERROR.fullmatch(state):
            self._add_crash(board, found[1])

    def on_log(self, board: Board, entry: LogText) -> None:
        """Record a traceback in a board's log, once its last line has been received."""
        begun = self._tracebacks.pop(board, "")
        text = entry.text if entry.lost else begun + entry.text
        if _TRACEBACK not in text:
            return
        text = text.replace("\r\n", "\n")
        *others, last = text.split(_TRACEBACK)
        for part in others[1:]:
            self._add_traceback(board, part)
        if not self._add_traceback(board, last) and len(last) < self._limits.traceback_chars:
            self._tracebacks[board] = _TRACEBACK + last

    def _add_traceback(self, board: Board, text: str) -> bool:
        """Record a traceback, given what follows its first line; return whether it is complete."""
        kept = [_TRACEBACK]
        for line in text.split("\n")[1:-1]:  # the last one may be unfinished
            kept.append(line)
            if line and not line.startswith(" "):
                self._add_crash(board, "\n".join(kept))
                return True
        return False

    def _add_crash(self, board: Board, text: str) -> None:
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")[: self._limits.traceback_chars]
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]
        crashes = self._crashes.setdefault(board, {})
        crashes[digest] = Crash(board.id, time.time(), digest, text)
        if _are_too_many(crashes):
            del crashes[next(iter(crashes))]
        self._write_later()

    def _write_later(self) -> None:
        if self._timer is None:
            self._timer = self._call_later(self._limits.health_write_seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.write()

    def write(self) -> Operation[None] | None:
        """Let the store write what is new; return the operation, None if there is nothing."""
        enrolled = self._registry.by_id
        restarts = [
            Restart(*restart, times)
            for restart, times in self._restarts.items()
            if restart[0] in enrolled
        ]
        crashes = [
            crash
            for board, found in self._crashes.items()
            for crash in found.values()
            if board.id in enrolled
        ]
        self._restarts.clear()
        self._crashes.clear()
        for board in [board for board in self._tracebacks if board.id not in enrolled]:
            del self._tracebacks[board]
        if not restarts and not crashes:
            return None
        return self._store_queue.run_later(
            lambda store: store.health_rows.add(restarts, crashes), durable=True
        )


def _known_cause(cause: Any) -> str:
    """Return the cause of a restart; "" for one that MicroPython does not have."""
    return cause if cause in RESET_CAUSES else ""


def _are_too_many(crashes: Mapping[str, Crash]) -> bool:
    """Return whether a board has more different errors than are kept."""
    return len(crashes) > KEPT_CRASHES
