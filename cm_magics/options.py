"""What the magics take besides a target and code: one table, for parsing, help and completion."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from keyword import iskeyword
from typing import Final, NoReturn

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser

from cloudmanager.text import nearest

_BOARD_HELP: Final = """Run code on boards, on all of them at once.

%%board TARGET runs the lines below it, %board TARGET CODE the rest of its line. The value of the
last expression is shown, and comes back as a Python object: r = %board demo-[1-3] 6*7 gives
r['demo-1'].value.
"""


class Options(MagicArgumentParser):
    """A parser whose errors are one sentence, without a word of its own."""

    def error(self, message: str) -> NoReturn:
        """Raise what IPython shows as one line."""
        raise UsageError(message.removeprefix("argument "))


def board_parser() -> Options:
    """Make the parser of `%board` and `%%board`."""
    parser = Options("board", description=_BOARD_HELP)
    add = parser.add_argument
    add(
        "target",
        nargs="?",
        help="the boards: demo-1, demo-[1-3], lab-*, room=lab, all. `,` joins, `&` keeps what "
        "is in both, `!` takes away. %%%%board without one means those of %%board_use.",
    )
    add(
        "-o",
        "--out",
        metavar="NAME",
        type=variable,
        help="keep the results in this variable: NAME['demo-1'].value",
    )
    add(
        "--timeout",
        metavar="S",
        type=seconds,
        help="seconds that the code may run on a board; its time in a queue does not count",
    )
    add(
        "--on-error",
        metavar="HOW",
        type=one_of("raise", "show", "ignore"),
        default="raise",
        help="raise what fails on a board (the default), only show it, or ignore it",
    )
    return parser


def one_of(*words: str) -> Callable[[str], str]:
    """Make an argparse type of a few words, which suggests the nearest."""

    def choose(text: str) -> str:
        if text in words:
            return text
        meant = nearest(text, words)
        guess = f": did you mean {meant}?" if meant else f": it is one of {', '.join(words)}."
        raise ArgumentTypeError(f"{text!r} is not known{guess}")

    choose.words = words  # type: ignore[attr-defined]  # for completion
    return choose


def seconds(text: str) -> float:
    """Read a span, an argparse type."""
    try:
        span = float(text)
    except ValueError:
        span = 0.0
    if not 0 < span < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no number of seconds above 0.")
    return span


def variable(text: str) -> str:
    """Read the name of a variable, an argparse type."""
    if not text.isidentifier() or iskeyword(text):
        raise ArgumentTypeError(f"{text!r} is no name of a variable.")
    return text
