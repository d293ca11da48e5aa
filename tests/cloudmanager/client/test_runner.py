"""Running coroutines that await futures: in a thread, in asyncio, several at a time."""

import asyncio
import threading
import time

import pytest

from cloudmanager.client.future import Future, sleep
from cloudmanager.client.runner import gather, run_blocking, run_in_loop

WAIT = 10.0  # seconds that a thread may take on a busy machine


async def waits(*several):
    return [await once for once in several]


def test_gather_returns_results_in_order():
    first, second, third = Future[int](), Future[int](), Future[int]()
    order = []

    def settle():
        for number, once in ((3, third), (1, first), (2, second)):
            order.append(number)
            once.set_result(number)
            time.sleep(0.01)

    thread = threading.Thread(target=settle)
    thread.start()
    assert run_blocking(gather(waits(first, second), waits(third))) == [[1, 2], [3]]
    thread.join()
    assert order == [3, 1, 2]


def test_gather_of_nothing_is_empty():
    assert run_blocking(gather()) == []


def test_gather_closes_the_others_if_one_raises():
    never, ended = Future[int](), []

    async def waiting():
        try:
            await never
        finally:
            ended.append(True)

    async def raising():
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        run_blocking(gather(waiting(), raising()))
    assert ended == [True]


def set_later(once):
    threading.Timer(0.01, once.set_result, ["set"]).start()


async def wait_briefly_then_long(once, long=WAIT):
    return [await once.done_within(0.001), await once.done_within(long), await once]


def test_wait_has_a_limit_in_a_thread():
    once = Future[str]()
    set_later(once)
    assert run_blocking(wait_briefly_then_long(once)) == [False, True, "set"]


async def test_wait_has_a_limit_in_asyncio():
    once = Future[str]()
    set_later(once)
    assert await run_in_loop(wait_briefly_then_long(once)) == [False, True, "set"]
    assert once._callbacks == []


def test_gathered_coroutines_have_their_own_limits():
    once = Future[str]()
    set_later(once)
    work = gather(wait_briefly_then_long(once), sleep(0.001))
    assert run_blocking(work) == [[False, True, "set"], None]
    assert once._callbacks == []


async def test_sleep_does_not_block_the_loop():
    order = []

    async def other():
        order.append("other")

    task = asyncio.ensure_future(other())
    await run_in_loop(sleep(0.01))
    assert order == ["other"]
    await task


async def test_cancellation_is_raised_inside_of_the_coroutine():
    seen = []

    async def waiting():
        try:
            await Future[None]()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = asyncio.ensure_future(run_in_loop(waiting()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]
