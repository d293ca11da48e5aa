"""What comes is what was promised, and stays."""

from __future__ import annotations

import asyncio

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages.lock import dump
from cm_server.packages.package_files import gather_or_cancel

from .test_index import sources


async def test_failure_of_one_ends_the_others():
    ended = []

    async def slow():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    async def fails():
        await asyncio.sleep(0)
        raise PackageError("one")

    with pytest.raises(PackageError, match="one"):
        await gather_or_cancel([slow(), fails(), slow()])
    assert ended == [1, 1]


async def test_fetches_go_side_by_side(shelf, packages):
    """Eight files, each of which waits until all eight are asked for."""
    document = shelf.publish("log", files={f"f{n}.py": f"{n}\n" for n in range(8)})
    asked = asyncio.Barrier(8) if hasattr(asyncio, "Barrier") else None
    for _, short in document["hashes"]:
        page = shelf.pages[f"/pi/file/{short[:2]}/{short}"]

        async def together(writer, page=page):
            if asked:
                await asyncio.wait_for(asked.wait(), 5)
            writer.write(page)

        shelf.pages[f"/pi/file/{short[:2]}/{short}"] = together
    assert len(await sources(packages, "log")) == 8


async def test_cache_does_not_answer_for_another_hash_than_the_locks(shelf, packages):
    """The address is known, with its content; the lock promises another one."""
    shelf.refs("o/r", HEAD="a")
    shelf.commit("o/r", "a", {"m.py": "M = 1\n"})
    plan = await packages.make_plan(["github:o/r/m.py"])
    text = dump(plan.wanted, plan.packages)
    sha256 = plan.packages[0].parts[0].sha256
    with pytest.raises(PackageError, match="not what was promised"):
        await packages.make_plan([], lock=text.replace(sha256, "0" * 64), locked=True)


async def test_hash_that_is_right_with_another_length_cannot_be(shelf, packages):
    """The whole hash binds the length; a lock that says another one is refused."""
    shelf.publish("log")
    plan = await packages.make_plan(["log"])
    text = dump(plan.wanted, plan.packages)
    size = plan.packages[0].parts[0].size
    wrong = text.replace(f'"size": {size}', f'"size": {size + 1}')
    assert wrong != text
    await packages.make_plan([], lock=text, locked=True)
    for path in packages.cache._contents.rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(PackageError, match="not what was promised"):
        await packages.make_plan([], lock=wrong, locked=True)
