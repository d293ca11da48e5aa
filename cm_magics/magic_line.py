"""A magic's line -> options, target and code. Pure: the code is never taken apart.

    --timeout 5 demo-[1-3] print('a  b', "c")      a line magic: options, target, the rest is code
    lab-* & platform=esp32 --timeout 5             a cell magic: options before and after the target

The options themselves are argparse's, which also makes the help.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import NamedTuple

from IPython.core.error import UsageError

from cloudmanager.protocol.text import nearest_name

_WORD_PATTERN = re.compile(r"""\s*("[^"]*"|'[^']*'|\S+)""")
# An unquoted target goes on behind a blank that is in [ ] or beside a sign: no Python begins so.
_TARGET_PATTERN = re.compile(
    r"""\s*("[^"]*"|'[^']*'|(?:\[[^][]*\]|\S|\s+(?=[,&!])|(?<=[,&!])\s+)+)""",
)


class CodeLine(NamedTuple):
    """What a line says; ``target`` is empty where it names none."""

    options: Namespace
    target: str
    code: str


def split_line(parser: ArgumentParser, line: str) -> CodeLine:
    """Split the line of a line magic: options, the target, and the code as it was typed.

    Raises:
        UsageError: an option is unknown, or its value is no good.
    """
    argv, rest = _split_options(parser, line)
    found = _TARGET_PATTERN.match(rest)
    target = _unquote(found[1]).strip() if found else ""
    code = rest[found.end() :].strip() if found else ""
    return CodeLine(parser.parse_args(argv), target, code)


def split_cell_line(parser: ArgumentParser, line: str) -> CodeLine:
    """Split the first line of a cell magic: what is no option is the target.

    Raises:
        UsageError: an option is unknown, or its value is no good.
    """
    argv: list[str] = []
    words: list[str] = []
    rest = line
    while rest.strip():
        more, rest = _split_options(parser, rest)
        argv += more
        if found := _WORD_PATTERN.match(rest):
            words.append(_unquote(found[1]))
            rest = rest[found.end() :]
    return CodeLine(parser.parse_args(argv), " ".join(words), "")


class WordLine(NamedTuple):
    """What a line of words says."""

    options: Namespace
    target: str
    words: list[str]


def split_words(parser: ArgumentParser, line: str) -> WordLine:
    """Split a line of a target and words; options may stand anywhere.

    Raises:
        UsageError: an option is unknown, or its value is no good.
    """
    argv, rest = _split_options(parser, line)
    found = _TARGET_PATTERN.match(rest)
    target = _unquote(found[1]).strip() if found else ""
    rest = rest[found.end() :] if found else ""
    words: list[str] = []
    while rest.strip():
        more, rest = _split_options(parser, rest)
        argv += more
        if found := _WORD_PATTERN.match(rest):
            words.append(_unquote(found[1]))
            rest = rest[found.end() :]
    return WordLine(parser.parse_args(argv), target, words)


def takes_value(parser: ArgumentParser, word: str) -> bool:
    """Whether ``word`` is an option that the next word belongs to."""
    action = parser._option_string_actions.get(word)
    return action is not None and action.nargs != 0


def option_names(parser: ArgumentParser) -> list[str]:
    """Return all options of a magic."""
    return sorted(parser._option_string_actions)


def option_choices(parser: ArgumentParser, word: str) -> list[str]:
    """Return the words that may follow an option; none where anything may."""
    action = parser._option_string_actions.get(word)
    return list(getattr(action.type, "words", ())) if action is not None else []


def _split_options(parser: ArgumentParser, line: str) -> tuple[list[str], str]:
    """Take the options that a line begins with; return them for argparse, and the rest."""
    argv: list[str] = []
    while (found := _WORD_PATTERN.match(line)) and found[1].startswith("-"):
        name, equals, value = found[1].partition("=")
        line = line[found.end() :]
        _check_option(parser, name)
        if takes_value(parser, name) and not equals:
            found = _WORD_PATTERN.match(line)
            if found is None:
                raise UsageError(f"{name} needs a value.")
            line = line[found.end() :]
            value = found[1]
        argv += _join_option(name, _unquote(value)) if value else [name]
    return argv, line


def _join_option(name: str, value: str) -> Iterator[str]:
    """Join an option and its value so that argparse takes the value for nothing else."""
    yield f"{name}={value}" if name.startswith("--") else f"{name}{value}"


def _check_option(parser: ArgumentParser, name: str) -> None:
    if name not in parser._option_string_actions:
        meant = nearest_name(name, option_names(parser))
        guess = f" Did you mean {meant}?" if meant else ""
        raise UsageError(f"There is no option {name}.{guess} `%{parser.prog}?` shows all.")


def _unquote(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] in "'\"" and word[-1] == word[0] else word
