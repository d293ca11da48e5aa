"""Other Wi-Fi or another server for boards, as a rollout: what is asked for, and the board's side.

The change is what ``/cm.json`` of a board gets: another network, or another address. The board
keeps the old settings until the new ones have worked (mpy_client/cm/outage.py): it restarts, and
goes back by itself after a minute without a link. A password is in the store's table ``shared`` as
long as the rollout is open, and on its way to boards in a file; nothing else contains it. Pure.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import PackageError, ServerError
from cm_server.installs.board_install import ANY_SIZE, AddBytes
from cm_server.installs.job_steps import FileOp, OpGenerator

#: Names of the rollouts' groups; a group of ``fleet.toml`` cannot begin with this character.
GROUP_PREFIX: Final = "@"
WIFI: Final = "@wifi"
SERVER: Final = "@server"
#: A board has so many attempts: an outage of the network says nothing against new settings, but
#: what fails each time does.
MAX_RETURNS: Final = 3
#: Seconds that a board has to be away until it counts as moved to another server: the trial of the
#: settings takes a minute, after which it restarts, connects to Wi-Fi and would be back here.
MOVED_SECONDS: Final = 180.0
CHANGE_PATH: Final = "/cm.change"
FIRST_OPS: Final[tuple[FileOp, ...]] = (["hash", "/cm.json", ANY_SIZE],)
_MAX_SSID_BYTES: Final = 32  # IEEE 802.11
_MAX_PASSWORD_BYTES: Final = 64  # of WPA: 8 to 63 characters, or 64 hexadecimal digits
_MAX_HOST_CHARS: Final = 253
_MAX_PORT: Final = 65535

#: Merges the change into the settings that the board tries at its next start. Its value is "new",
#: or "same" if the board has them already.
_APPLY_CODE: Final = """
def _apply(mark):
    import json, os
    with open("/cm.json") as file:
        old = json.load(file)
    if old.get("change") == mark:
        return "same"
    with open("/cm.change") as file:
        new = json.load(file)
    if "wifi" in new:
        if not old.get("wifi"):
            raise OSError("it has no Wi-Fi in its settings")
        if new.pop("keep"):
            new["wifi"] += [each for each in old["wifi"] if each not in new["wifi"]]
    old.update(new)
    old["change"] = mark
    with open("/cm.tmp", "w") as file:
        json.dump(old, file)
    os.rename("/cm.tmp", "/cm.new")
    os.remove("/cm.change")
    return "new"
try:
    __cm__(_apply(MARK))
finally:
    del _apply
"""
#: Its value is whether the settings in use have the mark of the change.
_CHECK_CODE: Final = """
def _check(mark):
    import json
    with open("/cm.json") as file:
        return json.load(file).get("change") == mark
try:
    __cm__(_check(MARK))
finally:
    del _check
"""


def apply_code(mark: str) -> bytes:
    """Return the cell that prepares the change on a board.

    Args:
        mark: what ``/cm.json`` says of the change afterwards.
    """
    return _APPLY_CODE.replace("MARK", repr(mark)).encode()


def check_code(mark: str) -> bytes:
    """Return the cell that says whether a board has the change, as its value."""
    return _CHECK_CODE.replace("MARK", repr(mark)).encode()


class NetworkChange(NamedTuple):
    """What changes in the settings of boards.

    Attributes:
        group: "@wifi" or "@server".
        shown: what may be shown of it.
        sent: what boards get; it may contain a password.
    """

    group: str
    shown: Mapping[str, Any]
    sent: Mapping[str, Any]

    def __repr__(self) -> str:
        """Leave out what boards get."""
        return f"NetworkChange({self.group!r}, {self.shown!r})"

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of a generation that names the change; each time another one."""
        return {
            "app": {},
            "packages": {},
            "settings": {},
            "boards": {},
            "network": dict(self.shown),
            "number": secrets.token_hex(8),
        }


def read_wifi(body: Mapping[str, Any]) -> NetworkChange:
    """Check what a request for another Wi-Fi says.

    Raises:
        ServerError: it is malformed; the text has no password.
    """
    ssid, password = body.get("ssid"), body.get("password")
    if not isinstance(ssid, str) or not 0 < len(_encoded(ssid)) <= _MAX_SSID_BYTES:
        raise ServerError(f"the name of a network has 1 to {_MAX_SSID_BYTES} bytes")
    if not isinstance(password, str) or len(_encoded(password)) > _MAX_PASSWORD_BYTES:
        raise ServerError(f"the password of a network has up to {_MAX_PASSWORD_BYTES} bytes")
    keep = bool(body.get("keep"))
    return NetworkChange(
        WIFI, {"ssid": ssid, "keep": keep}, {"wifi": [[ssid, password]], "keep": keep}
    )


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ServerError("names and passwords of networks must be text") from None


def read_server(body: Mapping[str, Any]) -> NetworkChange:
    """Check what a request for another address of the server says.

    Raises:
        ServerError: it is malformed.
    """
    host, tcp_port = body.get("host"), body.get("tcp_port")
    is_host = isinstance(host, str) and 0 < len(host) <= _MAX_HOST_CHARS
    if not is_host or not str(host).isprintable() or " " in str(host):
        raise ServerError("the address of a server is a host name or an IP address")
    if type(tcp_port) is not int or not 0 < tcp_port <= _MAX_PORT:
        raise ServerError(f"a TCP port is a number from 1 to {_MAX_PORT}")
    address = {"host": host, "tcp_port": tcp_port}
    return NetworkChange(SERVER, address, address)


def describe(manifest: Mapping[str, Any]) -> str:
    """Return what a rollout changes, in a few words; "" if it brings a generation."""
    network = manifest.get("network")
    if not isinstance(network, dict):
        return ""
    if "ssid" in network:
        more = ", besides the networks before" if network["keep"] else ""
        return f"Wi-Fi {network['ssid']!r}{more}"
    host = network["host"]
    return f"server {f'[{host}]' if ':' in host else host}:{network['tcp_port']}"


def send(change: Mapping[str, Any], add_bytes: AddBytes) -> OpGenerator:
    """Write the change to a board, as a file: so no text of a cell contains it.

    Args:
        change: what the board gets.
        add_bytes: makes a content of bytes that are sent to it.

    Returns:
        None.

    Raises:
        PackageError: the board has no settings of its own.
    """
    (digest,) = yield list(FIRST_OPS)
    if not digest:
        raise PackageError(
            "it has no settings to change: its client was not installed by mbm flash"
        )
    yield [["put", CHANGE_PATH, add_bytes(json.dumps(change).encode())]]


def refusal_reason(parts: frozenset[str]) -> str:
    """Return why a board cannot get other settings; "" if it can, or that is not known.

    Args:
        parts: of its client.
    """
    if parts and "boot" not in parts:
        return "it has no settings to change: it is on a bridge, or its client is too old"
    return ""
