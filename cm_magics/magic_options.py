"""The options of ``%board``, ``%%board`` and ``%board_result``: parsing, help and completion."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from keyword import iskeyword
from typing import Final, NoReturn

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser

from cloudmanager.client.run_arguments import add_run_options, wait_options_error
from cloudmanager.display.cell_view import GROUPINGS, PROGRESS_AFTER_SECONDS
from cloudmanager.protocol.spans import parse_span
from cloudmanager.protocol.text import nearest_name

_BOARD_HELP: Final = """Run code on boards, on all of them at the same time.

%%board TARGET runs the lines below it, %board TARGET CODE runs the rest of its line. The value of
the last expression is shown, and returned as a Python object: after r = %board demo-[1-3] 6*7 it
is r['demo-1'].value. The stop button interrupts every board. A cell that begins with # %%board
TARGET runs on boards too, and type checkers treat it as Python.
"""
_RESULT_HELP: Final = """Wait for a cell that was submitted with --noblock, and show its results.

The number of any other job, such as one submitted with --when-online, shows how that ended.
Without a NAME or number: the last such cell. The stop button only ends the waiting: the cell
continues, and %board_result can wait for it again; NAME.interrupt() stops the cell. The input() of
a cell that was submitted with --noblock cannot be answered: it raises EOFError on the board.
"""

_PLOT_HELP: Final = """Plot the values that boards emit, live: %board_plot TARGET [NAME...].

A board emits values with cm.emit(temp=21.5). Without a NAME, all numbers are plotted.
"""
_LOGS_HELP: Final = "Show what boards print outside of cells: their program, tasks, tracebacks."


class MagicParser(MagicArgumentParser):
    """A parser whose errors are a single sentence, without argparse's usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise an error that IPython shows as one line."""
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
        help="the NAME that the cell was stored under with -o, or the number of one of its jobs",
    )
    _add_display_options(parser)
    return parser


def make_logs_parser() -> MagicParser:
    """Make the parser of `%board_logs`."""
    parser = MagicParser("board_logs", description=_LOGS_HELP)
    parser.add_argument("target", nargs="?", help="the boards, connected or not")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with new lines until you interrupt it"
    )
    parser.add_argument(
        "--since",
        metavar="SPAN",
        help="only lines of the last SPAN, such as 10m or 2h; by default all that the server has, "
        "16 KB of each board, or with -f only new lines",
    )
    return parser


def make_plot_parser() -> MagicParser:
    """Make the parser of `%board_plot`."""
    parser = MagicParser("board_plot", description=_PLOT_HELP)
    parser.add_argument("target", nargs="?", help="the boards, connected or not")
    _add_since(parser)
    return parser


def read_plot_names(text: str, since: int | None) -> tuple[list[str], int | None]:
    """Return the names of values after a target, and the span; options may be among the names.

    Args:
        text: what follows the target.
        since: the span, if it is before that.
    """
    parser = MagicParser("board_plot")
    parser.add_argument("names", nargs="*")
    _add_since(parser)
    found = parser.parse_intermixed_args(text.split())
    return found.names, since if found.since is None else found.since


def _add_since(parser: MagicParser) -> None:
    parser.add_argument(
        "--since",
        type=_read_span,
        metavar="SPAN",
        help="begin with the values of the last SPAN, such as 12h or 7d, which the server has kept",
    )


def _read_span(text: str) -> int:
    try:
        return parse_span(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def _add_target_options(parser: MagicParser) -> None:
    add = parser.add_argument
    add(
        "target",
        nargs="?",
        help="the boards: demo-1, demo-[1-3], lab-*, room=lab, all. `,` joins, `&` intersects, "
        "`!` excludes. %%%%board without a target means the boards of %%board_use.",
    )
    add(
        "-i",
        "--input",
        metavar="A,B",
        type=parse_variables,
        action="append",
        default=[],
        help="first assign these variables of the notebook on the boards: numbers, text, bytes, "
        "None, and lists, tuples, dicts and sets of them; arrays as lists. May be repeated.",
    )


def check_wait_options(options: Namespace) -> None:
    """Check ``--when-online`` and ``--expires``.

    Raises:
        UsageError: they cannot be combined like this.
    """
    if error := wait_options_error(options):
        raise UsageError(error)


def _add_run_options(parser: MagicParser) -> None:
    """Add the options that say how a cell is run."""
    add = parser.add_argument
    add(
        "-a",
        "--noblock",
        action="store_true",
        help="do not wait: the value is the running cell, for %%board_result",
    )
    add_run_options(parser)
    add(
        "--local",
        action="store_true",
        help="also run the cell in the notebook's own Python, after it was sent to the boards",
    )


def _add_display_options(parser: MagicParser) -> None:
    """Add the options that say how results are shown and where they are stored."""
    add = parser.add_argument
    add(
        "-o",
        "--out",
        metavar="NAME",
        type=parse_variable,
        help="store the results in this variable: NAME['demo-1'].value",
    )
    add(
        "--on-error",
        metavar="HOW",
        type=make_choice("raise", "show", "ignore"),
        default="raise",
        help="failures on boards: raise them (the default), only show them, or ignore them",
    )
    add(
        "--group-outputs",
        metavar="HOW",
        type=make_choice(*GROUPINGS),
        default="same",
        help="same (the default): boards with the same output share one block; board: one block "
        "for each board; order: line by line in order of arrival, with the board's name",
    )
    add(
        "--progress-after",
        metavar="S",
        type=parse_number,
        default=PROGRESS_AFTER_SECONDS,
        help="seconds until progress is shown (default: 2); 0: immediately, -1: never",
    )


def make_choice(*choices: str) -> Callable[[str], str]:
    """Return an argparse type that accepts only ``choices``.

    Its error suggests the most similar choice. Completion reads the choices from its attribute
    ``words``.
    """

    def choose(text: str) -> str:
        if text in choices:
            return text
        similar = nearest_name(text, choices)
        hint = f"Did you mean {similar}?" if similar else f"Use one of: {', '.join(choices)}."
        raise ArgumentTypeError(f"{text!r} is not valid. {hint}")

    choose.words = choices  # type: ignore[attr-defined]
    return choose


def parse_number(text: str) -> float:
    """Parse a finite number of seconds, which may be negative; an argparse type."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds.")
    return seconds


def parse_variables(text: str) -> list[str]:
    """Parse comma-separated names of variables; an argparse type."""
    return [parse_variable(name.strip()) for name in text.split(",")]


def parse_variable(text: str) -> str:
    """Parse the name of a variable; an argparse type."""
    if not text.isidentifier() or iskeyword(text):
        raise ArgumentTypeError(f"{text!r} is not a valid variable name.")
    return text
