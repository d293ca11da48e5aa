"""The server: its parts, its routes on one TCP port, its start and its stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from tornado.web import Application, RequestHandler

from cloudmanager import config, server_options
from cloudmanager.protocol import frames
from cloudmanager.protocol.errors import ServerError
from cloudmanager.server_options import ServerOptions

from . import cleanup
from .api.subscriptions import Subscriptions
from .auth import credentials
from .auth.audit import AuditLog
from .auth.enrolment import Enrolment
from .auth.permission import Permission
from .auth.tokens import LOCAL_TOKEN_NAME, Tokens
from .clock import CheckedClock, steady_seconds
from .cluster.membership import Cluster, local_token_name
from .cluster.pubsub import InProcessBroker, NatsPubSub, PubSub
from .cluster.single_server import SingleServer
from .housekeeping import Housekeeper
from .installs.content_store import ContentStore
from .installs.plan_cache import PlanCache
from .jobs.dispatch import Dispatch
from .jobs.registry import Board, Registry
from .limits import Limits
from .logs import PeerLog, configure_logging
from .loop_lag import LoopLagMonitor
from .net import certificates
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
from .packages.planner import PackagePlanner
from .packages.source_settings import DEFAULT_INDEX, SourceSettings
from .rate_limits import RateLimiter, TokenBucket, UnauthenticatedConnections
from .sample_buffer import Sample
from .sample_collector import SampleCollector
from .store import file_replacement
from .store.lockfile import hold_lock
from .store.rows import TokenRow
from .store.shared_store import SharedStore
from .store.store import Store
from .store.store_queue import Operation, StoreQueue

log = logging.getLogger("cm_server")

MIN_RECONNECT_SPREAD = 2.0  # seconds; see Server.reconnect_spread
RECONNECTS_PER_SECOND = 150  # boards that one server can authenticate in a second


#: How this machine connects to a server that listens on all of its addresses.
_LOCAL_ADDRESSES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_DEFAULT_INDEX = {"": DEFAULT_INDEX}


DEFAULT_LIMITS = Limits()
DEFAULT_OPTIONS = ServerOptions()
DATABASE = "server.db"  # of a server that does not share its store


class StartError(Exception):
    """The server cannot start; the message is one sentence for the user."""


def _open_store(home: Path, location: str | Path | None) -> Store:
    """Open the server's own store, or the shared store with the shared certificate."""
    if location is None:
        return Store(home / DATABASE)
    shared = SharedStore(location)
    certificates.use_shared(home, shared.put_if_absent)
    return shared


class Server:
    """All parts of one running server.

    Args:
        home: the folder with the server's files.
        options: what an administrator has set.
        limits: what the server accepts, keeps and does at most.
        local: whether only this machine can connect: then links may be without TLS.
        pubsub: for messages between servers that share a store; None: NATS or, without
            ``options.bus``, one within this process.
        clock: the wall clock, in seconds since 1970.

    Raises:
        ServerError: its store or a certificate cannot be used.
    """

    def __init__(
        self,
        home: Path,
        options: ServerOptions = DEFAULT_OPTIONS,
        limits: Limits = DEFAULT_LIMITS,
        *,
        local: bool = True,
        pubsub: PubSub | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.home, self.local, self.options, self.limits = home, local, options, limits
        store = options.store
        self.store = _open_store(home, store)
        self.store_queue = StoreQueue(self.store)
        self.clock = CheckedClock(
            self.store_queue, "" if store is None else local_token_name(home), wall=clock
        )
        boards = self.store.boards()
        self.certificates = certificates.load(home, options.cert, options.key, in_use=bool(boards))
        self.version = metadata.version("cloudmanager")
        self.started_at, self.pid = clock(), os.getpid()
        self._started_steady = steady_seconds()
        self.address = ""
        self.callers: set[CallerConnection] = set()
        self.registry = Registry(boards)
        self.audit_log = AuditLog(self.store_queue, limits)
        self.tokens = Tokens(self.store_queue, limits, self.clock.latest)
        self.tokens.install_local_token(
            self._local_token(), LOCAL_TOKEN_NAME if store is None else local_token_name(home)
        )
        self.content_store = ContentStore(home, limits)
        self.package_planner = PackagePlanner(
            home / "packages", limits, SourceSettings({**_DEFAULT_INDEX, **dict(options.index)})
        )
        self.plan_cache = PlanCache(limits.plans_per_link)
        self.unauthenticated = UnauthenticatedConnections(limits)
        self.backlogs = FairQueue()
        self.peer_log = PeerLog(limits)
        rate = functools.partial(RateLimiter, max_keys=limits.rate_limit_keys)
        self.bad_login_rate = rate(limits.bad_logins_per_minute)
        self.bad_request_rate = rate(limits.stranger_rows_per_address_per_minute)
        loop = asyncio.get_running_loop()
        self.cluster: Cluster | SingleServer
        self.enrolment = Enrolment(self)
        self.dispatch = Dispatch(
            self.store_queue, self.registry, loop.call_later, limits, lost_after=options.lost_after
        )
        self.cluster = SingleServer(self.store_queue, self.dispatch)
        self.permission = Permission(self.tokens, self.registry, self.dispatch, loop.call_later)
        self.subscriptions = Subscriptions(self.registry, loop.call_later, limits)
        self.housekeeper = Housekeeper(
            self.store_queue,
            loop.call_later,
            keep_jobs=options.keep_jobs,
            keep_audit=options.keep_audit,
            clock=self.clock,
            limits=limits,
        )
        self.loop_lag_monitor = LoopLagMonitor(loop.call_later, loop.time)
        self.sample_collector = SampleCollector(options.samples, self._on_sample, limits)
        self.dispatch.on_emit = self.sample_collector.add_message
        self.dispatch.on_stray = self._on_stray
        self._create_cluster(pubsub)
        self.update_lost_after()

    def _create_cluster(self, pubsub: PubSub | None) -> None:
        """Join other servers if the store is shared."""
        if isinstance(self.store, SharedStore):
            queue = cast("StoreQueue[SharedStore]", self.store_queue)
            if pubsub is None:
                bus = self.options.bus
                pubsub = NatsPubSub(bus) if bus else InProcessBroker().new_client()
            loop = asyncio.get_running_loop()
            self.cluster = Cluster(self, queue, pubsub, self.options.lost_after, loop)

    def start(self) -> None:
        """Announce this server to the others, if there are any."""
        self.cluster.start()

    def _on_stray(self, board: Board, job: int) -> None:
        """Log a board's message about a job that is not its own; close its link after too many.

        That also helps a board with a fault: when it reconnects, it reports its current job.
        """
        text = "%s sent a message about job %d, which is not its own"
        self.peer_log.write(board.name, logging.WARNING, text, board.name, job)
        if self._has_too_many_strays(board) and board.link is not None:
            why = "too many messages about jobs that are not its own"
            board.link.close(frames.CLOSE_POLICY, why)

    def _has_too_many_strays(self, board: Board) -> bool:
        """Count one message about another board's job; return whether they exceed the limit."""
        if board.strays is None:
            per_minute = self.limits.strays_per_minute
            board.strays = TokenBucket(per_minute / 60, per_minute)
        return board.strays.spend() > 0

    def _on_sample(self, board: Board, sample: Sample) -> None:
        """Pass a sample on to subscribers here and at other servers."""
        self.subscriptions.on_sample(board, sample)
        if board.link is not None:
            self.cluster.on_sample(board, sample)

    @property
    def reconnect_spread(self) -> float:
        """Return the seconds over which boards distribute their reconnects after a restart."""
        boards_per_server = len(self.registry.by_id) / max(len(self.cluster.servers), 1)
        return max(MIN_RECONNECT_SPREAD, boards_per_server / RECONNECTS_PER_SECOND)

    def update_lost_after(self) -> None:
        """Adapt the time after which boards are lost: it must not be below their reconnects'."""
        self.dispatch.lost_after = max(self.options.lost_after, self.reconnect_spread)

    def close_token_links(self, token: TokenRow) -> int:
        """End a revoked token's queued jobs and close its links; return the number of links."""
        self.permission.review()
        links = [caller for caller in self.callers if caller.token.hash == token.hash]
        for caller in links:
            self._close_revoked(caller)
        return len(links)

    async def reload_tokens(self) -> None:
        """Reload the tokens from the store; close the links of those that are no longer valid."""
        operation = self.store_queue.run(lambda store: store.tokens())
        operation.when_done(self._apply_tokens)
        await operation

    def _apply_tokens(self, operation: Operation[list[TokenRow]]) -> None:
        if operation.error is not None:
            return
        self.tokens.apply_rows(operation.result())
        self.permission.review()
        for caller in list(self.callers):
            if self.tokens.refusal_reason(caller.token):
                self._close_revoked(caller)

    def _close_revoked(self, caller: CallerConnection) -> None:
        caller.close(frames.CLOSE_REVOKED, self.tokens.refusal_reason(caller.token))

    def drop_links_and_jobs(self) -> None:
        """Close all links and drop all jobs, which other servers have taken over."""
        self.dispatch.drop_all_jobs()
        self._close_all_links("this server stopped responding for too long; reconnect")

    def problems(self) -> list[str]:
        """Return a sentence for each fault that keeps the server from working."""
        return [self.store.write_error] if self.store.write_error else []

    def degradations(self) -> list[str]:
        """Return a sentence for each fault because of which only a part of the server works."""
        slow = self.store_queue.slow_reason
        return [slow] if slow else []

    def warnings(self) -> list[str]:
        """Return a sentence for each fault that needs attention although the server works."""
        self.clock.check()
        return [self.housekeeper.problem] if self.housekeeper.problem else []

    @property
    def uptime(self) -> float:
        """Return the seconds since the start, by a clock that cannot be set."""
        return steady_seconds() - self._started_steady

    def _local_token(self) -> str:
        """Return the local user's token; create it, in a file that only the user can read."""
        path = config.token_file(self.home)
        token = config.read_token(path)
        if token is None:
            token = credentials.new_token()
            config.write_private(path, token + "\n")
        return token

    def stop(self) -> None:
        """Stop all parts, close all links, write pending changes, and close the store."""
        cleanup.run_all(
            "the server",
            self.loop_lag_monitor.stop,
            self.housekeeper.stop,
            self.dispatch.stop,
            lambda: self._close_all_links("the server stops"),
            self.cluster.leave,
            self.store_queue.close,
        )

    def _close_all_links(self, why: str) -> None:
        for caller in list(self.callers):
            caller.close(frames.CLOSE_GOING_AWAY, why)
        for board in self.registry.by_id.values():
            if board.link is not None:
                board.link.close(frames.CLOSE_GOING_AWAY, why)


#: All paths. Each handler's ``opened_by`` says which credential it requires.
ROUTES: list[tuple[str, type[BaseHandler]]] = [
    (r"/board", BoardSocket),
    (r"/caller", CallerSocket),
    (r"/healthz", HealthHandler),
    (r"/metrics", MetricsHandler),
    (r"/ca.pem", CaCertificateHandler),
]


def make_app(server: Server) -> Application:
    """Return the application with all routes."""
    arguments = {"server": server}
    return Application(
        [(path, handler, arguments) for path, handler in ROUTES],
        default_handler_class=NotFoundHandler,
        default_handler_args=arguments,
        log_function=_log_request,
    )


def _log_request(handler: RequestHandler) -> None:
    """Log a refused request without parts that may contain secrets.

    Wrong tokens (401, 429) are logged elsewhere.
    """
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


async def serve(home: Path, options: ServerOptions, limits: Limits, on_ready: Any) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        home: the server's folder.
        options: of the server.
        limits: of the server.
        on_ready: called as ``on_ready(url, address, notes)`` when the server listens: ``url`` is
            how this machine connects, ``address`` where the server listens, and ``notes`` are
            sentences for the user about repairs and losses in the folder.

    Raises:
        StartError: the address is in use, the folder belongs to a running server, or its
            store or a certificate cannot be used.
    """
    host = options.listen
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(home))
            notes = _repair_folder(home, own_database=options.store is None)
            sockets = open_listening_sockets(host, options.port)
            server = Server(home, options, limits, local=all_on_loopback(sockets))
        except ServerError as error:
            raise StartError(error.reason) from error
        tcp_port, scheme = sockets[0].getsockname()[1], "http" if server.local else "https"
        server.address = f"{scheme}://{_url_host(host)}:{tcp_port}"
        local_url = f"{scheme}://{_url_host(_LOCAL_ADDRESSES.get(host, host))}:{tcp_port}"
        listener = Listener(server, make_app(server))
        server.start()
        listener.start_accepting(sockets)
        state = config.server_state_file(home)
        config.write_private(state, json.dumps({"url": local_url, "pid": server.pid}))
        log.info("version %s listens on %s", server.version, server.address)
        stop = _stop_signal()  # before on_ready, since the signal may follow immediately
        on_ready(local_url, server.address, notes)
        gc.freeze()  # the objects of now live until the end: garbage collections may skip them
        try:
            await stop.wait()
        finally:
            listener.stop_accepting()
            server.stop()
            await server.cluster.close()
            state.unlink(missing_ok=True)
            log.info("stopped")


def _repair_folder(home: Path, *, own_database: bool) -> list[str]:
    """Finish an interrupted replacement of files, and look for lost ones.

    Args:
        home: the server's folder, locked by this process.
        own_database: whether the database is a file in this folder.

    Returns:
        Sentences for the user about what was repaired or lost.
    """
    notes = _finish_replacement(home)
    has_ca, has_database = config.ca_file(home).exists(), (home / DATABASE).exists()
    if own_database and has_ca and not has_database:
        notes.append(
            f"The {DATABASE} of the server in {home} is missing: this fleet is empty. "
            "`mbm server-restore` restores a backup."
        )
    if own_database and has_database and not has_ca:
        notes.append(
            f"The certificate authority in {home} is missing, and a new one is created: boards "
            "with the old one must be enrolled again, or `mbm server-restore` restores it."
        )
    for note in notes:
        log.warning("%s", note)
    return notes


def _finish_replacement(home: Path) -> list[str]:
    """Finish an interrupted replacement of files; return a sentence if there was one."""
    finished = file_replacement.finish(home)
    return [finished] if finished else []


def _url_host(host: str) -> str:
    """Return a host as it is written in a URL (IPv6: RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def _stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def main(limits: Limits = DEFAULT_LIMITS) -> None:
    """Run in the foreground; print a line of JSON when the server listens or cannot start.

    Args:
        limits: of the server. A program that starts a process with others calls this function.
    """
    options = _parse_command_line()
    _raise_file_limit()
    os.umask(0o077)  # only the server's user may read its files
    try:
        home = _open_home(limits, log_json=options.log_json)
        asyncio.run(serve(home, options, limits, _print_ready))
    except StartError as error:
        _print_json({"error": str(error)})
        sys.exit(1)


def _parse_command_line() -> ServerOptions:
    """Return the options of the command line; exit with a message if they are not valid."""
    parser = argparse.ArgumentParser(
        prog="python -m cm_server", description="The Cloudmanager service."
    )
    server_options.add_options(parser)
    options = server_options.read_options(parser.parse_args())
    if options.bus and not options.store:
        parser.error("--bus needs a shared store: --store postgresql://…")
    return options


def _raise_file_limit() -> None:
    """Allow as many open files as the system does: shells set 1,024, and each link needs one."""
    import resource  # not on Windows

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_home(limits: Limits, *, log_json: bool) -> Path:
    try:
        home = config.make_home_folder()
        configure_logging(home / "server.log", limits, as_json=log_json)
    except OSError as error:
        raise StartError(f"Its folder cannot be used: {error}") from error
    return home


def _print_ready(url: str, address: str, notes: list[str]) -> None:
    _print_json({"url": url, "listens": address, **({"notes": notes} if notes else {})})


def _print_json(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
