"""The command-line options of the server: ``python -m cm_server --help``."""

from __future__ import annotations

import argparse
import ipaddress
import os
from pathlib import Path
from typing import Any

from cloudmanager import config

from .jobs.scheduler import LOST_AFTER
from .limits import Limits

HEARTBEAT_SECONDS = 30.0  # between two pings to a board: 333 a second for 10,000 boards
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_args(limits: Limits) -> argparse.Namespace:
    """Parse the command line; exit with a message if it is not valid."""
    parser = _parser(limits)
    options = parser.parse_args()
    if options.bus and not options.store:
        parser.error("--bus needs a shared store: --store postgresql://…")
    if options.keep_jobs < 1 or options.keep_audit < limits.min_keep_audit_days:
        least = limits.min_keep_audit_days
        parser.error(f"--keep-jobs must be at least 1 day, --keep-audit at least {least} days")
    if not 0 < options.samples <= limits.total_samples:
        parser.error(f"--samples must be a number from 1 to {limits.total_samples}")
    if not 0 <= options.port < 65536:
        parser.error(f"--port must be a number from 0 to 65535, not {options.port}")
    return options


def _parser(limits: Limits) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cm_server", description="The Cloudmanager service."
    )
    parser.add_argument("--listen", default=config.DEFAULT_HOST, metavar="ADDRESS")
    parser.add_argument("--port", type=int, default=config.DEFAULT_TCP_PORT, metavar="N")
    parser.add_argument("--beat", type=float, default=HEARTBEAT_SECONDS, metavar="SECONDS")
    parser.add_argument("--lost-after", type=float, default=LOST_AFTER, metavar="SECONDS")
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a web page that may open links, such as https://lab.example",
    )
    parser.add_argument("--cert", type=Path, metavar="FILE", help="certificate for browsers, PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--behind-proxy",
        type=_network,
        action="append",
        default=[],
        metavar="CIDR",
        help="network of proxies that terminate TLS",
    )
    parser.add_argument("--log-json", action="store_true", help="write server.log as JSON")
    parser.add_argument("--samples", type=int, default=limits.samples_per_board, metavar="N")
    parser.add_argument("--store", default=os.environ.get("CM_STORE"), help="postgresql://…")
    parser.add_argument("--bus", default=os.environ.get("CM_BUS"), help="nats://…")
    parser.add_argument(
        "--index", type=config.parse_index, action="append", default=[], metavar="[ALIAS=]URL"
    )
    for what, days in (
        ("jobs", limits.keep_jobs_days),
        ("audit", limits.keep_audit_days),
    ):
        parser.add_argument(f"--keep-{what}", type=int, default=days, metavar="DAYS")
    return parser


def server_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that are arguments of ``Server``."""
    return {
        "beat": options.beat,
        "lost_after": options.lost_after,
        "origins": options.allow_origin,
        "proxies": options.behind_proxy,
        "cert": options.cert,
        "key": options.key,
        "samples": options.samples,
        "store": options.store,
        "bus": options.bus,
        "indexes": dict(options.index),
        "keep_jobs": options.keep_jobs,
        "keep_audit": options.keep_audit,
    }


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a network such as 10.0.0.0/8: {error}"
        ) from error
