"""The base class of all HTTP handlers, which refuses unsafe requests, and the simple pages.

A web page of somebody else can make a browser send requests to this server. So no page of the
server sets or reads cookies, may be read by another origin (no CORS), may be framed, or answers to
a foreign host name. A WebSocket that a browser opens always has an Origin header; it is refused
unless that origin was allowed by name. A server that other machines can reach requires TLS; there,
a page that got here by DNS rebinding fails at the certificate.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tornado.web import HTTPError, RequestHandler

from cm_server.rate_limits import address_group

if TYPE_CHECKING:
    from cloudmanager.server_options import Network
    from cm_server.auth.tokens import Tokens
    from cm_server.rate_limits import RateLimiter
    from cm_server.status import ServerStatus

#: Host names of a server on loopback. A request for another name got here by DNS rebinding.
_LOOPBACK = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
#: The header with the reason of a refusal, for callers, which do not read the body.
REFUSAL_HEADER = "Cm-Refused"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Content-Type": "text/plain; charset=utf-8",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class RequestPolicy:
    """Which requests a server accepts.

    Attributes:
        local: whether only this machine can connect: then requests may be without TLS.
        proxies: the networks of proxies that terminate TLS for this server.
        origins: the web pages that may open a link.
        refusal_rate: how many refusals of one address are logged.
    """

    local: bool
    proxies: Sequence[Network]
    origins: Sequence[str]
    refusal_rate: RateLimiter


class BaseHandler(RequestHandler):
    """Base class of all handlers: checks TLS, host name and origin before each request.

    Attributes:
        required_credential: what a client needs to authenticate with: "nothing", "loopback" (an
            address on this machine, or a token), "token" (a caller's), "token, no link" (the same,
            for a page), or "key" (a board's).
    """

    required_credential = "nothing"

    def initialize(self, policy: RequestPolicy) -> None:
        """Set which requests are accepted."""
        self._policy = policy

    def set_default_headers(self) -> None:
        """Set security headers, and remove tornado's version from the answer."""
        self.clear_header("Server")
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    @property
    def behind_proxy(self) -> bool:
        """Whether the request comes through a trusted proxy, which terminates TLS."""
        return self._is_proxy(str(self.request.remote_ip))

    @property
    def is_secure(self) -> bool:
        """Whether nobody on the network path can read or change the request."""
        return self._policy.local or self.request.protocol == "https" or self.behind_proxy

    @property
    def address(self) -> str:
        """The client's IP address; behind trusted proxies, the one that they report."""
        direct = str(self.request.remote_ip)
        if not self.behind_proxy:
            return direct
        # Each proxy appends the address that it saw: the last one that is no proxy is the client.
        # Those before it were sent by the client, which may have invented them.
        forwarded = self.request.headers.get("X-Forwarded-For", "").split(",")
        for address in reversed(forwarded):
            if not self._is_proxy(address):
                return address.strip()
        return direct

    @property
    def is_from_loopback(self) -> bool:
        """Whether the client is on this machine: not if a proxy reports another address."""
        try:
            return ipaddress.ip_address(self.address.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def _is_proxy(self, address: str) -> bool:
        try:
            read = ipaddress.ip_address(address.strip().partition("%")[0])
        except ValueError:
            return False
        return any(read in network for network in self._policy.proxies)

    def prepare(self) -> None:
        """Refuse requests without TLS, for foreign host names, and from foreign web pages."""
        if self._lacks_tls():
            self.refuse(403, "this server requires TLS: use https:// in its address")
        elif self._has_foreign_host():
            self.refuse(403, "the host in the address must be localhost, 127.0.0.1 or [::1]")
        elif self._has_foreign_origin() and self.required_credential != "nothing":
            self.refuse(403, "web pages of other origins may not open this address")

    def _lacks_tls(self) -> bool:
        """Whether TLS is required and missing; a board's messages may have MACs instead."""
        return not self.is_secure and self.required_credential != "key"

    def _has_foreign_host(self) -> bool:
        """Whether a request without TLS is for a host name that is not this machine's own."""
        without_tls = self.request.protocol == "http" and not self.behind_proxy
        host = self.request.headers.get("Host", "")
        return without_tls and self.is_secure and not _LOOPBACK.fullmatch(host)

    def _has_foreign_origin(self) -> bool:
        """Whether a browser sent the request for a page of an origin that was not allowed."""
        origin = self.request.headers.get("Origin")
        return origin is not None and origin not in self._policy.origins

    def refuse(self, status: int, why: str) -> None:
        """Answer with an error status and a reason, in a header and as plain text."""
        self.set_status(status)
        if status == 401:
            self.set_header("WWW-Authenticate", "Bearer")  # RFC 9110, 15.5.2
        self.set_header(REFUSAL_HEADER, why)
        self.finish(f"{why[0].upper()}{why[1:]}.\n")

    def should_log_refusal(self) -> bool:
        """Return whether to log a refusal: no if there were too many from the same address."""
        address = address_group(self.address)
        return self._policy.refusal_rate.allow(address) is not None

    def write_error(self, status_code: int, **_: Any) -> None:
        """Answer with an error in plain text."""
        self.finish(f"{status_code} {self._reason}\n")


class HealthHandler(BaseHandler):
    """``/healthz``: whether the server works; needs no credentials."""

    def initialize(  # type: ignore[override]
        self, policy: RequestPolicy, status: ServerStatus
    ) -> None:
        """Set which requests are accepted, and what is answered."""
        super().initialize(policy)
        self._server_status = status

    def get(self) -> None:
        """Answer with 200 and warnings, or with 503 and the problems.

        If only a part of the server works, it is degraded: a restart would not help.
        """
        problems, degradations = self._server_status.problems(), self._server_status.degradations()
        self.set_status(503 if problems else 200)
        status = "failing" if problems else "degraded" if degradations else "ok"
        body: dict[str, Any] = {"status": status}
        if problems or degradations:
            body["problems"] = [*problems, *degradations]
        if warnings := self._server_status.warnings():
            body["warnings"] = warnings  # the server works, but needs attention
        self.finish(body)


class MetricsHandler(BaseHandler):
    """``/metrics``, in the text format of Prometheus.

    Allowed from this machine without credentials, else with a token that reaches all boards.
    """

    required_credential = "loopback"

    def initialize(  # type: ignore[override]
        self, policy: RequestPolicy, tokens: Tokens, render: Callable[[], tuple[str, bytes]]
    ) -> None:
        """Set which requests are accepted, and what returns the type and the text of the answer."""
        super().initialize(policy)
        self._tokens = tokens
        self._render = render

    def get(self) -> None:
        """Answer with the metrics, or refuse."""
        if not self.is_from_loopback and (why := self._refusal_reason()):
            self.refuse(401, why)
            return
        content_type, text = self._render()
        self.set_header("Content-Type", content_type)
        self.finish(text)

    def _refusal_reason(self) -> str:
        tokens = self._tokens
        token = tokens.find_caller_token(self.request.headers.get("Authorization"))
        if token is None:
            return "metrics need a token, except on the server's own machine"
        if token.target != "all":
            return "metrics need a token that reaches all boards"
        return tokens.refusal_reason(token)


class CaCertificateHandler(BaseHandler):
    """``/ca.pem``: the certificate with which boards and callers verify this server.

    It is not secret. A client that fetches it must already know its fingerprint, which is part of
    each token.
    """

    def initialize(self, policy: RequestPolicy, ca: bytes) -> None:  # type: ignore[override]
        """Set which requests are accepted, and the certificate (DER)."""
        super().initialize(policy)
        self._ca = ca

    def get(self) -> None:
        """Answer with the certificate as PEM."""
        self.set_header("Content-Type", "application/x-pem-file")
        self.finish(ssl.DER_cert_to_PEM_cert(self._ca))


class NotFoundHandler(BaseHandler):
    """All other paths: 404, after the checks that all handlers make."""

    def prepare(self) -> None:
        """Make the checks of the base class, then answer with 404."""
        super().prepare()
        if not self._finished:
            raise HTTPError(404)
