"""A few plans are made at the same time, in all and for one token."""

from __future__ import annotations

import asyncio

import pytest

from cm_server.installs.plan_turns import PlanTurns
from cm_server.limits import Limits


async def test_plans_wait_for_their_turn():
    turns = PlanTurns(Limits(plans_at_once=3, plans_at_once_per_token=2))
    running: list[str] = []
    most = 0
    end = asyncio.Event()

    async def plan(owner: str) -> None:
        nonlocal most
        async with turns.of(owner):
            running.append(owner)
            most = max(most, len(running))
            await end.wait()
            running.remove(owner)

    tasks = [asyncio.create_task(plan(owner)) for owner in "aaaabbc"]
    for _ in range(5):
        await asyncio.sleep(0)
    assert sorted(running) == ["a", "a", "b"]
    end.set()
    await asyncio.gather(*tasks)
    assert most == 3


async def test_turn_of_a_cancelled_plan_is_given_to_the_next():
    turns = PlanTurns(Limits(plans_at_once=1, plans_at_once_per_token=1))

    async def fail() -> None:
        async with turns.of("a"):
            raise ValueError("no such package")

    async def wait() -> None:
        async with turns.of("a"):
            await asyncio.Event().wait()

    with pytest.raises(ValueError, match="no such package"):
        await fail()
    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with turns.of("b"):
        pass
