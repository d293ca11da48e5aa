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
MAX_LENGTH = 64  # characters of a name, a pattern, a key and a label's value
MAX_NAMES = 100_000  # of one target, ranges expanded: ten full servers; a few MB

_NAMES_ARE = "A name is 1 to 64 of A-Z a-z 0-9 - _ . and starts with a letter or a digit."
_NUMBERS_ARE = "Write numbers in the brackets, such as [1-3] or [1,3,7]."
_ILLEGAL = re.compile(r"[^A-Za-z0-9._-]")
_ILLEGAL_VALUE = re.compile(r"[^ -~]|[][(){},!&=*?]")  # unprintable, or a sign of a target
_PIECE = re.compile(r"\[([^]]*)]|[^[]+")  # of a range: a bracket, or what stands between two
_PART = re.compile(r"\s*([0-9]{1,64})\s*(?:-\s*([0-9]{1,64})\s*)?")


# A bracket, as written: the ends of each of its parts; 7 has the ends 7 and 7.
_Bracket = list[tuple[str, str]]


def check_name(name: str) -> str:
    """Return a board's name, if it may be one.

    Raises:
        TargetError: it has an illegal character, is too long or empty, or is `all`.
    """
    if name == "all":
        raise TargetError("`all` means every board.", name, 0, "Choose another name.")
    return check_word(name, name, 0)


def installed(name: str, have: Collection[str]) -> str:
    """Return which of a board's packages is meant: its whole name, or the end of one alone.

    That is how people call `pypi:micropython-logging`: with or without what stands before it.

    Raises:
        PackageError: none is, or several could be; both say what there is.
    """
    short = name.removeprefix("micropython-")
    ends = (f":{short}", f"/{short}", f"-{short}")
    found = [name] if name in have else [key for key in have if key.endswith(ends)]
    if len(found) == 1:
        return found[0]
    there = f"the board has {', '.join(sorted(have))}" if have else "the board has none"
    raise PackageError(f"no package is called {name}: {there}")


def check_label(key: str, value: str) -> None:
    """Do nothing, if a label may have this key and value.

    Raises:
        TargetError: the key is no name or is a fact's; the value is empty, too long, or has a
            character that means something in a target.
    """
    text = f"{key}={value}"
    check_word(key, text, 0)
    if key in FACT_NAMES:
        raise TargetError(f"{key!r} is a fact.", text, 0, "Choose another key for the label.")
    check_legal(_ILLEGAL_VALUE, value, text, len(key) + 1, "Write plain words, such as bay 7.")
    if value != value.strip() or not 1 <= len(value) <= MAX_LENGTH:
        hint = "A value is 1 to 64 characters, no space first or last."
        raise TargetError("The label's value is empty, padded or too long.", text, len(key), hint)


def check_word(word: str, text: str, at: int) -> str:
    """Return a word that starts at `at` in `text`, if it is a name.

    Raises:
        TargetError: it is not.
    """
    check_legal(_ILLEGAL, word, text, at, _NAMES_ARE)
    if not NAME_PATTERN.fullmatch(word):
        raise TargetError(f"This cannot be a name: {word[:MAX_LENGTH]!r}.", text, at, _NAMES_ARE)
    return word


def check_legal(illegal: re.Pattern[str], word: str, text: str, at: int, hint: str) -> None:
    """Raise a TargetError that points at the first illegal character of a word, if there is one."""
    if found := illegal.search(word):
        raise TargetError(f"{found[0]!r} cannot stand here.", text, at + found.start(), hint)


def expand(word: str, text: str, at: int, room: int = MAX_NAMES) -> tuple[str, ...]:
    """Return the names of a range, in written order; one that comes twice counts once.

    Args:
        word: the range; its brackets are closed and not nested.
        text: the whole target.
        at: where in it the range starts.
        room: how many names it may have; checked by arithmetic before there is a list.

    Raises:
        TargetError: it is malformed, or has too many names.
    """
    pieces = [_piece(found, text, at + found.start()) for found in _PIECE.finditer(word)]
    if sum(_longest(piece) for piece in pieces) > MAX_LENGTH:
        raise TargetError("The names of this range are too long.", text, at, _NAMES_ARE)
    count = prod(_size(piece) for piece in pieces)
    if count > room:
        hint = f"A target has at most {MAX_NAMES:,} names; write a pattern, a label or `all`."
        raise TargetError(f"This range has {count:,} names, {room:,} are left.", text, at, hint)
    names = dict.fromkeys("".join(parts) for parts in product(*map(_texts, pieces)))
    check_word(next(iter(names)), text, at)
    return tuple(names)


def _piece(found: re.Match[str], text: str, at: int) -> str | _Bracket:
    if found[1] is None:
        check_legal(_ILLEGAL, found[0], text, at, "In a range's name, only numbers vary.")
        return found[0]
    bracket = []
    for part in found[1].split(","):
        at += 1  # over the bracket or the comma
        bracket.append(_ends(part, text, at))
        at += len(part)
    return bracket


def _ends(part: str, text: str, at: int) -> tuple[str, str]:
    found = _PART.fullmatch(part)
    if not found:
        raise TargetError("This is no range of numbers.", text, at, _NUMBERS_ARE)
    low, high = found[1], found[2] or found[1]
    if int(low) > int(high):
        hint = f"Write the smaller number first: {high}-{low}."
        raise TargetError("The range runs backwards.", text, at, hint)
    padded = len(low) > 1 and low[0] == "0" or len(high) > 1 and high[0] == "0"
    if padded and len(low) != len(high):
        hint = f"Write both equally wide: {low.zfill(len(high))}-{high.zfill(len(low))}."
        raise TargetError("The ends of the range differ in width.", text, at, hint)
    return low, high


def _size(piece: str | _Bracket) -> int:
    return 1 if isinstance(piece, str) else sum(int(high) - int(low) + 1 for low, high in piece)


def _longest(piece: str | _Bracket) -> int:
    return len(piece) if isinstance(piece, str) else max(len(high) for _, high in piece)


def _texts(piece: str | _Bracket) -> list[str]:
    if isinstance(piece, str):
        return [piece]
    ends = ((int(low), int(high), len(low)) for low, high in piece)
    return [str(n).zfill(width) for low, high, width in ends for n in range(low, high + 1)]
