"""The bus between servers: publish and subscribe, within a process or with NATS.

Messages may be lost. No outcome of a job depends on them, because outcomes are in the store.
Therefore nothing waits for the bus, and what cannot be sent now is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

log = logging.getLogger("cm_server")

RETRY_SECONDS = 0.25  # between two attempts to connect to NATS
DRAIN_SECONDS = 1.0  # to send the last messages before closing
POLL_SECONDS = 0.1  # between two checks of the connection
PING_SECONDS = 2  # between two pings; after two without answer the connection is closed
MAX_PENDING_BYTES = 64 * 1024 * 1024  # not sent to NATS yet; more is dropped


class PubSub(Protocol):
    """One server's connection to the bus.

    Attributes:
        connected: whether the connection is up, as far as is known.
        pending_bytes: bytes that are waiting to be sent.
    """

    connected: bool
    pending_bytes: int

    def start(
        self, on_message: Callable[[bytes], None], on_connection_change: Callable[[bool], None]
    ) -> None:
        """Connect.

        Args:
            on_message: called with each message of the subscribed subjects.
            on_connection_change: called with whether the bus is connected, after each change.
        """

    def subscribe(self, subject: str) -> None:
        """Receive the messages of a subject, now and after each reconnect."""

    def publish(self, subject: str, data: bytes) -> None:
        """Send a message to all subscribers of a subject, or drop it."""

    async def close(self) -> None:
        """Close the connection."""


class NoPubSub:
    """No bus: this server can be the only one that uses its store."""

    def __init__(self) -> None:
        self.connected = False
        self.pending_bytes = 0

    def start(
        self, _on_message: Callable[[bytes], None], _on_connection_change: Callable[[bool], None]
    ) -> None:
        """Do nothing."""

    def subscribe(self, _subject: str) -> None:
        """Do nothing: no message arrives."""

    def publish(self, _subject: str, _data: bytes) -> None:
        """Drop a message."""

    async def close(self) -> None:
        """Do nothing."""


class InProcessBroker:
    """A bus for servers in one process and one event loop."""

    def __init__(self) -> None:
        self.members: list[InProcessPubSub] = []

    def new_client(self) -> InProcessPubSub:
        """Return a connection for one server."""
        return InProcessPubSub(self)

    def set_connected(self, connected: bool) -> None:
        """Simulate that the bus goes down, or is back."""
        for member in self.members:
            member.connected = connected
            member.on_connection_change(connected)


class InProcessPubSub:
    """One server's connection to an ``InProcessBroker``."""

    def __init__(self, broker: InProcessBroker) -> None:
        self.connected = True
        self.pending_bytes = 0
        self._broker = broker
        self._subjects: list[str] = []
        self._on_message: Callable[[bytes], None] = lambda _data: None
        self.on_connection_change: Callable[[bool], None] = lambda _connected: None

    def start(
        self, on_message: Callable[[bytes], None], on_connection_change: Callable[[bool], None]
    ) -> None:
        """Connect."""
        self._on_message, self.on_connection_change = on_message, on_connection_change
        self._broker.members.append(self)
        on_connection_change(True)

    def subscribe(self, subject: str) -> None:
        """Receive the messages of a subject."""
        self._subjects.append(subject)

    def publish(self, subject: str, data: bytes) -> None:
        """Send a message to all subscribers of a subject; drop it while the bus is down."""
        for member in self._broker.members if self.connected else ():
            if subject in member._subjects:
                asyncio.get_running_loop().call_soon(member._on_message, data)

    async def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(ValueError):
            self._broker.members.remove(self)


class NatsPubSub:
    """One server's connection to NATS.

    Args:
        url: such as ``tls://user:password@host:4222``; several are separated by commas.
    """

    def __init__(self, url: str) -> None:
        self.connected = self._closing = False
        self._ended = False  # the tasks end at their next step
        self.pending_bytes = 0
        self._url = url
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._outbox_filled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._client: Any = None
        self._subjects: list[str] = []
        self._subscribed = 0  # how many of them NATS has
        self._on_message: Callable[[bytes], None] = lambda _data: None
        self._on_connection_change: Callable[[bool], None] = lambda _connected: None

    def start(
        self, on_message: Callable[[bytes], None], on_connection_change: Callable[[bool], None]
    ) -> None:
        """Start connecting in the background; NATS may be down."""
        self._on_message, self._on_connection_change = on_message, on_connection_change
        self._tasks = [
            asyncio.ensure_future(self._maintain_connection()),
            asyncio.ensure_future(self._publish_outbox()),
        ]

    def subscribe(self, subject: str) -> None:
        """Receive the messages of a subject as soon as NATS is connected."""
        self._subjects.append(subject)

    async def _maintain_connection(self) -> None:
        """Connect, subscribe, and check the connection until the end."""
        while not self._ended:
            try:
                if self._client is None:
                    self._client = await self._connect()
                while self._subscribed < len(self._subjects) and self._client.is_connected:
                    await self._subscribe_at_nats(self._subjects[self._subscribed])
                    await self._client.flush(DRAIN_SECONDS)  # returns when NATS has it
                    self._subscribed += 1
            except TimeoutError:
                # Of a flush that was given up, the late answer ends nats-py's reading, while it
                # seems to be connected (``Client._process_pong``).
                await self._discard_client()
            except Exception as error:  # the client raises many kinds if NATS is down
                log.debug("the bus is down: %s", error)
            self._set_connected(self._client is not None and self._client.is_connected)
            await asyncio.sleep(POLL_SECONDS)

    async def _connect(self) -> Any:
        from nats.aio.client import Client

        async def on_change() -> None:
            self._set_connected(client.is_connected)

        async def on_error(error: Exception) -> None:
            log.debug("error of the bus: %s", error)

        client = Client()
        try:
            await client.connect(
                self._url.split(","),
                max_reconnect_attempts=-1,
                reconnect_time_wait=RETRY_SECONDS,  # type: ignore[arg-type]  # a float works
                ping_interval=PING_SECONDS,
                max_outstanding_pings=2,
                reconnected_cb=on_change,
                disconnected_cb=on_change,
                error_cb=on_error,
                no_echo=True,
            )
        except BaseException:  # cancelled, too: close its sockets
            with contextlib.suppress(Exception):
                await client.close()
            raise
        return client

    async def _discard_client(self) -> None:
        """Close the connection, if there is one; the next one gets all subscriptions."""
        client, self._client = self._client, None
        self._subscribed = 0
        if client is not None and not client.is_closed:
            with contextlib.suppress(Exception):  # NATS is down: nothing to close
                await asyncio.wait_for(client.close(), DRAIN_SECONDS)

    async def _subscribe_at_nats(self, subject: str) -> None:
        async def on_message(message: Any) -> None:
            self._on_message(message.data)

        await self._client.subscribe(
            subject, cb=on_message, pending_bytes_limit=2 * MAX_PENDING_BYTES
        )

    def _set_connected(self, connected: bool) -> None:
        if connected != self.connected and not self._closing:
            level = logging.INFO if connected else logging.WARNING
            log.log(level, "the bus is %s", "up" if connected else "down")
            self.connected = connected
            self._on_connection_change(connected)

    def publish(self, subject: str, data: bytes) -> None:
        """Queue a message; drop it if NATS is down or too slow."""
        if self.connected and self.pending_bytes < MAX_PENDING_BYTES:
            self._outbox.append((subject, data))
            self.pending_bytes += len(data)
            self._outbox_filled.set()

    async def _wait_drained(self) -> None:
        while self.pending_bytes and self.connected:  # noqa: ASYNC110 - only while closing
            await asyncio.sleep(0.01)

    async def _publish_outbox(self) -> None:
        """Send queued messages to NATS, which may block, until the end."""
        while not self._ended:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            while self._outbox and not self._ended:
                subject, data = self._outbox.popleft()
                with contextlib.suppress(Exception):  # many kinds: NATS is down
                    await self._client.publish(subject, data)
                self.pending_bytes -= len(data)

    async def close(self) -> None:
        """Send queued messages, for at most ``DRAIN_SECONDS``, then disconnect."""
        self._closing = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wait_drained(), DRAIN_SECONDS)
        # nats-py swallows a cancellation while it flushes (``Client._flush_pending``), and so does
        # asyncio.wait_for before Python 3.12 if its result comes at the same moment.
        self._ended = True
        self._outbox_filled.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._discard_client()
