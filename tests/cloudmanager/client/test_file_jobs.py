"""Concurrent coroutines and batches of file operations; without a server."""

import pytest

from cloudmanager.client.file_jobs import MAX_OPS_BYTES, gather, group_equal_plans, split_batches
from cloudmanager.client.future import Future
from cloudmanager.client.verbs import run_blocking


def test_batches_keep_order_and_size_limit():
    acts = [["hash", f"/a/rather/long/path/to/a/file/{n}.py", n] for n in range(100)]
    made = list(split_batches(acts))
    assert [act for batch in made for act in batch] == acts
    assert all(len(str(batch)) < 1.2 * MAX_OPS_BYTES for batch in made)
    assert len(made) < 10
    assert list(split_batches([])) == []
    assert len(list(split_batches([["get", "/" + "x" * 3000]]))) == 1


def test_boards_with_equal_plans_are_grouped():
    assert group_equal_plans({"a": (1,), "b": (2,), "c": (1,)}) == [
        (["a", "c"], (1,)),
        (["b"], (2,)),
    ]


async def waits(*several):
    return [await once for once in several]


def test_gather_returns_results_in_order():
    first, second, third = Future[int](), Future[int](), Future[int]()
    order = []

    def settle():
        for number, once in ((3, third), (1, first), (2, second)):
            if not once.done:
                order.append(number)
                once.set_result(number)
                return

    work = gather(waits(first, second), waits(third))
    assert run_blocking(work, settle) == [[1, 2], [3]]
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
