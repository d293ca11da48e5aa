"""Open a TCP connection to a server, directly or through the proxy of the environment."""

from __future__ import annotations

import socket

from cloudmanager.protocol.proxies import (
    MAX_HEAD_BYTES,
    Proxy,
    ProxyError,
    check_connect_response,
    connect_request,
    find_proxy,
)


def open_connection(scheme: str, host: str, tcp_port: int, seconds: float) -> socket.socket:
    """Return a connected socket.

    Args:
        scheme: "https" or "wss" for a server with TLS, which is not started here; else "http".
        host: the server's name or address.
        tcp_port: its TCP port.
        seconds: how long each step may take; it is the socket's timeout, too.

    Raises:
        OSError: no connection could be made.
        ProxyError: the proxy cannot be reached, or does not connect to the server.
    """
    proxy = find_proxy("https" if scheme in ("https", "wss") else "http", host, tcp_port)
    if proxy is None:
        return socket.create_connection((host, tcp_port), seconds)
    try:
        sock = socket.create_connection((proxy.host, proxy.tcp_port), seconds)
    except OSError as error:
        why = error.strerror or str(error)
        raise ProxyError(f"the proxy {proxy} cannot be reached: {why}") from error
    try:
        sock.sendall(connect_request(proxy, host, tcp_port))
        check_connect_response(_read_head(sock, proxy), proxy)
    except TimeoutError as error:
        sock.close()
        raise ProxyError(f"the proxy {proxy} does not respond in time") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _read_head(sock: socket.socket, proxy: Proxy) -> bytes:
    """Return the head of a proxy's response.

    Nothing follows it until this side has sent something, so that reading more does no harm.
    """
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(4096)
        if not piece or len(head) > MAX_HEAD_BYTES:
            raise ProxyError(f"{proxy} does not respond as an HTTP proxy")
        head += piece
    return head
