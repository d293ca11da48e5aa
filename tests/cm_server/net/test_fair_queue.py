"""Links that have a backlog take turns."""

from __future__ import annotations

import asyncio

from cm_server.net.fair_queue import FairQueue


async def test_one_function_is_called_in_each_iteration():
    queue = FairQueue()
    served: list[str] = []

    def flood() -> None:
        served.append("flood")
        if len(served) < 100:
            queue.add(flood)

    queue.add(flood)
    queue.add(flood)
    queue.add(lambda: served.append("other"))
    for turn in range(5):
        assert len(served) == turn
        await asyncio.sleep(0)
    assert served == ["flood", "flood", "other", "flood", "flood"]


async def test_failing_function_does_not_stop_the_queue():
    queue, loop = FairQueue(), asyncio.get_running_loop()
    failures: list[object] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    served = asyncio.Event()
    error = ValueError()

    def fail() -> None:
        raise error

    queue.add(fail)
    queue.add(served.set)
    await asyncio.wait_for(served.wait(), 1)
    assert failures == [error]
