"""Contents are fetched concurrently and verified."""

from __future__ import annotations

import asyncio

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages.lock import dump
from cm_server.packages.package_files import gather_or_cancel

from .test_index import planned_sources


async def test_one_failure_cancels_the_other_coroutines():
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


async def test_files_are_fetched_concurrently(package_server, planner):
    """Each of eight responses waits until all eight files were requested."""
    document = package_server.publish("log", files={f"f{n}.py": f"{n}\n" for n in range(8)})
    barrier = asyncio.Barrier(8) if hasattr(asyncio, "Barrier") else None
    for _, short in document["hashes"]:
        page = package_server.pages[f"/pi/file/{short[:2]}/{short}"]

        async def together(writer, page=page):
            if barrier:
                await asyncio.wait_for(barrier.wait(), 5)
            writer.write(page)

        package_server.pages[f"/pi/file/{short[:2]}/{short}"] = together
    assert len(await planned_sources(planner, "log")) == 8


async def test_cached_content_with_another_hash_than_the_lock_is_refused(package_server, planner):
    """The cache has a content for the address, but the lock file has another hash."""
    package_server.refs("o/r", HEAD="a")
    package_server.commit("o/r", "a", {"m.py": "M = 1\n"})
    plan = await planner.make_plan(["github:o/r/m.py"])
    text = dump(plan.wanted, plan.packages)
    sha256 = plan.packages[0].parts[0].sha256
    with pytest.raises(PackageError, match="not the expected file"):
        await planner.make_plan([], lock=text.replace(sha256, "0" * 64), locked=True)


async def test_content_with_another_size_than_the_lock_is_refused(package_server, planner):
    """A lock file with a wrong size is refused, although the hash is right."""
    package_server.publish("log")
    plan = await planner.make_plan(["log"])
    text = dump(plan.wanted, plan.packages)
    size = plan.packages[0].parts[0].size
    wrong = text.replace(f'"size": {size}', f'"size": {size + 1}')
    assert wrong != text
    await planner.make_plan([], lock=text, locked=True)
    for path in planner.cache._contents.rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(PackageError, match="not the expected file"):
        await planner.make_plan([], lock=wrong, locked=True)
