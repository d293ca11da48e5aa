"""Values of this program -> assignments that boards read: what stands before a cell; no I/O.

    prelude({"pins": (2, 4), "limit": float("inf")})

is `pins = (2, 4)` and `limit = float('inf')`, a line each. Python's literals travel, however they
are nested, and whatever has a `tolist()`, such as an array of numpy.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cloudmanager.protocol.text import sanitize_text

_DECIMAL_BITS: Final = 8192  # of a number; Python writes none of more than 4,300 digits in decimal
_SPECIAL_FLOATS: Final = {
    "inf": "float('inf')",
    "-inf": "float('-inf')",
    "nan": "float('nan')",
}
_SUPPORTED_TYPES: Final = "None, bool, int, float, str, bytes, list, tuple, dict and set"


def prelude(inputs: Mapping[str, Any]) -> str:
    """Return one assignment a line, without a newline at its end.

    Args:
        inputs: name -> value.

    Raises:
        TypeError: a value is of a type that boards cannot read; it names the variable.
        ValueError: a name is none, or a value is nested too deeply.
    """
    return "\n".join(_assignment(name, value) for name, value in inputs.items())


def _assignment(name: str, value: Any) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{sanitize_text(name)!r} is no name of a variable.")
    try:
        return f"{name} = {_literal(value)}"
    except _UnsupportedValue as foreign:
        what = type(foreign.args[0]).__name__
        holds = "is" if foreign.args[0] is value else "holds a value"
        raise TypeError(f"{name} {holds} of type {what}: boards take {_SUPPORTED_TYPES}.") from None
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply for a board, or holds itself.") from None


class _UnsupportedValue(Exception):
    """A value that is no literal."""


def _literal(value: Any) -> str:
    """Write a value as the plain type that it is, or is derived from."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        small = value.bit_length() <= _DECIMAL_BITS
        return int.__repr__(value) if small else hex(value)
    if isinstance(value, float):
        text = float.__repr__(value)
        return _SPECIAL_FLOATS.get(text, text)
    if isinstance(value, str):
        return str.__repr__(value)
    if isinstance(value, bytes):
        return bytes.__repr__(value)
    if isinstance(value, bytearray):
        return f"bytearray({bytes(value)!r})"
    return _container_literal(value)


def _container_literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{_join_literals(value)}]"
    if isinstance(value, tuple):
        return f"({_join_literals(value)},)" if value else "()"
    if isinstance(value, dict):
        pairs = (f"{_literal(key)}: {_literal(each)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, set):
        return f"{{{_join_literals(value)}}}" if value else "set()"
    if callable(tolist := getattr(value, "tolist", None)) and not isinstance(value, type):
        return _literal(tolist())
    raise _UnsupportedValue(value)


def _join_literals(values: Iterable[Any]) -> str:
    return ", ".join(map(_literal, values))
