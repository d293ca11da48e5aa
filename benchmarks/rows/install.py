"""A package of 20 files with dependencies on 100 boards, compared with copying the same bytes."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import own_server
from benchmarks.package_index import PackageIndex, running_package_index
from benchmarks.report import Row
from cloudmanager import Boards

_BOARDS = 100
_FILES = 20
_LINES_PER_FILE = 120  # of each file's source
_REPETITIONS = 5


def rows() -> list[Row]:
    """Time installs of new versions and repeated installs, alternating with plain copies."""
    installs: list[float] = []
    copies: list[float] = []
    repeats: list[float] = []
    with running_package_index() as index, own_server.running_boards(_BOARDS) as boards:
        for number in range(_REPETITIONS):
            publish_packages(index, number)
            installs.append(_time_call(lambda: _install_packages(boards, index)))
            repeats.append(_time_call(lambda: _install_packages(boards, index)))
            copies.append(_copy_same_bytes(boards, number))
            boards.uninstall("pack", "one", "two").raise_for_error()
            boards.rm(":/copy", recursive=True).raise_for_error()
    return [
        Row(
            f"a package of {_FILES} files on {_BOARDS} boards, beside copying the same bytes",
            installs,
            copies,
            budget=1.1,
        ),
        Row("the same once more: nothing is sent", repeats, copies, budget=1.0),
    ]


def publish_packages(index: PackageIndex, number: int) -> None:
    """Publish new versions of a package and of its dependencies, with new content in all files."""
    chance = random.Random(number)
    parts = {f"pack/m{n}.py": _make_source(chance, number) for n in range(_FILES - 3)}
    for name in ("one", "two"):
        index.publish(name, f"1.{number}", {f"{name}.py": _make_source(chance, number)})
    files = {"pack/__init__.py": f"VERSION = {number}\n", **parts}
    index.publish("pack", f"1.{number}", files, "one", "two")


def _make_source(chance: random.Random, number: int) -> str:
    """Return a module whose bytecode is about 2 KB."""
    lines = [f"V{n} = {chance.randrange(10**9)}" for n in range(_LINES_PER_FILE)]
    return f"N = {number}\n" + "\n".join(lines) + "\n"


def _install_packages(boards: Boards, index: PackageIndex) -> None:
    boards.install("pack", indexes={"": index.url}).raise_for_error()


def _copy_same_bytes(boards: Boards, number: int) -> float:
    """Copy as many new files of the same sizes; return how long that took."""
    chance = random.Random(f"copy {number}")
    listed = [boards.ls(path)[f"bench-{_BOARDS}"].value for path in (":/lib", ":/lib/pack")]
    sizes = [entry.size for entries in listed for entry in entries if not entry.is_dir]
    with tempfile.TemporaryDirectory() as folder:
        for n, size in enumerate(sizes):
            (Path(folder) / f"f{n}.bin").write_bytes(chance.randbytes(size))
        return _time_call(lambda: boards.put(folder, ":/copy/").raise_for_error())


def _time_call(callback: Callable[[], object]) -> float:
    begun = time.perf_counter()
    callback()
    return time.perf_counter() - begun
