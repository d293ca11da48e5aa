"""Converts inputs of a cell to assignments in front of it; no I/O.

    prelude({"pins": (2, 4), "limit": float("inf")})

returns the lines `pins = (2, 4)` and `limit = float('inf')`. Values can be Python literals, nested,
and objects with a `tolist()`, such as numpy arrays.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cloudmanager.protocol.text import sanitize_text

_DECIMAL_BITS: Final = 8192  # longer integers are hexadecimal: Python refuses 4,300 digits
_SPECIAL_FLOATS: Final = {
    "inf": "float('inf')",
    "-inf": "float('-inf')",
    "nan": "float('nan')",
}
_SUPPORTED_TYPES: Final = "None, bool, int, float, str, bytes, list, tuple, dict and set"


def prelude(inputs: Mapping[str, Any]) -> str:
    """Return one assignment per line, without a newline at the end.

    Args:
        inputs: name -> value.

    Raises:
        TypeError: a value has a type that boards cannot read; the message names the variable.
        ValueError: a name is not an identifier, or a value is nested too deeply.
    """
    return "\n".join(_assignment(name, value) for name, value in inputs.items())


def _assignment(name: str, value: Any) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{sanitize_text(name)!r} is not the name of a variable.")
    try:
        return f"{name} = {_literal(value)}"
    except _UnsupportedValue as error:
        unsupported = error.args[0]
        kind = type(unsupported).__name__
        verb = "is" if unsupported is value else "contains a value"
        message = f"{name} {verb} of type {kind}: boards can receive {_SUPPORTED_TYPES}."
        raise TypeError(message) from None
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply for a board, or contains itself.") from None


class _UnsupportedValue(Exception):
    """A value that has no literal."""


def _literal(value: Any) -> str:
    """Return a literal of a value; of a subclass, that of its built-in base class."""
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
