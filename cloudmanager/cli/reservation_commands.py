"""The verbs of ``mbm`` that reserve boards."""

from __future__ import annotations

import argparse

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.spans import parse_span
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.rows import reservation_text

from .commands import AddVerb, print_outcome


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    reserve = add_verb(
        "board-reserve", board_reserve, "reserve boards: jobs of others wait until it ends"
    )
    reserve.add_argument("target", metavar="TARGET", help="boards, connected or not")
    reserve.add_argument(
        "span", type=_parse_span, metavar="SPAN", help="for how long, such as 30m or 2h"
    )
    release = add_verb("board-release", board_release, "end reservations of boards")
    release.add_argument("target", metavar="TARGET")


def board_reserve(options: argparse.Namespace) -> int:
    """Reserve boards."""
    with Fleet() as fleet:
        reserved = fleet.request("reserve", target=options.target, seconds=options.span)
    text = reservation_text("you", reserved["until"])
    return print_outcome(
        options, reserved, f"{fold_names(reserved['boards'])}: reserved by {text}."
    )


def board_release(options: argparse.Namespace) -> int:
    """End reservations of boards."""
    with Fleet() as fleet:
        names = fleet[options.target].release()
    text = f"{fold_names(names)}: released." if names else f"{options.target}: was not reserved."
    return print_outcome(options, names, text)


def _parse_span(text: str) -> int:
    """Return a span such as 1h in seconds; the type of an argument."""
    try:
        return parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
