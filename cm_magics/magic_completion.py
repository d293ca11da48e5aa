"""Tab completion of a magic's line: boards, labels, options, and the values of options."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)

from .magic_line import option_choices, option_names, takes_value
from .magic_options import parse_variables

#: A line with a magic: in a comment, after an assignment, or without its % (automagic).
_MAGIC_LINE: Final = re.compile(r"\s*(?:#\s*(?=%%)|[\w\s,.]+=\s*(?=%))?(%{0,2})(\w+)\s+")
_LAST_WORD: Final = re.compile(r"[^\s,&!]*\Z")  # of the boards of a target, only the last


class LineWords(NamedTuple):
    """What can be on a magic's line.

    Attributes:
        names: returns the words to offer as its target, such as boards.
        parser: its parser, for the options; None if it has none.
        after_target: what follows the target: "code", "files", or "" for anything else.
    """

    names: Callable[[], Iterable[str]]
    parser: ArgumentParser | None = None
    after_target: str = ""


class MagicMatcher:
    """One of IPython's completers, for the lines of some magics.

    If it has something to offer, IPython offers nothing else.

    Args:
        shell: the shell.
        magics: name of each magic, with its % or %% -> what can be on its line.
    """

    def __init__(self, shell: Any, magics: Mapping[str, LineWords]) -> None:
        self._shell = shell
        self._magics = magics

        def match(context: CompletionContext) -> SimpleMatcherResult:
            return self._match(context)  # a method cannot have the attributes of a matcher

        self._matcher = context_matcher(identifier=f"cm_magics:{' '.join(magics)}")(match)

    def register(self) -> None:
        """Make IPython ask it."""
        self._shell.Completer.custom_matchers.append(self._matcher)

    def unregister(self) -> None:
        """Undo ``register``."""
        self._shell.Completer.custom_matchers.remove(self._matcher)

    def _match(self, context: CompletionContext) -> SimpleMatcherResult:
        # A new result each time: IPython changes it.
        result = SimpleMatcherResult(completions=[])
        line = context.text_until_cursor
        found = _MAGIC_LINE.match(line)
        words = self._magics.get(f"{found[1] or '%'}{found[2]}") if found else None
        if found is None or words is None:
            return result
        fragment, offers = self._offers(words, line[found.end() :])
        completions = [SimpleCompletion(each) for each in offers if each.startswith(fragment)]
        if completions:
            result = SimpleMatcherResult(
                completions=completions, matched_fragment=fragment, suppress=True, ordered=True
            )
        return result

    def _offers(self, words: LineWords, text: str) -> tuple[str, list[str]]:
        """Return the part of a word that is typed already, and the words to offer."""
        found = _LAST_WORD.search(text)
        fragment = found[0] if found else ""
        before = text[: len(text) - len(fragment)].split()
        parser = words.parser
        if "{" in fragment:
            return fragment.rpartition("{")[2], self._variables()
        if parser is not None:
            if fragment.startswith("--") and "=" in fragment:
                option, _, fragment = fragment.partition("=")
                return fragment, self._values(parser, option)
            if before and (option := _option_before(parser, before)):
                return fragment, self._values(parser, option)
            if fragment.startswith("-"):
                return fragment, option_names(parser)
        if text[: len(text) - len(fragment)][-1:].isspace() and _has_target(parser, before):
            is_files = words.after_target == "files" and not fragment.startswith(":")
            return fragment, self._shell.Completer.file_matches(fragment) if is_files else []
        return fragment, sorted(words.names())

    def _values(self, parser: ArgumentParser, option: str) -> list[str]:
        """Return the possible values of an option."""
        action = parser._option_string_actions.get(option)
        if action is not None and action.type is parse_variables:
            return self._variables()
        return option_choices(parser, option)

    def _variables(self) -> list[str]:
        return sorted(name for name in self._shell.user_ns if not name.startswith("_"))


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
