"""Importing a package of ten modules from a mounted folder, compared with installing it first."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from benchmarks import own_server
from benchmarks.report import Row
from cloudmanager import Boards, Fleet

_BOARDS = 40
_MODULES = 10
_LINES_PER_MODULE = 40  # about 700 bytes of source
_REPETITIONS = 5
_IMPORT = "\n".join(f"import pack.m{n}" for n in range(_MODULES)) + "\npack.m9.N"
_FORGET = "import sys\nfor n in list(sys.modules):\n  if n[:4] == 'pack': del sys.modules[n]"


def rows() -> list[Row]:
    """Time both ways, with new content each time, on one board and on all."""
    with own_server.running_boards(_BOARDS), Fleet() as fleet:
        return [
            *_compare(fleet["bench-1"], "1 board"),
            *_compare(fleet[f"bench-[1-{_BOARDS}]"], f"{_BOARDS} boards"),
        ]


def _compare(boards: Boards, where: str) -> list[Row]:
    mounted: list[float] = []
    changed: list[float] = []
    installed: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(0, 2 * _REPETITIONS, 2):
            _write_package(folder, number)
            begun = time.perf_counter()
            with boards.mount(folder):
                _import_package(boards, number)
                mounted.append(time.perf_counter() - begun)
                _write_package(folder, number + 1)
                begun = time.perf_counter()
                _import_package(boards, number + 1)
                changed.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            boards.install(str(folder / "pack"), no_mpy=True).raise_for_error()
            _import_package(boards, number + 1)
            installed.append(time.perf_counter() - begun)
            boards.uninstall("pack").raise_for_error()
            boards.run(_FORGET).raise_for_error()
    what = f"a package of {_MODULES} modules on {where}"
    return [
        Row(f"{what}: mount and import, beside install and import", mounted, installed, 2.0),
        Row("all of them changed: the next import", changed, installed, 2.0),
    ]


def _import_package(boards: Boards, number: int) -> None:
    values = boards.run(_IMPORT).raise_for_error().to_dict()
    assert set(values.values()) == {number}, values


def _write_package(folder: Path, number: int) -> None:
    chance = random.Random(number)
    (folder / "pack").mkdir(exist_ok=True)
    (folder / "pack" / "__init__.py").write_text("")
    for n in range(_MODULES):
        lines = [f"V{i} = {chance.randrange(10**9)}" for i in range(_LINES_PER_MODULE)]
        source = f"N = {number}\n" + "\n".join(lines)
        (folder / "pack" / f"m{n}.py").write_text(source)
