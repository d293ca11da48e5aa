"""Tab on a magic's line: names of boards, options, and what an option takes."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from .magic_line import option_choices, option_names, takes_value
from .magic_options import parse_variables

Completer = Callable[[Any, Any], "list[str]"]


def make_completer(
    names: Callable[[], list[str]],
    parser: ArgumentParser | None = None,
    *,
    code: bool = False,
    extra: tuple[str, ...] = ("all",),
) -> Completer:
    """Make a hook for IPython's ``complete_command``.

    Args:
        names: returns the names of boards, or of what else may stand there.
        parser: knows the options; None where there are none.
        code: whether code follows the target on the line, which Python completes.
        extra: what may stand there, too.
    """

    def complete(shell: Any, event: Any) -> list[str]:
        before = event.text_until_cursor
        before = before[: len(before) - len(event.symbol)] if event.symbol else before
        words = before.split()[1:]
        if parser is not None and words and (of := _option_before(parser, words)):
            if parser._option_string_actions[of].type is parse_variables:
                return [name for name in shell.user_ns if not name.startswith("_")]
            return option_choices(parser, of)
        if parser is not None and event.symbol.startswith("-"):
            return option_names(parser)
        if code and before.endswith((" ", "\t")) and _has_target(parser, words):
            return []
        return [*names(), *extra]

    return complete


def _option_before(parser: ArgumentParser, words: list[str]) -> str:
    """Return the option that the next word belongs to; "" for none."""
    *before, last = words
    if takes_value(parser, last):
        return last
    listed = last.endswith(",") and before and takes_value(parser, before[-1])
    return before[-1] if listed else ""


def _has_target(parser: ArgumentParser | None, words: list[str]) -> bool:
    """Whether a word is there that is no option and no option's value."""
    of_option = False
    for word in words:
        if not of_option and not word.startswith("-"):
            return not words[-1].endswith((",", "&", "!"))
        of_option = not of_option and parser is not None and takes_value(parser, word)
    return False
