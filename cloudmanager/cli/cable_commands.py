"""``mbm flash``, ``board-scan``, ``board-config``: the verbs for boards on a cable.

What they do stands in flash.py and cable/; this parses, asks and prints.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from cloudmanager import config
from cloudmanager.cable import reconfigure, serial_ports
from cloudmanager.cable.board_settings import find_dial_address
from cloudmanager.cable.flash import FlashOptions, FlashOutcome, flash_and_join
from cloudmanager.cable.serial_ports import BoardRepl, SerialPort
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import CableError, CloudmanagerError, TargetError
from cloudmanager.protocol.names import expand_range
from cloudmanager.protocol.targets import parse_target
from cloudmanager.protocol.text import fold_names, sanitize_text
from cloudmanager.results.results import Results, error_text

from .commands import AddVerb

OK, FAILED = 0, 1
WATCHDOG_SECONDS = 30  # at least: a board that dials may stand still for 20
_WATCHDOG_HINT = (
    f"Give {WATCHDOG_SECONDS} or more: a board that dials a server which is gone stands still."
)
SCAN_SECONDS = 5.0  # that a board may take to show its REPL
KEYRING_SERVICE = "cloudmanager wifi"  # the service under which a keyring has passwords, by SSID
_WIFI_HELP = "a network, whose password is asked for; repeated: in order"
_LABEL_HELP = "what the fleet shall know of it, such as room=lab"
_SERVER_HELP = "what the boards dial; else the server in use, by this machine's address"
_PORT_HELP = "where it is: a serial port, or a Pico's drive; may be repeated; else what is found"
_NAME_HELP = "such as lab-7 or 'lab-[1-40]'; else esp32-1 and so on"


def add_verbs(add_verb: AddVerb) -> None:
    """Tell the command line of ``mbm`` what there is."""
    made = add_verb(
        "flash", flash_boards, "put MicroPython on boards on a cable, and them in the fleet"
    )
    made.epilog = "From the box to the first cell in five minutes: docs/boards.md."
    made.add_argument("--port", action="append", metavar="PORT", help=_PORT_HELP)
    made.add_argument("--all", action="store_true", help="every connected board, side by side")
    made.add_argument("--firmware", metavar="FILE|URL|VERSION", help="else the newest MicroPython")
    made.add_argument("--no-flash", action="store_true", help="keep the MicroPython that is on it")
    made.add_argument("--name", metavar="NAME|RANGE", help=_NAME_HELP)
    made.add_argument("--wifi", action="append", default=[], metavar="SSID", help=_WIFI_HELP)
    made.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help=_LABEL_HELP)
    made.add_argument("--server", type=_parse_host, metavar="HOST[:PORT]", help=_SERVER_HELP)
    made.add_argument("--dry-run", action="store_true", help="change nothing, say what would be")
    scan = add_verb("board-scan", board_scan, "list the boards on a cable, and what runs on them")
    scan.add_argument("port", nargs="*", metavar="PORT", help="else every port with USB behind it")
    settings = add_verb(
        "board-config", board_config, "change a board's Wi-Fi, server, watchdog or name"
    )
    settings.epilog = "What does not work is taken back: the board dials as it did before."
    settings.add_argument("board", metavar="PORT|TARGET", help="on a cable, or over the air")
    settings.add_argument("--wifi", action="append", default=[], metavar="SSID", help=_WIFI_HELP)
    settings.add_argument("--server", type=_parse_host, metavar="HOST[:PORT]", help="what it dials")
    settings.add_argument("--watchdog", type=int, metavar="S", help="seconds, 0: none; 30 or more")
    settings.add_argument("--name", metavar="NAME", help="what it is called from now on")
    anew = add_verb("board-upgrade-client", upgrade_client, "give boards this version's client")
    anew.add_argument("target", metavar="TARGET")
    bridge = add_verb(
        "bridge", bridge_boards, "have boards without a network in the fleet, by a cable"
    )
    bridge.epilog = "Each is a board like any other while this runs; Ctrl-C ends it."
    bridge.add_argument("port", nargs="*", metavar="PORT", help="else every board, as they come")
    bridge.add_argument("--name", metavar="NAME|RANGE", help="what new ones are called")


def flash_boards(options: argparse.Namespace) -> int:
    """Flash boards and make them members of the fleet."""
    with Fleet() as fleet:
        fleet.status()  # no server: say so before anything is touched
        wish = FlashOptions(
            server=_server_address(options, fleet),
            firmware=options.firmware,
            flash=not options.no_flash,
            names=_expand_names(options.name),
            wifi=[(ssid, _find_password(ssid)) for ssid in options.wifi],
            labels=_parse_labels(options.label),
            dry_run=options.dry_run,
        )
        tell = _ProgressPrinter(quiet=options.json)
        outcomes = flash_and_join(_choose_ports(options), wish, fleet, tell)
    for outcome in outcomes:
        if outcome.error and not options.json:
            print(
                f"mbm: {sanitize_text(outcome.port)}: {sanitize_text(outcome.error)}",
                file=sys.stderr,
            )
    if options.json:
        print(json.dumps({outcome.port: outcome.to_json() for outcome in outcomes}, indent=2))
    else:
        _print_outcomes(outcomes, options.dry_run)
    return FAILED if any(outcome.error for outcome in outcomes) else OK


def _print_outcomes(outcomes: Sequence[FlashOutcome], dry_run: bool) -> None:
    for outcome in outcomes:
        if not outcome.error:
            done = "would join the fleet" if dry_run else f"is {outcome.name}: it ran a cell"
            print(f"{sanitize_text(outcome.port)} {done}.")


class _ProgressPrinter:
    """Prints what is new, a line for each step; a percentage stays on its line in a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self._last: dict[str, str] = {}

    def __call__(self, port: str, step: str, message: str) -> None:
        """Print a line; of percentages every tenth."""
        if message.endswith("% written"):
            message = f"{int(message.split('%')[0]) // 20 * 20}% written"
        with self._lock:
            if not self._quiet and self._last.get(port) != message:
                self._last[port] = message
                print(
                    f"{sanitize_text(port)}  {step:<8}  {sanitize_text(message)}",
                    file=sys.stderr,
                    flush=True,
                )


def _choose_ports(options: argparse.Namespace) -> list[str]:
    """Return the ports that are meant; ask where it is not clear."""
    if options.port:
        return list(dict.fromkeys(options.port))
    found = serial_ports.find_serial_ports()
    if not found:
        hint = "Plug one in; some cables only charge. --port names a port that was not found."
        raise CableError("", "No board is on a cable", hint)
    if options.all or len(found) == 1:
        return [port.device for port in found]
    if not sys.stdin.isatty():
        devices = ", ".join(port.device for port in found)
        raise CableError("", f"Several boards are on cables: {devices}", "Use --port or --all.")
    return [_ask_port(found)]


def _ask_port(found: Sequence[SerialPort]) -> str:
    for number, port in enumerate(found, 1):
        print(
            f"{number:>3}  {sanitize_text(port.device)}  {sanitize_text(port.description)}",
            file=sys.stderr,
        )
    while True:
        answer = input("Which one? ")
        if answer.isdecimal() and 0 < int(answer) <= len(found):
            return found[int(answer) - 1].device


def _server_address(options: argparse.Namespace, fleet: Fleet) -> tuple[str, int]:
    """Return what boards dial: as told, else the server in use, by an address that they reach."""
    place = find_dial_address(fleet, options.server)
    if options.wifi and not options.server and not place.reachable:
        what = "The server listens on this machine only: no board reaches it by Wi-Fi"
        hint = "Start it anew: `mbm server-stop`, then `mbm server-start --listen 0.0.0.0`."
        raise CableError("", what, hint)
    return place.host, place.tcp_port


def _find_password(ssid: str) -> str:
    """Return a network's password: from the keyring where there is one, else ask."""
    with contextlib.suppress(Exception):  # a keyring without its desktop raises what it likes
        import keyring

        if (kept := keyring.get_password(KEYRING_SERVICE, ssid)) is not None:
            return str(kept)
    if not sys.stdin.isatty():
        hint = f"Run this in a terminal, or keep it: `keyring set {KEYRING_SERVICE!r} SSID`."
        raise CableError("", f"Nobody is here to give the password of {ssid!r}", hint)
    return getpass.getpass(f"Password of {sanitize_text(ssid)}: ")


def _expand_names(text: str | None) -> tuple[str, ...]:
    if not text:
        return ()
    parse_target(text)  # it sees a bracket that is not closed
    return expand_range(text, text, 0)


def _parse_host(text: str) -> str:
    """Return an address as boards dial it: an option's type."""
    try:
        parts = urlsplit(f"//{text}")
        plain = parts.netloc == text and parts.hostname and "@" not in text and parts.port != 0
    except ValueError:
        plain = False
    if not plain or text.endswith(":"):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST or HOST:PORT")
    return text


def _parse_labels(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise TargetError("a label is given as key=value", pair, 0, "Such as room=lab.")
    return dict(pair.partition("=")[::2] for pair in pairs)


# What is there


def board_scan(options: argparse.Namespace) -> int:
    """List the boards on cables."""
    found = [SerialPort(port, "") for port in options.port] or serial_ports.find_serial_ports()
    known = _names_by_id()
    rows = [_scan_port(port, known) for port in found]
    if options.json:
        print(json.dumps(rows, indent=2))
        return OK
    for row in rows:
        runs = f"MicroPython {row['version']} on {row['platform']}" if row["version"] else ""
        told = [row["port"], row["what"], runs or row["error"], row["name"] and f"is {row['name']}"]
        print("  ".join(sanitize_text(str(word)) for word in told if word))
    if not rows:
        print("No board is on a cable. Some cables only charge.")
    return OK


def _scan_port(port: SerialPort, names_by_id: dict[str, str]) -> dict[str, Any]:
    """Look at one board; a program that was interrupted for that is started again."""
    row = {
        "port": port.device,
        "what": port.description,
        "platform": "",
        "version": "",
        "machine": "",
    }
    row |= {"name": "", "error": ""}
    try:
        with BoardRepl(port.device) as repl:
            repl.await_prompt(SCAN_SECONDS)
            facts = repl.facts()
            board_id, _ = repl.identity()
            repl.leave_raw_repl()
    except CableError as error:
        return row | {"error": error.detail}
    told = {key: facts[key] for key in ("platform", "version", "machine")}
    return row | told | {"name": names_by_id.get(board_id or "", "")}


def _names_by_id() -> dict[str, str]:
    """Return id -> name of the fleet's boards; nothing where there is no server."""
    with contextlib.suppress(CloudmanagerError), Fleet() as fleet:
        return {board["id"]: board["name"] for board in fleet.boards()}
    return {}


def board_config(options: argparse.Namespace) -> int:
    """Change settings; a board goes back to its old ones where the new ones do not work."""
    new = _read_changes(options)
    on_cable = "/" in options.board or options.board.upper().startswith("COM")
    status = (_configure_by_cable if on_cable else _configure_by_link)(options, new)
    if options.json:
        print(json.dumps(sorted([*new, *["name"] * bool(options.name)])))
    elif status == OK:
        told = ["restarts; settings that do not work are taken back"] if new else []
        told += [f"is {options.name} now"] if options.name else []
        print(f"{sanitize_text(options.board)} {' and '.join(told)}.")
    return status


def _configure_by_cable(options: argparse.Namespace, changes: dict[str, Any]) -> int:
    board_id = reconfigure.configure_by_cable(options.board, changes)
    if options.name:
        with Fleet() as fleet:
            names = {board["id"]: board["name"] for board in fleet.boards()}
            if board_id not in names:
                hint = "Make it one: `mbm flash --no-flash`."
                raise CableError(options.board, "The board is no member of this fleet", hint)
            fleet.rename(names[board_id], options.name)
    return OK


def _configure_by_link(options: argparse.Namespace, changes: dict[str, Any]) -> int:
    with Fleet() as fleet:
        done = (
            reconfigure.configure_by_link(fleet[options.board], changes) if changes else Results({})
        )
        for name, result in done.items():
            if not result.ok:
                print(f"mbm: {name}: {sanitize_text(error_text(result.error))}", file=sys.stderr)
        if done.ok and options.name:
            fleet.rename(options.board, options.name)
    return OK if done.ok else FAILED


def upgrade_client(options: argparse.Namespace) -> int:
    """Give boards a new client, over the air."""
    from cloudmanager.client.client_upgrade import ClientUpgrade

    with Fleet() as fleet:
        upgrade = ClientUpgrade(fleet, options.target, lambda what: print(what, file=sys.stderr))
        done = upgrade.run()
    if options.json:
        told = {**dict.fromkeys(done, ""), **upgrade.failed}
        statuses = {
            name: {"status": "error" if why else "ok", "error": why} for name, why in told.items()
        }
        print(json.dumps(statuses, indent=2))
    elif done:
        print(f"{fold_names(done)}: the new client runs")
    for name, why in upgrade.failed.items():
        print(f"mbm: {name}: {sanitize_text(why)}.", file=sys.stderr)
    return FAILED if upgrade.failed else OK


def _read_changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is to change of cm.json."""
    new: dict[str, Any] = {}
    if options.wifi:
        new["wifi"] = [[ssid, _find_password(ssid)] for ssid in options.wifi]
    if options.server:
        parts = urlsplit(f"//{options.server}")
        new |= {"host": parts.hostname or "", "tcp_port": parts.port or config.DEFAULT_TCP_PORT}
    if options.watchdog is not None:
        if 0 < options.watchdog < WATCHDOG_SECONDS:
            raise CableError("", f"A watchdog of {options.watchdog} s is too short", _WATCHDOG_HINT)
        new["watchdog"] = options.watchdog
    if not new and not options.name:
        hint = "Give --wifi, --server, --watchdog or --name."
        raise CableError("", "Nothing is to be changed", hint)
    return new


def bridge_boards(options: argparse.Namespace) -> int:
    """Serve boards on cables until Ctrl-C."""
    from cloudmanager.cable.bridge import Bridge

    serial_ports.require_tools()
    names = _expand_names(options.name)
    with Fleet() as fleet:
        fleet.status()
        tell = _print_bridge_event_as_json if options.json else _print_bridge_event
        with Bridge(fleet, options.port, names, tell):
            print("Ctrl-C ends it.", file=sys.stderr)
            signal.pause()
    return OK


def _print_bridge_event(port: str, message: str) -> None:
    print(f"{sanitize_text(port)}  {sanitize_text(message)}", flush=True)


def _print_bridge_event_as_json(port: str, message: str) -> None:
    print(json.dumps({"port": port, "says": message}), flush=True)
