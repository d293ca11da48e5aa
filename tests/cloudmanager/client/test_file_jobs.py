"""Several things at once, and acts in batches; without a server."""

import pytest

from cloudmanager.client.file_jobs import ACTS_BYTES, alike, batches, together
from cloudmanager.client.future import Once
from cloudmanager.client.verbs import drive


def test_batches_keep_the_order_and_fit():
    acts = [["hash", f"/a/rather/long/path/to/a/file/{n}.py", n] for n in range(100)]
    made = list(batches(acts))
    assert [act for batch in made for act in batch] == acts
    assert all(len(str(batch)) < 1.2 * ACTS_BYTES for batch in made)
    assert len(made) < 10
    assert list(batches([])) == []
    assert len(list(batches([["get", "/" + "x" * 3000]]))) == 1


def test_boards_with_the_same_plan_are_together():
    assert alike({"a": (1,), "b": (2,), "c": (1,)}) == [(["a", "c"], (1,)), (["b"], (2,))]


async def waits(*several):
    return [await once for once in several]


def test_together_takes_them_as_they_come_and_gives_them_in_order():
    first, second, third = Once[int](), Once[int](), Once[int]()
    order = []

    def settle():
        for number, once in ((3, third), (1, first), (2, second)):
            if not once.done:
                order.append(number)
                once.set(number)
                return

    work = together(waits(first, second), waits(third))
    assert drive(work, settle) == [[1, 2], [3]]
    assert order == [3, 1, 2]


def test_together_of_nothing_is_nothing():
    assert drive(together()) == []


def test_one_that_raises_ends_the_others():
    never, ended = Once[int](), []

    async def waiting():
        try:
            await never
        finally:
            ended.append(True)

    async def raising():
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        drive(together(waiting(), raising()))
    assert ended == [True]
