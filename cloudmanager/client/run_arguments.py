"""Command-line options of cells, shared by `mbm` and the magics; made from ``RunOptions``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final, cast

from cloudmanager.protocol.option_info import option_infos
from cloudmanager.protocol.run_options import (
    DEFAULT_OPTIONS,
    LATE_CHOICES,
    RunKeywords,
    RunOptions,
    WaitKeywords,
    parse_seconds,
)
from cloudmanager.protocol.spans import parse_span
from cloudmanager.protocol.start_times import start_to_wire

from .waiting import MAX_WAIT_SECONDS


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of cells to a parser."""
    for name, info in option_infos(RunOptions).items():
        if not info.flag:
            continue
        if info.metavar:
            parser.add_argument(
                info.flag,
                dest=name,
                type=_ARGUMENT_TYPES.get(name, seconds_argument),
                default=getattr(DEFAULT_OPTIONS, name),
                metavar=info.metavar,
                help=info.text,
            )
        else:
            parser.add_argument(info.flag, dest=name, action="store_true", help=info.text)


def add_wait_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--when-online`` and ``--expires`` to a verb that runs no cell."""
    infos = option_infos(RunOptions)
    when, expires = infos["when_online"], infos["expires"]
    parser.add_argument(when.flag, dest="when_online", action="store_true", help=when.text)
    parser.add_argument(
        expires.flag,
        dest="expires",
        type=span_argument,
        metavar=expires.metavar,
        help=expires.text,
    )


def wait_keywords(options: argparse.Namespace) -> WaitKeywords:
    """Return parsed options as keywords of verbs that can wait for boards."""
    return {"when_online": options.when_online, "expires": options.expires}


def wait_options_error(options: argparse.Namespace) -> str:
    """Return what is wrong with a combination of options; "" if nothing is."""
    if options.expires is not None and not options.when_online:
        return "--expires needs --when-online: it says how long the work waits for its boards."
    if options.when_online and getattr(options, "wait", 0):
        return "--wait keeps this command waiting, and --when-online does not: give one of them."
    if options.when_online and getattr(options, "at", None):
        return "--at is for boards that are there, and --when-online for those that may be away."
    if getattr(options, "late", LATE_CHOICES[0]) != LATE_CHOICES[0] and not options.at:
        return "--late needs --at: it says what a board does that cannot start in time."
    return ""


def span_argument(text: str) -> float:
    """Parse a span such as 7d, or a number of seconds; an argparse type."""
    try:
        seconds = float(parse_span(text)) if text[-1:].isalpha() else parse_seconds(text)
    except ValueError:
        message = f"{text!r} is not a span such as 90s, 10m, 12h, 30d or 8w."
        raise argparse.ArgumentTypeError(message) from None
    if seconds > MAX_WAIT_SECONDS:
        raise argparse.ArgumentTypeError("work waits for its boards for 30 days at most.")
    return seconds


def run_keywords(options: argparse.Namespace) -> RunKeywords:
    """Return parsed options as keywords of ``run`` and ``submit``."""
    names = [name for name, info in option_infos(RunOptions).items() if info.flag]
    return cast(RunKeywords, {name: getattr(options, name) for name in names})


def seconds_argument(text: str) -> float:
    """Parse a positive, finite number of seconds; an argparse type."""
    try:
        return parse_seconds(text)
    except ValueError:
        message = f"{text!r} is not a positive number of seconds."
        raise argparse.ArgumentTypeError(message) from None


def start_argument(text: str) -> str:
    """Check the time at which a cell starts; an argparse type."""
    try:
        start_to_wire(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}.") from None
    return text


def late_argument(text: str) -> str:
    """Check what boards do that are late; an argparse type."""
    if text not in LATE_CHOICES:
        message = f"{text!r} is not valid. Use one of: {', '.join(LATE_CHOICES)}."
        raise argparse.ArgumentTypeError(message)
    return text


late_argument.words = LATE_CHOICES  # type: ignore[attr-defined]  # for completion

#: The argparse types of options whose value is not a number of seconds.
_ARGUMENT_TYPES: Final[dict[str, Callable[[str], object]]] = {
    "expires": span_argument,
    "at": start_argument,
    "late": late_argument,
}
