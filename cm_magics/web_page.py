"""The dashboard as a page without Jupyter: ``mbm dashboard``.

A program of the user's own serves the widget's JavaScript, and takes the place of the notebook's
kernel: each WebSocket has a ``Dashboard``. It listens on loopback, which all users of this machine
share, so access is limited:

* A URL that can be used once, for five minutes, sets a cookie that no script can read, and that is
  sent to pages of this site only.
* Browsers send a cookie to all ports of a host: a program of another user must not get it. So its
  path is a random folder, in which everything else is.
* ``Host`` is checked, so that no other name leads here (DNS rebinding), and the WebSocket's
  ``Origin``, so that no page of another program opens one.
* The policy of the page allows no scripts but its own.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import hmac
import json
import os
import secrets
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TextIO

import tornado.httpserver
import tornado.netutil
import tornado.web
import tornado.websocket

from cloudmanager import config
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.targets import Target, parse_target

from .dashboard_actions import action_buttons
from .dashboard_widget import FACT_COLUMNS, JAVASCRIPT, Dashboard
from .live_widget import CSS, javascript_module

_HOST: Final = "127.0.0.1"
_LINK_SECONDS: Final = 300.0  # for which a URL can be used
_MAX_PAGES: Final = 8  # WebSockets at the same time
_MAX_MESSAGE_BYTES: Final = 10 * 1024 * 1024  # of the page: it uploads files of 8 MB
_MAX_BUFFERS: Final = 4  # that belong to one message
_MAX_WAITING_BYTES: Final = 64 * 1024 * 1024  # for a page that does not read; it is then closed
_TOKEN_SECONDS: Final = 7 * 86400  # life of the token of --role, which is revoked at the end
LINES_THREAD: Final = "typed lines"
_LINE_BYTES: Final = 4096  # of a line that is typed; a terminal gives no more at once
_OPEN_FILE: Final = "dashboard.html"  # in CM_HOME: leads a browser to the URL
_LOST: Final = "Not connected: `mbm dashboard` has ended or does not answer. Start it again."
_WAITING: Final = "`mbm dashboard` is busy or does not answer: what you did last waits for it."
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Cloudmanager</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="style.css">
<script type="module" src="page.js"></script>
</head>
<body><main id="dashboard"></main></body>
</html>
"""
#: A browser does not send a new cookie after a redirect from another site, but from this page.
_WELCOME: Final = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Cloudmanager</title>
<meta http-equiv="refresh" content="0; url=/{path}/"></head><body></body></html>
"""
_PAGE_CSS: Final = """
html { color-scheme: light dark; }
body { margin: 12px; }
.cm-fleet { margin: 0 auto; max-width: 1600px; }
"""
_REFUSED: Final = (
    "This page opens with a link that `mbm dashboard` prints, which works once. "
    "Press Enter there for another one."
)


class Access:
    """Who may use the page.

    Args:
        now: returns seconds since any fixed time.

    Attributes:
        path: the random folder in which the page is, and to which browsers send its cookie.
    """

    def __init__(self, now: Any = time.monotonic) -> None:
        self.path = secrets.token_urlsafe(16)
        self._now = now
        self._cookie = secrets.token_urlsafe(32)
        self._links: dict[str, float] = {}  # what URLs that can still be used end in -> until when

    def new_link(self) -> str:
        """Return the end of a URL that can be used once."""
        link = secrets.token_urlsafe(32)
        self._links[link] = self._now() + _LINK_SECONDS
        return link

    def use_link(self, link: str) -> bool:
        """Return whether the end of a URL is valid, which it is once."""
        found = [each for each in self._links if hmac.compare_digest(each, link)]
        return any(self._links.pop(each) >= self._now() for each in found)

    @property
    def cookie(self) -> str:
        """The value of the cookie."""
        return self._cookie

    def is_known(self, cookie: str | None) -> bool:
        """Return whether a browser has the cookie."""
        return cookie is not None and hmac.compare_digest(cookie.encode(), self._cookie.encode())


class PageDashboard(Dashboard):
    """A dashboard whose page is at the other end of a WebSocket; see ``Dashboard``."""

    def __init__(self, fleet: Fleet, target: Target | None, socket: PageSocket) -> None:
        self._socket = socket
        super().__init__(fleet, target)

    def send(self, content: Any, buffers: Any = None) -> None:
        """Send a message to the page; may be called from any thread."""
        self._socket.send_soon(content, buffers or ())


class _Handler(tornado.web.RequestHandler):
    """Checks the name by which this program is called."""

    def initialize(self, site: Site) -> None:
        self.site = site

    def set_default_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.set_header(name, value)
        self.clear_header("Server")

    def prepare(self) -> None:
        if not self.site.is_own_name(self.request.host):
            raise tornado.web.HTTPError(HTTPStatus.MISDIRECTED_REQUEST)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        text = HTTPStatus(status_code).phrase
        self.finish(_REFUSED if status_code == HTTPStatus.FORBIDDEN else text)


class _OpenHandler(_Handler):
    """Gives the browser the cookie."""

    def get(self, link: str) -> None:
        access = self.site.access
        if not access.use_link(link):
            raise tornado.web.HTTPError(HTTPStatus.FORBIDDEN)
        self.set_cookie(
            "cm", access.cookie, path=f"/{access.path}", httponly=True, samesite="Strict"
        )
        self.finish(_WELCOME.format(path=access.path))


class _PrivateHandler(_Handler):
    """Answers a browser that has the cookie."""

    def prepare(self) -> None:
        super().prepare()
        if not self.site.access.is_known(self.get_cookie("cm")):
            raise tornado.web.HTTPError(HTTPStatus.FORBIDDEN)


class _FileHandler(_PrivateHandler):
    """The page and what belongs to it."""

    def get(self, name: str) -> None:
        kind, content = self.site.files[name]
        self.set_header("Content-Type", f"{kind}; charset=utf-8")
        self.finish(content)


class PageSocket(tornado.websocket.WebSocketHandler):
    """The WebSocket of one page, and its dashboard."""

    def initialize(self, site: Site) -> None:
        """Prepare for a page; called by tornado."""
        self.site = site
        self._dashboard: PageDashboard | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: collections.deque[tuple[str, Sequence[bytes]]] = collections.deque()
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._head: dict[str, Any] | None = None  # a message whose bytes are on their way
        self._buffers: list[bytes] = []

    async def prepare(self) -> None:
        """Refuse a browser without the cookie, and too many pages."""
        if not self.site.is_own_name(self.request.host):
            raise tornado.web.HTTPError(HTTPStatus.MISDIRECTED_REQUEST)
        if not self.site.access.is_known(self.get_cookie("cm")):
            raise tornado.web.HTTPError(HTTPStatus.FORBIDDEN)
        if len(self.site.sockets) >= _MAX_PAGES:
            raise tornado.web.HTTPError(HTTPStatus.TOO_MANY_REQUESTS)

    def check_origin(self, origin: str) -> bool:
        """Accept a page of this program only."""
        return origin == f"http://{self.request.host}"

    async def open(self, *_: str) -> None:
        """Make the dashboard."""
        if self.request.headers.get("Origin") is None:  # tornado accepts what is no browser
            self.close(1008, "no Origin")
            return
        self.site.sockets.add(self)
        self._dashboard = PageDashboard(self.site.fleet, self.site.target, self)

    def on_message(self, message: str | bytes) -> None:
        """Handle a message of the page, or bytes that belong to the one before."""
        try:
            if isinstance(message, bytes):
                self._buffers.append(message)
            else:
                self._head, self._buffers = json.loads(message), []
            head = self._head
            if head is None or not 0 <= head["buffers"] <= _MAX_BUFFERS:
                raise ValueError("malformed")
            if len(self._buffers) < head["buffers"]:
                return
            content, buffers = dict(head["content"]), self._buffers
        except (ValueError, KeyError, TypeError):
            self.close(1008, "malformed")
            return
        self._head, self._buffers = None, []
        if self._dashboard is not None:
            self._dashboard.receive(content, buffers)

    def on_close(self) -> None:
        """End the dashboard."""
        self.site.sockets.discard(self)
        if self._dashboard is not None:
            self._dashboard.close()

    def send_soon(self, content: Any, buffers: Sequence[bytes]) -> None:
        """Send a message to the page; may be called from any thread."""
        text = json.dumps({"content": content, "buffers": len(buffers)}, allow_nan=False)
        with contextlib.suppress(RuntimeError):  # the program is ending
            self._loop.call_soon_threadsafe(self._add, text, [bytes(each) for each in buffers])

    def _add(self, text: str, buffers: Sequence[bytes]) -> None:
        self._waiting.append((text, buffers))
        self._waiting_bytes += len(text) + sum(map(len, buffers))
        if self._waiting_bytes > _MAX_WAITING_BYTES:
            self.close(1008, "too slow")
        elif self._writer is None:
            self._writer = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):
            while self._waiting:
                text, buffers = self._waiting.popleft()
                self._waiting_bytes -= len(text) + sum(map(len, buffers))
                await self.write_message(text)
                for each in buffers:
                    await self.write_message(each, binary=True)
        self._writer = None


class Site:
    """What the handlers share.

    Args:
        fleet: shown by the page.
        target: the boards that are shown first; None for all.
        can_act: whether the page offers what changes boards.

    Attributes:
        access: who may use the page.
        files: name -> MIME type and content.
        hosts: by which this program is called.
        sockets: of the open pages.
    """

    def __init__(self, fleet: Fleet, target: Target | None, *, can_act: bool = True) -> None:
        self.fleet, self.target = fleet, target
        self.access = Access()
        self.hosts: set[str] = set()
        self.sockets: set[PageSocket] = set()
        code = javascript_module("Dashboard", *JAVASCRIPT, "web_page.js")
        traits = {
            "actions": action_buttons() if can_act else [],
            "fact_columns": FACT_COLUMNS,
            "initial_filter": target.text if target else "",
            "lost_text": _LOST,
            "waiting_text": _WAITING,
        }
        self.files = {
            "": ("text/html", _PAGE),
            "page.js": ("text/javascript", code),
            "style.css": ("text/css", CSS + _PAGE_CSS),
            "model.json": ("application/json", json.dumps(traits)),
        }

    def is_own_name(self, host: str) -> bool:
        """Return whether ``Host`` names this program."""
        return host in self.hosts

    def listen(self, tcp_port: int = 0) -> str:
        """Listen on loopback; return the address as a URL."""
        names = "|".join(name.replace(".", r"\.") for name in self.files)
        path, site = self.access.path, {"site": self}
        application = tornado.web.Application(
            [
                (r"/open/([\w-]+)", _OpenHandler, site),
                (rf"/{path}/socket", PageSocket, site),
                (rf"/{path}/({names})", _FileHandler, site),
            ],
            websocket_max_message_size=_MAX_MESSAGE_BYTES,
            log_function=lambda _: None,
            default_handler_class=_MissingHandler,
            default_handler_args=site,
        )
        sockets = tornado.netutil.bind_sockets(tcp_port, _HOST)
        tcp_port = sockets[0].getsockname()[1]
        self.hosts = {f"{name}:{tcp_port}" for name in (_HOST, "localhost")}
        server = tornado.httpserver.HTTPServer(application, max_body_size=1024)
        server.add_sockets(sockets)
        return f"http://{_HOST}:{tcp_port}"


class _MissingHandler(_Handler):
    """Answers all other paths."""

    def prepare(self) -> None:
        super().prepare()
        raise tornado.web.HTTPError(HTTPStatus.NOT_FOUND)


def main(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C.

    Args:
        options: of `mbm dashboard`: `target`, `role`, `port`, `opens_browser`.

    Raises:
        CloudmanagerError, OSError: there is no server, no such board, or the TCP port is in use.
        KeyboardInterrupt: the user has ended it.
    """
    target = parse_target(options.target) if options.target else None
    with Fleet() as own, _fleet_of_role(own, options.role) as fleet:
        fleet.boards(options.target)  # an unknown board is an error
        asyncio.run(_serve(fleet, target, options))
    return 0


@contextlib.contextmanager
def _fleet_of_role(own: Fleet, role: str | None) -> Iterator[Fleet]:
    """Yield a fleet with a token of this role, which is revoked afterwards; None: with the own."""
    if role is None:
        yield own
        return
    name = f"dashboard-{secrets.token_hex(4)}"
    token = own.request("token-create", name=name, role=role, expires=_TOKEN_SECONDS)["token"]
    try:
        with Fleet(token=token) as fleet:
            yield fleet
    finally:
        with contextlib.suppress(CloudmanagerError):
            own.request("token-revoke", name=name)


async def _serve(fleet: Fleet, target: Target | None, options: argparse.Namespace) -> None:
    site = Site(fleet, target, can_act=options.role != "viewer")
    address = site.listen(options.port)
    folder = config.make_home_folder()

    def show_link() -> None:
        url = f"{address}/open/{site.access.new_link()}"
        print(f"The dashboard is at\n\n    {url}\n\nThe link works once. ", end="")
        print("Press Enter for another one, Ctrl-C to stop.", flush=True)

    show_link()
    if options.opens_browser and _has_window():
        _open_browser(folder / _OPEN_FILE, f"{address}/open/{site.access.new_link()}")

    if sys.stdin.isatty():
        call_for_each_line(sys.stdin, show_link)
    try:
        await asyncio.Event().wait()
    finally:
        (folder / _OPEN_FILE).unlink(missing_ok=True)
        for socket in list(site.sockets):
            socket.close(1001)


def call_for_each_line(file: TextIO, call: Callable[[], None]) -> None:
    """Let the running event loop call a function for each line that is typed."""
    loop = asyncio.get_running_loop()

    def on_line() -> None:
        if file.readline():
            call()
        else:
            loop.remove_reader(file)

    def read_lines() -> None:
        with contextlib.suppress(OSError, RuntimeError):  # the loop is closed
            while os.read(file.fileno(), _LINE_BYTES):
                loop.call_soon_threadsafe(call)

    try:
        loop.add_reader(file, on_line)
    except NotImplementedError:
        # Windows' loop waits for sockets only. Where a loop can do both, there is no thread: its
        # read would stop a process in the background of a shell (SIGTTIN).
        threading.Thread(target=read_lines, name=LINES_THREAD, daemon=True).start()


def _has_window() -> bool:
    """Return whether there is a browser that has a window of its own."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    is_generic = isinstance(browser, webbrowser.GenericBrowser)
    return not is_generic or isinstance(browser, webbrowser.BackgroundBrowser)


def _open_browser(path: Path, url: str) -> None:
    """Open a URL by a file that only this user can read: command lines are visible to others."""
    config.write_private(path, f'<meta http-equiv="refresh" content="0; url={url}">\n')
    webbrowser.open(path.as_uri())
