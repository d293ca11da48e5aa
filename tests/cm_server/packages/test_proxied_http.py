"""Packages through an HTTP proxy: which requests it gets, and what is still refused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from cloudmanager import config
from cloudmanager.protocol.errors import PackageError
from cm_server.limits import MIB, Limits
from cm_server.net import certificates
from cm_server.packages.http_fetcher import (
    HttpFetcher,
    OriginAccess,
    SourceNotFound,
    SourceUnreachable,
)
from tests.forward_proxy import ForwardProxy, closed_tcp_port

from .package_server import PackageServer, bomb
from .test_index import planned_sources


@pytest.fixture
def web(limits: Limits) -> HttpFetcher:
    return HttpFetcher(limits)


@pytest.fixture
def proxy(package_server: PackageServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForwardProxy]:
    """Yield the environment's proxy; the package server is pi.example for it."""
    tcp_port = int(package_server.url.rpartition(":")[2])
    names = {f"{name}:80": tcp_port for name in ("pi.example", "8.8.8.8", "10.1.2.3")}
    names["pi.example:443"] = tcp_port
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ForwardProxy(names, "ann:secret") as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("https_proxy", proxy.url)
        yield proxy


async def test_http_url_is_requested_from_the_proxy(package_server, proxy, web):
    package_server.put("/x.py?y=1", b"X = 1", "text/plain")
    reply = await web.fetch("http://pi.example/x.py?y=1#part", limit=MIB)
    assert reply == (b"X = 1", "http://pi.example/x.py?y=1#part", "text/plain")
    assert proxy.requests == ["GET http://pi.example/x.py?y=1 HTTP/1.1"]
    head = package_server.request_heads[0]
    assert "Host: pi.example\r\n" in head
    assert "Proxy-" not in head


async def test_https_url_is_requested_through_a_connection(tmp_path, limits, monkeypatch):
    made = certificates.load(tmp_path)  # for the name `cloudmanager`
    web = HttpFetcher(limits, str(config.ca_file(tmp_path)))
    async with PackageServer().serving(tls=made.context) as secret:
        tcp_port = int(secret.url.rpartition(":")[2])
        names = {"cloudmanager:443": tcp_port, "other.example:443": tcp_port}
        with ForwardProxy(names, "ann:secret") as proxy:
            monkeypatch.setenv("https_proxy", proxy.url)
            secret.put("/x.py", b"X = 1")
            assert (await web.fetch("https://cloudmanager/x.py", limit=MIB)).body == b"X = 1"
            with pytest.raises(SourceUnreachable, match="CERTIFICATE|certificate"):
                await web.fetch("https://other.example/x.py", limit=MIB)
            assert proxy.requests == [f"CONNECT {name} HTTP/1.1" for name in names]
    assert "Proxy-" not in secret.request_heads[0]
    assert secret.requested_paths == ["/x.py"]


async def test_package_is_installed_through_the_proxy(package_server, proxy, tmp_path, limits):
    package_server.publish("log", files={"log.py": "V = 1\n"})
    planner = package_server.planner(tmp_path, limits, indexes={"": "http://pi.example/pi"})
    assert await planned_sources(planner, "log") == {"/lib/log.py": b"V = 1\n"}
    assert all(line.startswith("GET http://pi.example/pi/") for line in proxy.requests)


async def test_redirect_is_followed_through_the_proxy(package_server, proxy, web):
    package_server.redirect("/x", "http://8.8.8.8/y")
    package_server.put("/y", b"here")
    assert (await web.fetch("http://pi.example/x", limit=MIB)).body == b"here"
    assert len(proxy.requests) == 2


@pytest.mark.parametrize(
    "host",
    ["10.1.2.3", "10.66051", "0x0a010203", "[fec0::1]", "[::ffff:10.1.2.3]", "169.254.169.254"],
)
async def test_private_address_is_refused_in_every_notation(package_server, proxy, web, host):
    with pytest.raises(PackageError, match="private address"):
        await web.fetch(f"http://{host}/x", limit=MIB)
    package_server.redirect("/x", f"http://{host}/y")
    with pytest.raises(PackageError, match="private address"):
        await web.fetch("http://pi.example/x", limit=MIB)
    assert proxy.requests == ["GET http://pi.example/x HTTP/1.1"]


async def test_configured_source_may_have_a_private_address(package_server, proxy, web):
    package_server.put("/x", b"here")
    reply = await web.fetch(
        "http://10.1.2.3/x",
        limit=MIB,
        access=OriginAccess("http://10.1.2.3/pi", may_be_private=True),
    )
    assert reply.body == b"here"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433"])
async def test_this_machine_is_not_reached_through_the_proxy(package_server, proxy, web, host):
    tcp_port = package_server.url.rpartition(":")[2]
    with pytest.raises(PackageError, match="private address|cannot be reached"):
        await web.fetch(f"http://{host}:{tcp_port}/x", limit=MIB)
    assert proxy.requests == package_server.requested_paths == []


async def test_no_proxy_is_obeyed(package_server, proxy, web, monkeypatch):
    monkeypatch.setenv("no_proxy", "10.0.0.0/8,example")
    for url in ("http://pi.example/x", "http://10.1.2.3/x"):
        with pytest.raises(PackageError, match="cannot be reached|private address"):
            await web.fetch(url, limit=MIB)
    assert proxy.requests == []


async def test_limits_hold_for_responses_of_the_proxy(package_server, proxy, web):
    package_server.pages["/bomb"] = bomb()
    with pytest.raises(SourceUnreachable):
        await web.fetch("http://pi.example/bomb", limit=MIB)
    with pytest.raises(SourceNotFound):
        await web.fetch("http://pi.example/none", limit=MIB)


@pytest.mark.limits(fetch_seconds=0.5)
async def test_silent_source_behind_the_proxy_times_out(package_server, proxy, web):
    async def silent(_):
        await asyncio.sleep(30)

    package_server.pages["/x"] = silent
    for url in ("http://pi.example/x", "https://pi.example/x"):
        with pytest.raises(SourceUnreachable):
            await web.fetch(url, limit=MIB)


@pytest.mark.limits(fetch_response_seconds=0.3)
async def test_silent_proxy_is_found_before_the_time_for_slow_responses(web, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("https_proxy", url)
        for scheme in ("http", "https"):
            with pytest.raises(SourceUnreachable, match="does not respond within 0.3 s"):
                await web.fetch(f"{scheme}://pi.example/x", limit=MIB)


async def test_failure_of_the_proxy_is_explained(package_server, proxy, web, monkeypatch):
    with pytest.raises(SourceUnreachable, match="other.example.*502"):
        await web.fetch("http://other.example/x", limit=MIB)
    with pytest.raises(SourceUnreachable, match="refuses the connection, with HTTP status 502"):
        await web.fetch("https://other.example/x", limit=MIB)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.tcp_port}")
    with pytest.raises(SourceUnreachable, match="407"):
        await web.fetch("http://pi.example/x", limit=MIB)
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(SourceUnreachable, match="only HTTP proxies can be used"):
        await web.fetch("http://pi.example/x", limit=MIB)
    with closed_tcp_port() as tcp_port:
        monkeypatch.setenv("http_proxy", f"http://ann:secret@127.0.0.1:{tcp_port}")
        with pytest.raises(SourceUnreachable, match="the proxy .* cannot be reached") as caught:
            await web.fetch("http://pi.example/x", limit=MIB)
    assert "secret" not in str(caught.value)
