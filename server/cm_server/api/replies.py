"""Long replies: made piece by piece, so that neither the loop nor the memory is kept busy by one.

A verb whose reply may be long returns a ``ListReply`` or a ``MapReply``, whose items are made when
they are sent. No sockets, no SQL.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

_to_json = json.JSONEncoder(separators=(",", ":")).encode

SKIPPED: Final = object()  # an item that is left out; making it takes time, too
_LONG_ITEMS = 32  # with more, a list or an object is sent as a long reply
_TURN_SECONDS = 0.001  # of making items, before others have their turn


class Json(str):
    """An item that is JSON already."""


@dataclass(frozen=True)
class ListReply:
    """A reply that is a list.

    Attributes:
        items: made one by one; an item may be ``SKIPPED``.
    """

    items: Iterable[Any]


@dataclass(frozen=True)
class MapReply:
    """A reply that is an object.

    Attributes:
        batches: lists of keys and values.
    """

    batches: AsyncIterator[list[tuple[str, Any]]]


def is_long(reply: object) -> bool:
    """Return whether a reply is sent piece by piece."""
    return isinstance(reply, (ListReply, MapReply)) or (
        isinstance(reply, (list, dict)) and len(reply) > _LONG_ITEMS
    )


async def pieces(
    reply: Any, max_chars: int, turn: Callable[[float], Awaitable[None]]
) -> AsyncIterator[str]:
    """Yield a long reply in pieces, each of them JSON of the same kind: lists, or objects.

    Args:
        reply: a list, a dict, a ListReply or a MapReply.
        max_chars: a piece that has become longer is yielded; so one item may exceed it.
        turn: waits until the next items may be made, given the seconds that the last ones took.
    """
    texts: list[str] = []
    size = 0
    brackets = "{}" if isinstance(reply, (dict, MapReply)) else "[]"
    started = time.perf_counter()
    async for batch in _batches(reply):
        for text in batch:
            if text:
                texts.append(text)
                size += len(text) + 1
            if (seconds := time.perf_counter() - started) > _TURN_SECONDS:
                await turn(seconds)
                started = time.perf_counter()
            if size > max_chars:
                yield brackets[0] + ",".join(texts) + brackets[1]
                texts, size, started = [], 0, time.perf_counter()
    yield brackets[0] + ",".join(texts) + brackets[1]


async def _batches(reply: Any) -> AsyncIterator[Iterable[str]]:
    """Yield the items as JSON, those of an object with their keys; "" for those left out."""
    if isinstance(reply, MapReply):
        async for batch in reply.batches:
            yield _pairs(batch)
    elif isinstance(reply, dict):
        yield _pairs(reply.items())
    else:
        items = reply.items if isinstance(reply, ListReply) else reply
        yield map(_item_text, items)


def _item_text(item: Any) -> str:
    if item is SKIPPED:
        return ""
    return item if isinstance(item, Json) else _to_json(item)


def _pairs(pairs: Iterable[tuple[str, Any]]) -> Iterable[str]:
    return (f"{_to_json(key)}:{_to_json(value)}" for key, value in pairs)


def join_pieces(texts: list[str]) -> str:
    """Return the JSON of a whole reply, from its pieces."""
    bodies = [text[1:-1] for text in texts if len(text) > 2]  # without brackets
    return texts[0][0] + ",".join(bodies) + texts[0][-1]


async def collect(reply: Any) -> Any:
    """Return a reply as one list or dict, as a caller receives it in the end."""
    if isinstance(reply, ListReply):
        return [json.loads(text) for text in map(_item_text, reply.items) if text]
    if isinstance(reply, MapReply):
        return {key: value async for batch in reply.batches for key, value in batch}
    return reply
