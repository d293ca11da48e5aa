"""HTTP handlers: health, metrics, and requests that web pages of other origins can cause."""

from __future__ import annotations

import asyncio
import ipaddress
import time

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.app import ROUTES
from cm_server.auth import credentials
from cm_server.store.rows import new_board_row
from tests.cm_server.peers import (
    FakeBoard,
    FakeCaller,
    RawPeer,
    Service,
    handshake,
    running_service,
    within,
)

FOREIGN = [
    "https://evil.example",
    "http://localhost",
    "http://localhost:8888",  # another program on the same machine
    "http://127.0.0.1:{port}",  # the server's own address: its pages open no links
    "https://lab.example:443",
    "https://lab.example.evil.example",
    "HTTPS://LAB.EXAMPLE",
    "null",
    "file://",
    "",
]
SOCKETS = [path for path, page in ROUTES if page.required_credential in ("token", "key")]


async def answer(service: Service, path: str, **headers: str) -> str:
    """Send a WebSocket handshake with valid credentials and more headers; return the answer."""
    given = {"Authorization": f"Bearer {service.token}", "Cm-Protocol": "1", **headers}
    async with await RawPeer.dial(service) as peer:
        peer.say(handshake(path, **given))
        return await peer.head()


async def send_text(service: Service, text: str) -> str:
    async with await RawPeer.dial(service) as peer:
        peer.say(text.encode("latin-1"))
        return await peer.answer()


# Health and metrics


async def get(service: Service, path: str, **headers: str) -> str:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return await send_text(service, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")


async def test_health_reports_a_problem_and_its_end(service: Service):
    assert (await get(service, "/healthz")).endswith('{"status": "ok"}')
    store = service.store
    store._connection.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(ServerError, match="cannot be written"):
        store.insert_jobs(["id1"], "ann")
    answered = await get(service, "/healthz")
    assert answered.startswith("HTTP/1.1 503 ")
    assert "its store cannot be written: attempt to write a readonly database" in answered
    store._connection.exec_driver_sql("PRAGMA query_only=OFF")
    store.probe_writable()
    assert (await get(service, "/healthz")).startswith("HTTP/1.1 200 ")


async def test_health_is_ok_with_a_warning_about_the_clock(tmp_path):
    ahead = 0.0
    async with running_service(tmp_path, clock=lambda: time.time() + ahead) as service:
        ahead = 450 * 86400.0
        service.server.clock.check()
        answered = await get(service, "/healthz")
        assert answered.startswith("HTTP/1.1 200 ")
        assert '"status": "ok", "warnings": ["this machine\'s clock may be wrong: ' in answered
        async with await FakeCaller.join(service) as caller:
            status = await caller.ask("status")
        (problem,) = status["reply"]["problems"]
        assert "450 days ahead" in problem
        assert 0 <= status["reply"]["uptime"] < 60


async def test_refused_request_is_no_health_problem(service: Service):
    service.enrol("lab-1")
    with pytest.raises(ServerError, match="choose another one"):
        service.store.enrol_boards([new_board_row("id2", "lab-1", bytes(32))])
    assert (await get(service, "/healthz")).startswith("HTTP/1.1 200 ")


async def test_metrics_need_loopback_or_a_token_for_all_boards(tmp_path):
    proxies = (ipaddress.ip_network("127.0.0.0/8"),)
    async with running_service(tmp_path, behind_proxy=proxies) as service:
        some, dead = service.add_token("admin", "lab-*"), service.add_token("viewer", name="dead")
        service.revoke_token("dead")
        expected = {"": 401, credentials.new_token(): 401, some: 401, dead: 401, service.token: 200}
        expected[service.add_token("viewer", name="ann")] = 200
        far = {"X-Forwarded-For": "203.0.113.9"}
        for token, status in expected.items():
            answered = await get(service, "/metrics", Authorization=f"Bearer {token}", **far)
            assert answered.startswith(f"HTTP/1.1 {status} "), token
            assert ("cm_boards" in answered) == (status == 200)
        assert (await get(service, "/metrics", **{"X-Forwarded-For": "::1"})).startswith(
            "HTTP/1.1 200"
        )
        answered = await get(service, "/metrics", Origin="https://evil.example")
        assert answered.startswith("HTTP/1.1 403 ")


# Cross-site WebSocket hijacking


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("path", SOCKETS)
async def test_foreign_origin_is_refused(service: Service, path, origin):
    origin = origin.format(port=service.tcp_port)
    text = handshake(path, Authorization=f"Bearer {service.token}", **{"Cm-Protocol": "1"})
    answered = await send_text(
        service, text.decode().replace("\r\n\r\n", f"\r\nOrigin: {origin}\r\n\r\n")
    )
    assert answered.startswith("HTTP/1.1 403 ")
    assert "Cm-Refused: web pages of other origins may not open this address\r\n" in answered


@pytest.mark.parametrize("path", SOCKETS)
async def test_request_without_origin_is_accepted(service: Service, path):
    assert (await answer(service, path)).startswith("HTTP/1.1 101 ")


async def test_allowed_origin_is_accepted_with_a_token(tmp_path):
    async with running_service(tmp_path, allow_origin=("https://lab.example",)) as service:
        for path in SOCKETS:
            answered = await answer(service, path, Origin="https://lab.example")
            assert answered.startswith("HTTP/1.1 101 ")
            for origin in FOREIGN[:-1]:
                refused = await answer(service, path, Origin=origin.format(port=service.tcp_port))
                assert refused.startswith("HTTP/1.1 403 "), origin
        answered = await answer(service, "/caller", Origin="https://lab.example", Authorization="")
        assert answered.startswith("HTTP/1.1 401 ")


async def test_two_origin_headers_are_refused(tmp_path):
    async with running_service(tmp_path, allow_origin=("https://lab.example",)) as service:
        origins = "Origin: https://lab.example\r\nOrigin: https://evil.example\r\n\r\n"
        text = handshake("/caller", Authorization=f"Bearer {service.token}").decode()
        answered = await send_text(service, text.replace("\r\n\r\n", "\r\n" + origins))
        assert answered.startswith("HTTP/1.1 403 ")


# DNS rebinding

HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example",
    "localhost.evil.example:{port}",
    "localhost.",
    "evil@localhost",
    "localhost:evil",
    "localhost:{port}:1",
    "127.0.0.1:",
    "127.0.0",
    "0.0.0.0",
    "[::]",
    "::1",
    "[::1",
    "[::2]",
    "[::ffff:192.0.2.1]",
    "192.168.1.2:{port}",
    "127.0.0.1,evil.example",
]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", [*(path for path, _ in ROUTES), "/nothing"])
async def test_foreign_host_name_on_loopback_is_refused(service: Service, path, host):
    answered = await answer(service, path, Host=host.format(port=service.tcp_port))
    assert answered.startswith(("HTTP/1.1 403 ", "HTTP/1.1 400 "))


async def test_request_without_host_is_refused(service: Service):
    for version in ("1.1", "1.0"):
        answered = await answer_to(service, f"GET /healthz HTTP/{version}\r\n\r\n")
        assert " 200 " not in answered.partition("\r\n")[0]


async def answer_to(service: Service, text: str) -> str:
    async with await RawPeer.dial(service) as peer:
        peer.say(text.encode())
        return (await peer.reader.read()).decode()


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:{port}", "127.0.0.1", "127.1.2.3:{port}", "[::1]:{port}"]
)
async def test_loopback_host_names_are_accepted(service: Service, host):
    host = host.format(port=service.tcp_port)
    answered = await send_text(service, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n")
    assert answered.startswith("HTTP/1.1 200 ")


async def test_other_port_in_the_host_header_is_accepted(service: Service):
    assert (await answer(service, "/caller", Host="localhost:9999")).startswith("HTTP/1.1 101 ")


# Cross-site requests, reading across origins, framing, sniffing


@pytest.mark.parametrize("path", [*(path for path, _ in ROUTES), "/nothing"])
@pytest.mark.parametrize("method", ["OPTIONS", "POST", "PUT", "PATCH", "DELETE", "HEAD", "GET"])
async def test_every_answer_has_the_security_headers(service: Service, method, path):
    for more in ("", "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n"):
        answered = await answer_to(
            service, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nCookie: a=b\r\n{more}\r\n"
        )
        head = answered.partition("\r\n\r\n")[0].lower()
        assert "access-control-" not in head
        assert "set-cookie" not in head
        assert "tornado" not in answered.lower()
        assert "\r\nx-content-type-options: nosniff" in head
        assert "\r\nx-frame-options: deny" in head
        assert "\r\ncache-control: no-store" in head
        assert "\r\ncontent-security-policy: default-src 'none'" in head
        assert "text/html" not in head


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize(("path", "_page"), ROUTES)
async def test_form_posted_by_a_foreign_page_changes_nothing(service: Service, path, _page, kind):
    body = '{"verb": "enrol", "names": ["evil"]}'
    answered = await send_text(
        service,
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.token}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}",
    )
    assert answered.startswith("HTTP/1.1 405 ")
    assert not service.server.registry.by_name


async def test_cookie_is_not_accepted_as_a_token(service: Service):
    answered = await answer(service, "/caller", Authorization="", Cookie=f"token={service.token}")
    assert answered.startswith("HTTP/1.1 401 ")


async def test_error_page_is_plain_text_without_the_path(service: Service):
    answered = await send_text(
        service, "GET /<script>alert(1)</script> HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    assert answered.endswith("\r\n\r\n404 Not Found\n")
    assert "script" not in answered


async def test_connection_is_closed_after_one_request(service: Service):
    """So an unauthenticated client cannot stay connected, not even by pipelining."""
    text = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n"
    answered = await answer_to(service, text * 50)
    assert answered.count("HTTP/1.1 200 ") == 1
    await service.until(lambda: service.server.unauthenticated.count == 0)


# Boards and callers


async def test_boards_and_callers_without_origin_are_accepted(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1")
        await board.next()
        await board.end(job)
        assert (await caller.ending(job))[0] == "ok"


# A server that other machines can reach


PLAIN = "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize("path", ["/healthz", "/caller", "/ca.pem", "/nothing"])
async def test_public_server_refuses_requests_without_tls(tmp_path, path):
    async with running_service(tmp_path, local=False) as service:
        answered = await send_text(service, PLAIN.format(path=path))
        assert answered.startswith("HTTP/1.1 403 ")
        assert "Cm-Refused: this server requires TLS: use https:// in its address\r\n" in answered


@pytest.mark.parametrize("host", ["192.168.1.2:18266", "lab.example", "evil.example"])
async def test_tls_request_with_any_host_is_accepted(tmp_path, host):
    """A browser refuses the certificate for `cloudmanager`, so DNS rebinding fails there."""
    async with running_service(tmp_path, local=False) as service:
        reader, writer = await within(
            asyncio.open_connection(
                "127.0.0.1", service.tcp_port, ssl=service.trust(), server_hostname="cloudmanager"
            )
        )
        writer.write(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert (await within(reader.readline())) == b"HTTP/1.1 200 OK\r\n"
        writer.transport.abort()


async def test_ca_certificate_needs_no_credentials(service: Service):
    answered = await send_text(service, PLAIN.format(path="/ca.pem"))
    assert answered.startswith("HTTP/1.1 200 ")
    assert "-----BEGIN CERTIFICATE-----" in answered
    assert "PRIVATE" not in answered


@pytest.mark.parametrize(
    ("network", "forwarded", "status", "address"),
    [
        ("127.0.0.0/8", "203.0.113.9", "200", "203.0.113.9"),
        ("127.0.0.0/8", "198.51.100.1, 203.0.113.9, 127.0.0.7", "200", "203.0.113.9"),
        ("127.0.0.0/8", "", "200", ""),
        ("10.0.0.0/8", "203.0.113.9", "403", ""),
    ],
)
async def test_only_a_trusted_proxy_may_report_the_address(
    tmp_path, network, forwarded, status, address
):
    proxies = (ipaddress.ip_network(network),)
    async with running_service(tmp_path, local=False, behind_proxy=proxies) as service:
        text = f"GET /healthz HTTP/1.1\r\nHost: lab.example\r\nX-Forwarded-For: {forwarded}\r\n\r\n"
        assert (await send_text(service, text)).startswith(f"HTTP/1.1 {status} ")
        if status == "200" and address:
            await answer(
                service, "/caller", Authorization="Bearer no", **{"X-Forwarded-For": forwarded}
            )
            row = service.audited()[-1]
            assert (row.verb, row.address) == ("login", address)
