"""The parts of the server, put together; and its routes.

Nothing happens here: each part gets those that it uses, in the order in which they are made.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tornado.web import Application, RequestHandler

from cloudmanager.server_options import ServerOptions

from . import cleanup
from .alarms import Alarms, BoardAlarms
from .api.request_context import Services
from .api.subscriptions import Subscriptions
from .api.waiting_work import WaitingWorkReader
from .auth.audit import AuditLog
from .auth.caller_links import CallerLinks
from .auth.enrolment import Enrolment, EnrolmentServices
from .auth.permission import Permission
from .auth.tokens import LOCAL_TOKEN_NAME, Tokens
from .board_health import BoardHealth
from .board_logs import BoardLogs
from .clock import CheckedClock
from .cluster.membership import Cluster, local_token_name
from .cluster.pubsub import NatsPubSub, NoPubSub, PubSub
from .cluster.services import ClusterServices
from .cluster.single_server import SingleServer
from .completion_words import CompletionWords
from .housekeeping import Housekeeper
from .installs.content_store import ContentStore
from .installs.mounts import Mounts
from .installs.plan_cache import PlanCache
from .installs.plan_turns import PlanTurns
from .installs.services import InstallServices
from .jobs.dispatch import Dispatch
from .jobs.job_services import JobServices
from .jobs.reconnects import Reconnects
from .jobs.registry import Registry
from .jobs.strays import StrayMessages
from .limits import Limits
from .logs import PeerLog
from .loop_clock import LoopClock
from .loop_lag import LoopLagMonitor
from .net import certificates
from .net.board_socket import BoardLinkServices, BoardSocket
from .net.caller_socket import CallerLinkServices, CallerSocket
from .net.fair_queue import FairQueue
from .net.handlers import (
    BaseHandler,
    CaCertificateHandler,
    HealthHandler,
    MetricsHandler,
    NotFoundHandler,
    RequestPolicy,
)
from .net.listener import Listener
from .net.samples_page import SamplesHandler
from .net.unfinished_messages import UnfinishedMessages
from .net.webhook import make_queues
from .net.work_shares import WorkShares
from .packages.firmware_source import FirmwareSource
from .packages.http_fetcher import HttpFetcher
from .packages.source_settings import DEFAULT_INDEX, SourceSettings
from .rate_limits import RateLimiter, UnauthenticatedConnections
from .rollouts.desired import is_switch_restart
from .rollouts.rollouts import Rollouts, RolloutServices
from .sample_collector import SampleCollector
from .sample_history import TURNED_OFF, SampleHistory, missing_reason
from .status import ServerStatus
from .store.sample_files import SampleFiles
from .store.sample_folder import FOLDER
from .store.sample_query import SampleRetention, SampleStore
from .store.sample_tables import SampleTables
from .store.shared_store import SharedStore
from .store.store import Store
from .store.store_queue import StoreQueue
from .text_expiry import TextExpiry
from .times import DAY

if TYPE_CHECKING:
    from .packages.planner import PackagePlanner

log = logging.getLogger("cm_server")

DATABASE = "server.db"  # of a server that does not share its store
DEFAULT_LIMITS = Limits()
DEFAULT_OPTIONS = ServerOptions()


@dataclass(frozen=True)
class Environment:
    """What a server runs in; tests replace parts of it.

    Attributes:
        local: whether only this machine can connect: then links may be without TLS.
        clock: the wall clock, in seconds since 1970.
        webhook: where alarms are sent; see net/webhook.py; "" for nowhere.
        webhook_secret: signs them.
        pubsub: for messages between servers that share a store; None: NATS; without the
            option ``bus``, nothing.
    """

    local: bool = True
    clock: Callable[[], float] = time.time
    pubsub: PubSub | None = None
    webhook: str = ""
    webhook_secret: str = ""


DEFAULT_ENVIRONMENT = Environment()


class Server:
    """All parts of one running server.

    Args:
        home: the folder with the server's files.
        options: what an administrator has set.
        limits: what the server accepts, keeps and does at most.
        environment: what it runs in.

    Raises:
        ServerError: its store or a certificate cannot be used.
    """

    def __init__(
        self,
        home: Path,
        options: ServerOptions = DEFAULT_OPTIONS,
        limits: Limits = DEFAULT_LIMITS,
        environment: Environment = DEFAULT_ENVIRONMENT,
    ) -> None:
        loop = asyncio.get_running_loop()
        is_shared = options.store is not None
        token_name = local_token_name(home) if is_shared else LOCAL_TOKEN_NAME
        self.home, self.options, self.limits = home, options, limits
        self.loop_clock = LoopClock(loop.call_later, loop.time)

        # What is stored, and what is known of it
        self.store = _open_store(home, options.store)
        self.store_queue = StoreQueue(self.store, limits)
        boards = self.store.boards()
        self.registry = Registry(boards)
        self.certificates = certificates.load(home, options.cert, options.key, in_use=bool(boards))
        self.clock = CheckedClock(
            self.store_queue, token_name if is_shared else "", wall=environment.clock
        )
        self.tokens = Tokens(self.store_queue, limits, self.clock.latest)
        self.tokens.install_local_token(home, token_name)
        self.audit_log = AuditLog(self.store_queue, limits)
        self.peer_log = PeerLog(limits)
        self.housekeeper = Housekeeper(
            self.store_queue,
            loop.call_later,
            options=options,
            clock=self.clock,
            limits=limits,
        )
        self.status = ServerStatus(self.store_queue, self.clock, self.housekeeper)

        # Boards and jobs
        self.reconnects = Reconnects(self.registry, options.lost_after_seconds)
        self.dispatch = Dispatch(
            JobServices(
                store_queue=self.store_queue,
                registry=self.registry,
                call_later=self.loop_clock.call_later,
                limits=limits,
                lost_after=self.reconnects.lost_after,
            )
        )
        self.text_expiry = TextExpiry(
            self.dispatch.job_texts, loop.call_later, options.keep_texts, self.clock
        )
        self.dispatch.sleepers.spread = lambda: self.reconnects.spread
        self.enrolment = Enrolment(
            EnrolmentServices(
                store_queue=self.store_queue,
                registry=self.registry,
                dispatch=self.dispatch,
                tokens=self.tokens,
                audit_log=self.audit_log,
                peer_log=self.peer_log,
                ca=self.certificates.ca,
            )
        )
        self.sample_collector = SampleCollector(options.samples, limits)
        self.sample_history = SampleHistory(
            _open_sample_store(home, options, limits),
            limits,
            loop.call_later,
            self.clock,
            _history_refusal(options),
        )
        self.sample_collector.on_received = self.sample_history.add
        self.enrolment.on_erased = self.sample_history.erase
        self.status.history_warnings = self.sample_history.warnings
        strays = StrayMessages(self.peer_log, limits.strays_per_minute)
        self.dispatch.board_messages.on_emit = self.sample_collector.add_message
        self.board_logs = BoardLogs(self.store_queue, self.registry, loop.call_later, limits)
        self.dispatch.board_messages.on_log = self.board_logs.add_message
        self.board_health = BoardHealth(self.store_queue, self.registry, loop.call_later, limits)
        self.board_logs.listeners.append(self.board_health.on_log)
        self.dispatch.board_messages.on_program = self.board_health.on_program
        self.dispatch.board_messages.on_stray = strays.on_stray

        # Callers
        self.permission = Permission(self.tokens, self.registry, self.dispatch, loop.call_later)
        self.callers = CallerLinks(self.store_queue, self.tokens, self.permission)
        self.subscriptions = Subscriptions(self.registry, loop.call_later, limits)
        self.completion_words = CompletionWords(home, self.registry, loop.call_later)
        indexes = {"": DEFAULT_INDEX, **dict(options.index)}
        self.mounts = Mounts(limits, self.loop_clock.call_later, self.dispatch.run_first)
        self.dispatch.board_messages.on_read = self.mounts.on_read
        self.dispatch.recovery.has_mount = self.mounts.has
        self.dispatch.recovery.mount_again = self.mounts.mount_again
        fetcher = HttpFetcher(limits)
        self.installs = InstallServices(
            content_store=ContentStore(
                home, limits, self.loop_clock.call_later, self.loop_clock.time
            ),
            plan_cache=PlanCache(limits.plans_per_link),
            plan_turns=PlanTurns(limits),
            package_planner=functools.cache(
                functools.partial(_make_planner, home, SourceSettings(indexes), fetcher)
            ),
            firmware_source=FirmwareSource(fetcher, home / "firmware"),
            mounts=self.mounts,
            store_queue=self.store_queue,
            limits=limits,
        )

        self.waiting_work = WaitingWorkReader(self.installs)
        self.dispatch.waiting.read_cell = self.waiting_work.read_cell
        self.dispatch.waiting.permission_check = self.permission.refusal_reason

        # Other servers
        self.cluster = self._make_cluster(environment.pubsub)
        self.board_logs.listeners.append(self.subscriptions.on_log)
        self.subscriptions.on_logs_followed = self.cluster.follow_logs
        self.status.cluster_warnings = self.cluster.warnings
        self.sample_collector.listeners += [self.subscriptions.on_sample, self.cluster.on_sample]

        # What boards should be
        self.rollouts = Rollouts(
            RolloutServices(
                installs=self.installs,
                registry=self.registry,
                dispatch=self.dispatch,
                tokens=self.tokens,
                call_later=loop.call_later,
                owner=self._server_id,
                live_servers=lambda: (
                    tuple(self.cluster.servers) if self.cluster.is_shared else None
                ),
                publish_generation=self.cluster.publish_generation,
                clock=environment.clock,
            )
        )
        self.dispatch.sleepers.is_in_rollout = self.rollouts.needs
        self.board_health.is_switch_restart = is_switch_restart

        # What somebody should know of
        self.alarm_queues = make_queues(environment.webhook, environment.webhook_secret)
        self.board_alarms: BoardAlarms | None = None
        if self.alarm_queues:
            alarms = Alarms(self._send_alarm, loop.call_later, environment.clock)
            self.rollouts.on_stopped = functools.partial(alarms.add, "rollout-stopped")
            self.board_alarms = BoardAlarms(
                self.registry,
                alarms,
                loop.call_later,
                is_leader=lambda: self._server_id() == min(self.cluster.servers or ("single",)),
            )

        # Connections
        rate = functools.partial(RateLimiter, max_keys=limits.rate_limit_keys)
        self.unauthenticated = UnauthenticatedConnections(limits)
        self.loop_lag_monitor = LoopLagMonitor(loop.call_later, loop.time)
        self._policy = RequestPolicy(
            local=environment.local,
            proxies=options.behind_proxy,
            origins=options.allow_origin,
            refusal_rate=rate(limits.stranger_rows_per_address_per_minute),
        )
        backlogs = FairQueue(limits.slice_seconds)
        self._board_link_services = BoardLinkServices(
            limits=limits,
            beat=options.beat_seconds,
            backlogs=backlogs,
            unauthenticated=self.unauthenticated,
            peer_log=self.peer_log,
            audit_log=self.audit_log,
            registry=self.registry,
            dispatch=self.dispatch,
            health=self.board_health,
            cluster=self.cluster,
            enrolment=self.enrolment,
            reconnects=self.reconnects,
            call_later=self.loop_clock.call_later,
        )
        services = Services(
            limits=limits,
            status=self.status,
            store_queue=self.store_queue,
            registry=self.registry,
            dispatch=self.dispatch,
            cluster=self.cluster,
            tokens=self.tokens,
            callers=self.callers,
            enrolment=self.enrolment,
            audit_log=self.audit_log,
            installs=self.installs,
            pin=self.certificates.pin,
            board_logs=self.board_logs,
            board_health=self.board_health,
            sample_history=self.sample_history,
            rollouts=self.rollouts,
            viewers_read_logs=options.viewers_read_logs,
            keep_texts_seconds=options.keep_texts * DAY,
        )
        self._caller_link_services = CallerLinkServices(
            requests=services,
            subscriptions=self.subscriptions,
            permission=self.permission,
            peer_log=self.peer_log,
            backlogs=backlogs,
            bad_login_rate=rate(limits.bad_logins_per_minute),
            work_shares=WorkShares(limits),
            unfinished=UnfinishedMessages(limits, self.loop_clock.call_later, self.loop_clock.time),
            waiting_work=self.waiting_work,
            long_replies=asyncio.Semaphore(limits.undivided_replies),
            call_later=self.loop_clock.call_later,
        )

    def _make_cluster(self, pubsub: PubSub | None) -> Cluster | SingleServer:
        """Return the other servers if the store is shared, else what stands for them."""
        if not isinstance(self.store, SharedStore):
            return SingleServer(self.store_queue, self.dispatch)
        if pubsub is None:
            bus = self.options.bus
            pubsub = NatsPubSub(bus) if bus else NoPubSub()
        services = ClusterServices(
            limits=self.limits,
            registry=self.registry,
            dispatch=self.dispatch,
            tokens=self.tokens,
            callers=self.callers,
            enrolment=self.enrolment,
            samples=self.sample_collector,
            log_listener=self.subscriptions,
            reconnects=self.reconnects,
            peer_log=self.peer_log,
        )
        queue = cast("StoreQueue[SharedStore]", self.store_queue)
        return Cluster(services, queue, pubsub, self.options.lost_after_seconds)

    def _send_alarm(self, message: dict[str, Any]) -> None:
        for queue in self.alarm_queues:
            queue.send(message)

    def _server_id(self) -> str:
        """Return the id of this server, which another one takes over if it is gone."""
        return self.store.server_id if isinstance(self.store, SharedStore) else "single"

    def start(self, address: str) -> None:
        """Announce to other servers, if there are any, where this one listens."""
        self.status.address = address
        self.cluster.start(address)
        self.rollouts.start()
        self.sample_history.start()

    def stop(self) -> None:
        """Stop all parts, close all links, write pending changes, and close the store."""
        why = "the server stops"
        cleanup.run_all(
            "the server",
            self.loop_lag_monitor.stop,
            self.loop_clock.stop,
            *(queue.stop for queue in self.alarm_queues),
            *([self.board_alarms.stop] if self.board_alarms else []),
            self.housekeeper.stop,
            self.text_expiry.stop,
            self.board_logs.write,
            self.board_health.write,
            self.sample_history.stop,
            self.completion_words.stop,
            self.mounts.stop,
            self.rollouts.stop,
            self.dispatch.stop,
            self.dispatch.job_texts.write_all,
            lambda: self.callers.close_all(why),
            lambda: self.registry.close_links(why),
            self.cluster.leave,
            self.store_queue.close,
        )

    def make_listener(self) -> Listener:
        """Return what accepts connections, with all routes."""
        arguments: dict[type[BaseHandler], dict[str, Any]] = {
            BoardSocket: {"services": self._board_link_services},
            CallerSocket: {"services": self._caller_link_services},
            HealthHandler: {"status": self.status},
            MetricsHandler: {"tokens": self.tokens, "render": self.render_metrics},
            SamplesHandler: {"services": self._caller_link_services},
            CaCertificateHandler: {"ca": self.certificates.ca},
        }
        policy = {"policy": self._policy}
        app = Application(
            [(path, handler, {**policy, **arguments[handler]}) for path, handler in ROUTES],
            default_handler_class=NotFoundHandler,
            default_handler_args=policy,
            log_function=_log_request,
        )
        call_later = self.loop_clock.call_later
        return Listener(app, self.limits, self.unauthenticated, self.certificates, call_later)

    def render_metrics(self) -> tuple[str, bytes]:
        """Return the content type and the text of the metrics."""
        from . import metrics  # here: the import of its library takes 0.1 s

        sources = metrics.MetricSources(
            status=self.status,
            loop_lag_monitor=self.loop_lag_monitor,
            registry=self.registry,
            dispatch=self.dispatch,
            callers=self.callers,
            subscriptions=self.subscriptions,
            unauthenticated=self.unauthenticated,
            housekeeper=self.housekeeper,
            sample_history=self.sample_history,
            cluster=self.cluster,
        )
        return metrics.CONTENT_TYPE, metrics.render(sources)


def _make_planner(home: Path, settings: SourceSettings, fetcher: HttpFetcher) -> PackagePlanner:
    """Return what makes plans of packages."""
    from .packages.planner import PackagePlanner  # here: it delays the start of the server

    return PackagePlanner(home / "packages", fetcher.limits, settings, fetcher)


def _open_store(home: Path, location: str | Path | None) -> Store:
    """Open the server's own store, or the shared store with the shared certificate."""
    if location is None:
        return Store(home / DATABASE)
    shared = SharedStore(location)
    certificates.use_shared(home, shared.put_if_absent)
    return shared


def _history_refusal(options: ServerOptions) -> str:
    """Return why samples are not kept for days; "" if they are."""
    if not options.keep_samples:
        return TURNED_OFF
    return missing_reason(needs_duckdb=not _is_postgresql(options.store))


def _is_postgresql(location: str | Path | None) -> bool:
    return str(location).startswith("postgresql")


def _open_sample_store(home: Path, options: ServerOptions, limits: Limits) -> SampleStore | None:
    """Return what keeps samples for days; None if nothing does. It is opened when it is used."""
    if _history_refusal(options):
        return None
    retention = SampleRetention(
        raw_days=options.keep_samples,
        minute_days=max(options.keep_minutes, options.keep_samples),
        max_bytes=options.sample_disk * 1_000_000,
        free_bytes=limits.history_free_bytes,
    )
    if _is_postgresql(options.store):
        return SampleTables(str(options.store), retention)
    return SampleFiles(home / FOLDER, retention)


#: All paths. Each handler's ``required_credential`` says which credential it requires.
ROUTES: list[tuple[str, type[BaseHandler]]] = [
    (r"/board", BoardSocket),
    (r"/caller", CallerSocket),
    (r"/healthz", HealthHandler),
    (r"/metrics", MetricsHandler),
    (r"/api/samples", SamplesHandler),
    (r"/ca.pem", CaCertificateHandler),
]


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
