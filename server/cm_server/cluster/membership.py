"""Membership in a group of servers: heartbeats, dead servers, requests about all servers.

Each server renews its row in the store. One that has not done so for ``dead_after`` seconds is
removed by the others: its boards have connected to them by then, and they take over its jobs. When
it resumes, it finds that it was removed, drops all its links and rejoins with a new id.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudmanager import config
from cm_server.auth.tokens import LOCAL_TOKEN_NAME
from cm_server.store.rows import MAX_JOB_ID
from cm_server.store.shared_store import SharedStore
from cm_server.store.store_queue import Operation, StoreQueue

from .background import BackgroundTasks
from .board_directory import BoardDirectory
from .hosted_jobs import HostedJobs
from .peer_messages import ALL, PeerMessages
from .pubsub import NoPubSub, PubSub
from .rebalancing import Rebalancer
from .remote_jobs import RemoteJobs
from .remote_logs import RemoteLogs
from .services import ClusterContext, ClusterServices

if TYPE_CHECKING:
    from cm_server.jobs.job_history import ReportedResult
    from cm_server.jobs.model import Board
    from cm_server.sample_buffer import Sample
    from cm_server.store.rows import ClaimedBoard, TokenRow

log = logging.getLogger("cm_server")

HEARTBEATS_PER_TIMEOUT = 5  # in the time after which a server is considered dead
OUTCOME_POLL_SECONDS = 1.0  # between two comparisons with the store, and with other servers
SILENT_SECONDS = 2.0  # after which messages of a live server, which it sends each second, are lost
READY_SECONDS = 2.0  # until a server that has heard nothing accepts connections
#: What a server without bus says; more than one server would not notice each other's changes.
NO_BUS = "it has a shared store but no bus (--bus): only one server may use that store"
RELOAD_SECONDS = 60.0  # between two reloads of all boards and tokens
RELOAD_DISCONNECTED_SECONDS = 3.0  # the same while messages do not arrive


def new_server_id() -> str:
    """Return a new id for a server: 16 hex digits."""
    return secrets.token_hex(8)


def local_token_name(home: Path) -> str:
    """Return the name of the local user's token, which contains an id of this server's folder."""
    path = home / "server.id"
    if not path.exists():
        config.write_private(path, new_server_id()[:8])
    return f"{LOCAL_TOKEN_NAME}-{path.read_text().strip()}"


def _peer_message_key(store: SharedStore) -> bytes:
    """Return the secret key of peer messages; the first server of a store creates it."""
    return store.put_if_absent("bus", secrets.token_bytes(32))


class Cluster:
    """This server's membership in the group of servers that share a store.

    Has the methods of ``SingleServer``.

    Args:
        services: the parts of this server.
        store_queue: of the shared store.
        pubsub: the bus.
        dead_after: seconds without heartbeat after which a server is considered dead.
    """

    is_shared = True

    def __init__(
        self,
        services: ClusterServices,
        store_queue: StoreQueue[SharedStore],
        pubsub: PubSub,
        dead_after: float,
    ) -> None:
        self._services, self._store_queue = services, store_queue
        self._loop = loop = asyncio.get_running_loop()
        self._address = ""
        self._dead_after = dead_after
        self._tasks = BackgroundTasks()
        store = store_queue.store  # the server does not serve yet
        key = _peer_message_key(store)
        fleet_id = store.put_if_absent("fleet", secrets.token_bytes(8)).hex()
        self.peer_messages = PeerMessages(pubsub, fleet_id, key, store.server_id)
        context = ClusterContext(
            store_queue=store_queue,
            peer_messages=self.peer_messages,
            tasks=self._tasks,
            call_later=loop.call_later,
            epochs={},
        )
        self.remote_jobs = RemoteJobs(services.dispatch, context)
        services.dispatch.scheduler.remote = self.remote_jobs
        self.board_directory = BoardDirectory(services, context, self.remote_jobs)
        self.hosted_jobs = HostedJobs(services, context)
        self._remote_logs = RemoteLogs(services, context)
        self.rebalancer = Rebalancer(services, context, self._is_reserved)
        store.on_change = self._on_change
        self.servers: dict[str, str] = {}  # live servers: id -> address
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._reloaded_at = 0.0
        self._reload_requested = False
        self._ready = asyncio.Event()
        self._announced = False  # whether others were asked to read the tokens since the start
        self._absent: set[str] = set()  # servers without a row at the last heartbeat
        self.peer_messages.on_gap = self._on_gap
        self.peer_messages.handlers |= {
            "stop": self._on_stop_program,
            "left": self._on_left,
            "links": self._on_count_links,
            "lines": self._on_describe_jobs,
            "show": self._on_describe_job,
            "waiting": self._on_waiting_jobs,
        }
        services.dispatch.waiting.on_added = self._publish_waiting_jobs

    def start(self, address: str) -> None:
        """Register this server under the address where it listens, and start its heartbeat."""
        self._address = address
        if self.bus_state == "none":
            log.warning("%s", NO_BUS)
            self._ready.set()
        self._store_queue.store.register_server(self._address)
        self.peer_messages.start(self._on_pubsub_change)
        self._on_heartbeat_due()
        self._poll_outcomes()

    def _on_change(self, board_ids: Sequence[str] = (), *, tokens: bool = False) -> None:
        """Tell other servers which rows changed; called by the thread that changed them."""
        self._loop.call_soon_threadsafe(
            lambda: self.board_directory.publish_row_changes(board_ids, tokens=tokens)
        )

    def _on_pubsub_change(self, connected: bool) -> None:
        """Read and request everything again when the bus is back: messages were lost."""
        if not connected:
            return
        if not self._announced:  # the local user's token may be new, or replace another one
            self._announced = True
            self.board_directory.publish_row_changes(tokens=True)
        self._tasks.start(self._reload()).add_done_callback(lambda _: self._ready.set())

    async def wait_until_ready(self) -> None:
        """Wait until this server knows where all boards are, for a short time at most."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ready.wait(), READY_SECONDS)

    @property
    def store_kind(self) -> str:
        """The kind of the shared database."""
        return "SQLite" if self._store_queue.store.database.answers_at_once else "PostgreSQL"

    @property
    def bus_state(self) -> str:
        """Return "up", "down", or "none" without one."""
        pubsub = self.peer_messages.pubsub
        return "none" if isinstance(pubsub, NoPubSub) else "up" if pubsub.connected else "down"

    def warnings(self) -> list[str]:
        """Return a sentence for each fault between this server and others, without addresses."""
        others, unheard = len(self.servers) - 1, len(self.unheard_servers)
        if self.bus_state == "none":
            use = f"; {others} others use it" if others > 0 else ""
            return [f"{NO_BUS}{use}"]
        if self.bus_state == "down":
            return ["its bus is down: boards of other servers cannot be given new cells"]
        if unheard:
            return [f"no messages of {unheard} of {others} other servers arrive"]
        return []

    def _on_gap(self) -> None:
        """Read and request everything again soon: messages were lost."""
        self._reload_requested = True

    async def _reload(self) -> None:
        self._reload_requested = False
        self._reloaded_at = self._loop.time()
        await self.board_directory.reload_all()
        await self.board_directory.request_boards()
        waiting = await self._store_queue.run(lambda store: store.waiting_board_ids())
        self._services.dispatch.waiting.on_rows_added(waiting)

    def _publish_waiting_jobs(self, board_ids: list[str]) -> None:
        """Tell other servers that jobs wait for boards: the one that has a board starts them."""
        self.peer_messages.send(ALL, "waiting", {"boards": board_ids})

    def _on_waiting_jobs(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        self._services.dispatch.waiting.on_rows_added(head["boards"])

    def _on_heartbeat_due(self) -> None:
        seconds = self._dead_after / HEARTBEATS_PER_TIMEOUT
        self._timers["heartbeat"] = self._loop.call_later(seconds, self._on_heartbeat_due)
        self._tasks.start_one("heartbeat", self._send_heartbeat())

    async def _send_heartbeat(self) -> None:
        queue = self._store_queue
        servers = await queue.run(lambda store: store.send_heartbeat(self._dead_after))
        if queue.store.server_id not in servers:
            await self._rejoin()
            return
        for server in self._find_lost(servers):
            if address := self.servers.get(server):  # of others, late messages may come for long
                log.warning("the server %s is dead", address)
            self._on_server_lost(server)
        self._know_servers(servers)
        self._services.reconnects.servers = len(servers)
        self._services.dispatch.recovery.take_over_jobs(
            await queue.run(lambda store: store.take_over_jobs())
        )
        self.board_directory.publish_changes()

    def _find_lost(self, servers: Mapping[str, str]) -> set[str]:
        """Return the servers that have no row any more.

        Args:
            servers: those that have one. One that is unknown, because it came and went between
                two heartbeats, is lost if it has none at two of them: it may have just come.
        """
        mentioned = self.remote_jobs.owners() | self.board_directory.holders()
        absent = (mentioned | set(self.hosted_jobs.servers)) - servers.keys()
        lost = (absent & self._absent) | (self.servers.keys() - servers.keys())
        self._absent = absent - lost
        return lost

    def _on_server_lost(self, server: str) -> None:
        self.board_directory.on_server_lost(server)
        self.remote_jobs.on_server_lost(server)
        self.hosted_jobs.on_server_lost(server)

    def _on_left(self, sender: str, _head: dict[str, Any], _payload: bytes) -> None:
        """Note that a server has stopped; its row is deleted."""
        log.info("the server %s has stopped", self.servers.get(sender, sender))
        self.servers = {key: value for key, value in self.servers.items() if key != sender}
        self._on_server_lost(sender)

    def _know_servers(self, servers: dict[str, str]) -> None:
        """Set the live servers; from now on, each has to be heard."""
        self.servers = servers
        heard_at, now = self.peer_messages.heard_at, time.monotonic()
        self.peer_messages.heard_at = {id_: heard_at.get(id_, now) for id_ in servers}

    @property
    def unheard_servers(self) -> list[str]:
        """The addresses of the live servers whose messages do not arrive."""
        oldest = time.monotonic() - SILENT_SECONDS
        heard_at, own_id = self.peer_messages.heard_at, self._store_queue.store.server_id
        return [
            address
            for server, address in self.servers.items()
            if server != own_id and heard_at.get(server, oldest) <= oldest
        ]

    @property
    def _hears_all(self) -> bool:
        """Whether the messages of all live servers arrive."""
        return self.peer_messages.pubsub.connected and not self.unheard_servers

    def _reload_interval(self) -> float:
        """Return the seconds between two reloads: shorter while messages do not arrive."""
        return RELOAD_SECONDS if self._hears_all else RELOAD_DISCONNECTED_SECONDS

    async def _rejoin(self) -> None:
        """Start again with a new id: the other servers have removed this one and have its jobs."""
        log.error("this server was suspended and removed by the others: it rejoins")
        new_id = new_server_id()
        await self._store_queue.run(lambda store: store.change_server_id(new_id))
        self._services.dispatch.recovery.drop_all_jobs()
        why = "this server stopped responding for too long; reconnect"
        self._services.callers.close_all(why)
        self._services.registry.close_links(why)
        self.board_directory.clear()
        self.peer_messages.change_server_id(new_id)
        await self._store_queue.run(lambda store: store.register_server(self._address))
        await self._reload()

    def _poll_outcomes(self) -> None:
        self._timers["poll"] = self._loop.call_later(OUTCOME_POLL_SECONDS, self._poll_outcomes)
        self._tasks.start_one("poll", self.remote_jobs.poll_outcomes())
        self._remote_logs.poll()
        self.rebalancer.tick(self.servers, is_complete=self._hears_all)
        self.hosted_jobs.send_states()
        self.remote_jobs.send_requests()
        self.peer_messages.send_beats()
        is_due = self._loop.time() - self._reloaded_at > self._reload_interval()
        if self._reload_requested or is_due:
            self._tasks.start_one("reload", self._reload())

    @property
    def refused_writes(self) -> int:
        """The number of writes that were refused because another server owned the job or board."""
        return self._store_queue.store.refused_writes

    async def count_links(self, token: TokenRow) -> int:
        """Return how many links of other servers were opened with a token."""
        replies = await self._request_all("links", {"token": token.hash})
        return sum(reply["links"] for reply in replies)

    def _on_count_links(self, _sender: str, head: dict[str, Any], _payload: bytes) -> Any:
        links = sum(link.token.hash == head["token"] for link in self._services.callers)
        return {"links": links}, b""

    # Boards

    def claim_board(self, board: Board, facts: dict[str, Any]) -> Operation[ClaimedBoard | None]:
        """Acquire the lease of a board that has just authenticated, and the jobs sent to it."""
        return self.board_directory.claim_board(board, facts)

    def apply_claim(
        self,
        board: Board,
        claim: Operation[ClaimedBoard | None],
        reported: ReportedResult | None,
    ) -> None:
        """Know a board as one of this server, if its lease was acquired.

        Args:
            board: it has just authenticated.
            claim: as ``claim_board`` returned it.
            reported: the board's report of its last job.

        Raises:
            ServerError: it is no longer enrolled, or the store is unavailable.
        """
        self.board_directory.apply_claim(board, claim, reported)

    def on_sample(self, board: Board, sample: Sample) -> None:
        """Publish a sample of a board that is connected to this server."""
        if board.link is not None:
            self.board_directory.on_sample(board, sample)

    def publish_generation(self, board: Board) -> None:
        """Publish what a job of this server has made of the generation of a board."""
        self.board_directory.publish_generation(board)

    def _is_reserved(self, board: Board) -> bool:
        """Return whether a job is in the store that is about to be sent to a board."""
        dispatch = self._services.dispatch
        return dispatch.is_committing(board) or self.hosted_jobs.is_claiming(board)

    def follow_logs(self, is_followed: bool) -> None:
        """Begin to read what boards of other servers print, or end it."""
        self._remote_logs.set_followed(is_followed)

    # Requests of callers about other servers

    async def locate_jobs(self, jobs: Iterable[int]) -> list[tuple[int, str, str]]:
        """Look up open jobs that this server does not know: their numbers, boards and servers."""
        numbers = [number for number in jobs if 0 < number <= MAX_JOB_ID][
            : self._services.limits.reply_jobs
        ]
        if not numbers:
            return []
        return await self._store_queue.run(lambda store: store.locate_jobs(numbers))

    def interrupt_jobs(self, places: Iterable[tuple[int, str, str]]) -> None:
        """Ask other servers to interrupt jobs.

        Args:
            places: job number, board id and server id, as ``locate_jobs`` returns them.
        """
        for number, _, server in places:
            self.peer_messages.send(server, "interrupt", {"jobs": [number]})

    def stop_program(self, board: Board) -> bool:
        """Interrupt a board's own program, at whichever server; return whether it is connected."""
        if board.link is None and board.online and board.remote_state is not None:
            server, head = board.remote_state.server, {"board": board.id}
            self._tasks.start(self.peer_messages.request(server, "stop", head))
            return True
        return self._services.dispatch.stop_program(board)

    def _on_stop_program(self, _sender: str, head: dict[str, Any], _payload: bytes) -> Any:
        board = self._services.registry.by_id.get(head["board"])
        return {"found": board is not None and self._services.dispatch.stop_program(board)}, b""

    async def describe_jobs(
        self, is_visible: Callable[[str], bool]
    ) -> Iterable[tuple[str, dict[str, Any]]]:
        """Return the jobs of all servers, each with its board's id: open ones first, newest first.

        If several servers know a job, the description of the most reliable one counts.

        Args:
            is_visible: returns whether the jobs of a board with this id are described.
        """
        replies = await self._request_all("lines", {})
        lists = [self._describe_local_jobs(), *(reply["lines"] for reply in replies)]
        best: dict[int, tuple[str, dict[str, Any], int]] = {}
        for board_id, job, reliability in itertools.chain(*lists):
            number = job["job"]
            if number not in best or reliability > best[number][2]:
                best[number] = (board_id, job, reliability)

        def open_first(number: int) -> tuple[bool, float, int]:
            # Servers reserve numbers by the thousand: their order is not the order of time.
            job = best[number][1]
            return job["state"] == "ended", -job["created"], -number

        return [
            best[number][:2]
            for number in sorted(best, key=open_first)
            if is_visible(best[number][0])
        ]

    def _describe_local_jobs(self) -> list[tuple[str, dict[str, Any], int]]:
        """Return the jobs that this server knows, each with its board's id and a reliability.

        The reliability is 2 for an ended job, 1 for one that this server owns, 0 for others.
        """
        dispatch = self._services.dispatch
        found: list[tuple[str, dict[str, Any], int]] = []
        jobs = dispatch.job_results.describe_jobs()
        for board_id, job in itertools.islice(jobs, self._services.limits.reply_jobs):
            if job["state"] == "ended":
                reliability = 2
            else:
                reliability = 0 if dispatch.jobs[job["job"]].owner else 1
            found.append((board_id, job, reliability))
        return found

    async def describe_job(self, number: int) -> dict[str, Any] | None:
        """Return a job that another server knows, with the end of its output; None if none does."""
        replies = await self._request_all("show", {"job": number})
        return next((reply["job"] for reply in replies if reply["job"]), None)

    async def _request_all(self, op: str, head: dict[str, Any]) -> list[dict[str, Any]]:
        """Send a request to all other servers; return the replies of those that answer in time."""
        requests = [
            self.peer_messages.request(server, op, head)
            for server in self.servers
            if server != self._store_queue.store.server_id
        ]
        replies = await asyncio.gather(*requests, return_exceptions=True)
        return [reply[0] for reply in replies if not isinstance(reply, BaseException)]

    def _on_describe_jobs(self, _sender: str, _head: dict[str, Any], _payload: bytes) -> Any:
        return {"lines": self._describe_local_jobs()}, b""

    def _on_describe_job(self, _sender: str, head: dict[str, Any], _payload: bytes) -> Any:
        dispatch, number = self._services.dispatch, head["job"]
        job = dispatch.jobs.get(number) or dispatch.recent_jobs.get(number)
        return {"job": job.describe_with_output() if job else None}, b""

    def leave(self) -> None:
        """Unregister this server, so that the others take over without waiting."""
        for timer in self._timers.values():
            timer.cancel()
        self._tasks.cancel()
        self.remote_jobs.stop()
        self.board_directory.close()
        self.peer_messages.send(ALL, "left", {})
        self._store_queue.run(lambda store: store.unregister_server())
        self.peer_messages.flush()

    async def close(self) -> None:
        """Close the connection to the bus."""
        await self.peer_messages.pubsub.close()
