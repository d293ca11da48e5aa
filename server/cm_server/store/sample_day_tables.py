"""The tables of a day of samples, in a DuckDB file, and the parts of statements about them. SQL."""

from __future__ import annotations

import re
import time
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from .sample_folder import day_of
from .sample_query import MINUTE, Series

if TYPE_CHECKING:
    import duckdb

TABLES: Final = """
CREATE TABLE IF NOT EXISTS {0}.series (
    series INTEGER, board_id VARCHAR, board VARCHAR, name VARCHAR);
CREATE TABLE IF NOT EXISTS {0}.raw (batch INTEGER, time BIGINT, series INTEGER, value DOUBLE);
CREATE TABLE IF NOT EXISTS {0}.minutes (
    series INTEGER, time BIGINT, count BIGINT, sum DOUBLE, min DOUBLE, max DOUBLE, last DOUBLE,
    last_time BIGINT);
CREATE TABLE IF NOT EXISTS {0}.state (rolled INTEGER);
"""
#: The minutes of all values that came after the batch ``rolled``.
ROLL_UP: Final = f"""
INSERT INTO {{0}}.minutes
SELECT series, time - time % {MINUTE}, count(*), sum(value), min(value), max(value),
    arg_max(value, time), max(time)
FROM {{0}}.raw WHERE batch > ? GROUP BY 1, 2
"""
MINUTE_COLUMNS: Final = "count, sum, min, max, last"
TO_TIME: Final = "make_timestamp({})::TIMESTAMPTZ"


class OpenDay:
    """The file of a day that has not become Parquet.

    Args:
        stem: date and number.
    """

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.alias = "day_" + re.sub(r"\W", "_", stem)
        self.day = day_of(stem)
        self.series: dict[tuple[str, str], int] = {}  # board id and name -> number in the file
        self.next_series = 0
        self.batch = 0  # number of the last one
        self.rolled = 0  # and of the last one that is in the minutes
        self.rolled_at = time.monotonic()
        self.indexes: tuple[object, array[int]] = (None, array("i"))  # of a batch's series


def series_array(day: OpenDay, new: Sequence[Series]) -> Any:
    """Return rows of the table ``series`` as an Arrow array of structs."""
    import nanoarrow

    numbers = array("i", [day.series[each.board_id, each.name] for each in new])
    texts = ([each.board_id for each in new], [each.board for each in new])
    columns = (*texts, [each.name for each in new])
    children = [nanoarrow.c_array_from_buffers(nanoarrow.int32(), len(new), [None, numbers])]
    children += [nanoarrow.c_array(column, nanoarrow.string()) for column in columns]
    kinds = (nanoarrow.int32(), *[nanoarrow.string()] * 3)
    names = ("series", "board_id", "board", "name")
    schema = nanoarrow.struct(dict(zip(names, kinds, strict=True)), nullable=False)
    return nanoarrow.c_array_from_buffers(schema, len(new), [None], children=children)


def fetch_one(
    connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """Return the only row of a query, with 0 in the place of NULL."""
    row = connection.execute(query, list(values)).fetchone()
    return tuple(0 if value is None else value for value in row or ())


def quote(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def marks(values: Sequence[object]) -> str:
    """Return the placeholders of an SQL list."""
    return ", ".join("?" * len(values))


def first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return str(error).partition("\n")[0].strip() or type(error).__name__
