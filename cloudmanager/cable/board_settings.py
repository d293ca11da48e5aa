"""What a board has to know, in its ``/cm.json``: who it is, where it dials, and whom it trusts."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloudmanager import config
from cloudmanager.client.fleet import Fleet

#: The fields of an enrolment that a board stores (docs/protocol.md, "Board link: authentication").
KEPT = ("name", "id", "key", "gen", "ca", "mac", "token")
_ELSEWHERE = ("192.0.2.1", 9)  # an address that nobody has (RFC 5737): nothing is sent to it


class Place(NamedTuple):
    """Where boards dial.

    Attributes:
        reachable: whether other machines can: else only virtual boards on this one.
    """

    host: str
    tcp_port: int
    reachable: bool


def place_of(fleet: Fleet, server: str | None = None) -> Place:
    """Return where boards reach the server of a fleet.

    Args:
        fleet: whose server it is.
        server: ``HOST`` or ``HOST:PORT``, where a person knows better.

    Raises:
        ServerUnreachable: no server.
        ValueError: ``server`` is no address.
    """
    here = config.split(fleet.address.url)
    listens = config.split(str(fleet.status()["address"]))
    told = config.split(f"https://{server}" if server else fleet.address.url)
    host, tcp_port = told.hostname or "", told.port or here.port or config.DEFAULT_TCP_PORT
    if not server and host in config.LOOPBACK and listens.hostname not in config.LOOPBACK:
        host = (
            _own_address() if listens.hostname in ("", "0.0.0.0", "::", None) else listens.hostname
        )
    return Place(host, tcp_port, listens.hostname not in config.LOOPBACK)


def settings(told: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Return the content of a board's ``/cm.json``; it is secret.

    Args:
        told: what the server said when it enrolled the board, or made a token for it.
        place: where the board dials.
    """
    known = {name: told[name] for name in KEPT if told.get(name)}
    return {"host": place.host, "tcp_port": place.tcp_port, **known}


def _own_address() -> str:
    """Return the address by which others reach this machine; its name, where there is none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_ELSEWHERE)
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
