"""``InterleavedLog``: lines in order of arrival."""

from __future__ import annotations

from cloudmanager.display.folding import plain_text
from cloudmanager.display.interleaved_log import InterleavedLog


def shown(log: InterleavedLog, *, final: bool = True) -> list[str]:
    return plain_text(log.lines(final=final, full_output_hint="in r['{board}'].stdout")).split("\n")


def test_lines_have_their_boards_name_and_order_of_arrival():
    log = InterleavedLog(["a", "long-name"])
    log.add_output("a", "one\n")
    log.add_output("long-name", "two\n")
    log.add_output("a", "three\n")
    assert shown(log) == ["a          one", "long-name  two", "a          three"]


def test_partial_lines_are_last_and_get_completed():
    log = InterleavedLog(["a", "b"])
    log.add_output("a", "on")
    log.add_output("b", "two\n")
    assert shown(log) == ["b  two", "a  on"]
    log.add_output("a", "e\n")
    assert shown(log) == ["b  two", "a  one"]


def test_added_lines_end_a_partial_line():
    log = InterleavedLog(["a"])
    log.add_output("a", "half")
    log.add_lines("a", [[("Out: ", "note"), ("1\n2", "")]])
    assert shown(log) == ["a  half", "a  Out: 1", "a  2"]


def test_oldest_lines_are_omitted():
    log = InterleavedLog(["a"])
    log.add_output("a", "".join(f"{n}\n" for n in range(1500)) + "begun")
    assert shown(log)[:2] == ["… 501 more lines, in r['a'].stdout", "a  501"]
    assert shown(log)[-1] == "a  begun"
    live = shown(log, final=False)
    assert live[:2] == ["… 1,401 more lines", "a  1401"]
    assert len(live) == 101


def test_line_without_newline_is_split():
    log = InterleavedLog(["a"])
    log.add_output("a", "x" * 10_000)
    assert [len(line) for line in shown(log)] == [4099, 4099, 1811]


def test_control_characters_in_the_log_are_escaped():
    log = InterleavedLog()
    log.add_output("a", "\x1b[2J\r10%\n")
    assert shown(log) == ["a  \\x1b[2J", "a  10%"]
