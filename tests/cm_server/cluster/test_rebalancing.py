"""A server with too many boards lets idle ones connect again; nobody who uses boards notices."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cm_server.cluster.rebalancing import Pace
from tests.cm_server.pairs import Two, others_of, run, two_servers
from tests.cm_server.peers import FakeBoard, FakeCaller, Identity, Service

#: The share has no tolerance but that of chance. Servers do not ask by themselves meanwhile.
FAST = Pace(
    settled=0, between=60, quiet=0, again=60, absent=60, pause=600, begin=1, group=1, judged=4
)
BOARDS = 12  # of two servers; 6 + 2 √6 = 10.9 at one server are chance


@pytest.fixture
async def pair(soon: None, tmp_path: Path) -> AsyncIterator[Two]:
    """Two servers that do not take each other for dead on a busy machine."""
    async with two_servers(tmp_path, tmp_path / "shared.db", dead_after=20) as pair:
        yield pair


class Lab:
    """Boards that connect again to the server that ``balancer`` chooses when their link ends."""

    def __init__(self, pair: Two, balancer: Callable[[], Service | None]) -> None:
        self.pair, self.balancer = pair, balancer
        self.boards: dict[str, FakeBoard] = {}
        self.asked: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()

    async def connect(self, identity: Identity, server: Service) -> None:
        board = await FakeBoard.join(server, identity)
        self.boards[identity.name] = await self._stack.enter_async_context(board)

    async def watch(self, identity: Identity) -> None:
        """Connect a board again when its server has closed the link without a close frame."""
        while True:
            socket = self.boards[identity.name].socket
            await socket.wait_closed()
            assert socket.close_code == 1006
            self.asked.append(identity.name)
            while (server := self.balancer()) is None:  # noqa: ASYNC110 - a variable of a test
                await asyncio.sleep(0.002)
            await self.connect(identity, server)

    def start(self, identities: list[Identity]) -> None:
        self._tasks = [asyncio.ensure_future(self.watch(identity)) for identity in identities]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def lab_at_a(pair: Two, balancer: Callable[[], Service | None]) -> AsyncIterator[Lab]:
    """Yield a lab whose boards are all connected to server A."""
    lab = Lab(pair, balancer)
    identities = await pair.enrol(*(f"lab-{number}" for number in range(1, BOARDS + 1)))
    for identity in identities:
        await lab.connect(identity, pair.a)
    await pair.b.until(lambda: held(pair.b, online=True) == BOARDS)
    lab.start(identities)
    try:
        yield lab
    finally:
        await lab.close()


def held(service: Service, *, online: bool = False) -> int:
    """Return how many boards are connected to a server, or to any that it knows of."""
    boards = service.server.registry.by_id.values()
    return sum(board.online if online else board.link is not None for board in boards)


def rebalance(service: Service, **changes: Any) -> None:
    """Let a server ask boards once, as if a second had passed."""
    cluster = others_of(service)
    cluster.rebalancer.pace = dataclasses.replace(FAST, **changes)
    cluster.rebalancer._settled_at = cluster.rebalancer._next_at = 0.0
    cluster.rebalancer._servers = set(cluster.servers)
    cluster.rebalancer.tick(cluster.servers, is_complete=True)


async def test_boards_are_shared_after_a_restart(pair: Two):
    async with lab_at_a(pair, lambda: pair.b) as lab:
        rebalance(pair.a)
        await pair.b.until(lambda: held(pair.b) == BOARDS // 2)
        await pair.a.until(lambda: held(pair.a, online=True) == BOARDS)
        for service in (pair.a, pair.b, pair.a):
            rebalance(service)
        await asyncio.sleep(0.1)
        assert (held(pair.a), held(pair.b), len(lab.asked)) == (6, 6, 6)


async def test_few_boards_are_asked_at_a_time_and_each_rarely(pair: Two):
    async with lab_at_a(pair, lambda: pair.a) as lab:
        rebalance(pair.a, group=0.1)
        await pair.a.until(lambda: len(lab.asked) == 2)
        await pair.a.until(lambda: held(pair.a) == BOARDS)
        for _ in range(3):
            rebalance(pair.a)
            await asyncio.sleep(0.1)
            await pair.a.until(lambda: held(pair.a) == BOARDS)
        assert len(lab.asked) == BOARDS, "none is asked twice"


async def test_boards_that_are_used_are_not_asked(pair: Two):
    async with lab_at_a(pair, lambda: pair.b) as lab, await FakeCaller.join(pair.b) as caller:
        jobs = await caller.submit("lab-[1-9]")
        for number in range(1, 10):
            await run(lab.boards[f"lab-{number}"])
        rebalance(pair.a)
        await pair.b.until(lambda: held(pair.b) == 3)
        assert sorted(lab.asked) == ["lab-10", "lab-11", "lab-12"]
        rebalance(pair.a, quiet=60)
        for job, number in zip(jobs, range(1, 10), strict=True):
            await lab.boards[f"lab-{number}"].end(job)
            assert (await caller.ending(job))[0] == "ok"
        rebalance(pair.a, quiet=60)
        await asyncio.sleep(0.1)
        assert len(lab.asked) == 3, "their cells have ended a moment ago"


async def test_nothing_is_asked_where_servers_are_not_settled_or_not_heard(pair: Two):
    async with lab_at_a(pair, lambda: pair.b) as lab:
        cluster = others_of(pair.a)
        rebalance(pair.a, settled=60, group=0)
        cluster.rebalancer.pace = dataclasses.replace(FAST, settled=60)
        cluster.rebalancer.tick(cluster.servers, is_complete=False)
        cluster.rebalancer.tick(cluster.servers, is_complete=True)
        cluster.rebalancer._settled_at = 0.0
        cluster.rebalancer.tick({*cluster.servers, "c" * 16}, is_complete=True)
        cluster.rebalancer.tick({*cluster.servers, "c" * 16}, is_complete=True)
        await asyncio.sleep(0.1)
        assert not lab.asked


async def test_cells_for_a_board_that_connects_again_wait_for_it(pair: Two):
    places: list[Service] = []
    async with (
        lab_at_a(pair, lambda: places[0] if places else None) as lab,
        await FakeCaller.join(pair.a) as here,
        await FakeCaller.join(pair.b) as there,
    ):
        rebalance(pair.a, group=0.01)
        await pair.a.until(lambda: lab.asked)
        (name,) = lab.asked
        assert pair.a.state(name) == "idle"
        assert held(pair.b, online=True) == BOARDS, "others do not see it as offline"
        (first,) = await here.submit(name)
        (second,) = await there.submit(name)
        board_at_b = pair.b.server.registry.by_name[name]
        await pair.b.until(lambda: board_at_b.queue)
        places.append(pair.b)
        await pair.b.until(lambda: held(pair.b) == 1)
        for _ in range(2):
            message = await run(lab.boards[name])
            await lab.boards[name].end(message.job, rest=b"9")
        assert await here.ending(first) == ("ok", "9")
        assert await there.ending(second) == ("ok", "9")


async def test_board_that_does_not_come_back_is_offline_and_ends_it(pair: Two, caplog):
    async with lab_at_a(pair, lambda: None) as lab, await FakeCaller.join(pair.b) as caller:
        # The spread of reconnects is 2 s.
        rebalance(pair.a, group=0.01, absent=-1.7)
        await pair.a.until(lambda: lab.asked)
        (job,) = await caller.submit(lab.asked[0])
        assert (await caller.ending(job))[0] == "offline"
        await pair.b.until(lambda: held(pair.b, online=True) == BOARDS - 1)
        assert "one did not come back" in caplog.text
        assert others_of(pair.a).rebalancer._next_at > time.monotonic() + 500


async def test_it_ends_where_there_is_no_load_balancer(pair: Two, caplog):
    async with lab_at_a(pair, lambda: pair.a) as lab:
        rebalance(pair.a, group=0.33, absent=-1.7)
        await pair.a.until(lambda: "all came back here" in caplog.text)
        assert len(lab.asked) == 4
        assert others_of(pair.a).rebalancer._next_at > time.monotonic() + 500
