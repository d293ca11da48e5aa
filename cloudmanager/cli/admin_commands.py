"""The verbs of ``mbm`` for administrators: boards' identities, callers' tokens, the audit log.

Each verb's function receives the parsed options and returns the exit status. It calls the fleet
and prints; it has no other logic.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cloudmanager import config
from cloudmanager.client.fleet import Fleet
from cloudmanager.display.text_tables import audit_table, token_table
from cloudmanager.protocol.spans import parse_span
from cloudmanager.protocol.targets import ALL, target_text
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.fleet_plan import replacement_text
from cloudmanager.results.rows import format_time

from .commands import OK, AddVerb, check_writable, print_json, print_outcome

ROLES = ("viewer", "operator", "admin")
_NEW_KEY_SECONDS: Final = 3.0  # a board writes its new key to its flash and proves it in less
_POLL_SECONDS: Final = 0.1
#: State of a key's replacement -> what it means.
_ROTATION_OUTCOMES: Final = {
    "done": "the board has its new key, and the old one is no longer valid",
    "asked": "the new key was sent, but the board has not confirmed it yet; until it does, the old "
    "one stays valid (`mbm board-info` shows a key that waits)",
    "waits": "the new key will be sent when the board is connected and idle",
}


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    enrol = add_verb(
        "board-enrol", board_enrol, "create the settings (/cm.json) that let a board join the fleet"
    )
    enrol.add_argument("name", nargs="?", metavar="NAME", help="name of the new board")
    enrol.add_argument(
        "--plain",
        action="store_true",
        help="for a board that cannot verify a TLS certificate (ESP8266)",
    )
    enrol.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        help="write the settings to FILE, readable only by you (default: print them)",
    )
    enrol.add_argument(
        "--server",
        metavar="HOST[:PORT]",
        help="address that the board connects to (default: this server's)",
    )
    enrol.add_argument(
        "--token",
        action="store_true",
        help="create a token with which boards enrol themselves, over TLS",
    )
    enrol.add_argument(
        "--match", metavar="TARGET", help="with --token: names that the boards may have"
    )
    enrol.add_argument(
        "--uses",
        type=_parse_count,
        default=1,
        metavar="N",
        help="with --token: number of boards that may use it (default: 1)",
    )
    enrol.add_argument(
        "--expires",
        type=_parse_duration,
        metavar="SPAN",
        help="with --token: how long it is valid, such as 30d (default: 1h)",
    )
    revoke = add_verb("board-revoke", board_revoke, "remove boards from the fleet immediately")
    revoke.add_argument("target", metavar="TARGET")
    revoke.add_argument(
        "--yes", action="store_true", help="do not ask before several boards are removed"
    )
    rename = add_verb("board-rename", board_rename, "rename a board")
    rename.add_argument("board", metavar="BOARD", help="its current name")
    rename.add_argument("name", metavar="NAME", help="its new name")
    replace = add_verb("board-replace", board_replace, "let a new board become what a dead one was")
    replace.add_argument("old", metavar="OLD", help="the dead board's name, which the new one gets")
    replace.add_argument("new", metavar="NEW", help="the new board's name until now")
    replace.add_argument("--yes", action="store_true", help="do not ask")
    rotate = add_verb("board-rotate", board_rotate, "replace the keys of boards by new ones")
    rotate.add_argument("target", metavar="TARGET")

    token = add_verb("token-create", token_create, "create an access token for a user or a program")
    token.add_argument(
        "name", metavar="NAME", help="name of the token, in `token-list` and in the audit log"
    )
    token.add_argument(
        "--role", choices=ROLES, default="operator", help="what it permits (default: operator)"
    )
    token.add_argument(
        "--target",
        default=ALL,
        metavar="TARGET",
        help="boards that it may be used for (default: all)",
    )
    token.add_argument(
        "--expires",
        type=_parse_duration,
        metavar="SPAN",
        help="how long it is valid, such as 30d or 12h (default: until it is revoked)",
    )
    add_verb("token-list", token_list, "list access tokens with role, target and expiry")
    revoke = add_verb("token-revoke", token_revoke, "revoke an access token and close its links")
    revoke.add_argument("name", metavar="NAME", help="name of the token")
    log = add_verb("audit", audit, "show the audit log: who did what, newest last")
    log.add_argument(
        "-n",
        dest="count",
        type=_parse_count,
        default=50,
        metavar="N",
        help="number of rows (default: 50)",
    )


# Boards


def board_enrol(options: argparse.Namespace) -> int:
    """Create a board's identity, or a token with which boards enrol themselves."""
    from cloudmanager.cable.board_settings import find_dial_address, make_board_settings

    if options.output is not None:
        check_writable(Path(options.output))
    with Fleet() as fleet:
        address = find_dial_address(fleet, options.server)
        if options.token:
            names = options.match or options.name or ALL
            enrolment = fleet.enrol_token(names, uses=options.uses, expires=options.expires)
            enrolment["name"] = options.name
        else:
            (enrolment,) = fleet.enrol([options.name], plain=options.plain)
    text = json.dumps(make_board_settings(enrolment, address), indent=2)
    if options.output is None:
        print(text)
    else:
        config.write_private(Path(options.output), text + "\n")
        board = enrolment["name"] or "a board"
        print(f"Wrote {options.output}: copy it to {board} as /cm.json.")
    print(_enrolment_notes(options, enrolment, reachable=address.reachable), file=sys.stderr)
    return OK


def _enrolment_notes(
    options: argparse.Namespace, enrolment: dict[str, Any], *, reachable: bool
) -> str:
    """Return what to know about the settings: what they permit, and whether boards can connect."""
    if options.token:
        until = format_time(enrolment["expires"])
        target = enrolment["target"]
        boards = "1 board" if options.uses == 1 else f"{options.uses} boards"
        if target != ALL:
            boards += f" that {'matches' if options.uses == 1 else 'match'} {target}"
        notes = f"The token enrols {boards}, until {until}: keep it secret."
    else:
        notes = f"The settings contain the key of {options.name}: keep them secret."
    if not reachable:
        start = "`mbm server-start --listen 0.0.0.0`"
        notes += (
            "\nOnly this machine can reach the server. "
            f"To connect boards over the network, start it with {start}."
        )
    return notes


def board_revoke(options: argparse.Namespace) -> int:
    """Remove boards from the fleet."""
    with Fleet() as fleet:
        asks = not options.yes and sys.stdin.isatty()
        if asks and not _confirm_revocation(fleet, options.target):
            print("Nothing was removed.", file=sys.stderr)
            return OK
        names = fleet.revoke(options.target)
    keys = "its key is" if len(names) == 1 else "their keys are"
    return print_outcome(
        options, names, f"{fold_names(names)}: removed from the fleet; {keys} no longer valid."
    )


def _confirm_revocation(fleet: Fleet, target: str) -> bool:
    """Ask whether to remove several boards; return the answer, or True for a single board."""
    boards = fleet.request("boards", target=target, as_for_cells=True)
    if len(boards) < 2:
        return True
    names = fold_names(board["name"] for board in boards)
    question = f"Remove {len(boards)} boards from the fleet for good: {names}? [y/N] "
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def board_rename(options: argparse.Namespace) -> int:
    """Rename a board."""
    with Fleet() as fleet:
        name = fleet.rename(options.board, options.name)
    return print_outcome(options, name, f"Renamed {options.board} to {name}.")


def board_replace(options: argparse.Namespace) -> int:
    """Let a new board become what a dead one was."""
    with Fleet() as fleet:
        if not options.yes and sys.stdin.isatty() and not _confirm_replacement(options):
            print("Nothing was changed.", file=sys.stderr)
            return OK
        done = fleet.replace(options.old, options.new)
    return print_outcome(options, done, replacement_text(done, "`mbm fleet-status`"))


def _confirm_replacement(options: argparse.Namespace) -> bool:
    """Ask whether a board is replaced: the old one is removed for good; return the answer."""
    question = f"Remove {options.old} for good, and let {options.new} take its place? [y/N] "
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def board_rotate(options: argparse.Namespace) -> int:
    """Replace the keys of boards by new ones."""
    with Fleet() as fleet:
        states = fleet.rotate(options.target)
        asked = [name for name, state in states.items() if state == "asked"]
        taken = _await_new_keys(fleet, asked) if asked else set()
    states |= dict.fromkeys(taken, "done")
    if options.json:
        print_json(states)
        return OK
    for state, outcome in _ROTATION_OUTCOMES.items():
        names = [name for name, each in states.items() if each == state]
        if names:
            print(f"{fold_names(names)}: {outcome}.")
    return OK


def _await_new_keys(fleet: Fleet, names: Sequence[str]) -> set[str]:
    """Wait a moment for boards to take their new keys; return the names of those that have."""
    deadline = time.monotonic() + _NEW_KEY_SECONDS
    while True:
        rows = fleet.boards(fold_names(names))
        taken = {str(row["name"]) for row in rows if not row["new_key"]}
        if len(taken) == len(names) or time.monotonic() > deadline:
            return taken
        time.sleep(_POLL_SECONDS)


# Tokens and the audit log


def token_create(options: argparse.Namespace) -> int:
    """Create a token and print it; the server cannot show it again."""
    body = {"role": options.role, "target": options.target, "expires": options.expires}
    with Fleet() as fleet:
        token = fleet.request("token-create", name=options.name, **body)
    if options.json:
        print_json(token)
        return OK
    print(token["token"])
    until = f"until {format_time(token['expires'])}" if token["expires"] else "until it is revoked"
    rights = f"{token['name']}: {token['role']} on {target_text(token['target'])}, {until}."
    print(f"{rights} The token is shown only once: set CM_TOKEN to it.", file=sys.stderr)
    return OK


def token_list(options: argparse.Namespace) -> int:
    """List tokens, including expired and revoked ones."""
    with Fleet() as fleet:
        tokens = fleet.request("token-list")
    return print_outcome(options, tokens, token_table(tokens))


def token_revoke(options: argparse.Namespace) -> int:
    """Revoke a token."""
    with Fleet() as fleet:
        revoked = fleet.request("token-revoke", name=options.name)
    links = "1 link was" if revoked["closed"] == 1 else f"{revoked['closed']} links were"
    return print_outcome(
        options, revoked, f"Revoked the token {revoked['name']!r}; {links} closed."
    )


def audit(options: argparse.Namespace) -> int:
    """Show the last rows of the audit log, the newest last."""
    with Fleet() as fleet:
        rows = fleet.request("audit", count=options.count)
    return print_outcome(options, rows, audit_table(rows))


# Arguments


def _parse_duration(text: str) -> int:
    """Return a duration such as 30d in seconds; the type of an option."""
    try:
        return parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, at most ten years") from error


def _parse_count(text: str) -> int:
    """Return a number from 1 to 10000; the type of an option."""
    if text.isdecimal() and 0 < int(text[:6]) <= 10_000:
        return int(text)
    raise argparse.ArgumentTypeError("give a number from 1 to 10000")
