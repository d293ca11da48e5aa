"""What every page and every socket's handshake refuses, and the plain pages.

A browser is the one caller that other people's pages can steer. So no page of ours sets or
reads a cookie, lets another origin read it (no CORS), may be framed, or answers to a name that
is not the server's own; and a WebSocket that a browser opens, which always names its Origin, is
refused unless that origin was allowed by name. A server that others can reach answers by TLS
only; there a page that another name led here (DNS rebinding) is stopped by the certificate.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from typing import TYPE_CHECKING, Any

from tornado.web import HTTPError, RequestHandler

from .rate_limits import address_group

if TYPE_CHECKING:
    from cm_server.app import Server

#: What a server on loopback is called. Any other name led here by DNS: rebinding.
_LOOPBACK = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
#: Where a refusal's sentence stands, besides the page: a caller reads only the head.
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


class BaseHandler(RequestHandler):
    """One page, or one socket's handshake.

    Attributes:
        required_credential: what opens it: nothing, a caller's token, or a board's key.
    """

    required_credential = "nothing"

    def initialize(self, server: Server) -> None:
        """Take the server that it belongs to."""
        self._server = server

    def set_default_headers(self) -> None:
        """Tell browsers to be careful, and nobody what we are made of."""
        self.clear_header("Server")
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    @property
    def behind_proxy(self) -> bool:
        """Whether it comes through a proxy that ended its TLS."""
        return self._is_proxy(str(self.request.remote_ip))

    @property
    def is_secure(self) -> bool:
        """Whether nobody on the way could read or change it."""
        return self._server.local or self.request.protocol == "https" or self.behind_proxy

    @property
    def address(self) -> str:
        """Where it comes from; behind a proxy, what the nearest proxy says."""
        direct = str(self.request.remote_ip)
        if not self.behind_proxy:
            return direct
        named = self.request.headers.get("X-Forwarded-For", "").split(",")
        return next((name.strip() for name in reversed(named) if not self._is_proxy(name)), direct)

    @property
    def is_from_loopback(self) -> bool:
        """Whether it comes from this machine, by no proxy that says whence."""
        try:
            return ipaddress.ip_address(self.address.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def _is_proxy(self, address: str) -> bool:
        try:
            read = ipaddress.ip_address(address.strip().partition("%")[0])
        except ValueError:
            return False
        return any(read in network for network in self._server.proxies)

    def prepare(self) -> None:
        """Refuse what crosses the network in the clear, and what foreign web pages send."""
        if (
            not self.is_secure and self.required_credential != "key"
        ):  # a board's messages may carry MACs
            self.refuse(403, "this server speaks TLS: use https:// in its address")
            return
        plain = self.request.protocol == "http" and not self.behind_proxy
        if (
            plain
            and self.is_secure
            and not _LOOPBACK.fullmatch(self.request.headers.get("Host", ""))
        ):
            self.refuse(403, "this server is called localhost, 127.0.0.1 or [::1]")
            return
        origin = self.request.headers.get("Origin")
        foreign = origin is not None and origin not in self._server.origins
        if foreign and self.required_credential != "nothing":
            self.refuse(403, "web pages may not open this")

    def refuse(self, status: int, why: str) -> None:
        """Answer with a sentence."""
        self.set_status(status)
        if status == 401:
            self.set_header("WWW-Authenticate", "Bearer")  # RFC 9110, 15.5.2
        self.set_header(REFUSAL_HEADER, why)
        self.finish(f"{why[0].upper()}{why[1:]}.\n")

    def should_log_refusal(self) -> bool:
        """Say whether a refusal is to be logged: not where one address has had very many."""
        address = address_group(self.address)
        return self._server.bad_request_rate.allow(address) is not None

    def write_error(self, status_code: int, **_: Any) -> None:
        """Answer in plain text what went wrong."""
        self.finish(f"{status_code} {self._reason}\n")


class HealthHandler(BaseHandler):
    """``/healthz``: whether the service can do its work, for whoever asks."""

    def get(self) -> None:
        """Answer: 503 says what is wrong."""
        problems = self._server.problems()
        self.set_status(503 if problems else 200)
        body: dict[str, Any] = {"status": "failing" if problems else "ok"}
        if problems:
            body["problems"] = problems
        if warnings := self._server.warnings():
            body["warnings"] = warnings  # it does its work, but somebody should look at this
        self.finish(body)


class MetricsHandler(BaseHandler):
    """``/metrics``: for this machine, and for tokens that reach all boards."""

    required_credential = "loopback"

    def get(self) -> None:
        """Answer, or refuse."""
        if not self.is_from_loopback and (why := self._refusal_reason()):
            self.refuse(401, why)
            return
        from cm_server import metrics  # the library behind it takes a tenth of a second to import

        self.set_header("Content-Type", metrics.CONTENT_TYPE)
        self.finish(metrics.render(self._server))

    def _refusal_reason(self) -> str:
        tokens = self._server.tokens
        token = tokens.find_caller_token(self.request.headers.get("Authorization"))
        if token is None:
            return "metrics are for this machine, and for callers with a token"
        if token.target != "all":
            return "metrics are for tokens that reach all boards"
        return tokens.refusal_reason(token)


class CaCertificateHandler(BaseHandler):
    """``/ca.pem``: the certificate that boards and callers verify this server by.

    It is no secret. Who fetches it must know its fingerprint from elsewhere: tokens carry it.
    """

    def get(self) -> None:
        """Answer."""
        self.set_header("Content-Type", "application/x-pem-file")
        self.finish(ssl.DER_cert_to_PEM_cert(self._server.certificates.ca))


class NotFoundHandler(BaseHandler):
    """All other addresses."""

    def prepare(self) -> None:
        """Refuse."""
        super().prepare()
        if not self._finished:
            raise HTTPError(404)
