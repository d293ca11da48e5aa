"""Samples as a sequence and as a table."""

import json

import pytest

from cloudmanager.client.samples import Sample, Samples

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
