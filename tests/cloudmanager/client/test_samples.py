"""Samples as a sequence and as a table."""

import json
from array import array
from datetime import UTC, datetime
from typing import Any

import nanoarrow
import pytest

from cloudmanager.client.sample_history import HistoryPage, history_request, page_samples
from cloudmanager.client.samples import Sample, Samples
from cloudmanager.protocol.sample_columns import SampleColumns, pack_stream, unpack_stream
from cloudmanager.protocol.sample_text import csv_rows, json_rows, time_text

SAMPLES = Samples(
    [
        Sample("lab-1", 100.25, 5, 0, {"temp": 21.5}),
        Sample("lab-2", 101.0, 6, 2, {"temp": None, "door": "open"}),
        Sample("lab-1", 102.0, 7, 0, {"temp": 22}),
    ]
)


def test_samples_are_a_sequence():
    assert (len(SAMPLES), SAMPLES[-1].values["temp"]) == (3, 22)
    assert [sample.board for sample in SAMPLES[:2]] == ["lab-1", "lab-2"]
    assert isinstance(SAMPLES[:2], Samples)
    assert SAMPLES.names == ["temp", "door"]


@pytest.mark.parametrize(
    ("samples", "shown"),
    [
        (SAMPLES, "<3 samples of lab-[1-2]: door, temp>"),
        (Samples([]), "<no samples>"),
        (Samples([Sample("a", 1, 1, 0, {"\x1b[2J": 1})]), "<1 sample of a: \\x1b[2J>"),
    ],
)
def test_repr_has_number_boards_and_names(samples, shown):
    assert repr(samples) == shown


def test_to_pandas_has_one_row_per_sample():
    table = SAMPLES.to_pandas()
    assert list(table.columns) == ["board", "ticks", "temp", "door"]
    assert str(table.index[0]) == "1970-01-01 00:01:40.250000+00:00"
    assert table.groupby("board")["temp"].mean()["lab-1"] == 21.75


def test_to_pandas_of_nothing_is_an_empty_table():
    assert list(Samples([]).to_pandas().columns) == ["board", "ticks"]


def test_values_named_like_columns_are_renamed():
    table = Samples([Sample("lab-1", 1.0, 5, 0, {"board": "x", "ticks": 3})]).to_pandas()
    row = json.loads(table.iloc[0].to_json())
    assert row == {"board": "lab-1", "ticks": 5, "board_": "x", "ticks_": 3}


def test_samples_of_days_ago_have_no_ticks():
    table = Samples(SAMPLES, has_ticks=False)[:2].to_pandas()
    assert list(table.columns) == ["board", "temp", "door"]


def test_to_arrow_is_a_table_with_types():
    rows = SAMPLES.to_arrow()
    assert rows.to_pylist()[1] == {
        "at": datetime(1970, 1, 1, 0, 1, 41, tzinfo=UTC),
        "board": "lab-2",
        "ticks": 6,
        "temp": None,
        "door": "open",
    }
    kinds = {field.name: field.type.name for field in rows.schema.fields}
    assert (kinds["temp"], kinds["ticks"], kinds["door"]) == ("DOUBLE", "INT64", "STRING")
    assert len(Samples([]).to_arrow()) == 0


def test_arrow_is_understood_by_duckdb():
    duckdb = pytest.importorskip("duckdb")
    rows = nanoarrow.ArrayStream(SAMPLES.to_arrow())  # noqa: F841 - DuckDB finds it by its name
    assert duckdb.sql("SELECT sum(temp) FROM rows").fetchall() == [(43.5,)]


def test_to_polars_has_one_row_per_sample():
    pytest.importorskip("polars")
    table = SAMPLES.to_polars()
    assert table.columns == ["at", "board", "ticks", "temp", "door"]
    assert table["temp"].sum() == 43.5


COLUMNS = SampleColumns(
    array("q", [1_000_000, 1_000_000, 2_500_000]), array("i", [0, 1, 0]), array("d", [1, 2.5, -3])
)
SERIES = [["lab-1", "temp"], ["lab-1", "-x"]]


def test_columns_travel_as_an_arrow_stream():
    assert unpack_stream(pack_stream(COLUMNS)) == COLUMNS
    empty = SampleColumns(array("q"), array("i"), array("d"))
    assert unpack_stream(pack_stream(empty)) == empty
    for data in (b"", b"nonsense", pack_stream(COLUMNS)[:100]):
        with pytest.raises(ValueError, match="no Arrow stream"):
            unpack_stream(data)


def test_values_of_one_board_and_time_are_one_sample():
    assert page_samples(HistoryPage(SERIES, COLUMNS)) == [
        Sample("lab-1", 1.0, 0, 0, {"temp": 1.0, "-x": 2.5}),
        Sample("lab-1", 2.5, 0, 0, {"temp": -3.0}),
    ]


def test_values_as_text():
    first = "1970-01-01T00:00:01.000Z,lab-1"
    assert csv_rows(SERIES, COLUMNS).split("\n") == [
        f"{first},temp,1.0",
        f"{first},'-x,2.5",
        "1970-01-01T00:00:02.500Z,lab-1,temp,-3.0",
        "",
    ]
    rows = json.loads(f"[{json_rows(SERIES, COLUMNS)}]")
    assert rows[1] == {
        "time": "1970-01-01T00:00:01.000Z",
        "board": "lab-1",
        "name": "-x",
        "value": 2.5,
    }
    assert time_text(1_700_000_000_000_001) == "2023-11-14T22:13:20.000001Z"


def test_request_has_times_in_seconds():
    moment = datetime(2026, 11, 30, tzinfo=UTC)
    body = history_request("all", {"since": moment, "until": 5, "every": "5m", "names": "temp"})
    assert (body["since"], body["until"], body["every"]) == (moment.timestamp(), 5.0, 300.0)
    assert (body["how"], body["names"]) == (None, ["temp"])
    assert history_request("all", {"since": 1, "every": 9, "how": "max"})["how"] == "max"


@pytest.mark.parametrize(
    "wrong",
    [
        {"how": "sum", "every": 5},
        {"how": "max"},
        {"every": 0},
        {"every": "5"},
        {"since": "yesterday"},
    ],
)
def test_wrong_keywords_are_refused(wrong: Any):
    with pytest.raises(ValueError, match=r"how|every|span"):
        history_request("all", {"since": "1d"} | wrong)
