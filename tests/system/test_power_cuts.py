"""The power goes in the middle of an install: at every write to flash, and on real boards at some.

What a real board writes during an install and an upgrade is recorded; each beginning of that, its
last write torn, is a flash that MicroPython mounts, as a board that starts again does.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from cloudmanager.board_client import compile_client
from cloudmanager.testing.board_fixtures import BoardUnderTest

MICROPYTHON = str(Path(sys.executable).parent / "micropython")
REPLAY = Path(__file__).parents[1] / "board/replay.py"
#: Writes down where and what a board writes to its flash: onto this machine's disk.
RECORD = """
import os
from struct import pack
from cm import unix
os.mount(os.VfsPosix({folder!r}), "/host")
log = open("/host/{name}", "wb")
def write(buf, file=unix.flash.file, log=log, pack=pack):
    log.write(pack("<II", file.seek(0, 1), len(buf)))
    log.write(buf)
    file.write(buf)
unix.flash.write = write
"""
STOP = "unix.flash.write = unix.flash.file.write; log.close(); os.umount('/host')"
OLD = {"__init__.py": "from zzz import b\nA = 1\nassert b.B == A", "b.py": "B = 1", "old.py": ""}
NEW = {"__init__.py": "from zzz import b\nA = 2\nassert b.B == A", "b.py": "B = 2", "new.py": ""}
RECORD_PATH = "/.cm/packages.json"
PATHS = [f"/lib/zzz/{name}.mpy" for name in ("__init__", "b", "old", "new")]


class Recorded(NamedTuple):
    """What was written, and what was there before it."""

    client: Path
    image: Path
    writes: Path


def write(folder: Path, files: dict[str, str]) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


def recorded(board: BoardUnderTest, folder: Path, name: str, wish: str) -> Recorded:
    """Install, and record what the board writes meanwhile."""
    machine = board._virtual_boards
    image, client = folder / f"{name}.image", compile_client(machine.folder / ".client")
    flash = next((machine.folder / board.names[0]).glob("flash*"))
    board.run(RECORD.format(folder=str(folder), name=f"{name}.writes"))
    shutil.copy(flash, image)
    board.install(wish).raise_for_error()
    board.run(STOP)
    return Recorded(client, image, folder / f"{name}.writes")


def states(told: Recorded) -> list[list[str | None]]:
    """What is at PATHS and in the record, once a board starts, after each number of writes."""
    command = [MICROPYTHON, "-X", "heapsize=16M", str(REPLAY), *map(str, told)]
    command.append(",".join([*PATHS, RECORD_PATH]))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    seen: list[list[str | None]] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.mark.timeout(90)
def test_power_cut_at_every_write_leaves_all_old_or_all_new(
    cm_board: BoardUnderTest, tmp_path: Path
):
    for name, files in (("install", OLD), ("upgrade", NEW)):
        wish = write(tmp_path / "zzz", files)
        seen = states(recorded(cm_board, tmp_path, name, wish))
        assert len(seen) > 30, "enough writes to be cut at"
        before, after = seen[0], seen[-1]
        assert before != after
        kinds = [
            "old" if state == before else "new" if state == after else "mixture" for state in seen
        ]
        assert set(kinds) == {"old", "new"}, "there is no mixture"
        assert kinds == sorted(kinds, reverse=True), "once it is new, it stays new"
    assert cm_board.run("import zzz; zzz.A", fresh=True).value == 2


@pytest.mark.timeout(120)
def test_power_cut_of_a_real_board_is_made_good_by_the_next_install(
    cm_board: BoardUnderTest, tmp_path: Path
):
    chance = random.Random(5)
    board, wish, cuts = cm_board._boards, str(tmp_path / "zzz"), 0
    for writes in (3, chance.randrange(5, 15), chance.randrange(15, 25), chance.randrange(25, 33)):
        write(tmp_path / "zzz", OLD)
        board.install(wish).raise_for_error()
        write(tmp_path / "zzz", NEW)
        if not cm_board.cut_power(writes, lambda: board.install(wish)):
            continue
        cuts += 1
        assert cm_board.run("import zzz; zzz.A").value in (1, 2)
        board.install(wish).raise_for_error()
        assert cm_board.run("import zzz; zzz.A", fresh=True).value == 2
        assert board.packages().value.drift == ()
    assert cuts > 2
    assert not board.stat(":/.cm/new").ok
