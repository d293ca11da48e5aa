"""The options of a cell, declared once, from a caller's verb to the board; no I/O.

``RunOptions`` travels through all parts: ``Boards.run`` and ``submit`` take its fields as keywords,
`mbm board-execute` and `%%board` as command-line options, SUBMIT and the messages between servers
as JSON, and the server's jobs have it as it is.

To add an option, add a field here, with its keyword in ``RunKeywords``, and the code where it has
its effect.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypedDict

from .errors import ServerError
from .option_info import option
from .spans import format_duration
from .start_times import Start, parse_wire_start, start_to_wire

LATE_CHOICES: Final = ("skip", "run")  # the first is the default


class RunKeywords(TypedDict, total=False):
    """The options that ``run`` and ``submit`` take as keywords; see ``RunOptions``."""

    timeout: float | None
    fresh: bool
    wait: float
    when_online: bool
    expires: float | None
    at: Start
    late: str


class WaitKeywords(TypedDict, total=False):
    """Those of ``RunKeywords`` that verbs about files, packages and resets take, too."""

    when_online: bool
    expires: float | None


class OptionLimits(NamedTuple):
    """The limits of options.

    Attributes:
        seconds: the greatest value of an option in seconds, but for ``expires``.
        expires: the greatest value of ``expires``, in seconds.
        ahead: how many seconds ahead ``at`` may be.
        now: the server's time, in seconds since 1970.
    """

    seconds: float
    expires: float
    ahead: float
    now: float


@dataclass(frozen=True)
class RunOptions:
    """How a cell is run.

    Attributes:
        timeout: seconds that it may run, after it was sent to the board; None for no limit.
        fresh: whether each board makes a soft reset first.
        wait: seconds to wait for boards that are not connected.
        when_online: whether the server keeps it, for days, until each board is there.
        expires: seconds after which it ends where it has not run, with ``when_online``; None for
            a week.
        at: when it starts on all boards; see ``Start``. In the server's jobs: seconds since 1970.
        late: what a board does that cannot start it then: "skip" or "run".
        answers: whether somebody answers ``input()``.
        idle: whether only boards that are idle run it; the others are left out.
    """

    timeout: float | None = option(
        None, "interrupt the cell after S seconds; time in a queue does not count", "--timeout", "S"
    )
    fresh: bool = option(
        False,
        "soft-reset the boards first, so that no variables are left from earlier cells",
        "--fresh",
    )
    wait: float = option(
        0.0, "wait up to S seconds for offline boards to connect (default: 0)", "--wait", "S"
    )
    when_online: bool = option(
        False,
        "leave it to the server, which runs it on each board of the target, connected or not, "
        "when the board is there",
        "--when-online",
    )
    expires: float | None = option(
        None,
        "with --when-online, how long it waits at most, such as 90m or 7d; a number means seconds "
        "(default: 7d; at most 30d)",
        "--expires",
        "T",
    )
    at: Start = option(
        None,
        "start the cell at this instant on all boards, by the server's clock: a time such as "
        "14:30:05, or +5s from now; at most 5 minutes ahead",
        "--at",
        "TIME",
    )
    late: str = option(
        LATE_CHOICES[0],
        "with --at, what a board does that cannot start in time: skip (the default) or run",
        "--late",
        "HOW",
    )
    answers: bool = option(False, "whether somebody answers input()")
    idle: bool = option(False, "leave out boards that are busy")

    def to_fields(self) -> dict[str, Any]:
        """Return all options, for a message between servers."""
        return {name: getattr(self, name) for name in _DEFAULTS}

    def to_wire(self) -> dict[str, Any]:
        """Return the options for the JSON of a SUBMIT, without those that have the default."""
        if self is DEFAULT_OPTIONS:
            return {}
        options = {
            name: value
            for name, default in _DEFAULTS.items()
            if (value := getattr(self, name)) != default
        }
        if "at" in options:
            options["at"] = start_to_wire(self.at)
        return options

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> RunOptions:
        """Return the options in a message of another server, which are trusted."""
        return cls(**{name: fields[name] for name in _DEFAULTS if name in fields})

    @classmethod
    def from_wire(cls, head: Mapping[str, Any], limits: OptionLimits) -> RunOptions:
        """Return the options in the JSON of a SUBMIT, checked.

        Args:
            head: the JSON; entries that are no options are ignored.
            limits: the greatest values.

        Raises:
            ServerError: an option is invalid.
        """
        given: dict[str, Any] = {}
        for name, default in _DEFAULTS.items():
            value = head.get(name)
            if value is None:
                continue
            if isinstance(default, bool):
                given[name] = bool(value)
            elif name == "at":
                given[name] = parse_wire_start(value, limits.now)
            elif name == "late":
                if value not in LATE_CHOICES:
                    raise ServerError(f"late is one of: {', '.join(LATE_CHOICES)}")
                given[name] = value
            else:
                limit = limits.expires if name == "expires" else limits.seconds
                given[name] = _check_seconds(name, value, limit)
        options = cls(**given)
        if why := options.contradiction() or options.unsuitable_start(limits):
            raise ServerError(why)
        return options

    def unsuitable_start(self, limits: OptionLimits) -> str:
        """Return why the server does not accept ``at``, which it has read; "" if it does."""
        if self.at is None:
            return ""
        ahead = self.start - limits.now
        if ahead > limits.ahead:
            return f"at is {limits.ahead / 60:g} minutes ahead at most"
        if ahead <= 0 and self.late != "run":
            ago = f"{-ahead:.3g} s" if ahead > -60 else format_duration(-ahead)
            return f"at was {ago} ago, by the server's clock; nothing ran"
        return ""

    @property
    def start(self) -> float:
        """When a job of the server starts, in seconds since 1970; 0 for at once."""
        return self.at if isinstance(self.at, float) else 0.0

    def contradiction(self) -> str:
        """Return why these options exclude each other; "" if they do not."""
        if self.expires is not None and not self.when_online:
            return "expires is for work that waits for its boards: give when_online, too"
        if self.when_online and self.wait:
            return "wait keeps the caller waiting, and when_online does not: give one of them"
        if self.when_online and self.at is not None:
            return "at is for boards that are there, and when_online for those that may be away"
        if self.at is None and self.late != LATE_CHOICES[0]:
            return "late is about cells that start at a time: give at, too"
        if self.when_online and self.idle:
            return "when_online is for boards that may be away, and idle for those that are free"
        return ""


def _check_seconds(name: str, value: Any, limit: float) -> float:
    """Return the value of an option in seconds.

    Raises:
        ServerError: it is not one.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= limit:
        days = limit / 86400
        raise ServerError(f"{name} is a number of seconds above 0, at most {days:g} days")
    return float(value)


#: Name -> default of each option.
_DEFAULTS: Final = {field.name: field.default for field in dataclasses.fields(RunOptions)}
DEFAULT_OPTIONS: Final = RunOptions()


def parse_seconds(text: str) -> float:
    """Return a positive, finite number of seconds.

    Raises:
        ValueError: it is not one.
    """
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError(text)
    return seconds
