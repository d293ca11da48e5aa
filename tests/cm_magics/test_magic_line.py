"""Splitting a magic's line into options, target and code."""

from __future__ import annotations

import pytest
from IPython.core.error import UsageError

from cm_magics.magic_line import expand_variables, split_cell_line, split_line, split_words
from cm_magics.magic_options import make_board_parser

PARSER = make_board_parser()


@pytest.mark.parametrize(
    ("line", "target", "code"),
    [
        ("demo-1 6*7", "demo-1", "6*7"),
        ("demo-[1-3] print('a  b', \"c\")", "demo-[1-3]", "print('a  b', \"c\")"),
        ("demo-1 -x", "demo-1", "-x"),
        ("demo-1 f(--x)", "demo-1", "f(--x)"),
        ("demo-1 [1, 2]", "demo-1", "[1, 2]"),
        ("demo-1 {x} $y", "demo-1", "{x} $y"),
        ("demo-1 --timeout 5 print(1)", "demo-1", "print(1)"),
        ("demo-1 -o r --on-error=show print(1)", "demo-1", "print(1)"),
        ("demo-1 -a - b", "demo-1", "-a - b"),
        ("demo-1 --fresh", "demo-1", "--fresh"),
        ("demo-1 print(1)  # --timeout 5", "demo-1", "print(1)  # --timeout 5"),
        ("['demo-1', 'demo-2'] 1", "demo-1,demo-2", "1"),
        ("('demo-1',) 1", "demo-1", "1"),
        ("demo-1, demo-2 1", "demo-1, demo-2", "1"),
        ("demo-[1, 3] 1", "demo-[1, 3]", "1"),
        ("lab-* & platform=esp32 !lab-3 1", "lab-* & platform=esp32 !lab-3", "1"),
        ("'lab-* & room=dark room' 1", "lab-* & room=dark room", "1"),
        ("--timeout 5 demo-1 --timeout", "demo-1", "--timeout"),
        ("-o r --on-error show demo-1 1", "demo-1", "1"),
        ("demo-1", "demo-1", ""),
        ("demo-[1-3 x[0]", "demo-[1-3", "x[0]"),
        ("", "", ""),
    ],
)
def test_line_magic_does_not_change_the_code(line: str, target: str, code: str):
    assert split_line(PARSER, line)[1:] == (target, code)


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("demo-1 --timeout 5", "demo-1"),
        ("--timeout=5 demo-1", "demo-1"),
        ("lab-* & platform=esp32 --timeout 5", "lab-* & platform=esp32"),
        ("'demo-1' --timeout '5'", "demo-1"),
        ("demo-1 --timeout 5  # the slow ones", "demo-1"),
        ("--timeout 5 # nothing", ""),
        ("['demo-1', 'demo-2'] --timeout 5", "demo-1,demo-2"),
        ("--timeout 5", ""),
    ],
)
def test_cell_magic_accepts_options_before_and_after_the_target(line: str, target: str):
    parsed = split_cell_line(PARSER, line)
    assert (parsed.target, parsed.options.timeout) == (target, 5.0)


def test_options_are_parsed():
    options = split_cell_line(PARSER, "demo-1 -o r --on-error=ignore").options
    assert (options.out, options.on_error, options.timeout) == ("r", "ignore", None)


def test_options_have_defaults():
    options = split_cell_line(PARSER, "demo-1").options
    assert (options.out, options.on_error, options.timeout) == (None, "raise", None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--timeot 5 x",
            "There is no option --timeot. Did you mean --timeout? `%board?` lists all options.",
        ),
        ("--zzz x", "There is no option --zzz. `%board?` lists all options."),
        ("--timeout", "--timeout needs a value."),
        ("--timeout x", "--timeout: 'x' is not a positive number of seconds."),
        ("--timeout -1", "--timeout: '-1' is not a positive number of seconds."),
        ("--timeout inf", "--timeout: 'inf' is not a positive number of seconds."),
        ("-o 1x", "-o/--out: '1x' is not a valid variable name."),
        ("-o class", "-o/--out: 'class' is not a valid variable name."),
        ("--on-error rise", "--on-error: 'rise' is not valid. Did you mean raise?"),
        ("--on-error zzz", "--on-error: 'zzz' is not valid. Use one of: raise, show, ignore."),
    ],
)
def test_wrong_usage_is_a_short_message(line: str, message: str):
    with pytest.raises(UsageError) as caught:
        split_cell_line(PARSER, line)
    assert str(caught.value) == message


VARIABLES = {"board": "lab-1", "names": ["lab-1", "lab-2"], "n": 2, "pair": {"a": 6}}


@pytest.mark.parametrize(
    ("line", "expanded"),
    [
        ("{board} :a", "lab-1 :a"),
        ("$board :a", "lab-1 :a"),
        ("lab-{n + 1}", "lab-3"),
        ("{names[1:]}", "['lab-2']"),
        ("{board!r}", "'lab-1'"),
        ("{pair['a']}", "6"),
        (":{{a}}.txt", ":{a}.txt"),
        (":$$board", ":$board"),
        (":'$board'", ":'$board'"),
        (":a$.txt $5", ":a$.txt $5"),
        ("$board. $n.", "lab-1. 2."),
    ],
)
def test_variables_are_replaced(line: str, expanded: str):
    assert expand_variables(line, VARIABLES) == expanded


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{board} {file}", "{file}: the notebook has no variable file."),
        ("$board $file", "$file: the notebook has no variable file."),
        ("{board} {n/0}", "{n/0}: ZeroDivisionError: division by zero."),
        ("$board.py", "$board.py: AttributeError: 'str' object has no attribute 'py'."),
        ("{board} :a}", "A brace is single in this line."),
    ],
)
def test_variable_that_cannot_be_replaced_is_named(line: str, message: str):
    with pytest.raises(UsageError) as caught:
        expand_variables(line, VARIABLES)
    hint = "A brace itself is written {{ or }}, a dollar sign $$."
    assert str(caught.value) == f"{message} {hint}"


def test_options_of_a_line_with_code_have_variables():
    line = "--timeout {n} -o {board} {names} --wait $n {n} + 1"
    parsed = split_line(
        PARSER,
        line,
        lambda text: text.format_map({"n": 3, "board": "x", "names": "all"}).replace("$n", "4"),
    )
    assert (parsed.options.timeout, parsed.options.out, parsed.options.wait) == (3, "x", 4)
    assert (parsed.target, parsed.code) == ("all", "{n} + 1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lab-1 :a b#c 'd # e' # f", [":a", "b#c", "d # e"]),
        ("lab-1 # :a", []),
        ("# lab-1", []),
    ],
)
def test_comment_ends_a_line_of_words(line: str, words: list[str]):
    assert split_words(PARSER, line).words == words
