"""The other servers of one fleet: what this one is among them, and how it notices who is gone.

Each says in the store, again and again, that it is there. One that has not for ``lost_after``
is taken out by the others: its boards have dialled them by then, and its jobs are theirs. When it
wakes up, it finds itself taken out, drops all its links and begins anew under another id.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any

from cloudmanager.errors import ServerError

from .bus import Bus
from .guests import Guests
from .post import Post
from .presence import Presence
from .shared_store import SharedStore

if TYPE_CHECKING:
    import asyncio

    from .app import Server

log = logging.getLogger("cm_server")

BEATS = 5  # in the time after which a server is taken for gone
LOOK_SECONDS = 1.0  # between two looks at what became of jobs elsewhere
READ_SECONDS = 60.0  # between two readings of all boards and tokens
READ_ALONE_SECONDS = 5.0  # while the bus is away


def new_server_id() -> str:
    """Return a fresh id for a server: 16 hex digits."""
    return secrets.token_hex(8)


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
        self.guests = Guests(server.dispatch, store, server.registry, server.contents, self.post)
        store.epoch_for = self.presence.epoch_for
        store.on_change = self.presence.tell_rows
        self.servers: dict[str, str] = {}  # that are there: id and address
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._read_at = 0.0

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

    async def close(self) -> None:
        """Leave: the others need not wait to know."""
        for timer in self._timers.values():
            timer.cancel()
        self._server.dispatch.stop()
        self.guests.close()
        self.presence.tell()
        self._guarded(self._store.leave)
        self.post.flush()
        await self.post.bus.close()
