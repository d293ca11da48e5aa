"""Reads a page of samples from the tables and files of several days, with DuckDB. SQL."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

from cloudmanager.protocol.sample_columns import SampleColumns, pack_stream

from .sample_day_tables import MINUTE_COLUMNS, TO_TIME, OpenDay, fetch_one
from .sample_folder import ClosedFile
from .sample_query import AGGREGATES, MAX_PAGE_VALUES, SamplePage, SampleQuery

if TYPE_CHECKING:
    import duckdb

#: Names the values of replaced boards as those of the boards that have taken their places.
_JOIN_SUCCESSIONS: Final = """
LEFT JOIN (SELECT unnest(?::VARCHAR[]) AS board_id, unnest(?::VARCHAR[]) AS current_id,
    unnest(?::BIGINT[]) AS since) successions USING (board_id)
WHERE since IS NULL OR time >= since
"""
_RAW_COLUMNS: Final = "1 AS count, value AS sum, value AS min, value AS max, value AS last"


class PageReader:
    """Reads samples of some days.

    Args:
        reader: a connection that has the tables of the open days.
        open_days: those that have not become Parquet.
        closed: the files of the others.
    """

    def __init__(
        self,
        reader: duckdb.DuckDBPyConnection,
        open_days: Collection[OpenDay],
        closed: Sequence[ClosedFile],
    ) -> None:
        self._reader = reader
        self._open_days = open_days
        self._closed = closed

    def read(self, query: SampleQuery) -> SamplePage:
        """Return the first page of what a query is about."""
        for span in query.spans():
            if count := self._fill_page(query, span, query.limit + 1):
                return self._cut_page(query, span[1], count)
        return empty_page()

    def _fill_page(
        self,
        query: SampleQuery,
        span: tuple[int, int],
        limit: int,
    ) -> int:
        """Write the first values of a span into the table ``page``; return how many."""
        selects, values = self._sources(query, span)
        if not selects:
            return 0
        value = "arg_max(last, last_time)" if query.how == "last" else AGGREGATES[query.how]
        time, group = "time", ""
        board, joined = "board_id", ""
        if query.successions:
            board, joined = "coalesce(current_id, board_id)", _JOIN_SUCCESSIONS
            values += [list(column) for column in zip(*query.successions, strict=True)]
        if query.every is None:
            value = "sum / count" if query.how == "mean" else query.how
        else:
            time, group = f"time - time % {query.every}", "GROUP BY 1, 2, 3"
        (count,) = fetch_one(
            self._reader,
            "CREATE OR REPLACE TEMP TABLE page AS "
            f"SELECT {board} AS board_id, name, {time} AS time, {value} AS value "
            f"FROM ({' UNION ALL '.join(selects)}) {joined} {group} ORDER BY 3, 1, 2 LIMIT {limit}",
            values,
        )
        return int(count)

    def _cut_page(self, query: SampleQuery, end: int, count: int) -> SamplePage:
        """Return what is in the table ``page``, up to a moment at which it is complete."""
        next_time: int | None = end if end < query.until else None
        if count > query.limit:
            first, last = fetch_one(self._reader, "SELECT min(time), max(time) FROM page")
            step = query.every or 1
            if first == last:  # more values at one moment than a page has
                span = (max(first, query.since), min(first + step, query.until))
                self._fill_page(query, span, MAX_PAGE_VALUES)
                next_time = first + step if first + step < query.until else None
            else:
                self._reader.execute("DELETE FROM page WHERE time = ?", [last])
                next_time = last
        ids = list(query.boards)
        self._reader.execute(
            "CREATE OR REPLACE TEMP TABLE page_series AS SELECT board_id, name, "
            "(row_number() OVER (ORDER BY place, name) - 1)::INTEGER AS series "
            "FROM (SELECT DISTINCT board_id, name FROM page) JOIN "
            "(SELECT unnest(?::VARCHAR[]) AS board_id, unnest(range(?)) AS place) USING (board_id)",
            [ids, len(ids)],
        )
        series = self._reader.execute(
            "SELECT board_id, name FROM page_series ORDER BY series"
        ).fetchall()
        values = self._reader.sql(
            "SELECT time, series, value FROM page JOIN page_series USING (board_id, name) "
            "ORDER BY time, series"
        )
        return SamplePage(series, pack_stream(values), next_time)

    def _sources(self, query: SampleQuery, span: tuple[int, int]) -> tuple[list[str], list[Any]]:
        """Return the SELECTs whose union has the values, and their parameters."""
        sources = _Sources(query, span)
        for day in self._open_days:
            if query.uses_minutes:
                sources.add_table(day.alias, "minutes", MINUTE_COLUMNS, "last_time")
                sources.add_table(
                    day.alias, "raw", _RAW_COLUMNS, "time", f"AND batch > {day.rolled}"
                )
            else:
                sources.add_table(day.alias, "raw", _RAW_COLUMNS, "time")
        kinds = {(file.stem, file.kind) for file in self._closed}
        for kind, columns, last_time in (
            ("raw", _RAW_COLUMNS, "time"),
            ("minutes", MINUTE_COLUMNS, "last_time"),
        ):
            paths = []
            for file in self._closed:
                prefers_minutes = query.uses_minutes and (file.stem, "minutes") in kinds
                has_raw = (file.stem, "raw") in kinds
                chosen = "minutes" if prefers_minutes or not has_raw else "raw"
                touches = file.first < span[1] and file.last >= span[0]
                if file.kind == kind == chosen and touches:
                    paths.append(str(file.path))
            if paths:
                sources.add_files(paths, columns, last_time)
        return sources.selects, sources.values


class _Sources:
    """SELECTs with the same columns, one for each table or group of files."""

    def __init__(self, query: SampleQuery, span: tuple[int, int]) -> None:
        self._query = query
        self._span = span
        self.selects: list[str] = []
        self.values: list[Any] = []

    def add_table(
        self, alias: str, table: str, columns: str, last_time: str, condition: str = ""
    ) -> None:
        """Add a table of a day's file."""
        self.selects.append(
            f"SELECT board_id, name, time, {columns}, {last_time} AS last_time "
            f"FROM {alias}.{table} JOIN {alias}.series USING (series) "
            f"WHERE time >= ? AND time < ? {condition} AND {self._conditions()}"
        )
        self.values += [*self._span, *self._condition_values()]

    def add_files(self, paths: Sequence[str], columns: str, last_time: str) -> None:
        """Add Parquet files of one kind."""
        bound = TO_TIME.format("?")
        self.selects.append(
            f"SELECT board_id, name, epoch_us(time) AS time, {columns}, "
            f"epoch_us({last_time}) AS last_time FROM read_parquet(?) "
            f"WHERE time >= {bound} AND time < {bound} AND {self._conditions()}"
        )
        self.values += [list(paths), *self._span, *self._condition_values()]

    def _conditions(self) -> str:
        text = "board_id IN (SELECT unnest(?::VARCHAR[]))"
        if self._query.names is not None:
            text += " AND name IN (SELECT unnest(?::VARCHAR[]))"
        return text

    def _condition_values(self) -> list[Any]:
        values: list[Any] = [self._query.board_ids]
        if self._query.names is not None:
            values.append(list(self._query.names))
        return values


def empty_page() -> SamplePage:
    """Return a page without values."""
    empty = SampleColumns(array("q"), array("i"), array("d"))
    return SamplePage((), pack_stream(empty), None)
