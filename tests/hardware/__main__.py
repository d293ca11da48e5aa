"""The hardware suite: `make hardware PORT=/dev/ttyACM0 [WIFI=SSID] [RESET="command"]`.

It takes about ten minutes, and prints a table for an issue. The board's client and `app.py` are
replaced; other files are kept. The user's own fleet is not touched: the suite starts a server that
is removed afterwards.
"""

from __future__ import annotations

import argparse
import getpass
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable

from cloudmanager.protocol.errors import CloudmanagerError

from . import bridge_checks, cell_checks, client_checks, time_checks
from .bench import Bench, Options
from .checks import Check, Row, markdown_table, run_checks


def choose_checks(options: Options) -> list[Check]:
    """Return the checks for a board with Wi-Fi, or for one behind the bridge."""
    if options.wifi:
        checks = [*client_checks.CHECKS, *time_checks.CHECKS]
        return [*client_checks.START, *cell_checks.CHECKS, *checks]
    return [*bridge_checks.START, *cell_checks.CHECKS, *bridge_checks.CHECKS]


def describe(bench: Bench) -> str:
    """Return a line about the board and how it was connected."""
    options, facts = bench.options, bench.facts
    how = "Wi-Fi" if options.wifi else "the bridge"
    if options.wifi:
        how += ", " + options.link.upper()
    day = time.strftime("%Y-%m-%d")
    return f"{facts.get('machine')}, MicroPython {facts.get('version')}, by {how}, {day}"


def run_suite(options: Options, only: str = "") -> tuple[str, list[Row]]:
    """Run the suite; return the line about the board, and the rows.

    Args:
        options: what is tested.
        only: run only checks whose row contains this word, and the first one.
    """
    with Bench(options) as bench:
        bench.look_at_board()
        header = describe(bench)
        print(header, file=sys.stderr, flush=True)
        checks = choose_checks(options)
        chosen = [c for n, c in enumerate(checks) if not n or only in c.what]
        return header, run_checks(chosen, bench, _print_row)


def _print_row(row: Row) -> None:
    print(f"{row.outcome:<8} {row.what}  {row.figure}", file=sys.stderr, flush=True)


def _read_options(argv: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make hardware", description=__doc__)
    parser.add_argument("port", help="serial port of the board")
    parser.add_argument("--wifi", default="", help="SSID; without it, the bridge is tested")
    parser.add_argument("--server", default=None, help="HOST[:PORT] that the board connects to")
    parser.add_argument("--link", choices=("tls", "mac"), default="tls", help="kind of its link")
    parser.add_argument("--tcp-port", type=int, default=0, help="of the server (default: any)")
    parser.add_argument("--reset", default="", help="a command that resets the board")
    parser.add_argument("--repeats", type=int, default=100, help="interrupts (default: 100)")
    parser.add_argument("--only", default="", help="run only the checks with this word")
    return parser.parse_args(argv)


def main() -> int:
    """Run the suite on a board; return 1 if a check failed."""
    given = _read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped
    wifi = None
    if given.wifi:
        password = os.environ.get("WIFI_PASSWORD")
        wifi = given.wifi, getpass.getpass() if password is None else password
    options = Options(
        given.port,
        wifi,
        given.server,
        given.link,
        given.tcp_port,
        given.reset,
        given.repeats,
    )
    with tempfile.TemporaryDirectory() as home:
        os.environ["CM_HOME"] = home
        try:
            header, rows = run_suite(options, given.only)
        except CloudmanagerError as error:
            print(f"make hardware: {error}", file=sys.stderr)
            return 2
    print(markdown_table(header, rows))
    return int(any(row.outcome == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
