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
from cm_server.auth.tokens import LOCAL
from cm_server.jobs.jobs import MAX_JOB
from cm_server.store.shared_store import SharedStore

from .board_directory import Presence
from .hosted_jobs import Guests
from .peer_messages import Post
from .pubsub import Bus

if TYPE_CHECKING:
    from cm_server.app import Server
    from cm_server.jobs.registry import Board

log = logging.getLogger("cm_server")

BEATS = 5  # in the time after which a server is taken for gone
LOOK_SECONDS = 1.0  # between two looks at what became of jobs elsewhere
READ_SECONDS = 60.0  # between two readings of all boards and tokens
READ_ALONE_SECONDS = 5.0  # while the bus is away


def new_server_id() -> str:
    """Return a fresh id for a server: 16 hex digits."""
    return secrets.token_hex(8)


def local_name(home: Path) -> str:
    """Return what a server's local user's token is called: each server has one of its own."""
    path = home / "server.id"
    if not path.exists():
        config.write_private(path, new_server_id()[:8])
    return f"{LOCAL}-{path.read_text().strip()}"


class Others:
    """This server among the others.

    Args:
        server: this one.
        store: which all of them share.
        bus: which carries their letters.
        dead_after: seconds of silence after which a server is gone.
        loop: which calls the beats.
    """

    def __init__(
        self,
        server: Server,
        store: SharedStore,
        bus: Bus,
        dead_after: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._server, self._store, self._loop = server, store, loop
        self._dead_after = dead_after
        key = store.share("bus", secrets.token_bytes(32))
        fleet = store.share("fleet", secrets.token_bytes(8)).hex()
        self.post = Post(bus, fleet, key, store.server)
        self.elsewhere = server.dispatch.meet(store, self.post)
        self.presence = Presence(server, store, self.post, self.elsewhere, loop.call_later)
        self.guests = Guests(server.dispatch, store, server.registry, self.post)
        store.epoch_for = self.presence.epoch_for
        store.on_change = self.presence.tell_rows
        self.servers: dict[str, str] = {}  # that are there: id and address
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._read_at = 0.0
        self.post.handlers |= {
            "stop": self._on_stop,
            "lines": self._on_lines,
            "show": self._on_show,
        }

    def open(self) -> None:
        """Be one of the servers."""
        self._store.join(self._server.address)
        self.post.open(self._on_bus)
        self._beat()
        self._look()

    def _on_bus(self, up: bool) -> None:
        """Ask what was missed, when the bus is back."""
        if up:
            self._guarded(self._read)

    def _guarded(self, act: Any) -> None:
        """Act; where the store is away, the next beat tries again."""
        try:
            act()
        except ServerError as error:
            log.warning("what other servers do is not known: %s", error.reason)

    def _read(self) -> None:
        self._read_at = self._loop.time()
        self.presence.refresh_all()
        self.presence.ask()

    def _beat(self) -> None:
        seconds = self._dead_after / BEATS
        self._timers["beat"] = self._loop.call_later(seconds, self._beat)
        self._guarded(self._say_and_hear)

    def _say_and_hear(self) -> None:
        servers = self._store.beat(self._dead_after)
        if self._store.server not in servers:
            self._begin_anew()
            return
        for server in self.servers.keys() - servers.keys():
            log.warning("the server %s is gone", self.servers[server])
            self.presence.lost(server)
            self.elsewhere.lost(server)
            self.guests.lost(server)
        self.servers = servers
        self._server.spread_changed()
        self._server.dispatch.inherit(self._store.inherit())
        self.presence.tell()
        alone = READ_SECONDS if self.post.bus.up else READ_ALONE_SECONDS
        if self._loop.time() - self._read_at > alone:
            self._read()

    def _begin_anew(self) -> None:
        """Find that the others took this server for dead: what it has is theirs."""
        log.error("this server stood still and was taken out: it begins anew")
        self._store.begin_anew(new_server_id())
        self._server.drop_all()
        self.presence.begin_anew()
        self.post.begin_anew(self._store.server)
        self._store.join(self._server.address)
        self._read()

    def _look(self) -> None:
        self._timers["look"] = self._loop.call_later(LOOK_SECONDS, self._look)
        self._guarded(self.elsewhere.look)

    @property
    def refused(self) -> int:
        """How many writes were refused, since the job or the board was another server's."""
        return self._store.refused

    # What callers ask that is not here

    def places(self, jobs: Iterable[int]) -> list[tuple[int, str, str]]:
        """Return where open jobs are that this server does not know: job, board, server."""
        numbers = [number for number in jobs if 0 < number <= MAX_JOB][: limits.REPLY_JOBS]
        return self._store.places(numbers) if numbers else []

    def interrupt(self, places: Iterable[tuple[int, str, str]]) -> None:
        """Have jobs interrupted that are other servers'."""
        for number, _, server in places:
            self.post.send(server, "interrupt", {"jobs": [number]})

    def stop_program(self, board: Board) -> bool:
        """Ask a board to end its own program, wherever it is; return whether it is there."""
        if board.link is None and board.online and board.away is not None:
            self.post.send(board.away.server, "stop", {"board": board.id})
            return True
        return self._server.dispatch.stop_program(board)

    def _on_stop(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        board = self._server.registry.by_id.get(head["board"])
        if board is not None:
            self._server.dispatch.stop_program(board)

    async def lines(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what all servers know of jobs: each once, by the one that knows best."""
        told = [self._lines(), *(each["lines"] for each in await self._ask_all("lines", {}))]
        best: dict[int, tuple[str, dict[str, Any], int]] = {}
        for board_id, line, sure in itertools.chain(*told):
            if line["job"] not in best or sure > best[line["job"]][2]:
                best[line["job"]] = (board_id, line, sure)
        ended = {number: line["state"] == "ended" for number, (_, line, _) in best.items()}
        order = sorted(best, key=lambda number: (ended[number], -number))
        return [best[number][:2] for number in order]

    def _lines(self) -> list[tuple[str, dict[str, Any], int]]:
        """Return jobs' lines, each with how sure it is: who has a job knows more of it."""
        here = self._server.dispatch.jobs
        return [
            (board_id, line, 2 if line["state"] == "ended" else not here[line["job"]].away)
            for board_id, line in self._server.dispatch.lines()[: limits.REPLY_JOBS]
        ]

    async def show(self, number: int) -> dict[str, Any] | None:
        """Return a job that another server knows, with its output's tail."""
        told = await self._ask_all("show", {"job": number})
        return next((each["job"] for each in told if each["job"]), None)

    async def _ask_all(self, op: str, head: dict[str, Any]) -> list[dict[str, Any]]:
        asks = [
            self.post.ask(server, op, head)
            for server in self.servers
            if server != self._store.server
        ]
        replies = await asyncio.gather(*asks, return_exceptions=True)
        return [reply[0] for reply in replies if not isinstance(reply, BaseException)]

    def _on_lines(self, _sender: str, _head: dict[str, Any], _payload: bytes) -> Any:
        return {"lines": self._lines()}, b""

    def _on_show(self, _sender: str, head: dict[str, Any], _payload: bytes) -> Any:
        dispatch, number = self._server.dispatch, head["job"]
        job = dispatch.jobs.get(number) or dispatch.recent.get(number)
        return {"job": job.show() if job else None}, b""

    def leave(self) -> None:
        """Be none of the servers any more: the others need not wait to know."""
        for timer in self._timers.values():
            timer.cancel()
        self.presence.close()
        self._guarded(self._store.leave)
        self.post.flush()

    async def close(self) -> None:
        """Let go of the bus."""
        await self.post.bus.close()
