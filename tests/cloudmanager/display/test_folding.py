"""``Report``: grouping of boards, heads, limits, and escaping."""

from __future__ import annotations

import pytest

from cloudmanager.display.folding import (
    RESETTING,
    ROLES,
    WAITING_FOR_BOARD,
    BoardOutput,
    Report,
    head_text,
    plain_text,
    printable_output,
)
from cloudmanager.results.results import Result


def report_lines(
    *results: Result,
    width: int = 80,
    grouping: str = "same",
    final: bool = True,
    failures: str = "show",
    left_out: tuple[str, ...] = (),
) -> list[str]:
    """Return the lines of the report of these results."""
    outputs = {result.board: BoardOutput.from_result(result) for result in results}
    text = Report(width, final, failures, "in r['{board}'].stdout", 0.0, grouping).text(
        outputs, left_out
    )
    return text.split("\n")


def ok(board: str, text: str = "", stdout: str = "", **fields: object) -> Result:
    return Result(board, 1, "ok", text=text, stdout=stdout, **fields)


def failed(board: str, status: str = "error", **fields: object) -> Result:
    return Result(board, 1, status, **fields)


def head(title: str) -> str:
    return f"── {title} ".ljust(48, "─")


def test_single_successful_board_has_no_head():
    assert report_lines(ok("demo-1", "42")) == ["42"]


def test_value_after_output_is_marked():
    assert report_lines(ok("demo-1", "42", "hi\n")) == ["hi", "Out: 42"]


def test_cell_without_output_shows_nothing():
    assert report_lines(ok("demo-1"), ok("demo-2")) == [""]


def test_equal_outcomes_share_a_block():
    lines = report_lines(ok("demo-1", "1"), ok("demo-3", "1"), ok("demo-2", "1"))
    assert lines == [head("demo-[1-3]"), "1"]


def test_larger_groups_come_first_and_failures_last():
    lines = report_lines(
        failed("demo-1", traceback="ValueError: no\n"),
        ok("demo-2", "2"),
        ok("demo-3", "3"),
        ok("demo-4", "3"),
    )
    assert lines == [
        *(head("demo-[3-4]"), "3", ""),
        *(head("demo-2"), "2", ""),
        *(head("demo-1 · error"), "ValueError: no"),
    ]


def test_equal_tracebacks_are_shown_once():
    lines = report_lines(*(failed(f"demo-{n}", traceback="KeyError: 1\n") for n in (1, 2)))
    assert lines == [head("demo-[1-2] · error"), "KeyError: 1"]


def test_silent_board_beside_a_failure_is_shown_as_ok():
    lines = report_lines(ok("demo-1"), failed("demo-2", "timeout"))
    assert lines == [head("demo-1 · ok"), head("demo-2 · timeout")]


def test_short_reason_is_in_the_head():
    assert report_lines(failed("demo-1", "lost", why="it restarted")) == [
        head("demo-1 · lost: it restarted")
    ]


@pytest.mark.parametrize("why", ["it was so " + "long " * 20, "two\nlines"])
def test_long_reason_is_below_the_head(why: str):
    assert report_lines(failed("demo-1", "lost", why=why)) == [
        head("demo-1 · lost"),
        *why.split("\n"),
    ]


def test_offline_boards_share_a_block_despite_different_reasons():
    lines = report_lines(
        failed("demo-1", "offline", why="3 s"), failed("demo-2", "offline", why="4 s")
    )
    assert lines == [head("demo-[1-2] · offline")]


def test_failure_of_a_single_board_is_left_to_the_exception():
    result = failed("demo-1", stdout="hi\n", traceback="ValueError\n")
    assert report_lines(result, failures="raise") == ["hi"]


def test_failures_of_several_boards_are_shown_before_they_are_raised():
    lines = report_lines(failed("demo-1", traceback="E: 1"), ok("demo-2", "2"), failures="raise")
    assert lines == [head("demo-2"), "2", "", head("demo-1 · error"), "E: 1"]


def test_ignored_failures_show_only_output():
    lines = report_lines(
        failed("demo-1", traceback="E: 1"),
        failed("demo-2", traceback="E: 1", stdout="hi"),
        failures="ignore",
    )
    assert lines == [head("demo-2"), "hi"]


def test_three_short_outcomes_are_a_table():
    lines = report_lines(*(ok(f"demo-{n}", str(100 + n)) for n in (9, 10, 11)), failed("demo-12"))
    assert lines == [
        *("demo-9   109", "demo-10  110", "demo-11  111", ""),
        head("demo-12 · error"),
    ]


@pytest.mark.parametrize(
    "long_result",
    [ok("x", "1", "2\n"), ok("x", "'" + "y" * 50 + "'"), ok("x", stdout="y" * 200)],
    ids=["two lines", "long", "much output"],
)
def test_longer_outcomes_are_not_in_the_table(long_result: Result):
    lines = report_lines(*(ok(f"demo-{n}", str(n)) for n in range(4)), long_result)
    assert lines[:6] == [*(f"demo-{n}  {n}" for n in range(4)), "", head("x")]


def test_table_is_bounded():
    lines = report_lines(*(ok(f"demo-{n}", str(n)) for n in range(1200)))
    assert len(lines) == 1001
    assert lines[-1] == "… and 200 more boards"


def test_long_output_is_cut_with_a_note():
    lines = report_lines(ok("demo-1", stdout="".join(f"{n}\n" for n in range(2240))))
    assert lines[0] == "… 1,240 more lines, in r['demo-1'].stdout"
    assert lines[1:] == [str(n) for n in range(1240, 2240)]


def test_last_line_without_newline_is_counted():
    lines = report_lines(ok("demo-1", stdout="\n".join(str(n) for n in range(1001))))
    assert lines[0] == "… 1 more line, in r['demo-1'].stdout"
    assert lines[-1] == "1000"


def test_output_of_a_running_board_has_a_lower_limit():
    lines = report_lines(ok("demo-1", stdout="x\n" * 500), final=False)
    assert lines == ["… 400 more lines", *["x"] * 100]


def test_long_line_is_cut():
    (line,) = report_lines(ok("demo-1", stdout="x" * 1_000_000))
    assert line.startswith("…x")
    assert len(line) < 200_000


def test_long_value_is_cut():
    first, note = report_lines(ok("demo-1", "x" * 9192))
    assert first == "x" * 8192
    assert note == "… 1,000 more characters"


def test_long_traceback_keeps_its_end():
    lines = report_lines(failed("demo-1", traceback="x" * 9000 + "\nValueError: no"))
    assert lines[1].endswith("more characters")
    assert lines[-1] == "ValueError: no"


def test_truncated_output_is_marked():
    lines = report_lines(ok("demo-1", stdout="end\n", truncated=True))
    assert lines == ["… some output was left out: it came faster than it could be read", "end"]


def test_many_different_blocks_are_bounded():
    lines = report_lines(*(ok(f"demo-{n}", stdout=f"{n}\n{n}\n") for n in range(1, 121)))
    assert len(lines) == 400
    assert lines[-1] == "… and 20 more boards: demo-[101-120]"


def test_unconnected_boards_are_one_line():
    assert report_lines(ok("a"), left_out=("esp-3", "esp-9"))[-1] == "not connected: esp-3, esp-9"
    assert (
        report_lines(ok("a"), left_out=tuple(f"e{n}" for n in range(9)))[-1]
        == "not connected: e[0-8]"
    )


def test_long_list_of_names_is_cut():
    names = [f"board-{chr(97 + n) * 9}" for n in range(20)]
    lines = report_lines(*(ok(name, "1") for name in names))
    assert lines[0].startswith("── board-aaaaaaaaa,board-bbbbbbbbb,")
    assert "… (20 boards)" in lines[0]
    assert len(lines[0]) < 80


def test_head_fits_a_narrow_screen():
    assert report_lines(ok("a", "1"), ok("b", "2"), width=20)[0] == "── a ".ljust(20, "─")


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("10%\r20%", "10%\n20%"),
        ("a\u202eb", "a\\u202eb"),
        ("a\tb\n", "a\tb\n"),
    ],
)
def test_control_characters_in_output_are_escaped(output: str, shown: str):
    assert printable_output(output) == shown


def test_control_characters_are_escaped_in_all_texts():
    hostile = "\x1b]52;c;evil\x07"
    lines = report_lines(
        ok("demo-1", stdout=hostile, text=hostile),
        failed("demo-2", traceback=hostile),
        failed("demo-3", "lost", why=hostile),
    )
    assert "\x1b" not in "".join(lines)
    assert "".join(lines).count("\\x1b") == 4


def test_grouping_ignores_how_output_was_split():
    one, other = BoardOutput(0.0), BoardOutput(0.0)
    one.add_output("abc\ndef")
    for character in "abc\ndef":
        other.add_output(character)
    assert one.grouping_key == other.grouping_key


def test_kept_output_of_a_running_board_is_bounded():
    output = BoardOutput(0.0)
    for _ in range(100):
        output.add_output("x" * 10_000)
    assert len(output.tail) < 50_000


def test_heads_have_equal_width():
    lines = report_lines(
        ok("demo-1", "1"), failed("demo-2", "lost", why="it did not come back in time")
    )
    heads = [line for line in lines if line.startswith("──")]
    assert heads[1] == "── demo-2 · lost: it did not come back in time ──"
    assert heads[0] == "── demo-1 ".ljust(len(heads[1]), "─")


def test_empty_lines_separate_blocks_with_a_body():
    lines = report_lines(ok("demo-1"), failed("demo-2", "lost"), failed("demo-3", traceback="E: 1"))
    assert lines == [
        *(head("demo-1 · ok"), head("demo-2 · lost"), ""),
        *(head("demo-3 · error"), "E: 1"),
    ]


@pytest.mark.parametrize(
    ("elapsed", "suffix"), [(3.04, " after 3 s"), (0.21, " after 0.2 s"), (0.0, "")]
)
def test_head_shows_the_time_of_a_timeout(elapsed: float, suffix: str):
    assert report_lines(failed("demo-1", "timeout", elapsed=elapsed)) == [
        head(f"demo-1 · timeout{suffix}")
    ]


def test_board_grouping_keeps_the_targets_order():
    lines = report_lines(
        ok("demo-2", "1"), failed("demo-1", "lost"), ok("demo-3", "1"), grouping="board"
    )
    assert lines == [
        *(head("demo-2"), "1", ""),
        *(head("demo-1 · lost"), ""),
        *(head("demo-3"), "1"),
    ]


def test_pieces_of_lines_have_roles():
    outputs = {
        "demo-1": BoardOutput.from_result(ok("demo-1", "1", "hi\n")),
        "demo-2": BoardOutput.from_result(failed("demo-2", traceback="E: 1")),
        "demo-3": BoardOutput.from_result(failed("demo-3", "timeout")),
    }
    lines = list(Report(80, True, "show", "", 0.0).lines(outputs, ["demo-4"]))
    roles = {role: text for line in lines for text, role in line if text.strip(" ─")}
    assert roles == {
        "name": "demo-1",
        "note": "not connected: demo-4",
        "bad": " · error ",
        "bad name": "demo-2",
        "warn": " · timeout ",
        "warn name": "demo-3",
        "": "E: 1",
    }
    assert {role for line in lines for _, role in line} <= set(ROLES)


def test_progress_counts_ended_boards_and_names_waiting_ones():
    outputs = {
        "demo-1": BoardOutput.from_result(ok("demo-1")),
        "demo-2": BoardOutput.from_result(failed("demo-2", "lost")),
    }
    waiting, resetting = BoardOutput(0.0), BoardOutput(0.0)
    waiting.state, resetting.state = WAITING_FOR_BOARD, RESETTING
    outputs |= {"demo-3": waiting, "demo-4": resetting}
    report = Report(80, False, "show", "", 0.0)
    assert plain_text([report.progress_line(outputs, 3.4)]) == (
        "━━━━━━━━━━━━──────────── 2 of 4 boards are done, 1 failed, waiting for demo-3, "
        "resetting demo-4 · 3 s"
    )
    assert "failed" not in plain_text(
        [report._replace(failures="ignore").progress_line(outputs, 3.4)]
    )
    assert (
        plain_text([report.progress_line({"demo-1": BoardOutput(0.0)}, 3.4)])
        == "demo-1 · running · 3 s"
    )


@pytest.mark.parametrize(
    ("result", "failures", "lines"),
    [
        (ok("demo-1", "1"), "show", ["1"]),
        (ok("demo-1"), "show", []),
        (failed("demo-1", traceback="E: 1"), "show", ["E: 1"]),
        (failed("demo-1", traceback="E: 1"), "raise", []),
        (failed("demo-1", "lost", why="gone"), "show", ["lost: gone"]),
        (failed("demo-1", "timeout", elapsed=2), "ignore", []),
        (failed("demo-1", why="9 jobs wait"), "show", ["error: 9 jobs wait"]),
    ],
)
def test_outcome_in_a_log_shows_a_state_without_traceback(
    result: Result, failures: str, lines: list[str]
):
    report = Report(80, True, failures, "", 0.0)
    found = report.outcome_lines("demo-1", BoardOutput.from_result(result), single_board=True)
    assert [plain_text([line]) for line in found] == lines


def test_head_text_is_a_rule_with_a_title():
    assert head_text("here") == head("here")
