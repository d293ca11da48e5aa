"""Samples that last: files and PostgreSQL keep and return the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.sample_columns import unpack_stream
from cm_server.store.postgres_database import Postgres as PostgresDatabase
from cm_server.store.sample_files import SampleFiles
from cm_server.store.sample_query import (
    DAY,
    MICROSECONDS,
    MINUTE,
    SampleBatch,
    SampleQuery,
    SampleRetention,
    SampleStore,
    Series,
    Succession,
)
from cm_server.store.sample_tables import SampleTables
from tests.engines import Postgres

TODAY = 20_787  # 2026-11-30, in days since 1970
NOON = TODAY * DAY + DAY // 2
TIDY_SECONDS = 60.0  # even on a busy machine
TEMP, HUM, OTHER = (
    Series("id1", "lab-1", "temp"),
    Series("id1", "lab-1", "hum"),
    Series("id2", "lab-2", "temp"),
)

#: Opens the same store again.
Opening = Callable[..., SampleStore]


@pytest.fixture(params=["files", "postgresql"])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opening]:
    """A function that opens the store; each opening closes the one before."""
    opened: list[SampleStore] = []
    url = ""
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.new()
        PostgresDatabase(url).close()  # makes the tables

    def open_store(**retention: int) -> SampleStore:
        if opened:
            opened[-1].close()
        kept = SampleRetention(**retention)
        opened.append(SampleTables(url, kept) if url else SampleFiles(tmp_path / "history", kept))
        return opened[-1]

    yield open_store
    opened[-1].close()


def batch(day: int, values: Sequence[tuple[Series, int, float]]) -> SampleBatch:
    """Return values of series at times, which came on a day."""
    series = list(dict.fromkeys(each for each, _, _ in values))
    made = SampleBatch(day, series)
    for each, at, value in values:
        made.times.append(at)
        made.indexes.append(series.index(each))
        made.values.append(value)
    return made


def read(store: SampleStore, **given: Any) -> list[tuple[str, str, int, float]]:
    """Return all pages of a query as rows; times in seconds after noon."""
    query = {"boards": ["id1", "id2"], "names": None, "since": NOON - DAY, "until": NOON + DAY}
    query |= given
    rows: list[tuple[str, str, int, float]] = []
    while True:
        page = store.read(SampleQuery(**query))  # type: ignore[arg-type]
        columns = unpack_stream(page.data)
        for at, index, value in zip(*columns, strict=True):
            rows.append((*page.series[index], (at - NOON) // MICROSECONDS, value))
        if page.next is None:
            return rows
        query["since"] = page.next


def tidy(store: SampleStore, now: int) -> None:
    """Do all that is due. A store of files waits for its thread only for a moment at each call."""
    deadline = time.monotonic() + TIDY_SECONDS
    while store.tidy(now, may_delete=True):
        assert time.monotonic() < deadline, "there is always more to do"


def ramp(series: Series, count: int, start: int = NOON, first: float = 0.0) -> SampleBatch:
    """Return a batch with a value each second."""
    day = start // DAY
    values = [(series, start + n * MICROSECONDS, first + n) for n in range(count)]
    return batch(day, values)


def test_values_are_returned_in_the_order_of_time(opening: Opening):
    store = opening()
    second = MICROSECONDS
    store.append(batch(TODAY, [(TEMP, NOON + second, 21.5), (HUM, NOON + second, 40.0)]))
    store.append(batch(TODAY, [(OTHER, NOON, -1.0), (TEMP, NOON + 2 * second, 22.0)]))
    assert read(store) == [
        ("id2", "temp", 0, -1.0),
        ("id1", "hum", 1, 40.0),
        ("id1", "temp", 1, 21.5),
        ("id1", "temp", 2, 22.0),
    ]
    assert read(store, boards=["id2"]) == [("id2", "temp", 0, -1.0)]
    assert read(store, names=["hum"]) == [("id1", "hum", 1, 40.0)]
    assert read(store, boards=[]) == read(store, names=["x"]) == []
    assert [row[2] for row in read(store, since=NOON + second, until=NOON + 2 * second)] == [1, 1]


def test_values_of_one_moment_are_in_the_order_of_the_boards_in_the_query(opening: Opening):
    store = opening()
    store.append(batch(TODAY, [(TEMP, NOON, 1.0), (OTHER, NOON, 2.0), (HUM, NOON, 3.0)]))
    for boards in (["id1", "id2"], ["id2", "id1"]):
        for every in (None, MINUTE):
            found = [row[:2] for row in read(store, boards=boards, every=every)]
            expected = [("id1", "hum"), ("id1", "temp"), ("id2", "temp")]
            assert found == sorted(expected, key=lambda row: boards.index(row[0]))


@pytest.mark.parametrize("seconds", [60, 90, 300])
def test_values_are_thinned(opening: Opening, seconds: int):
    store = opening()
    store.append(ramp(TEMP, 600))
    every = {"every": seconds * MICROSECONDS}
    starts = range(0, 600, seconds)
    spans = {start: range(start, min(start + seconds, 600)) for start in starts}
    expected = {
        "mean": [sum(span) / len(span) for span in spans.values()],
        "min": [float(span[0]) for span in spans.values()],
        "max": [float(span[-1]) for span in spans.values()],
        "last": [float(span[-1]) for span in spans.values()],
    }
    for how, values in expected.items():
        rows = [("id1", "temp", at, value) for at, value in zip(spans, values, strict=True)]
        assert read(store, how=how, **every) == rows


def test_pages_have_each_value_once(opening: Opening):
    store = opening()
    for series in (TEMP, HUM, OTHER):
        store.append(ramp(series, 12))
    whole = read(store)
    assert len(whole) == 36
    for limit in (2, 7, 36):
        assert read(store, limit=limit) == whole
    thinned = read(store, every=6 * MICROSECONDS)
    assert len(thinned) == 6
    for limit, expected_series in ((1, 1), (2, 3), (5, 1), (1000, 3)):
        asked = {"limit": limit, "expected_series": expected_series}
        assert read(store, every=6 * MICROSECONDS, **asked) == thinned


def test_values_survive_a_restart(opening: Opening):
    store = opening()
    store.append(ramp(TEMP, 10))
    whole = read(store)
    store = opening()
    assert read(store) == whole
    store.append(ramp(TEMP, 10, NOON + 10 * MICROSECONDS, 10.0))
    assert [row[3] for row in read(store)] == [float(n) for n in range(20)]


def test_a_day_that_is_over_has_the_same_values(opening: Opening):
    store = opening()
    yesterday = NOON - DAY
    store.append(ramp(TEMP, 200, yesterday))
    store.append(ramp(OTHER, 5, yesterday, 100.0))
    asked: list[dict[str, Any]] = [{}, {"every": MINUTE, "how": "last"}, {"every": 7_000_000}]
    before = [read(store, **each) for each in asked]
    tidy(store, NOON)
    assert [read(store, **each) for each in asked] == before
    store.append(ramp(TEMP, 5))
    store = opening()
    assert [read(store, **each, until=NOON) for each in asked] == before
    assert len(read(store)) == 210


def test_a_value_that_comes_late_belongs_to_its_own_time(opening: Opening):
    store = opening()
    store.append(ramp(TEMP, 60, NOON - DAY))
    tidy(store, NOON)
    late = [(TEMP, NOON - DAY + 30 * MICROSECONDS + 500_000, 1000.0)]
    store.append(batch(TODAY, late))
    whole = {"since": NOON - DAY, "until": NOON - DAY + MINUTE}
    assert len(read(store, **whole)) == 61
    assert [row[3] for row in read(store, **whole, every=MINUTE, how="max")] == [1000.0]
    assert [row[3] for row in read(store, **whole, every=MINUTE, how="last")] == [59.0]
    mean = (sum(range(60)) + 1000) / 61
    assert [row[3] for row in read(store, **whole, every=MINUTE)] == [pytest.approx(mean)]


def test_values_become_minutes_and_then_nothing(opening: Opening):
    store = opening(raw_days=2, minute_days=5)
    store.append(ramp(TEMP, 120))
    whole = {"since": NOON, "until": NOON + DAY}
    tidy(store, NOON + 2 * DAY)
    assert len(read(store, **whole)) == 120
    tidy(store, NOON + 3 * DAY)
    assert read(store, **whole) == [("id1", "temp", 0, 29.5), ("id1", "temp", 60, 89.5)]
    assert [row[3] for row in read(store, **whole, how="max")] == [59.0, 119.0]
    assert [row[3] for row in read(store, **whole, every=MINUTE, how="min")] == [0.0, 60.0]
    tidy(store, NOON + 5 * DAY)
    assert len(read(store, **whole)) == 2
    tidy(store, NOON + 6 * DAY)
    assert read(store, **whole) == read(store, **whole, every=MINUTE) == []


def test_nothing_is_deleted_by_a_clock_that_is_not_certain(opening: Opening):
    store = opening(raw_days=2, minute_days=5)
    store.append(ramp(TEMP, 10))
    for _ in range(20):
        store.tidy(NOON + 100 * DAY, may_delete=False)
    assert len(read(store)) == 10


def test_values_of_a_board_are_erased(opening: Opening):
    store = opening()
    store.append(ramp(TEMP, 10, NOON - DAY))
    store.append(ramp(OTHER, 10, NOON - DAY))
    tidy(store, NOON)
    store.append(ramp(TEMP, 10))
    store.append(ramp(OTHER, 10))
    store.erase(["id1"])
    store = opening()  # a server that is killed does it later
    tidy(store, NOON)
    for asked in ({}, {"every": MINUTE}):
        assert {row[0] for row in read(store, **asked)} == {"id2"}
    assert len(read(store)) == 20
    store.append(ramp(TEMP, 3, NOON + 60 * MICROSECONDS))  # as if another one had its id
    assert len(read(store, boards=["id1"])) == 3


@pytest.mark.parametrize("asked", [{}, {"every": MINUTE}, {"every": MICROSECONDS}])
@pytest.mark.parametrize("is_closed", [False, True])
def test_values_of_a_replaced_board_are_those_of_its_successor(
    opening: Opening, asked: dict[str, int], is_closed: bool
):
    """What the new one measured before, as a spare, does not mix with what the dead one did."""
    store = opening()
    spare = Series("id2", "spare", "temp")
    day = NOON - DAY
    at = day + 120 * MICROSECONDS
    store.append(ramp(TEMP, 60, day, first=100.0))
    store.append(ramp(spare, 60, day, first=900.0))
    store.append(ramp(spare, 60, at, first=200.0))
    if is_closed:
        tidy(store, NOON)
    successions = [Succession("id2", "id2", at), Succession("id1", "id2", 0)]
    given = {"boards": ["id2"], "since": day, "until": NOON, "how": "max"}
    found = read(store, successions=successions, **given, **asked)
    assert {row[:2] for row in found} == {("id2", "temp")}
    values = [value for _, _, _, value in found]
    if asked.get("every") == MINUTE:
        assert values == [159.0, 259.0]
    else:
        assert values == [*map(float, range(100, 160)), *map(float, range(200, 260))]
    assert max(value for *_, value in read(store, **given)) == 959.0
    chain = [Succession("id3", "id3", at + 60 * MICROSECONDS)]
    chain += [Succession("id2", "id3", at), Succession("id1", "id3", 0)]
    found = read(store, successions=chain, **{**given, "boards": ["id3"]}, **asked)
    assert [(board, value) for board, _, _, value in found] == [("id3", each) for each in values]


def test_names_are_data(opening: Opening):
    store = opening()
    names = ["'; DROP TABLE samples; --", '"x"', "%s", "?", "a\tb", "\u00e4\U0001f600", "$1"]
    series = [Series("id1", "lab-1", name) for name in names]
    store.append(batch(TODAY, [(each, NOON, 1.0) for each in series]))
    tidy(store, NOON + DAY)
    assert sorted(row[1] for row in read(store)) == sorted(names)
    for name in names:
        assert [row[1] for row in read(store, names=[name])] == [name]


def test_an_empty_store_has_nothing(opening: Opening):
    store = opening()
    assert read(store) == read(store, every=MINUTE) == []
    tidy(store, NOON)
