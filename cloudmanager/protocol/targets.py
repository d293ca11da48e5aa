"""Targets: "lab-*!lab-3 & platform=esp32" -> the boards it selects. No I/O here, and no eval.

```
target  = term { ("," | "!" | "&") term }         a leading "!x" means "all!x"
term    = name | range | pattern | key "=" value | "all"
range   = a name with "[" numbers "]" in it        esp8266-0[08-11],wipy2-[1,3,7]
numbers = part { "," part }; a part is 7 or 1-40   zero padding is kept: 08-11
pattern = a name with "*" (any text) or "?" (one character) in it
value   = the value of a label or a fact; it may be a pattern
```

A target is read from left to right. `,` is the union. `!` removes boards from everything before
it. `&` is the intersection, and binds tighter than `,`: it applies to what follows the last `,`. So
`a,b & c` is a, and b if it is in c; `a,b!c` has no board of c; and `lab-*!lab-3 & platform=esp32`
is every ESP32 of the lab except lab-3. There are no parentheses.

Names and ranges select enrolled boards, connected or not. Patterns, labels, facts and `all` select
connected boards; `Resolution.left_out` has the others that match.
"""

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, Protocol

from .errors import NoSuchBoard, TargetError
from .facts import FACT_NAMES
from .names import MAX_NAMES as MAX_NAMES
from .names import NAME_PATTERN as NAME_PATTERN
from .names import check_chars, check_identifier, expand_range
from .names import check_label as check_label
from .names import check_name as check_name
from .text import fold_names as fold_names
from .text import natural_key as natural_key
from .text import nearest_name

ALL = "all"  # the target of all boards
MAX_TARGET_CHARS = 65_536  # characters: 1,000 names of the greatest length fit
MAX_PATTERNS = 32  # each is matched against every board: 0.1 s for 10,000 boards

_MAX_TERM_CHARS = 160  # characters between two operators, except in a range: key, "=", pattern
_OPERATOR_PATTERN = re.compile(r"[][(){},!&]")
_UNPRINTABLE = re.compile(r"[^ -~\t\n]")
_ILLEGAL_IN_PATTERN = re.compile(r"[^A-Za-z0-9._*?-]")
_ILLEGAL_IN_CONDITION = re.compile(r"[][=\t\n]")
_ASCII_HINT = "Targets are written in ASCII; use `?` and `*` for other characters."


class BoardView(Protocol):
    """The properties of an enrolled board that a target can refer to."""

    @property
    def online(self) -> bool:
        """Whether the board is connected."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels that people gave it."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Its facts; the keys are FACT_NAMES."""


@dataclass(frozen=True)
class Resolution:
    """The boards that a target selects now.

    Attributes:
        names: the boards to run on, including named ones that are not connected. Names and ranges
            keep their written order; matches of a pattern are in natural order.
        left_out: boards that are not connected, and that only a pattern, a label, a fact or `all`
            matched; in natural order.
    """

    names: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class NamedBoards:
    """A term that names its boards: one name, or a range expanded."""

    names: tuple[str, ...]

    def select_boards(self, boards: Mapping[str, BoardView]) -> dict[str, bool]:
        """Return the named boards, each with True for "named".

        Raises:
            NoSuchBoard: some are not enrolled.
        """
        unknown = [name for name in self.names if name not in boards]
        if unknown:
            # A range of which some names exist is not misspelled, but too long.
            is_too_long = len(unknown) < len(self.names)
            nearest = None if is_too_long else nearest_name(unknown[0], boards)
            raise NoSuchBoard(unknown[0], nearest, unknown[1:])
        return dict.fromkeys(self.names, True)

    def covers(self, name: str, board: BoardView) -> bool:
        """Return whether the board is one of these."""
        return name in self._name_set

    @cached_property
    def _name_set(self) -> frozenset[str]:
        return frozenset(self.names)


@dataclass(frozen=True)
class MatchingBoards:
    """A term that matches names, or values of the label or fact called `key`, with a pattern."""

    pattern: str
    key: str | None = None

    def select_boards(self, boards: Mapping[str, BoardView]) -> dict[str, bool]:
        """Return the matching boards, each with False for "not named"."""
        matches = [name for name, board in boards.items() if self.covers(name, board)]
        return dict.fromkeys(sorted(matches, key=natural_key), False)

    def covers(self, name: str, board: BoardView) -> bool:
        """Return whether the board matches, connected or not."""
        if self.key is None:
            return self._match(name) is not None
        pairs = board.facts if self.key in FACT_NAMES else board.labels
        return self.key in pairs and self._match(pairs[self.key]) is not None

    @cached_property
    def _match(self) -> Callable[[str], re.Match[str] | None]:
        return re.compile(fnmatch.translate(self.pattern)).match


@dataclass(frozen=True)
class Target:
    """A parsed target.

    Attributes:
        text: as it was written.
        steps: the terms from left to right, each with the operator before it (`,` `!` `&`).
    """

    text: str
    steps: tuple[tuple[str, NamedBoards | MatchingBoards], ...]

    @property
    def condition_keys(self) -> frozenset[str]:
        """The labels and facts that it selects by."""
        keys = (term.key for _, term in self.steps if isinstance(term, MatchingBoards))
        return frozenset(key for key in keys if key is not None)

    @property
    def only_names(self) -> bool:
        """Whether it only names boards: what it selects depends on nothing but their names."""
        return all(isinstance(term, NamedBoards) for _, term in self.steps)

    def resolve(self, boards: Mapping[str, BoardView]) -> Resolution:
        """Return the boards that this target selects now.

        Args:
            boards: every enrolled board, by name.

        Raises:
            NoSuchBoard: a name, or one of a range, is not enrolled.
            TargetError: no board is selected.
        """
        found, any_matched = self._find_boards(boards)
        selected = []
        left_out = []
        for name, named in found.items():
            if named or boards[name].online:
                selected.append(name)
            else:
                left_out.append(name)
        if not selected:
            raise TargetError(*self._no_boards_error(len(boards), len(found), any_matched))
        return Resolution(tuple(selected), tuple(sorted(left_out, key=natural_key)))

    def matching_names(self, boards: Mapping[str, BoardView]) -> list[str]:
        """Return the names of the boards that match, connected or not; may be empty.

        Raises:
            NoSuchBoard: a name, or one of a range, is not enrolled.
        """
        return list(self._find_boards(boards)[0])

    def listed_names(self, boards: Mapping[str, BoardView]) -> list[str]:
        """Return the names of the boards that match, connected or not, for a list of boards.

        Raises:
            NoSuchBoard: a name, or one of a range, is not enrolled.
            TargetError: no board matches.
        """
        found, any_matched = self._find_boards(boards)
        if not found:
            raise TargetError(*self._no_boards_error(len(boards), 0, any_matched))
        return list(found)

    def covers(self, name: str, board: BoardView) -> bool:
        """Return whether the target matches one board, connected or not, enrolled or not.

        ``resolve`` selects boards to run on; this is for access rights and enrolment: names that
        no board has are not an error, and ``state=offline`` matches boards that are offline.
        """
        before_comma = after_comma = False  # as in _find_boards, for this board only
        for operator, term in self.steps:
            matches = term.covers(name, board)
            if operator == "&":
                after_comma = after_comma and matches
            elif operator == "!":
                before_comma = before_comma and not matches
                after_comma = after_comma and not matches
            else:
                before_comma = before_comma or after_comma
                after_comma = matches
        return before_comma or after_comma

    def candidate_names(self, uid: str, fallback: str) -> Iterator[str]:
        """Yield names that a new board could get; the caller must check each with ``covers``.

        Names and ranges are yielded as written. In a pattern, ``*`` is replaced by ``uid``; ``all``
        yields ``fallback``.
        """
        for _, term in self.steps:
            if isinstance(term, NamedBoards):
                yield from term.names
            elif term.key is None and "?" not in term.pattern:
                yield fallback if term.pattern == "*" else term.pattern.replace("*", uid, 1)

    def _find_boards(self, boards: Mapping[str, BoardView]) -> tuple[dict[str, bool], bool]:
        """Evaluate the steps.

        Returns:
            The boards, each with whether it was named; and whether any term matched a board, even
            if ``!`` removed it again.
        """
        before_comma: dict[str, bool] = {}
        after_comma: dict[str, bool] = {}  # what "&" applies to
        any_matched = False
        for operator, term in self.steps:
            matches = term.select_boards(boards)
            if operator == "&":
                after_comma = {
                    name: named or matches[name]
                    for name, named in after_comma.items()
                    if name in matches
                }
            elif operator == "!":
                for name in matches:
                    before_comma.pop(name, None)
                    after_comma.pop(name, None)
            else:
                _merge_boards(before_comma, after_comma)
                after_comma = matches
                any_matched = any_matched or bool(matches)
        _merge_boards(before_comma, after_comma)
        return before_comma, any_matched

    def _no_boards_error(
        self, enrolled: int, found: int, any_matched: bool
    ) -> tuple[str, str, int, str]:
        hint = "`mbm board-list` shows every board, and whether it is connected."
        if not enrolled:
            why = "No board is enrolled yet."
            hint = "Enrol one with `mbm board-enrol`, or make some with `mbm simulate 3`."
        elif found:
            why = f"None of the boards that match ({found}) is connected."
        else:
            why = "`!` removes all boards that match." if any_matched else "No board matches."
        return why, self.text, 0, hint


def parse_target(text: str) -> Target:
    """Parse a target; the same one is often used again.

    Args:
        text: as a person wrote it; see the grammar above.

    Raises:
        TargetError: it is malformed; the message points at the place.
    """
    if len(text) <= _SHORT_CHARS and "[" not in text:
        return _parse_short(text)
    return _parse_long(text)


def _parse(text: str) -> Target:
    _check_text(text)
    steps: list[tuple[str, NamedBoards | MatchingBoards]] = []
    names = patterns = 0
    for operator, start, end in _split_terms(text):
        term = _parse_term(text, start, end, MAX_NAMES - names)
        if isinstance(term, NamedBoards):
            names += len(term.names)
        else:
            patterns += 1
        if patterns > MAX_PATTERNS:
            raise TargetError("Too many patterns.", text, start, "Write names, or ranges.")
        steps.append((operator, term))
    return Target(text, tuple(steps))


_SHORT_CHARS: Final = 64  # of a target that is a name, or a few
_parse_short = lru_cache(maxsize=1024)(_parse)  # programs use board after board; 1 KB each
_parse_long = lru_cache(maxsize=64)(_parse)  # 64 of the longest are 4 MB


def _check_text(text: str) -> None:
    if len(text) > MAX_TARGET_CHARS:
        why = f"A target of {len(text):,} characters is too long."
        raise TargetError(
            why,
            text[: MAX_TARGET_CHARS + 1],
            MAX_TARGET_CHARS,
            "Write ranges such as demo-[1-400], or a label.",
        )
    if not text.strip():
        raise TargetError("The target is empty.", text, 0, "Write a board's name, or `all`.")
    check_chars(_UNPRINTABLE, text, text, 0, _ASCII_HINT)


def _split_terms(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the operators outside of brackets, each with the start and end of its term."""
    operator, start = ",", 0
    opened = -1  # index of the open bracket
    for found in _OPERATOR_PATTERN.finditer(text):
        char, at = found[0], found.start()
        if char in "(){}":
            hint = "Ranges are written in [ ]; in a value, `?` matches any character."
            raise TargetError(f"{char!r} has no meaning in a target.", text, at, hint)
        if (char == "[") == (opened >= 0) and char in "[]":
            why = "Brackets cannot be nested." if char == "[" else "This bracket was never opened."
            raise TargetError(why, text, at, "Write a range as demo-[1-3,5].")
        if char in "[]":
            opened = at if char == "[" else -1
        elif opened < 0:
            yield operator, start, at
            operator, start = char, at + 1
    if opened >= 0:
        why = "This bracket is not closed."
        raise TargetError(why, text, opened, "Write a range as demo-[1-3,5].")
    yield operator, start, len(text)


def _parse_term(text: str, start: int, end: int, max_names: int) -> NamedBoards | MatchingBoards:
    word = text[start:end].strip()
    at = text.find(word, start)
    if not word and start == 0 and text[end : end + 1] == "!":
        return MatchingBoards("*")
    if not word:
        hint = "Write a name on both sides of `,` and `&`, and after `!`."
        raise TargetError("A name is missing.", text, end, hint)
    if len(word) > _MAX_TERM_CHARS and "[" not in word:
        raise TargetError(
            "This name is too long.", text, at, "`*` matches any number of characters."
        )
    if "=" in word:
        return _parse_condition(word, text, at)
    if "[" in word:
        return NamedBoards(expand_range(word, text, at, max_names))
    if "*" in word or "?" in word:
        check_chars(
            _ILLEGAL_IN_PATTERN, word, text, at, "A pattern is a name with `*` or `?` in it."
        )
        return MatchingBoards(word)
    return MatchingBoards("*") if word == ALL else NamedBoards((check_identifier(word, text, at),))


def target_text(target: str) -> str:
    """Return a target as part of a sentence: "all boards" for all, others as they are written."""
    return "all boards" if target == ALL else target


def _parse_condition(word: str, text: str, position: int) -> MatchingBoards:
    key, _, value = word.partition("=")
    check_identifier(key.rstrip(), text, position)
    start = position + len(key) + 1
    if not value.strip():
        raise TargetError("The value is missing.", text, start, "Write `*` for any value.")
    check_chars(
        _ILLEGAL_IN_CONDITION, value, text, start, "A value is plain text; `*` matches any text."
    )
    return MatchingBoards(value.strip(), key.rstrip())


def _merge_boards(boards: dict[str, bool], more: Mapping[str, bool]) -> None:
    """Add boards; one that is named in either of the two counts as named."""
    for name, named in more.items():
        boards[name] = named or boards.get(name, False)
