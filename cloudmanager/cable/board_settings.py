"""What a board has to know, in its ``/cm.json``: who it is, where it dials, and whom it trusts."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloudmanager import config
from cloudmanager.client.fleet import Fleet

#: The fields of an enrolment that a board stores (docs/protocol.md, "Board link: authentication").
KEPT_KEYS = ("name", "id", "key", "gen", "ca", "mac", "token")
_UNUSED_ADDRESS = ("192.0.2.1", 9)  # an address that nobody has (RFC 5737): nothing is sent to it


class DialAddress(NamedTuple):
    """Where boards dial.

    Attributes:
        reachable: whether other machines can: else only virtual boards on this one.
    """

    host: str
    tcp_port: int
    reachable: bool


def find_dial_address(fleet: Fleet, server: str | None = None) -> DialAddress:
    """Return where boards reach the server of a fleet.

    Args:
        fleet: whose server it is.
        server: ``HOST`` or ``HOST:PORT``, where a person knows better.

    Raises:
        ServerUnreachable: no server.
        ValueError: ``server`` is no address.
    """
    here = config.split_url(fleet.address.url)
    listens = config.split_url(str(fleet.status()["address"]))
    told = config.split_url(f"https://{server}" if server else fleet.address.url)
    host, tcp_port = told.hostname or "", told.port or here.port or config.DEFAULT_TCP_PORT
    if (
        not server
        and host in config.LOOPBACK_HOSTS
        and listens.hostname not in config.LOOPBACK_HOSTS
    ):
        host = (
            _own_address() if listens.hostname in ("", "0.0.0.0", "::", None) else listens.hostname
        )
    return DialAddress(host, tcp_port, listens.hostname not in config.LOOPBACK_HOSTS)


def make_board_settings(enrolment: Mapping[str, Any], dial_address: DialAddress) -> dict[str, Any]:
    """Return the content of a board's ``/cm.json``; it is secret.

    Args:
        enrolment: what the server said when it enrolled the board, or made a token for it.
        dial_address: where the board dials.
    """
    known = {name: enrolment[name] for name in KEPT_KEYS if enrolment.get(name)}
    return {"host": dial_address.host, "tcp_port": dial_address.tcp_port, **known}


def _own_address() -> str:
    """Return the address by which others reach this machine; its name, where there is none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_UNUSED_ADDRESS)
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
