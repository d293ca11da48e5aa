"""The inventory as CSV: what is written is read again, and what spreadsheets write is, too."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from cloudmanager.client.inventory import InventoryCheck, InventoryRow, parse_csv, to_csv


def board(name: str, **values: Any) -> dict[str, Any]:
    return {"id": f"id-{name}", "name": name, "serial": "", "note": "", "labels": {}, **values}


BOARDS = [
    board("lab-1", serial="A17", note="third shelf, left", labels={"room": "lab"}),
    board("lab-2", note='says "hello"; über=ä', labels={"row": "3"}),
]


def test_what_is_written_is_read_again():
    rows = parse_csv(to_csv(BOARDS))
    assert rows == [
        InventoryRow(
            2,
            "id-lab-1",
            "lab-1",
            {"serial": "A17", "note": "third shelf, left"},
            {"room": "lab", "row": ""},
        ),
        InventoryRow(
            3,
            "id-lab-2",
            "lab-2",
            {"serial": "", "note": 'says "hello"; über=ä'},
            {"room": "", "row": "3"},
        ),
    ]
    assert InventoryCheck(rows, BOARDS).changed == []


def test_byte_order_mark_is_written_only_where_it_is_needed():
    assert to_csv(BOARDS[:1]).startswith(b"id,name,serial,note,label:room\n")
    assert to_csv(BOARDS).startswith(b"\xef\xbb\xbfid,name")


@pytest.mark.parametrize(
    "note", ["=1+1", "+1", "-1", "@SUM(A1)", "'=1", "''-1", "'quoted'", "a=b", "=cmd|' /C calc'!A0"]
)
def test_no_cell_of_the_file_begins_like_a_formula_and_the_note_comes_back(note: str):
    data = to_csv([board("lab-1", note=note, serial=note)])
    for row in csv.reader(io.StringIO(data.decode())):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
    assert parse_csv(data)[0].values == {"serial": note, "note": note}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with mark"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_of_spreadsheets_are_read(encoding: str, delimiter: str, end: str):
    text = end.join(["name,note,label:room", "lab-1,Fenster süd,attic", ",,", ""])
    text = text.replace(",", delimiter)
    marked = text if encoding != "utf-16-le with mark" else f"\ufeff{text}"
    data = marked.encode(encoding.split()[0] if " " in encoding else encoding)
    assert parse_csv(data) == [
        InventoryRow(2, "", "lab-1", {"note": "Fenster süd"}, {"room": "attic"})
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\r\n,,\r\n", "the file is empty"),
        ("name,note\nlab-1,süd\n".encode("latin-1"), "neither UTF-8 nor UTF-16 text; save it as"),
        ("name\n".encode("utf-16-le"), "contains NUL characters"),
        (b"PK\x03\x04\x14\x00\x06\x00", "contains NUL characters"),
        (b"serial,note\n1,2\n", "a column `name` or `id` has to say"),
        (b"name,nots\n", r"there is no column 'nots' \(did you mean note\?\)"),
        (b"name,room\n", r"there is no column 'room' \(a label is label:KEY\)"),
        (b"name,label:\n", "there is no column 'label:'"),
        (b"name,name\n", "the column name is there 2 times"),
        (b"name,note\nlab-1\n", "line 2 has 1 cells, and the first line 2"),
        (b"name,note\nlab-1,a,b\n", "line 2 has 3 cells"),
        (b'name,note\nlab-1,"a\nlab-2,b\n', "line 2: a quotation mark is not closed"),
        (b"name\n" + b"x" * 200_000, "line 2: field larger than field limit"),
        (b"x" * (9 * 1024 * 1024), "more than 8 MB"),
    ],
)
def test_file_that_is_wrong_is_refused(data: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        parse_csv(data)


def test_only_rows_that_change_something_or_may_be_wrong_are_sent():
    text = "name,serial,label:room\nlab-1,A17,lab\nlab-2,B1,\nlab-9,,\nlab-2,,\n"
    check = InventoryCheck(parse_csv(text.encode()), BOARDS)
    assert [row.line for row in check.changed] == [3, 4, 5]
    assert check.changed[0].to_request() == {
        "board": "lab-2",
        "serial": "B1",
        "labels": {"room": ""},
    }
    reported = [{"board": f"b{n}", "changes": {}, "error": "x"} for n in range(3)]
    outcomes = check.outcomes(reported)
    assert [(each["line"], each["error"]) for each in outcomes] == [
        (2, ""),
        (3, "x"),
        (4, "x"),
        (5, "x"),
    ]


def test_name_of_a_row_with_an_id_is_the_new_one():
    (row,) = parse_csv(b"id,name\nid-lab-1,roof\n")
    assert row.to_request() == {"id": "id-lab-1", "name": "roof", "labels": {}}
    (row,) = parse_csv(b"id,name\nid-lab-1,\n")
    assert row.to_request() == {"id": "id-lab-1", "labels": {}}
