"""How large a request may be: checked before any work is done for it. No sockets, no SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from cloudmanager.protocol.errors import ServerError
from cm_server.limits import KIB, Limits

#: Fields whose text may be as long as the request.
_LONG_TEXTS: Final = ("lock", "locks")


def check_size(size: int, limits: Limits) -> None:
    """Refuse a request that is too long, before its JSON is read.

    Args:
        size: bytes of its JSON.
        limits: of the server.

    Raises:
        ServerError: it is longer than ``Limits.request_bytes``.
    """
    if size > limits.request_bytes:
        raise ServerError(f"a request may have at most {limits.request_bytes // KIB} KiB")


def check_fields(body: Mapping[str, Any], limits: Limits) -> None:
    """Refuse a request with a text, a list or an object of more than its share of the server.

    What a single field means is checked by the verb that reads it.

    Args:
        body: the JSON of the request, or the head of a SUBMIT.
        limits: of the server.

    Raises:
        ServerError: a field has too many values, too long a text, or is nested too deeply.
    """
    count = len(body)
    waiting: list[tuple[str, Any, int]] = [(name, value, 1) for name, value in body.items()]
    while waiting:
        if count > limits.request_values:
            raise ServerError(f"a request may have at most {limits.request_values} values")
        name, value, depth = waiting.pop()
        if isinstance(value, str):
            max_chars = limits.request_bytes if name in _LONG_TEXTS else limits.request_text_chars
            if len(value) > max_chars:
                raise ServerError(f"`{name[:64]}` has a text of more than {max_chars} characters")
        elif isinstance(value, (list, dict)):
            if depth > limits.request_depth:
                raise ServerError(f"`{name[:64]}` is nested too deeply")
            items = value if isinstance(value, list) else [*value.keys(), *value.values()]
            count += len(items)
            waiting += [(name, item, depth + 1) for item in items]


def is_whole_number(value: object) -> TypeGuard[int]:
    """Return whether a value of JSON is a whole number; ``true``, an int in Python, is none."""
    return type(value) is int
