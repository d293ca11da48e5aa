r"""Read the ``repr`` of a board's value back as a Python object; no I/O.

The text comes from MicroPython's ``print(repr(value))``, and boards are not trusted: nothing is
evaluated, and no text takes much time or memory. MicroPython writes:

=======================  ============================================  ==========================
value                    ``repr``                                      is read as
=======================  ============================================  ==========================
None, bool, int, float   ``None``, ``True``, ``-7``, ``1e+22``         the same
float                    ``nan``, ``inf``, ``-inf``                    float
complex                  ``(1+2j)``, ``-1j``, ``(nan+infj)``           complex
str, bytes, bytearray    ``'\u2603'``, ``b'a'``, ``bytearray(b'a')``    the same
list, tuple, dict        ``[1]``, ``(1,)``, ``{'a': 1}``               the same
set, frozenset           ``{1}``, ``set()``, ``frozenset({1})``        the same
OrderedDict              ``OrderedDict({'a': 1})``                     OrderedDict
array                    ``array('h', [1, 2])``, ``array('h')``        array.array
range                    ``range(0, 3)``                               range
Ellipsis                 ``Ellipsis``                                  Ellipsis
named tuple              ``Point(x=1, y=2)``                           a named tuple
os.uname() and the like  ``(sysname='rp2', nodename='rp2')``           a named tuple
anything else            ``<Pin 4>``, ``Pin(4, mode=OUT)``             `Repr`
=======================  ============================================  ==========================

What cannot be read inside of a list or another container becomes a `Repr` there; the rest of the
container is read.
"""

from __future__ import annotations

import array
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NoReturn

from cloudmanager.protocol.text import sanitize_text

_MAX_DEPTH: Final = 100  # levels; deeper values are not read, so that no recursion gets deep
_MAX_DIGITS: Final = 4300  # of an integer; Python converts no more (sys.set_int_max_str_digits)
_MAX_SAME_HASH: Final = 100  # keys whose hash another key of the same dict or set has
_MAX_TUPLE_TYPES: Final = 32  # kinds of named tuples in a value: making a class takes 0.3 ms
_MAX_FIELDS: Final = 255  # of a named tuple
_ARRAY_TYPES: Final = frozenset("bBhHiIlLqQfd")

_SPACE = re.compile(r"\s*")
_REAL: Final = rf"(?:nan|inf|[0-9]{{1,{_MAX_DIGITS}}}(?:\.[0-9]{{0,400}})?(?:e[+-]?[0-9]{{1,9}})?)"
_NUMBER = re.compile(rf"([+-]?{_REAL})(?:(j)|([+-]{_REAL})j)?(?![\w.(])")
_LONG_NUMBER = re.compile(rf"[+-]?[0-9]{{{_MAX_DIGITS + 1},}}(?![\w.(])")
_COMPLEX = re.compile(rf"\(([+-]?{_REAL})([+-]{_REAL})j\)")
_STRING = re.compile(r"""b?(?:'[^'\\\n]*(?:\\.[^'\\\n]*)*'|"[^"\\\n]*(?:\\.[^"\\\n]*)*")""")
_ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(.))"
)
_ESCAPED_CHARS: Final = {
    "n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v",
    "\\": "\\", "'": "'", '"': '"',
}  # fmt: skip
_NAME = re.compile(r"[^\W\d]\w{0,99}(?:\.\w{1,99}){0,9}")
_FIELD = re.compile(r"\s*([^\W\d]\w{0,99})=")
#: What ends an object's repr that is not read: brackets that close; strings are skipped whole.
_PARENTHESES = re.compile(rf"{_STRING.pattern}|[()]")
_ANGLES = re.compile("[<>]")
_CONSTANTS: Final[dict[str, Any]] = {
    "None": None,
    "True": True,
    "False": False,
    "Ellipsis": ...,
    "NotImplemented": NotImplemented,
}
_NOT_A_LITERAL: Final = "it is an object of the board, which has no literal"


class Repr(str):
    """A value's ``repr`` that cannot be read back, such as ``<Pin 4>``; shown without quotes.

    Attributes:
        why: the reason, as a part of a sentence.
    """

    __slots__ = ("why",)

    why: str

    def __new__(cls, text: str, why: str = _NOT_A_LITERAL) -> Repr:
        """Make a Repr of a board's text."""
        made = super().__new__(cls, text)
        made.why = why
        return made

    def __repr__(self) -> str:
        """Return the board's text, without quotes; made safe to show."""
        return sanitize_text(self)

    def __getitem__(self, key: Any) -> str:
        """Return characters, as those of a str.

        Raises:
            TypeError: the key is that of a dict; the message says why the value is a text.
        """
        try:
            return super().__getitem__(key)
        except TypeError:
            raise TypeError(f"the value is only the text of a board's object: {self.why}") from None


class UnreadableValue(ValueError):
    """A text is not the ``repr`` of a value; the message is the reason."""


def read_value(text: str) -> Any:
    """Return the value that a ``repr`` stands for; a `Repr` if it cannot be read."""
    try:
        return parse_value(text)
    except UnreadableValue as error:
        return Repr(text, str(error))


def parse_value(text: str) -> Any:
    """Return the value that a ``repr`` stands for.

    Raises:
        UnreadableValue: it is malformed, is nested too deeply, or would take too long to build.
    """
    reader = _Reader(text)
    try:
        value = reader.read_value(0)
    except RecursionError:
        raise UnreadableValue("it is nested too deeply") from None
    if not reader.at_end():
        reader.fail()
    return value


class _NotALiteral(UnreadableValue):
    """There is no literal here; around it may be an object's repr, which is not read."""


class _Reader:
    """Reads one text from left to right; every method begins at ``_pos`` and advances it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._pos = 0
        self._tuple_types: set[tuple[str, tuple[str, ...]]] = set()
        #: How many characters may be read a second time; bounds the time for nested calls.
        self._second_reads = len(text) + 1000

    def at_end(self) -> bool:
        """Return whether only space is left."""
        return _SPACE.fullmatch(self._text, self._pos) is not None

    def fail(self) -> NoReturn:
        """Raise _NotALiteral for the text at the current position."""
        if self._pos >= len(self._text):
            raise UnreadableValue("it ends too early")
        raise _NotALiteral(f"it is not a literal from character {self._pos + 1} on")

    def read_value(self, depth: int) -> Any:
        """Read a value and the space around it."""
        if depth > _MAX_DEPTH:
            raise UnreadableValue(f"it is nested in more than {_MAX_DEPTH} levels")
        self._skip_space()
        read = _READERS.get(self._text[self._pos : self._pos + 1])
        value = read(self, depth) if read else self._read_word(depth)
        self._skip_space()
        return value

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._pos)
        self._pos = found.end() if found else self._pos

    def _skip(self, char: str) -> bool:
        """Skip a character and return True, if it is the next one."""
        if self._text.startswith(char, self._pos):
            self._pos += len(char)
            return True
        return False

    def _read_items(self, closing: str, depth: int) -> tuple[list[Any], bool]:
        """Read values up to a bracket; return them, and whether a comma follows the last one."""
        items: list[Any] = []
        comma = False
        self._skip_space()
        while not self._skip(closing):
            if items and not comma:
                self.fail()
            items.append(self.read_value(depth + 1))
            comma = self._skip(",")
            self._skip_space()
        return items, comma

    def read_list(self, depth: int) -> list[Any]:
        """Read ``[…]``."""
        self._pos += 1
        return self._read_items("]", depth)[0]

    def read_parentheses(self, depth: int) -> Any:
        """Read a tuple, a complex number, or a tuple whose fields have names."""
        if found := _COMPLEX.match(self._text, self._pos):
            self._pos = found.end()
            return complex(float(found[1]), float(found[2]))
        self._pos += 1
        if _FIELD.match(self._text, self._pos):
            return self._read_fields("attrtuple", depth)
        items, comma = self._read_items(")", depth)
        return items[0] if len(items) == 1 and not comma else tuple(items)

    def read_braces(self, depth: int) -> Any:
        """Read a dict or a set."""
        self._pos += 1
        self._skip_space()
        if self._skip("}"):
            return {}
        first = self.read_value(depth + 1)
        if not self._skip(":"):
            if self._skip("}"):
                return _make_set([first])
            if not self._skip(","):
                self.fail()
            return _make_set([first, *self._read_items("}", depth)[0]])
        pairs = [(first, self.read_value(depth + 1))]
        while not self._skip("}"):
            if not self._skip(","):
                self.fail()
            self._skip_space()
            if self._skip("}"):
                break
            key = self.read_value(depth + 1)
            if not self._skip(":"):
                self.fail()
            pairs.append((key, self.read_value(depth + 1)))
        _check_keys(key for key, _ in pairs)
        return dict(pairs)

    def read_string(self, _depth: int) -> str | bytes:
        """Read a literal of a str or of bytes."""
        found = _STRING.match(self._text, self._pos)
        if not found:
            self.fail()
        self._pos = found.end()
        is_bytes = found[0].startswith("b")
        text = found[0][2 if is_bytes else 1 : -1]
        try:
            if "\\" in text:
                text = _ESCAPE.sub(_unescape, text)
            return text.encode("latin-1") if is_bytes else text
        except (ValueError, OverflowError):
            raise UnreadableValue("it has a string with a character that does not exist") from None

    def read_number(self, depth: int) -> Any:
        """Read an int, a float or a complex number."""
        found = _NUMBER.match(self._text, self._pos)
        if not found:
            found = _LONG_NUMBER.match(self._text, self._pos)
            if found is None:
                return self._read_word(depth)
            self._pos = found.end()
            return Repr(found[0], f"it is a number of more than {_MAX_DIGITS:,} digits")
        self._pos = found.end()
        first, is_imaginary, imaginary = found.groups()
        if imaginary:
            return complex(float(first), float(imaginary))
        if is_imaginary:
            return complex(0.0, float(first))
        return int(first) if first.lstrip("+-").isdigit() else float(first)

    def read_b(self, depth: int) -> Any:
        """Read bytes, or a word that begins with b."""
        if self._text[self._pos + 1 : self._pos + 2] in ("'", '"'):
            return self.read_string(depth)
        return self._read_word(depth)

    def read_object(self, _depth: int) -> Repr:
        """Read ``<…>``, up to the bracket that closes it."""
        return self._read_until_closed(self._pos, _ANGLES, "<")

    def _read_word(self, depth: int) -> Any:
        """Read a constant, or a name with arguments."""
        found = _NAME.match(self._text, self._pos)
        if not found:
            self.fail()
        name, start = found[0], self._pos
        if not self._text.startswith("(", found.end()):
            if name not in _CONSTANTS:
                self.fail()
            self._pos = found.end()
            return _CONSTANTS[name]
        self._pos = found.end() + 1
        if name in _TYPES and not _FIELD.match(self._text, self._pos):
            arguments, _ = self._read_items(")", depth)
            value = _TYPES[name](arguments)
            return Repr(self._text[start : self._pos]) if value is None else value
        if _FIELD.match(self._text, self._pos):
            try:
                return self._read_fields(name, depth)
            except _NotALiteral:
                self._second_reads -= self._pos - start
                if self._second_reads < 0:
                    raise UnreadableValue("it has too many objects in objects") from None
        return self._read_until_closed(start, _PARENTHESES, "(")

    def _read_fields(self, name: str, depth: int) -> Any:
        """Read ``FIELD=VALUE, …)`` as a named tuple.

        Raises:
            _NotALiteral: it is none, such as ``Pin(id=4, OUT)``.
        """
        fields: list[str] = []
        values: list[Any] = []
        while True:
            found = _FIELD.match(self._text, self._pos)
            if not found:
                self.fail()
            self._pos = found.end()
            fields.append(found[1])
            values.append(self.read_value(depth + 1))
            if self._skip(")"):
                break
            if not self._skip(","):
                self.fail()
        kind = (name, tuple(fields))
        self._tuple_types.add(kind)
        if len(self._tuple_types) > _MAX_TUPLE_TYPES:
            raise UnreadableValue(f"it has more than {_MAX_TUPLE_TYPES} kinds of named tuples")
        tuple_type = _tuple_type(*kind)
        if tuple_type is None:
            self.fail()
        return tuple_type(*values)

    def _read_until_closed(self, start: int, brackets: re.Pattern[str], opening: str) -> Repr:
        """Return the text from ``start`` to the bracket that closes the first one, unread."""
        level = 0
        for found in brackets.finditer(self._text, start):
            if found[0] == opening:
                level += 1
            elif len(found[0]) == 1:  # not a string
                level -= 1
                if not level:
                    self._pos = found.end()
                    return Repr(self._text[start : self._pos])
        self._pos = start
        raise UnreadableValue("it has a bracket that is not closed")


_READERS: Final[dict[str, Callable[[_Reader, int], Any]]] = {
    "[": _Reader.read_list,
    "(": _Reader.read_parentheses,
    "{": _Reader.read_braces,
    "<": _Reader.read_object,
    "'": _Reader.read_string,
    '"': _Reader.read_string,
    "b": _Reader.read_b,
    **dict.fromkeys("+-0123456789ni", _Reader.read_number),
}


def _unescape(found: re.Match[str]) -> str:
    """Return the character of an escape; an unknown escape stays as it is, as in Python."""
    hexadecimal = found[1] or found[2] or found[3]
    if hexadecimal:
        return chr(int(hexadecimal, 16))
    if found[4]:
        return chr(int(found[4], 8))
    return _ESCAPED_CHARS.get(found[5], found[0])


def _check_keys(keys: Iterable[Any]) -> None:
    """Check that a dict or a set of these keys is built in linear time.

    Keys with the same hash are compared with each other. A board can send tens of thousands of
    them, since hashes of numbers are not randomized: n * (2**61 - 1) has the hash 0.

    Raises:
        UnreadableValue: a key cannot be one, or too many have the same hash.
    """
    hashes: set[int] = set()
    count = 0
    try:
        for key in keys:
            hashes.add(hash(key))
            count += 1
    except TypeError as error:
        raise UnreadableValue(f"it has a key of a dict or set of an {error}") from None
    if count - len(hashes) > _MAX_SAME_HASH:
        raise UnreadableValue("too many keys of a dict or set have the same hash")


def _make_set(items: Sequence[Any]) -> set[Any]:
    _check_keys(items)
    return set(items)


@lru_cache(maxsize=256)
def _tuple_type(name: str, fields: tuple[str, ...]) -> Any:
    """Return the class of a named tuple; None if Python cannot have it.

    Fields that begin with an underscore, as in ``sys.implementation``, are attributes too.
    """
    if len(fields) > _MAX_FIELDS or len(set(fields)) < len(fields):
        return None
    try:
        made = namedtuple(name, fields, rename=True)  # type: ignore[misc]
    except ValueError:
        return None
    tuple_type: Any = made
    if tuple_type._fields != fields:  # some were renamed
        tuple_type._fields = fields
        tuple_type.__repr__ = _field_repr
    for position, field in enumerate(fields):
        if not hasattr(tuple_type, field):
            setattr(tuple_type, field, property(itemgetter(position)))
    return tuple_type


def _field_repr(value: Any) -> str:
    """Return the repr of a named tuple with the board's names of its fields."""
    pairs = (f"{field}={each!r}" for field, each in zip(value._fields, value, strict=True))
    return f"{type(value).__name__}({', '.join(pairs)})"


# The types whose repr is a call: each function returns None if the arguments do not fit.


def _read_bytearray(arguments: list[Any]) -> bytearray | None:
    return bytearray(arguments[0]) if _are(arguments, bytes) else None


def _read_set(arguments: list[Any]) -> set[Any] | None:
    return None if arguments else set()


def _read_frozenset(arguments: list[Any]) -> frozenset[Any] | None:
    if not arguments:
        return frozenset()
    return frozenset(arguments[0]) if _are(arguments, set) else None


def _read_ordered_dict(arguments: list[Any]) -> OrderedDict[Any, Any] | None:
    if not arguments or _are(arguments, dict):
        return OrderedDict(*arguments)
    return None


def _read_array(arguments: list[Any]) -> array.array[Any] | None:
    values = arguments[1] if len(arguments) > 1 else []
    if not _are(arguments[:1], str) or not _are(arguments[1:] or [[]], list):
        return None
    if arguments[0] not in _ARRAY_TYPES:
        return None
    try:
        return array.array(arguments[0], values)
    except (TypeError, OverflowError):
        return None


def _read_range(arguments: list[Any]) -> range | None:
    if not 2 <= len(arguments) <= 3 or not all(type(each) is int for each in arguments):
        return None
    return range(*arguments) if arguments[-1] or len(arguments) == 2 else None


def _are(arguments: list[Any], kind: type) -> bool:
    """Return whether there is exactly one argument, of a type."""
    return len(arguments) == 1 and type(arguments[0]) is kind


_TYPES: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "OrderedDict": _read_ordered_dict,
    "array": _read_array,
    "bytearray": _read_bytearray,
    "frozenset": _read_frozenset,
    "range": _read_range,
    "set": _read_set,
}
