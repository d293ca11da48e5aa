"""A small HTTP proxy on loopback: CONNECT, and requests of whole http URLs.

It resolves names by a table, so that a test can reach its own servers under public names.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

SECONDS = 10.0  # for each step of a connection


class ForwardProxy:
    """A proxy that runs in threads until the end of its context.

    Args:
        names: ``HOST:PORT`` as clients ask for it -> the TCP port on this machine.
        password: ``USER:PASSWORD`` that it requires; "" for none.

    Attributes:
        url: its address.
        requests: the first line of each request, in order.
    """

    def __init__(self, names: Mapping[str, int], password: str = "") -> None:
        self._names = dict(names)
        self._password = password
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.tcp_port = int(self._socket.getsockname()[1])
        self.url = f"http://{password + '@' if password else ''}127.0.0.1:{self.tcp_port}"
        self.requests: list[str] = []
        self._open: list[socket.socket] = [self._socket]

    def __enter__(self) -> ForwardProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                self._open.append(sock)
                threading.Thread(target=self._serve, args=[sock], daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), sock:
            sock.settimeout(SECONDS)
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(4096) or b"\r\n\r\n"
            lines = head.decode().split("\r\n")
            self.requests.append(lines[0])
            method, target, _ = lines[0].split(" ")
            expected = "Proxy-Authorization: Basic " + _base64(self._password)
            if self._password and expected not in lines:
                sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            url = urlsplit(f"//{target}" if method == "CONNECT" else target)
            tcp_port = self._names.get(f"{url.hostname}:{url.port or 80}")
            if tcp_port is None:
                sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", tcp_port), SECONDS) as other:
                self._open.append(other)
                if method == "CONNECT":
                    sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    path = url.path + (f"?{url.query}" if url.query else "")
                    lines[0] = f"{method} {path or '/'} HTTP/1.1"
                    kept = [line for line in lines if not line.startswith("Proxy-")]
                    other.sendall("\r\n".join(kept).encode())
                back = threading.Thread(target=_copy, args=[other, sock], daemon=True)
                back.start()
                _copy(sock, other)
                back.join(SECONDS)


def _copy(source: socket.socket, to: socket.socket) -> None:
    """Copy bytes from one socket to another until the end."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_WR)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@contextlib.contextmanager
def closed_tcp_port() -> Iterator[int]:
    """Yield a TCP port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])
