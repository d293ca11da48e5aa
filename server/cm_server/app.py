"""The service: one TCP port, its routes, and its life from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tornado.web import Application, RequestHandler

from cloudmanager import config
from cloudmanager.protocol import frames
from cloudmanager.protocol.errors import ServerError

from . import limits, options
from .api.subscriptions import Subscriptions
from .auth import credentials
from .auth.audit import AuditLog
from .auth.enrolment import CLOSE_REVOKED, Enrolment
from .auth.permission import Permission
from .auth.tokens import LOCAL_TOKEN_NAME, Tokens
from .clock import CheckedClock, steady_seconds
from .cluster.membership import Cluster, local_token_name
from .cluster.pubsub import InProcessBroker, NatsPubSub, PubSub
from .housekeeping import Housekeeper
from .installs.content_store import ContentStore
from .installs.plan_cache import PlanCache
from .jobs.dispatch import Dispatch
from .jobs.registry import Board, Registry
from .jobs.scheduler import LOST_AFTER
from .logs import PeerLog, configure_logging
from .loop_lag import LoopLagMonitor
from .net import certificates, cleanup
from .net.board_socket import BoardSocket
from .net.caller_socket import CallerConnection, CallerSocket
from .net.fair_queue import FairQueue
from .net.handlers import (
    BaseHandler,
    CaCertificateHandler,
    HealthHandler,
    MetricsHandler,
    NotFoundHandler,
)
from .net.listener import Listener, all_on_loopback, open_listening_sockets
from .net.rate_limits import RateLimiter, TokenBucket, UnauthenticatedConnections
from .packages.planner import PackagePlanner
from .packages.source_settings import DEFAULT_INDEX, SourceSettings
from .sample_buffer import Sample, SampleCollector
from .store import file_replacement
from .store.lockfile import hold_lock
from .store.rows import TokenRow
from .store.shared_store import SharedStore
from .store.store import Store

log = logging.getLogger("cm_server")

MIN_RECONNECT_SPREAD = 2.0  # seconds over which boards come back
RECONNECTS_PER_SECOND = 150  # boards that may come back in one second


#: How this machine dials a server that listens on all of its addresses.
_DIAL_ADDRESSES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_DEFAULT_INDEX = {"": DEFAULT_INDEX}


DATABASE = "server.db"  # of a server that shares its store with nobody


class StartError(Exception):
    """The server cannot start; the message is one sentence for a person."""


def _open_store(home: Path, location: str | Path | None) -> Store:
    """Return a server's own store, or the shared one, from which it takes the certificate."""
    if location is None:
        return Store(home / DATABASE)
    shared = SharedStore(location)
    certificates.use_shared(home, shared.put_if_absent)
    return shared


class Server:
    """Everything that one running service holds.

    Args:
        home: the folder that it keeps its things in.
        beat: seconds between two pings to an idle board.
        lost_after: seconds of grace for a board whose link broke.
        local: whether only this machine can reach it: then links may do without TLS.
        origins: the web pages, such as ``https://lab.example``, that may open a link.
        proxies: where proxies stand that end TLS for it.
        cert: a certificate for browsers and monitors, see ``certificates.load``.
        key: its key.
        sample_collector: how many values are kept of those that a board emitted.
        store: ``postgresql://…``, which it shares with other servers; else a file in ``home``.
        bus: ``nats://…``, by which they reach each other.
        indexes: URLs of mip indexes by their alias; "" takes the default one's place.
        keep_jobs: days that a job's line is kept once it has ended.
        keep_audit: days that a row of the audit log is kept.
        clock: the wall clock, in seconds since 1970.

    Raises:
        ServerError: its store or a certificate cannot be used.
    """

    def __init__(
        self,
        home: Path,
        *,
        beat: float = options.HEARTBEAT_SECONDS,
        lost_after: float = LOST_AFTER,
        local: bool = True,
        origins: Sequence[str] = (),
        proxies: Sequence[options.Network] = (),
        cert: Path | None = None,
        key: Path | None = None,
        samples: int = limits.SAMPLES_PER_BOARD,
        store: str | Path | None = None,
        bus: str | PubSub | None = None,
        indexes: Mapping[str, str] | None = None,
        keep_jobs: int = limits.KEEP_JOBS_DAYS,
        keep_audit: int = limits.KEEP_AUDIT_DAYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.home, self.local = home, local
        self.store = _open_store(home, store)
        self.clock = CheckedClock(
            self.store, "" if store is None else local_token_name(home), wall=clock
        )
        boards = self.store.boards()
        self.certificates = certificates.load(home, cert, key, in_use=bool(boards))
        self.beat = beat
        self.version = metadata.version("cloudmanager")
        self.started_at, self.pid = clock(), os.getpid()
        self._started_steady = steady_seconds()
        self.address = ""
        self.callers: set[CallerConnection] = set()
        self.registry = Registry(boards)
        self.audit_log = AuditLog(self.store)
        self.tokens = Tokens(self.store, self.clock.latest)
        self.tokens.install_local_token(
            self._local_token(), LOCAL_TOKEN_NAME if store is None else local_token_name(home)
        )
        self.content_store = ContentStore(home)
        self.package_planner = PackagePlanner(
            home / "packages", SourceSettings({**_DEFAULT_INDEX, **(indexes or {})})
        )
        self.plan_cache = PlanCache()
        self.unauthenticated = UnauthenticatedConnections()
        self.backlogs = FairQueue()
        self.peer_log = PeerLog()
        self.bad_login_rate = RateLimiter(limits.BAD_LOGINS_PER_MINUTE)
        self.bad_request_rate = RateLimiter(limits.STRANGER_ROWS_PER_ADDRESS_PER_MINUTE)
        self.origins, self.proxies = frozenset(origins), tuple(proxies)
        self._lost_after, loop = lost_after, asyncio.get_running_loop()
        self.cluster: Cluster | None = None
        self.enrolment = Enrolment(self)
        grace = max(lost_after, self.reconnect_spread)
        self.dispatch = Dispatch(self.store, self.registry, loop.call_later, lost_after=grace)
        self.permission = Permission(self.tokens, self.registry, self.dispatch, loop.call_later)
        self.subscriptions = Subscriptions(self.registry, loop.call_later)
        self.housekeeper = Housekeeper(
            self.store,
            loop.call_later,
            keep_jobs=keep_jobs,
            keep_audit=keep_audit,
            clock=self.clock,
        )
        self.loop_lag_monitor = LoopLagMonitor(loop.call_later, loop.time)
        self.sample_collector = SampleCollector(samples, self._on_sample)
        self.dispatch.on_emit = self.sample_collector.add_message
        self.dispatch.on_stray = self._on_stray
        self._create_cluster(bus)

    def _create_cluster(self, bus: str | PubSub | None) -> None:
        """Make what knows the other servers, where the store is shared."""
        if isinstance(self.store, SharedStore):
            bus = NatsPubSub(bus) if isinstance(bus, str) else bus or InProcessBroker().new_client()
            loop = asyncio.get_running_loop()
            self.cluster = Cluster(self, self.store, bus, self._lost_after, loop)

    def start(self) -> None:
        """Be one of the fleet's servers, where there are others."""
        if self.cluster is not None:
            self.cluster.start()

    def on_board_authenticated(self, board: Board, facts: dict[str, Any]) -> None:
        """Note that a board has proven itself.

        Raises:
            ServerError: it cannot be taken in now.
        """
        if self.cluster is not None:
            self.cluster.board_directory.claim_board(board, facts)
        else:
            self.store.mark_board_seen(board.id, facts)
            self.dispatch.flush_later()

    def _on_stray(self, board: Board, job: int) -> None:
        """Note that a board spoke of a job that is not its own; cut who does so all the time.

        A board that is confused, not hostile, is helped by that: when it dials in again, it
        says what it is doing.
        """
        text = "%s spoke of job %d, which is not its own"
        self.peer_log.write(board.name, logging.WARNING, text, board.name, job)
        if board.strays is None:
            per_minute = limits.STRAYS_PER_MINUTE
            board.strays = TokenBucket(per_minute / 60, per_minute)
        if board.strays.spend() and board.link is not None:
            board.link.close(frames.POLICY, "it goes on speaking of jobs that are not its own")

    def _on_sample(self, board: Board, sample: Sample) -> None:
        self.subscriptions.on_sample(board, sample)
        if self.cluster is not None and board.link is not None:
            self.cluster.board_directory.on_sample(board, sample)

    @property
    def reconnect_spread(self) -> float:
        """Return the seconds over which boards that lost the server come back."""
        servers = len(self.cluster.servers) if self.cluster is not None else 1
        return max(
            MIN_RECONNECT_SPREAD, len(self.registry.by_id) / max(servers, 1) / RECONNECTS_PER_SECOND
        )

    def update_lost_after(self) -> None:
        """Keep the grace of lost boards above the spread over which they come back."""
        self.dispatch.lost_after = max(self._lost_after, self.reconnect_spread)

    def close_token_links(self, token: TokenRow) -> int:
        """End what a revoked token has not begun, close its links; return how many there were."""
        self.permission.review()
        links = [caller for caller in self.callers if caller.token.hash == token.hash]
        for caller in links:
            caller.close(CLOSE_REVOKED, self.tokens.refusal_reason(token))
        return len(links)

    def reload_tokens(self) -> None:
        """Read anew which tokens there are; close the links of those that open nothing now."""
        self.tokens.reload()
        self.permission.review()
        for caller in list(self.callers):
            if why := self.tokens.refusal_reason(caller.token):
                caller.close(CLOSE_REVOKED, why)

    def drop_links_and_jobs(self) -> None:
        """Hang up on everybody, and forget what was under way: it is other servers' now."""
        self.dispatch.drop_all_jobs()
        self._close_all_links("this server stood still for too long; dial again")

    def problems(self) -> list[str]:
        """Return what keeps the service from its work, a sentence each."""
        return [self.store.write_error] if self.store.write_error else []

    def warnings(self) -> list[str]:
        """Return what somebody should look at, a sentence each; the service does its work."""
        self.clock.check()
        return [self.housekeeper.problem] if self.housekeeper.problem else []

    @property
    def uptime(self) -> float:
        """Return the seconds since the start, by a clock that nobody sets."""
        return steady_seconds() - self._started_steady

    def _local_token(self) -> str:
        """Return the local user's token; it stands in a file that is his alone."""
        path = config.token_file(self.home)
        token = config.read_token(path)
        if token is None:
            token = credentials.new_token()
            config.write_private(path, token + "\n")
        return token

    def stop(self) -> None:
        """Tell callers and boards, and write everything down."""
        cleanup.run_all(
            "the server",
            self.loop_lag_monitor.stop,
            self.housekeeper.stop,
            self.dispatch.stop,
            lambda: self._close_all_links("the server stops"),
            *([self.cluster.leave] if self.cluster is not None else []),
            self.store.close,
        )

    def _close_all_links(self, why: str) -> None:
        for caller in list(self.callers):
            caller.close(frames.CLOSE_GOING_AWAY, why)
        for board in self.registry.by_id.values():
            if board.link is not None:
                board.link.close(frames.CLOSE_GOING_AWAY, why)


#: The whole URL table. What opens each is its handler's ``opened_by``.
ROUTES: list[tuple[str, type[BaseHandler]]] = [
    (r"/board", BoardSocket),
    (r"/caller", CallerSocket),
    (r"/healthz", HealthHandler),
    (r"/metrics", MetricsHandler),
    (r"/ca.pem", CaCertificateHandler),
]


def make_app(server: Server) -> Application:
    """Return the routes."""
    given = {"server": server}
    return Application(
        [(path, page, given) for path, page in ROUTES],
        default_handler_class=NotFoundHandler,
        default_handler_args=given,
        log_function=_log_request,
    )


def _log_request(handler: RequestHandler) -> None:
    """Log refusals only, with what cannot hold a secret; wrong tokens have a line already."""
    assert isinstance(handler, BaseHandler)
    request, status = handler.request, handler.get_status()
    if status >= 400 and status not in (401, 429) and handler.should_log_refusal():
        log.info(
            "%s %.64r from %s: %d",
            request.method,
            request.path,
            request.remote_ip,
            status,
        )


async def serve(home: Path, host: str, tcp_port: int, on_ready: Any, **settings: Any) -> None:
    """Serve until SIGTERM or SIGINT; calls ``ready(url, address, notes)`` once it listens.

    ``url`` is what this machine dials, ``address`` where it listens; ``notes`` are sentences
    about what was found in the folder, for who starts it.

    Raises:
        StartError: the address is taken, the folder belongs to a running server, or its
            store or a certificate cannot be used.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(home))
            notes = _look_after(home, alone=settings.get("store") is None)
            sockets = open_listening_sockets(host, tcp_port)
            server = Server(home, local=all_on_loopback(sockets), **settings)
        except ServerError as error:
            raise StartError(error.reason) from error
        tcp_port, scheme = sockets[0].getsockname()[1], "http" if server.local else "https"
        server.address = f"{scheme}://{_url_host(host)}:{tcp_port}"
        near = f"{scheme}://{_url_host(_DIAL_ADDRESSES.get(host, host))}:{tcp_port}"
        listener = Listener(server, make_app(server))
        server.start()
        listener.start_accepting(sockets)
        state = config.server_state_file(home)
        config.write_private(state, json.dumps({"url": near, "pid": server.pid}))
        log.info("version %s listens on %s", server.version, server.address)
        stop = _stop_signal()  # before anybody is told: the signal may follow at once
        on_ready(near, server.address, notes)
        gc.freeze()  # what is there now stays: collections need not look at it
        try:
            await stop.wait()
        finally:
            listener.stop_accepting()
            server.stop()
            if server.cluster is not None:
                await server.cluster.close()
            state.unlink(missing_ok=True)
            log.info("stopped")


def _look_after(home: Path, *, alone: bool) -> list[str]:
    """Finish what a crash broke off in the folder; return what is to be known, a sentence each.

    Args:
        home: the server's folder, which is this process's alone.
        alone: whether its database is a file in this folder.
    """
    notes = [told] if (told := file_replacement.finish(home)) else []
    if alone and config.ca_file(home).exists() and not (home / DATABASE).exists():
        notes.append(
            f"There was a server in {home}, and its {DATABASE} is gone: this fleet is empty. "
            "`mbm server-restore` brings a backup of it back."
        )
    if alone and (home / DATABASE).exists() and not config.ca_file(home).exists():
        notes.append(
            f"The certificate authority in {home} is gone, and a new one is made: boards that "
            "know the old one have to be enrolled anew. `mbm server-restore` brings it back."
        )
    for note in notes:
        log.warning("%s", note)
    return notes


def _url_host(host: str) -> str:
    """Return a host as it stands in a URL (IPv6: RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def _stop_signal() -> asyncio.Event:
    """Return what is set by SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def main() -> None:
    """Run in the foreground; one line of JSON on standard output says how the start went."""
    given = options.parse_args()
    _raise_file_limit()
    os.umask(0o077)  # whatever it writes is its user's alone
    try:
        home = _open_home(log_json=given.log_json)
        asyncio.run(
            serve(home, given.listen, given.port, _print_ready, **options.server_settings(given))
        )
    except StartError as error:
        _print_json({"error": str(error)})
        sys.exit(1)


def _raise_file_limit() -> None:
    """Take all the files that the system lets us have: a shell gives 1,024, each link is one."""
    import resource  # not on Windows

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _open_home(*, log_json: bool) -> Path:
    try:
        home = config.make_home_folder()
        configure_logging(home / "server.log", as_json=log_json)
    except OSError as error:
        raise StartError(f"Its folder cannot be used: {error}") from error
    return home


def _print_ready(url: str, address: str, notes: list[str]) -> None:
    _print_json({"url": url, "listens": address, **({"notes": notes} if notes else {})})


def _print_json(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
