"""Tab completion of a magic's line: boards, options, and the values of options."""

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
        names: returns the names to offer, such as those of boards.
        parser: the magic's parser, for its options; None if it has no options.
        code: whether code follows the target on the line; that is left to Python's completion.
        extra: further words to offer.
    """

    def complete(shell: Any, event: Any) -> list[str]:
        before = event.text_until_cursor.removesuffix(event.symbol)
        words = before.split()[1:]
        if parser is not None and words and (option := _option_before(parser, words)):
            if parser._option_string_actions[option].type is parse_variables:
                return [name for name in shell.user_ns if not name.startswith("_")]
            return option_choices(parser, option)
        if parser is not None and event.symbol.startswith("-"):
            return option_names(parser)
        if code and before.endswith((" ", "\t")) and _has_target(parser, words):
            return []
        return [*names(), *extra]

    return complete


def _option_before(parser: ArgumentParser, words: list[str]) -> str:
    """Return the option whose value is being typed after ``words``; "" for none."""
    *before, last = words
    if takes_value(parser, last):
        return last
    in_list = last.endswith(",") and before and takes_value(parser, before[-1])
    return before[-1] if in_list else ""


def _has_target(parser: ArgumentParser | None, words: list[str]) -> bool:
    """Return whether one of the words is the target: neither an option nor its value."""
    is_value = False
    for word in words:
        if not is_value and not word.startswith("-"):
            return not words[-1].endswith((",", "&", "!"))
        is_value = not is_value and parser is not None and takes_value(parser, word)
    return False
