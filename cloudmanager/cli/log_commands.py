"""The verb of ``mbm`` for boards' logs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.log_lines import LogFollower, LogLine
from cloudmanager.display.log_view import log_rows
from cloudmanager.display.terminal import print_error
from cloudmanager.protocol.spans import parse_span

from .commands import OK, AddVerb, print_json


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    logs = add_verb("board-logs", board_logs, "show what boards print outside of cells")
    logs.add_argument("target", metavar="TARGET", help="boards, connected or not")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="go on with new lines, until Ctrl-C"
    )
    logs.add_argument(
        "--since",
        type=_check_span,
        metavar="SPAN",
        help="only lines of the last SPAN, such as 10m or 2h (default: all that the server has, "
        "16 KB of each board; with -f: only new lines)",
    )


def board_logs(options: argparse.Namespace) -> int:
    """Show what boards print outside of cells."""
    with Fleet() as fleet:
        if options.follow:
            with LogFollower(
                fleet.exchange, options.target, options.since, on_lost=_print_lost
            ) as follower:
                for lines in follower.batches():
                    _print_lines(lines, as_json=options.json)
            return OK
        found = fleet[options.target].logs(options.since)
    if options.json:
        print_json([line._asdict() for line in found])
    elif found:
        _print_lines(found, as_json=False)
    else:
        print(f"{options.target}: nothing was printed outside of cells.", file=sys.stderr)
    return OK


def _print_lines(lines: Sequence[LogLine], *, as_json: bool) -> None:
    rows = [json.dumps(line._asdict()) for line in lines] if as_json else log_rows(lines)
    print("\n".join(rows), flush=True)


def _print_lost(why: str) -> None:
    print_error(why)


def _check_span(text: str) -> str:
    """Return a span as it is, if it is one; the type of an option."""
    try:
        parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
