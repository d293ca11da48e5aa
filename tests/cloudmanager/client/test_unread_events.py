"""Events that are not read are bounded; what is dropped is output, and it is reported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cloudmanager.client.jobs import Event
from cloudmanager.client.unread_events import UnreadEvents


def job(number: int) -> Any:
    return SimpleNamespace(number=number)


def make_events(max_chars: int = 10_000) -> UnreadEvents[Event]:
    return UnreadEvents(lambda job: Event("truncated", job), max_chars)


def read_all(events: UnreadEvents[Event]) -> list[tuple[str, int, str]]:
    read = []
    while (event := events.take()) is not None:
        read.append((event.kind, event.job.number, event.text))
    return read


def test_events_are_read_in_order():
    events, one = make_events(), job(1)
    for kind in ("queued", "started", "output", "ended"):
        events.add(Event(kind, one, kind))
    assert events
    assert read_all(events) == [
        (kind, 1, kind) for kind in ("queued", "started", "output", "ended")
    ]
    assert not events


@pytest.mark.parametrize("size", [0, 1, 100, 3000])
def test_oldest_output_is_dropped_and_reported_once_for_each_job(size):
    events, one, two = make_events(), job(1), job(2)
    events.add(Event("started", one))
    for number in range(1000):
        events.add(Event("output", two if number % 2 else one, "x" * size))
        if number == 500:
            events.add(Event("input", one, "name?"))
    events.add(Event("output", one, "the last"))
    events.add(Event("ended", one))
    read = read_all(events)
    assert sum(len(text) + 128 for kind, _, text in read if kind == "output") <= 10_000
    assert [kind for kind, _, _ in read if kind not in ("output", "truncated")] == [
        "started",
        "input",
        "ended",
    ]
    assert sorted(number for kind, number, _ in read if kind == "truncated") == [1, 2]
    assert read[-2:] == [("output", 1, "the last"), ("ended", 1, "")]


def test_reader_that_keeps_up_misses_nothing():
    events, one = make_events(1000), job(1)
    for number in range(1000):
        events.add(Event("output", one, f"{number}"))
        assert read_all(events) == [("output", 1, f"{number}")]
