"""``AsyncFleet`` on a real server and real boards."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from cloudmanager import AsyncFleet, Fleet
from cloudmanager.client.async_fleet import AsyncBoards
from cloudmanager.client.fleet import Boards
from cloudmanager.protocol.errors import NoSuchBoard, ServerUnreachable
from cloudmanager.virtual.virtual_boards import VirtualBoards

ALL = "demo-[1-3]"
WAIT = 60.0  # seconds that anything here may take on a busy machine


@pytest.fixture
async def async_fleet(boards: VirtualBoards):
    async with AsyncFleet() as fleet:
        yield fleet


async def test_run_returns_results_of_all_boards(async_fleet):
    results = await async_fleet[ALL].run("6 * 7")
    assert results.to_dict() == {"demo-1": 42, "demo-2": 42, "demo-3": 42}


async def test_many_cells_run_concurrently(async_fleet):
    cells = [async_fleet[f"demo-{n}"].run("import time; time.sleep(0.1)") for n in (1, 2, 3)]
    assert all(results.ok for results in await asyncio.gather(*cells))


async def test_events_are_in_order(async_fleet):
    group = await async_fleet["demo-1"].submit("print('a')\nprint('b')\n7")
    kinds = [(event.kind, event.text) async for event in group.events()]
    assert kinds == [("output", "a\nb\n"), ("ended", "")]


async def test_wait_returns_whether_all_jobs_have_ended(async_fleet):
    group = await async_fleet[ALL].submit("while True: pass")
    ended_early = await group.wait(0.1)
    with pytest.raises(TimeoutError):
        await group.results(0.05)
    group.interrupt()
    results = await group.results(WAIT)
    statuses = [result.status for result in results.values()]
    assert (ended_early, statuses) == (False, ["interrupted"] * 3)


async def test_a_cancelled_run_interrupts_the_boards(async_fleet):
    running = asyncio.ensure_future(async_fleet["demo-1"].run("while True: pass"))
    await asyncio.wait([running], timeout=0.2)  # let it start
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await asyncio.wait_for(async_fleet["demo-1"].run("1"), WAIT)).value == 1


async def test_input_is_answered_through_the_group(async_fleet):
    group = await async_fleet["demo-1"].submit("input('name? ')", answers=True)
    async for event in group.events():
        if event.kind == "input":
            group.answer(event.job, "Ada")
    assert (await group.results()).value == "Ada"


async def test_submit_raises_a_refusal(async_fleet):
    with pytest.raises(NoSuchBoard, match="Did you mean demo-1"):
        await async_fleet["demo-11"].submit("1")


async def test_jobs_and_a_job_are_found(async_fleet):
    result = (await async_fleet["demo-1"].run("print('kept')"))["demo-1"]
    newest = (await async_fleet.jobs("demo-1"))[0]["job"]
    found = await async_fleet.job(result.job)
    assert (newest, found["status"], found["stdout"]) == (result.job, "ok", "kept\n")


async def test_first_verb_raises_if_no_server_answers(unused_tcp_port):
    fleet = AsyncFleet(f"http://127.0.0.1:{unused_tcp_port}", "cm_x")
    with pytest.raises(ServerUnreachable):
        await fleet.boards()


def test_result_after_the_loop_was_closed_is_ignored(boards, recwarn):
    async def leave_a_cell_behind():
        fleet = AsyncFleet()
        return await fleet["demo-1"].submit("import time; time.sleep(0.3)")

    group = asyncio.run(leave_a_cell_behind())
    assert group._group.wait(WAIT)  # pytest fails on an exception in the link's thread


async def test_closed_fleet_reconnects(async_fleet):
    await async_fleet.close()
    assert (await async_fleet.status())["online"] >= 3


@pytest.mark.parametrize(("blocking", "asynchronous"), [(Fleet, AsyncFleet), (Boards, AsyncBoards)])
def test_fleet_and_async_fleet_have_the_same_methods(blocking, asynchronous):
    only = {"exchange", "connect", "address"}  # how each is connected
    ours, theirs = (
        {name for name in dir(face) if not name.startswith("_")} - only
        for face in (blocking, asynchronous)
    )
    assert ours == theirs


def test_async_verbs_are_coroutines():
    assert inspect.iscoroutinefunction(AsyncBoards.run)


async def test_watch_yields_updates_until_closed(async_fleet):
    async with async_fleet.watch("demo-1") as watch:
        first = await asyncio.wait_for(anext(watch), WAIT)
        assert [board["name"] for board in first.boards] == ["demo-1"]
        await async_fleet["demo-1"].run("import cm; cm.emit(n=3)")
        async for update in watch:
            if update.samples:
                assert update.samples[0].values == {"n": 3}
                break
    assert [update async for update in watch] == []
    assert (await async_fleet.samples("demo-1"))[-1].values == {"n": 3}


async def test_a_cancelled_watch_leaves_no_thread_behind(async_fleet):
    watch = async_fleet.watch("demo-1")
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.wait([waiting], timeout=0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [update async for update in watch] == []


async def test_async_fleet_shows_its_server_and_is_iterated_by_board(async_fleet):
    assert repr(async_fleet) == f"AsyncFleet({async_fleet.address.url!r})"
    assert "demo-1" in [boards.target async for boards in async_fleet]
    assert [boards.target async for boards in async_fleet["demo-[1-2]"]] == ["demo-1", "demo-2"]
    with pytest.raises(TypeError):
        iter(async_fleet)


async def test_async_boards_have_their_own_inputs(async_fleet):
    own = {"demo-1": {"n": 1}, "demo-2": {"n": 2}}
    results = await async_fleet["demo-[1-2]"].run("n * n", inputs_by_board=own)
    assert results.to_dict() == {"demo-1": 1, "demo-2": 4}


async def test_async_jobs_are_shown_as_a_table(async_fleet):
    group = await async_fleet["demo-1"].submit("1")
    assert "demo-1" in group._repr_html_()
    await group.results(WAIT)
