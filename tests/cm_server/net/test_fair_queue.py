"""The queue calls one waiting function in each iteration of the event loop."""

from __future__ import annotations

import asyncio
import functools

from cm_server.net.fair_queue import FairQueue


async def test_one_function_is_called_in_each_iteration():
    queue = FairQueue(1.0)
    called: list[str] = []

    def flood() -> None:
        called.append("flood")
        if len(called) < 100:
            queue.add(flood)

    queue.add(flood)
    queue.add(flood)
    queue.add(lambda: called.append("other"))
    for iteration in range(5):
        assert len(called) == iteration
        await asyncio.sleep(0)
    assert called == ["flood", "flood", "other", "flood", "flood"]


async def test_failing_function_does_not_stop_the_queue():
    queue, loop = FairQueue(1.0), asyncio.get_running_loop()
    failures: list[object] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    called = asyncio.Event()
    error = ValueError()

    def fail() -> None:
        raise error

    queue.add(fail)
    queue.add(called.set)
    await asyncio.wait_for(called.wait(), 1)
    assert failures == [error]


async def test_long_call_leaves_iterations_to_others():
    now = 0.0
    queue, loop = FairQueue(1.0, lambda: now), asyncio.get_running_loop()
    called: list[str] = []

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds
        called.append(f"{seconds:g}")

    def other(left: int) -> None:
        called.append("other")
        if left:
            loop.call_soon(other, left - 1)

    for seconds in (1.0, 8.0, 1.0):
        queue.add(functools.partial(work, seconds))
    loop.call_soon(other, 10)
    for _ in range(15):
        await asyncio.sleep(0)
    first, second, third = (called.index("1"), called.index("8"), len(called) - 1)
    third -= called[::-1].index("1")
    assert called[first:second].count("other") <= 1
    assert called[second:third].count("other") >= 4
