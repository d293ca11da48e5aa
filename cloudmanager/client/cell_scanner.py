"""Finds out what a cell contains from its tokens, if Python here cannot parse it. No I/O.

Boards accept code that this Python refuses: f-strings with nested quotes (Python 3.12), t-strings
(3.14), deep nesting, a keyword argument twice, identifiers of any non-ASCII characters, whatever a
later MicroPython adds. So this looks at lines, brackets, strings and a few keywords, and never
fails; whether the code is valid is decided on the board.
"""

from __future__ import annotations

import bisect
import keyword
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Final, NamedTuple

Position = tuple[int, int]  # line, and byte of the line in UTF-8, both from 0

# fmt: off
_COMPOUND: Final = frozenset((
    "if", "elif", "else", "for", "while", "with", "try", "except", "finally", "def", "class",
    "async", "@",
))
_SIMPLE: Final = frozenset((
    "pass", "break", "continue", "return", "raise", "global", "nonlocal", "import", "from", "del",
    "assert",
))
# fmt: on
_TOKEN: Final = re.compile(
    r"""
      (?P<space>[ \t\f]+|\\\n|\#[^\n]*)
    | (?P<newline>\n)
    | (?P<string>(?:[rRbBuUfFtT]{0,2})(?:\"{3}|'{3}|\"|'))
    | (?P<name>(?:[^\W\d]|[^\x00-\x7f])(?:\w|[^\x00-\x7f])*)
    | (?P<number>\.?\d[\w.]*)
    | (?P<operator>(?:\*\*|//|>>|<<|[-+*/%@&|^:!=<>])=|->|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_NOT_ASSIGNMENTS: Final = frozenset((":=", "==", "!=", "<=", ">="))
_TAB_COLUMNS: Final = 8


class Token(NamedTuple):
    """A name, number, string or operator: its text, and its range in the cell, in characters.

    Attributes:
        depth: how many brackets are open around it.
    """

    kind: str
    text: str
    start: int
    end: int
    depth: int


class LogicalLine(NamedTuple):
    """The tokens of a statement, or of several with semicolons, and the width of its indent."""

    indent: int
    tokens: list[Token]

    @property
    def is_compound(self) -> bool:
        """Whether it begins a statement with a block, such as ``if`` or a decorator."""
        first, last = self.tokens[0].text, self.tokens[-1].text
        return first in _COMPOUND or (first == "match" and last == ":" and len(self.tokens) > 2)

    @property
    def defined_name(self) -> str:
        """The name of the function or class that it defines; "" for none."""
        words = [token.text for token in self.tokens[:3]]
        words = words[words[:1] == ["async"] :]
        return words[1] if len(words) > 1 and words[0] in ("def", "class") else ""

    @property
    def defines_function(self) -> bool:
        """Whether it begins a function."""
        return bool(self.defined_name) and self.tokens[0].text != "class"


class ScannedSyntax:
    """What a cell contains, as far as its tokens show; see ``cell_syntax.Syntax``."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lines = list(_logical_lines(source))
        self._line_starts = [0, *(found.end() for found in re.finditer("\n", source))]

    @cached_property
    def awaits(self) -> bool:
        """Whether the cell awaits outside of its functions."""
        tokens = self._tokens_outside_functions
        return any(
            token.text == "await" or (token.text == "async" and following.text in ("for", "with"))
            for token, following in zip(tokens, [*tokens[1:], *tokens[-1:]], strict=True)
        )

    @cached_property
    def leaves(self) -> bool:
        """Whether it has a ``return`` or ``yield`` outside of its functions."""
        return any(each.text in ("return", "yield") for each in self._tokens_outside_functions)

    def value_span(self) -> tuple[Position, Position] | None:
        """Return start and end of the trailing expression; None if its value is not wanted."""
        if not self._lines or self._lines[-1].indent or self._lines[-1].is_compound:
            return None
        statement: list[Token] = []
        for token in self._lines[-1].tokens:
            if token.text == ";" and not token.depth:
                statement = []
            else:
                statement.append(token)
        if not statement or not _is_expression(statement):
            return None
        return self._position(statement[0].start), self._position(statement[-1].end)

    def lines_inside_strings(self) -> set[int]:
        """Return the lines, from 0, that begin inside a string."""
        return {
            number
            for line in self._lines
            for token in line.tokens
            if token.kind == "string"
            for number in range(
                self._position(token.start)[0] + 1, self._position(token.end)[0] + 1
            )
        }

    def bound_names(self) -> set[str]:
        """Return all names outside of functions: it does no harm to make others global, too."""
        names: set[str] = set()
        previous = ""
        for token in self._tokens_outside_functions:
            if token.kind == "name" and previous != "." and not keyword.iskeyword(token.text):
                names.add(token.text)
            previous = token.text
        return names

    def star_import(self) -> Position | None:
        """Return the position of ``from … import *``; None if there is none."""
        for line in self._lines:
            words = [token.text for token in line.tokens]
            if words[0] == "from" and words[-2:] == ["import", "*"]:
                return self._position(line.tokens[0].start)
        return None

    def begins_with_block(self) -> bool:
        """Return whether the first statement has a block."""
        return bool(self._lines) and self._lines[0].is_compound

    def definition_lines(self) -> set[tuple[str, int]]:
        """Return (name, line) for each line, from 1, of the functions and classes."""
        found: set[tuple[str, int]] = set()
        for index, line in enumerate(self._lines):
            if name := line.defined_name:
                block = [line, *self._block_below(index)]
                first = self._position(line.tokens[0].start)[0]
                last = self._position(block[-1].tokens[-1].end)[0]
                found |= {(name, number + 1) for number in range(first, last + 1)}
        return found

    def _block_below(self, index: int) -> Iterator[LogicalLine]:
        for line in self._lines[index + 1 :]:
            if line.indent <= self._lines[index].indent:
                return
            yield line

    @cached_property
    def _tokens_outside_functions(self) -> list[Token]:
        tokens: list[Token] = []
        function_indent: int | None = None  # of the function that a line is in
        for line in self._lines:
            if function_indent is not None and line.indent > function_indent:
                continue
            function_indent = line.indent if line.defines_function else None
            tokens += _head(line.tokens) if line.defines_function else line.tokens
        return tokens

    def _position(self, offset: int) -> Position:
        """Return the line and byte of a character."""
        line = bisect.bisect_right(self._line_starts, offset) - 1
        return line, len(self._source[self._line_starts[line] : offset].encode())


def _head(tokens: list[Token]) -> list[Token]:
    """Return the tokens of a function up to its body, which may be in the same line."""
    for index, token in enumerate(tokens):
        if token.text == ":" and not token.depth:
            return tokens[:index]
    return tokens


def _is_expression(tokens: list[Token]) -> bool:
    """Return whether a simple statement is an expression: no keyword and no assignment."""
    if tokens[0].text in _SIMPLE:
        return False
    open_lambdas = 0  # whose colon has not come yet
    for token in tokens:
        if token.depth:
            continue
        if token.text == "lambda":
            open_lambdas += 1
        elif token.text == ":" and open_lambdas:
            open_lambdas -= 1
        elif token.kind == "operator" and not open_lambdas:
            is_assignment = token.text.endswith("=") and token.text not in _NOT_ASSIGNMENTS
            if is_assignment or token.text == ":":
                return False
    return True


def _logical_lines(source: str) -> Iterator[LogicalLine]:
    tokens: list[Token] = []
    for token in _scan(source):
        if token.kind != "newline":
            tokens.append(token)
        elif not token.depth and tokens:
            yield LogicalLine(_indent(source, tokens[0].start), tokens)
            tokens = []
    if tokens:
        yield LogicalLine(_indent(source, tokens[0].start), tokens)


def _indent(source: str, offset: int) -> int:
    """Return the width of the space before a token at the start of a line."""
    space = source[source.rfind("\n", 0, offset) + 1 : offset]
    return len(space.replace("\f", "").expandtabs(_TAB_COLUMNS))


def _scan(source: str) -> Iterator[Token]:
    """Yield the tokens and newlines of a cell."""
    offset = depth = 0
    while found := _TOKEN.match(source, offset):
        kind, text, end = found.lastgroup or "", found[0], found.end()
        if kind == "string":
            end = _string_end(source, offset, end)
            text = source[offset:end]
        depth -= text in (")", "]", "}") and depth > 0
        if kind != "space":
            yield Token(kind, text, offset, end, depth)
        depth += text in ("(", "[", "{")
        offset = end


def _string_end(source: str, start: int, offset: int) -> int:
    """Return where a string ends whose prefix and quotes are at ``start`` to ``offset``."""
    opening = source[start:offset]
    quotes = opening.lstrip("rRbBuUfFtT")
    prefix = opening[: -len(quotes)].lower()
    formatted = "f" in prefix or "t" in prefix
    while offset < len(source):
        if source.startswith(quotes, offset):
            return offset + len(quotes)
        if source[offset] == "\\":
            offset += 2
        elif source[offset] == "\n" and len(quotes) == 1:
            return offset  # unterminated
        elif formatted and source.startswith("{{", offset):
            offset += 2
        elif formatted and source[offset] == "{":
            offset = _replacement_end(source, offset + 1)
        else:
            offset += 1
    return len(source)


def _replacement_end(source: str, offset: int) -> int:
    """Return where a replacement field of an f-string ends, after its brace.

    Its format may contain fields again; quotes in the format are those of the string.
    """
    depth = 0
    while found := _TOKEN.match(source, offset):
        kind, text, end = found.lastgroup, found[0], found.end()
        if kind == "string":
            end = _string_end(source, offset, end)
        elif text == ":" and not depth:
            return _format_end(source, end)
        elif text == "}" and not depth:
            return end
        depth += (text in ("(", "[", "{")) - (text in (")", "]", "}"))
        offset = end
    return len(source)


def _format_end(source: str, offset: int) -> int:
    """Return where the format of a replacement field ends, after the field's brace."""
    while offset < len(source) and source[offset] not in "}\n":
        in_field = source[offset] == "{"
        offset = _replacement_end(source, offset + 1) if in_field else offset + 1
    return min(offset + 1, len(source))
