"""Deletes the texts of cells that were not run any more for long, in small batches. No SQL.

Every few hours all texts are examined, page by page, each in a transaction of a few milliseconds.
If there are too many, those that were not run for longest are deleted first, by days. With several
servers, each of them does so, which finds nothing to delete after another one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from .clock import CheckedClock
from .jobs.job_texts import JobTexts
from .jobs.model import TimerHandle
from .store.store_queue import Operation
from .store.text_rows import TextsLeft
from .times import DAY

log = logging.getLogger("cm_server")

FIRST_ROUND_SECONDS: Final = 90.0  # after the start: first, boards reconnect
ROUND_SECONDS: Final = 6 * 3600.0
PAUSE_SECONDS: Final = 0.1  # between two batches
_FILL_AFTER: Final = 0.9  # of the limit that remain when there are too many texts


class TextExpiry:
    """Keeps the texts within their time and their limit.

    Args:
        job_texts: what writes texts.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        keep_days: for how long they are kept; 0: not at all.
        clock: says whether the time is certain enough to delete by it.

    Attributes:
        deleted: how many texts were deleted since the start.
    """

    def __init__(
        self,
        job_texts: JobTexts,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        keep_days: int,
        clock: CheckedClock,
    ) -> None:
        self._job_texts = job_texts
        self._store_queue = job_texts.store_queue
        self._limits = job_texts.limits
        self._call_later = call_later
        self._keep_seconds = keep_days * DAY
        self._clock = clock
        self._chars: Counter[int] = Counter()  # day -> of texts that the round has left until now
        self._written_before = 0  # characters that were written before the round began
        self._before = 0.0  # what was last run before this is deleted, in seconds since 1970
        self._round = 0  # its number: of one that another has replaced, nothing continues
        self._stopped = False
        self.deleted = 0
        job_texts.keep = keep_days > 0
        job_texts.on_full = self.begin_round
        self._timer = call_later(FIRST_ROUND_SECONDS, self.begin_round)

    def stop(self) -> None:
        """Stop; the next server begins again."""
        self._stopped = True
        self._timer.cancel()

    def begin_round(self) -> None:
        """Examine all texts, unless the time is uncertain."""
        self._timer.cancel()
        if not self._clock.check():
            self._timer = self._call_later(ROUND_SECONDS, self.begin_round)
            return
        self._begin(self._clock.wall() - self._keep_seconds)

    def _begin(self, before: float) -> None:
        self._round += 1
        self._before = before
        self._chars = Counter()
        self._written_before = self._job_texts.written_chars
        self._examine("")

    def _examine(self, after: str) -> None:
        """Delete the old ones of the next texts."""
        number, before, max_rows = self._round, self._before, self._limits.prune_rows
        operation = self._store_queue.run(
            lambda store: store.text_rows.expire(before, after, max_rows), durable=True
        )
        operation.when_done(lambda _: self._on_examined(number, operation))

    def _on_examined(self, number: int, operation: Operation[TextsLeft]) -> None:
        if self._stopped or number != self._round:
            return
        if operation.error is not None:  # the store is unavailable; the next round tries again
            self._timer = self._call_later(ROUND_SECONDS, self.begin_round)
            return
        left = operation.result()
        self.deleted += left.deleted
        self._chars += left.chars
        if left.reached is not None:
            reached = left.reached
            self._timer = self._call_later(PAUSE_SECONDS, lambda: self._examine(reached))
            return
        self._finish_round()

    def _finish_round(self) -> None:
        """Delete more if there are too many, or wait for the next round."""
        limit = self._limits.text_total_chars
        before = self._before_limit()
        if before is not None:
            log.warning("the texts of cells exceed their limit: old ones are deleted")
            self._begin(before)
            return
        written = self._job_texts.written_chars - self._written_before
        self._job_texts.room = limit - self._chars.total() - written
        self._timer = self._call_later(ROUND_SECONDS, self.begin_round)

    def _before_limit(self) -> float | None:
        """Return before which time texts are deleted because there are too many; None if not."""
        limit, total = self._limits.text_total_chars, 0
        if self._chars.total() <= limit:
            return None
        for day in sorted(self._chars, reverse=True):
            total += self._chars[day]
            if total > limit * _FILL_AFTER:
                return (day + 1) * DAY
        return None
