"""Fetch from untrusted servers (attack groups 29 and 30), over real sockets on loopback."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.limits import MIB, Limits
from cm_server.packages import http_fetcher as http_fetcher
from cm_server.packages.http_fetcher import (
    HttpFetcher,
    OriginAccess,
    SourceNotFound,
    SourceUnreachable,
    is_public,
    without_credentials,
)

from .package_server import PackageServer, bomb, reply


@pytest.fixture
def web(limits: Limits) -> HttpFetcher:
    return HttpFetcher(limits)


def configured(url: str) -> OriginAccess:
    """Return the access to a source that an administrator configured."""
    return OriginAccess.to_source(url, may_be_private=True)


async def get(web, package_server, path="/x", **more):
    return await web.fetch(
        package_server.url + path,
        **{"limit": MIB, "access": configured(package_server.url), **more},
    )


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "0.0.0.0",
        "::",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "100.64.0.1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2002:a00:1::",
        "2002:a9fe:a9fe::1",
        "2001::1",
        "2001:0:101:101::",
        "64:ff9b:1::101:101",
        "64:ff9b:1:ffff::1",
        "fec0::1",
        "feff::1",
        "fc00::1",
        "::101:101",
        "::ffff:0:101:101",
        "100::1",
        "1000::1",
        "4000::1",
        "5f00::1",
        "2001:db8::1",
        "2001:10::1",
        "3fff::1",
        "198.18.0.1",
        "192.0.0.8",
        "192.88.99.1",
        "2002:c058:6301::1",
        "192.0.2.1",
        "240.0.0.1",
        "192.168.0.1%eth0",
    ],
)
def test_private_address_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "2606:4700::1111",
        "2001:4860:4860::8888",
        "2a00:1450:4001::1",
        "3ffe::1",
        "2002:101:101::1",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
    ],
)
def test_public_address_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0"])
async def test_private_address_is_refused_in_every_notation(web, package_server, host):
    package_server.put("/x", b"secret")
    tcp_port = package_server.url.rpartition(":")[2]
    with pytest.raises(PackageError, match="private address|cannot be reached"):
        await web.fetch(f"http://{host}:{tcp_port}/x", limit=MIB)
    assert package_server.requested_paths == []


async def test_cloud_metadata_service_is_refused(web):
    with pytest.raises(PackageError, match="private address"):
        await web.fetch("http://169.254.169.254/latest/meta-data/", limit=MIB)


async def test_configured_source_may_be_private(web, package_server):
    package_server.put("/x", b"here", "text/plain; charset=utf-8")
    assert await get(web, package_server) == (b"here", f"{package_server.url}/x", "text/plain")


async def test_only_the_configured_origin_may_be_private(web, package_server):
    async with PackageServer().serving() as other:
        other.put("/x", b"secret")
        with pytest.raises(PackageError, match="private address"):
            await web.fetch(f"{other.url}/x", limit=MIB, access=configured(package_server.url))
        assert other.requested_paths == []


async def test_redirect_to_a_private_address_is_not_followed(web, package_server):
    async with PackageServer().serving() as inside:
        inside.put("/secret", b"secret")
        package_server.redirect("/x", f"{inside.url}/secret")
        with pytest.raises(PackageError, match="private address"):
            await get(web, package_server)
        assert inside.requested_paths == []


async def test_redirect_within_the_configured_origin_is_followed(web, package_server):
    package_server.redirect("/x", "/y", 301)
    package_server.put("/y", b"here")
    assert (await get(web, package_server)).body == b"here"


@pytest.mark.limits(fetch_seconds=0.5)
async def test_dns_rebinding_does_not_reach_a_private_address(web, package_server, monkeypatch):
    """The address that was checked is the one that is connected to, for each connection."""
    package_server.put("/x", b"secret")
    tcp_port = int(package_server.url.rpartition(":")[2])
    answers = iter(["192.0.2.1", "127.0.0.1"])
    loop = asyncio.get_running_loop()
    asked = []

    async def getaddrinfo(host, port, **_):
        asked.append(next(answers))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (asked[-1], port))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(http_fetcher, "is_public", lambda address: address != "127.0.0.1")
    for why in ("does not respond|cannot be reached|takes longer", "private address"):
        with pytest.raises(PackageError, match=why):
            await web.fetch(f"http://rebind.example:{tcp_port}/x", limit=MIB)
    assert asked == ["192.0.2.1", "127.0.0.1"], "the name was not resolved once for each connection"
    assert package_server.requested_paths == []


async def test_host_with_one_private_address_is_refused(web, monkeypatch):
    async def getaddrinfo(host, port, **_):
        return [(socket.AF_INET, 1, 6, "", (a, port)) for a in ("1.1.1.1", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    with pytest.raises(PackageError, match="private address"):
        await web.fetch("http://both.example/x", limit=MIB)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://a.example/x",
        "gopher://a/",
        "//a/x",
        "x",
        "http://",
        "http://a:x/",
    ],
)
async def test_other_schemes_are_refused(web, url):
    with pytest.raises(PackageError, match="not an http or https URL|has no host name"):
        await web.fetch(url, limit=MIB)


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://a.example/x", "gopher://x/", "data:,x"]
)
async def test_redirect_to_another_scheme_is_refused(web, package_server, to):
    package_server.redirect("/x", to)
    with pytest.raises(PackageError, match="not an http or https URL"):
        await get(web, package_server)


async def test_endless_redirects_are_refused(web, package_server):
    package_server.redirect("/x", "/x")
    with pytest.raises(SourceUnreachable, match="redirects too many times"):
        await get(web, package_server)
    assert len(package_server.requested_paths) == Limits.fetch_redirects + 1


async def test_redirect_from_https_to_http_is_refused(web, monkeypatch):
    class Moved:
        code = 302
        headers = {"Location": "http://a.example/x"}

    async def ask(*_, **__):
        return Moved

    monkeypatch.setattr(web, "_fetch_once", ask)
    with pytest.raises(SourceUnreachable, match="from https to http"):
        await web.fetch("https://a.example/x", limit=MIB)


async def test_password_is_sent_to_its_origin_only_and_not_shown(web, package_server, monkeypatch):
    async with PackageServer().serving("127.0.0.2") as other:
        monkeypatch.setattr(http_fetcher, "is_public", lambda address: address == "127.0.0.2")
        package_server.redirect("/x", f"{other.url}/y")
        with_login = package_server.url.replace("//", "//user:pa%24s@")
        with pytest.raises(SourceNotFound) as raised:
            await web.fetch(f"{with_login}/x", limit=MIB, access=configured(package_server.url))
        assert "Authorization: Basic dXNlcjpwYSRz" in package_server.request_heads[0]
        assert "Authorization" not in other.request_heads[0]
        assert "pa" not in str(raised.value).replace("package", "")
        assert "Authorization" not in other.request_heads[0]
        package_server.redirect("/a", "/b")
        package_server.put("/b", b"here")
        await web.fetch(f"{with_login}/a", limit=MIB, access=configured(package_server.url))
        assert "Authorization: Basic dXNlcjpwYSRz" in package_server.request_heads[-1], (
            "the password was not sent to its own origin"
        )
    assert without_credentials(with_login + "/x?y") == f"{package_server.url}/x?y"


# Limits and malformed responses


async def test_too_big_response_is_refused(web, package_server):
    package_server.put("/x", b"x" * 1001)
    with pytest.raises(PackageError, match="does not respond"):
        await get(web, package_server, limit=1000)
    package_server.put("/x", b"x" * 1000)
    assert len((await get(web, package_server, limit=1000)).body) == 1000


async def endless(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def endless_chunks(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


async def endless_head(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-More: " + b"x" * 60_000 + b"\r\n")
        await writer.drain()


async def huge_content_length(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\nx")
    await writer.drain()
    await asyncio.sleep(60)


@pytest.mark.parametrize("page", [endless, endless_chunks, endless_head, huge_content_length])
async def test_endless_response_is_refused(web, package_server, page):
    package_server.pages["/x"] = page
    since = time.monotonic()
    with pytest.raises(SourceUnreachable):
        await get(web, package_server)
    assert time.monotonic() - since < 5


async def silent(writer):
    await asyncio.sleep(60)


async def trickling(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("page", [silent, trickling])
@pytest.mark.limits(fetch_seconds=0.3)
async def test_slow_response_times_out(web, package_server, page):
    package_server.pages["/x"] = page
    with pytest.raises(SourceUnreachable):
        await get(web, package_server)


@pytest.mark.limits(fetch_seconds=0.4)
async def test_redirects_share_the_timeout(web, package_server):

    async def delayed_redirect(writer):
        await asyncio.sleep(0.15)
        writer.write(reply(b"", 302, Location="/x"))

    package_server.pages["/x"] = delayed_redirect
    with pytest.raises(SourceUnreachable, match="takes longer than 0.4 s"):
        await get(web, package_server)


async def truncated(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")


async def no_http(writer):
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def empty_response(writer):
    pass


@pytest.mark.parametrize("page", [truncated, no_http, empty_response])
async def test_malformed_response_is_an_error(web, package_server, page):
    package_server.pages["/x"] = page
    with pytest.raises(SourceUnreachable):
        await get(web, package_server)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, SourceNotFound),
        (410, SourceNotFound),
        (500, SourceUnreachable),
        (403, SourceUnreachable),
    ],
)
async def test_http_status_becomes_an_error(web, package_server, status, error):
    package_server.pages["/x"] = reply(b"", status)
    with pytest.raises(error):
        await get(web, package_server)


async def test_gzip_bomb_is_refused(web, package_server):
    raw = bomb()
    package_server.put("/x", raw, Content_Encoding="gzip")
    with pytest.raises(SourceUnreachable):
        await get(web, package_server)


async def test_gzip_is_inflated_up_to_the_limit(web, package_server):
    package_server.put("/x", gzip.compress(b"x" * 1000), Content_Encoding="gzip")
    assert (await get(web, package_server, limit=1000)).body == b"x" * 1000
    with pytest.raises(SourceUnreachable):
        await get(web, package_server, limit=999)


async def test_other_content_encoding_is_refused(web, package_server):
    package_server.put("/x", b"x", Content_Encoding="br")
    with pytest.raises(SourceUnreachable, match="not requested"):
        await get(web, package_server)


async def test_refused_connection_is_an_error(web):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(SourceUnreachable, match="cannot be reached"):
        await web.fetch(f"{url}/x", limit=MIB, access=configured(url))


@pytest.mark.limits(fetch_seconds=0.5)
async def test_slow_fetches_do_not_block_the_loop(web, package_server):
    package_server.pages["/x"] = trickling
    task = asyncio.ensure_future(get(web, package_server))
    since = time.monotonic()
    await asyncio.sleep(0.05)
    assert time.monotonic() - since < 0.3
    with pytest.raises(SourceUnreachable):
        await task


async def test_private_host_has_a_private_address(web, package_server):
    assert await web.is_private_host(package_server.url)
    assert not await web.is_private_host("http://1.1.1.1/")


async def test_end_of_a_fetch_that_nobody_awaits_is_not_logged(web, monkeypatch, caplog):
    gate = asyncio.Event()

    async def fail(*_, **__):
        await gate.wait()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    fetching = asyncio.ensure_future(web.fetch("https://example.org/x", limit=10))
    await asyncio.sleep(0.05)
    fetching.cancel()
    await asyncio.wait([fetching])
    gate.set()
    await asyncio.sleep(0.05)
    assert caplog.text == ""
