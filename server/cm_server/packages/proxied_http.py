"""An HTTP client that uses a proxy: tornado's, which has no proxies itself.

To an https URL the proxy makes a connection (CONNECT), through which TLS is started. An http URL is
requested from the proxy as a whole, since many proxies allow CONNECT to port 443 only.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError
from tornado.simple_httpclient import SimpleAsyncHTTPClient, _HTTPConnection
from tornado.tcpclient import TCPClient

from cloudmanager.protocol.proxies import (
    MAX_HEAD_BYTES,
    Proxy,
    ProxyError,
    check_connect_response,
    connect_request,
)


class ProxiedHttpClient(SimpleAsyncHTTPClient):
    """Makes requests through a proxy.

    The limits of tornado's client hold for responses; connecting takes at most the request's
    timeout, which the caller has to limit too.
    """

    proxy: Proxy

    def initialize(self, *, proxy: Proxy, **settings: Any) -> None:  # type: ignore[override]
        """Set the client up; tornado calls this in place of ``__init__``."""
        super().initialize(**settings)
        self.proxy = proxy
        self.tcp_client = _ProxyTcpClient(proxy)

    def _connection_class(self) -> type:
        return _ProxiedConnection


class _ProxyTcpClient(TCPClient):
    """Connects to the proxy in place of the host."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self._proxy = proxy

    async def connect(
        self, host: str, port: int, *_: Any, ssl_options: Any = None, **options: Any
    ) -> IOStream:
        proxy = self._proxy
        options.pop("af", None)  # the host's family; the proxy may have another
        try:
            stream = await super().connect(proxy.host, proxy.tcp_port, **options)
        except OSError as error:
            why = error.strerror or str(error)
            raise ProxyError(f"the proxy {proxy} cannot be reached: {why}") from error
        if ssl_options is None:
            return stream
        try:
            await stream.write(connect_request(proxy, host, port))
            head = await stream.read_until(b"\r\n\r\n", max_bytes=MAX_HEAD_BYTES)
            check_connect_response(head, proxy)
            return await stream.start_tls(False, ssl_options, server_hostname=host)
        except StreamClosedError as error:
            raise ProxyError(f"the proxy {proxy} closed the connection") from error
        except asyncio.CancelledError:
            stream.close()
            raise


class _ProxiedConnection(_HTTPConnection):
    """One request; to a plain HTTP host it names the whole URL."""

    client: ProxiedHttpClient

    def _create_connection(self, stream: IOStream) -> HTTP1Connection:
        connection = super()._create_connection(stream)
        if self.parsed.scheme == "https":
            return connection
        url = str(self.request.url).partition("#")[0]
        proxy = self.client.proxy
        write_headers = connection.write_headers

        def write_proxied_headers(
            start_line: RequestStartLine | ResponseStartLine,
            headers: HTTPHeaders,
            chunk: bytes | None = None,
        ) -> Any:
            if proxy.authorization:
                headers["Proxy-Authorization"] = proxy.authorization
            whole = RequestStartLine(self.request.method, url, "")
            return write_headers(whole, headers, chunk)

        connection.write_headers = write_proxied_headers  # type: ignore[method-assign]
        return connection
