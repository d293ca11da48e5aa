"""Keeps the values that boards emit, for days and months; see store/sample_query.py.

Values are collected in the event loop and handed over once a second. One thread writes them, so
that a full or slow disk delays nobody; another one reads, so that a long query does not delay what
is written. What cannot be kept is counted, and a sentence says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from cloudmanager.protocol.errors import ServerError

from .cleanup import ProblemLog, log_failure
from .clock import CheckedClock
from .jobs.model import Board, TimerHandle
from .limits import Limits
from .sample_buffer import Sample
from .store.sample_query import (
    DAY,
    MICROSECONDS,
    HistoryError,
    SampleBatch,
    SamplePage,
    SampleQuery,
    SampleStore,
    Series,
)

FLUSH_SECONDS: Final = 1.0  # until values are handed over; `kill -9` loses these, and some more
TIDY_SECONDS: Final = 60.0  # between two looks at what is due
TIDY_PAUSE_SECONDS: Final = 0.2  # between two parts of it: values are written in between
RETRY_SECONDS: Final = 10.0  # after a failure; what comes meanwhile is not kept
STOP_SECONDS: Final = 10.0  # that a server that stops waits for its last values
FUTURE_SECONDS: Final = 3600.0  # that a board's clock may be ahead
MISSING: Final = (
    "this server keeps only the newest samples of each board: its Python lacks DuckDB; "
    "`pip install 'cloudmanager[history]'` and a restart of the server change that"
)
TURNED_OFF: Final = (
    "this server keeps only the newest samples: it was started with --keep-samples 0"
)


def missing_reason(*, needs_duckdb: bool) -> str:
    """Return why values cannot be kept with what is installed; "" if they can."""
    needed = ("nanoarrow", "duckdb") if needs_duckdb else ("nanoarrow",)
    return "" if all(map(importlib.util.find_spec, needed)) else MISSING


class SampleHistory:
    """Collects values, and lets a store keep and read them.

    Args:
        store: keeps them; None: nothing is kept.
        limits: how much of one board and one token is kept, and how many queries may wait.
        call_later: calls a function after a number of seconds.
        clock: the time, and whether it is certain.
        unavailable: why nothing is kept, if there is no store.

    Attributes:
        dropped: how many values were not kept since the start.
    """

    def __init__(
        self,
        store: SampleStore | None,
        limits: Limits,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        clock: CheckedClock,
        unavailable: str = "",
    ) -> None:
        self._store = store
        self._limits = limits
        self._call_later = call_later
        self._clock = clock
        self.unavailable = unavailable
        self.dropped = 0
        self._names = _DayNames(limits, 0)
        self._batch = SampleBatch(0, self._names.series)
        self._writer: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._timer: TimerHandle | None = None
        self._tidy_timer: TimerHandle | None = None
        self._problem = ""
        self._retry_at = 0.0  # by the monotonic clock
        self._queries: dict[str, int] = {}  # by token: how many wait or are carried out
        self._problem_log = ProblemLog()
        self._stopped = False

    def start(self) -> None:
        """Look for days that are over, and for what is too old."""
        if self._store is not None:
            self._tidy_timer = self._call_later(TIDY_SECONDS, self._tidy)

    def now(self) -> float:
        """Return the time, in seconds since 1970."""
        return self._clock.wall()

    # Keeping

    def add(self, board: Board, sample: Sample) -> None:
        """Keep the numbers of a sample that a board of this server has sent."""
        if self._store is None:
            return
        now = self._clock.wall()
        at = sample.at if sample.at < now + FUTURE_SECONDS else now
        day = int(now * MICROSECONDS) // DAY
        if day != self._batch.day and not self._batch:
            self._names = _DayNames(self._limits, day)
            self._batch = SampleBatch(day, self._names.series)
        batch = self._batch
        numbers = self._names.of_board(board)
        time_us = int(at * MICROSECONDS)
        for name, value in json.loads(sample.values).items():
            if type(value) is not float:
                if type(value) is not int and type(value) is not bool:
                    continue  # text, or a number that is not finite
                try:
                    value = float(value)
                except OverflowError:
                    continue
            index = numbers.index(name)
            if index is None or self._is_full():
                self.dropped += 1
                continue
            batch.times.append(time_us)
            batch.indexes.append(index)
            batch.values.append(value)
        if self._timer is None and batch:
            self._timer = self._call_later(FLUSH_SECONDS, self._on_timer)

    def _is_full(self) -> bool:
        """Return whether so many values wait for the disk that no more are kept."""
        return len(self._batch) >= self._limits.history_unwritten_values

    def _on_timer(self) -> None:
        self._timer = None
        self._flush()
        if self._batch and not self._stopped:
            self._timer = self._call_later(FLUSH_SECONDS, self._on_timer)

    def _flush(self) -> None:
        """Hand over what was collected, unless the thread is still busy with what was before."""
        if not self._batch or (self._writing is not None and not self._writing.done()):
            return
        batch = self._batch
        self._batch = SampleBatch(batch.day, batch.series)
        if time.monotonic() < self._retry_at:
            self.dropped += len(batch)
            return
        store = self._store
        assert store is not None
        self._writing = self._write(functools.partial(self._append, store, batch))

    def _append(self, store: SampleStore, batch: SampleBatch) -> None:
        """Keep values (in the thread)."""
        try:
            store.append(batch)
        except HistoryError as error:
            self.dropped += len(batch)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._problem = f"samples are not kept: {error}"
            self._problem_log.write(logging.WARNING, "history", "%s", self._problem)
        else:
            self._problem = ""

    def _write(self, use: Callable[[], Any]) -> Future[Any]:
        """Let the writing thread do something, after all that it was given before."""
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "sample-writer")
        future = self._writer.submit(use)
        future.add_done_callback(_log_unexpected)
        return future

    # Tidying

    def _tidy(self) -> None:
        """Let the store do a part of what is due, and come back."""
        if self._stopped or self._store is None:
            return
        now, may_delete = int(self._clock.wall() * MICROSECONDS), self._clock.check()
        loop = asyncio.get_running_loop()
        tidied = self._write(lambda: self._tidy_in_thread(now, may_delete=may_delete))
        tidied.add_done_callback(
            lambda done: _call_in_loop(loop, self._on_tidied, _result_of(done))
        )

    def _tidy_in_thread(self, now: int, *, may_delete: bool) -> bool:
        assert self._store is not None
        try:
            return self._store.tidy(now, may_delete=may_delete)
        except HistoryError as error:
            text = "the history of samples cannot be tidied: %s"
            self._problem_log.write(logging.WARNING, "tidy", text, error)
            return False

    def _on_tidied(self, more: bool) -> None:
        if not self._stopped:
            pause = TIDY_PAUSE_SECONDS if more else TIDY_SECONDS
            self._tidy_timer = self._call_later(pause, self._tidy)

    def erase(self, board_ids: Sequence[str]) -> None:
        """Delete all values of identities that are no longer enrolled."""
        if self._store is None or not board_ids:
            return
        store = self._store
        batch, self._batch = self._batch, SampleBatch(self._batch.day, self._batch.series)
        if batch:
            self._write(functools.partial(self._append, store, batch))
        self._write(functools.partial(self._erase, store, board_ids))
        if self._tidy_timer is not None:
            self._tidy_timer.cancel()
            self._tidy_timer = self._call_later(TIDY_PAUSE_SECONDS, self._tidy)

    def _erase(self, store: SampleStore, ids: Sequence[str]) -> None:
        try:
            store.erase(ids)
        except HistoryError as error:
            text = "values of boards that were removed cannot be erased: %s"
            self._problem_log.write(logging.WARNING, "erase", text, error)

    # Reading

    def expected_series(self, boards: Sequence[Board], names: Sequence[str] | None) -> int:
        """Return how many series these boards have sent today; at least 1 for each."""
        return sum(self._names.count(board, names) for board in boards) or 1

    async def read(self, query: SampleQuery, owner: str) -> SamplePage:
        """Return the first page of what a query is about.

        Args:
            query: what is wanted.
            owner: the hash of the token that asks.

        Raises:
            ServerError: nothing is kept, it cannot be read, or too many queries wait.
        """
        if self._store is None:
            raise ServerError(self.unavailable)
        waiting = self._queries.get(owner, 0)
        if self._has_too_many(waiting):
            raise ServerError(f"{waiting} queries of this token wait for a reply")
        self._queries[owner] = waiting + 1
        try:
            if self._readers is None:
                self._readers = ThreadPoolExecutor(1, "sample-reader")
            return await asyncio.wrap_future(self._readers.submit(self._read, query))
        except HistoryError as error:
            raise ServerError(str(error)) from error
        except RuntimeError as error:  # the thread has ended
            raise ServerError("the server stops") from error
        finally:
            self._queries[owner] -= 1
            if not self._queries[owner]:
                del self._queries[owner]

    def _has_too_many(self, waiting: int) -> bool:
        """Return whether a token has so many queries that another one is refused."""
        return waiting >= self._limits.history_queries_per_token

    def _read(self, query: SampleQuery) -> SamplePage:
        """Read in the thread, for a bounded time."""
        store = self._store
        assert store is not None
        with _interrupting(store.interrupt, self._limits.history_query_seconds):
            return store.read(query)

    # State

    def warnings(self) -> list[str]:
        """Return a sentence for each reason why values are not kept."""
        notes = [self._problem] if self._problem else []
        if over := self._names.over_limit:
            notes.append(over)
        return [*notes, *(self._store.notes() if self._store is not None else ())]

    def stop(self) -> None:
        """Keep what was collected, and close the store."""
        if self._stopped:
            return
        self._stopped = True
        for timer in (self._timer, self._tidy_timer):
            if timer is not None:
                timer.cancel()
        store = self._store
        if store is None:
            return
        if self._readers is not None:
            with contextlib.suppress(Exception):
                store.interrupt()
            self._readers.shutdown(wait=True, cancel_futures=True)
        if self._batch:
            self._write(functools.partial(self._append, store, self._batch))
        if self._writer is not None:
            done = self._write(store.close)
            with contextlib.suppress(Exception):
                done.result(STOP_SECONDS)
            self._writer.shutdown(wait=False, cancel_futures=True)
        else:
            store.close()


class _BoardNames:
    """The series of one board on one day.

    Args:
        day: of all boards.
        board: whose.
    """

    __slots__ = ("_board", "_day", "_indexes", "_values")

    def __init__(self, day: _DayNames, board: Board) -> None:
        self._day = day
        self._board = board
        self._indexes: dict[str, int] = {}
        self._values = 0

    def __len__(self) -> int:
        return len(self._indexes)

    def __contains__(self, name: str) -> bool:
        return name in self._indexes

    def index(self, name: str) -> int | None:
        """Return the index of a series for one more value; None if there are too many."""
        found = self._indexes.get(name)
        if excess := self._excess(is_new=found is None):
            self._day.report_excess(self._board, excess)
            return None
        if found is None:
            found = self._indexes[name] = self._day.add_series(self._board, name)
        return found

    def _excess(self, *, is_new: bool) -> str:
        """Return what there is too much of with one more value; "" if nothing."""
        if self._exceeds_values():
            return "values"
        if not self._day.count_value(self._board.token):
            return "values of its token"
        if is_new and self._exceeds_names():
            return "names of values"
        if is_new and not self._day.count_name(self._board.token):
            return "names of values of its token"
        return ""

    def _exceeds_values(self) -> bool:
        """Count a value; return whether it is more than is kept of the board."""
        self._values += 1
        return self._values > self._day.limits.history_board_values

    def _exceeds_names(self) -> bool:
        """Return whether one more name is more than is kept of the board."""
        return len(self._indexes) >= self._day.limits.history_board_names


class _DayNames:
    """The series of all boards on one day, and how many values they may still have.

    Args:
        limits: of boards and tokens.
        day: days since 1970.

    Attributes:
        series: all of them, by index; it only grows.
        over_limit: a sentence about a board that has sent too much; "" if none has.
    """

    def __init__(self, limits: Limits, day: int) -> None:
        self.limits = limits
        self.day = day
        self.series: list[Series] = []
        self.over_limit = ""
        self._boards: dict[str, _BoardNames] = {}
        self._token_names: dict[str, int] = {}
        self._token_values: dict[str, int] = {}

    def of_board(self, board: Board) -> _BoardNames:
        """Return the series of a board."""
        names = self._boards.get(board.id)
        if names is None:
            names = self._boards[board.id] = _BoardNames(self, board)
        return names

    def count(self, board: Board, names: Sequence[str] | None) -> int:
        """Return how many series a board has, 1 if it has sent nothing."""
        found = self._boards.get(board.id)
        if found is None:
            return 1
        return (len(found) if names is None else sum(name in found for name in names)) or 1

    def count_value(self, token: str) -> bool:
        """Count a value of a token's boards; return whether it is kept."""
        if not token:  # enrolled by an administrator
            return True
        count = self._token_values[token] = self._token_values.get(token, 0) + 1
        return count <= self.limits.history_token_values

    def count_name(self, token: str) -> bool:
        """Count a name of values of a token's boards; return whether it is kept."""
        if not token:
            return True
        count = self._token_names.get(token, 0)
        if count < self.limits.history_token_names:
            self._token_names[token] = count + 1
        return count < self.limits.history_token_names

    def add_series(self, board: Board, name: str) -> int:
        """Add a series of a board; return its index."""
        # What neither UTF-8 nor PostgreSQL can hold is replaced.
        clean = name.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
        self.series.append(Series(board.id, board.name, clean))
        return len(self.series) - 1

    def report_excess(self, board: Board, what: str) -> None:
        """Note which board was the first to send more than is kept."""
        if not self.over_limit:
            self.over_limit = (
                f"{board.name} has sent more {what} today than are kept; the rest is left out"
            )


@contextlib.contextmanager
def _interrupting(interrupt: Callable[[], None], seconds: float) -> Iterator[None]:
    """Interrupt what happens in a ``with`` block if it takes too long."""
    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _log_unexpected(done: Future[Any]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        assert isinstance(error, Exception)
        log_failure("the history of samples", error)


def _result_of(done: Future[Any]) -> bool:
    return not done.cancelled() and done.exception() is None and bool(done.result())


def _call_in_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[[bool], None], more: bool
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(function, more)
