"""Writes Parquet files of samples: a day that is over, and files without boards. SQL.

It also reads from when to when a file's values are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .sample_day_tables import MINUTE_COLUMNS, TO_TIME, OpenDay, fetch_one, marks, quote
from .sample_folder import ClosedFile

if TYPE_CHECKING:
    import duckdb

#: Values that are sorted and written to one Parquet file at a time: about 3 s of one core.
PART_VALUES: Final = 4_000_000


class DayPart(NamedTuple):
    """The series whose values become one Parquet file of each kind."""

    number: int
    first: tuple[str, str]
    last: tuple[str, str]


class Rewritten(NamedTuple):
    """A Parquet file that was written again, without some boards.

    Attributes:
        ids: the boards'.
        file: the one whose place it takes; None: no file has any of them.
        draft: the new one.
    """

    ids: Sequence[str]
    file: ClosedFile | None
    draft: Path


def read_first_and_last(connection: duckdb.DuckDBPyConnection, path: Path) -> tuple[int, int]:
    """Return the times of a Parquet file's first and last value, in µs since 1970; 0 without any.

    Raises:
        duckdb.Error: it cannot be read.
    """
    query = (
        "SELECT epoch_us(min(stats_min_value::TIMESTAMPTZ)), "
        "epoch_us(max(stats_max_value::TIMESTAMPTZ)) "
        "FROM parquet_metadata(?) WHERE path_in_schema = 'time'"
    )
    first, last = connection.execute(query, [str(path)]).fetchone() or (None, None)
    return first or 0, last or 0


def divide_day(connection: duckdb.DuckDBPyConnection, day: OpenDay) -> list[DayPart]:
    """Return the series of a day in parts that fit into the memory."""
    query = (
        f"SELECT s.board, s.name, count(*) FROM {day.alias}.raw JOIN {day.alias}.series s "
        "USING (series) GROUP BY 1, 2 ORDER BY 1, 2"
    )
    parts: list[DayPart] = []
    size = 0
    for board, name, count in connection.execute(query).fetchall():
        if not parts or size + count > PART_VALUES:
            parts.append(DayPart(len(parts), (board, name), (board, name)))
            size = 0
        size += count
        parts[-1] = parts[-1]._replace(last=(board, name))
    return parts


def write_part(
    connection: duckdb.DuckDBPyConnection, folder: Path, day: OpenDay, part: DayPart
) -> None:
    """Write the drafts of the Parquet files of a part of a day."""
    of_part = "(s.board, s.name) >= (?, ?) AND (s.board, s.name) <= (?, ?)"
    for kind, columns in (
        ("raw", "value"),
        ("minutes", f"{MINUTE_COLUMNS}, {TO_TIME.format('last_time')} AS last_time"),
    ):
        path = folder / f"{kind}-{day.stem}-{part.number:03}.parquet.part"
        query = (
            f"SELECT s.board_id, s.board, s.name, {TO_TIME.format('time')} AS time, {columns} "
            f"FROM {day.alias}.{kind} JOIN {day.alias}.series s USING (series) "
            f"WHERE {of_part} ORDER BY s.board, s.name, time"
        )
        copy_to_parquet(connection, query, [*part.first, *part.last], path)


def rewrite_without(
    connection: duckdb.DuckDBPyConnection, closed: Sequence[ClosedFile], ids: Sequence[str]
) -> Rewritten:
    """Write the first Parquet file that has values of some boards again, without them."""
    for file in closed:
        query = f"SELECT count(*) FROM read_parquet(?) WHERE board_id IN ({marks(ids)})"
        (count,) = fetch_one(connection, query, [str(file.path), *ids])
        if not count:
            continue
        draft = file.path.with_name(f"{file.path.name}.part")
        query = (
            f"SELECT * FROM read_parquet({quote(str(file.path))}) "
            f"WHERE board_id NOT IN ({marks(ids)}) ORDER BY board, name, time"
        )
        copy_to_parquet(connection, query, ids, draft)
        return Rewritten(ids, file, draft)
    return Rewritten(ids, None, Path())


def copy_to_parquet(
    connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any], path: Path
) -> None:
    """Write the result of a query to a Parquet file, which is on the disk then."""
    connection.execute(
        f"COPY ({query}) TO {quote(str(path))} (FORMAT parquet, COMPRESSION zstd)", values
    )
    with path.open("rb") as file:
        os.fsync(file.fileno())
