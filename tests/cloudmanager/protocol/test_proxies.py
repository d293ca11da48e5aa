"""Which proxy the environment names for which host, and the words of CONNECT."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.proxies import (
    Proxy,
    ProxyError,
    check_connect_response,
    connect_request,
    find_proxy,
    is_this_machine,
    literal_address,
)

PROXY = Proxy("proxy.example", 3128)
BOTH = {"http_proxy": "http://one.example:1", "https_proxy": "http://two.example:2"}


@pytest.mark.parametrize(
    ("environ", "scheme", "proxy"),
    [
        ({}, "https", None),
        (BOTH, "http", Proxy("one.example", 1)),
        (BOTH, "https", Proxy("two.example", 2)),
        ({"http_proxy": "http://one.example:1"}, "https", None),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, "https", PROXY),
        (
            {"HTTPS_PROXY": "http://x.example:1", "https_proxy": PROXY.host + ":3128"},
            "https",
            PROXY,
        ),
        ({"all_proxy": "http://proxy.example:3128/"}, "http", PROXY),
        ({"ALL_PROXY": "http://proxy.example:3128"}, "https", PROXY),
        ({"https_proxy": "", "HTTPS_PROXY": "  "}, "https", None),
        ({"https_proxy": "proxy.example"}, "https", Proxy("proxy.example", 80)),
        ({"https_proxy": "http://[::1]:3128"}, "https", Proxy("::1", 3128)),
        ({"https_proxy": "http://a:b%40c@h:1"}, "https", Proxy("h", 1, "Basic YTpiQGM=")),
        ({"HTTP_PROXY": "http://h:1"}, "http", Proxy("h", 1)),
        ({"HTTP_PROXY": "http://h:1", "REQUEST_METHOD": "GET"}, "http", None),
    ],
)
def test_proxy_is_chosen_by_the_scheme(environ, scheme, proxy):
    assert find_proxy(scheme, "server.example", 443, environ) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_direct"),
    [
        ("*", "server.example", True),
        ("server.example", "server.example", True),
        ("SERVER.example", "server.Example.", True),
        ("example", "server.example", True),
        (".example", "server.example", True),
        ("*.example", "server.example", True),
        (".server.example", "server.example", True),
        ("a, server.example ,b", "server.example", True),
        ("a server.example", "server.example", True),
        ("server.example:443", "server.example", True),
        ("server.example:80", "server.example", False),
        ("erver.example", "server.example", False),
        ("www.server.example", "server.example", False),
        ("", "server.example", False),
        (",", "server.example", False),
        ("10.0.0.0/8", "10.9.8.7", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1:443", "192.0.2.1", True),
        ("192.0.2.1:80", "192.0.2.1", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("[2001:db8::1]:443", "2001:db8::1", True),
        ("2.1", "192.0.2.1", False),
        ("10.0.0.0/99", "10.0.0.1", False),
    ],
)
def test_no_proxy_lists_hosts_that_are_direct(no_proxy, host, is_direct):
    environ = {"https_proxy": "http://proxy.example:3128", "no_proxy": no_proxy}
    assert find_proxy("https", host, 443, environ) == (None if is_direct else PROXY)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "x.localhost", "127.0.0.1", "127.9.9.9", "127.1", "2130706433",
     "0x7f.1", "::1", "[::1]", "::ffff:127.0.0.1", "0.0.0.0", "0", "\uff11\uff12\uff17.0.0.1"],
)  # fmt: skip
def test_this_machine_is_always_direct(host):
    assert is_this_machine(host)
    assert find_proxy("http", host, 80, {"http_proxy": "http://proxy.example:3128"}) is None


@pytest.mark.parametrize("host", ["localhost.example", "128.0.0.1", "127.example", "1.1.1.1"])
def test_other_hosts_are_not_this_machine(host):
    assert not is_this_machine(host)


@pytest.mark.parametrize(
    "url", ["socks5://h:1", "https://h:1", "http://", "http://h:port", "http://[x", "ftp://h"]
)
def test_proxy_that_cannot_be_used_is_an_error(url):
    with pytest.raises(ProxyError, match="proxies can be used|is not a URL"):
        find_proxy("https", "server.example", 443, {"https_proxy": url})


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("10.1", "10.0.0.1"),
        ("0x0a000001", "10.0.0.1"),
        ("012.0.0.1", "10.0.0.1"),
        ("10.0.0.1.", "10.0.0.1"),
        ("\uff11\uff10\u3002\uff10.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("cafe", None),
        ("10.example", None),
        ("a..b", None),
        ("", None),
    ],
)
def test_addresses_are_recognized_in_every_notation(host, address):
    assert str(literal_address(host)) == str(address)


def test_connect_names_host_and_port():
    proxy = Proxy("proxy.example", 3128, "Basic YTpi")
    assert connect_request(proxy, "server.example", 443) == (
        b"CONNECT server.example:443 HTTP/1.1\r\nHost: server.example:443\r\n"
        b"Proxy-Authorization: Basic YTpi\r\n\r\n"
    )
    assert connect_request(PROXY, "2001:db8::1", 1).startswith(b"CONNECT [2001:db8::1]:1 HTTP/1.1")
    assert connect_request(PROXY, "z\u00fcrich.example", 1).startswith(
        b"CONNECT xn--zrich-kva.exam"
    )


@pytest.mark.parametrize("host", ["", "a b", "a\r\nX: y", "a/b", "a" * 300, "a@b", "a?b"])
def test_malformed_host_is_not_sent(host):
    with pytest.raises(ProxyError, match="is not the name of a host"):
        connect_request(PROXY, host, 443)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 201\r\n\r\n"])
def test_success_is_any_status_of_200(head):
    check_connect_response(head, PROXY)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (
            b"HTTP/1.1 403 Forbidden\r\n\r\n",
            "refuses the connection, with HTTP status 403; no_proxy",
        ),
        (b"HTTP/1.1 407 x\r\n\r\n", "proxy.example:3128 needs a user name and a password"),
        (b"HTTP/1.1 2000 x\r\n\r\n", "does not respond as an HTTP proxy"),
        (b"SSH-2.0-x\r\n\r\n", "does not respond as an HTTP proxy"),
        (b"", "does not respond as an HTTP proxy"),
    ],
)
def test_failure_says_what_to_do(head, why):
    with pytest.raises(ProxyError, match=why):
        check_connect_response(head, PROXY)


def test_password_is_in_no_message():
    proxy = find_proxy("http", "h.example", 80, {"http_proxy": "http://ann:secret@p.example:1"})
    assert "secret" not in f"{proxy}{proxy!r}"
    assert proxy is not None
    assert "c2VjcmV0" not in repr(proxy)
