"""The queue calls one waiting function in each iteration of the event loop."""

from __future__ import annotations

import asyncio

from cm_server.net.fair_queue import FairQueue


async def test_one_function_is_called_in_each_iteration():
    queue = FairQueue()
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
    queue, loop = FairQueue(), asyncio.get_running_loop()
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
