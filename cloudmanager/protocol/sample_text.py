"""Samples as text: rows of CSV and of JSON, with times in UTC. No I/O."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from .sample_columns import SampleColumns

HEADINGS: Final = ("time", "board", "name", "value")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: With these, spreadsheets begin a formula; the names of values are the boards' own.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def time_text(microseconds: int) -> str:
    """Return a time in ISO 8601: ``2026-11-30T14:05:00.250Z``, with the digits that it needs."""
    moment = _EPOCH + timedelta(microseconds=microseconds)
    timespec = "milliseconds" if microseconds % 1000 == 0 else "microseconds"
    return moment.isoformat(timespec=timespec).removesuffix("+00:00") + "Z"


def csv_header() -> str:
    """Return the first line of a CSV file."""
    return ",".join(HEADINGS) + "\n"


def csv_rows(series: Sequence[Sequence[str]], columns: SampleColumns) -> str:
    """Return values as lines of CSV: time, board, name, value.

    Args:
        series: board and name of each series.
        columns: the values.
    """
    target = io.StringIO(newline="")
    safe = [(board, _plain(name)) for board, name in series]
    csv.writer(target, lineterminator="\n").writerows(_rows(safe, columns))
    return target.getvalue()


def json_rows(series: Sequence[Sequence[str]], columns: SampleColumns) -> str:
    """Return values as JSON objects, with commas between them."""
    rows: Iterable[Sequence[object]] = _rows(series, columns)
    return ",\n".join(json.dumps(dict(zip(HEADINGS, row, strict=True))) for row in rows)


def _rows(
    series: Sequence[Sequence[str]], columns: SampleColumns
) -> Iterator[tuple[str, str, str, float]]:
    for time, index, value in zip(*columns, strict=True):
        board, name = series[index]
        yield time_text(time), board, name, value


def _plain(name: str) -> str:
    """Return a name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(_FORMULA_STARTS) else name
