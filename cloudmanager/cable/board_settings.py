"""A board's settings, ``/cm.json``: its identity, the server's address, whom it trusts."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloudmanager import config
from cloudmanager.client.fleet import Fleet

#: The fields of an enrolment that a board stores (docs/protocol.md, "Board link: authentication").
KEPT_KEYS = ("name", "id", "key", "gen", "ca", "mac", "token")
_UNUSED_ADDRESS = ("192.0.2.1", 9)  # reserved for documentation (RFC 5737); nothing is sent to it


class DialAddress(NamedTuple):
    """The address that boards connect to.

    Attributes:
        host: name or IP address of the server.
        tcp_port: its TCP port.
        reachable: whether other machines can reach it; if not, only virtual boards on this one.
    """

    host: str
    tcp_port: int
    reachable: bool


def find_dial_address(fleet: Fleet, server: str | None = None) -> DialAddress:
    """Return the address at which boards reach the server of a fleet.

    Args:
        fleet: the fleet.
        server: ``HOST`` or ``HOST:PORT`` to use instead of the address that is found.

    Raises:
        ServerUnreachable: the server does not answer.
        ValueError: ``server`` is not an address.
    """
    here = config.split_url(fleet.address.url)
    listens = config.split_url(str(fleet.status()["address"]))
    chosen = config.split_url(f"https://{server}" if server else fleet.address.url)
    host = chosen.hostname or ""
    tcp_port = chosen.port or here.port or config.DEFAULT_TCP_PORT
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
    """Return the content of a board's ``/cm.json``; it contains secrets.

    Args:
        enrolment: the server's answer when it enrolled the board or created a token for it.
        dial_address: the address that the board connects to.
    """
    known = {name: enrolment[name] for name in KEPT_KEYS if enrolment.get(name)}
    return {"host": dial_address.host, "tcp_port": dial_address.tcp_port, **known}


def _own_address() -> str:
    """Return this machine's address in its network; its host name if it has none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_UNUSED_ADDRESS)
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
