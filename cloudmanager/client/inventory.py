"""The inventory of a fleet as CSV: names, serial numbers, notes and labels of boards; no I/O.

One row for each board: ``id``, ``name``, ``serial``, ``note``, and a column ``label:KEY`` for each
label. Spreadsheets execute cells that begin like a formula, so such a cell begins with an
apostrophe in the file, as they write it themselves for text (CWE-1236).
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.text import nearest_name, one_line

MAX_CSV_BYTES: Final = 8 * 1024 * 1024  # 10,000 boards have 2 MB with long notes
_COLUMNS: Final = ("id", "name", "serial", "note")
_LABEL_PREFIX: Final = "label:"
_DELIMITERS: Final = ",;\t"  # spreadsheets write the second one in many countries
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r]")
_QUOTED_FORMULA: Final = re.compile(r"'+[=+\-@\t\r]")
_ENCODINGS: Final = {  # those that begin with a mark
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class InventoryRow(NamedTuple):
    """What a file says about one board.

    Attributes:
        line: its line in the file, from 1 on.
        id: the board's id; "" if the file has none, and the name says which board it is.
        name: the board's name; with an id, its new one.
        values: ``serial`` and ``note``, if the file has such columns.
        labels: key -> value, "" for none; only of the columns that the file has.
    """

    line: int
    id: str
    name: str
    values: Mapping[str, str]
    labels: Mapping[str, str]

    def to_request(self) -> dict[str, Any]:
        """Return the row as the verb ``import`` reads it."""
        which = {"id": self.id, "name": self.name} if self.id else {"board": self.name}
        if self.id and not self.name:
            del which["name"]  # an empty cell: the name stays
        return {**which, **self.values, "labels": dict(self.labels)}

    def is_same(self, board: Mapping[str, Any]) -> bool:
        """Return whether a board is as the row says, as the verb ``boards`` describes it."""
        labels = board["labels"]
        return (
            self.name in ("", board["name"])
            and all(board.get(key, "") == value for key, value in self.values.items())
            and all(labels.get(key, "") == value for key, value in self.labels.items())
        )


def to_csv(boards: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the inventory of boards as a CSV file.

    It is UTF-8; with a byte order mark if it is not all ASCII, without which spreadsheets would
    take it for the encoding of their country.

    Args:
        boards: as the verb ``boards`` describes them.
    """
    rows = list(boards)
    keys = sorted({key for board in rows for key in board["labels"]})
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")  # sed and git keep lines of this kind whole
    writer.writerow([*_COLUMNS, *(_LABEL_PREFIX + key for key in keys)])
    for board in rows:
        cells = [board.get(column, "") for column in _COLUMNS]
        cells += [board["labels"].get(key, "") for key in keys]
        writer.writerow([_quote_formula(str(cell)) for cell in cells])
    text = out.getvalue()
    return text.encode("utf-8" if text.isascii() else "utf-8-sig")


def _quote_formula(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _unquote_formula(cell: str) -> str:
    return cell[1:] if _QUOTED_FORMULA.match(cell) else cell


def parse_csv(data: bytes) -> list[InventoryRow]:
    """Read a CSV file: UTF-8, or UTF-16 with its mark; cells between ``,``, ``;`` or tabs.

    Raises:
        ValueError: it is another kind of file, or says which row or column is wrong.
    """
    text = _decode(data)
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    start = 1  # the line in which the next row begins
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                lines.append((reader.line_num, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        if str(error) == "unexpected end of data":  # at the end of the file, however far that is
            raise ValueError(f"line {start}: a quotation mark is not closed") from error
        raise ValueError(f"line {reader.line_num}: {error}") from error
    if not lines:
        raise ValueError("the file is empty")
    header = [cell.strip() for cell in lines[0][1]]
    _check_header(header)
    return [_read_row(line, header, cells) for line, cells in lines[1:]]


def _decode(data: bytes) -> str:
    if len(data) > MAX_CSV_BYTES:
        raise ValueError(f"the file has more than {MAX_CSV_BYTES // 1024 // 1024} MB")
    encoding = next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        how = "save it as CSV UTF-8"
        raise ValueError(f"the file is neither UTF-8 nor UTF-16 text; {how}") from None
    if "\0" in text:
        raise ValueError("the file contains NUL characters; it is no CSV file")
    return text


def _check_header(header: Sequence[str]) -> None:
    """Check the first line.

    Raises:
        ValueError: a column is unknown, or there twice, or no column says which board it is.
    """
    known = [name for name in header if name in _COLUMNS]
    labels = [name for name in header if _is_label(name)]
    for name in header:
        if name not in known and name not in labels:
            nearest = nearest_name(name, _COLUMNS)
            guess = f"did you mean {nearest}?" if nearest else f"a label is {_LABEL_PREFIX}KEY"
            raise ValueError(
                f"line 1: there is no column {one_line(name)[:64]!r} ({guess}); "
                f"the columns are {', '.join(_COLUMNS)} and {_LABEL_PREFIX}KEY"
            )
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"line 1: the column {name} is there {header.count(name)} times")
    if not {"id", "name"} & set(header):
        raise ValueError("line 1: a column `name` or `id` has to say which board a row is about")


def _is_label(column: str) -> bool:
    return column.startswith(_LABEL_PREFIX) and len(column) > len(_LABEL_PREFIX)


def _read_row(line: int, header: Sequence[str], cells: Sequence[str]) -> InventoryRow:
    if len(cells) != len(header):
        raise ValueError(f"line {line} has {len(cells)} cells, and the first line {len(header)}")
    row = {name: _unquote_formula(cell.strip()) for name, cell in zip(header, cells, strict=True)}
    values = {key: cell for key, cell in row.items() if key in ("serial", "note")}
    labels = {name.removeprefix(_LABEL_PREFIX): row[name] for name in header if _is_label(name)}
    return InventoryRow(line, row.get("id", ""), row.get("name", ""), values, labels)


class InventoryCheck:
    """Compares rows with the boards that there are.

    Args:
        rows: of a file.
        boards: as the verb ``boards`` describes them.

    Attributes:
        changed: the rows that change something, or may be wrong: only they are sent, because the
            length of a request is bounded.
    """

    def __init__(self, rows: Sequence[InventoryRow], boards: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows
        self._by_id = {board["id"]: board for board in boards}
        self._by_name = {board["name"]: board for board in boards}
        found = [self._find(row) for row in rows]
        count = Counter(board["id"] for board in found if board is not None)
        self.changed = [
            row
            for row, board in zip(rows, found, strict=True)
            if board is None or count[board["id"]] > 1 or not row.is_same(board)
        ]

    def _find(self, row: InventoryRow) -> Mapping[str, Any] | None:
        return self._by_id.get(row.id) if row.id else self._by_name.get(row.name)

    def outcomes(self, reported: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the outcome of each row, with its line.

        Args:
            reported: those of the changed rows, as the verb ``import`` reports them.
        """
        by_line = {row.line: each for row, each in zip(self.changed, reported, strict=True)}
        found = []
        for row in self._rows:
            outcome = by_line.get(row.line)
            if outcome is None:
                board = self._find(row)
                outcome = {"board": board and board["name"], "changes": {}, "error": ""}
            found.append({"line": row.line, **outcome})
        return found
