"""A caller's link, over real sockets: to the real server, to none, and to what is no server."""

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

WAIT = 20.0  # seconds that anything here may take on a busy machine


class Stranger:
    """A TCP server that does with each connection what a test wants; ended with its threads."""

    def __init__(self, act):
        self._act = act
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
            self._act(self, sock)

    def close(self):
        self.over.set()
        self._listening.close()
        self._thread.join(WAIT)


@pytest.fixture
def stranger():
    """Start a stranger; it is gone when the test is."""
    with contextlib.ExitStack() as stack:

        def start(act):
            made = Stranger(act)
            stack.callback(made.close)
            return made

        yield start


def read_head(sock):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return head.decode()


def accept(sock):
    """Answer the handshake as the server does."""
    key = read_head(sock).partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: "
        + frames.accept_key(key).encode()
        + b"\r\n\r\n"
    )


def answering(text):
    def act(_, sock):
        read_head(sock)
        sock.sendall(text)

    return act


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


def test_link_carries_requests_and_their_replies(opened):
    status = opened.exchange.request("status", {}).result()
    assert status["callers"] >= 1


def test_link_says_that_it_is_closed(opened):
    assert not opened.closed
    opened.close()
    assert opened.closed
    with pytest.raises(ServerUnreachable, match="the link broke"):
        opened.exchange.request("status", {}).result()


def test_link_may_be_closed_twice_and_by_several_threads(opened):
    threads = [threading.Thread(target=opened.close) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    opened.close()
    assert (opened.closed, opened._reader.is_alive()) == (True, False)


def test_link_may_be_closed_by_its_own_thread(opened):
    """Such as by who follows a cell; nobody can wait for himself."""
    opened.exchange.request("status", {}).add_done_callback(opened.close)
    opened._reader.join(WAIT)
    assert opened.closed


def test_closing_tells_everybody_who_waits(opened):
    waiting = opened.exchange.request("status", {})
    group = JobGroup(prepare_cell("1"))
    opened.close()
    opened.exchange.submit(group, "all", {})
    assert waiting.wait(WAIT)
    assert group.wait(WAIT)


def test_several_threads_ask_at_once(opened):
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


def test_link_that_is_idle_stays(server, monkeypatch):
    """The patience of the handshake ends with it: it once cut idle links after ten seconds."""
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


def test_nobody_there_says_so():
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
def test_address_that_leads_nowhere_says_why(url, reason):
    assert reason.lower() in refused(ServerAddress(url, "", "CM_URL")).lower()


def test_system_errors_are_said_in_words():
    assert link._failure_reason(OSError(113, "No route to host")) == "No route to host"
    assert link._failure_reason(TimeoutError("timed out")) == "no answer in time"
    assert link._failure_reason(OSError()) == "OSError"


# To what is no server


def test_server_that_says_nothing(stranger, monkeypatch):
    monkeypatch.setattr(link, "CONNECT_SECONDS", 0.3)
    silent = stranger(lambda self, _: self.over.wait(WAIT))
    assert "no answer in time" in refused(silent.address)


def test_server_that_says_a_byte_now_and_then(stranger, monkeypatch):
    """However slowly somebody talks, the handshake has its end."""
    monkeypatch.setattr(link, "CONNECT_SECONDS", 0.5)

    def drip(self, sock):
        while not self.over.wait(0.1):
            sock.sendall(b"H")

    assert "no answer in time" in refused(stranger(drip).address)


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
def test_server_that_is_no_cloudmanager(stranger, text):
    other = stranger(answering(text))
    assert "the program that answers there is not a Cloudmanager server" in refused(other.address)


@pytest.mark.parametrize("text", [b"", b"HTTP/1.1 101 Switching"])
def test_server_that_hangs_up_at_once(stranger, text):
    assert "it closed the connection" in refused(stranger(answering(text)).address)


def test_server_of_another_version(stranger):
    other = stranger(answering(b"HTTP/1.1 409 Other\r\nCm-Protocol: 9\r\n\r\n"))
    with pytest.raises(VersionMismatch, match="The server speaks protocol 9"):
        ServerLink(other.address)


def test_server_that_hangs_up_later_ends_what_waits(stranger):
    def act(_, sock):
        accept(sock)
        sock.recv(1)

    made = ServerLink(stranger(act).address)
    with pytest.raises(ServerUnreachable, match="closed the connection|reset"):
        made.exchange.request("status", {}).result()
    made._reader.join(WAIT)
    made.close()
    assert made.closed


def test_server_that_hangs_up_rudely_ends_what_waits(stranger):
    def act(_, sock):
        accept(sock)
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset

    made = ServerLink(stranger(act).address)
    with pytest.raises(ServerUnreachable, match="Connection reset by peer"):
        made.exchange.request("status", {}).result()
    made.close()


def test_server_that_breaks_the_rules_is_told_so(stranger):
    told = []

    def act(_, sock):
        accept(sock)
        sock.sendall(b"\x81\x02hi")  # text
        told.append(sock.recv(100))

    other = stranger(act)
    made = ServerLink(other.address)
    made._reader.join(WAIT)
    made.close()
    other.close()
    assert told == [frames.encode_close_frame(1003, mask=True)]


def test_server_that_falls_silent_is_asked_and_then_left(stranger, monkeypatch):
    monkeypatch.setattr(link, "HEARTBEAT_SECONDS", 0.2)
    heard = []

    def act(_, sock):
        accept(sock)
        while data := sock.recv(1000):
            heard.append(data)

    other = stranger(act)
    made = ServerLink(other.address)
    with pytest.raises(ServerUnreachable, match="no answer in time"):
        made.exchange.request("status", {}).result()
    made.close()
    other.close()
    assert b"".join(heard).endswith(made.exchange.ping_frame())
    assert b"".join(heard).count(made.exchange.ping_frame()) == 1


# Over TLS


def test_https_address_is_dialled_with_tls(stranger):
    told = []

    def act(_, sock):
        told.append(sock.recv(1))
        sock.sendall(b"HTTP/1.1 400 this port speaks plain HTTP\r\n\r\n")

    address = stranger(act).address
    secure = address._replace(url=address.url.replace("http://", "https://"))
    assert "the server does not use TLS" in refused(secure)
    assert told == [b"\x16"]  # a TLS handshake (RFC 8446, 5.1): the token was not sent in the clear
