"""PostgreSQL stands still under two servers: what was sent goes on, what is new waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cloudmanager.protocol import wire
from tests.cm_server.pairs import Two, others_of, run, two_servers
from tests.cm_server.peers import FakeBoard, FakeCaller, within
from tests.engines import Postgres


@contextlib.contextmanager
def standing_still(postgres: Postgres) -> Iterator[None]:
    postgres.pause()
    try:
        yield
    finally:
        postgres.wake()


@pytest.fixture
async def pair(soon: None, tmp_path: Path, postgres: Postgres) -> AsyncIterator[Two]:
    async with two_servers(tmp_path, postgres.new(), dead_after=20) as pair:
        yield pair


async def test_only_new_cells_wait_on_boards_of_another_server_too(pair: Two, postgres: Postgres):
    identities = await pair.enrol(*(f"lab-{number}" for number in range(4)))
    async with contextlib.AsyncExitStack() as stack:
        boards = [
            await stack.enter_async_context(await FakeBoard.join(pair.b, identity))
            for identity in identities
        ]
        for number in range(4):
            await pair.seen(f"lab-{number}")
        asking, stopped, ending, new = boards
        caller = await stack.enter_async_context(await FakeCaller.join(pair.a))
        other = await stack.enter_async_context(await FakeCaller.join(pair.a))
        (first,) = await caller.submit("lab-0", answers=True)
        (second,) = await caller.submit("lab-1")
        (third,) = await caller.submit("lab-2")
        for board in (asking, stopped, ending):
            await run(board)
        for service in (pair.a, pair.b):
            await service.until(lambda: len(pair.b.server.dispatch.jobs) == 3)
            assert service.server.store_queue.drain()
        with standing_still(postgres):
            message = wire.pack_submit(next(other.refs), {"target": "lab-3"}, b"1")
            await other.socket.send(message)
            await pair.a.until(lambda: pair.a.server.store_queue.waiting_seconds)
            await asking.send(wire.OUTPUT, b"hello", job=first)
            output = await caller.event()
            assert (output.op, output.job, output.payload) == (wire.OUTPUT, first, b"hello")
            await asking.send(wire.INPUT, b"? ", job=first)
            assert (await caller.event()).op == wire.INPUT
            await caller.send(wire.ANSWER, b"yes", job=first)
            assert (await asking.next()).payload == b"yes"
            await within(await new.socket.ping())
            assert await caller.ask("interrupt", jobs=[second]) == {"reply": 1}
            assert (await stopped.next()).op == wire.INTERRUPT
            await stopped.end(second, "interrupted", rest=b"KeyboardInterrupt")
            assert await caller.ending(second) == ("interrupted", "KeyboardInterrupt")
            await ending.end(third, rest=b"3")
            assert await caller.ending(third) == ("ok", "3")
            await asyncio.sleep(0.05)
            assert not other.events
            with pytest.raises(TimeoutError):  # nothing was sent to the new cell's board
                await asyncio.wait_for(new.socket.recv(), 0.05)
        exec_message = await run(new)
        await new.end(exec_message.job, rest=b"4")
        assert await other.ending(exec_message.job) == ("ok", "4")
        await asking.end(first, rest=b"1")
        assert await caller.ending(first) == ("ok", "1")
        rows = [pair.b.store.job(job) for job in (first, second, third, exec_message.job)]
        assert [row and row.status for row in rows] == ["ok", "interrupted", "ok", "ok"]
        assert all(len(others_of(service).servers) == 2 for service in (pair.a, pair.b))
