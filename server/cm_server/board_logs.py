"""Boards' logs: what a board prints outside of cells. No sockets, no SQL.

Text is handed to those who follow it, and written to the store once a second. A board that prints
too much loses the excess, which is counted; it delays nobody. Call from the thread of the event
loop only.
"""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from cloudmanager.protocol import wire

from .jobs.model import Board, TimerHandle
from .jobs.registry import Registry
from .limits import Limits
from .store.log_rows import LogRow, LogTrims
from .store.store import Store
from .store.store_queue import Operation, StoreQueue

_MAX_LOST: Final = 2**31 - 1  # bytes: the largest number of the store's column
_new_decoder: Final = codecs.getincrementaldecoder("utf-8")


class LogText(NamedTuple):
    """What a board printed.

    Attributes:
        at: when the server received it, in seconds since 1970.
        lost: how many bytes were lost before it.
        text: any part of one or more lines.
    """

    at: float
    lost: int
    text: str


class _BoardLog:
    """What is known of a board that printed lately."""

    __slots__ = ("allowed", "decoder", "lost", "since", "untrimmed")

    def __init__(self, now: float, limits: Limits) -> None:
        self.decoder = _new_decoder("replace")  # a character may come in two messages
        self.lost = 0  # bytes lost since the last text
        self.since = now  # when `allowed` was computed, by the monotonic clock
        self.allowed: float = limits.log_burst_bytes  # that it may still print
        self.untrimmed = limits.log_trim_chars  # stored since the last trim; at first: trim


class BoardLogs:
    """Collects what boards print.

    Args:
        store_queue: of the store.
        registry: all boards; the log of one that is not enrolled any more is not stored.
        call_later: calls a function after a number of seconds.
        limits: how much a board may print, and how much is kept.

    Attributes:
        listeners: called with each text, and its board.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        registry: Registry,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        limits: Limits,
    ) -> None:
        self.listeners: list[Callable[[Board, LogText], None]] = []
        self._store_queue = store_queue
        self._registry = registry
        self._call_later = call_later
        self._limits = limits
        self._logs: dict[Board, _BoardLog] = {}
        self._unwritten: deque[LogRow] = deque()
        self._unwritten_chars = 0
        self._chars_since_trim = limits.log_total_trim_chars  # the first write trims
        self._timer: TimerHandle | None = None
        self._writing: Operation[Any] | None = None

    def add_message(self, board: Board, message: wire.Message) -> None:
        """Add the text of a LOG message, or of an OUTPUT of no job (clients of 0.1).

        Raises:
            PeerWireError: the message is malformed.
        """
        is_log = message.op == wire.LOG
        lost, data = wire.read_log(message) if is_log else (0, message.payload)
        now = time.monotonic()
        log = self._logs.get(board)
        if log is None:
            log = self._logs[board] = _BoardLog(now, self._limits)
        room = self._spend(log, now, len(data))
        log.lost += lost
        text = log.decoder.decode(data[:room], final=room < len(data))
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL does not store it
        if text or lost:
            self._add(board, log, text)
        log.lost += len(data) - room
        if self._timer is None:
            self._timer = self._call_later(self._limits.log_write_seconds, self._on_timer)

    def _spend(self, log: _BoardLog, now: float, size: int) -> int:
        """Return how many of ``size`` bytes are within the board's rate."""
        earned = (now - log.since) * self._limits.log_bytes_per_second
        log.allowed = min(log.allowed + earned, self._limits.log_burst_bytes)
        log.since = now
        room = min(size, int(log.allowed))
        log.allowed -= room
        return room

    def _add(self, board: Board, log: _BoardLog, text: str) -> None:
        entry = LogText(round(time.time(), 3), min(log.lost, _MAX_LOST), text)
        log.lost = 0
        row = LogRow(board.id, *entry)
        cost = row.cost(self._limits.log_min_chars)
        log.untrimmed += cost
        self._unwritten.append(row)
        self._unwritten_chars += cost
        for listener in self.listeners:
            listener(board, entry)

    def _on_timer(self) -> None:
        self._timer = None
        for board, log in self._logs.items():
            if log.lost:  # nothing that fitted has followed yet
                self._add(board, log, "")
        self.write()
        if self._unwritten:
            self._timer = self._call_later(self._limits.log_write_seconds, self._on_timer)
        self._forget_quiet_boards()

    def _forget_quiet_boards(self) -> None:
        """Forget boards that printed nothing for so long that their rate is unused."""
        seconds = self._limits.log_burst_bytes / self._limits.log_bytes_per_second
        before = time.monotonic() - seconds
        for board in [board for board, log in self._logs.items() if log.since < before]:
            del self._logs[board]

    def write(self) -> Operation[Any] | None:
        """Let the store write what is new and delete the oldest rows.

        While the store does not answer, a bounded amount waits, and what is older is dropped.

        Returns:
            The write that is not done yet; None if there is nothing to write.
        """
        min_chars = self._limits.log_min_chars
        while self._unwritten_chars > self._limits.log_unwritten_chars:
            self._unwritten_chars -= self._unwritten.popleft().cost(min_chars)
        if self._writing is not None and not self._writing.done:
            return self._writing
        rows = [row for row in self._unwritten if row.board_id in self._registry.by_id]
        self._unwritten = deque()
        if not rows:
            return None
        self._chars_since_trim += self._unwritten_chars
        self._unwritten_chars = 0
        limits, boards = self._limits, self._take_boards_to_trim()
        trims_all = self._chars_since_trim >= limits.log_total_trim_chars
        if trims_all:
            self._chars_since_trim = 0
        max_chars = limits.log_total_chars if trims_all else None
        trims = LogTrims(boards, limits.log_chars, min_chars, max_chars)
        self._writing = self._store_queue.run_later(
            lambda store: store.log_rows.append(rows, trims), durable=True
        )
        return self._writing

    def _take_boards_to_trim(self) -> list[str]:
        """Return the ids of boards of which much was stored since their log was trimmed."""
        boards = []
        for board, log in self._logs.items():
            if log.untrimmed >= self._limits.log_trim_chars:
                log.untrimmed = 0
                boards.append(board.id)
        return boards
