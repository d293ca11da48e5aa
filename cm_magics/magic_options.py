"""What the magics take besides a target and code: one table, for parsing, help and completion."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from keyword import iskeyword
from typing import Final, NoReturn

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser

from cloudmanager.display.cell_view import GROUPINGS, PROGRESS_AFTER_SECONDS
from cloudmanager.protocol.text import nearest_name

_BOARD_HELP: Final = """Run code on boards, on all of them at once.

%%board TARGET runs the lines below it, %board TARGET CODE the rest of its line. The value of the
last expression is shown, and comes back as a Python object: r = %board demo-[1-3] 6*7 gives
r['demo-1'].value. The stop button interrupts every board. A cell that begins with # %%board
TARGET runs on boards too, and stays Python for type checkers.
"""
_RESULT_HELP: Final = """Wait for a cell that was submitted with --noblock, and show its results.

%board_result alone means the last one. The stop button ends only the waiting: the cell goes on,
and %board_result waits for it again; NAME.interrupt() stops it. A cell that nobody waits for has
nobody to answer its input(): that raises EOFError on the board.
"""


class MagicParser(MagicArgumentParser):
    """A parser whose errors are one sentence, without a word of its own."""

    def error(self, message: str) -> NoReturn:
        """Raise what IPython shows as one line."""
        raise UsageError(message.removeprefix("argument "))


def make_board_parser() -> MagicParser:
    """Make the parser of `%board` and `%%board`."""
    parser = MagicParser("board", description=_BOARD_HELP)
    _add_target_options(parser)
    _add_run_options(parser)
    _add_display_options(parser)
    return parser


def make_result_parser() -> MagicParser:
    """Make the parser of `%board_result`."""
    parser = MagicParser("board_result", description=_RESULT_HELP)
    parser.add_argument(
        "cell",
        nargs="?",
        help="the NAME that the cell was given with -o, or the number of one of its jobs",
    )
    _add_display_options(parser)
    return parser


def _add_target_options(parser: MagicParser) -> None:
    add = parser.add_argument
    add(
        "target",
        nargs="?",
        help="the boards: demo-1, demo-[1-3], lab-*, room=lab, all. `,` joins, `&` keeps what "
        "is in both, `!` takes away. %%%%board without one means those of %%board_use.",
    )
    add(
        "-i",
        "--input",
        metavar="A,B",
        type=parse_variables,
        action="append",
        default=[],
        help="assign these variables of the notebook on the boards first: numbers, text, bytes, "
        "None, and lists, tuples, dicts and sets of them; arrays as lists. May be repeated.",
    )


def _add_run_options(parser: MagicParser) -> None:
    """Add how a cell is run."""
    add = parser.add_argument
    add(
        "-a",
        "--noblock",
        action="store_true",
        help="do not wait: the value is the running cell, for %%board_result",
    )
    add(
        "--timeout",
        metavar="S",
        type=parse_seconds,
        help="seconds that the code may run on a board; its time in a queue does not count",
    )
    add(
        "--wait",
        metavar="S",
        type=parse_seconds,
        default=0.0,
        help="seconds that boards which are not there have to dial in",
    )
    add(
        "--fresh",
        action="store_true",
        help="restart each board first (a soft reset): no name is left of earlier cells",
    )
    add(
        "--local",
        action="store_true",
        help="run the cell in the notebook's own Python, too, after it was sent to the boards",
    )


def _add_display_options(parser: MagicParser) -> None:
    """Add what becomes of the results."""
    add = parser.add_argument
    add(
        "-o",
        "--out",
        metavar="NAME",
        type=parse_variable,
        help="keep the results in this variable: NAME['demo-1'].value",
    )
    add(
        "--on-error",
        metavar="HOW",
        type=make_choice("raise", "show", "ignore"),
        default="raise",
        help="raise what fails on a board (the default), only show it, or ignore it",
    )
    add(
        "--group-outputs",
        metavar="HOW",
        type=make_choice(*GROUPINGS),
        default="same",
        help="same (the default): boards that told the same are one block; board: one block for "
        "each board; order: line by line as it comes, each behind its board's name",
    )
    add(
        "--progress-after",
        metavar="S",
        type=parse_number,
        default=PROGRESS_AFTER_SECONDS,
        help="seconds until it is shown how many boards are done (2); 0: at once, -1: never",
    )


def make_choice(*choices: str) -> Callable[[str], str]:
    """Make an argparse type of a few words, which suggests the nearest."""

    def choose(text: str) -> str:
        if text in choices:
            return text
        meant = nearest_name(text, choices)
        guess = f": did you mean {meant}?" if meant else f": it is one of {', '.join(choices)}."
        raise ArgumentTypeError(f"{text!r} is not known{guess}")

    choose.words = choices  # type: ignore[attr-defined]  # for completion
    return choose


def parse_seconds(text: str) -> float:
    """Read a span, an argparse type."""
    try:
        span = float(text)
    except ValueError:
        span = 0.0
    if not 0 < span < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no number of seconds above 0.")
    return span


def parse_number(text: str) -> float:
    """Read a number, an argparse type."""
    try:
        read = float(text)
    except ValueError:
        read = math.nan
    if not math.isfinite(read):
        raise ArgumentTypeError(f"{text!r} is no number of seconds.")
    return read


def parse_variables(text: str) -> list[str]:
    """Read the names of variables, an argparse type."""
    return [parse_variable(name.strip()) for name in text.split(",")]


def parse_variable(text: str) -> str:
    """Read the name of a variable, an argparse type."""
    if not text.isidentifier() or iskeyword(text):
        raise ArgumentTypeError(f"{text!r} is no name of a variable.")
    return text
