"""Keep the values that boards emit in PostgreSQL, in tables that several servers share. SQL.

Each server writes the values of the boards that are connected to it, with COPY, and their minutes
in the same transaction. It has two connections of its own for this, one that writes and one that
reads, so that jobs do not wait for values. Other programs can read the tables as they are.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from cloudmanager.protocol.sample_columns import SampleColumns, pack_stream

from .sample_query import (
    AGGREGATES,
    DAY,
    MAX_PAGE_VALUES,
    MICROSECONDS,
    MINUTE,
    TOO_LONG,
    HistoryError,
    SampleBatch,
    SamplePage,
    SampleQuery,
    SampleRetention,
)

if TYPE_CHECKING:
    import psycopg

CONNECT_SECONDS: Final = 3  # timeout of a connection
WRITE_SECONDS: Final = 10.0  # timeout of a statement that writes
#: Rows that are deleted in one transaction.
DELETED_ROWS: Final = 50_000

_ERASE: Final = "erase samples of "  # prefix of names in the table ``shared``; an id follows
_HORIZON: Final = "samples before"  # the name of the time before which only minutes are kept
_SET_HORIZON: Final = (
    "INSERT INTO shared VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
_TABLES: Final = ("samples", "sample_minutes")

_KEEP_MINUTES: Final = """
INSERT INTO sample_minutes (board, name, time, count, sum, min, max, last, last_time)
SELECT * FROM unnest(%s::text[], %s::text[], %s::float8[], %s::int[], %s::float8[],
    %s::float8[], %s::float8[], %s::float8[], %s::float8[])
ORDER BY 1, 2, 3
ON CONFLICT (board, name, time) DO UPDATE SET
    count = sample_minutes.count + excluded.count, sum = sample_minutes.sum + excluded.sum,
    min = least(sample_minutes.min, excluded.min), max = greatest(sample_minutes.max, excluded.max),
    last = CASE WHEN excluded.last_time >= sample_minutes.last_time
        THEN excluded.last ELSE sample_minutes.last END,
    last_time = greatest(sample_minutes.last_time, excluded.last_time)
"""
_RAW: Final = (
    "SELECT board, name, time, 1 AS count, value AS sum, value AS min, value AS max, "
    "value AS last, time AS last_time FROM samples"
)
_MINUTES: Final = (
    "SELECT board, name, time, count, sum, min, max, last, last_time FROM sample_minutes"
)
#: Names the values of replaced boards as those of the boards that have taken their places.
_JOIN_SUCCESSIONS: Final = """
LEFT JOIN unnest(%s::text[], %s::text[], %s::float8[]) AS successions (board, current_id, since)
USING (board) WHERE since IS NULL OR time >= since
"""
#: Deletes some rows of boards, or rows before a time; the place is a condition.
_DELETE: Final = "DELETE FROM {0} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {0} WHERE {1} LIMIT %s))"


class SampleTables:
    """Tables of a PostgreSQL database.

    Args:
        url: of the database.
        retention: how many days are kept; the bytes are the database's affair.
    """

    def __init__(self, url: str, retention: SampleRetention) -> None:
        self._url = url
        self._retention = retention
        self._writer: psycopg.Connection[Any] | None = None
        self._reader: psycopg.Connection[Any] | None = None
        self._pruned_day = 0

    def _connect(self, seconds: float) -> psycopg.Connection[Any]:
        import psycopg

        try:
            return psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                options=f"-c statement_timeout={seconds:g}s -c TimeZone=UTC",
                application_name="cloudmanager samples",
            )
        except psycopg.Error as error:
            raise HistoryError(f"the database cannot be reached: {_first_line(error)}") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield the connection that writes, in a transaction."""
        import psycopg

        if self._writer is None or self._writer.closed:
            self._writer = self._connect(WRITE_SECONDS)
        try:
            with self._writer.transaction():
                yield self._writer
        except psycopg.Error as error:
            if self._writer.broken:
                self._writer.close()
            raise HistoryError(_first_line(error)) from error

    def append(self, batch: SampleBatch) -> None:
        """Keep values; they are committed when this returns.

        Raises:
            HistoryError: they are not kept.
        """
        rows = zip(batch.times, batch.indexes, batch.values, strict=True)
        minutes: dict[tuple[int, int], list[float]] = {}
        with self._writing() as connection, connection.cursor() as cursor:
            with cursor.copy("COPY samples (board, name, time, value) FROM STDIN") as copy:
                for time, index, value in rows:
                    series, at = batch.series[index], time / MICROSECONDS
                    copy.write_row((series.board_id, series.name, at, value))
                    _add_to_minute(minutes, (index, time - time % MINUTE), at, value)
            columns: list[list[Any]] = [[], [], []]
            for index, minute in minutes:
                columns[0].append(batch.series[index].board_id)
                columns[1].append(batch.series[index].name)
                columns[2].append(minute / MICROSECONDS)
            columns += [list(column) for column in zip(*minutes.values(), strict=True)]
            cursor.execute(_KEEP_MINUTES, columns)

    def tidy(self, now: int, *, may_delete: bool) -> bool:
        """Delete some of what is too old or erased; return whether there may be more.

        Raises:
            HistoryError: it was not possible.
        """
        if ids := self._ids_to_erase():
            deleted = [self._delete(table, "board = ANY(%s)", ids) for table in _TABLES]
            if any(deleted):
                return True
            with self._writing() as connection:
                names = [_ERASE + each for each in ids]
                connection.execute("DELETE FROM shared WHERE name = ANY(%s)", [names])
            return False
        today = now // DAY
        if not may_delete or self._pruned_day == today:
            return False
        horizon = (today - self._retention.raw_days) * DAY
        with self._writing() as connection:  # from now on, minutes are read in their place
            horizon = max(horizon, self._read_horizon(connection))
            connection.execute(_SET_HORIZON, (_HORIZON, str(horizon).encode()))
        before = (today - self._retention.minute_days) * DAY / MICROSECONDS
        more = self._delete("samples", "time < %s", horizon / MICROSECONDS)
        more |= self._delete("sample_minutes", "time < %s", before)
        if not more:
            self._pruned_day = today
        return more

    def _delete(self, table: str, condition: str, value: Any) -> bool:
        with self._writing() as connection:
            statement: Any = _DELETE.format(table, condition)
            return connection.execute(statement, (value, DELETED_ROWS)).rowcount > 0

    def erase(self, board_ids: Sequence[str]) -> None:
        """Write down which boards are to be erased; ``tidy`` does it, of any server.

        Raises:
            HistoryError: it was not possible.
        """
        with self._writing() as connection, connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO shared VALUES (%s, '') ON CONFLICT DO NOTHING",
                [[_ERASE + each] for each in board_ids],
            )

    def _ids_to_erase(self) -> list[str]:
        with self._writing() as connection:
            query = "SELECT name FROM shared WHERE starts_with(name, %s)"
            rows = connection.execute(query, [_ERASE]).fetchall()
        return [name.removeprefix(_ERASE) for (name,) in rows]

    def read(self, query: SampleQuery) -> SamplePage:
        """Return the first page of what a query is about.

        Raises:
            HistoryError: it cannot be read.
        """
        import psycopg

        if self._reader is None or self._reader.closed:
            self._reader = self._connect(0)  # without a timeout: ``interrupt`` ends it
        try:
            return self._read(self._reader, query)
        except psycopg.errors.QueryCanceled:
            raise HistoryError(TOO_LONG) from None
        except psycopg.Error as error:
            raise HistoryError(_first_line(error)) from error

    def interrupt(self) -> None:
        """Let a ``read`` in another thread fail."""
        if self._reader is not None and not self._reader.closed:
            self._reader.cancel_safe(timeout=CONNECT_SECONDS)

    def _read(self, reader: psycopg.Connection[Any], query: SampleQuery) -> SamplePage:
        rows: list[tuple[str, str, float, float]] = []
        end = query.since
        for span in query.spans():
            rows, end = self._select(reader, query, span, query.limit + 1), span[1]
            if rows:
                break
        next_time: int | None = end if end < query.until else None
        if len(rows) > query.limit:
            first, last = rows[0][2], rows[-1][2]
            step = query.every or 1
            if first == last:  # more values at one moment than a page has
                end = _microseconds(first) + step
                span = (max(_microseconds(first), query.since), min(end, query.until))
                rows = self._select(reader, query, span, MAX_PAGE_VALUES)
                next_time = end if end < query.until else None
            else:
                rows = [row for row in rows if row[2] < last]
                next_time = _microseconds(last)
        places = {board_id: place for place, board_id in enumerate(query.boards)}
        rows.sort(key=lambda row: (row[2], places[row[0]], row[1]))
        series: dict[tuple[str, str], int] = {}
        columns = SampleColumns(array("q"), array("i"), array("d"))
        for board, name, time, value in rows:
            columns.times.append(_microseconds(time))  # type: ignore[attr-defined]
            columns.series.append(series.setdefault((board, name), len(series)))  # type: ignore[attr-defined]
            columns.values.append(value)  # type: ignore[attr-defined]
        return SamplePage(list(series), pack_stream(columns), next_time)

    def _select(
        self,
        reader: psycopg.Connection[Any],
        query: SampleQuery,
        span: tuple[int, int],
        limit: int,
    ) -> list[tuple[str, str, float, float]]:
        """Return rows of board id, name, time and value in the order of time."""
        since, until = (time / MICROSECONDS for time in span)
        horizon = self._read_horizon(reader) / MICROSECONDS
        condition = "board = ANY(%s) AND time >= %s AND time < %s"
        values: list[Any] = [query.board_ids, since, until]
        if query.names is not None:
            condition += " AND name = ANY(%s)"
            values.append(list(query.names))
        if query.uses_minutes:
            source = f"{_MINUTES} WHERE {condition}"
        else:
            source = f"{_RAW} WHERE {condition} AND time >= %s"
            source += f" UNION ALL {_MINUTES} WHERE {condition} AND time < %s"
            values = [*values, horizon, *values, horizon]
        board, joined = "board", ""
        if query.successions:
            board, joined = "coalesce(current_id, board)", _JOIN_SUCCESSIONS
            ids, current_ids, times = zip(*query.successions, strict=True)
            values += [list(ids), list(current_ids), [each / MICROSECONDS for each in times]]
        value = AGGREGATES.get(query.how, "(array_agg(last ORDER BY last_time DESC))[1]")
        if query.every is None:
            value = "sum / count" if query.how == "mean" else query.how
            text = (
                f"SELECT {board}, name, time, {value} FROM ({source}) s {joined} ORDER BY 3, 1, 2"
            )
        else:
            every = query.every / MICROSECONDS
            text = (
                f"SELECT {board}, name, floor(time / {every!r}) * {every!r}, {value} "
                f"FROM ({source}) s {joined} GROUP BY 1, 2, 3 ORDER BY 3, 1, 2"
            )
        statement: Any = f"{text} LIMIT {limit}"
        return reader.execute(statement, values).fetchall()

    def _read_horizon(self, reader: psycopg.Connection[Any]) -> int:
        """Return the time before which only minutes are kept."""
        row = reader.execute("SELECT value FROM shared WHERE name = %s", (_HORIZON,)).fetchone()
        return int(bytes(row[0])) if row is not None else 0

    def notes(self) -> Sequence[str]:
        """Return nothing: a database loses nothing by itself."""
        return ()

    def close(self) -> None:
        """Close the connections."""
        for connection in (self._writer, self._reader):
            if connection is not None:
                connection.close()


def _add_to_minute(
    minutes: dict[tuple[int, int], list[float]], key: tuple[int, int], at: float, value: float
) -> None:
    """Add a value to its minute: count, sum, min, max, last, last_time."""
    minute = minutes.get(key)
    if minute is None:
        minutes[key] = [1, value, value, value, value, at]
        return
    minute[0] += 1
    minute[1] += value
    minute[2] = min(minute[2], value)
    minute[3] = max(minute[3], value)
    if at >= minute[5]:
        minute[4:] = [value, at]


def _microseconds(seconds: float) -> int:
    return round(seconds * MICROSECONDS)


def _first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return str(error).partition("\n")[0].strip() or type(error).__name__
