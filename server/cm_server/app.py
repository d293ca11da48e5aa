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
from .api.subscriptions import Watches
from .auth import credentials
from .auth.audit import Audit
from .auth.enrolment import REVOKED, Enrolment
from .auth.permission import Permission
from .auth.tokens import LOCAL, Tokens
from .clock import CheckedClock, steady_seconds
from .cluster.membership import Others, local_name
from .cluster.pubsub import Bus, Hub, NatsBus
from .housekeeping import Housekeeper
from .installs.content_store import Contents
from .installs.plan_cache import Plans
from .jobs.dispatch import Dispatch
from .jobs.registry import Board, Registry
from .jobs.scheduler import LOST_AFTER
from .logs import PeerLog, log_to
from .loop_lag import Pulse
from .net import certificates, cleanup
from .net.board_socket import BoardSocket
from .net.caller_socket import CallerConversation, CallerSocket
from .net.fair_queue import FairQueue
from .net.handlers import Authority, Health, Metrics, NotFound, Page
from .net.listener import Door, bind, on_loopback
from .net.rate_limits import Rate, TokenBucket, Unproven
from .packages.planner import Packages
from .packages.source_settings import DEFAULT_INDEX, Settings
from .sample_buffer import Sample, Samples
from .store import file_replacement
from .store.lockfile import only_one
from .store.rows import TokenRow
from .store.shared_store import SharedStore
from .store.store import Store

log = logging.getLogger("cm_server")

MIN_SPREAD = 2.0  # seconds over which boards come back
BOARDS_A_SECOND = 150  # boards that may come back in one second


#: How this machine dials a server that listens on all of its addresses.
_NEAR = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_DEFAULT_INDEX = {"": DEFAULT_INDEX}


DATABASE = "server.db"  # of a server that shares its store with nobody


class StartError(Exception):
    """The server cannot start; the message is one sentence for a person."""


def _open_store(home: Path, store: str | Path | None) -> Store:
    """Return a server's own store, or the shared one, from which it takes the certificate."""
    if store is None:
        return Store(home / DATABASE)
    shared = SharedStore(store)
    certificates.share(home, shared.share)
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
        samples: how many values are kept of those that a board emitted.
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
        beat: float = options.BEAT,
        lost_after: float = LOST_AFTER,
        local: bool = True,
        origins: Sequence[str] = (),
        proxies: Sequence[options.Network] = (),
        cert: Path | None = None,
        key: Path | None = None,
        samples: int = limits.SAMPLES,
        store: str | Path | None = None,
        bus: str | Bus | None = None,
        indexes: Mapping[str, str] | None = None,
        keep_jobs: int = limits.KEEP_JOBS_DAYS,
        keep_audit: int = limits.KEEP_AUDIT_DAYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.home, self.local = home, local
        self.store = _open_store(home, store)
        self.clock = CheckedClock(self.store, "" if store is None else local_name(home), wall=clock)
        boards = self.store.boards()
        self.certificates = certificates.load(home, cert, key, in_use=bool(boards))
        self.beat = beat
        self.version = metadata.version("cloudmanager")
        self.started, self.pid = clock(), os.getpid()
        self._started_steady = steady_seconds()
        self.address = ""
        self.callers: set[CallerConversation] = set()
        self.registry = Registry(boards)
        self.audit = Audit(self.store)
        self.tokens = Tokens(self.store, self.clock.latest)
        self.tokens.adopt(self._local_token(), LOCAL if store is None else local_name(home))
        self.contents = Contents(home)
        self.packages = Packages(home / "packages", Settings({**_DEFAULT_INDEX, **(indexes or {})}))
        self.plans = Plans()
        self.unproven = Unproven()
        self.backlogs = FairQueue()
        self.peer_log = PeerLog()
        self.bad_logins = Rate(limits.BAD_LOGINS_PER_MINUTE)
        self.bad_requests = Rate(limits.STRANGER_ROWS_PER_MINUTE)
        self.origins, self.proxies = frozenset(origins), tuple(proxies)
        self._lost_after, loop = lost_after, asyncio.get_running_loop()
        self.others: Others | None = None
        self.enrolment = Enrolment(self)
        grace = max(lost_after, self.spread)
        self.dispatch = Dispatch(self.store, self.registry, loop.call_later, lost_after=grace)
        self.permission = Permission(self.tokens, self.registry, self.dispatch, loop.call_later)
        self.watches = Watches(self.registry, loop.call_later)
        self.housekeeper = Housekeeper(
            self.store,
            loop.call_later,
            keep_jobs=keep_jobs,
            keep_audit=keep_audit,
            clock=self.clock,
        )
        self.pulse = Pulse(loop.call_later, loop.time)
        self.samples = Samples(samples, self._on_sample)
        self.dispatch.on_emit = self.samples.take
        self.dispatch.on_stray = self._on_stray
        self._meet_others(bus)

    def _meet_others(self, bus: str | Bus | None) -> None:
        """Make what knows the other servers, where the store is shared."""
        if isinstance(self.store, SharedStore):
            bus = NatsBus(bus) if isinstance(bus, str) else bus or Hub().bus()
            loop = asyncio.get_running_loop()
            self.others = Others(self, self.store, bus, self._lost_after, loop)

    def open(self) -> None:
        """Be one of the fleet's servers, where there are others."""
        if self.others is not None:
            self.others.open()

    def saw(self, board: Board, facts: dict[str, Any]) -> None:
        """Note that a board has proven itself.

        Raises:
            ServerError: it cannot be taken in now.
        """
        if self.others is not None:
            self.others.presence.hold(board, facts)
        else:
            self.store.saw_board(board.id, facts)
            self.dispatch.write_soon()

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
        self.watches.on_sample(board, sample)
        if self.others is not None and board.link is not None:
            self.others.presence.on_sample(board, sample)

    @property
    def spread(self) -> float:
        """Return the seconds over which boards that lost the server come back."""
        servers = len(self.others.servers) if self.others is not None else 1
        return max(MIN_SPREAD, len(self.registry.by_id) / max(servers, 1) / BOARDS_A_SECOND)

    def spread_changed(self) -> None:
        """Keep the grace of lost boards above the spread over which they come back."""
        self.dispatch.lost_after = max(self._lost_after, self.spread)

    def shut_out(self, token: TokenRow) -> int:
        """End what a revoked token has not begun, close its links; return how many there were."""
        self.permission.review()
        links = [caller for caller in self.callers if caller.token.hash == token.hash]
        for caller in links:
            caller.close(REVOKED, self.tokens.refusal(token))
        return len(links)

    def reload_tokens(self) -> None:
        """Read anew which tokens there are; close the links of those that open nothing now."""
        self.tokens.reload()
        self.permission.review()
        for caller in list(self.callers):
            if why := self.tokens.refusal(caller.token):
                caller.close(REVOKED, why)

    def drop_all(self) -> None:
        """Hang up on everybody, and forget what was under way: it is other servers' now."""
        self.dispatch.drop_all()
        self._hang_up("this server stood still for too long; dial again")

    def problems(self) -> list[str]:
        """Return what keeps the service from its work, a sentence each."""
        return [self.store.failure] if self.store.failure else []

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
            self.pulse.stop,
            self.housekeeper.stop,
            self.dispatch.stop,
            lambda: self._hang_up("the server stops"),
            *([self.others.leave] if self.others is not None else []),
            self.store.close,
        )

    def _hang_up(self, why: str) -> None:
        for caller in list(self.callers):
            caller.close(frames.GOING_AWAY, why)
        for board in self.registry.by_id.values():
            if board.link is not None:
                board.link.close(frames.GOING_AWAY, why)


#: The whole URL table. What opens each is its handler's ``opened_by``.
ROUTES: list[tuple[str, type[Page]]] = [
    (r"/board", BoardSocket),
    (r"/caller", CallerSocket),
    (r"/healthz", Health),
    (r"/metrics", Metrics),
    (r"/ca.pem", Authority),
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
    """Serve until SIGTERM or SIGINT; calls ``ready(url, address, notes)`` once it listens.

    ``url`` is what this machine dials, ``address`` where it listens; ``notes`` are sentences
    about what was found in the folder, for who starts it.

    Raises:
        StartError: the address is taken, the folder belongs to a running server, or its
            store or a certificate cannot be used.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_one(home))
            notes = _look_after(home, alone=settings.get("store") is None)
            sockets = bind(host, tcp_port)
            server = Server(home, local=on_loopback(sockets), **settings)
        except ServerError as error:
            raise StartError(error.reason) from error
        tcp_port, scheme = sockets[0].getsockname()[1], "http" if server.local else "https"
        server.address = f"{scheme}://{_named(host)}:{tcp_port}"
        near = f"{scheme}://{_named(_NEAR.get(host, host))}:{tcp_port}"
        door = Door(server, make_app(server))
        server.open()
        door.open(sockets)
        state = config.state_file(home)
        config.write_private(state, json.dumps({"url": near, "pid": server.pid}))
        log.info("version %s listens on %s", server.version, server.address)
        stop = _stop_signal()  # before anybody is told: the signal may follow at once
        ready(near, server.address, notes)
        gc.freeze()  # what is there now stays: collections need not look at it
        try:
            await stop.wait()
        finally:
            door.shut()
            server.stop()
            if server.others is not None:
                await server.others.close()
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


def _named(host: str) -> str:
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
    given = options.read()
    _raise_file_limit()
    os.umask(0o077)  # whatever it writes is its user's alone
    try:
        home = _open_home(log_json=given.log_json)
        asyncio.run(serve(home, given.listen, given.port, _say_ready, **options.settings(given)))
    except StartError as error:
        _say({"error": str(error)})
        sys.exit(1)


def _raise_file_limit() -> None:
    """Take all the files that the system lets us have: a shell gives 1,024, each link is one."""
    import resource  # not on Windows

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _open_home(*, log_json: bool) -> Path:
    try:
        home = config.make_home()
        log_to(home / "server.log", as_json=log_json)
    except OSError as error:
        raise StartError(f"Its folder cannot be used: {error}") from error
    return home


def _say_ready(url: str, address: str, notes: list[str]) -> None:
    _say({"url": url, "listens": address, **({"notes": notes} if notes else {})})


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
