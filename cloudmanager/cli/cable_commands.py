"""``mbm flash``, ``board-scan``, ``board-config``, ``bridge``: verbs for boards on a cable.

This module parses arguments, asks the user and prints; ``cloudmanager.cable`` does the work.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import ipaddress
import json
import re
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from cloudmanager import config
from cloudmanager.cable import firmware, reconfigure, serial_ports
from cloudmanager.cable.board_settings import find_dial_address
from cloudmanager.cable.flash import FlashOptions, FlashOutcome, flash_and_join
from cloudmanager.cable.serial_ports import BoardRepl, SerialPort
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.run_arguments import (
    add_wait_options,
    wait_keywords,
    wait_options_error,
)
from cloudmanager.display.progress import ProgressBar
from cloudmanager.display.terminal import print_error
from cloudmanager.display.waiting_view import all_wait
from cloudmanager.protocol.errors import CableError, CloudmanagerError, TargetError
from cloudmanager.protocol.names import expand_range
from cloudmanager.protocol.targets import parse_target
from cloudmanager.protocol.text import fold_names, sanitize_text
from cloudmanager.results.results import Results, error_text

from .commands import AddVerb, open_fleet
from .file_commands import print_results, print_usage_error

OK, FAILED = 0, 1
#: Shortest watchdog timeout: a board blocks for up to 20 s while it connects to a server.
MIN_WATCHDOG_SECONDS = 30
_WATCHDOG_HINT = (
    f"Use {MIN_WATCHDOG_SECONDS} s or more: a board does not feed the watchdog while it tries to "
    "connect to a server that does not answer."
)
SCAN_SECONDS = 5.0  # time for a board to show its REPL prompt
KEYRING_SERVICE = "cloudmanager wifi"  # the keyring's service that holds passwords by SSID
_WIFI_HELP = (
    "Wi-Fi network; its password is asked for. May be repeated: the board tries them in order"
)
_LABEL_HELP = "label of the board, such as room=lab; may be repeated"
_SERVER_HELP = "address that the boards connect to (default: the server in use)"
#: A serial port of Windows; a board may be called `compost-1`.
_WINDOWS_PORT = re.compile(r"(?i)(\\\\\.\\)?com\d+")
_PORT_HELP = (
    "serial port, or drive of a Pico, of the board; may be repeated (default: search for boards)"
)
_WAITING_FOR_BOARDS = "No board was found on USB: waiting until one is plugged in. "
_NAME_HELP = "names such as lab-7 or 'lab-[1-40]' (default: by chip: esp32-1, esp32-2 …)"


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    flash = add_verb(
        "flash",
        flash_boards,
        "install MicroPython and the client on boards on a cable, and add them to the fleet",
    )
    flash.epilog = "docs/boards.md describes the steps from a new board to its first cell."
    flash.add_argument("--port", action="append", metavar="PORT", help=_PORT_HELP)
    flash.add_argument("--all", action="store_true", help="flash all connected boards in parallel")
    flash.add_argument(
        "--firmware",
        metavar="FILE|URL|VERSION",
        help="MicroPython to install (default: the newest release)",
    )
    flash.add_argument(
        "--no-flash", action="store_true", help="keep the MicroPython that the board has"
    )
    flash.add_argument("--name", metavar="NAME|RANGE", help=_NAME_HELP)
    flash.add_argument("--wifi", action="append", default=[], metavar="SSID", help=_WIFI_HELP)
    flash.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help=_LABEL_HELP
    )
    flash.add_argument("--server", type=parse_host, metavar="HOST[:PORT]", help=_SERVER_HELP)
    flash.add_argument(
        "--dry-run", action="store_true", help="show what would be done; change nothing"
    )
    scan = add_verb("board-scan", board_scan, "list the boards on cables, and what runs on them")
    scan.add_argument(
        "port", nargs="*", metavar="PORT", help="serial port (default: all USB serial ports)"
    )
    settings = add_verb(
        "board-config", board_config, "change a board's Wi-Fi, server, watchdog or name"
    )
    settings.epilog = (
        "If the board cannot connect with the new settings, it goes back to the old ones."
    )
    settings.add_argument(
        "board",
        metavar="PORT|TARGET",
        help="serial port of a board on a cable, or target of connected boards",
    )
    settings.add_argument("--wifi", action="append", default=[], metavar="SSID", help=_WIFI_HELP)
    settings.add_argument(
        "--server",
        type=parse_host,
        metavar="HOST[:PORT]",
        help="address that the board connects to",
    )
    settings.add_argument(
        "--watchdog",
        type=int,
        metavar="S",
        help=f"watchdog timeout in seconds, at least {MIN_WATCHDOG_SECONDS}; 0 disables it",
    )
    settings.add_argument("--name", metavar="NAME", help="new name of the board")
    settings.add_argument(
        "--ip",
        type=_parse_ip,
        metavar="ADDRESS/BITS,GATEWAY[,DNS]|dhcp",
        help="static address, such as 192.168.1.50/24,192.168.1.1; dhcp removes it",
    )
    settings.add_argument(
        "--country",
        type=_parse_country,
        metavar="CC",
        help="country in which its Wi-Fi is used, such as DE: it decides which channels exist",
    )
    add_wait_options(settings)
    upgrade = add_verb(
        "board-upgrade-client",
        upgrade_client,
        "install this version's client on boards, over the network",
    )
    upgrade.add_argument("target", metavar="TARGET")
    add_wait_options(upgrade)
    renew = add_verb(
        "board-upgrade-firmware",
        upgrade_firmware,
        "write firmware to boards over the network; those that do not work with it go back",
    )
    renew.epilog = "Only for ESP32 boards whose flash has two slots for firmware."
    renew.add_argument("target", metavar="TARGET")
    renew.add_argument(
        "firmware",
        metavar="VERSION|FILE",
        help="a version of MicroPython such as 1.29.0, or an image (.app-bin)",
    )
    bridge = add_verb(
        "bridge",
        bridge_boards,
        "connect boards that have no network to the fleet, through their cables",
    )
    bridge.epilog = "The boards are in the fleet while this runs. Press Ctrl-C to stop it."
    bridge.add_argument(
        "port",
        nargs="*",
        metavar="PORT",
        help="serial port (default: all boards, also those plugged in later)",
    )
    bridge.add_argument("--name", metavar="NAME|RANGE", help="names for new boards")


def flash_boards(options: argparse.Namespace) -> int:
    """Flash boards and add them to the fleet."""
    firmware.check_file(options.firmware)
    with Fleet() as fleet:
        fleet.status()  # raises without a server, before a board is changed
        flash_options = FlashOptions(
            server=_server_address(options, fleet),
            firmware=options.firmware,
            flash=not options.no_flash,
            names=_expand_names(options.name),
            wifi=[(ssid, find_password(ssid)) for ssid in options.wifi],
            labels=_parse_labels(options.label),
            dry_run=options.dry_run,
        )
        printer = _ProgressPrinter(quiet=options.json)
        outcomes = flash_and_join(_choose_ports(options), flash_options, fleet, printer)
    if options.json:
        print(json.dumps({outcome.port: outcome.to_json() for outcome in outcomes}, indent=2))
    else:
        _print_outcomes(outcomes, options.dry_run)
    return FAILED if any(outcome.error for outcome in outcomes) else OK


def _print_outcomes(outcomes: Sequence[FlashOutcome], dry_run: bool) -> None:
    """Print a line for each board: failures on standard error, the others on standard output."""
    for outcome in outcomes:
        port = sanitize_text(outcome.port)
        if outcome.error:
            print_error(f"{port}: {sanitize_text(outcome.error)}")
        elif dry_run:
            print(f"{port} would join the fleet.")
        else:
            print(f"{port} joined the fleet as {outcome.name} and ran a cell.")


class _ProgressPrinter:
    """Prints the progress of flashing on standard error, a line for each step."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self._last: dict[str, str] = {}

    def __call__(self, port: str, step: str, message: str) -> None:
        """Print a line, unless it repeats the port's last one; percentages in steps of 20."""
        if message.endswith("% written"):
            percent = int(message.split("%")[0])
            message = f"{percent // 20 * 20}% written"
        with self._lock:
            if not self._quiet and self._last.get(port) != message:
                self._last[port] = message
                print(
                    f"{sanitize_text(port)}  {step:<8}  {sanitize_text(message)}",
                    file=sys.stderr,
                    flush=True,
                )


def _choose_ports(options: argparse.Namespace) -> list[str]:
    """Return the ports to flash; ask the user if there are several boards and no option."""
    if options.port:
        return list(dict.fromkeys(options.port))
    found = serial_ports.find_serial_ports()
    if not found:
        hint = "Plug one in; some cables only charge. Use --port for a port that was not found."
        raise CableError("", "No board was found on a cable", hint)
    if options.all or len(found) == 1:
        return [port.device for port in found]
    if not sys.stdin.isatty():
        devices = ", ".join(port.device for port in found)
        raise CableError("", f"Several boards were found: {devices}", "Use --port or --all.")
    return [_ask_port(found)]


def _ask_port(found: Sequence[SerialPort]) -> str:
    for number, port in enumerate(found, 1):
        print(
            f"{number:>3}  {sanitize_text(port.device)}  {sanitize_text(port.description)}",
            file=sys.stderr,
        )
    while True:
        answer = input("Number of the board to flash: ")
        if answer.isdecimal() and 0 < int(answer) <= len(found):
            return found[int(answer) - 1].device


def _server_address(options: argparse.Namespace, fleet: Fleet) -> tuple[str, int]:
    """Return the address that boards connect to.

    Raises:
        CableError: the boards use Wi-Fi, but the server accepts local connections only.
    """
    address = find_dial_address(fleet, options.server)
    if options.wifi and not options.server and not address.reachable:
        what = "The server listens on this machine only: boards cannot reach it over Wi-Fi"
        hint = "Restart it: `mbm server-stop`, then `mbm server-start --listen 0.0.0.0`."
        raise CableError("", what, hint)
    return address.host, address.tcp_port


def find_password(ssid: str) -> str:
    """Return a network's password from the keyring, if it has one; else ask the user."""
    # The keyring is optional, and its backends raise errors of any class without a desktop.
    with contextlib.suppress(Exception):
        import keyring

        if (password := keyring.get_password(KEYRING_SERVICE, ssid)) is not None:
            return str(password)
    if not sys.stdin.isatty():
        hint = (
            "Run this in a terminal, or store the password first: "
            f'`keyring set "{KEYRING_SERVICE}" SSID`.'
        )
        raise CableError("", f"Cannot ask for the password of {ssid!r}: not a terminal", hint)
    return getpass.getpass(f"Password of {sanitize_text(ssid)}: ")


def _expand_names(text: str | None) -> tuple[str, ...]:
    """Return the names of a range such as ``lab-[1-40]``; () for no text."""
    if not text:
        return ()
    parse_target(text)  # raises on a bracket that is not closed
    return expand_range(text, text, 0)


def parse_host(text: str) -> str:
    """Check HOST or HOST:PORT and return it; the type of an option."""
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
            raise TargetError("A label is written key=value.", pair, 0, "For example: room=lab.")
    return dict(pair.partition("=")[::2] for pair in pairs)


# Scan


def board_scan(options: argparse.Namespace) -> int:
    """List the boards on cables."""
    found = [SerialPort(port, "") for port in options.port] or serial_ports.find_serial_ports()
    known = _names_by_id()
    with ProgressBar(unit="boards", quiet=options.json) as progress:
        for port in found:
            progress(port.device, 0, 1)
        rows = []
        for port in found:
            rows.append(_scan_port(port, known))
            progress(port.device, 1, 1)
    if options.json:
        print(json.dumps(rows, indent=2))
        return OK
    for row in rows:
        state = f"MicroPython {row['version']} on {row['platform']}"
        if not row["version"]:
            state = row["error"]
        name = f"in the fleet as {row['name']}" if row["name"] else ""
        columns = [row["port"], row["what"], state, name]
        print("  ".join(sanitize_text(str(column)) for column in columns if column))
    if not rows:
        print("No board was found on a cable. Some cables only charge.")
    return OK


def _scan_port(port: SerialPort, names_by_id: dict[str, str]) -> dict[str, Any]:
    """Describe one board; a program that has to be interrupted for that is restarted."""
    row = {
        "port": port.device,
        "what": port.description,
        "platform": "",
        "version": "",
        "machine": "",
        "name": "",
        "error": "",
    }
    try:
        with BoardRepl(port.device) as repl:
            repl.await_prompt(SCAN_SECONDS)
            facts = repl.facts()
            board_id, _ = repl.identity()
            repl.leave_raw_repl()
    except CableError as error:
        return row | {"error": error.detail}
    row |= {key: facts[key] for key in ("platform", "version", "machine")}
    return row | {"name": names_by_id.get(board_id or "", "")}


def _names_by_id() -> dict[str, str]:
    """Return id -> name of the fleet's boards; empty without a server."""
    with contextlib.suppress(CloudmanagerError), Fleet() as fleet:
        return {board["id"]: board["name"] for board in fleet.boards()}
    return {}


# Settings


def board_config(options: argparse.Namespace) -> int:
    """Change settings; a board that cannot connect with them goes back to the old ones."""
    if error := wait_options_error(options):
        return print_usage_error(error)
    on_cable = "/" in options.board or _WINDOWS_PORT.fullmatch(options.board) is not None
    if on_cable and options.when_online:
        return print_usage_error("--when-online is for boards of the fleet, not on a cable.")
    if options.name and options.when_online:
        return print_usage_error("--name changes the fleet at once: not with --when-online.")
    new = _read_changes(options)
    status = (_configure_by_cable if on_cable else _configure_by_link)(options, new)
    if options.when_online:
        return status
    if options.json:
        print(json.dumps(sorted([*new, *["name"] * bool(options.name)])))
    elif status == OK:
        board = sanitize_text(options.board)
        if new:
            print(
                f"{board} is restarting with the new settings. "
                "If it cannot connect, it restores the old ones."
            )
        if options.name:
            print(f"Renamed the board to {options.name}.")
    return status


def _configure_by_cable(options: argparse.Namespace, changes: dict[str, Any]) -> int:
    with ProgressBar("writing the settings", quiet=options.json):
        board_id = reconfigure.configure_by_cable(options.board, changes)
    if options.name:
        with Fleet() as fleet:
            names = {board["id"]: board["name"] for board in fleet.boards()}
            if board_id not in names:
                hint = "Add it with `mbm flash --no-flash`."
                raise CableError(options.board, "The board is not in this fleet", hint)
            fleet.rename(names[board_id], options.name)
    return OK


def _configure_by_link(options: argparse.Namespace, changes: dict[str, Any]) -> int:
    with open_fleet(options) as fleet:
        results = Results({})
        if changes:
            with ProgressBar("writing the settings", quiet=options.json):
                results = reconfigure.configure_by_link(
                    fleet[options.board], changes, **wait_keywords(options)
                )
        if options.when_online:
            return print_results(results, options)
        for name, result in results.items():
            if not result.ok:
                print_error(f"{name}: {sanitize_text(error_text(result.error))}")
        if results.ok and options.name:
            fleet.rename(options.board, options.name)
    return OK if results.ok else FAILED


def upgrade_client(options: argparse.Namespace) -> int:
    """Install this version's client on boards, over the network."""
    if error := wait_options_error(options):
        return print_usage_error(error)
    with open_fleet(options) as fleet, ProgressBar(quiet=options.json) as progress:
        results = fleet[options.target].upgrade_client(progress=progress, **wait_keywords(options))
    if all_wait(results):
        return print_results(results, options)
    return _print_upgraded(results, options, "the new client is running")


def upgrade_firmware(options: argparse.Namespace) -> int:
    """Write firmware to boards, over the network."""
    with open_fleet(options) as fleet, ProgressBar(quiet=options.json) as progress:
        results = fleet[options.target].upgrade_firmware(options.firmware, progress=progress)
    return _print_upgraded(results, options, "the new firmware is running")


def _print_upgraded(results: Results, options: argparse.Namespace, text: str) -> int:
    """Print which boards were upgraded, and why others were not; return the exit status."""
    errors = {name: error_text(result.error) for name, result in results.failed.items()}
    if options.json:
        statuses = {
            name: {"status": "ok" if result.ok else "error", "error": errors.get(name, "")}
            for name, result in results.items()
        }
        print(json.dumps(statuses, indent=2))
    elif upgraded := [name for name, result in results.items() if result.ok]:
        print(f"{fold_names(upgraded)}: {text}")
    for name, error in errors.items():
        print_error(f"{name}: {sanitize_text(error)}.")
    return OK if results.ok else FAILED


def _read_changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the entries of a board's ``cm.json`` that the options change."""
    new: dict[str, Any] = {}
    if options.wifi:
        new["wifi"] = [[ssid, find_password(ssid)] for ssid in options.wifi]
    if options.server:
        parts = urlsplit(f"//{options.server}")
        new |= {"host": parts.hostname or "", "tcp_port": parts.port or config.DEFAULT_TCP_PORT}
    if options.watchdog is not None:
        if 0 < options.watchdog < MIN_WATCHDOG_SECONDS:
            raise CableError("", f"A watchdog of {options.watchdog} s is too short", _WATCHDOG_HINT)
        new["watchdog"] = options.watchdog
    if options.ip is not None:
        new["ip"] = options.ip
    if options.country:
        new["country"] = options.country
    if not new and not options.name:
        hint = "Use --wifi, --server, --watchdog, --ip, --country or --name."
        raise CableError("", "No setting to change was given", hint)
    return new


def _parse_ip(text: str) -> list[str]:
    """Return address, netmask, gateway and DNS server for a board's settings; [] for DHCP."""
    if text == "dhcp":
        return []
    address, *others = text.split(",")
    try:
        own = ipaddress.IPv4Interface(address)
        gateway, *dns = [str(ipaddress.IPv4Address(one)) for one in others]
        inside = ipaddress.IPv4Address(gateway) in own.network
        valid = "/" in address and inside and len(dns) <= 1
    except (ValueError, IndexError):
        valid = False
    if not valid:
        wanted = "ADDRESS/BITS,GATEWAY[,DNS], such as 192.168.1.50/24,192.168.1.1"
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}, or dhcp")
    return [str(own.ip), str(own.netmask), gateway, *(dns or [gateway])]


def _parse_country(text: str) -> str:
    """Return a country's code in capitals."""
    if not (len(text) == 2 and text.isascii() and text.isalpha()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a country's code of two letters")
    return text.upper()


# Bridge


def bridge_boards(options: argparse.Namespace) -> int:
    """Serve boards on cables until Ctrl-C."""
    from cloudmanager.cable.bridge import Bridge

    config.require_posix("The bridge needs")  # it waits for serial ports and sockets by select()
    serial_ports.require_tools()
    names = _expand_names(options.name)
    with Fleet() as fleet:
        fleet.status()  # raises without a server
        on_event = _print_bridge_event_as_json if options.json else _print_bridge_event
        waits = "" if options.port or serial_ports.find_serial_ports() else _WAITING_FOR_BOARDS
        with Bridge(fleet, options.port, names, on_event):
            print(f"{waits}Press Ctrl-C to stop the bridge.", file=sys.stderr)
            signal.pause()
    return OK


def _print_bridge_event(port: str, message: str) -> None:
    print(f"{sanitize_text(port)}  {sanitize_text(message)}", flush=True)


def _print_bridge_event_as_json(port: str, message: str) -> None:
    print(json.dumps({"port": port, "says": message}), flush=True)
