"""What boards, labels and packages are called; ranges of names: "lab-[08-11]" -> four names.

Pure: no I/O. What is not plainly legal in a target is a TargetError that points at the place.
"""

import re
from collections.abc import Collection
from itertools import product
from math import prod

from .errors import PackageError, TargetError

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a board; matched whole
FACT_NAMES = ("state", "platform", "version", "mpy", "machine", "client")  # not for labels
MAX_NAME_CHARS = 64  # characters of a name, a pattern, a key and a label's value
MAX_NAMES = 100_000  # of one target, ranges expanded: ten full servers; a few MB

_NAME_HINT = "A name is 1 to 64 of A-Z a-z 0-9 - _ . and starts with a letter or a digit."
_RANGE_HINT = "Write numbers in the brackets, such as [1-3] or [1,3,7]."
_ILLEGAL_IN_NAME = re.compile(r"[^A-Za-z0-9._-]")
_ILLEGAL_IN_VALUE = re.compile(r"[^ -~]|[][(){},!&=*?]")  # unprintable, or a sign of a target
_PIECE_PATTERN = re.compile(
    r"\[([^]]*)]|[^[]+"
)  # of a range: a bracket, or what stands between two
_PART_PATTERN = re.compile(r"\s*([0-9]{1,64})\s*(?:-\s*([0-9]{1,64})\s*)?")


# A bracket, as written: the ends of each of its parts; 7 has the ends 7 and 7.
_Bracket = list[tuple[str, str]]


def check_name(name: str) -> str:
    """Return a board's name, if it may be one.

    Raises:
        TargetError: it has an illegal character, is too long or empty, or is `all`.
    """
    if name == "all":
        raise TargetError("`all` means every board.", name, 0, "Choose another name.")
    return check_identifier(name, name, 0)


def find_installed(name: str, packages: Collection[str]) -> str:
    """Return which of a board's packages is meant: its whole name, or the end of one alone.

    That is how people call `pypi:micropython-logging`: with or without what stands before it.

    Raises:
        PackageError: none is, or several could be; both say what there is.
    """
    short = name.removeprefix("micropython-")
    ends = (f":{short}", f"/{short}", f"-{short}")
    found = [name] if name in packages else [key for key in packages if key.endswith(ends)]
    if len(found) == 1:
        return found[0]
    there = f"the board has {', '.join(sorted(packages))}" if packages else "the board has none"
    raise PackageError(f"no package is called {name}: {there}")


def check_label(key: str, value: str) -> None:
    """Do nothing, if a label may have this key and value.

    Raises:
        TargetError: the key is no name or is a fact's; the value is empty, too long, or has a
            character that means something in a target.
    """
    text = f"{key}={value}"
    check_identifier(key, text, 0)
    if key in FACT_NAMES:
        raise TargetError(f"{key!r} is a fact.", text, 0, "Choose another key for the label.")
    check_chars(_ILLEGAL_IN_VALUE, value, text, len(key) + 1, "Write plain words, such as bay 7.")
    if value != value.strip() or not 1 <= len(value) <= MAX_NAME_CHARS:
        hint = "A value is 1 to 64 characters, no space first or last."
        raise TargetError("The label's value is empty, padded or too long.", text, len(key), hint)


def check_identifier(word: str, text: str, position: int) -> str:
    """Return a word that starts at `at` in `text`, if it is a name.

    Raises:
        TargetError: it is not.
    """
    check_chars(_ILLEGAL_IN_NAME, word, text, position, _NAME_HINT)
    if not NAME_PATTERN.fullmatch(word):
        raise TargetError(
            f"This cannot be a name: {word[:MAX_NAME_CHARS]!r}.", text, position, _NAME_HINT
        )
    return word


def check_chars(illegal: re.Pattern[str], word: str, text: str, position: int, hint: str) -> None:
    """Raise a TargetError that points at the first illegal character of a word, if there is one."""
    if found := illegal.search(word):
        raise TargetError(f"{found[0]!r} cannot stand here.", text, position + found.start(), hint)


def expand_range(
    word: str, text: str, position: int, max_names: int = MAX_NAMES
) -> tuple[str, ...]:
    """Return the names of a range, in written order; one that comes twice counts once.

    Args:
        word: the range; its brackets are closed and not nested.
        text: the whole target.
        position: where in it the range starts.
        max_names: how many names it may have; checked by arithmetic before there is a list.

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
    if count > max_names:
        hint = f"A target has at most {MAX_NAMES:,} names; write a pattern, a label or `all`."
        raise TargetError(
            f"This range has {count:,} names, {max_names:,} are left.", text, position, hint
        )
    names = dict.fromkeys("".join(parts) for parts in product(*map(_piece_texts, pieces)))
    check_identifier(next(iter(names)), text, position)
    return tuple(names)


def _parse_piece(found: re.Match[str], text: str, position: int) -> str | _Bracket:
    if found[1] is None:
        check_chars(
            _ILLEGAL_IN_NAME, found[0], text, position, "In a range's name, only numbers vary."
        )
        return found[0]
    bracket = []
    for part in found[1].split(","):
        position += 1  # over the bracket or the comma
        bracket.append(_parse_bounds(part, text, position))
        position += len(part)
    return bracket


def _parse_bounds(part: str, text: str, position: int) -> tuple[str, str]:
    found = _PART_PATTERN.fullmatch(part)
    if not found:
        raise TargetError("This is no range of numbers.", text, position, _RANGE_HINT)
    low, high = found[1], found[2] or found[1]
    if int(low) > int(high):
        hint = f"Write the smaller number first: {high}-{low}."
        raise TargetError("The range runs backwards.", text, position, hint)
    padded = len(low) > 1 and low[0] == "0" or len(high) > 1 and high[0] == "0"
    if padded and len(low) != len(high):
        hint = f"Write both equally wide: {low.zfill(len(high))}-{high.zfill(len(low))}."
        raise TargetError("The ends of the range differ in width.", text, position, hint)
    return low, high


def _count_names(piece: str | _Bracket) -> int:
    return 1 if isinstance(piece, str) else sum(int(high) - int(low) + 1 for low, high in piece)


def _max_chars(piece: str | _Bracket) -> int:
    return len(piece) if isinstance(piece, str) else max(len(high) for _, high in piece)


def _piece_texts(piece: str | _Bracket) -> list[str]:
    if isinstance(piece, str):
        return [piece]
    ends = ((int(low), int(high), len(low)) for low, high in piece)
    return [str(n).zfill(width) for low, high, width in ends for n in range(low, high + 1)]
