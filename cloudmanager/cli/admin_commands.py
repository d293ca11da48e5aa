"""What administrators do with ``mbm``: boards' identities, callers' tokens, the audit log.

Each act takes the options that were parsed, and returns the exit status; no logic of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from cloudmanager import config
from cloudmanager.client.fleet import Fleet
from cloudmanager.display.tables import audit_table, format_time, token_table
from cloudmanager.protocol.text import fold_names

from .commands import OK, AddVerb, print_json, print_outcome

ROLES = ("viewer", "operator", "admin")
_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}  # seconds


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the command line."""
    enrol = add_verb("board-enrol", board_enrol, "make what a board needs to join: /cm.json")
    enrol.add_argument("name", nargs="?", metavar="NAME", help="the board's")
    enrol.add_argument(
        "--plain", action="store_true", help="it cannot verify a certificate: ESP8266"
    )
    enrol.add_argument("-o", dest="output", metavar="FILE", help="write it there, for you alone")
    enrol.add_argument("--server", metavar="HOST[:PORT]", help="where the board dials")
    enrol.add_argument("--token", action="store_true", help="boards enrol themselves, over TLS")
    enrol.add_argument("--match", metavar="TARGET", help="the names that they may get")
    enrol.add_argument("--uses", type=_parse_count, default=1, metavar="N", help="how many; else 1")
    enrol.add_argument("--expires", type=_parse_span, metavar="SPAN", help="such as 30d; else 1h")
    revoke = add_verb("board-revoke", board_revoke, "take boards out of the fleet, at once")
    revoke.add_argument("target", metavar="TARGET")
    rename = add_verb("board-rename", board_rename, "give a board another name")
    rename.add_argument("board", metavar="BOARD")
    rename.add_argument("name", metavar="NAME")
    rotate = add_verb("board-rotate", board_rotate, "give boards new keys")
    rotate.add_argument("target", metavar="TARGET")

    token = add_verb("token-create", token_create, "make a token for somebody's programs")
    token.add_argument("name", metavar="NAME", help="who, in lists and in the audit log")
    token.add_argument("--role", choices=ROLES, default="operator")
    token.add_argument("--target", default="all", metavar="TARGET", help="the boards it reaches")
    token.add_argument("--expires", type=_parse_span, metavar="SPAN", help="such as 30d or 12h")
    add_verb("token-list", token_list, "list tokens: roles, targets, and when they end")
    revoke = add_verb("token-revoke", token_revoke, "let a token open nothing any more")
    revoke.add_argument("name", metavar="NAME")
    log = add_verb("audit", audit, "show who did what, the newest last")
    log.add_argument("-n", dest="count", type=_parse_count, default=50, metavar="N", help="else 50")


# Boards


def board_enrol(options: argparse.Namespace) -> int:
    """Make a board's identity, or a token by which boards enrol themselves."""
    from cloudmanager.cable.board_settings import find_dial_address, make_board_settings

    with Fleet() as fleet:
        place = find_dial_address(fleet, options.server)
        if options.token:
            told = fleet.enrol_token(
                options.match or options.name or "all", uses=options.uses, expires=options.expires
            )
            told["name"] = options.name
        else:
            (told,) = fleet.enrol([options.name], plain=options.plain)
    text = json.dumps(make_board_settings(told, place), indent=2)
    if options.output is None:
        print(text)
    else:
        config.write_private(Path(options.output), text + "\n")
        print(f"{options.output} is what goes to {told['name'] or 'a board'} as /cm.json.")
    print(_enrolment_notes(options, told, place.reachable), file=sys.stderr)
    return OK


def _enrolment_notes(
    options: argparse.Namespace, enrolment: dict[str, Any], reachable: bool
) -> str:
    what = f"It holds the key of {options.name}: keep it secret."
    if options.token:
        until = format_time(enrolment["expires"])
        boards = f"{options.uses} of {enrolment['target']}"
        what = f"{boards} may enrol with it until {until}: keep it secret."
    if not reachable:
        how = "`mbm server-start --listen 0.0.0.0`"
        what += f"\nOnly this machine can reach the server; start it with {how}."
    return what


def board_revoke(options: argparse.Namespace) -> int:
    """Take boards out of the fleet."""
    with Fleet() as fleet:
        names = fleet.revoke(options.target)
    return print_outcome(
        options, names, f"{fold_names(names)}: out of the fleet; the keys open nothing any more."
    )


def board_rename(options: argparse.Namespace) -> int:
    """Give a board another name."""
    with Fleet() as fleet:
        name = fleet.rename(options.board, options.name)
    return print_outcome(options, name, f"{options.board} is called {name} now.")


def board_rotate(options: argparse.Namespace) -> int:
    """Give boards new keys."""
    with Fleet() as fleet:
        told = fleet.rotate(options.target)
    if options.json:
        print_json(told)
        return OK
    for state, what in (("asked", "takes its new key now"), ("waits", "will, once it is idle")):
        names = [name for name, is_so in told.items() if is_so == state]
        if names:
            print(f"{fold_names(names)}: {what}.")
    return OK


# Tokens and the audit log


def token_create(options: argparse.Namespace) -> int:
    """Make a token; this is the only time that it is shown."""
    body = {"role": options.role, "target": options.target, "expires": options.expires}
    with Fleet() as fleet:
        made = fleet.request("token-create", name=options.name, **body)
    if options.json:
        print_json(made)
        return OK
    print(made["token"])
    until = f"until {format_time(made['expires'])}" if made["expires"] else "until it is revoked"
    told = f"{made['name']}: {made['role']} on {made['target']}, {until}."
    print(f"{told} It is shown this once: set CM_TOKEN to it.", file=sys.stderr)
    return OK


def token_list(options: argparse.Namespace) -> int:
    """List tokens, those that open nothing any more, too."""
    with Fleet() as fleet:
        tokens = fleet.request("token-list")
    return print_outcome(options, tokens, token_table(tokens))


def token_revoke(options: argparse.Namespace) -> int:
    """Let a token open nothing any more."""
    with Fleet() as fleet:
        done = fleet.request("token-revoke", name=options.name)
    if options.json:
        print_json(done)
    else:
        links = "1 link was" if done["closed"] == 1 else f"{done['closed']} links were"
        print(f"The token {done['name']!r} opens nothing any more; {links} closed.")
    return OK


def audit(options: argparse.Namespace) -> int:
    """Show who did what, the newest last."""
    with Fleet() as fleet:
        rows = fleet.request("audit", count=options.count)
    return print_outcome(options, rows, audit_table(rows))


# Arguments


def _parse_span(text: str) -> int:
    found = re.fullmatch("([1-9][0-9]{0,5})([mhdw])", text)
    if found and (seconds := int(found[1]) * _UNIT_SECONDS[found[2]]) <= 3650 * 86400:
        return seconds
    raise argparse.ArgumentTypeError("a span is such as 90m, 12h, 30d or 8w, at most ten years")


def _parse_count(text: str) -> int:
    if text.isdecimal() and 0 < int(text[:6]) <= 10_000:
        return int(text)
    raise argparse.ArgumentTypeError("how many is a number from 1 to 10000")
