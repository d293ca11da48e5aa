"""The time at which a cell starts on all boards: as callers write it, and in a SUBMIT. No I/O."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import Any

from .errors import ServerError
from .spans import parse_span

#: When a cell starts: a time of today (``"14:30"``, ``"14:30:05.5"``), of another day
#: (``"2026-11-30 14:30"``) or from now (``"+5s"``, ``"+0.5"``, in seconds); seconds since 1970; a
#: datetime (without a time zone: local time); None: at once.
Start = str | float | datetime | None

_TIME_OF_DAY = re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?", re.ASCII)
_HALF_A_DAY = timedelta(hours=12)


def start_to_wire(at: Start) -> float | str | None:
    """Return a start for the JSON of a SUBMIT.

    Returns:
        Seconds since 1970; a plus sign and seconds, if it is from now: by the server's clock, so
        that the clock of the caller need not be right.

    Raises:
        ValueError: it is none.
    """
    if at is None:
        return None
    if isinstance(at, datetime):
        return at.timestamp()
    if not isinstance(at, str):
        if isinstance(at, bool) or not math.isfinite(at):
            raise ValueError(f"{at!r} is not a time in seconds since 1970")
        return float(at)
    if at.startswith("+"):
        return f"+{_seconds_from_now(at):.6f}"
    return _moment(at).timestamp()


def _seconds_from_now(text: str) -> float:
    try:
        seconds = float(parse_span(text[1:])) if text[-1:].isalpha() else float(text[1:])
    except ValueError:
        seconds = math.nan
    if not seconds > 0 or not math.isfinite(seconds):
        raise ValueError(f"{text!r} is not a time from now such as +5s, +2m or +0.5")
    return seconds


def _moment(text: str) -> datetime:
    """Return a time as users write it: the one of this day, or of the one before or after it."""
    try:
        if not _TIME_OF_DAY.fullmatch(text):
            return datetime.fromisoformat(text)
        clock = datetime.fromisoformat(f"2000-01-01T{text.zfill(5) if text[1] == ':' else text}")
    except ValueError:
        message = f"{text!r} is not a time such as 14:30:05 or 2026-11-30T14:30, and not one from"
        raise ValueError(f"{message} now such as +5s") from None
    now = datetime.now()
    moment = datetime.combine(now.date(), clock.time())
    if moment < now - _HALF_A_DAY:
        moment += timedelta(days=1)
    return moment


def parse_wire_start(value: Any, now: float) -> float:
    """Return when a cell starts, in seconds since 1970, of the JSON of a SUBMIT.

    Args:
        value: what ``start_to_wire`` has returned, or what a hostile caller has sent.
        now: the server's time, in seconds since 1970.

    Raises:
        ServerError: it is no time.
    """
    try:
        if isinstance(value, str) and value.startswith("+"):
            at = now + _seconds_from_now(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            at = float(value)
        else:
            raise ValueError
    except (ValueError, OverflowError):
        raise ServerError("at is seconds since 1970, or + and seconds from now") from None
    if not math.isfinite(at) or at <= 0:
        raise ServerError("at is seconds since 1970, or + and seconds from now")
    return at
