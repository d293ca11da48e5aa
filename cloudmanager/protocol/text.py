"""Text for people: control characters made visible, carets, sorted and folded names; no I/O.

Boards are never trusted: their text must not move a cursor, clear a screen, forge a line or
reverse the direction of the text after it.
"""

import difflib
import heapq
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from os.path import commonprefix

# C0 but newline and tab, DEL, C1; the line and paragraph separators, at which str.splitlines
# splits; lone surrogates, which no terminal can encode.
_CONTROL_CHARS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
# What is not seen: two texts that look the same must be the same. All of Unicode's category Cf
# (format characters: marks and overrides of bidirectional text, zero-width spaces, soft hyphens,
# tags), fillers and joiners of other categories that show nothing, and variation selectors beyond
# those of emoji.
_INVISIBLE_CHARS = (
    "\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200c\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\uffa0\ufe00-\ufe0d"
)
# A zero-width joiner is kept between two pictures, which are one emoji then.
_PICTURES = "\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
UNSAFE_CHARS = re.compile(
    f"[{_CONTROL_CHARS}{_INVISIBLE_CHARS}]|(?<![\ufe0f{_PICTURES}])\u200d|\u200d(?![{_PICTURES}])"
)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_CONTEXT_CHARS = 72  # characters of a long line that are shown around the caret
_ELLIPSIS = "..."  # marks where text is left out
_NUMBER = re.compile(r"([0-9]{1,64})")  # 64: as long as a name; int() refuses 4,300 digits
_LAST_NUMBER = re.compile(r"(.*?)([0-9]{1,64})([^0-9]*)", re.DOTALL)
_MAX_CANDIDATES = 50  # names compared with difflib; all 10,000 of a full server would take 0.2 s


def sanitize_text(text: str) -> str:
    r"""Replace each control character, and each that is not seen, by a visible escape.

    Newline, tab and printable characters are kept. A second call changes nothing.

    Args:
        text: from any source.

    Returns:
        The same text, with an escape character shown as `\x1b` and a bidi override as `\u202e`.
    """
    return UNSAFE_CHARS.sub(_escape_char, text)


def one_line(text: str) -> str:
    r"""Return a name or a path in one line: control characters as ``sanitize_text`` shows them.

    A newline is shown as `\n`, and a byte that is not UTF-8 as `\xff` (in Python U+DCFF: PEP 383).
    """
    escaped = text.replace("\n", "\\n").replace("\t", "\\t")
    return sanitize_text(_NOT_UTF8.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", escaped))


def os_error_text(error: OSError) -> str:
    """Return an OSError as a sentence, as Unix tools write it: "a.py: No such file or directory.".

    Of a file on a board, the name is ``BOARD:PATH``.
    """
    reason = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    return one_line(f"{' -> '.join(names)}: {reason}." if names else f"{reason}.")


def line_with_caret(line: str, position: int) -> str:
    """Return a line with a caret under one of its characters.

    Args:
        line: the line; of a long one, only the part around the caret is shown.
        position: index of the character; a position outside of the line is moved to its end.

    Returns:
        Two lines, indented by four spaces, without a newline at the end.
    """
    position = min(max(position, 0), len(line))
    first = max(0, position - _CONTEXT_CHARS // 2)
    last = first + _CONTEXT_CHARS
    before = (_ELLIPSIS if first else "") + _sanitize_line(line[first:position])
    after = _sanitize_line(line[position:last]) + (_ELLIPSIS if last < len(line) else "")
    # A tab stays a tab above the caret, so that both lines are equally wide.
    blank = re.sub(r"[^\t]", " ", before)
    return f"    {before}{after}\n    {blank}^"


@lru_cache(maxsize=16_384)  # the names of a full server: they are sorted for each cell
def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Return a sort key that puts demo-9 before demo-10."""
    parts: list[str | int] = list(_NUMBER.split(name))
    parts[1::2] = map(int, parts[1::2])
    return tuple(parts), name


def fold_names(names: Iterable[str]) -> str:
    """Fold names into the shortest target that selects them; the inverse of expansion.

    Args:
        names: boards' names in any order; duplicates count once.

    Returns:
        A target such as "demo-[1-3,5],lab-[08-11],spare", in natural order; "" for no names.
    """
    groups: dict[tuple[str, str], set[str]] = {}
    without_number: set[str] = set()
    for name in names:
        if found := _LAST_NUMBER.fullmatch(name):
            groups.setdefault((found[1], found[3]), set()).add(found[2])
        else:
            without_number.add(name)
    folded = [_fold_group(before, numbers, after) for (before, after), numbers in groups.items()]
    folded += [(natural_key(name), name) for name in without_number]
    return ",".join(word for _, word in sorted(folded))


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is most similar to `name`, or None if none is."""
    small = name.lower()

    def shared_chars(other: str) -> int:
        """Return how many characters the beginnings and the ends have in common."""
        return len(commonprefix((small, other))) + len(commonprefix((small[::-1], other[::-1])))

    known = {other.lower(): other for other in names}
    candidates = heapq.nlargest(_MAX_CANDIDATES, known, key=shared_chars)
    matches = difflib.get_close_matches(small, candidates, n=1)
    return known[matches[0]] if matches else None


def _fold_group(before: str, numbers: set[str], after: str) -> tuple[tuple[object, str], str]:
    """Fold names that differ in one number; return the first one's sort key, and the text."""
    padded = {len(n) for n in numbers if n[0] == "0" and len(n) > 1}
    runs: list[list[str]] = []
    for number in sorted(numbers, key=lambda n: (len(n) if len(n) in padded else 0, int(n), n)):
        if runs and _extends_run(number, runs[-1]):
            runs[-1].append(number)
        else:
            runs.append([number])
    runs.sort(key=lambda run: int(run[0]))
    parts = ",".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    folded = parts if len(numbers) == 1 else f"[{parts}]"
    return natural_key(before + runs[0][0] + after), before + folded + after


def _extends_run(number: str, run: list[str]) -> bool:
    """Whether a range from the run's first number can include this number as its next."""
    may_widen = len(number) == len(run[0]) or run[0] == "0" or run[0][0] != "0"
    return may_widen and number == str(int(run[-1]) + 1).zfill(len(run[-1]))


def _sanitize_line(text: str) -> str:
    return sanitize_text(text).replace("\n", " ")


def _escape_char(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
