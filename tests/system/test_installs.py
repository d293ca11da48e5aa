"""Installs on real boards: files of this machine, packages of an index on loopback, power cuts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudmanager import Boards, Fleet


def write(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


@pytest.fixture
def three(fleet: Fleet, boards) -> Boards:
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
