"""The TLS socket for two threads, and which servers a caller trusts; over real sockets."""

import contextlib
import hashlib
import http.server
import socket
import ssl
import threading
from base64 import urlsafe_b64encode

import pytest

from cloudmanager import config
from cloudmanager.client import tls
from cloudmanager.config import ServerAddress
from cm_server.net import certificates

WAIT = 60.0  # seconds


@pytest.fixture
def made(tmp_path):
    return certificates.load(tmp_path)


@pytest.fixture
def trust(tmp_path, made):
    return ssl.create_default_context(cafile=config.ca_file(tmp_path))


@contextlib.contextmanager
def peer(context, act):
    """Run the other end of a connection in a thread."""
    ours, theirs = socket.socketpair()
    ours.settimeout(WAIT)
    theirs.settimeout(WAIT)

    def serve():
        with contextlib.suppress(OSError), context.wrap_socket(theirs, server_side=True) as sock:
            act(sock)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(WAIT)
        theirs.close()


def read(link, size):
    data = b""
    while len(data) < size and (piece := link.recv(0)):
        data += piece
    return data


def send(link, data, times):
    for _ in range(times):
        link.sendall(data)


def test_data_and_end_of_stream_arrive(made, trust):
    def echo(sock):
        sock.sendall(sock.recv(5) * 2)
        sock.unwrap()

    with peer(made.context, echo) as sock:
        link = tls.TlsSocket(sock, trust, "cloudmanager")
        link.sendall(b"hello")
        assert read(link, 10) == b"hellohello"
        assert link.recv(0) == b""


def test_concurrent_reads_and_writes_lose_nothing(made, trust):
    size = 4_000_000

    def both(sock):
        sender = threading.Thread(target=sock.sendall, args=(b"b" * 100_000,))
        sender.start()
        got = 0
        while got < size:
            got += len(sock.recv(65536))
        sender.join()
        sock.sendall(b"c" * size)

    with peer(made.context, both) as sock:
        link = tls.TlsSocket(sock, trust, "cloudmanager")
        writer = threading.Thread(target=send, args=(link, b"a" * 40_000, 100))
        writer.start()
        got = read(link, 100_000 + size)
        writer.join(WAIT)
    assert got == b"b" * 100_000 + b"c" * size


def test_many_threads_send_whole_messages(made, trust):
    got = []

    def lines(sock):
        data = b""
        while data.count(b"\n") < 400:
            data += sock.recv(65536)
        got.extend(data.splitlines())

    with peer(made.context, lines) as sock:
        link = tls.TlsSocket(sock, trust, "cloudmanager")
        threads = [
            threading.Thread(target=send, args=(link, char * 999 + b"\n", 100))
            for char in (b"1", b"2", b"3", b"4")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert all(len(line) == 999 and len(set(line)) == 1 for line in got)
    assert len(got) == 400


def test_wrong_name_or_authority_is_refused(made, trust, tmp_path):
    with (
        peer(made.context, lambda _: None) as sock,
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
    ):
        tls.TlsSocket(sock, trust, "localhost")
    with peer(made.context, lambda _: None) as sock, pytest.raises(ssl.SSLCertVerificationError):
        tls.TlsSocket(sock, ssl.create_default_context(), "cloudmanager")


def test_connection_lost_in_the_handshake_is_an_error(trust):
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(OSError, match=r".+"):
        tls.TlsSocket(ours, trust, "cloudmanager")


# The fingerprint


@pytest.fixture
def site(made):
    """A server that answers /ca.pem with ``site.pem``, on the TCP port ``site.port``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(httpd.pem)

        def log_message(self, *_):
            pass

    class Site(http.server.ThreadingHTTPServer):
        pem = ssl.DER_cert_to_PEM_cert(made.ca).encode()

        def handle_error(self, *_):
            pass

    with Site(("127.0.0.1", 0), Handler) as httpd:
        httpd.socket = made.context.wrap_socket(
            httpd.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join(WAIT)


def fetch(site, pin):
    return tls._fetch_ca("127.0.0.1", site.server_address[1], pin)


def test_fetched_authority_with_the_fingerprint_is_accepted(site, made):
    assert fetch(site, made.pin).encode() == site.pem
    wanted = urlsafe_b64encode(hashlib.sha256(made.ca).digest()[:16]).decode().rstrip("=")
    assert made.pin == wanted


@pytest.mark.parametrize("pin", ["A" * 22, "", "é", "x" * 1000])
def test_wrong_fingerprint_is_refused(site, pin):
    with pytest.raises(OSError, match="the token belongs to another server"):
        fetch(site, pin)


@pytest.mark.parametrize("pem", [b"", b"<html>", b"\xff" * 100_000], ids=len)
def test_malformed_authority_is_refused(site, made, pem):
    site.pem = pem
    with pytest.raises(OSError, match="not a Cloudmanager server"):
        fetch(site, made.pin)


def test_trust_is_by_fingerprint_then_file_then_system(site, made, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tls, "TlsSocket", lambda sock, context, name: asked.append((context, name)))
    with socket.create_connection(site.server_address) as sock:
        endpoint = ("127.0.0.1", site.server_address[1])
        url = f"https://127.0.0.1:{site.server_address[1]}"
        tls.start_tls(sock, endpoint, ServerAddress(url, "cm_x", "", None, made.pin))
        tls.start_tls(sock, endpoint, ServerAddress(url, "cm_x", "", config.ca_file(tmp_path)))
        tls.start_tls(sock, ("lab.example", 1), ServerAddress(url, "cm_x", ""))
    assert [name for _, name in asked] == ["cloudmanager", "cloudmanager", "lab.example"]
    assert all(context.verify_mode == ssl.CERT_REQUIRED for context, _ in asked)
    assert all(context.check_hostname for context, _ in asked)
    ours = [made.ca in context.get_ca_certs(binary_form=True) for context, _ in asked]
    assert ours == [True, True, False]
