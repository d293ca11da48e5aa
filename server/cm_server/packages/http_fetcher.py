"""Fetch over HTTP with limits, and from public addresses only.

URLs come from package data, redirects and users, so they must not make the server connect to
services of its own network (SSRF). The IP address is checked after the name was resolved, and the
connection is made to that very address: a name that resolves differently the next time (DNS
rebinding) does not help an attacker. Only the origin of a source that an administrator configured
may be private. Through a proxy (`http_proxy`, `https_proxy`, `no_proxy`) the server resolves no
names, so only addresses in URLs are checked: what the proxy may connect to is its own decision.
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
from cloudmanager.protocol.package_references import hide_credentials
from cloudmanager.protocol.proxies import ProxyError, find_proxy, literal_address
from cm_server.limits import Limits

from .proxied_http import ProxiedHttpClient

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_UNICAST: Final = ipaddress.ip_network("2000::/3")  # the only public range of IPv6 (IANA)
_DOCUMENTATION: Final = ipaddress.ip_network("3fff::/20")  # RFC 9637; `is_global` may not know it
#: Dummy addresses and a former anycast (RFC 6890, 7526); `is_global` knows a part of them.
_SPECIAL_IPV4: Final = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24")))
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are IPv4
_LOGIN_HINT: Final = (
    ": it may need a user name and a password, which .netrc or the URL of the index can have"
)
_USER_AGENT: Final = "cloudmanager"
_FETCH_ERRORS: Final = (
    HTTPClientError,
    HTTPInputError,
    HTTPStreamClosedError,
    HTTPTimeoutError,
    UnsatisfiableReadError,
)


class OriginAccess(NamedTuple):
    """What requests to the origin of a source may do.

    Attributes:
        url: of the source, without credentials; "" for no origin.
        may_be_private: whether it may have a private address, since an administrator configured it.
        credentials: ``USER:PASSWORD`` that is sent to it; "" for none.
    """

    url: str = ""
    may_be_private: bool = False
    credentials: str = ""

    @classmethod
    def to_source(cls, url: str, *, may_be_private: bool) -> OriginAccess:
        """Return the access to the origin of a source whose URL may contain credentials."""
        return cls(without_credentials(url), may_be_private, _credentials(url))

    def includes(self, url: str) -> bool:
        """Whether a URL is at this origin."""
        return bool(self.url) and origin_of(url) == origin_of(self.url)


NO_ACCESS: Final = OriginAccess()


class HttpReply(NamedTuple):
    """The response to a request.

    Attributes:
        body: decoded, if it was compressed.
        url: the URL after redirects, without credentials.
        content_type: without parameters, in lower case; "" if there is none.
    """

    body: bytes
    url: str
    content_type: str


class SourceNotFound(PackageError):
    """The source responds that the resource does not exist."""


class SourceUnreachable(PackageError):
    """The source does not respond, or its response cannot be used."""


class NoResponse(SourceUnreachable):
    """The source does not respond: perhaps this machine has no access to the internet."""


class PrivateAddress(Exception):
    """The address is not public."""


def origin_of(url: str) -> tuple[str, str, int]:
    """Return scheme, host and TCP port of a URL.

    Raises:
        PackageError: it is not an http or https URL.
    """
    try:
        parts = urlsplit(url)
        tcp_port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        raise PackageError(f"{hide_credentials(url)[:100]!r} is not an http or https URL") from None
    if not parts.hostname:
        raise PackageError(f"{hide_credentials(url)[:100]!r} has no host name")
    return parts.scheme, parts.hostname, tcp_port


def without_credentials(url: str) -> str:
    """Return a URL without its user name and password; a malformed one is returned unchanged."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet.

    IPv6 addresses that contain an IPv4 address count as that one; Teredo addresses are refused. Of
    the others, those in 2000::/3 are public, except for the ranges in it that have another use.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])  # without a zone such as %eth0
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.teredo:
            return False
        if inner:
            return _is_global(inner)
        return ip in _UNICAST and ip not in _DOCUMENTATION and _is_global(ip)
    return _is_global(ip)


def _is_global(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    is_special = any(ip in network for network in _SPECIAL_IPV4)
    return ip.is_global and not ip.is_multicast and not is_special


class _PublicResolver(Resolver):
    """Resolves names to public addresses; tornado connects to the addresses it returns."""

    def initialize(self) -> None:
        """Do nothing; tornado calls this in place of ``__init__``."""

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        """Return the addresses of a host; refuse all of them if one is private."""
        loop = asyncio.get_running_loop()
        results = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        for *_, address in results:
            if not is_public(str(address[0])):
                raise PrivateAddress(host)
        return [(address_family, address) for address_family, _, _, _, address in results]


class HttpFetcher:
    """Makes HTTP requests, at most ``Limits.fetches`` at a time.

    Args:
        limits: how many at a time, and how long each may take; sources take the sizes of their
            documents from it.
        ca_file: certificates to trust instead of the system's, such as pip's option `cert`.
    """

    def __init__(self, limits: Limits, ca_file: str | None = None) -> None:
        self.limits = limits
        self.ca_file = ca_file
        self._semaphore = asyncio.Semaphore(limits.fetches)

    async def fetch(
        self,
        url: str,
        *,
        limit: int,
        access: OriginAccess = NO_ACCESS,
        accept: str = "*/*",
    ) -> HttpReply:
        """Fetch a URL, following redirects.

        Args:
            url: http or https; a user name and a password in it are sent to its origin only.
            limit: the largest body in bytes, after decompression.
            access: what requests to the origin of the source may do.
            accept: the value of the header Accept.

        Raises:
            SourceNotFound: the response is 404 or 410.
            NoResponse: there is no response.
            SourceUnreachable: it cannot be used.
            PackageError: the URL is malformed or at a private address.
        """
        async with self._semaphore:
            try:
                return await asyncio.wait_for(
                    self._fetch_redirected(url, limit, access, accept),
                    self.limits.fetch_seconds,
                )
            except TimeoutError:
                raise NoResponse(
                    f"{without_credentials(url)} takes longer than {self.limits.fetch_seconds:g} s"
                ) from None

    async def is_private_host(self, url: str) -> bool:
        """Return whether the host of a URL has a private address; False if it has no address."""
        _, host, tcp_port = origin_of(url)
        loop = asyncio.get_running_loop()
        try:
            results = await loop.getaddrinfo(host, tcp_port, type=socket.SOCK_STREAM)
        except OSError:
            return False
        return not all(is_public(str(address[0])) for *_, address in results)

    async def _fetch_redirected(
        self, url: str, limit: int, access: OriginAccess, accept: str
    ) -> HttpReply:
        """Fetch a URL and follow redirects; send credentials to their origins only."""
        own_access = OriginAccess.to_source(url, may_be_private=False)
        url = own_access.url
        origin_of(url)
        for _ in range(self.limits.fetch_redirects + 1):
            candidates = [each.credentials for each in (own_access, access) if each.includes(url)]
            credentials = next(filter(None, candidates), "")
            response = await self._fetch_once(url, limit, access, accept, credentials)
            if response.code not in _REDIRECTS:
                return _check_response(response, url)
            target = without_credentials(urljoin(url, response.headers.get("Location", "")))
            if origin_of(url)[0] == "https" and origin_of(target)[0] != "https":
                raise SourceUnreachable(
                    f"{without_credentials(url)} redirects from https to http, which is refused"
                )
            url = target
        raise SourceUnreachable(f"{without_credentials(url)} redirects too many times")

    async def _fetch_once(
        self, url: str, limit: int, access: OriginAccess, accept: str, credentials: str
    ) -> HTTPResponse:
        """Make one request without following a redirect."""
        client = self._client(url, limit, may_be_private=_may_be_private(url, access))
        try:
            return await self._fetch_response(client, self._request(url, accept, credentials))
        except _FETCH_ERRORS as error:
            raise NoResponse(
                f"{without_credentials(url)} does not respond: {error}"[:300]
            ) from error
        except PrivateAddress:
            raise _private_address_error(url) from None
        except (OSError, ValueError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise NoResponse(
                f"{without_credentials(url)} cannot be reached: {why}"[:300]
            ) from error
        finally:
            client.close()

    async def _fetch_response(
        self, client: SimpleAsyncHTTPClient, request: HTTPRequest
    ) -> HTTPResponse:
        """Return the response to a request.

        Raises:
            NoResponse: it did not begin in time. A source, or a proxy, that accepts
                connections and stays silent is found sooner than one that is slow.
        """
        begun = asyncio.Event()
        request.header_callback = lambda _: begun.set()
        response = asyncio.ensure_future(client.fetch(request, raise_error=False))
        # It is never cancelled: tornado goes on nevertheless, and would log its end as an error.
        response.add_done_callback(lambda done: done.cancelled() or done.exception())
        beginning = asyncio.ensure_future(begun.wait())
        seconds = self.limits.fetch_response_seconds
        try:
            done, _ = await asyncio.wait(
                (response, beginning), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise NoResponse(f"{request.url} does not respond within {seconds:g} s")
            return await asyncio.shield(response)
        finally:
            beginning.cancel()

    def _client(self, url: str, limit: int, *, may_be_private: bool) -> SimpleAsyncHTTPClient:
        """Return a client for one request, with the proxy for this URL.

        Raises:
            PackageError: the URL has a private address.
            NoResponse: the environment names a proxy that cannot be used.
        """
        scheme, host, tcp_port = origin_of(url)
        sizes = {"max_body_size": limit, "max_header_size": self.limits.head_bytes * 4}
        try:
            proxy = find_proxy(scheme, host, tcp_port)
        except ProxyError as error:
            raise NoResponse(f"{without_credentials(url)}: {error}") from error
        if proxy is None:
            resolver = None if may_be_private else _PublicResolver()
            return SimpleAsyncHTTPClient(force_instance=True, resolver=resolver, **sizes)
        if not may_be_private and _is_private_literal(host):
            raise _private_address_error(url)
        return ProxiedHttpClient(force_instance=True, proxy=proxy, **sizes)

    def _request(self, url: str, accept: str, credentials: str) -> HTTPRequest:
        headers = HTTPHeaders({"Accept": accept})
        if credentials:
            headers["Authorization"] = "Basic " + base64.b64encode(credentials.encode()).decode()
        return HTTPRequest(
            without_credentials(url),
            headers=headers,
            follow_redirects=False,
            connect_timeout=min(self.limits.fetch_seconds, 10.0),
            request_timeout=self.limits.fetch_seconds,
            user_agent=_USER_AGENT,
            ca_certs=self.ca_file,
        )


def _is_private_literal(host: str) -> bool:
    """Return whether a host is a private IP address in any notation; False for a name."""
    address = literal_address(host)
    return address is not None and not is_public(str(address))


def _private_address_error(url: str) -> PackageError:
    return PackageError(
        f"{without_credentials(url)} is at a private address; "
        "only a source that the server's administrator configured may be"
    )


def _may_be_private(url: str, access: OriginAccess) -> bool:
    """Return whether a URL is at the origin of a source that an administrator configured."""
    return access.may_be_private and access.includes(url)


def _credentials(url: str) -> str:
    """Return the user name and password in a URL as ``USER:PASSWORD``, "" if it has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if parts.username is None:
        return ""
    return f"{unquote(parts.username)}:{unquote(parts.password or '')}"


def _check_response(response: HTTPResponse, url: str) -> HttpReply:
    """Return a response as a reply.

    Raises:
        SourceNotFound: the status is 404 or 410.
        NoResponse: there was none.
        SourceUnreachable: the status is another error, or the body has an unknown encoding.
    """
    if response.code in (404, 410):
        raise SourceNotFound(f"{without_credentials(url)} does not exist")
    if response.error is not None and response.code == 599:  # tornado's code for its own errors
        raise NoResponse(f"{without_credentials(url)} does not respond: {response.error}"[:300])
    if response.code != 200:
        hint = _LOGIN_HINT if response.code in (401, 403) else ""
        raise SourceUnreachable(
            f"{without_credentials(url)} responds with HTTP status {response.code}{hint}"
        )
    headers: Mapping[str, str] = response.headers
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise SourceUnreachable(
            f"{without_credentials(url)} is compressed in a way that was not requested"
        )
    content_type = headers.get("Content-Type", "").partition(";")[0].lower()
    return HttpReply(response.body, url, content_type)
