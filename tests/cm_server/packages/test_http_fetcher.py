"""Fetching from whoever answers; FIELD 5, groups 29 and 30. Real sockets, all on loopback."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server import limits
from cm_server.packages import http_fetcher as web_module
from cm_server.packages.http_fetcher import (
    HttpFetcher,
    SourceNotFound,
    SourceUnreachable,
    is_public,
    without_credentials,
)

from .shelf import Shelf, bomb, reply

MIB = 1024**2


@pytest.fixture
def web() -> HttpFetcher:
    return HttpFetcher()


async def get(web, shelf, path="/x", **more):
    return await web.fetch(shelf.url + path, **{"limit": MIB, "trusted_url": shelf.url, **more})


# Where it may go


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
        "2001::1",
    ],
)
def test_private_address_is_known(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_public_address_is_known(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0"])
async def test_private_address_is_not_connected_to_however_it_is_written(web, shelf, host):
    shelf.put("/x", b"secret")
    tcp_port = shelf.url.rpartition(":")[2]
    with pytest.raises(PackageError, match="private address|cannot be reached"):
        await web.fetch(f"http://{host}:{tcp_port}/x", limit=MIB)
    assert shelf.asked == []


async def test_metadata_service_is_not_asked(web):
    with pytest.raises(PackageError, match="private address"):
        await web.fetch("http://169.254.169.254/latest/meta-data/", limit=MIB)


async def test_source_that_an_administrator_configured_may_be_private(web, shelf):
    shelf.put("/x", b"here", "text/plain; charset=utf-8")
    assert await get(web, shelf) == (b"here", f"{shelf.url}/x", "text/plain")


async def test_only_its_own_origin_is_exempt(web, shelf):
    async with Shelf().serving() as other:
        other.put("/x", b"secret")
        with pytest.raises(PackageError, match="private address"):
            await web.fetch(f"{other.url}/x", limit=MIB, trusted_url=shelf.url)
        assert other.asked == []


async def test_redirect_to_a_private_address_is_not_followed(web, shelf):
    async with Shelf().serving() as inside:
        inside.put("/secret", b"secret")
        shelf.redirect("/x", f"{inside.url}/secret")
        with pytest.raises(PackageError, match="private address"):
            await get(web, shelf)
        assert inside.asked == []


async def test_redirect_within_the_configured_origin_is_followed(web, shelf):
    shelf.redirect("/x", "/y", 301)
    shelf.put("/y", b"here")
    assert (await get(web, shelf)).body == b"here"


async def test_name_that_answers_otherwise_the_second_time_gains_nothing(web, shelf, monkeypatch):
    """DNS rebinding: what was checked is what is connected to, and each time is checked."""
    shelf.put("/x", b"secret")
    tcp_port = int(shelf.url.rpartition(":")[2])
    answers = iter(["192.0.2.1", "127.0.0.1"])
    loop = asyncio.get_running_loop()
    asked = []

    async def getaddrinfo(host, port, **_):
        asked.append(next(answers))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (asked[-1], port))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(limits, "FETCH_SECONDS", 0.5)
    monkeypatch.setattr(web_module, "is_public", lambda address: address != "127.0.0.1")
    for why in ("gives no answer|cannot be reached|takes longer", "private address"):
        with pytest.raises(PackageError, match=why):
            await web.fetch(f"http://rebind.example:{tcp_port}/x", limit=MIB)
    assert asked == ["192.0.2.1", "127.0.0.1"], "asked once for each connection"
    assert shelf.asked == []


async def test_one_private_address_among_public_ones_refuses_all(web, monkeypatch):
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
    with pytest.raises(PackageError, match="no http or https URL|names no host"):
        await web.fetch(url, limit=MIB)


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://a.example/x", "gopher://x/", "data:,x"]
)
async def test_redirect_to_another_scheme_is_refused(web, shelf, to):
    shelf.redirect("/x", to)
    with pytest.raises(PackageError, match="no http or https URL"):
        await get(web, shelf)


async def test_redirects_end(web, shelf):
    shelf.redirect("/x", "/x")
    with pytest.raises(SourceUnreachable, match="on and on"):
        await get(web, shelf)
    assert len(shelf.asked) == limits.FETCH_REDIRECTS + 1


async def test_redirect_from_https_to_http_is_refused(web, monkeypatch):
    class Moved:
        code = 302
        headers = {"Location": "http://a.example/x"}

    async def ask(*_, **__):
        return Moved

    monkeypatch.setattr(web, "_fetch_once", ask)
    with pytest.raises(SourceUnreachable, match="from https to http"):
        await web.fetch("https://a.example/x", limit=MIB)


async def test_password_is_for_its_origin_only_and_never_shown(web, shelf, monkeypatch):
    async with Shelf().serving("127.0.0.2") as other:
        monkeypatch.setattr(web_module, "is_public", lambda address: address == "127.0.0.2")
        shelf.redirect("/x", f"{other.url}/y")
        with_login = shelf.url.replace("//", "//user:pa%24s@")
        with pytest.raises(SourceNotFound) as raised:
            await web.fetch(f"{with_login}/x", limit=MIB, trusted_url=shelf.url)
        assert "Authorization: Basic dXNlcjpwYSRz" in shelf.heads[0]
        assert "Authorization" not in other.heads[0]
        assert "pa" not in str(raised.value).replace("package", "")
        assert "Authorization" not in other.heads[0]
        shelf.redirect("/a", "/b")
        shelf.put("/b", b"here")
        await web.fetch(f"{with_login}/a", limit=MIB, trusted_url=shelf.url)
        assert "Authorization: Basic dXNlcjpwYSRz" in shelf.heads[-1], "its own origin is told"
    assert without_credentials(with_login + "/x?y") == f"{shelf.url}/x?y"


# What it takes


async def test_answer_that_is_too_big_is_refused(web, shelf):
    shelf.put("/x", b"x" * 1001)
    with pytest.raises(PackageError, match="no answer|too"):
        await get(web, shelf, limit=1000)
    shelf.put("/x", b"x" * 1000)
    assert len((await get(web, shelf, limit=1000)).body) == 1000


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


async def claims_much(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\nx")
    await writer.drain()
    await asyncio.sleep(60)


@pytest.mark.parametrize("page", [endless, endless_chunks, endless_head, claims_much])
async def test_endless_answer_is_cut(web, shelf, page):
    shelf.pages["/x"] = page
    since = time.monotonic()
    with pytest.raises(SourceUnreachable):
        await get(web, shelf)
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
async def test_slow_answer_is_given_up(web, shelf, page, monkeypatch):
    monkeypatch.setattr(limits, "FETCH_SECONDS", 0.3)
    shelf.pages["/x"] = page
    with pytest.raises(SourceUnreachable):
        await get(web, shelf)


async def test_redirects_share_one_fetchs_time(web, shelf, monkeypatch):
    monkeypatch.setattr(limits, "FETCH_SECONDS", 0.4)

    async def later(writer):
        await asyncio.sleep(0.15)
        writer.write(reply(b"", 302, Location="/x"))

    shelf.pages["/x"] = later
    with pytest.raises(SourceUnreachable, match="takes longer than 0.4 s"):
        await get(web, shelf)


async def cut_off(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")


async def no_http(writer):
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def says_nothing(writer):
    pass


@pytest.mark.parametrize("page", [cut_off, no_http, says_nothing])
async def test_broken_answer_is_none(web, shelf, page):
    shelf.pages["/x"] = page
    with pytest.raises(SourceUnreachable):
        await get(web, shelf)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, SourceNotFound),
        (410, SourceNotFound),
        (500, SourceUnreachable),
        (403, SourceUnreachable),
    ],
)
async def test_status_is_told(web, shelf, status, error):
    shelf.pages["/x"] = reply(b"", status)
    with pytest.raises(error):
        await get(web, shelf)


async def test_gzip_bomb_does_not_go_off(web, shelf):
    raw = bomb()
    shelf.put("/x", raw, Content_Encoding="gzip")
    with pytest.raises(SourceUnreachable):
        await get(web, shelf)


async def test_gzip_is_understood_within_the_limit(web, shelf):
    shelf.put("/x", gzip.compress(b"x" * 1000), Content_Encoding="gzip")
    assert (await get(web, shelf, limit=1000)).body == b"x" * 1000
    with pytest.raises(SourceUnreachable):
        await get(web, shelf, limit=999)


async def test_other_packing_is_refused(web, shelf):
    shelf.put("/x", b"x", Content_Encoding="br")
    with pytest.raises(SourceUnreachable, match="not asked for"):
        await get(web, shelf)


async def test_nobody_there_is_told(web):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(SourceUnreachable, match="cannot be reached"):
        await web.fetch(f"{url}/x", limit=MIB, trusted_url=url)


async def test_slow_fetches_do_not_block_the_loop(web, shelf, monkeypatch):
    monkeypatch.setattr(limits, "FETCH_SECONDS", 0.5)
    shelf.pages["/x"] = trickling
    task = asyncio.ensure_future(get(web, shelf))
    since = time.monotonic()
    await asyncio.sleep(0.05)
    assert time.monotonic() - since < 0.3
    with pytest.raises(SourceUnreachable):
        await task


async def test_inside_is_what_has_a_private_address(web, shelf):
    assert await web.is_private_host(shelf.url)
    assert not await web.is_private_host("http://1.1.1.1/")
