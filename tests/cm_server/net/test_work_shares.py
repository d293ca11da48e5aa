"""Whoever has used the event loop for long lets others use it as long."""

from __future__ import annotations

import asyncio

import pytest

from cm_server.limits import Limits
from cm_server.net.work_shares import Measured, WorkShare, WorkShares

LIMITS = Limits(free_work_seconds=0.002)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "pause"), [(0.0, 0.0), (0.002, 0.0), (0.003, 0.003), (1.0, 1.0)]
)
def test_long_work_is_followed_by_a_pause_of_its_length(seconds, pause):
    clock = Clock()
    share = WorkShare(LIMITS, clock)
    share.record(seconds)
    assert share.pause() == pytest.approx(pause)
    clock.now += pause
    assert share.pause() == 0.0


def test_pauses_add_up():
    share = WorkShare(LIMITS, Clock())
    for _ in range(3):
        share.record(0.01)
    assert share.pause() == pytest.approx(0.03)


async def test_turns_are_taken_one_after_the_other():
    share = WorkShare(LIMITS)
    share.record(0.02)
    order: list[int] = []

    async def work(number: int) -> None:
        await share.turn()
        order.append(number)
        share.record(0.02)

    tasks = [asyncio.create_task(work(number)) for number in range(4)]
    await asyncio.sleep(0.03)
    assert order == [0]
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]


async def test_cancelled_turn_delays_nobody():
    share = WorkShare(LIMITS)
    share.record(0.02)
    cancelled = asyncio.create_task(share.turn())
    served = asyncio.create_task(share.turn())
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait_for(served, 1.0)


def test_links_of_one_token_share_their_time():
    shares = WorkShares(LIMITS)
    first, second, other = shares.of("a"), shares.of("a"), shares.of("b")
    assert first is second
    assert first is not other


async def test_only_the_steps_of_a_coroutine_are_measured():
    recorded: list[float] = []

    class Share(WorkShare):
        def record(self, seconds: float) -> None:
            recorded.append(seconds)

    async def work() -> str:
        await asyncio.sleep(0.05)
        with pytest.raises(ValueError, match="from the future"):
            await future
        return "done"

    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(
        0.1, lambda: future.set_exception(ValueError("from the future"))
    )
    assert await Measured(work(), Share(LIMITS)) == "done"
    assert len(recorded) == 3
    assert sum(recorded) < 0.05


async def test_measured_coroutine_can_be_cancelled():
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    async def run() -> None:
        await Measured(work(), WorkShare(LIMITS))

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["ended"]
