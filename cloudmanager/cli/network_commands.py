"""The verbs of ``mbm`` that give boards other network settings, in waves."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from cloudmanager import config
from cloudmanager.client.fleet import Fleet
from cloudmanager.display.terminal import print_text
from cloudmanager.protocol.spans import format_duration, parse_span
from cloudmanager.protocol.text import fold_names, sanitize_text
from cloudmanager.protocol.waves import Wave, check_waves

from .cable_commands import find_password, parse_host
from .commands import FAILED, OK, AddVerb, print_json, print_outcome
from .rollout_commands import confirm_change, watch_rollouts

_PAUSE_SECONDS = 600


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    wifi = add_verb("fleet-wifi", fleet_wifi, "give boards another Wi-Fi, in waves")
    wifi.add_argument("ssid", metavar="SSID", help="the network; its password is asked for")
    wifi.add_argument(
        "--keep",
        action="store_true",
        help="try this network first, then those that a board had before",
    )
    server = add_verb(
        "fleet-server", fleet_server, "let boards connect to another address of the server"
    )
    server.add_argument(
        "server", type=parse_host, metavar="HOST[:PORT]", help="the address, as boards reach it"
    )
    for parser in (wifi, server):
        _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", default="all", metavar="TARGET", help="boards, connected or not (default: all)"
    )
    parser.add_argument(
        "--waves",
        type=_parse_waves,
        metavar="WAVES",
        help='boards reached after each wave (default: "1,10%%,100%%")',
    )
    parser.add_argument(
        "--pause",
        type=_parse_span,
        default=_PAUSE_SECONDS,
        metavar="SPAN",
        help="between two waves (default: 10m)",
    )
    parser.add_argument(
        "--parallel",
        type=_parse_count,
        default=0,
        metavar="N",
        help="boards that change at the same time (default: all of a wave)",
    )
    parser.add_argument(
        "--max-failures",
        type=_parse_count,
        default=0,
        metavar="N",
        help="with more failed boards, no further one begins (default: 0)",
    )
    parser.add_argument(
        "--deadline",
        type=_parse_span,
        default=86400,
        metavar="SPAN",
        help="until which a board of a wave has to be done (default: 1d)",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--watch", action="store_true", help="show what happens until it has ended")


def fleet_wifi(options: argparse.Namespace) -> int:
    """Give boards another Wi-Fi."""
    password = find_password(options.ssid)

    def begin(fleet: Fleet, **rollout: Any) -> dict[str, Any]:
        return fleet.change_wifi(
            options.ssid, password, options.target, keep=options.keep, **rollout
        )

    return _begin(options, begin)


def fleet_server(options: argparse.Namespace) -> int:
    """Let boards connect to another address of the server."""
    address = config.split_url(f"https://{options.server}")

    def begin(fleet: Fleet, **rollout: Any) -> dict[str, Any]:
        tcp_port = address.port or config.DEFAULT_TCP_PORT
        return fleet.change_server(str(address.hostname), tcp_port, options.target, **rollout)

    return _begin(options, begin)


def _begin(options: argparse.Namespace, begin: Callable[..., dict[str, Any]]) -> int:
    """Show what would change, ask, and begin it."""
    rollout: dict[str, Any] = {
        "pause": options.pause,
        "parallel": options.parallel,
        "max_failures": options.max_failures,
        "deadline": options.deadline,
    }
    if options.waves:
        rollout["waves"] = options.waves
    with Fleet() as fleet:
        plan = begin(fleet, **rollout, dry_run=True)
        if not options.json:
            print_text(_plan_text(plan, options.pause))
        if not options.yes and not confirm_change(options, len(plan["boards"])):
            return FAILED
        done = begin(fleet, **rollout)
        if options.watch:
            return watch_rollouts(fleet, options, {done["rollout"]})
    if options.json:
        print_json(done)
        return OK
    text = f"{done['group']}: rollout {done['rollout']} has begun; `mbm fleet-status` shows it."
    return print_outcome(options, done, text)


def _plan_text(plan: Mapping[str, Any], pause: float) -> str:
    """Return what a change would do, as text."""
    boards = plan["boards"]
    count = f"{len(boards)} board{'' if len(boards) == 1 else 's'}"
    sizes = [0, *plan["waves"]]
    waves = ", ".join(str(size - before) for before, size in zip(sizes, sizes[1:], strict=False))
    times = f", {format_duration(pause)} between them" if pause and len(sizes) > 2 else ""
    lines = [
        f"{plan['what']}: {count} ({fold_names(boards)})",
        f"  waves: {waves}{times}",
    ]
    if plan["away"]:
        lines.append(f"  not connected now: {fold_names(plan['away'])}")
    return sanitize_text("\n".join(lines))


def _parse_waves(text: str) -> tuple[Wave, ...]:
    """Return waves such as ``1,10%,100%``; the type of an option."""
    words = [word.strip() for word in text.split(",")]
    try:
        return check_waves([int(word) if word.isdecimal() else word for word in words])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def _parse_span(text: str) -> int:
    """Return a span such as 10m in seconds; the type of an option."""
    try:
        return 0 if text in ("0", "0s") else parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parse_count(text: str) -> int:
    """Return a number from 0 to 100000; the type of an option."""
    if text.isdecimal() and int(text[:7]) <= 100_000:
        return int(text)
    raise argparse.ArgumentTypeError("give a number from 0 to 100000")
