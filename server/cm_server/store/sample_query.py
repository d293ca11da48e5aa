"""What is kept of the values that boards emit, for days and months: the interface of its stores.

``SampleFiles`` (sample_files.py) keeps it in files beside the server's database, ``SampleTables``
(sample_tables.py) in PostgreSQL. Both have the values as they came (raw) for some days, and of each
minute their count, sum, least, greatest and last one for longer. Times are microseconds since 1970.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

MICROSECONDS: Final = 1_000_000
MINUTE: Final = 60 * MICROSECONDS
DAY: Final = 86_400 * MICROSECONDS
#: A query of all boards at one moment returns at most this many values in one page.
MAX_PAGE_VALUES: Final = 1_000_000
#: Why a query failed that was interrupted.
TOO_LONG: Final = "the query took too long: ask for a shorter time, or with `every`"
#: How each way is computed from columns of minutes, or of values in the form of minutes.
AGGREGATES: Final[Mapping[str, str]] = {
    "mean": "sum(sum) / sum(count)",
    "min": "min(min)",
    "max": "max(max)",
}


class HistoryError(Exception):
    """Values cannot be kept or read; the text is a sentence for people, without its full stop."""


class Series(NamedTuple):
    """The values of one name of one board.

    Attributes:
        board_id: the board's.
        board: its name when the values came.
        name: of the values.
    """

    board_id: str
    board: str
    name: str


class SampleBatch:
    """Values that came within a second or so, as columns.

    Args:
        day: the day in which they came (UTC), in days since 1970. The values may be older.
        series: those of that day; it only grows.

    Attributes:
        times: when they were measured, in microseconds since 1970.
        indexes: of their series.
        values: the numbers.
    """

    def __init__(self, day: int, series: Sequence[Series]) -> None:
        self.day = day
        self.series = series
        self.times = array("q")
        self.indexes = array("i")
        self.values = array("d")

    def __len__(self) -> int:
        return len(self.times)


class Succession(NamedTuple):
    """Values of one identity that are returned as those of a board.

    Attributes:
        board_id: the identity: a board that was replaced, or the one that has replaced it.
        current_id: the id of the board as whose values they are returned.
        since: only values at or after this time: what the new board has measured before is no part
            of what the old one has.
    """

    board_id: str
    current_id: str
    since: int


@dataclass(frozen=True, kw_only=True)
class SampleQuery:
    """Which values are wanted.

    Attributes:
        boards: the ids of boards, in the order in which their values of one moment are returned.
        names: of values; None for all.
        since: values at or after this time.
        until: and before this one.
        every: one value for each span of this many microseconds, which begin at multiples of it
            since 1970; None: the values as they are, or minutes where those are not kept any more.
        how: one of ``WAYS``: how several values become one.
        limit: about how many values a page may have.
        expected_series: how many series the boards probably have; at least 1.
        successions: of those of the boards that have replaced others.
    """

    boards: Sequence[str]
    names: Sequence[str] | None
    since: int
    until: int
    every: int | None = None
    how: str = "mean"
    limit: int = 50_000
    expected_series: int = 1
    successions: Sequence[Succession] = ()

    @property
    def board_ids(self) -> list[str]:
        """The ids of the boards, and of those that they have replaced."""
        return list(dict.fromkeys([*self.boards, *(each.board_id for each in self.successions)]))

    @property
    def uses_minutes(self) -> bool:
        """Whether minutes are as good as the values themselves."""
        return self.every is not None and self.every % MINUTE == 0

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the spans of time to look at until one has values.

        The first has about as many values as a page may have. Those after it are longer and longer,
        since there is little.
        """
        unit = self.every or DAY
        count = max(self.limit // self.expected_series, 1) if self.every else 1
        start = self.since
        while start < self.until:
            end = min(self.until, (start // unit + count) * unit)
            yield start, end
            start = end
            count *= 4


class SamplePage(NamedTuple):
    """Some values, in the order of time, of the boards in the query, and of names.

    Attributes:
        series: board id and name of each series in the page.
        data: times, indexes of the series and values, as an Arrow stream.
        next: the time of the first value that is not in the page; None if there is none.
    """

    series: Sequence[tuple[str, str]]
    data: bytes
    next: int | None


@dataclass(frozen=True, kw_only=True)
class SampleRetention:
    """How much is kept.

    Attributes:
        raw_days: values as they came, the day in which they came not counted.
        minute_days: minutes.
        max_bytes: of all files together; with more, the oldest are deleted.
        free_bytes: of the disk that stay free; with less, nothing more is kept.
    """

    raw_days: int = 7
    minute_days: int = 400
    max_bytes: int = 10_000_000_000
    free_bytes: int = 0


class SampleStore(Protocol):
    """Keeps values. ``read`` and ``interrupt`` are for one thread, all else is for another."""

    def append(self, batch: SampleBatch) -> None:
        """Keep values; they are on the disk when this returns.

        Raises:
            HistoryError: they are not kept.
        """

    def tidy(self, now: int, *, may_delete: bool) -> bool:
        """Do a part of what is due: close days, delete what is too old.

        Args:
            now: the time.
            may_delete: whether the time is certain enough to delete by it.

        Returns:
            Whether there is more to do.

        Raises:
            HistoryError: it was not possible.
        """

    def erase(self, board_ids: Sequence[str]) -> None:
        """Delete all values of boards; ``tidy`` does the rest of it.

        Raises:
            HistoryError: it was not possible; it is tried again.
        """

    def read(self, query: SampleQuery) -> SamplePage:
        """Return the first page of what a query is about.

        Raises:
            HistoryError: they cannot be read.
        """

    def interrupt(self) -> None:
        """Let a ``read`` in another thread fail."""

    def notes(self) -> Sequence[str]:
        """Return sentences about what was lost or set aside since the start (any thread)."""

    def close(self) -> None:
        """Close files and connections."""
