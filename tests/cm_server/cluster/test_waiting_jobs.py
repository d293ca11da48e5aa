"""Jobs that wait for boards, with two servers: whichever has the board runs them, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cm_server.store.rows import JobRow
from tests.cm_server.pairs import Two, run, two_servers
from tests.cm_server.peers import FakeBoard, FakeCaller, Service


@pytest.fixture(params=["sqlite, one process", "postgresql, nats"])
async def two(request: pytest.FixtureRequest, soon: None, tmp_path: Path) -> AsyncIterator[Two]:
    """Two servers that do not take each other for dead on a busy machine."""
    store: Path | str = tmp_path / "shared.db"
    url = ""
    if request.param.startswith("postgresql"):
        store = request.getfixturevalue("postgres").new()
        url = request.getfixturevalue("nats").url
    async with two_servers(tmp_path, store, url, dead_after=30) as two:
        yield two


async def leave(service: Service, code: bytes = b"1", target: str = "lab-1", **head: Any) -> int:
    """Submit a cell that waits for one board; return its job's number."""
    async with await FakeCaller.join(service) as caller:
        numbers = await caller.submit(target, code, when_online=True, **head)
    assert len(numbers) == 1
    number: int = numbers[0]
    return number


async def ended(service: Service, number: int) -> JobRow:
    """Return the row of a job that has ended."""
    rows: list[JobRow] = []

    def has_ended() -> bool:
        row = service.store.job(number)
        if row is not None and row.status is not None:
            rows.append(row)
        return bool(rows)

    await service.until(has_ended)
    return rows[0]


async def waiting(service: Service) -> list[int]:
    async with await FakeCaller.join(service) as caller:
        reply = await caller.ask("jobs", waiting=True)
    return [job["job"] for job in reply["reply"]]


async def test_job_left_at_one_server_runs_where_its_board_connects(two: Two):
    (identity,) = await two.enrol("lab-1")
    number = await leave(two.a)
    assert await waiting(two.b) == [number]
    async with await FakeBoard.join(two.b, identity) as board:
        message = await run(board)
        assert message.job == number
        assert await waiting(two.a) == []
        await board.end(number, output=b"out", rest=b"7")
        assert (await ended(two.a, number)).status == "ok"
        async with await FakeCaller.join(two.a) as caller:
            shown = (await caller.ask("job", job=number))["reply"]
    assert (shown["status"], shown["stdout"], shown["value"]) == ("ok", "out", "7")


async def test_job_for_a_board_that_is_at_the_other_server_runs_at_once(two: Two):
    _, board = await two.board_at_b()
    async with board:
        number = await leave(two.a)
        assert (await run(board)).job == number
        await board.end(number)
        assert (await ended(two.b, number)).status == "ok"


async def test_jobs_left_at_both_servers_run_in_their_order(two: Two):
    (identity,) = await two.enrol("lab-1")
    numbers = [await leave(service) for service in (two.b, two.a, two.b, two.a)]
    assert await waiting(two.a) == numbers
    async with await FakeBoard.join(two.a, identity) as board:
        for number in numbers:
            assert (await run(board)).job == number
            await board.end(number)
    assert [(await ended(two.b, number)).status for number in numbers] == ["ok"] * 4


async def test_interrupt_at_one_server_reaches_a_job_that_the_other_one_has_read(two: Two):
    _, board = await two.board_at_b()
    async with board:
        first = await leave(two.a)
        await run(board)
        second = await leave(two.a)
        async with await FakeCaller.join(two.a) as caller:
            assert (await caller.ask("interrupt", jobs=[second]))["reply"] == 1
        assert (await ended(two.b, second)).status == "interrupted"
        await board.end(first)
        third = await leave(two.a)
        assert (await run(board)).job == third


async def test_job_of_a_board_that_moves_runs_once(two: Two):
    identity, board = await two.board_at_b()
    async with board:
        first, second = await leave(two.a), await leave(two.a)
        assert (await run(board)).job == first
        async with await FakeBoard.join(two.a, identity, boot="b2") as moved:
            # It restarted, so the first one is lost; the second one was never sent.
            assert (await run(moved)).job == second
            await moved.end(second)
            assert (await ended(two.b, second)).status == "ok"
    assert (await ended(two.a, first)).status == "lost"


async def test_lost_notice_is_made_up_for(two: Two):
    """The bus loses the message that a job waits: the next reload finds it."""
    _, board = await two.board_at_b()
    async with board:
        two.a.server.dispatch.waiting.on_added = lambda _ids: None
        number = await leave(two.a)
        await asyncio.sleep(0.1)
        await two.b.server.cluster._reload()  # type: ignore[union-attr]
        assert (await run(board)).job == number


async def test_server_that_does_not_have_the_board_cannot_take_its_job(two: Two):
    _, board = await two.board_at_b()
    async with board:
        await board.send(wire.PROGRAM, b"app.py", flags=wire.BLOCKING)
        await two.seen(state="busy")
        number = await leave(two.a)
        store = two.a.store
        assert store.take_waiting_job(number) is None
        assert [row.job for row in store.waiting_rows.page(0, 10)] == [number]
        await board.send(wire.PROGRAM, b"")
        assert (await run(board)).job == number
