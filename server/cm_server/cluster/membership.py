"""The other servers of one fleet: what this one is among them, and how it notices who is gone.

Each says in the store, again and again, that it is there. One that has not for ``lost_after``
is taken out by the others: its boards have dialled them by then, and its jobs are theirs. When it
wakes up, it finds itself taken out, drops all its links and begins anew under another id.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudmanager import config
from cloudmanager.protocol.errors import ServerError
from cm_server import limits
from cm_server.auth.tokens import LOCAL_TOKEN_NAME
from cm_server.jobs.jobs import MAX_JOB_ID
from cm_server.store.shared_store import SharedStore

from .board_directory import BoardDirectory
from .hosted_jobs import HostedJobs
from .peer_messages import PeerMessages
from .pubsub import PubSub

if TYPE_CHECKING:
    from cm_server.app import Server
    from cm_server.jobs.registry import Board

log = logging.getLogger("cm_server")

HEARTBEATS_PER_TIMEOUT = 5  # in the time after which a server is taken for gone
OUTCOME_POLL_SECONDS = 1.0  # between two looks at what became of jobs elsewhere
RELOAD_SECONDS = 60.0  # between two readings of all boards and tokens
RELOAD_DISCONNECTED_SECONDS = 5.0  # while the bus is away


def new_server_id() -> str:
    """Return a fresh id for a server: 16 hex digits."""
    return secrets.token_hex(8)


def local_token_name(home: Path) -> str:
    """Return what a server's local user's token is called: each server has one of its own."""
    path = home / "server.id"
    if not path.exists():
        config.write_private(path, new_server_id()[:8])
    return f"{LOCAL_TOKEN_NAME}-{path.read_text().strip()}"


def _peer_message_key(store: SharedStore) -> bytes:
    """Return the secret key of peer messages; the first server of a store creates it."""
    return store.put_if_absent("bus", secrets.token_bytes(32))


class Cluster:
    """This server among the others.

    Args:
        server: this one.
        store: which all of them share.
        pubsub: which carries their letters.
        dead_after: seconds of silence after which a server is gone.
        loop: which calls the beats.
    """

    def __init__(
        self,
        server: Server,
        store: SharedStore,
        pubsub: PubSub,
        dead_after: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._server, self._store, self._loop = server, store, loop
        self._dead_after = dead_after
        key = _peer_message_key(store)
        fleet = store.put_if_absent("fleet", secrets.token_bytes(8)).hex()
        self.peer_messages = PeerMessages(pubsub, fleet, key, store.server_id)
        self.remote_jobs = server.dispatch.enable_remote_jobs(store, self.peer_messages)
        self.board_directory = BoardDirectory(
            server, store, self.peer_messages, self.remote_jobs, loop.call_later
        )
        self.hosted_jobs = HostedJobs(server.dispatch, store, server.registry, self.peer_messages)
        store.epoch_for = self.board_directory.epoch_for
        store.on_change = self.board_directory.publish_row_changes
        self.servers: dict[str, str] = {}  # that are there: id and address
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._reloaded_at = 0.0
        self.peer_messages.handlers |= {
            "stop": self._on_stop_program,
            "lines": self._on_describe_jobs,
            "show": self._on_describe_job,
        }

    def start(self) -> None:
        """Be one of the servers."""
        self._store.register_server(self._server.address)
        self.peer_messages.start(self._on_pubsub_change)
        self._on_heartbeat_due()
        self._poll_outcomes()

    def _on_pubsub_change(self, connected: bool) -> None:
        """Ask what was missed, when the bus is back."""
        if connected:
            self._call_guarded(self._reload)

    def _call_guarded(self, action: Any) -> None:
        """Act; where the store is away, the next beat tries again."""
        try:
            action()
        except ServerError as error:
            log.warning("what other servers do is not known: %s", error.reason)

    def _reload(self) -> None:
        self._reloaded_at = self._loop.time()
        self.board_directory.reload_all()
        self.board_directory.request_boards()

    def _on_heartbeat_due(self) -> None:
        seconds = self._dead_after / HEARTBEATS_PER_TIMEOUT
        self._timers["beat"] = self._loop.call_later(seconds, self._on_heartbeat_due)
        self._call_guarded(self._send_heartbeat)

    def _send_heartbeat(self) -> None:
        servers = self._store.send_heartbeat(self._dead_after)
        if self._store.server_id not in servers:
            self._rejoin()
            return
        for server in self.servers.keys() - servers.keys():
            log.warning("the server %s is gone", self.servers[server])
            self.board_directory.on_server_lost(server)
            self.remote_jobs.on_server_lost(server)
            self.hosted_jobs.on_server_lost(server)
        self.servers = servers
        self._server.update_lost_after()
        self._server.dispatch.take_over_jobs(self._store.take_over_jobs())
        self.board_directory.publish_changes()
        if self._loop.time() - self._reloaded_at > self._reload_interval():
            self._reload()

    def _reload_interval(self) -> float:
        """Return the seconds between two reloads: shorter while no changes can be received."""
        connected = self.peer_messages.pubsub.connected
        return RELOAD_SECONDS if connected else RELOAD_DISCONNECTED_SECONDS

    def _rejoin(self) -> None:
        """Find that the others took this server for dead: what it has is theirs."""
        log.error("this server stood still and was taken out: it begins anew")
        self._store.change_server_id(new_server_id())
        self._server.drop_links_and_jobs()
        self.board_directory.clear()
        self.peer_messages.change_server_id(self._store.server_id)
        self._store.register_server(self._server.address)
        self._reload()

    def _poll_outcomes(self) -> None:
        self._timers["look"] = self._loop.call_later(OUTCOME_POLL_SECONDS, self._poll_outcomes)
        self._call_guarded(self.remote_jobs.poll_outcomes)

    @property
    def refused_writes(self) -> int:
        """How many writes were refused, since the job or the board was another server's."""
        return self._store.refused_writes

    # What callers ask that is not here

    def locate_jobs(self, jobs: Iterable[int]) -> list[tuple[int, str, str]]:
        """Return where open jobs are that this server does not know: job, board, server."""
        numbers = [number for number in jobs if 0 < number <= MAX_JOB_ID][: limits.REPLY_JOBS]
        return self._store.locate_jobs(numbers) if numbers else []

    def interrupt_jobs(self, places: Iterable[tuple[int, str, str]]) -> None:
        """Have jobs interrupted that are other servers'."""
        for number, _, server in places:
            self.peer_messages.send(server, "interrupt", {"jobs": [number]})

    def stop_program(self, board: Board) -> bool:
        """Ask a board to end its own program, wherever it is; return whether it is there."""
        if board.link is None and board.online and board.remote_state is not None:
            self.peer_messages.send(board.remote_state.server, "stop", {"board": board.id})
            return True
        return self._server.dispatch.stop_program(board)

    def _on_stop_program(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        board = self._server.registry.by_id.get(head["board"])
        if board is not None:
            self._server.dispatch.stop_program(board)

    async def describe_jobs(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what all servers know of jobs: each once, by the one that knows best."""
        told = [
            self._describe_local_jobs(),
            *(each["lines"] for each in await self._request_all("lines", {})),
        ]
        best: dict[int, tuple[str, dict[str, Any], int]] = {}
        for board_id, line, sure in itertools.chain(*told):
            if line["job"] not in best or sure > best[line["job"]][2]:
                best[line["job"]] = (board_id, line, sure)
        ended = {number: line["state"] == "ended" for number, (_, line, _) in best.items()}
        order = sorted(best, key=lambda number: (ended[number], -number))
        return [best[number][:2] for number in order]

    def _describe_local_jobs(self) -> list[tuple[str, dict[str, Any], int]]:
        """Return jobs' lines, each with how sure it is: who has a job knows more of it."""
        here = self._server.dispatch.jobs
        return [
            (board_id, line, 2 if line["state"] == "ended" else not here[line["job"]].owner)
            for board_id, line in self._server.dispatch.describe_jobs()[: limits.REPLY_JOBS]
        ]

    async def describe_job(self, number: int) -> dict[str, Any] | None:
        """Return a job that another server knows, with its output's tail."""
        told = await self._request_all("show", {"job": number})
        return next((each["job"] for each in told if each["job"]), None)

    async def _request_all(self, op: str, head: dict[str, Any]) -> list[dict[str, Any]]:
        asks = [
            self.peer_messages.request(server, op, head)
            for server in self.servers
            if server != self._store.server_id
        ]
        replies = await asyncio.gather(*asks, return_exceptions=True)
        return [reply[0] for reply in replies if not isinstance(reply, BaseException)]

    def _on_describe_jobs(self, _sender: str, _head: dict[str, Any], _payload: bytes) -> Any:
        return {"lines": self._describe_local_jobs()}, b""

    def _on_describe_job(self, _sender: str, head: dict[str, Any], _payload: bytes) -> Any:
        dispatch, number = self._server.dispatch, head["job"]
        job = dispatch.jobs.get(number) or dispatch.recent_jobs.get(number)
        return {"job": job.describe_with_output() if job else None}, b""

    def leave(self) -> None:
        """Be none of the servers any more: the others need not wait to know."""
        for timer in self._timers.values():
            timer.cancel()
        self.board_directory.close()
        self._call_guarded(self._store.unregister_server)
        self.peer_messages.flush()

    async def close(self) -> None:
        """Let go of the bus."""
        await self.peer_messages.pubsub.close()
