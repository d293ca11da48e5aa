"""Batches of file operations; without a server."""

from cloudmanager.client.file_jobs import MAX_OPS_BYTES, group_equal_plans, split_batches


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
