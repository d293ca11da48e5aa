"""The service: one TCP port, its routes, and its life from start to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import ipaddress
import json
import logging
import logging.handlers
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from cloudmanager import config, frames
from cloudmanager.errors import ServerError

from . import auth, limits
from .audit import Audit, Note
from .board_socket import BoardSocket
from .caller_socket import REVOKED, CallerConversation, CallerSocket
from .dispatch import LOST_AFTER, Dispatch
from .gate import Entry, Rate, Unproven
from .pages import Health, NotFound, Page
from .registry import Registry
from .rows import TokenRow
from .samples import Samples
from .store import Store
from .tokens import Tokens
from .watches import Watches

log = logging.getLogger("cm_server")

BEAT = 30.0  # seconds between two pings to a board: 10,000 boards make 333 a second
MIN_SPREAD = 2.0  # seconds over which boards come back
BOARDS_A_SECOND = 150  # boards that may come back in one second
LOCAL_ONLY = (
    "It listens on loopback only, not on {address}: TLS is not there yet, and without it every "
    "token and every cell would cross the network in the clear (docs/security.md)"
)


class StartError(Exception):
    """The server cannot start; the message is one sentence for a person."""


class Server:
    """Everything that one running service holds.

    Args:
        home: the folder that it keeps its things in.
        beat: seconds between two pings to an idle board.
        lost_after: seconds of grace for a board whose link broke.
        origins: the web pages, such as ``https://lab.example``, that may open a link.
        samples: how many values are kept of those that a board emitted.
    """

    def __init__(
        self,
        home: Path,
        *,
        beat: float = BEAT,
        lost_after: float = LOST_AFTER,
        origins: Sequence[str] = (),
        samples: int = limits.SAMPLES,
    ) -> None:
        self.home = home
        self.beat = beat
        self.version = metadata.version("cloudmanager")
        self.started = time.time()
        self.pid = os.getpid()
        self.address = ""
        self.callers: set[CallerConversation] = set()
        self.store = Store(home / "server.db")
        self.registry = Registry(self.store.boards())
        self.audit = Audit(self.store)
        self.tokens = Tokens(self.store)
        self.tokens.adopt(self._local_token())
        self.unproven = Unproven()
        self.bad_logins = Rate(limits.BAD_LOGINS_PER_MINUTE)
        self.bad_requests = Rate(limits.STRANGER_ROWS_PER_MINUTE)
        self.origins = frozenset(origins)
        loop = asyncio.get_running_loop()
        self._lost_after = lost_after
        grace = max(lost_after, self.spread)
        self.dispatch = Dispatch(self.store, self.registry, loop.call_later, lost_after=grace)
        self.watches = Watches(self.registry, loop.call_later)
        self.dispatch.on_emit = Samples(samples, self.watches.on_sample).take

    @property
    def spread(self) -> float:
        """Return the seconds over which boards that lost the server come back."""
        return max(MIN_SPREAD, len(self.registry.by_id) / BOARDS_A_SECOND)

    def enrol(self, names: list[str], note: Note | None = None) -> list[dict[str, str]]:
        """Return an identity for each name: ``name``, ``id``, ``key`` in hex."""
        known = self.registry.by_name
        rows = self.store.enrol(
            [
                (known[name].id if name in known else auth.new_board_id(), name, auth.new_key())
                for name in names
            ],
            note.row() if note else None,
        )
        if note is not None:
            note.written = True
        for row in rows:
            if row.name in known:
                known[row.name].key = row.key
            else:
                self.registry.add(row)
        self.dispatch.lost_after = max(self._lost_after, self.spread)
        return [{"name": row.name, "id": row.id, "key": row.key.hex()} for row in rows]

    def shut_out(self, token: TokenRow) -> int:
        """Close the links of a token that was revoked; return how many there were."""
        links = [caller for caller in self.callers if caller.token.hash == token.hash]
        for caller in links:
            caller.close(REVOKED, self.tokens.refusal(token))
        return len(links)

    def _local_token(self) -> str:
        """Return the local user's token; it stands in a file that is his alone."""
        path = config.token_file(self.home)
        token = config.read_token(path)
        if token is None:
            token = auth.new_token()
            config.write_private(path, token + "\n")
        return token

    def stop(self) -> None:
        """Tell callers and boards, and write everything down."""
        self.dispatch.stop()
        for caller in list(self.callers):
            caller.close(frames.GOING_AWAY, "the server stops")
        for board in self.registry.online():
            if board.link is not None:
                board.link.close(frames.GOING_AWAY, "the server stops")
        self.store.close()


#: The whole URL table. What opens each is its handler's ``opened_by``.
ROUTES: list[tuple[str, type[Page]]] = [
    (r"/board", BoardSocket),
    (r"/caller", CallerSocket),
    (r"/healthz", Health),
]


def make_app(server: Server) -> Application:
    """Return the routes."""
    given = {"server": server}
    return Application(
        [(path, page, given) for path, page in ROUTES],
        default_handler_class=NotFound,
        default_handler_args=given,
        log_function=_log_request,
    )


class Door(HTTPServer):
    """Reads requests, one for each connection; until it is done, the connection is unproven."""

    def initialize(self, server: Server) -> None:  # type: ignore[override]
        """Take the server whose door it is."""
        self._server = server
        self._entries: dict[IOStream, Entry] = {}
        super().initialize(
            make_app(server),
            no_keep_alive=True,
            idle_connection_timeout=limits.HEAD_SECONDS,
            body_timeout=limits.HEAD_SECONDS,
            max_header_size=limits.HEAD_BYTES,
            max_body_size=limits.HEAD_BYTES,
        )

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Take a connection in."""
        self._entries[stream] = self._server.unproven.enter(str(address[0]), stream.close)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: Any) -> None:
        """Note that a connection is gone, or that somebody else has it now."""
        self._server.unproven.leave(self._entries.pop(server_conn.stream))
        super().on_close(server_conn)


def _log_request(handler: RequestHandler) -> None:
    """Log refusals only, with what cannot hold a secret; wrong tokens have a line already."""
    assert isinstance(handler, Page)
    request, status = handler.request, handler.get_status()
    if status >= 400 and status not in (401, 429) and handler.worth_a_line():
        log.info(
            "%s %.64r from %s: %d",
            request.method,
            request.path,
            request.remote_ip,
            status,
        )


async def serve(home: Path, host: str, tcp_port: int, ready: Any, **settings: Any) -> None:
    """Serve until SIGTERM or SIGINT; calls ``ready(address)`` once it listens.

    Raises:
        StartError: the address is taken or not loopback, the folder belongs to a running
            server, or its store cannot be opened.
    """
    with _only_one(home):
        sockets = _bind(host, tcp_port)
        try:
            server = Server(home, **settings)
        except ServerError as error:
            raise StartError(error.reason) from error
        named = f"[{host}]" if ":" in host else host  # IPv6, RFC 3986, 3.2.2
        server.address = f"http://{named}:{sockets[0].getsockname()[1]}"
        http = Door(server)
        http.add_sockets(sockets)
        state = config.state_file(home)
        config.write_private(state, json.dumps({"url": server.address, "pid": server.pid}))
        log.info("version %s listens on %s", server.version, server.address)
        stop = _stop_signal()  # before anybody is told: the signal may follow at once
        ready(server.address)
        gc.freeze()  # what is there now stays: collections need not look at it
        try:
            await stop.wait()
        finally:
            http.stop()
            server.stop()
            state.unlink(missing_ok=True)
            log.info("stopped")


def _stop_signal() -> asyncio.Event:
    """Return what is set by SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


@contextlib.contextmanager
def _only_one(home: Path) -> Any:
    """Hold the folder's lock, so that two servers never share a store."""
    import fcntl  # not on Windows, where the store's own locks have to do

    with config.lock_file(home).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartError(
                f"A server runs in {home} already; `mbm server-stop` ends it"
            ) from error
        yield


def _bind(host: str, tcp_port: int) -> Any:
    try:
        sockets = bind_sockets(tcp_port, host, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"TCP port {tcp_port} of {host} is taken by another program; "
                f"choose another with `mbm server-start --port N`"
            ) from error
        raise StartError(f"It cannot listen on {host}:{tcp_port}: {error.strerror}") from error
    for address in (sock.getsockname()[0] for sock in sockets):
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            for sock in sockets:
                sock.close()
            raise StartError(LOCAL_ONLY.format(address=host or address))
    return sockets


def _log_to(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=limits.LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def main() -> None:
    """Run in the foreground; one line of JSON on standard output says how the start went."""
    parser = argparse.ArgumentParser(
        prog="python -m cm_server", description="The Cloudmanager service."
    )
    parser.add_argument("--listen", default=config.DEFAULT_HOST, metavar="ADDRESS")
    parser.add_argument("--port", type=int, default=config.DEFAULT_TCP_PORT, metavar="N")
    parser.add_argument("--beat", type=float, default=BEAT, metavar="SECONDS")
    parser.add_argument("--lost-after", type=float, default=LOST_AFTER, metavar="SECONDS")
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="https://lab.example"
    )
    parser.add_argument("--samples", type=int, default=limits.SAMPLES, metavar="N")
    options = parser.parse_args()
    if not 0 < options.samples <= limits.SAMPLES_IN_ALL:
        parser.error(f"1 to {limits.SAMPLES_IN_ALL} values are kept of a board")
    if not 0 <= options.port < 65536:
        parser.error(f"a TCP port is a number from 0 to 65535, not {options.port}")
    settings = {
        "beat": options.beat,
        "lost_after": options.lost_after,
        "origins": options.allow_origin,
        "samples": options.samples,
    }
    os.umask(0o077)  # whatever it writes is its user's alone
    try:
        home = _open_home()
        asyncio.run(serve(home, options.listen, options.port, _say_ready, **settings))
    except StartError as error:
        _say({"error": str(error)})
        sys.exit(1)


def _open_home() -> Path:
    try:
        home = config.make_home()
        _log_to(home / "server.log")
    except OSError as error:
        raise StartError(f"Its folder cannot be used: {error}") from error
    return home


def _say_ready(address: str) -> None:
    _say({"url": address})


def _say(line: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
