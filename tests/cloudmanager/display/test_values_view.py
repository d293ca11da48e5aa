"""The newest values of boards as a table, and samples as lines."""

from __future__ import annotations

import pytest

from cloudmanager.client.samples import Sample
from cloudmanager.display.text_tables import TextTable
from cloudmanager.display.values_view import NewestValues, sample_row, select_values, value_text


def sample(board: str, at: float, missed: int = 0, **values: object) -> Sample:
    return Sample(board, at, 0, missed, values)


def test_table_has_the_newest_values_of_each_board():
    newest = NewestValues()
    newest.add([sample("b", 1.0, temp=20.0), sample("a", 2.0, temp=21.53, door="open")])
    newest.add([sample("b", 5.0, missed=3, temp=22)])
    table = newest.table(7.4)
    assert isinstance(table, TextTable)
    assert table.headings == ["board", "temp", "door", "emitted"]
    assert table.rows == [["a", "21.53", "open", "5 s ago"], ["b", "22", "", "2 s ago"]]
    assert table.note == "3 samples were left out: they came too fast"
    newest.forget("a")
    assert len(newest.table(7.4, ["temp"], "no server").splitlines()) == 4


def test_table_without_values_says_how_they_come():
    assert "cm.emit" in NewestValues().table(0.0)
    assert NewestValues().table(0.0, note="no server") == "no server"


def test_many_values_are_counted():
    newest = NewestValues()
    newest.add([sample("a", 1.0, **{f"v{n}": n for n in range(15)})])
    table = newest.table(1.0)
    assert isinstance(table, TextTable)
    assert len(table.headings) == 14
    assert "3 more values" in table.note


def test_only_named_values_are_selected():
    given = sample("a", 1.0, temp=1, door=2)
    assert select_values(given, []) is given
    assert select_values(given, ["door", "gone"]) == sample("a", 1.0, door=2)
    assert select_values(given, ["gone"]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (21.0000001, "21"),
        (True, "True"),
        (None, "—"),
        ("x\x1b[2J\ny", r"x\x1b[2J\ny"),
        ("z" * 50, "z" * 39 + "…"),
    ],
)
def test_value_as_text(value: object, text: str):
    assert value_text(value) == text


def test_sample_as_a_line():
    line = sample_row(Sample("a", 0.0, 0, 0, {"temp": 1.5, "na\nme": "\x1b"}))
    assert line.endswith(r" a: temp=1.5 na\nme=\x1b")
