"""A caller's link over real sockets: to the real server, to none, and to other programs."""

import contextlib
import socket
import threading

import pytest

from cloudmanager import config
from cloudmanager.client import link
from cloudmanager.client.cells import prepare_cell
from cloudmanager.client.jobs import JobGroup
from cloudmanager.client.link import ServerLink
from cloudmanager.config import ServerAddress
from cloudmanager.protocol import frames
from cloudmanager.protocol.errors import NotAllowed, ServerUnreachable, VersionMismatch

WAIT = 60.0  # seconds that anything here may take on a busy machine


class FakeServer:
    """A TCP server that calls a function of the test for each connection."""

    def __init__(self, serve):
        self._on_connection = serve
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(WAIT)
        self.over = threading.Event()  # the test is over: whoever waits for nothing may go
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def address(self):
        return ServerAddress(f"http://127.0.0.1:{self._listening.getsockname()[1]}", "cm_x", "url=")

    def _serve(self):
        with contextlib.suppress(OSError), self._listening.accept()[0] as sock:
            sock.settimeout(WAIT)
            self._on_connection(self, sock)

    def close(self):
        self.over.set()
        self._listening.close()
        self._thread.join(WAIT)


@pytest.fixture
def fake_server():
    """Return a function that starts such a server; it is stopped after the test."""
    with contextlib.ExitStack() as stack:

        def start(serve):
            made = FakeServer(serve)
            stack.callback(made.close)
            return made

        yield start


def read_head(sock):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return head.decode()


def accept(sock):
    """Answer the handshake like the real server."""
    key = read_head(sock).partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: "
        + frames.accept_key(key).encode()
        + b"\r\n\r\n"
    )


def answering(text):
    def serve(_, sock):
        read_head(sock)
        sock.sendall(text)

    return serve


@pytest.fixture
def opened(server):
    """A link to the shared server."""
    made = ServerLink(config.find_server())
    yield made
    made.close()


def free_tcp_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def refused(address):
    with pytest.raises(ServerUnreachable) as caught:
        ServerLink(address)
    return str(caught.value)


# To the server


def test_request_gets_its_reply(opened):
    status = opened.exchange.request("status", {}).result()
    assert status["callers"] >= 1


def test_closed_link_has_the_attribute_closed(opened):
    assert not opened.closed
    opened.close()
    assert opened.closed
    with pytest.raises(ServerUnreachable, match="the link broke"):
        opened.exchange.request("status", {}).result()


def test_link_can_be_closed_twice_and_by_several_threads(opened):
    threads = [threading.Thread(target=opened.close) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    opened.close()
    assert (opened.closed, opened._reader.is_alive()) == (True, False)


def test_link_can_be_closed_by_its_own_thread(opened):
    """Such as by an event callback; a thread cannot wait for itself."""
    opened.exchange.request("status", {}).add_done_callback(opened.close)
    opened._reader.join(WAIT)
    assert opened.closed


def test_closing_ends_all_waits(opened):
    waiting = opened.exchange.request("status", {})
    group = JobGroup(prepare_cell("1"))
    opened.close()
    opened.exchange.submit(group, "all")
    assert waiting.wait(WAIT)
    assert group.wait(WAIT)


def test_several_threads_send_requests_concurrently(opened):
    replies = []

    def ask():
        for _ in range(20):
            replies.append(opened.exchange.request("boards", {"target": None}).result())

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(replies) == 100


def test_idle_link_stays_open(server, monkeypatch):
    """The timeout of the handshake does not apply later: it once closed idle links after 10 s."""
    monkeypatch.setattr(link, "CONNECT_SECONDS", 0.5)
    idle = ServerLink(config.find_server())
    try:
        idle._reader.join(1.5)
        assert not idle.closed
    finally:
        idle.close()


@pytest.mark.parametrize("token", ["cm_wrong", ""])
def test_wrong_token_is_not_allowed(server, token):
    with pytest.raises(NotAllowed, match="does not know this token"):
        ServerLink(ServerAddress(server.url, token, "CM_URL"))


def test_address_may_be_without_http(server):
    found = config.find_server()
    ServerLink(found._replace(url=found.url.removeprefix("http://"))).close()


# To no server


def test_refused_connection_is_reported():
    address = ServerAddress(f"http://127.0.0.1:{free_tcp_port()}", "", "CM_URL")
    assert refused(address) == (
        f"No server at {address.url} (from CM_URL): no program listens there. "
        "Start a server with `mbm server-start`, or name another one in CM_URL."
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:port", "port"),
        ("http://127.0.0.1:99999", "port"),
        ("http://[::1", "IPv6"),
        ("https://no-such-host.invalid", "the host name cannot be resolved"),
        ("http://" + "a" * 100, ""),
    ],
)
def test_invalid_address_is_reported(url, reason):
    assert reason.lower() in refused(ServerAddress(url, "", "CM_URL")).lower()


def test_system_errors_are_explained():
    assert link._failure_reason(OSError(113, "No route to host")) == "No route to host"
    assert link._failure_reason(TimeoutError("timed out")) == "no answer in time"
    assert link._failure_reason(OSError()) == "OSError"


# To what is no server


def test_silent_server_is_reported(fake_server, monkeypatch):
    monkeypatch.setattr(link, "CONNECT_SECONDS", 0.3)
    silent = fake_server(lambda self, _: self.over.wait(WAIT))
    assert "no answer in time" in refused(silent.address)


def test_server_that_sends_single_bytes_is_reported(fake_server, monkeypatch):
    """The timeout of the handshake is a total, not restarted by each byte."""
    monkeypatch.setattr(link, "CONNECT_SECONDS", 0.5)

    def send_slowly(self, sock):
        while not self.over.wait(0.1):
            sock.sendall(b"H")

    assert "no answer in time" in refused(fake_server(send_slowly).address)


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\n\r\n<html>",
        b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
        b"\x16\x03\x01\x00\x05\r\n\r\n",
        b"x" * 20_000,
    ],
    ids=["a web server", "ssh", "tls", "endless"],
)
def test_other_server_is_reported(fake_server, text):
    other = fake_server(answering(text))
    assert "the program that answers there is not a Cloudmanager server" in refused(other.address)


@pytest.mark.parametrize("text", [b"", b"HTTP/1.1 101 Switching"])
def test_server_that_closes_immediately_is_reported(fake_server, text):
    assert "it closed the connection" in refused(fake_server(answering(text)).address)


def test_server_of_another_version(fake_server):
    other = fake_server(answering(b"HTTP/1.1 409 Other\r\nCm-Protocol: 9\r\n\r\n"))
    with pytest.raises(VersionMismatch, match="The server speaks protocol 9"):
        ServerLink(other.address)


def test_closed_connection_ends_all_waits(fake_server):
    def serve(_, sock):
        accept(sock)
        sock.recv(1)

    made = ServerLink(fake_server(serve).address)
    with pytest.raises(ServerUnreachable, match="closed the connection|reset"):
        made.exchange.request("status", {}).result()
    made._reader.join(WAIT)
    made.close()
    assert made.closed


def test_reset_connection_ends_all_waits(fake_server):
    def serve(_, sock):
        accept(sock)
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset

    made = ServerLink(fake_server(serve).address)
    with pytest.raises(ServerUnreachable, match="Connection reset by peer"):
        made.exchange.request("status", {}).result()
    made.close()


def test_protocol_violation_is_answered_with_a_close_code(fake_server):
    received = []

    def serve(_, sock):
        accept(sock)
        sock.sendall(b"\x81\x02hi")  # text
        received.append(sock.recv(100))

    other = fake_server(serve)
    made = ServerLink(other.address)
    made._reader.join(WAIT)
    made.close()
    other.close()
    assert received == [frames.encode_close_frame(1003, mask=True)]


def test_silent_server_gets_a_ping_and_is_disconnected(fake_server, monkeypatch):
    monkeypatch.setattr(link, "HEARTBEAT_SECONDS", 0.2)
    heard = []

    def serve(_, sock):
        accept(sock)
        while data := sock.recv(1000):
            heard.append(data)

    other = fake_server(serve)
    made = ServerLink(other.address)
    with pytest.raises(ServerUnreachable, match="no answer in time"):
        made.exchange.request("status", {}).result()
    made.close()
    other.close()
    assert b"".join(heard).endswith(made.exchange.ping_frame())
    assert b"".join(heard).count(made.exchange.ping_frame()) == 1


# Over TLS


def test_https_address_uses_tls(fake_server):
    received = []

    def serve(_, sock):
        received.append(sock.recv(1))
        sock.sendall(b"HTTP/1.1 400 this port speaks plain HTTP\r\n\r\n")

    address = fake_server(serve).address
    secure = address._replace(url=address.url.replace("http://", "https://"))
    assert "the server does not use TLS" in refused(secure)
    assert received == [b"\x16"]  # a TLS handshake (RFC 8446, 5.1): the token was not sent
