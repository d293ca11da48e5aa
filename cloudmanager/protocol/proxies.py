"""HTTP proxies, as the environment names them; no sockets.

The variables are those of curl, pip and most other programs: ``http_proxy`` and ``https_proxy``, by
the scheme of the address, else ``all_proxy``; ``no_proxy`` lists hosts that are connected to
directly. Lower-case names are preferred to upper-case ones. This machine's own addresses are always
connected to directly.

A connection through a proxy begins with CONNECT (RFC 9110, section 9.3.6).
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

MAX_HEAD_BYTES: Final = 16 * 1024  # of a proxy's response to CONNECT
_DEFAULT_TCP_PORT: Final = 80  # if the proxy's URL has none, as for curl's http:// URLs: RFC 9110
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})\b")


class Proxy(NamedTuple):
    """A proxy.

    Attributes:
        host: its name or address.
        tcp_port: its TCP port.
        authorization: the value of the header Proxy-Authorization; "" for none.
    """

    host: str
    tcp_port: int
    authorization: str = ""

    def __str__(self) -> str:
        """Return its address, without the password."""
        return f"{_bracketed(self.host)}:{self.tcp_port}"

    def __repr__(self) -> str:
        """Return its address, without the password."""
        return f"Proxy({str(self)!r})"


class ProxyError(OSError):
    """The proxy cannot be used, or does not connect to the address."""


def find_proxy(
    scheme: str, host: str, tcp_port: int, environ: Mapping[str, str] = os.environ
) -> Proxy | None:
    """Return the proxy for an address; None to connect directly.

    Args:
        scheme: "http" or "https".
        host: the name or address of the host to connect to.
        tcp_port: its TCP port.
        environ: the environment variables.

    Raises:
        ProxyError: the environment names a proxy of another kind than HTTP, or a malformed one.
    """
    url = _variable(environ, f"{scheme}_proxy") or _variable(environ, "all_proxy")
    if not url or is_this_machine(host):
        return None
    if _is_excluded(host, tcp_port, _variable(environ, "no_proxy")):
        return None
    return _read_proxy(url)


def _variable(environ: Mapping[str, str], name: str) -> str:
    """Return a variable, in lower case or in upper case.

    HTTP_PROXY is ignored in CGI programs, where a request's header Proxy would set it.
    """
    upper = "" if name == "http_proxy" and "REQUEST_METHOD" in environ else name.upper()
    return (environ.get(name) or environ.get(upper) or "").strip()


def _read_proxy(url: str) -> Proxy:
    """Return the proxy of a URL; without a scheme it is HTTP."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, tcp_port = parts.hostname or "", parts.port or _DEFAULT_TCP_PORT
    except ValueError:
        raise ProxyError("the proxy in the environment is not a URL") from None
    if parts.scheme != "http" or not host:
        raise ProxyError(
            f"only HTTP proxies can be used, such as http://HOST:PORT, not {parts.scheme}://"
        )
    authorization = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(host, tcp_port, authorization)


def is_this_machine(host: str) -> bool:
    """Return whether a host is this machine, by its name or a loopback address."""
    name = host.lower().rstrip(".")
    address = literal_address(host)
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(address)


def _is_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address is not None and (address.is_loopback or address.is_unspecified)


def literal_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host is, in any notation; None for a name.

    Such as ``127.0.0.1``, ``127.1``, ``0x7f000001``, ``[::1]`` and ``fe80::1%eth0``.
    """
    try:
        text = host if ":" in host else host.encode("idna").decode("ascii")
    except UnicodeError:
        return None
    text = text.strip("[]").partition("%")[0].rstrip(".")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9a-fA-FxX.]+", text):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text))
    except OSError:
        return None


def _is_excluded(host: str, tcp_port: int, no_proxy: str) -> bool:
    """Return whether ``no_proxy`` has a host.

    Its entries are names, which stand for their subdomains too, with or without a leading dot or
    ``*.``; addresses; networks such as ``10.0.0.0/8``; each but those with ``:PORT`` if it is for
    one port only; or ``*``.
    """
    name = host.lower().strip("[]").rstrip(".")
    address = literal_address(host)
    for entry in no_proxy.lower().replace(",", " ").split():
        if entry == "*":
            return True
        pattern, colon, port = entry.rpartition(":")
        if not (colon and port.isdigit()) or (":" in pattern and not pattern.startswith("[")):
            pattern, port = entry, ""  # without a port; an IPv6 address has colons itself
        if port and port != str(tcp_port):
            continue
        if address is not None:
            if _contains(pattern.strip("[]"), address):
                return True
            continue
        pattern = pattern.removeprefix("*").lstrip(".")
        if pattern and (name == pattern or name.endswith(f".{pattern}")):
            return True
    return False


def _contains(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def connect_request(proxy: Proxy, host: str, tcp_port: int) -> bytes:
    """Return the request that asks a proxy for a connection.

    Raises:
        ProxyError: the host's name is malformed.
    """
    try:
        name = host if ":" in host else host.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not name or not name.isprintable() or set(name) & set(" /\\?#@"):
        raise ProxyError(f"{host[:100]!r} is not the name of a host")
    address = f"{_bracketed(name)}:{tcp_port}"
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def check_connect_response(head: bytes, proxy: Proxy) -> None:
    """Check a proxy's response to CONNECT, up to its empty line.

    Raises:
        ProxyError: the proxy did not connect.
    """
    status = _STATUS_LINE.match(head)
    if not status:
        raise ProxyError(f"{proxy} does not respond as an HTTP proxy")
    code = int(status[1])
    if code == 407:
        raise ProxyError(f"the proxy {proxy} needs a user name and a password in its URL")
    if not 200 <= code < 300:
        raise ProxyError(
            f"the proxy {proxy} refuses the connection, with HTTP status {code}; "
            "no_proxy lists hosts that are connected to directly"
        )


def _bracketed(host: str) -> str:
    """Return a host as it is written before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
