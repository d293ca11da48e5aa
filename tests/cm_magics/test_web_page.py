"""What the page of ``mbm dashboard`` refuses to other users and other pages on the same machine."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from cm_magics.web_page import LINES_THREAD, Access, call_for_each_line

COMMAND = [sys.executable, "-m", "cloudmanager", "dashboard", "--no-browser"]
pytestmark = pytest.mark.timeout(120)

WAIT = 60  # seconds: programs take long to start on a busy machine


class Browser(NamedTuple):
    """What a browser knows that has opened the link."""

    host: str
    path: str
    cookie: str
    set_cookie: str
    link: str

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        """Request a path, without the cookie."""
        connection = http.client.HTTPConnection(self.host, timeout=WAIT)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response


@pytest.fixture(scope="module")
def browser(boards: Any) -> Iterator[Browser]:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            url = urlsplit(next(line.strip() for line in process.stdout if "http://" in line))
            unknown = Browser(url.netloc, "", "", "", url.path)
            response = unknown.get(url.path)
            assert response.status == 200
            given = response.headers["Set-Cookie"]
            cookie, *attributes = given.split("; ")
            (path,) = (each[5:] for each in attributes if each.startswith("Path="))
            yield unknown._replace(path=path, cookie=cookie, set_cookie=given)
        finally:
            process.terminate()
    assert process.returncode == 130


def test_cookie_is_for_this_page_alone(browser: Browser):
    assert "; HttpOnly" in browser.set_cookie
    assert "; SameSite=Strict" in browser.set_cookie
    assert len(browser.path) > 20
    assert "Domain" not in browser.set_cookie


def test_link_works_once(browser: Browser):
    response = browser.get(browser.link)
    assert response.status == 403
    assert response.headers["Set-Cookie"] is None


def test_link_is_valid_once_and_for_five_minutes():
    now = [0.0]
    access = Access(lambda: now[0])
    first, late = access.new_link(), access.new_link()
    assert [access.use_link(first), access.use_link(first)] == [True, False]
    assert not access.use_link("")
    now[0] = 301.0
    assert not access.use_link(late)


@pytest.mark.parametrize("name", ["/", "/page.js", "/style.css", "/model.json"])
def test_page_needs_its_cookie(browser: Browser, name: str):
    path = browser.path + name
    assert browser.get(path).status == 403
    assert browser.get(path, Cookie="cm=guess").status == 403
    response = browser.get(path, Cookie=browser.cookie)
    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]


def status_of_socket(browser: Browser, origin: str | None, **headers: str) -> int:
    """Return the HTTP status of an attempt to open the WebSocket; 101 if it stays open."""
    try:
        with websockets.sync.client.connect(
            f"ws://{browser.host}{browser.path}/socket",
            additional_headers=headers,
            origin=None if origin is None else Origin(origin),
            proxy=None,
        ) as socket:
            socket.recv(WAIT)
            return 101
    except InvalidStatus as error:
        return error.response.status_code
    except ConnectionClosed:
        return 0


def test_websocket_is_for_this_page_alone(browser: Browser):
    own = f"http://{browser.host}"
    assert status_of_socket(browser, own, Cookie=browser.cookie) == 101
    assert status_of_socket(browser, own) == 403
    assert status_of_socket(browser, own, Cookie="cm=guess") == 403


@pytest.mark.parametrize(
    ("origin", "status"), [("http://127.0.0.1:1", 403), ("null", 403), (None, 0)]
)
def test_websocket_of_another_origin_is_refused(browser: Browser, origin: str | None, status: int):
    assert status_of_socket(browser, origin, Cookie=browser.cookie) == status


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1"])
def test_other_host_names_are_refused(browser: Browser, host: str):
    for path in (browser.path + "/", browser.path + "/socket", "/open/x", "/"):
        assert browser.get(path, Cookie=browser.cookie, Host=host).status == 421, path


def test_other_paths_do_not_exist(browser: Browser):
    for path in ("/", "/favicon.ico", browser.path + "/../x", browser.path + "/other.js"):
        response = browser.get(path, Cookie=browser.cookie)
        assert response.status == 404, path
        assert "Tornado" not in str(response.getheaders())


@pytest.mark.parametrize(
    "message", ["[]", "{}", "x", '{"content": {}, "buffers": 99}', b"bytes first"]
)
def test_malformed_messages_close_the_websocket(browser: Browser, message: str | bytes):
    with websockets.sync.client.connect(
        f"ws://{browser.host}{browser.path}/socket",
        additional_headers={"Cookie": browser.cookie},
        origin=Origin(f"http://{browser.host}"),
        proxy=None,
    ) as socket:
        socket.send(message)
        with contextlib.suppress(ConnectionClosed):
            while True:
                socket.recv(WAIT)
        assert socket.close_code == 1008


def test_unknown_board_and_missing_server_are_errors(tmp_path: Path):
    done = subprocess.run([*COMMAND, "nobody-1"], capture_output=True, text=True, check=False)
    assert (done.returncode, "nobody-1" in done.stderr) == (2, True)
    nowhere = {**os.environ, "CM_HOME": str(tmp_path), "CM_URL": "http://127.0.0.1:1"}
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False, env=nowhere)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


class SocketLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for sockets only, as Windows' does."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        """Refuse other files."""
        raise NotImplementedError


@pytest.mark.parametrize("make_loop", [asyncio.SelectorEventLoop, SocketLoop])
def test_each_line_that_is_typed_is_noticed(make_loop: Callable[[], asyncio.AbstractEventLoop]):
    reading, writing = os.pipe()

    async def type_lines() -> None:
        typed: asyncio.Queue[None] = asyncio.Queue()
        call_for_each_line(file, lambda: typed.put_nowait(None))
        for _ in range(2):
            os.write(writing, b"\n")
            await asyncio.wait_for(typed.get(), WAIT)

    with os.fdopen(reading) as file:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(type_lines())
        os.close(writing)
        for thread in threading.enumerate():
            if thread.name == LINES_THREAD:
                thread.join(WAIT)
