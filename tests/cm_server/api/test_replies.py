"""Long replies are made piece by piece."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cm_server.api import replies


async def no_turn(_seconds: float) -> None:
    pass


async def batches() -> AsyncIterator[list[tuple[str, Any]]]:
    yield [("a", 1), ("b", [2])]
    yield []
    yield [("c", {"d": "\u00e9"})]


def make_reply(kind: str) -> Any:
    return {
        "list": [{"a": 1}, "b", None, 2.5] * 3,
        "empty list": [],
        "dict": {"a": 1, "b": [2]},
        "empty dict": {},
        "items": replies.ListReply(iter([1, replies.SKIPPED, replies.Json("[2]"), "x"])),
        "batches": replies.MapReply(batches()),
    }[kind]


EXPECTED = {
    "list": [{"a": 1}, "b", None, 2.5] * 3,
    "empty list": [],
    "dict": {"a": 1, "b": [2]},
    "empty dict": {},
    "items": [1, [2], "x"],
    "batches": {"a": 1, "b": [2], "c": {"d": "\u00e9"}},
}


@pytest.mark.parametrize("max_chars", [0, 5, 10_000])
@pytest.mark.parametrize("kind", EXPECTED)
async def test_pieces_make_up_the_reply(kind, max_chars):
    pieces = [text async for text in replies.pieces(make_reply(kind), max_chars, no_turn)]
    assert json.loads(replies.join_pieces(pieces)) == EXPECTED[kind]
    assert all(type(json.loads(text)) is type(EXPECTED[kind]) for text in pieces)
    assert len(pieces) == 1 or max_chars < 10
    assert await replies.collect(make_reply(kind)) == EXPECTED[kind]


async def test_others_have_their_turn_between_items(monkeypatch):
    now = 0.0

    def slow() -> float:
        nonlocal now
        now += 0.0004
        return now

    monkeypatch.setattr(time, "perf_counter", slow)
    turns: list[float] = []

    async def turn(seconds: float) -> None:
        turns.append(seconds)

    assert len([text async for text in replies.pieces(list(range(100)), 1000, turn)]) == 1
    assert len(turns) > 20
    assert max(turns) < 0.002


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (5, False),
        (None, False),
        ([1] * 32, False),
        ([1] * 33, True),
        (dict.fromkeys(range(33)), True),
        (replies.ListReply([]), True),
        ("x" * 1000, False),
    ],
    ids=str,
)
def test_long_replies(reply, expected):
    assert replies.is_long(reply) is expected
