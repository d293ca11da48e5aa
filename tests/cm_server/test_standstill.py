"""A database that does not answer delays new cells and nothing else: by order, not by time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cloudmanager.protocol import wire
from cm_server.limits import Limits
from tests.engines import Postgres

from .pairs import run
from .peers import FakeBoard, FakeCaller, RawPeer, Service, running_service, within

#: Let the database stand still in the body of a with statement.
StandStill = Callable[[], contextlib.AbstractContextManager[None]]


class Site:
    """A server with five boards, and how its database is made to stand still."""

    def __init__(self, service: Service, boards: list[FakeBoard], stop: StandStill) -> None:
        self.service, self.boards, self.standing_still = service, boards, stop


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock an SQLite file as another program does that writes to it."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextlib.contextmanager
def stopped(postgres: Postgres) -> Iterator[None]:
    postgres.pause()
    try:
        yield
    finally:
        postgres.wake()


@contextlib.asynccontextmanager
async def running_site(service: Service, stop: StandStill) -> AsyncIterator[Site]:
    identities = service.enrol(*(f"lab-{number}" for number in range(5)))
    async with contextlib.AsyncExitStack() as stack:
        boards = [
            await stack.enter_async_context(await FakeBoard.join(service, identity))
            for identity in identities
        ]
        assert service.server.store_queue.drain()
        yield Site(service, boards, stop)


@pytest.fixture(params=["sqlite", "postgresql"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    if request.param == "sqlite":
        async with (
            running_service(tmp_path) as service,
            running_site(service, lambda: locked(tmp_path / "server.db")) as site,
        ):
            yield site
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    async with (
        running_service(tmp_path, store=postgres.new()) as service,
        running_site(service, lambda: stopped(postgres)) as site,
    ):
        yield site


async def health(service: Service) -> dict[str, object]:
    async with await RawPeer.dial(service) as peer:
        peer.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        body: dict[str, object] = json.loads((await peer.answer()).partition("\r\n\r\n")[2])
        return body


async def submit_without_waiting(caller: FakeCaller, target: str) -> None:
    await caller.socket.send(wire.pack_submit(next(caller.refs), {"target": target}, b"1"))


async def test_only_new_cells_wait_for_a_database_that_stands_still(site: Site):
    service, boards = site.service, site.boards
    printing, interrupted, ending, new, pinged = boards
    async with await FakeCaller.join(service) as caller, await FakeCaller.join(service) as other:
        (first,) = await caller.submit("lab-0")
        (second,) = await caller.submit("lab-1")
        (third,) = await caller.submit("lab-2")
        for board in (printing, interrupted, ending):
            await run(board)
        assert service.server.store_queue.drain()
        with site.standing_still():
            await submit_without_waiting(other, "lab-3")
            await service.until(lambda: service.server.store_queue.waiting_seconds)
            await printing.send(wire.OUTPUT, b"hello", job=first)
            output = await caller.event()
            assert (output.op, output.job, output.payload) == (wire.OUTPUT, first, b"hello")
            await within(await pinged.socket.ping())
            assert await caller.ask("interrupt", jobs=[second]) == {"reply": 1}
            assert (await interrupted.next()).op == wire.INTERRUPT
            await interrupted.end(second, "interrupted", rest=b"KeyboardInterrupt")
            assert await caller.ending(second) == ("interrupted", "KeyboardInterrupt")
            await ending.end(third, rest=b"3")
            assert await caller.ending(third) == ("ok", "3")
            assert (await health(service))["status"] in ("ok", "degraded")
            assert (await caller.ask("boards", target="lab-3"))["reply"][0]["state"] == "idle"
            assert not other.events
            with pytest.raises(TimeoutError):  # nothing was sent to the new cell's board
                await asyncio.wait_for(new.socket.recv(), 0.05)
        exec_message = await run(new)
        accepted = await other.event()
        assert accepted.op == wire.ACCEPTED
        assert wire.read_json(accepted.payload)["jobs"] == [[exec_message.job, "lab-3"]]
        await new.end(exec_message.job, rest=b"4")
        assert await other.ending(exec_message.job) == ("ok", "4")
    rows = [service.store.job(job) for job in (second, third, exec_message.job)]
    assert [row and row.status for row in rows] == ["interrupted", "ok", "ok"]
    verbs = [row.verb for row in service.audited() if row.verb in ("submit", "interrupt")]
    assert verbs == ["submit"] * 4 + ["interrupt"]


async def test_next_job_of_a_board_waits_until_the_result_before_it_is_written(site: Site):
    service, board = site.service, site.boards[0]
    async with await FakeCaller.join(service) as caller:
        (first,) = await caller.submit("lab-0")
        await run(board)
        (second,) = await caller.submit("lab-0")
        assert service.server.store_queue.drain()
        with site.standing_still():
            await board.end(first, rest=b"1")
            assert await caller.ending(first) == ("ok", "1")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(board.socket.recv(), 0.05)
        assert (await run(board)).job == second
        row = service.store.job(first)
        assert row is not None
        assert row.status == "ok"


async def test_job_that_waits_for_the_store_can_be_interrupted(site: Site):
    service, board = site.service, site.boards[0]
    async with await FakeCaller.join(service) as caller, await FakeCaller.join(service) as other:
        (first,) = await caller.submit("lab-0")
        await run(board)
        (second,) = await caller.submit("lab-0")
        (third,) = await caller.submit("lab-0")
        assert service.server.store_queue.drain()
        with site.standing_still():
            await board.end(first, rest=b"1")
            assert await caller.ending(first) == ("ok", "1")
            assert await other.ask("interrupt", jobs=[second]) == {"reply": 1}
            status, why = await caller.ending(second)
            assert (status, why) == ("interrupted", "it was not sent yet and did not run")
        assert (await run(board)).job == third


async def test_cell_of_a_caller_that_left_meanwhile_runs_without_it(site: Site):
    service, board = site.service, site.boards[0]
    with site.standing_still():
        async with await FakeCaller.join(service) as caller:
            await submit_without_waiting(caller, "lab-0")
            await service.until(lambda: service.server.store_queue.waiting_seconds)
        await service.until(lambda: not service.server.callers)
    job = (await run(board)).job
    assert service.server.dispatch.jobs[job].observer is None
    await board.send(wire.INPUT, b"name? ", job=job)
    assert (await board.next()).flags & wire.INPUT_EOF
    await board.end(job, rest=b"1")
    await service.until(lambda: job not in service.server.dispatch.jobs)


async def test_board_revoked_meanwhile_runs_nothing(site: Site):
    service = site.service
    async with await FakeCaller.join(service) as caller, await FakeCaller.join(service) as admin:
        with site.standing_still():
            text = json.dumps({"verb": "revoke", "target": "lab-0"}).encode()
            await admin.send(wire.REQUEST, text, job=5)
            await service.until(lambda: service.server.store_queue.waiting_seconds)
            await submit_without_waiting(caller, "lab-0")
            await caller.ask("boards")  # the cell was read
        accepted = await caller.event()
        ((job, _),) = wire.read_json(accepted.payload)["jobs"]
        assert await caller.ending(job) == ("offline", "it was removed from the fleet")
        assert (await admin.next()).job == 5


async def test_board_connects_while_the_database_stands_still(tmp_path: Path):
    async with running_service(tmp_path) as service:
        (identity,) = service.enrol("lab-1")
        with locked(tmp_path / "server.db"):
            async with await FakeBoard.join(service, identity) as board:
                assert board.welcome["name"] == "lab-1"
                assert service.state("lab-1") == "idle"
        await service.until(lambda: service.store.boards()[0].last_seen)


async def test_verbs_that_change_something_wait_and_nobody_else_does(site: Site):
    service = site.service
    async with await FakeCaller.join(service) as admin, await FakeCaller.join(service) as caller:
        with site.standing_still():
            for number, body in enumerate(
                (
                    {"verb": "rename", "target": "lab-0", "name": "lab-9"},
                    {"verb": "label", "target": "lab-9", "labels": {"room": "a"}},
                )
            ):
                await admin.send(wire.REQUEST, json.dumps(body).encode(), job=number)
            names = [board["name"] for board in (await caller.ask("boards"))["reply"]]
            assert names == [f"lab-{number}" for number in range(5)]
        assert wire.read_json((await admin.next()).payload) == {"reply": "lab-9"}
        assert wire.read_json((await admin.next()).payload) == {"reply": ["lab-9"]}
        (board,) = (await caller.ask("boards", target="lab-9"))["reply"]
        assert board["labels"] == {"room": "a"}


async def test_health_is_degraded_while_the_database_stands_still(tmp_path: Path):
    async with running_service(tmp_path) as service:
        service.enrol("lab-1")
        with locked(tmp_path / "server.db"):
            async with await FakeCaller.join(service) as caller:
                await submit_without_waiting(caller, "lab-1")
                await service.until(lambda: service.server.store_queue.waiting_seconds > 1)
                body = await health(service)
                assert body["status"] == "degraded"
                assert "its store has not answered for 1 s" in str(body["problems"])
        await service.until(lambda: not service.server.store_queue.waiting_seconds)
        assert await health(service) == {"status": "ok"}


async def test_cells_beyond_the_limit_are_refused_with_a_sentence(tmp_path: Path):
    limits = Limits(store_operations=3)
    async with running_service(tmp_path, limits=limits) as service:
        service.enrol("lab-1")
        with locked(tmp_path / "server.db"):
            async with await FakeCaller.join(service) as caller:
                for _ in range(5):
                    await submit_without_waiting(caller, "lab-1")
                refused = await caller.next()
                assert (refused.op, refused.job) == (wire.REPLY, 5)
                why = wire.read_json(refused.payload)["args"][0]
                assert "too many requests wait for it; try again later" in why


async def test_server_that_stops_writes_what_waits(tmp_path: Path):
    other = sqlite3.connect(tmp_path / "server.db", isolation_level=None, check_same_thread=False)
    async with running_service(tmp_path) as service:
        (identity,) = service.enrol("lab-1")
        async with (
            await FakeBoard.join(service, identity) as board,
            await FakeCaller.join(service) as caller,
        ):
            (job,) = await caller.submit("lab-1")
            await run(board)
            other.execute("BEGIN IMMEDIATE")
            await board.end(job, rest=b"1")
            assert await caller.ending(job) == ("ok", "1")
            await submit_without_waiting(caller, "lab-1")
            await caller.ask("boards")
            loop = asyncio.get_running_loop()
            unlocked = loop.run_in_executor(None, _unlock_later, other)
            service.server.stop()
            await unlocked
    rows = other.execute("SELECT id, status FROM jobs ORDER BY id").fetchall()
    assert rows == [(job, "ok")], "the result is written, and the cell that waited is not"
    other.close()


def _unlock_later(connection: sqlite3.Connection) -> None:
    time.sleep(0.1)
    connection.execute("ROLLBACK")
