"""Samples of days and months ago: what is asked of the server, and its pages."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypedDict

from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.sample_columns import (
    NO_NANOARROW,
    WAYS,
    SampleColumns,
    has_nanoarrow,
    unpack_stream,
)
from cloudmanager.protocol.spans import parse_span
from cloudmanager.protocol.targets import natural_key

from .exchange import Exchange
from .samples import Sample, Samples

#: Values that one call returns; each needs some hundred bytes of memory as Python objects.
MAX_VALUES: Final = 2_000_000
_MICROSECONDS: Final = 1_000_000


class HistoryKeywords(TypedDict, total=False):
    """The keywords of ``samples`` about samples of days ago.

    Attributes:
        since: the first of them: a span before now (``"7d"``), seconds since 1970, or a datetime.
        until: the time after the last of them, in the same way; by default now.
        every: one value for each span of this length (``"5m"``, or seconds), which begin at
            multiples of it since 1970; None: the values as they are, or minutes where the server
            does not keep those any more.
        how: how the values of each span become one: mean (the default), min, max or last.
        names: of the values; None for all.
    """

    since: str | float | datetime | None
    until: str | float | datetime | None
    every: str | float | None
    how: str | None
    names: Sequence[str] | None


class HistoryPage(NamedTuple):
    """Some values, in the order of time.

    Attributes:
        series: board and name of each series.
        columns: times (microseconds since 1970), indexes of series, and values.
    """

    series: list[list[str]]
    columns: SampleColumns


def history_request(target: str, given: HistoryKeywords) -> dict[str, Any]:
    """Return the request for samples.

    Raises:
        ValueError: a keyword has no value that it may have.
    """
    how, every = given.get("how"), _read_span(given.get("every"))
    if how is not None and how not in WAYS:
        raise ValueError(f"how is {', '.join(WAYS[:-1])} or {WAYS[-1]}, not {how!r}")
    if how is not None and every is None:
        raise ValueError("how says how the values of each span become one: it needs every")
    names = given.get("names")
    if isinstance(names, str):
        names = [names]
    return {
        "target": target,
        "since": _read_time(given.get("since")) or 0.0,
        "until": _read_time(given.get("until")),
        "every": every,
        "how": how,
        "names": None if names is None else list(names),
    }


def _read_time(moment: str | float | datetime | None) -> float | None:
    """Return a time in seconds since 1970; None for None."""
    if moment is None:
        return None
    if isinstance(moment, str):
        return time.time() - parse_span(moment)
    return moment.timestamp() if isinstance(moment, datetime) else float(moment)


def _read_span(span: str | float | None) -> float | None:
    if span is None:
        return None
    seconds = float(parse_span(span)) if isinstance(span, str) else float(span)
    if not 0 < seconds < math.inf:
        raise ValueError(f"every is a span such as 5m, or a number of seconds, not {span!r}")
    return seconds


async def read_pages(exchange: Exchange, body: dict[str, Any]) -> AsyncIterator[HistoryPage]:
    """Yield what the server keeps, page by page; each is asked for when it is wanted.

    Raises:
        CloudmanagerError: nanoarrow is not installed here, or the server refuses.
    """
    if not has_nanoarrow():
        raise CloudmanagerError(NO_NANOARROW)
    since: float | None = body["since"]
    while since is not None:
        reply = await exchange.request("sample-history", {**body, "since": since})
        page, since = read_reply(reply)
        yield page


def read_reply(reply: list[Any]) -> tuple[HistoryPage, float | None]:
    """Return the page that a reply of the server is, and where the next one begins."""
    head, *pieces = reply
    columns = unpack_stream(b"".join(base64.b64decode(piece) for piece in pieces))
    return HistoryPage(head["series"], columns), head["next"]


async def read_history(exchange: Exchange, body: dict[str, Any]) -> Samples:
    """Return all that a request is about.

    Raises:
        CloudmanagerError: the server refuses, or these are more values than one call returns.
    """
    samples: list[Sample] = []
    count = 0
    async for page in read_pages(exchange, body):
        count += len(page.columns.times)
        if count > MAX_VALUES:
            raise CloudmanagerError(
                f"these are more than {MAX_VALUES:,} values: give every='5m', or a shorter time; "
                "`mbm board-samples` writes all of them to a file"
            )
        samples += page_samples(page)
    return Samples(samples, has_ticks=False)


def page_samples(page: HistoryPage) -> list[Sample]:
    """Return the values of a page as samples, one for each board and time, in their order."""
    boards = sorted({board for board, _ in page.series}, key=natural_key)
    ranks = {board: rank for rank, board in enumerate(boards)}
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for at, index, value in zip(*page.columns, strict=True):
        board, name = page.series[index]
        found.setdefault((at, ranks[board]), {})[name] = value
    return [
        Sample(boards[rank], at / _MICROSECONDS, 0, 0, values)
        for (at, rank), values in sorted(found.items(), key=lambda item: item[0])
    ]
