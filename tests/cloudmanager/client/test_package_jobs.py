"""Installs on real boards: a local index, local files, failures, changed files."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.package_index import PackageIndex, running_package_index
from cloudmanager import AsyncFleet, Boards, Fleet
from cloudmanager.client import package_jobs
from cloudmanager.client.packages import BoardPackages
from cloudmanager.protocol.errors import BoardOffline, FleetError, PackageError


def write(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


@pytest.fixture
def three(fleet: Fleet, boards) -> Iterator[Boards]:
    three = fleet["demo-[1-3]"]
    yield three
    have = three.packages().to_dict()
    for name, packages in have.items():
        if packages:
            fleet[name].uninstall(*packages, force=True).raise_for_error()
    for path in (":/lib/zzz", ":/lib/zzz.py", ":/lib/aaa.mpy", ":/.cm"):
        three.rm(path, recursive=True)


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with running_package_index() as made:
        yield made


def test_installed_folder_is_importable_and_not_sent_twice(three, tmp_path: Path):
    wish = write(tmp_path / "zzz", {"__init__.py": "from zzz import b\nB = b.C", "b.py": "C = 41"})
    first = three.install(wish).raise_for_error()
    assert {r.value.put for r in first.values()} == {("/lib/zzz/__init__.mpy", "/lib/zzz/b.mpy")}
    assert set(three.run("import zzz; zzz.B", fresh=True).to_dict().values()) == {41}
    again = three.install(wish).raise_for_error()
    assert {r.value.put for r in again.values()} == {()}
    assert [list(r.value) for r in three.packages().values()] == [["zzz"]] * 3
    gone = three.uninstall("zzz").raise_for_error()
    assert {r.value.removed for r in gone.values()} == {r.value.put for r in first.values()}
    assert three.packages().to_dict() == {"demo-1": {}, "demo-2": {}, "demo-3": {}}
    assert not three.stat(":/lib/zzz").ok


def test_uninstalled_packages_leave_no_trace(three, tmp_path: Path):
    before = three.ls(":/", recursive=True).raise_for_error().to_dict()
    wishes = [write(tmp_path / name, {"__init__.py": "", "in/b.py": ""}) for name in ("yyy", "zzz")]
    three.install(*wishes).raise_for_error()
    three.uninstall("yyy").raise_for_error()
    assert [list(r.value) for r in three.packages().values()] == [["zzz"]] * 3
    three.uninstall("zzz").raise_for_error()
    assert three.ls(":/", recursive=True).to_dict() == before
    assert three.packages().to_dict() == {"demo-1": {}, "demo-2": {}, "demo-3": {}}
    three.install(wishes[0]).raise_for_error()
    assert [list(r.value) for r in three.packages().values()] == [["yyy"]] * 3


def test_index_dependencies_and_upgrade_with_the_same_options(three, index: PackageIndex):
    index.publish("yyy", "1.0", {"yyy.py": "Y = 1"})
    index.publish("zzz", "1.0", {"zzz/__init__.py": "import yyy\nZ = 1", "zzz/old.py": ""}, "yyy")
    options = {"indexes": {"here": index.url}, "target_dir": "/libs", "no_mpy": True}
    first = three.install("here:zzz", **options).raise_for_error()
    outcome = first["demo-1"].value
    assert outcome.packages == {"here:yyy": "1.0", "here:zzz": "1.0"}
    assert outcome.origins["here:zzz"] == index.url
    assert outcome.put == ("/libs/yyy.py", "/libs/zzz/__init__.py", "/libs/zzz/old.py")
    index.publish("zzz", "1.1", {"zzz/__init__.py": "import yyy\nZ = 2"}, "yyy")
    dry = three.upgrade(dry_run=True)["demo-3"].value
    assert (dry.put, dry.dry_run) == (("/libs/zzz/__init__.py",), True)
    done = three.upgrade().raise_for_error()["demo-2"].value
    assert (done.put, done.removed) == (("/libs/zzz/__init__.py",), ("/libs/zzz/old.py",))
    look = "import sys; sys.path.append('/libs'); import zzz; zzz.Z, zzz.yyy.Y"
    assert set(three.run(look, fresh=True).to_dict().values()) == {(2, 1)}
    assert three.upgrade().raise_for_error()["demo-1"].value.put == ()
    files = {page: n for page, n in index.request_counts.items() if page.startswith("/file/")}
    assert set(files.values()) == {1}, "each content is fetched once, whatever is planned"
    with pytest.raises(FleetError, match="here:yyy"):
        three.uninstall("here:yyy").raise_for_error()
    three.rm(":/libs", recursive=True)


def test_different_boards_get_different_files_and_failures_have_reasons(
    fleet, three, index: PackageIndex
):
    index.publish("zzz", "1.0", {"zzz.py": "Z = 1"})
    named = {"indexes": {"": index.url}}
    fleet["demo-2"].install("zzz", **named).raise_for_error()
    fleet["demo-3"].put(b"MINE = 1", ":/lib/zzz.mpy").raise_for_error()
    results = three.install("zzz", **named)
    assert results["demo-1"].value.put == ("/lib/zzz.mpy",)
    assert results["demo-2"].value.put == ()
    error = results["demo-3"].error
    assert isinstance(error, PackageError)
    assert "/lib/zzz.mpy, which does not belong to a package" in str(error)
    assert three.read(":/lib/zzz.mpy")["demo-3"].value == b"MINE = 1"
    fleet["demo-3"].put(b"OLD = 1", ":/lib/zzz.py").raise_for_error()
    forced = fleet["demo-3"].install("zzz", force=True, **named).value
    assert (forced.put, forced.removed) == (("/lib/zzz.mpy",), ("/lib/zzz.py",))


def test_install_is_one_queued_job(fleet, three, tmp_path):
    wish = write(tmp_path / "zzz", {"__init__.py": "A = 1"})
    before = {row["job"] for row in fleet.jobs("demo-1")}
    busy = three.submit("import time; time.sleep(1)")
    three.install(wish).raise_for_error()
    assert busy.finished.done, "it waited for its turn"
    assert len({row["job"] for row in fleet.jobs("demo-1")} - before) == 2
    rows = fleet.request("audit", count=5)  # that jobs were listed is noted once in a while
    row = next(row for row in reversed(rows) if row["verb"] == "install")
    assert (row["detail"], row["boards"]) == ("zzz", 3)
    assert row["last_job"] - row["first_job"] == 2


def test_concurrent_installs_do_not_mix(fleet, three, index: PackageIndex):
    index.publish("yyy", "1.0", {"yyy.py": "Y = 1"})
    index.publish("zzz", "1.0", {"zzz.py": "Z = 1"})
    named = {"indexes": {"": index.url}}
    other = threading.Thread(target=lambda: three.install("yyy", **named))
    other.start()
    three.install("zzz", **named).raise_for_error()
    other.join()
    assert set(map(tuple, three.packages().to_dict().values())) == {("yyy", "zzz")}


def test_disconnecting_leaves_no_partial_install(fleet, three, tmp_path: Path):
    big = {f"m{n}.py": f"X = {n}\n" + f"# {n}\n" * 3000 for n in range(20)}
    wish = write(tmp_path / "zzz", {"__init__.py": "", **big})
    caller, begun, ended = Fleet(), threading.Event(), []

    def install() -> None:
        results = caller["demo-1"].install(wish, no_mpy=True, progress=lambda *_: begun.set())
        ended.append(results["demo-1"].status)

    worker = threading.Thread(target=install)
    worker.start()
    assert begun.wait(10)
    caller.close()
    worker.join()
    assert ended == ["lost"]
    assert fleet["demo-1"].run("import zzz.m19; zzz.m19.X", fresh=True).value == 19  # behind it
    assert list(fleet["demo-1"].packages().value) == ["zzz"]
    assert fleet["demo-1"].packages().value.drift == ()


def test_changed_file_is_reported_and_restored(three, tmp_path: Path):
    wish = write(tmp_path / "zzz", {"__init__.py": "A = 1", "b.py": "B = 1"})
    three.install(wish).raise_for_error()
    three.rm(":/lib/zzz/b.mpy").raise_for_error()
    have = three.packages()["demo-2"].value
    assert have.drift == ("zzz: /lib/zzz/b.mpy is missing",)
    assert three.install(wish)["demo-2"].value.put == ("/lib/zzz/b.mpy",)
    assert three.packages()["demo-2"].value.drift == ()


def test_packages_of_offline_boards_are_recorded(cm_board, tmp_path: Path):
    wish = write(tmp_path / "zzz", {"__init__.py": "A = 1"})
    assert cm_board.install(wish).ok
    cm_board.kill()
    have = cm_board.packages().value
    assert isinstance(have, BoardPackages)
    assert list(have) == ["zzz"]
    assert have.as_of is not None
    cm_board.restart()
    assert cm_board.packages().value.as_of is None
    assert cm_board.uninstall("zzz").ok
    cm_board.kill()
    (result,) = cm_board.packages().values()
    assert isinstance(result.error, BoardOffline)


def test_async_fleet_installs_packages(three, tmp_path: Path):
    wish = write(tmp_path / "zzz", {"__init__.py": "A = 1"})

    async def story() -> tuple[Any, ...]:
        async with AsyncFleet() as fleet:
            boards = fleet["demo-[1-2]"]
            installed = (await boards.install(wish)).raise_for_error()["demo-1"].value.put
            have = (await boards.packages()).to_dict()
            newer = (await boards.upgrade()).ok
            gone = (await boards.uninstall("zzz"))["demo-2"].value.removed
            return installed, have, newer, gone

    put, have, newer, gone = asyncio.run(story())
    assert (put, gone, newer) == (("/lib/zzz/__init__.mpy",), ("/lib/zzz/__init__.mpy",), True)
    assert [list(each) for each in have.values()] == [["zzz"], ["zzz"]]


def test_upgrade_requests_are_grouped_by_options():
    have = BoardPackages(
        {"a": "1", "b": "1", "c": "1", "d": "1", "dep": "1"},
        upgrade_info={
            "a": {"wanted": "a", "how": {}},
            "b": {"wanted": "b@1", "how": {"target_dir": "/x"}},
            "c": {"wanted": "c", "how": {}},
            "d": {"wanted": "d", "local": True},
            "dep": {},
        },
    )
    assert package_jobs.upgrade_requests(have, []) == [
        (("a", "c"), "{}"),
        (("b@1",), '{"target_dir": "/x"}'),
    ]
    assert package_jobs.upgrade_requests(have, ["dep"]) == [(("dep",), "{}")]
    assert package_jobs.upgrade_requests(have, ["d"]) == []
    assert (
        "packages from local files are not upgraded: d" in package_jobs.upgrade_notes(have, [])[0]
    )
    assert package_jobs.upgrade_notes(have, ["a"]) == ()
    assert package_jobs.upgrade_notes(BoardPackages({}), []) == ("no packages are installed",)
    with pytest.raises(PackageError, match="no package is called nope"):
        package_jobs.upgrade_requests(have, ["nope"])


def test_interrupted_install_keeps_the_old_files(fleet: Fleet, three: Boards, tmp_path: Path):
    big = {f"m{n}.py": f"X = {n}\n" + f"# {n}\n" * 3000 for n in range(20)}
    wish = write(tmp_path / "zzz", {"__init__.py": "", **big})
    begun = threading.Event()
    ended: list[str] = []

    def install() -> None:
        results = three.install(wish, no_mpy=True, progress=lambda *_: begun.set())
        ended.extend(result.status for result in results.values())

    worker = threading.Thread(target=install)
    worker.start()
    assert begun.wait(10)
    open_jobs = [job["job"] for job in fleet.jobs("demo-[1-3]") if job["state"] != "ended"]
    assert fleet.interrupt(open_jobs) == len(open_jobs) > 0
    worker.join()
    assert "interrupted" in ended
    here = [name for name, result in three.packages().items() if result.value]
    assert len(here) == ended.count("ok")
    assert set(three.install(wish, no_mpy=True).raise_for_error()) == set(three.packages())
    assert not any(result.value.drift for result in three.packages().values())
    assert not three.stat(":/.cm/new")["demo-1"].ok
