"""Spans of time as users write them, ``90m``, ``12h``, ``30d``, and as they are shown, ``2 h``."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Final

_PATTERN: Final = re.compile(r"([1-9][0-9]{0,8})([smhdw])", re.ASCII)
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MAX_SECONDS: Final = 10 * 366 * 86400  # ten years


def parse_span(text: str) -> int:
    """Return a span such as ``10m`` in seconds.

    Args:
        text: a whole number and a unit: s, m, h, d or w.

    Raises:
        ValueError: it is no span, or one of over ten years.
    """
    found = _PATTERN.fullmatch(text)
    seconds = int(found[1]) * _UNIT_SECONDS[found[2]] if found else 0
    if not found or seconds > _MAX_SECONDS:
        raise ValueError(f"{text!r} is not a span such as 90s, 10m, 12h, 30d or 8w")
    return seconds


def time_since(since: str | float | datetime | None) -> float:
    """Return the time at which something begins, in seconds since 1970.

    Args:
        since: a span before now (``"10m"``), seconds since 1970, or a datetime (without a time
            zone: local time); None: 1970.

    Raises:
        ValueError: it is none of these.
    """
    if since is None:
        return 0.0
    if isinstance(since, str):
        return time.time() - parse_span(since)
    if isinstance(since, datetime):
        return since.timestamp()
    return float(since)


def format_moment(at: float) -> str:
    """Return a time, in seconds since 1970, as local time: 14:05, with its date on other days."""
    then = time.localtime(at)
    is_today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M", then)


def format_duration(seconds: float) -> str:
    """Return a duration in its largest unit: 8 s, 5 min, 3 h, 2 days."""
    for unit, size in (("day", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}"
    return f"{max(int(seconds), 0)} s"


def format_milliseconds(seconds: float) -> str:
    """Return a short time in milliseconds: 0.04 ms, 1.2 ms, 15 ms, 1,200 ms."""
    ms = seconds * 1000
    digits = 2 if abs(ms) < 1 else 1 if abs(ms) < 10 else 0
    return f"{ms:,.{digits}f} ms"
