"""What carries messages between servers: in one process, or NATS. They may be lost.

Nothing here is what a job's outcome depends on: that is the store's. So who cannot be reached
is not waited for, and what cannot be sent now is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

log = logging.getLogger("cm_server")

RETRY_SECONDS = 0.25  # between two tries to reach NATS
CLOSE_SECONDS = 1.0  # that the last letters have to leave
LOOK_SECONDS = 0.1  # between two looks at whether it is there
PING_SECONDS = 2  # between two pings to it; with two unanswered it is away
WAITING_BYTES = 64 * 1024 * 1024  # for NATS; more is dropped


class Bus(Protocol):
    """One server's access.

    Attributes:
        up: whether messages go through, as far as is known.
        waiting: bytes that have not left yet.
    """

    up: bool
    waiting: int

    def open(self, take: Callable[[bytes], None], changed: Callable[[bool], None]) -> None:
        """Begin; ``changed`` is told whether the bus is there."""

    def listen(self, subject: str) -> None:
        """Take what is published for a subject, now and whenever the bus is there."""

    def publish(self, subject: str, data: bytes) -> None:
        """Send to all that take this subject."""

    async def close(self) -> None:
        """Let go of it."""


class Hub:
    """A bus for servers in one process, and one event loop."""

    def __init__(self) -> None:
        self.members: list[HubBus] = []

    def bus(self) -> HubBus:
        """Return one server's access."""
        return HubBus(self)

    def set_up(self, up: bool) -> None:
        """Lose the bus, or have it back."""
        for member in self.members:
            member.up = up
            member.changed(up)


class HubBus:
    """One server's access to a ``Hub``."""

    def __init__(self, hub: Hub) -> None:
        self.up = True
        self.waiting = 0
        self._hub = hub
        self._subjects: list[str] = []
        self._take: Callable[[bytes], None] = lambda _data: None
        self.changed: Callable[[bool], None] = lambda _up: None

    def open(self, take: Callable[[bytes], None], changed: Callable[[bool], None]) -> None:
        """Begin."""
        self._take, self.changed = take, changed
        self._hub.members.append(self)
        changed(True)

    def listen(self, subject: str) -> None:
        """Take what is published for a subject."""
        self._subjects.append(subject)

    def publish(self, subject: str, data: bytes) -> None:
        """Send, unless the bus is lost."""
        for member in self._hub.members if self.up else ():
            if subject in member._subjects:
                asyncio.get_running_loop().call_soon(member._take, data)

    async def close(self) -> None:
        """End."""
        with contextlib.suppress(ValueError):
            self._hub.members.remove(self)


class NatsBus:
    """One server's access to NATS.

    Args:
        url: such as ``tls://user:password@host:4222``; several with commas between.
    """

    def __init__(self, url: str) -> None:
        self.up = self._closing = False
        self.waiting = 0
        self._url = url
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._more = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._nats: Any = None
        self._wanted: list[str] = []  # subjects that NATS does not know of yet
        self._take: Callable[[bytes], None] = lambda _data: None
        self._changed: Callable[[bool], None] = lambda _up: None

    def open(self, take: Callable[[bytes], None], changed: Callable[[bool], None]) -> None:
        """Begin, in the background; NATS need not be there."""
        self._take, self._changed = take, changed
        self._tasks = [asyncio.ensure_future(each()) for each in (self._keep, self._pump)]

    def listen(self, subject: str) -> None:
        """Take what is published for a subject, from the moment when NATS is there."""
        self._wanted.append(subject)

    async def _keep(self) -> None:
        """Connect, take what is to be taken, and see again and again whether NATS is there."""
        while True:
            try:
                if self._nats is None:
                    self._nats = await self._connect()
                while self._wanted and self._nats.is_connected:
                    await self._subscribe(self._wanted[0])
                    await self._nats.flush(CLOSE_SECONDS)  # NATS knows of it now
                    del self._wanted[0]
            except Exception as error:  # of many kinds: NATS is away
                log.debug("the bus is away: %s", error)
            self._set_up(self._nats is not None and self._nats.is_connected)
            await asyncio.sleep(LOOK_SECONDS)

    async def _connect(self) -> Any:
        from nats.aio.client import Client

        async def on_change() -> None:
            self._set_up(client.is_connected)

        async def on_error(error: Exception) -> None:
            log.debug("the bus: %s", error)

        client = Client()
        try:
            await client.connect(
                self._url.split(","),
                max_reconnect_attempts=-1,
                reconnect_time_wait=RETRY_SECONDS,  # type: ignore[arg-type]  # it may be a float
                ping_interval=PING_SECONDS,
                max_outstanding_pings=2,
                reconnected_cb=on_change,
                disconnected_cb=on_change,
                error_cb=on_error,
                no_echo=True,
            )
        except BaseException:  # it leaves no socket behind
            with contextlib.suppress(Exception):
                await client.close()
            raise
        return client

    async def _subscribe(self, subject: str) -> None:
        async def on_message(message: Any) -> None:
            self._take(message.data)

        await self._nats.subscribe(subject, cb=on_message, pending_bytes_limit=2 * WAITING_BYTES)

    def _set_up(self, up: bool) -> None:
        if up != self.up and not self._closing:
            level = logging.INFO if up else logging.WARNING
            log.log(level, "the bus is %s", "up" if up else "away")
            self.up = up
            self._changed(up)

    def publish(self, subject: str, data: bytes) -> None:
        """Send, or drop it where NATS is away or does not keep up."""
        if self.up and self.waiting < WAITING_BYTES:
            self._outbox.append((subject, data))
            self.waiting += len(data)
            self._more.set()

    async def _left(self) -> None:
        while self.waiting and self.up:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.01)

    async def _pump(self) -> None:
        """Hand what waits to NATS, which may take its time."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._outbox:
                subject, data = self._outbox.popleft()
                with contextlib.suppress(Exception):  # of many kinds: NATS is away
                    await self._nats.publish(subject, data)
                self.waiting -= len(data)

    async def close(self) -> None:
        """Hang up, once what waits has left."""
        self._closing = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._left(), CLOSE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._nats is not None and not self._nats.is_closed:
            with contextlib.suppress(Exception):  # it is away: then nobody is told
                await asyncio.wait_for(self._nats.close(), CLOSE_SECONDS)
