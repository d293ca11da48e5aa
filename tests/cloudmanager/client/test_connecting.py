"""A caller's link through an HTTP proxy, to a server with TLS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager.client.connecting import open_connection
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import ServerUnreachable
from cloudmanager.testing.plugin import RunningServer, running_server
from cm_server.net import certificates
from tests.forward_proxy import ForwardProxy, closed_tcp_port

NAME = "cloud.example:18266"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with TLS, which other machines may reach."""
    with running_server(tmp_path_factory.mktemp("public"), "--listen", "0.0.0.0") as server:
        yield server


def pinned_token(home: Path) -> str:
    return f"{(home / 'token').read_text().strip()}.{certificates.load(home).pin}"


def test_link_goes_through_the_proxy(public: RunningServer, monkeypatch: pytest.MonkeyPatch):
    with ForwardProxy({NAME: public.tcp_port}, "ann:secret") as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with Fleet(f"https://{NAME}", pinned_token(public.home)) as fleet:
            assert fleet.status()["boards"] == 0
        # One connection for the certificate of the server's authority, one for the link.
        assert proxy.requests == [f"CONNECT {NAME} HTTP/1.1"] * 2


def test_server_on_this_machine_is_connected_to_directly(
    public: RunningServer, monkeypatch: pytest.MonkeyPatch
):
    with ForwardProxy({}) as proxy:
        for name in ("http_proxy", "HTTPS_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        with Fleet(public.url, pinned_token(public.home)) as fleet:
            assert fleet.status()["boards"] == 0
        assert proxy.requests == []


def test_failure_of_the_proxy_is_explained(public: RunningServer, monkeypatch: pytest.MonkeyPatch):
    token = pinned_token(public.home)

    def failure() -> str:
        with pytest.raises(ServerUnreachable) as caught:
            Fleet(f"https://{NAME}", token).status()
        return str(caught.value)

    with ForwardProxy({}, "ann:secret") as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.tcp_port}")
        assert f"the proxy 127.0.0.1:{proxy.tcp_port} needs a user name" in failure()
        monkeypatch.setenv("https_proxy", proxy.url)
        assert "refuses the connection, with HTTP status 502; no_proxy lists" in failure()
        assert "secret" not in failure()
    with closed_tcp_port() as tcp_port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{tcp_port}")
        assert f"the proxy 127.0.0.1:{tcp_port} cannot be reached: Connection refused" in failure()
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    assert "only HTTP proxies can be used" in failure()


def test_no_proxy_is_obeyed(public: RunningServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "invalid")
    with ForwardProxy({}) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with contextlib.suppress(OSError):
            open_connection("https", "cloud.invalid", 443, 1)
        assert proxy.requests == []
