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
DRAIN_SECONDS = 1.0  # that the last letters have to leave
POLL_SECONDS = 0.1  # between two looks at whether it is there
PING_SECONDS = 2  # between two pings to it; with two unanswered it is away
MAX_PENDING_BYTES = 64 * 1024 * 1024  # for NATS; more is dropped


class PubSub(Protocol):
    """One server's access.

    Attributes:
        connected: whether messages go through, as far as is known.
        pending_bytes: bytes that have not left yet.
    """

    connected: bool
    pending_bytes: int

    def start(
        self, on_message: Callable[[bytes], None], on_connection_change: Callable[[bool], None]
    ) -> None:
        """Begin; ``on_connection_change`` is told whether the bus is there."""

    def subscribe(self, subject: str) -> None:
        """Take what is published for a subject, now and whenever the bus is there."""

    def publish(self, subject: str, data: bytes) -> None:
        """Send to all that take this subject."""

    async def close(self) -> None:
        """Let go of it."""


class InProcessBroker:
    """A bus for servers in one process, and one event loop."""

    def __init__(self) -> None:
        self.members: list[InProcessPubSub] = []

    def new_client(self) -> InProcessPubSub:
        """Return one server's access."""
        return InProcessPubSub(self)

    def set_connected(self, connected: bool) -> None:
        """Lose the bus, or have it back."""
        for member in self.members:
            member.connected = connected
            member.on_connection_change(connected)


class InProcessPubSub:
    """One server's access to a ``Hub``."""

    def __init__(self, broker: InProcessBroker) -> None:
        self.connected = True
        self.pending_bytes = 0
        self._broker = broker
        self._subjects: list[str] = []
        self._on_message: Callable[[bytes], None] = lambda _data: None
        self.on_connection_change: Callable[[bool], None] = lambda _up: None

    def start(
        self, on_message: Callable[[bytes], None], on_connection_change: Callable[[bool], None]
    ) -> None:
        """Begin."""
        self._on_message, self.on_connection_change = on_message, on_connection_change
        self._broker.members.append(self)
        on_connection_change(True)

    def subscribe(self, subject: str) -> None:
        """Take what is published for a subject."""
        self._subjects.append(subject)

    def publish(self, subject: str, data: bytes) -> None:
        """Send, unless the bus is lost."""
        for member in self._broker.members if self.connected else ():
            if subject in member._subjects:
                asyncio.get_running_loop().call_soon(member._on_message, data)

    async def close(self) -> None:
        """End."""
        with contextlib.suppress(ValueError):
            self._broker.members.remove(self)


class NatsPubSub:
    """One server's access to NATS.

    Args:
        url: such as ``tls://user:password@host:4222``; several with commas between.
    """

    def __init__(self, url: str) -> None:
        self.connected = self._closing = False
        self.pending_bytes = 0
        self._url = url
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._outbox_filled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._client: Any = None
        self._pending_subjects: list[str] = []  # subjects that NATS does not know of yet
        self._on_message: Callable[[bytes], None] = lambda _data: None
        self._on_connection_change: Callable[[bool], None] = lambda _up: None

    def start(
        self, on_message: Callable[[bytes], None], on_connection_change: Callable[[bool], None]
    ) -> None:
        """Begin, in the background; NATS need not be there."""
        self._on_message, self._on_connection_change = on_message, on_connection_change
        self._tasks = [
            asyncio.ensure_future(each())
            for each in (self._maintain_connection, self._publish_outbox)
        ]

    def subscribe(self, subject: str) -> None:
        """Take what is published for a subject, from the moment when NATS is there."""
        self._pending_subjects.append(subject)

    async def _maintain_connection(self) -> None:
        """Connect, take what is to be taken, and see again and again whether NATS is there."""
        while True:
            try:
                if self._client is None:
                    self._client = await self._connect()
                while self._pending_subjects and self._client.is_connected:
                    await self._subscribe_at_nats(self._pending_subjects[0])
                    await self._client.flush(DRAIN_SECONDS)  # NATS knows of it now
                    del self._pending_subjects[0]
            except Exception as error:  # of many kinds: NATS is away
                log.debug("the bus is away: %s", error)
            self._set_connected(self._client is not None and self._client.is_connected)
            await asyncio.sleep(POLL_SECONDS)

    async def _connect(self) -> Any:
        from nats.aio.client import Client

        async def on_change() -> None:
            self._set_connected(client.is_connected)

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

    async def _subscribe_at_nats(self, subject: str) -> None:
        async def on_message(message: Any) -> None:
            self._on_message(message.data)

        await self._client.subscribe(
            subject, cb=on_message, pending_bytes_limit=2 * MAX_PENDING_BYTES
        )

    def _set_connected(self, connected: bool) -> None:
        if connected != self.connected and not self._closing:
            level = logging.INFO if connected else logging.WARNING
            log.log(level, "the bus is %s", "up" if connected else "away")
            self.connected = connected
            self._on_connection_change(connected)

    def publish(self, subject: str, data: bytes) -> None:
        """Send, or drop it where NATS is away or does not keep up."""
        if self.connected and self.pending_bytes < MAX_PENDING_BYTES:
            self._outbox.append((subject, data))
            self.pending_bytes += len(data)
            self._outbox_filled.set()

    async def _wait_drained(self) -> None:
        while self.pending_bytes and self.connected:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.01)

    async def _publish_outbox(self) -> None:
        """Hand what waits to NATS, which may take its time."""
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            while self._outbox:
                subject, data = self._outbox.popleft()
                with contextlib.suppress(Exception):  # of many kinds: NATS is away
                    await self._client.publish(subject, data)
                self.pending_bytes -= len(data)

    async def close(self) -> None:
        """Hang up, once what waits has left."""
        self._closing = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wait_drained(), DRAIN_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None and not self._client.is_closed:
            with contextlib.suppress(Exception):  # it is away: then nobody is told
                await asyncio.wait_for(self._client.close(), DRAIN_SECONDS)
