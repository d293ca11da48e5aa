"""Two servers of one fleet in this event loop."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cloudmanager.protocol import wire
from cm_server.cluster.membership import Cluster
from cm_server.cluster.pubsub import InProcessBroker
from cm_server.store.shared_store import SharedStore

from .peers import FakeBoard, Identity, Service, running_service

DEAD_AFTER = 20.0  # seconds: a busy machine keeps a server from its heartbeat for longer than 1 s


class Two:
    """Two servers; boards are enrolled at A."""

    def __init__(self, a: Service, b: Service, hub: InProcessBroker | None) -> None:
        self.a, self.b, self.hub = a, b, hub

    async def enrol(self, *names: str) -> list[Identity]:
        boards = self.a.enrol(*names)
        await self.b.until(lambda: set(names) <= self.b.server.registry.by_name.keys())
        return boards

    async def seen(self, name: str = "lab-1", state: str = "idle") -> None:
        """Wait until both servers report a state of a board."""
        for service in (self.a, self.b):
            await service.until(lambda: service.state(name) == state)  # noqa: B023

    async def board_at_b(self, **reported: Any) -> tuple[Identity, FakeBoard]:
        """Enrol lab-1 and connect it to server B; return its identity and the board."""
        (identity,) = await self.enrol("lab-1")
        board = await FakeBoard.join(self.b, identity, **reported)
        await self.seen()
        return identity, board


async def run(board: FakeBoard) -> wire.Message:
    """Return the next cell that a board receives."""
    message = await board.next()
    assert message.op == wire.EXEC, message
    return message


def others_of(service: Service) -> Cluster:
    cluster = service.server.cluster
    assert isinstance(cluster, Cluster)
    return cluster


def store_of(service: Service) -> SharedStore:
    store = service.store
    assert isinstance(store, SharedStore)
    return store


def _is_connected(cluster: Cluster, servers: int = 2) -> bool:
    """Return whether a server is connected to the bus and knows the other ones."""
    return cluster.peer_messages.pubsub.connected and len(cluster.servers) == servers


@contextlib.asynccontextmanager
async def two_servers(
    folder: Path,
    where: Path | str,
    nats_url: str = "",
    *,
    dead_after: float = DEAD_AFTER,
    **environment: Any,
) -> AsyncIterator[Two]:
    """Run two servers with a shared store.

    Args:
        folder: where each gets its own folder.
        where: the store: a path or a database URL.
        nats_url: the bus; without one, an in-process broker is used.
        dead_after: seconds without heartbeat after which a server is removed by the other.
        environment: fields of ``Environment`` of both.
    """
    hub = None if nats_url else InProcessBroker()
    settings: dict[str, Any] = {
        **environment,
        "store": where,
        "lost_after": dead_after,
        "bus": nats_url or None,
    }
    for name in "ab":
        (folder / name).mkdir()
    async with (
        running_service(folder / "a", pubsub=hub.new_client() if hub else None, **settings) as a,
        running_service(folder / "b", pubsub=hub.new_client() if hub else None, **settings) as b,
    ):
        for service in (a, b):
            await others_of(service)._send_heartbeat()  # the first one did not know the second
            await service.until(functools.partial(_is_connected, others_of(service)))
        yield Two(a, b, hub)


@contextlib.asynccontextmanager
async def three_servers(folder: Path, store: str, nats_url: str) -> AsyncIterator[list[Service]]:
    """Run three servers on a PostgreSQL and a NATS."""
    settings: dict[str, Any] = {"store": store, "lost_after": 10.0, "bus": nats_url}
    async with contextlib.AsyncExitStack() as stack:
        services = []
        for name in "abc":
            (folder / name).mkdir()
            running = running_service(folder / name, **settings)
            services.append(await stack.enter_async_context(running))
        for service in services:
            await others_of(service)._send_heartbeat()
            await service.until(functools.partial(_is_connected, others_of(service), 3))
        yield services
