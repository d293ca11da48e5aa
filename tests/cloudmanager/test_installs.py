"""Installs on real boards: files of this machine, packages of an index on loopback, power cuts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager import Boards, Fleet
from cloudmanager.rig import BoardUnderTest


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
    for path in (":/lib/aaa.mpy", ":/lib/aaa.py", ":/lib/zzz", ":/.cm/packages.json"):
        three.rm(path, recursive=True)


def test_a_folder_becomes_importable_on_three_boards_and_goes_nowhere_twice(three, tmp_path: Path):
    wish = write(tmp_path / "zzz", {"__init__.py": "from zzz import b\nB = b.C", "b.py": "C = 41"})
    first = three.install(wish).raise_for_error()
    assert {r.value.put for r in first.values()} == {("/lib/zzz/__init__.mpy", "/lib/zzz/b.mpy")}
    assert set(three.run("import zzz; zzz.B", fresh=True).to_dict().values()) == {41}
    again = three.install(wish).raise_for_error()
    assert {r.value.put for r in again.values()} == {()}
    assert {len(r.value) for r in three.packages().values()} == {1}
    gone = three.uninstall(wish).raise_for_error()
    assert {r.value.removed for r in gone.values()} == {r.value.put for r in first.values()}
    assert three.packages().to_dict() == {"demo-1": {}, "demo-2": {}, "demo-3": {}}
    assert not three.stat(":/lib/zzz").ok


def version(n: int) -> dict[str, str]:
    return {"__init__.py": f"from zzz import b\nA = {n}\nassert b.B == A", "b.py": f"B = {n}"}


@pytest.mark.timeout(300)
def test_a_power_cut_at_any_write_leaves_the_old_package_or_the_new(
    cm_board: BoardUnderTest, tmp_path: Path
):
    """Torn writes of an install and of an upgrade: wholly old or new, and the next completes it."""
    boards, cuts, seen = cm_board._boards, 0, set()
    wish = str(tmp_path / "zzz")
    for k in itertools.count(0, 7):
        old, new = k + 1, k + 1_000
        write(tmp_path / "zzz", version(old))
        boards.install(wish).raise_for_error()
        write(tmp_path / "zzz", version(new))
        if not cm_board.cut_power(k, lambda: boards.install(wish)):
            break
        cuts += 1
        found = cm_board.run("import zzz; zzz.A").value
        seen.add(found == new)
        assert found in (old, new)
        boards.install(wish).raise_for_error()
        assert cm_board.run("import zzz; zzz.A", fresh=True).value == new
    assert cuts > 3
    assert seen == {False, True}


def test_the_users_own_file_is_not_overwritten_without_force(three: Boards, tmp_path: Path):
    wish = write(tmp_path / "zzz", {"__init__.py": "A = 1"})
    three.put(b"MINE = 1", ":/lib/zzz/__init__.mpy").raise_for_error()
    refused = three.install(wish)
    assert {str(r.error)[:40] for r in refused.failed.values()}
    assert len(refused.failed) == 3
    assert set(three.read(":/lib/zzz/__init__.mpy").to_dict().values()) == {b"MINE = 1"}
    assert three.install(wish, force=True).ok
