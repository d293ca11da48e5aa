"""The window of a rollout: the times at which its boards may begin; pure.

A window opens by a cron expression in a time zone, and stays open for a span of elapsed time. Where
clocks change, cronsim follows Debian's cron: a start in the hour that is left out comes right after
it, and one in the hour that comes twice happens once.
"""

from __future__ import annotations

import difflib
import zoneinfo
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.spans import format_duration

MAX_SECONDS: Final = 7 * 86400  # that a window is open
_MIN_SECONDS: Final = 60
_MIN_GAP_SECONDS: Final = 3600  # between the starts of two windows
_CHECKED_STARTS: Final = 25  # of which the gaps are checked
_CHECKED_DAYS: Final = 400
_MAX_CHARS: Final = 100
_CRON_FIELDS: Final = 5
_NEAR_SECONDS: Final = 6 * 86400.0  # in which a day of the week says which day is meant


class Window:
    """When boards may begin.

    Args:
        start: a cron expression of five fields.
        seconds: how long the window is open.
        zone: the name of the time zone in which ``start`` is meant.

    Raises:
        ServerError: one of them is wrong.
    """

    def __init__(self, start: str, seconds: float, zone: str) -> None:
        self.start, self.seconds, self.zone = start, seconds, zone
        self._tz = _read_zone(zone)
        #: From when to when ``_is_open`` is known.
        self._known = (0.0, 0.0)
        self._is_open = False
        if not _MIN_SECONDS <= seconds <= MAX_SECONDS:
            raise ServerError("window.for must be a span from 1m to 7d")
        if len(start) > _MAX_CHARS or len(start.split()) != _CRON_FIELDS:
            raise ServerError(_cron_error(start, "it needs five fields"))
        self._check_starts()

    def _check_starts(self) -> None:
        """Refuse windows that never open, or that open very often."""
        now = datetime.now(UTC)
        last: datetime | None = None
        for number, start in enumerate(self._starts(now.timestamp())):
            if last is not None and (start - last).total_seconds() < _MIN_GAP_SECONDS:
                raise ServerError(
                    f"window.start: {self.start!r} opens more often than once an hour; choose the "
                    "first minute, and say with `for` how long it stays open"
                )
            last = start
            if number >= _CHECKED_STARTS or start - now > timedelta(days=_CHECKED_DAYS):
                return
        if last is None:
            raise ServerError(_cron_error(self.start, "it never comes"))

    def _starts(self, after: float) -> Iterator[datetime]:
        """Yield the starts after a time, in seconds since 1970."""
        from cronsim import CronSim, CronSimError  # here: most fleets have no window

        moment = datetime.fromtimestamp(after, UTC)
        try:
            for start in CronSim(self.start, moment.astimezone(self._tz)):
                found = start.astimezone(UTC)
                if found > moment:  # in the hour that comes twice, the search begins in the first
                    yield found
        except CronSimError as error:
            raise ServerError(_cron_error(self.start, str(error).lower())) from error

    def to_json(self) -> dict[str, Any]:
        """Return what ``read_window`` makes the same window from."""
        return {"start": self.start, "for": self.seconds, "tz": self.zone}

    def is_open(self, now: float) -> bool:
        """Return whether boards may begin at a time, in seconds since 1970."""
        if not self._known[0] <= now < self._known[1]:
            start = next(self._starts(now - self.seconds)).timestamp()
            self._is_open = start <= now
            self._known = (now, start + self.seconds if self._is_open else start)
        return self._is_open

    def next_start(self, now: float) -> float:
        """Return when it opens for the next time after ``now``; both in seconds since 1970."""
        return next(self._starts(now)).timestamp()

    def open_seconds(self, since: float, until: float) -> float:
        """Return for how long it was open between two times, in seconds since 1970."""
        total, end = 0.0, since
        for moment in self._starts(since - self.seconds):
            start = moment.timestamp()
            if start >= until:
                break
            closed = min(start + self.seconds, until)
            total += max(closed - max(start, end), 0.0)
            end = max(end, closed)
        return total

    def describe(self, now: float) -> dict[str, Any]:
        """Return it as JSON, with whether it is open, and as text when it opens next."""
        start = self.next_start(now)
        local = datetime.fromtimestamp(start, UTC).astimezone(self._tz)
        is_near = start - now < _NEAR_SECONDS
        text = f"{local:%a %H:%M}" if is_near else f"{local:%Y-%m-%d %H:%M}"
        zone = "" if self.zone == "UTC" else f" {self.zone}"
        return {
            **self.to_json(),
            "open": self.is_open(now),
            "next": start,
            "text": f"{text}{zone or ' UTC'} for {format_duration(self.seconds)}",
        }


def _cron_error(start: str, why: str) -> str:
    return (
        f"window.start: {start[:_MAX_CHARS]!r} is no cron expression: {why}; the fields are "
        'minute, hour, day of the month, month and day of the week, such as "0 3 * * *"'
    )


def _read_zone(name: str) -> zoneinfo.ZoneInfo:
    known = zoneinfo.available_timezones()
    if name in known:  # the name of any other file is not looked for
        return zoneinfo.ZoneInfo(name)
    similar = difflib.get_close_matches(name[:_MAX_CHARS], sorted(known), 1)
    hint = f"did you mean {similar[0]}?" if similar else "write one such as Europe/Berlin"
    raise ServerError(f"window.tz: there is no time zone {name[:_MAX_CHARS]!r}; {hint}")


def read_window(body: object) -> Window | None:
    """Return the window of a request, or of a stored rollout; None without one.

    Raises:
        ServerError: it is malformed.
    """
    if body is None:
        return None
    if not isinstance(body, Mapping):
        raise ServerError("window must be a JSON object")
    start, seconds, zone = body.get("start"), body.get("for"), body.get("tz", "UTC")
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not isinstance(start, str) or not is_number or not isinstance(zone, str):
        raise ServerError("window needs start, a text, for, a number of seconds, and tz, a text")
    assert isinstance(seconds, (int, float))
    return Window(start, seconds, zone)
