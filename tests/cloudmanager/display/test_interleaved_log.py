"""The record: lines in the order of coming."""

from __future__ import annotations

from cloudmanager.display.interleaved_log import InterleavedLog
from cloudmanager.display.layout import plain_text


def shown(record: InterleavedLog, *, final: bool = True) -> list[str]:
    return plain_text(record.lines(final=final, full_output_hint="in r['{board}'].stdout")).split(
        "\n"
    )


def test_lines_stand_behind_their_boards_in_the_order_of_coming():
    record = InterleavedLog(["a", "long-name"])
    record.add_output("a", "one\n")
    record.add_output("long-name", "two\n")
    record.add_output("a", "three\n")
    assert shown(record) == ["a          one", "long-name  two", "a          three"]


def test_begun_lines_stand_last_and_are_joined():
    record = InterleavedLog(["a", "b"])
    record.add_output("a", "on")
    record.add_output("b", "two\n")
    assert shown(record) == ["b  two", "a  on"]
    record.add_output("a", "e\n")
    assert shown(record) == ["b  two", "a  one"]


def test_what_is_said_of_a_board_ends_its_begun_line():
    record = InterleavedLog(["a"])
    record.add_output("a", "half")
    record.add_lines("a", [[("Out: ", "note"), ("1\n2", "")]])
    assert shown(record) == ["a  half", "a  Out: 1", "a  2"]


def test_beginning_is_left_out():
    record = InterleavedLog(["a"])
    record.add_output("a", "".join(f"{n}\n" for n in range(1500)) + "begun")
    assert shown(record)[:2] == ["… 501 more lines, in r['a'].stdout", "a  501"]
    assert shown(record)[-1] == "a  begun"
    live = shown(record, final=False)
    assert live[:2] == ["… 1,401 more lines", "a  1401"]
    assert len(live) == 101


def test_line_without_end_is_cut_into_several():
    record = InterleavedLog(["a"])
    record.add_output("a", "x" * 10_000)
    assert [len(line) for line in shown(record)] == [4099, 4099, 1811]


def test_what_boards_say_is_made_safe():
    record = InterleavedLog()
    record.add_output("a", "\x1b[2J\r10%\n")
    assert shown(record) == ["a  \\x1b[2J", "a  10%"]
