"""The service: one TCP port, its routes, and its life from start to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import json
import logging
import logging.handlers
import os
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from cloudmanager import config, frames
from cloudmanager.errors import ServerError

from . import auth
from .board_socket import BoardSocket
from .caller_socket import CallerConversation, CallerSocket
from .dispatch import LOST_AFTER, Dispatch
from .registry import Registry
from .store import Store

log = logging.getLogger("cm_server")

BEAT = 30.0  # seconds between two pings to a board: 10,000 boards make 333 a second
MIN_SPREAD = 2.0  # seconds over which boards come back
BOARDS_A_SECOND = 150  # boards that may come back in one second
HEADER_SECONDS = 10.0  # a request whose head takes longer is cut
MAX_HEADER = 8 * 1024  # bytes
LOG_BYTES = 1024 * 1024  # a log file's size; one older file is kept


class StartError(Exception):
    """The server cannot start; the message is one sentence for a person."""


class Server:
    """Everything that one running service holds.

    Args:
        home: the folder that it keeps its things in.
        beat: seconds between two pings to an idle board.
        lost_after: seconds of grace for a board whose link broke.
    """

    def __init__(self, home: Path, *, beat: float = BEAT, lost_after: float = LOST_AFTER) -> None:
        self.home = home
        self.beat = beat
        self.version = metadata.version("cloudmanager")
        self.started = time.time()
        self.pid = os.getpid()
        self.address = ""
        self.callers: set[CallerConversation] = set()
        self.store = Store(home / "server.db")
        self.registry = Registry(self.store.boards())
        self.tokens = self._local_token()
        loop = asyncio.get_running_loop()
        self._lost_after = lost_after
        grace = max(lost_after, self.spread)
        self.dispatch = Dispatch(self.store, self.registry, loop.call_later, lost_after=grace)

    @property
    def spread(self) -> float:
        """Return the seconds over which boards that lost the server come back."""
        return max(MIN_SPREAD, len(self.registry.by_id) / BOARDS_A_SECOND)

    def enrol(self, names: list[str]) -> list[dict[str, str]]:
        """Return an identity for each name: ``name``, ``id``, ``key`` in hex."""
        known = self.registry.by_name
        rows = self.store.enrol(
            [
                (known[name].id if name in known else auth.new_board_id(), name, auth.new_key())
                for name in names
            ]
        )
        for row in rows:
            if row.name in known:
                known[row.name].key = row.key
            else:
                self.registry.add(row)
        self.dispatch.lost_after = max(self._lost_after, self.spread)
        return [{"name": row.name, "id": row.id, "key": row.key.hex()} for row in rows]

    def _local_token(self) -> dict[str, tuple[str, str]]:
        """See that the local user's token file opens the door; return all tokens."""
        path = config.token_file(self.home)
        token = config.read_token(path)
        if token is None:
            token = auth.new_token()
            config.write_private(path, token + "\n")
        if auth.token_hash(token) not in self.store.tokens():
            self.store.add_token(auth.token_hash(token), "local", "admin")
        return self.store.tokens()

    def stop(self) -> None:
        """Tell callers and boards, and write everything down."""
        self.dispatch.stop()
        for caller in list(self.callers):
            caller.close(frames.GOING_AWAY, "the server stops")
        for board in self.registry.online():
            if board.link is not None:
                board.link.close(frames.GOING_AWAY, "the server stops")
        self.store.close()


class Health(RequestHandler):
    """``/healthz``: says that the server answers, and nothing else."""

    def get(self) -> None:
        """Answer."""
        self.finish({"status": "ok"})


def make_app(server: Server) -> Application:
    """Return the routes."""
    return Application(
        [
            (r"/board", BoardSocket, {"server": server}),
            (r"/caller", CallerSocket, {"server": server}),
            (r"/healthz", Health),
        ],
        log_function=_log_request,
    )


def _log_request(handler: RequestHandler) -> None:
    """Log refusals only, with what cannot hold a secret."""
    if handler.get_status() >= 400:
        request = handler.request
        log.info(
            "%s %.64r from %s: %d",
            request.method,
            request.path,
            request.remote_ip,
            handler.get_status(),
        )


async def serve(home: Path, host: str, tcp_port: int, ready: Any, **settings: float) -> None:
    """Serve until SIGTERM or SIGINT; calls ``ready(address)`` once it listens.

    Raises:
        StartError: the address is taken, the folder belongs to a running server, or its store
            cannot be opened.
    """
    with _only_one(home):
        sockets = _bind(host, tcp_port)
        try:
            server = Server(home, **settings)
        except ServerError as error:
            raise StartError(error.reason) from error
        named = f"[{host}]" if ":" in host else host  # IPv6, RFC 3986, 3.2.2
        server.address = f"http://{named}:{sockets[0].getsockname()[1]}"
        http = HTTPServer(
            make_app(server),
            idle_connection_timeout=HEADER_SECONDS,
            max_header_size=MAX_HEADER,
            max_body_size=MAX_HEADER,
        )
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
        return bind_sockets(tcp_port, host, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"TCP port {tcp_port} of {host} is taken by another program; "
                f"choose another with `mbm server-start --port N`"
            ) from error
        raise StartError(f"It cannot listen on {host}:{tcp_port}: {error.strerror}") from error


def _log_to(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1)
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
    options = parser.parse_args()
    if not 0 <= options.port < 65536:
        parser.error(f"a TCP port is a number from 0 to 65535, not {options.port}")
    settings = {"beat": options.beat, "lost_after": options.lost_after}
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
