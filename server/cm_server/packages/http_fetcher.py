"""Fetching: HTTP with limits, and never to where a stranger's address should not lead.

Addresses come from package data, redirects and people. So each connection goes to an address
that was looked at after the name was resolved (a name that answers differently the second time
gains nothing), and only public ones are connected to. A source that an administrator
configured may be private: it passes its own origin, and only that is exempt.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.httputil import HTTPHeaders, HTTPInputError
from tornado.iostream import UnsatisfiableReadError
from tornado.netutil import Resolver
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError, SimpleAsyncHTTPClient

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address stands at its end
_USER_AGENT: Final = "cloudmanager"
_FETCH_ERRORS: Final = (
    HTTPClientError,
    HTTPInputError,
    HTTPStreamClosedError,
    HTTPTimeoutError,
    UnsatisfiableReadError,
)


class HttpReply(NamedTuple):
    """What came: the body, where it came from in the end, and what it says it is."""

    body: bytes
    url: str
    content_type: str


class SourceNotFound(PackageError):
    """The source answers that it has no such thing."""


class SourceUnreachable(PackageError):
    """The source gives no answer that can be used."""


class PrivateAddress(Exception):
    """The address is not a public one."""


def origin_of(url: str) -> tuple[str, str, int]:
    """Return scheme, host and TCP port.

    Raises:
        PackageError: it is no http or https URL.
    """
    try:
        parts = urlsplit(url)
        tcp_port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        raise PackageError(f"{url[:100]!r} is no http or https URL") from None
    if not parts.hostname:
        raise PackageError(f"{url[:100]!r} names no host")
    return parts.scheme, parts.hostname, tcp_port


def without_credentials(url: str) -> str:
    """Return a URL without the user and password that may stand in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.teredo:
            return False
        if inner:
            return inner.is_global and not inner.is_multicast
    return ip.is_global and not ip.is_multicast


class _PublicResolver(Resolver):
    """Resolves names to public addresses; what it returns is what is connected to."""

    def initialize(self) -> None:
        """Need nothing."""

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        """Return the addresses; refuse them all when one is private."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        for *_, address in found:
            if not is_public(str(address[0])):
                raise PrivateAddress(host)
        return [(kind, address) for kind, _, _, _, address in found]


class HttpFetcher:
    """Fetches.

    Args:
        ca_file: certificates to trust instead of the system's, as pip's `cert` names them.
    """

    def __init__(self, ca_file: str | None = None) -> None:
        self.ca_file = ca_file
        self._semaphore = asyncio.Semaphore(limits.FETCHES)

    async def fetch(
        self,
        url: str,
        *,
        limit: int,
        trusted_url: str = "",
        accept: str = "*/*",
    ) -> HttpReply:
        """Fetch one thing.

        Args:
            url: http or https; a user and a password in it are sent to its origin only.
            limit: bytes that it may have, inflated.
            trusted_url: URL of a source that an administrator configured: at its origin, private
                addresses are fine.
            accept: what is wanted.

        Raises:
            NotFound: the answer is 404 or 410.
            Unreachable: there is no answer, or none that can be used.
            PackageError: the address is refused.
        """
        async with self._semaphore:
            try:
                return await asyncio.wait_for(
                    self._fetch_redirected(url, limit, trusted_url, accept), limits.FETCH_SECONDS
                )
            except TimeoutError:
                raise SourceUnreachable(
                    f"{without_credentials(url)} takes longer than {limits.FETCH_SECONDS:g} s"
                ) from None

    async def is_private_host(self, url: str) -> bool:
        """Say whether a URL's host has a private address."""
        _, host, tcp_port = origin_of(url)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, tcp_port, type=socket.SOCK_STREAM)
        except OSError:
            return False
        return not all(is_public(str(address[0])) for *_, address in found)

    async def _fetch_redirected(
        self, url: str, limit: int, trusted_url: str, accept: str
    ) -> HttpReply:
        first, login = origin_of(url), _credentials(url)
        for _ in range(limits.FETCH_REDIRECTS + 1):
            ours = login if origin_of(url) == first else ""
            response = await self._fetch_once(url, limit, trusted_url, accept, ours)
            if response.code not in _REDIRECTS:
                return _check_response(response, url)
            onward = urljoin(url, response.headers.get("Location", ""))
            if origin_of(url)[0] == "https" and origin_of(onward)[0] != "https":
                raise SourceUnreachable(
                    f"{without_credentials(url)} leads from https to http, which is refused"
                )
            url = onward
        raise SourceUnreachable(f"{without_credentials(url)} leads on and on")

    async def _fetch_once(
        self, url: str, limit: int, trusted_url: str, accept: str, login: str
    ) -> HTTPResponse:
        """Ask one server once; no redirect is followed, whatever it says."""
        private = _is_trusted(url, trusted_url)
        client = SimpleAsyncHTTPClient(
            force_instance=True,
            resolver=None if private else _PublicResolver(),
            max_body_size=limit,
            max_header_size=limits.HEAD_BYTES * 4,
        )
        try:
            return await client.fetch(self._request(url, accept, login), raise_error=False)
        except _FETCH_ERRORS as error:
            raise SourceUnreachable(
                f"{without_credentials(url)} gives no answer: {error}"[:300]
            ) from error
        except PrivateAddress:
            raise PackageError(
                f"{without_credentials(url)} is at a private address; "
                f"only a source that the server's "
                "administrator configured may be"
            ) from None
        except (OSError, ValueError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise SourceUnreachable(
                f"{without_credentials(url)} cannot be reached: {why}"[:300]
            ) from error
        finally:
            client.close()

    def _request(self, url: str, accept: str, login: str) -> HTTPRequest:
        headers = HTTPHeaders({"Accept": accept})
        if login:
            headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        return HTTPRequest(
            without_credentials(url),
            headers=headers,
            follow_redirects=False,
            connect_timeout=min(limits.FETCH_SECONDS, 10.0),
            request_timeout=limits.FETCH_SECONDS,
            user_agent=_USER_AGENT,
            ca_certs=self.ca_file,
        )


def _is_trusted(url: str, trusted_url: str) -> bool:
    """Return whether a URL is at the origin of a configured source, "" for none."""
    return bool(trusted_url) and origin_of(url) == origin_of(trusted_url)


def _credentials(url: str) -> str:
    """Return the user and password that stand in a URL, "" for none."""
    parts = urlsplit(url)
    if parts.username is None:
        return ""
    return f"{unquote(parts.username)}:{unquote(parts.password or '')}"


def _check_response(response: HTTPResponse, url: str) -> HttpReply:
    if response.code in (404, 410):
        raise SourceNotFound(f"{without_credentials(url)} is not there")
    if response.error is not None and response.code == 599:
        raise SourceUnreachable(
            f"{without_credentials(url)} gives no answer: {response.error}"[:300]
        )
    if response.code != 200:
        raise SourceUnreachable(f"{without_credentials(url)} answers {response.code}")
    kinds: Mapping[str, str] = response.headers
    if kinds.get("Content-Encoding", "identity").lower() != "identity":
        raise SourceUnreachable(
            f"{without_credentials(url)} is packed in a way that was not asked for"
        )
    return HttpReply(response.body, url, kinds.get("Content-Type", "").partition(";")[0].lower())
