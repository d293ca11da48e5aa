"""Targets: "lab-*!lab-3 & platform=esp32" -> the boards it means. Pure: no I/O, never eval.

```
target  = term { ("," | "!" | "&") term }         a leading "!x" means "all!x"
term    = name | range | pattern | key "=" value | "all"
range   = a name with "[" numbers "]" in it        esp8266-0[08-11],wipy2-[1,3,7]
numbers = part { "," part }; a part is 7 or 1-40   zero padding is kept: 08-11
pattern = a name with "*" (any text) or "?" (one character) in it
value   = what a label or a fact is; it may be a pattern
```

A target is read from left to right. `,` joins. `!` takes away from everything before it. `&` keeps
what is in both, and binds tighter than `,`: it reaches back to the last `,` and no further. So
`a,b & c` is a, and b if it is in c; `a,b!c` has nothing of c; and `lab-*!lab-3 & platform=esp32` is
every ESP32 of the lab but lab-3. There are no parentheses.

Names and ranges mean enrolled boards, there or not. Patterns, labels, facts and `all` mean boards
that are there; `Resolution.left_out` tells who else matched.
"""

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

from .errors import NoSuchBoard, TargetError
from .names import FACT_NAMES as FACT_NAMES
from .names import MAX_NAMES as MAX_NAMES
from .names import NAME_PATTERN as NAME_PATTERN
from .names import check_chars, check_identifier, expand_range
from .names import check_label as check_label
from .names import check_name as check_name
from .text import fold_names as fold_names
from .text import natural_key as natural_key
from .text import nearest_name

MAX_TARGET_CHARS = 65_536  # characters: a list of 1,000 names of the greatest length fits
MAX_PATTERNS = 32  # each is tried on every board: 0.1 s for 10,000 boards

_MAX_TERM_CHARS = 160  # characters between two signs, but for a range: a key, "=", a pattern
_OPERATOR_PATTERN = re.compile(r"[][(){},!&]")
_UNPRINTABLE = re.compile(r"[^ -~\t\n]")
_ILLEGAL_IN_PATTERN = re.compile(r"[^A-Za-z0-9._*?-]")
_ILLEGAL_IN_CONDITION = re.compile(r"[][=\t\n]")
_ASCII_HINT = "Targets are written in ASCII; `?` and `*` stand for any other character."


class BoardView(Protocol):
    """What choosing needs to know of an enrolled board."""

    @property
    def online(self) -> bool:
        """Whether the board is there."""

    @property
    def labels(self) -> Mapping[str, str]:
        """What people attached to it."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What it is; the keys are FACT_NAMES."""


@dataclass(frozen=True)
class Resolution:
    """The boards that a target means now.

    Attributes:
        names: the boards to run on, also named ones that are not there. Names and ranges keep
            their written order; what a pattern matched is in natural order.
        left_out: boards that only a pattern, a label, a fact or `all` matched, and that are not
            there; in natural order.
    """

    names: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class NamedBoards:
    """A term that names its boards: one name, or a range expanded."""

    names: tuple[str, ...]

    def select_boards(self, boards: Mapping[str, BoardView]) -> dict[str, bool]:
        """Map each board to True: it was named.

        Raises:
            NoSuchBoard: some are not enrolled.
        """
        unknown = [name for name in self.names if name not in boards]
        if unknown:
            raise NoSuchBoard(unknown[0], nearest_name(unknown[0], boards), unknown[1:])
        return dict.fromkeys(self.names, True)

    def covers(self, name: str, board: BoardView) -> bool:
        """Say whether the board is one of these."""
        return name in self._name_set

    @cached_property
    def _name_set(self) -> frozenset[str]:
        return frozenset(self.names)


@dataclass(frozen=True)
class MatchingBoards:
    """A term that describes its boards, by name or by the label or fact called `key`."""

    pattern: str
    key: str | None = None

    def select_boards(self, boards: Mapping[str, BoardView]) -> dict[str, bool]:
        """Map each board to False: it was not named."""
        found = [name for name, board in boards.items() if self.covers(name, board)]
        return dict.fromkeys(sorted(found, key=natural_key), False)

    def covers(self, name: str, board: BoardView) -> bool:
        """Say whether the board is as described, there or not."""
        if self.key is None:
            return self._match(name) is not None
        pairs = board.facts if self.key in FACT_NAMES else board.labels
        return self.key in pairs and self._match(pairs[self.key]) is not None

    @cached_property
    def _match(self) -> Callable[[str], re.Match[str] | None]:
        return re.compile(fnmatch.translate(self.pattern)).match


@dataclass(frozen=True)
class Target:
    """A target that was read.

    Attributes:
        text: as it was written.
        steps: what to do, from left to right: a sign (`,` `!` `&`) and the term after it.
    """

    text: str
    steps: tuple[tuple[str, NamedBoards | MatchingBoards], ...]

    def resolve(self, boards: Mapping[str, BoardView]) -> Resolution:
        """Find the boards that this target means now.

        Args:
            boards: every enrolled board, by name.

        Raises:
            NoSuchBoard: a name, or one of a range, is not enrolled.
            TargetError: there is no board to run on.
        """
        found, seen = self._find_boards(boards)
        names = tuple(name for name, named in found.items() if named or boards[name].online)
        if not names:
            raise TargetError(*self._no_boards_error(len(boards), len(found), seen))
        away = [name for name, named in found.items() if not (named or boards[name].online)]
        return Resolution(names, tuple(sorted(away, key=natural_key)))

    def matching_names(self, boards: Mapping[str, BoardView]) -> list[str]:
        """Return the names of the boards that this target means, there or not; maybe none.

        Raises:
            NoSuchBoard: a name, or one of a range, is not enrolled.
        """
        return list(self._find_boards(boards)[0])

    def covers(self, name: str, board: BoardView) -> bool:
        """Say whether this target means the board, be it there or not, enrolled or not.

        Where ``resolve`` finds boards to run on, this bounds what somebody may reach: names
        that nobody has are no error, and ``state=offline`` means those that are offline.
        """
        before = since = False  # as in _found, for this board alone
        for sign, term in self.steps:
            picked = term.covers(name, board)
            if sign == "&":
                since = since and picked
            elif sign == "!":
                before, since = before and not picked, since and not picked
            else:
                before, since = before or since, picked
        return before or since

    def candidate_names(self, uid: str, fallback: str) -> Iterator[str]:
        """Yield names that a new board might get; ``covers`` has to judge each.

        Names and ranges stay as they are. The star of a pattern becomes ``uid``, and ``all``
        becomes ``fallback``.
        """
        for _, term in self.steps:
            if isinstance(term, NamedBoards):
                yield from term.names
            elif term.key is None and "?" not in term.pattern:
                yield fallback if term.pattern == "*" else term.pattern.replace("*", uid, 1)

    def _find_boards(self, boards: Mapping[str, BoardView]) -> tuple[dict[str, bool], bool]:
        """Take the steps: the boards with whether each was named, and whether any ever matched."""
        before: dict[str, bool] = {}  # what stands before the last ","
        since: dict[str, bool] = {}  # what stands after it: what "&" narrows
        seen = False
        for sign, term in self.steps:
            picked = term.select_boards(boards)
            if sign == "&":
                since = {n: named or picked[n] for n, named in since.items() if n in picked}
            elif sign == "!":
                for name in picked:
                    before.pop(name, None)
                    since.pop(name, None)
            else:
                _merge_boards(before, since)
                since, seen = picked, seen or bool(picked)
        _merge_boards(before, since)
        return before, seen

    def _no_boards_error(
        self, enrolled: int, found: int, any_matched: bool
    ) -> tuple[str, str, int, str]:
        hint = "`mbm board-list` shows every board, and who is there."
        if not enrolled:
            why = "No board is enrolled yet."
            hint = "Enrol one with `mbm board-enrol`, or make some with `mbm simulate 3`."
        elif found:
            why = f"None of the boards that match ({found}) is connected."
        else:
            why = "All that matched is taken away again." if any_matched else "No board matches."
        return why, self.text, 0, hint


@lru_cache(maxsize=64)  # the same target is often used again; 64 of the longest are 4 MB
def parse_target(text: str) -> Target:
    """Read a target.

    Args:
        text: as a person wrote it; see the grammar above.

    Raises:
        TargetError: it is malformed; the error points at the place.
    """
    _check_text(text)
    steps: list[tuple[str, NamedBoards | MatchingBoards]] = []
    names = patterns = 0
    for sign, start, end in _split_terms(text):
        term = _parse_term(text, start, end, MAX_NAMES - names)
        if isinstance(term, NamedBoards):
            names += len(term.names)
        else:
            patterns += 1
        if patterns > MAX_PATTERNS:
            raise TargetError("Too many patterns.", text, start, "Write names, or ranges.")
        steps.append((sign, term))
    return Target(text, tuple(steps))


def _check_text(text: str) -> None:
    if len(text) > MAX_TARGET_CHARS:
        why = f"A target of {len(text):,} characters is too long."
        raise TargetError(
            why, text, MAX_TARGET_CHARS, "Write ranges such as demo-[1-400], or a label."
        )
    if not text.strip():
        raise TargetError("The target is empty.", text, 0, "Write a board's name, or `all`.")
    check_chars(_UNPRINTABLE, text, text, 0, _ASCII_HINT)


def _split_terms(text: str) -> Iterator[tuple[str, int, int]]:
    """Cut at the signs outside of brackets: each sign with the start and end of what follows."""
    sign, start, opened = ",", 0, -1
    for found in _OPERATOR_PATTERN.finditer(text):
        char, at = found[0], found.start()
        if char in "(){}":
            hint = "Ranges are written in [ ]; in a value, `?` stands for any character."
            raise TargetError(f"{char!r} means nothing in a target.", text, at, hint)
        if (char == "[") == (opened >= 0) and char in "[]":
            why = "A bracket in a bracket." if char == "[" else "This bracket was never opened."
            raise TargetError(why, text, at, "Write a range as demo-[1-3,5].")
        if char in "[]":
            opened = at if char == "[" else -1
        elif opened < 0:
            yield sign, start, at
            sign, start = char, at + 1
    if opened >= 0:
        why = "This bracket is never closed."
        raise TargetError(why, text, opened, "Write a range as demo-[1-3,5].")
    yield sign, start, len(text)


def _parse_term(text: str, start: int, end: int, max_names: int) -> NamedBoards | MatchingBoards:
    word = text[start:end].strip()
    at = text.find(word, start)
    if not word and start == 0 and text[end : end + 1] == "!":
        return MatchingBoards("*")
    if not word:
        hint = "Write a name on both sides of `,` and `&`, and after `!`."
        raise TargetError("A name is missing.", text, end, hint)
    if len(word) > _MAX_TERM_CHARS and "[" not in word:
        raise TargetError("This is too long.", text, at, "`*` stands for any number of characters.")
    if "=" in word:
        return _parse_condition(word, text, at)
    if "[" in word:
        return NamedBoards(expand_range(word, text, at, max_names))
    if "*" in word or "?" in word:
        check_chars(
            _ILLEGAL_IN_PATTERN, word, text, at, "A pattern is a name with `*` or `?` in it."
        )
        return MatchingBoards(word)
    return (
        MatchingBoards("*") if word == "all" else NamedBoards((check_identifier(word, text, at),))
    )


def _parse_condition(word: str, text: str, position: int) -> MatchingBoards:
    key, _, value = word.partition("=")
    check_identifier(key.rstrip(), text, position)
    start = position + len(key) + 1
    if not value.strip():
        raise TargetError("The value is missing.", text, start, "Write `*` for any value.")
    check_chars(
        _ILLEGAL_IN_CONDITION, value, text, start, "A value is plain words; `*` is any text."
    )
    return MatchingBoards(value.strip(), key.rstrip())


def _merge_boards(boards: dict[str, bool], more: Mapping[str, bool]) -> None:
    """Add boards; one that was named in either place counts as named."""
    for name, named in more.items():
        boards[name] = named or boards.get(name, False)
