"""Split a magic's line into options, target and code; the code is never changed.

    --timeout 5 demo-[1-3] print('a  b', "c")      a line magic: options, target, the rest is code
    lab-* & platform=esp32 --timeout 5  # why      a cell magic: options before and after the target

argparse then parses the options and formats their help. A comment ends a line without code.
"""

from __future__ import annotations

import ast
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from IPython.core.error import UsageError
from IPython.utils.text import DollarFormatter

from cloudmanager.client.cell_syntax import parse_python
from cloudmanager.protocol.text import nearest_name

# A quoted word, a Python list or tuple of strings, or anything without spaces.
_WORD_PATTERN = re.compile(r"""\s*("[^"]*"|'[^']*'|[\[(]\s*['"][^])]*[])]|\S+)""")
# An unquoted target continues after a space inside [ ], or beside `,`, `&` or `!`: Python code
# begins with none of these operators.
_TARGET_PATTERN = re.compile(
    r"""\s*("[^"]*"|'[^']*'|(?:\[[^][]*\]|\{[^{}]*\}|\S|\s+(?=[,&!])|(?<=[,&!])\s+)+)""",
)


class _LineFormatter(DollarFormatter):
    """IPython's ``{expression}``, ``$name``, ``{{``, ``}}`` and ``$$name``.

    A name does not begin with a digit or a dot, and does not end with a dot: ``$5`` and ``a$.txt``
    are kept. Between single quotes, all dollar signs are.
    """

    _dollar_pattern_ignore_single_quote = re.compile(
        r"(.*?)\$(\$?[^\W\d]\w*(?:\.[^\W\d]\w*)*)(?=([^']*'[^']*')*[^']*$)"
    )


_FORMATTER: Final = _LineFormatter()
_LITERAL_HINT: Final = "A brace itself is written {{ or }}, a dollar sign $$."


def expand_variables(text: str, variables: Mapping[str, Any]) -> str:
    """Replace ``{expression}`` and ``$name``, as IPython does in the lines of its magics.

    Unlike IPython, which then leaves the whole line as it is, it raises an error if one of them
    cannot be replaced.

    Raises:
        UsageError: a variable does not exist, an expression fails, or a brace is single.
    """
    if not {"{", "}", "$"} & set(text):
        return text
    expanded = ""
    try:
        for literal, field, spec, conversion in _FORMATTER.parse(text):
            expanded += literal
            if field is not None:
                expression = f"{field}:{spec}" if spec else field
                braced = f"{{{expression}" in text
                shown = f"{{{expression}}}" if braced else f"${expression}"
                value = _evaluate(expression, variables, shown)
                expanded += str(_FORMATTER.convert_field(value, conversion))
    except ValueError:
        raise UsageError(f"A brace is single in this line. {_LITERAL_HINT}") from None
    return expanded


def _evaluate(expression: str, variables: Mapping[str, Any], shown: str) -> Any:
    try:
        return eval(expression, dict(variables))
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, NameError):
            why = f"the notebook has no variable {error.name}"
        raise UsageError(f"{shown}: {why}. {_LITERAL_HINT}") from None


class CodeLine(NamedTuple):
    """A parsed line with code; ``target`` is empty if the line names none."""

    options: Namespace
    target: str
    code: str


def split_line(
    parser: ArgumentParser, line: str, expand: Callable[[str], str] = lambda text: text
) -> CodeLine:
    """Split the line of a line magic: options, the target, and the code as it was typed.

    Options may follow the target, too, unless they could be code, such as ``-x``.

    Args:
        parser: the parser of the options.
        line: the line.
        expand: replaces variables in the target and in values of options; code is kept as it is.

    Raises:
        UsageError: an option is unknown, or its value is invalid.
    """
    argv, rest = _split_options(parser, line, expand)
    found = _TARGET_PATTERN.match(rest)
    target = read_target(expand(found[1])) if found else ""
    code = rest[found.end() :].strip() if found else ""
    if _begins_with_option(parser, code):
        more, code = _split_options(parser, code, expand)
        argv += more
    return CodeLine(parser.parse_args(argv), target, code.strip())


def _begins_with_option(parser: ArgumentParser, text: str) -> bool:
    """Return whether text after a target begins with an option, and not with code."""
    option, _, rest = text.partition(" ")
    if option.partition("=")[0] not in parser._option_string_actions or not rest.strip():
        return False
    try:
        parse_python(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    return option.startswith("--")


def read_target(text: str) -> str:
    """Return the target that is written in a line; a list of names becomes a target of them all."""
    target = _unquote(text.strip()).strip()
    if target.startswith(("[", "(")) and target.endswith(("]", ")")):
        try:
            names = ast.literal_eval(target)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return target
        return ",".join(map(str, names)) if isinstance(names, (list, tuple)) else target
    return target


def remove_comment(line: str) -> str:
    """Return a line without a comment at its end."""
    for found in _WORD_PATTERN.finditer(line):
        if found[1].startswith("#"):
            return line[: found.start()]
    return line


def split_cell_line(parser: ArgumentParser, line: str) -> CodeLine:
    """Split the first line of a cell magic: all words that are not options are the target.

    Raises:
        UsageError: an option is unknown, or its value is invalid.
    """
    argv: list[str] = []
    words: list[str] = []
    rest = remove_comment(line)
    while rest.strip():
        more, rest = _split_options(parser, rest)
        argv += more
        if found := _WORD_PATTERN.match(rest):
            words.append(_unquote(found[1]))
            rest = rest[found.end() :]
    return CodeLine(parser.parse_args(argv), read_target(" ".join(words)), "")


class WordLine(NamedTuple):
    """A parsed line with words; ``target`` is empty if the line has no words."""

    options: Namespace
    target: str
    words: list[str]


def split_words(parser: ArgumentParser, line: str) -> WordLine:
    """Split a line that consists of a target and words; options may be anywhere.

    Raises:
        UsageError: an option is unknown, or its value is invalid.
    """
    argv, rest = _split_options(parser, remove_comment(line))
    found = _TARGET_PATTERN.match(rest)
    target = read_target(found[1]) if found else ""
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
    """Return whether ``word`` is an option whose value is the next word."""
    action = parser._option_string_actions.get(word)
    return action is not None and action.nargs != 0


def option_names(parser: ArgumentParser) -> list[str]:
    """Return all options of a magic."""
    return sorted(parser._option_string_actions)


def option_choices(parser: ArgumentParser, word: str) -> list[str]:
    """Return the possible values of an option; an empty list if they are not limited."""
    action = parser._option_string_actions.get(word)
    return list(getattr(action.type, "words", ())) if action is not None else []


def _split_options(
    parser: ArgumentParser, line: str, expand: Callable[[str], str] = lambda text: text
) -> tuple[list[str], str]:
    """Split off the options at the start of a line; return them for argparse, and the rest."""
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
        argv += _join_option(name, _unquote(expand(value))) if value else [name]
    return argv, line


def _join_option(name: str, value: str) -> Iterator[str]:
    """Join an option and its value, so that argparse cannot mistake the value for an option."""
    yield f"{name}={value}" if name.startswith("--") else f"{name}{value}"


def _check_option(parser: ArgumentParser, name: str) -> None:
    if name not in parser._option_string_actions:
        similar = nearest_name(name, option_names(parser))
        hint = f" Did you mean {similar}?" if similar else ""
        raise UsageError(f"There is no option {name}.{hint} `%{parser.prog}?` lists all options.")


def _unquote(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] in "'\"" and word[-1] == word[0] else word
