"""Names of boards, labels and packages; ranges of names: "lab-[08-11]" -> four names.

No I/O here. What is not valid in a target raises a TargetError that points at the place.
"""

import re
from collections.abc import Collection
from itertools import product
from math import prod

from .errors import PackageError, TargetError
from .facts import FACT_NAMES

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a board; use fullmatch
MAX_NAME_CHARS = 64  # characters of a name, a pattern, and a label's key and value
MAX_NAMES = 100_000  # in one target, ranges expanded: ten full servers, a few MB

_NAME_HINT = "A name is 1 to 64 of A-Z a-z 0-9 - _ . and starts with a letter or a digit."
_RANGE_HINT = "Write numbers in the brackets, such as [1-3] or [1,3,7]."
_ILLEGAL_IN_NAME = re.compile(r"[^A-Za-z0-9._-]")
_ILLEGAL_IN_VALUE = re.compile(r"[^ -~]|[][(){},!&=*?]")  # unprintable, or has a meaning in targets
#: Of a range: a bracket, or the text between two brackets.
_PIECE_PATTERN = re.compile(r"\[([^]]*)]|[^[]+")
_PART_PATTERN = re.compile(r"\s*([0-9]{1,64})\s*(?:-\s*([0-9]{1,64})\s*)?")

#: A parsed bracket: the bounds of each of its parts, as written; the bounds of "7" are 7 and 7.
_Bracket = list[tuple[str, str]]


def check_name(name: str) -> str:
    """Return ``name`` if a board may have it.

    Raises:
        TargetError: it has an invalid character, is too long or empty, or is `all`.
    """
    if name == "all":
        raise TargetError("`all` means every board.", name, 0, "Choose another name.")
    return check_identifier(name, name, 0)


def find_installed(name: str, packages: Collection[str]) -> str:
    """Return the full name of an installed package, given its full name or the end of it.

    People call `pypi:micropython-logging` just `logging`, or `micropython-logging`.

    Raises:
        PackageError: no package of the board matches, or several do; the message lists all.
    """
    short = name.removeprefix("micropython-")
    ends = (f":{short}", f"/{short}", f"-{short}")
    matches = [name] if name in packages else [key for key in packages if key.endswith(ends)]
    if len(matches) == 1:
        return matches[0]
    installed = f"the board has {', '.join(sorted(packages))}" if packages else "the board has none"
    raise PackageError(f"no package is called {name}: {installed}")


def check_label(key: str, value: str) -> None:
    """Refuse a label with an invalid key or value.

    Raises:
        TargetError: the key is not a name, or the name of a fact; the value is empty, too long,
            or has a character with a meaning in targets.
    """
    text = f"{key}={value}"
    check_identifier(key, text, 0)
    if key in FACT_NAMES:
        raise TargetError(f"{key!r} is a fact.", text, 0, "Choose another key for the label.")
    check_chars(_ILLEGAL_IN_VALUE, value, text, len(key) + 1, "Write plain text, such as bay 7.")
    if value != value.strip() or not 1 <= len(value) <= MAX_NAME_CHARS:
        hint = "A value has 1 to 64 characters, and no space at either end."
        raise TargetError("The label's value is empty, padded or too long.", text, len(key), hint)


def check_identifier(word: str, text: str, position: int) -> str:
    """Return ``word``, which starts at ``position`` in ``text``, if it is a valid name.

    Raises:
        TargetError: it is not.
    """
    check_chars(_ILLEGAL_IN_NAME, word, text, position, _NAME_HINT)
    if not NAME_PATTERN.fullmatch(word):
        raise TargetError(
            f"{word[:MAX_NAME_CHARS]!r} is not a valid name.", text, position, _NAME_HINT
        )
    return word


def check_chars(illegal: re.Pattern[str], word: str, text: str, position: int, hint: str) -> None:
    """Raise a TargetError that points at the first invalid character of a word, if any."""
    if found := illegal.search(word):
        raise TargetError(
            f"{found[0]!r} is not allowed here.", text, position + found.start(), hint
        )


def expand_range(
    word: str, text: str, position: int, max_names: int = MAX_NAMES
) -> tuple[str, ...]:
    """Return the names of a range, in written order, without duplicates.

    Args:
        word: the range; its brackets are closed and not nested.
        text: the whole target.
        position: index in ``text`` at which the range starts.
        max_names: how many names it may have; computed before the names are generated.

    Raises:
        TargetError: it is malformed, or has too many names.
    """
    pieces = [
        _parse_piece(found, text, position + found.start())
        for found in _PIECE_PATTERN.finditer(word)
    ]
    if sum(_max_chars(piece) for piece in pieces) > MAX_NAME_CHARS:
        raise TargetError("The names of this range are too long.", text, position, _NAME_HINT)
    count = prod(_count_names(piece) for piece in pieces)
    if _is_over_limit(count, max_names):
        hint = f"A target can have {MAX_NAMES:,} names; write a pattern, a label or `all`."
        raise TargetError(
            f"This range has {count:,} names; {max_names:,} are still allowed.",
            text,
            position,
            hint,
        )
    names = dict.fromkeys("".join(parts) for parts in product(*map(_piece_texts, pieces)))
    check_identifier(next(iter(names)), text, position)
    return tuple(names)


def _parse_piece(found: re.Match[str], text: str, position: int) -> str | _Bracket:
    if found[1] is None:
        check_chars(_ILLEGAL_IN_NAME, found[0], text, position, "Only numbers can vary in a range.")
        return found[0]
    bracket = []
    for part in found[1].split(","):
        position += 1  # skip the bracket or the comma
        bracket.append(_parse_bounds(part, text, position))
        position += len(part)
    return bracket


def _parse_bounds(part: str, text: str, position: int) -> tuple[str, str]:
    found = _PART_PATTERN.fullmatch(part)
    if not found:
        raise TargetError("This is not a range of numbers.", text, position, _RANGE_HINT)
    low, high = found[1], found[2] or found[1]
    if int(low) > int(high):
        hint = f"Write the smaller number first: {high}-{low}."
        raise TargetError("The range is in descending order.", text, position, hint)
    padded = len(low) > 1 and low[0] == "0" or len(high) > 1 and high[0] == "0"
    if padded and len(low) != len(high):
        example = f"{low.zfill(len(high))}-{high.zfill(len(low))}"
        hint = f"Write both with the same number of digits: {example}."
        raise TargetError("The bounds of the range differ in width.", text, position, hint)
    return low, high


def _is_over_limit(count: int, max_names: int) -> bool:
    return count > max_names


def _count_names(piece: str | _Bracket) -> int:
    return 1 if isinstance(piece, str) else sum(int(high) - int(low) + 1 for low, high in piece)


def _max_chars(piece: str | _Bracket) -> int:
    return len(piece) if isinstance(piece, str) else max(len(high) for _, high in piece)


def _piece_texts(piece: str | _Bracket) -> list[str]:
    if isinstance(piece, str):
        return [piece]
    texts: list[str] = []
    for low, high in piece:
        numbers = range(int(low), int(high) + 1)
        texts += [str(number).zfill(len(low)) for number in numbers]
    return texts
