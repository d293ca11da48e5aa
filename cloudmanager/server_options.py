"""The options of the server. Each is declared once, as a field of ``ServerOptions``.

The declaration gives the option on the command lines of ``python -m cm_server`` and ``mbm
server-start``, its check, the argument with which the second starts the first, and what ``Server``
reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    Network = IPv4Network | IPv6Network


def _option(
    default: Any,
    metavar: str,
    text: str,
    parse: Callable[[str], Any] = str,
    variable: str = "",
) -> Any:
    """Declare an option.

    Args:
        default: a tuple for an option that may be given several times.
        metavar: the name of its value in the help; "" for an option without a value.
        text: its help.
        parse: returns the value of its text; raises ``argparse.ArgumentTypeError``.
        variable: the environment variable that the server reads if the option is not given.
    """
    return dataclasses.field(
        default=default,
        metadata={"metavar": metavar, "help": text, "parse": parse, "variable": variable},
    )


def _whole_number(what: str, least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            upper = f"at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"give {what} {upper}, not {text}")
        return number

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("give a number of seconds above 0")
    return seconds


def _file(text: str) -> Path:
    return Path(text).absolute()  # the server runs in another working directory


def _network(text: str) -> Network:
    import ipaddress  # here: `mbm` imports this module for each of its verbs

    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a network such as 10.0.0.0/8: {error}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What an administrator can set; docs/cli.md describes the options."""

    listen: str = _option(config.DEFAULT_HOST, "ADDRESS", "network address to listen on")
    port: int = _option(
        config.DEFAULT_TCP_PORT,
        "N",
        "TCP port; 0: any free port",
        _whole_number("a TCP port", 0, 65535),
    )
    cert: Path | None = _option(
        None, "FILE", "TLS certificate for browsers and monitoring (PEM)", _file
    )
    key: Path | None = _option(None, "FILE", "private key of that certificate (PEM)", _file)
    behind_proxy: tuple[Network, ...] = _option(
        (), "CIDR", "network of proxies that terminate TLS for this server", _network
    )
    allow_origin: tuple[str, ...] = _option(
        (), "ORIGIN", "a web page that may open links, such as https://lab.example"
    )
    index: tuple[tuple[str, str], ...] = _option(
        (),
        "[ALIAS=]URL",
        "additional mip package index; without ALIAS, it replaces the default index",
        config.parse_index,
    )
    #: 30 s are 333 pings a second for 10,000 boards.
    beat: float | None = _option(
        None, "SECONDS", "time between two pings to a board (default: 30; 4 with --store)", _seconds
    )
    lost_after: float | None = _option(
        None,
        "SECONDS",
        "time for a board to reconnect until its job is lost (default: 10; 20 with --store)",
        _seconds,
    )
    #: At most ``Limits.total_samples``, which all boards share.
    samples: int = _option(
        1000, "N", "number of samples kept per board", _whole_number("a number", 1, 100_000)
    )
    #: 0 turns the history of samples off.
    keep_samples: int = _option(
        7, "DAYS", "days to keep samples; 0: only the newest", _whole_number("a number of days,", 0)
    )
    keep_minutes: int = _option(
        400,
        "DAYS",
        "days to keep minutes of samples: their means, least, greatest and last values",
        _whole_number("a number of days,", 1),
    )
    sample_disk: int = _option(
        10_000,
        "MB",
        "disk space for the history of samples; with more, the oldest is deleted",
        _whole_number("a number of megabytes,", 1),
    )
    keep_jobs: int = _option(90, "DAYS", "days to keep jobs", _whole_number("a number of days,", 1))
    #: The database itself refuses to delete younger rows than 30 days.
    keep_audit: int = _option(
        400,
        "DAYS",
        "days to keep the audit log, at least 31",
        _whole_number("a number of days,", 31),
    )
    keep_texts: int = _option(
        30,
        "DAYS",
        "days to keep what cells ran, for boards' histories; 0: not at all",
        _whole_number("a number of days,", 0),
    )
    viewers_read_logs: bool = _option(
        False, "", "let viewers read what boards print outside of cells; else operators only"
    )
    log_json: bool = _option(False, "", "write server.log as JSON lines")
    #: A URL may contain a password, which is not visible to other users in an environment variable.
    store: str | Path | None = _option(
        None, "URL", "store of several servers, postgresql://…", variable="CM_STORE"
    )
    bus: str | None = _option(
        None, "URL", "message bus of several servers, nats://…", variable="CM_BUS"
    )

    @property
    def beat_seconds(self) -> float:
        """The seconds between two pings to a board.

        A board dials again after 2.5 beats without a ping. With several servers, that has to
        happen before the others take the jobs of its server, which stands still, for lost.
        """
        return self.beat or (30.0 if self.store is None else 4.0)

    @property
    def lost_after_seconds(self) -> float:
        """The seconds that a board has to reconnect until its job is lost."""
        return self.lost_after or (10.0 if self.store is None else 20.0)

    def arguments(self) -> list[str]:
        """Return the options as arguments of ``python -m cm_server``, without defaults."""
        arguments: list[str] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if not field.metadata["metavar"]:
                arguments.append(_flag(field.name))
                continue
            for each in value if isinstance(field.default, tuple) else (value,):
                # An index is a pair of alias and URL.
                text = "=".join(each) if isinstance(each, tuple) else str(each)
                arguments.append(f"{_flag(field.name)}={text}")
        return arguments


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options to a parser of a command line."""
    for field in dataclasses.fields(ServerOptions):
        metavar, text = field.metadata["metavar"], field.metadata["help"]
        if not metavar:
            parser.add_argument(_flag(field.name), action="store_true", help=text)
            continue
        several = isinstance(field.default, tuple)
        if several:
            text += "; may be repeated"
        elif field.default is not None:
            text += f" (default: {_default_text(field.default)})"
        parser.add_argument(
            _flag(field.name),
            action="append" if several else "store",
            type=field.metadata["parse"],
            metavar=metavar,
            help=text,
        )


def _default_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_options(
    given: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> ServerOptions:
    """Return the options of a command line that was parsed with ``add_options``.

    Args:
        given: the parsed command line.
        environment: the variables that stand for some of the options; {} in a program that starts
            the server and lets it read them.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(ServerOptions):
        value = getattr(given, field.name)
        if value is None and field.metadata["variable"]:
            value = environment.get(field.metadata["variable"]) or None
        if value is not None:
            values[field.name] = tuple(value) if isinstance(field.default, tuple) else value
    return ServerOptions(**values)
