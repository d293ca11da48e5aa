"""Converts inputs of a cell to assignments in front of it; no I/O.

    prelude({"pins": (2, 4), "limit": float("inf")})

returns the lines `pins = (2, 4)` and `limit = float('inf')`. Values can be what boards return
(`results/board_values.py`), nested, and objects with a `tolist()`, such as numpy arrays.
"""

from __future__ import annotations

import array
import keyword
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cloudmanager.protocol.text import sanitize_text

_DECIMAL_BITS: Final = 8192  # longer integers are hexadecimal: Python refuses 4,300 digits
_SPECIAL_FLOATS: Final = {
    "inf": "float('inf')",
    "-inf": "float('-inf')",
    "nan": "float('nan')",
}
_SUPPORTED_TYPES: Final = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, "
    "range, array, OrderedDict, named tuples and Ellipsis"
)
#: Size in bytes of an array's items -> the type code that has this size on boards of all word
#: sizes: l has 4 bytes on a chip and 8 on most hosts.
_SIGNED_CODES: Final = {1: "b", 2: "h", 4: "i", 8: "q"}


def prelude(inputs: Mapping[str, Any]) -> str:
    """Return one assignment per line, without a newline at the end.

    Args:
        inputs: name -> value.

    Raises:
        TypeError: a value has a type that boards cannot read; the message names the variable.
        ValueError: a name is not an identifier, or a value is nested too deeply.
    """
    return "\n".join(_assignment(name, value) for name, value in inputs.items())


def argv_assignment(arguments: Sequence[str]) -> str:
    """Return a statement that makes these texts ``sys.argv``, where a board has that.

    MicroPython's ``sys`` cannot be assigned to, but the list can be changed.
    """
    literals = ",".join(map(repr, arguments))
    return f"getattr(__import__('sys'),'argv',[])[:]=[{literals}]"


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
    if value is None or value is ... or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        small = value.bit_length() <= _DECIMAL_BITS
        return int.__repr__(value) if small else hex(value)
    if isinstance(value, float):
        text = float.__repr__(value)
        return _SPECIAL_FLOATS.get(text, text)
    if isinstance(value, complex):
        return f"complex({_literal(value.real)},{_literal(value.imag)})"
    if isinstance(value, str):
        return str.__repr__(value)
    if isinstance(value, bytes):
        return bytes.__repr__(value)
    if isinstance(value, bytearray):
        return f"bytearray({bytes(value)!r})"
    if isinstance(value, memoryview) and value.format in "Bbc":
        return bytes.__repr__(value.tobytes())
    return _container_literal(value)


def _container_literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{_join_literals(value)}]"
    if isinstance(value, tuple):
        if fields := getattr(value, "_fields", ()):
            return _named_tuple_expression(type(value).__name__, fields, value)
        return f"({_join_literals(value)},)" if value else "()"
    if isinstance(value, dict):
        if isinstance(value, OrderedDict):
            pairs = [(key, each) for key, each in value.items()]
            return f"__import__('collections').OrderedDict({_literal(pairs)})"
        items = (f"{_literal(key)}: {_literal(each)}" for key, each in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (set, frozenset)):
        literal = f"{{{_join_literals(value)}}}" if value else "set()"
        return f"frozenset({literal if value else ''})" if isinstance(value, frozenset) else literal
    if isinstance(value, range):
        return f"range({value.start},{value.stop},{value.step})"
    if isinstance(value, array.array) and (code := _array_code(value)):
        return f"__import__('array').array({code!r},{_literal(value.tolist())})"
    if callable(tolist := getattr(value, "tolist", None)) and not isinstance(value, type):
        return _literal(tolist())
    raise _UnsupportedValue(value)


def _array_code(value: array.array[Any]) -> str:
    """Return the type code that an array of this type has on every board; "" if it has none."""
    if value.typecode in "fd":
        return value.typecode
    code = _SIGNED_CODES.get(value.itemsize, "")
    if value.typecode in "bhilq":
        return code
    return code.upper() if value.typecode in "BHILQ" else ""


def _named_tuple_expression(name: str, fields: Iterable[str], values: Iterable[Any]) -> str:
    """Return an expression that makes a named tuple; MicroPython allows any name of a field."""
    names = _literal(tuple(fields))
    return f"__import__('collections').namedtuple({name!r},{names})({_join_literals(values)})"


def _join_literals(values: Iterable[Any]) -> str:
    return ", ".join(map(_literal, values))
