"""Blocks: what is folded, headed, cut, and made safe."""

from __future__ import annotations

import pytest

from cloudmanager.display.layout import (
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


def page(
    *results: Result,
    width: int = 80,
    grouped: str = "same",
    final: bool = True,
    failures: str = "show",
    left_out: tuple[str, ...] = (),
) -> list[str]:
    """The lines of the text of these results."""
    told = {result.board: BoardOutput.from_result(result) for result in results}
    text = Report(width, final, failures, "in r['{board}'].stdout", 0.0, grouped).text(
        told, left_out
    )
    return text.split("\n")


def ok(board: str, text: str = "", stdout: str = "", **told: object) -> Result:
    return Result(board, 1, "ok", text=text, stdout=stdout, **told)


def failed(board: str, status: str = "error", **told: object) -> Result:
    return Result(board, 1, status, **told)


def head(words: str) -> str:
    return f"── {words} ".ljust(48, "─")


def test_one_board_that_ended_well_has_no_head():
    assert page(ok("demo-1", "42")) == ["42"]


def test_value_after_output_is_marked():
    assert page(ok("demo-1", "42", "hi\n")) == ["hi", "Out: 42"]


def test_cell_that_says_nothing_shows_nothing():
    assert page(ok("demo-1"), ok("demo-2")) == [""]


def test_equal_outcomes_are_one_block():
    lines = page(ok("demo-1", "1"), ok("demo-3", "1"), ok("demo-2", "1"))
    assert lines == [head("demo-[1-3]"), "1"]


def test_the_many_come_before_the_odd_one_and_failures_last():
    lines = page(
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


def test_equal_tracebacks_are_said_once():
    lines = page(*(failed(f"demo-{n}", traceback="KeyError: 1\n") for n in (1, 2)))
    assert lines == [head("demo-[1-2] · error"), "KeyError: 1"]


def test_board_that_said_nothing_beside_one_that_failed_is_ok():
    lines = page(ok("demo-1"), failed("demo-2", "timeout"))
    assert lines == [head("demo-1 · ok"), head("demo-2 · timeout")]


def test_reasons_stand_in_the_head_if_they_are_short():
    assert page(failed("demo-1", "lost", why="it restarted")) == [
        head("demo-1 · lost: it restarted")
    ]


@pytest.mark.parametrize("why", ["it was so " + "long " * 20, "two\nlines"])
def test_reasons_stand_below_the_head_if_they_are_long(why: str):
    assert page(failed("demo-1", "lost", why=why)) == [head("demo-1 · lost"), *why.split("\n")]


def test_absent_boards_fold_whenever_they_were_last_seen():
    lines = page(failed("demo-1", "offline", why="3 s"), failed("demo-2", "offline", why="4 s"))
    assert lines == [head("demo-[1-2] · offline")]


def test_failure_of_the_only_board_may_be_left_to_the_exception():
    result = failed("demo-1", stdout="hi\n", traceback="ValueError\n")
    assert page(result, failures="raise") == ["hi"]


def test_failures_of_several_boards_are_shown_before_they_are_raised():
    lines = page(failed("demo-1", traceback="E: 1"), ok("demo-2", "2"), failures="raise")
    assert lines == [head("demo-2"), "2", "", head("demo-1 · error"), "E: 1"]


def test_ignored_failures_leave_the_output():
    lines = page(
        failed("demo-1", traceback="E: 1"),
        failed("demo-2", traceback="E: 1", stdout="hi"),
        failures="ignore",
    )
    assert lines == [head("demo-2"), "hi"]


def test_three_short_answers_are_a_table():
    lines = page(*(ok(f"demo-{n}", str(100 + n)) for n in (9, 10, 11)), failed("demo-12"))
    assert lines == [
        *("demo-9   109", "demo-10  110", "demo-11  111", ""),
        head("demo-12 · error"),
    ]


@pytest.mark.parametrize(
    "odd",
    [ok("x", "1", "2\n"), ok("x", "'" + "y" * 50 + "'"), ok("x", stdout="y" * 200)],
    ids=["two lines", "long", "much output"],
)
def test_longer_answers_stay_out_of_the_table(odd: Result):
    lines = page(*(ok(f"demo-{n}", str(n)) for n in range(4)), odd)
    assert lines[:6] == [*(f"demo-{n}  {n}" for n in range(4)), "", head("x")]


def test_table_is_bounded():
    lines = page(*(ok(f"demo-{n}", str(n)) for n in range(1200)))
    assert len(lines) == 1001
    assert lines[-1] == "… and 200 more boards"


def test_long_output_is_cut_and_says_where_the_rest_is():
    lines = page(ok("demo-1", stdout="".join(f"{n}\n" for n in range(2240))))
    assert lines[0] == "… 1,240 more lines, in r['demo-1'].stdout"
    assert lines[1:] == [str(n) for n in range(1240, 2240)]


def test_output_without_a_newline_at_its_end_is_counted_too():
    lines = page(ok("demo-1", stdout="\n".join(str(n) for n in range(1001))))
    assert lines[0] == "… 1 more line, in r['demo-1'].stdout"
    assert lines[-1] == "1000"


def test_running_output_is_cut_shorter():
    lines = page(ok("demo-1", stdout="x\n" * 500), final=False)
    assert lines == ["… 400 more lines", *["x"] * 100]


def test_long_line_is_cut():
    (line,) = page(ok("demo-1", stdout="x" * 1_000_000))
    assert line.startswith("…x")
    assert len(line) < 200_000


def test_long_value_is_cut():
    first, note = page(ok("demo-1", "x" * 9192))
    assert first == "x" * 8192
    assert note == "… 1,000 more characters"


def test_long_traceback_keeps_its_end():
    lines = page(failed("demo-1", traceback="x" * 9000 + "\nValueError: no"))
    assert lines[1].endswith("more characters")
    assert lines[-1] == "ValueError: no"


def test_left_out_output_is_told():
    lines = page(ok("demo-1", stdout="end\n", truncated=True))
    assert lines == ["… some output was left out: it came faster than it could be read", "end"]


def test_many_different_blocks_are_bounded():
    lines = page(*(ok(f"demo-{n}", stdout=f"{n}\n{n}\n") for n in range(1, 121)))
    assert len(lines) == 400
    assert lines[-1] == "… and 20 more boards: demo-[101-120]"


def test_boards_that_are_not_there_are_one_line():
    assert page(ok("a"), left_out=("esp-3", "esp-9"))[-1] == "not connected: esp-3, esp-9"
    assert page(ok("a"), left_out=tuple(f"e{n}" for n in range(9)))[-1] == "not connected: e[0-8]"


def test_names_that_do_not_fold_are_cut():
    names = [f"board-{chr(97 + n) * 9}" for n in range(20)]
    lines = page(*(ok(name, "1") for name in names))
    assert lines[0].startswith("── board-aaaaaaaaa,board-bbbbbbbbb,")
    assert "… (20 boards)" in lines[0]
    assert len(lines[0]) < 80


def test_head_keeps_to_a_narrow_screen():
    assert page(ok("a", "1"), ok("b", "2"), width=20)[0] == "── a ".ljust(20, "─")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("10%\r20%", "10%\n20%"),
        ("a\u202eb", "a\\u202eb"),
        ("a\tb\n", "a\tb\n"),
    ],
)
def test_what_boards_say_cannot_move_the_cursor(said: str, shown: str):
    assert printable_output(said) == shown


def test_hostile_words_are_safe_wherever_they_come_from():
    evil = "\x1b]52;c;evil\x07"
    lines = page(
        ok("demo-1", stdout=evil, text=evil),
        failed("demo-2", traceback=evil),
        failed("demo-3", "lost", why=evil),
    )
    assert "\x1b" not in "".join(lines)
    assert "".join(lines).count("\\x1b") == 4


def test_equality_does_not_depend_on_how_output_was_cut():
    one, other = BoardOutput(0.0), BoardOutput(0.0)
    one.add_output("abc\ndef")
    for character in "abc\ndef":
        other.add_output(character)
    assert one.grouping_key == other.grouping_key


def test_memory_of_a_running_board_is_bounded():
    told = BoardOutput(0.0)
    for _ in range(100):
        told.add_output("x" * 10_000)
    assert len(told.tail) < 50_000


def test_heads_of_one_page_are_equally_wide():
    lines = page(ok("demo-1", "1"), failed("demo-2", "lost", why="it did not come back in time"))
    heads = [line for line in lines if line.startswith("──")]
    assert heads[1] == "── demo-2 · lost: it did not come back in time ──"
    assert heads[0] == "── demo-1 ".ljust(len(heads[1]), "─")


def test_empty_lines_keep_blocks_apart_but_not_mere_heads():
    lines = page(ok("demo-1"), failed("demo-2", "lost"), failed("demo-3", traceback="E: 1"))
    assert lines == [
        *(head("demo-1 · ok"), head("demo-2 · lost"), ""),
        *(head("demo-3 · error"), "E: 1"),
    ]


@pytest.mark.parametrize(
    ("elapsed", "said"), [(3.04, " after 3 s"), (0.21, " after 0.2 s"), (0.0, "")]
)
def test_head_tells_after_how_long_a_board_was_stopped(elapsed: float, said: str):
    assert page(failed("demo-1", "timeout", elapsed=elapsed)) == [head(f"demo-1 · timeout{said}")]


def test_blocks_by_board_stand_in_the_targets_order():
    lines = page(ok("demo-2", "1"), failed("demo-1", "lost"), ok("demo-3", "1"), grouped="board")
    assert lines == [
        *(head("demo-2"), "1", ""),
        *(head("demo-1 · lost"), ""),
        *(head("demo-3"), "1"),
    ]


def test_pieces_of_lines_have_roles():
    told = {
        "demo-1": BoardOutput.from_result(ok("demo-1", "1", "hi\n")),
        "demo-2": BoardOutput.from_result(failed("demo-2", traceback="E: 1")),
        "demo-3": BoardOutput.from_result(failed("demo-3", "timeout")),
    }
    lines = list(Report(80, True, "show", "", 0.0).lines(told, ["demo-4"]))
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


def test_progress_counts_who_is_done_and_names_whom_all_wait_for():
    told = {
        "demo-1": BoardOutput.from_result(ok("demo-1")),
        "demo-2": BoardOutput.from_result(failed("demo-2", "lost")),
    }
    waiting, resetting = BoardOutput(0.0), BoardOutput(0.0)
    waiting.state, resetting.state = WAITING_FOR_BOARD, RESETTING
    told |= {"demo-3": waiting, "demo-4": resetting}
    page = Report(80, False, "show", "", 0.0)
    assert plain_text([page.progress_line(told, 3.4)]) == (
        "━━━━━━━━━━━━──────────── 2 of 4 boards are done, 1 failed, waiting for demo-3, "
        "resetting demo-4 · 3 s"
    )
    assert "failed" not in plain_text([page._replace(failures="ignore").progress_line(told, 3.4)])
    assert (
        plain_text([page.progress_line({"demo-1": BoardOutput(0.0)}, 3.4)])
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
def test_outcome_in_a_log_says_the_state_that_nothing_else_tells(
    result: Result, failures: str, lines: list[str]
):
    page = Report(80, True, failures, "", 0.0)
    told = page.outcome_lines("demo-1", BoardOutput.from_result(result), single_board=True)
    assert [plain_text([line]) for line in told] == lines


def test_head_may_stand_alone():
    assert head_text("here") == head("here")
