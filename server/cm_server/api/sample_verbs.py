"""The verb about samples of days ago. No sockets, no SQL."""

from __future__ import annotations

import base64
import json
import math
from typing import Any, Final

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.sample_columns import WAYS
from cloudmanager.protocol.targets import natural_key, parse_target
from cm_server.store.sample_query import (
    MICROSECONDS,
    MINUTE,
    SamplePage,
    SampleQuery,
    Succession,
)

from .replies import Json, ListReply
from .request_context import RequestContext

_MAX_SECONDS: Final = 1e10  # since 1970: more is no time
_MIN_EVERY: Final = 0.001  # seconds
_MAX_NAMES: Final = 1000  # of values in one request
_PIECE_BYTES: Final = 48 * 1024  # of Arrow data in one item of a reply; a multiple of 3


async def read_history(context: RequestContext) -> ListReply:
    """Return a page of samples: what it has, then an Arrow stream in pieces of base64."""
    query = read_query(context)
    page = await context.services.sample_history.read(query, context.token.hash)
    head = {
        "series": page_series(context, page),
        "next": None if page.next is None else page.next / MICROSECONDS,
    }
    texts = [json.dumps(head, separators=(",", ":"))]
    for start in range(0, len(page.data), _PIECE_BYTES):
        texts.append(f'"{base64.b64encode(page.data[start : start + _PIECE_BYTES]).decode()}"')
    return ListReply(map(Json, texts))


def page_series(context: RequestContext, page: SamplePage) -> list[list[str]]:
    """Return the board's name now and the value's name of each series of a page."""
    names = {board.id: board.name for board in context.boards.values()}
    return [[names.get(board_id, ""), name] for board_id, name in page.series]


def read_query(context: RequestContext) -> SampleQuery:
    """Return the query of a request, checked.

    Raises:
        ServerError: a field is wrong.
        TargetError, NoSuchBoard: the target selects no boards.
    """
    body = context.body
    found = parse_target(str(body.get("target") or "all")).matching_names(context.boards)
    boards = [context.boards[name] for name in sorted(found, key=natural_key)]
    context.audit_entry.boards = len(boards)
    now = context.services.sample_history.now()
    since = _read_number(body, "since", None)
    until = _read_number(body, "until", now + 1)
    every = _read_number(body, "every", 0.0)
    if body.get("how") is not None and not every:
        raise ServerError("`how` says how the values of each span become one: it needs `every`")
    how = body.get("how") or WAYS[0]
    names = body.get("names")
    if how not in WAYS:
        raise ServerError(f"`how` must be {', '.join(WAYS[:-1])} or {WAYS[-1]}")
    if every and every < _MIN_EVERY:
        raise ServerError(f"`every` is a number of seconds, at least {_MIN_EVERY}")
    if names is not None and not _is_list_of_text(names):
        raise ServerError("`names` must be a list of names of values")
    first, end = math.floor(since * MICROSECONDS + 0.5), math.floor(until * MICROSECONDS + 0.5)
    step = round(every * MICROSECONDS) or None
    if step is not None:  # whole spans, so that a page and the next one fit together
        first, end = first // step * step, -(-end // step) * step
    successions = [
        # From a whole minute on, so that minutes and values as they came agree.
        Succession(period.id, board_id, int(period.since * MICROSECONDS) // MINUTE * MINUTE)
        for board_id, periods in context.services.enrolment.find_periods(boards).items()
        if len(periods) > 1
        for period in periods
    ]
    return SampleQuery(
        boards=[board.id for board in boards],
        names=names,
        since=first,
        until=end,
        every=step,
        how=how,
        limit=context.services.limits.history_page_values,
        expected_series=context.services.sample_history.expected_series(boards, names),
        successions=successions,
    )


def _read_number(body: dict[str, Any], name: str, default: float | None) -> float:
    value: Any = body.get(name)
    if value is None:
        value = default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < _MAX_SECONDS:
        raise ServerError(f"`{name}` must be a number of seconds: since 1970, or of a span")
    return float(value)


def _is_list_of_text(names: object) -> bool:
    return (
        isinstance(names, list)
        and 0 < len(names) <= _MAX_NAMES
        and all(isinstance(name, str) for name in names)
    )
