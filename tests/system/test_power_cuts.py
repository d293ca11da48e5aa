"""Power cuts during an install: after every write to flash, and on running boards after some.

The writes of a board to its flash during an install and an upgrade are recorded. Then MicroPython
mounts a flash for each number of writes, the last one incomplete, as a board does when it restarts.
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
#: Code for a virtual board: record the position and the bytes of each write to its flash.
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
MANIFEST_PATH = "/.cm/packages.json"
PATHS = [f"/lib/zzz/{name}.mpy" for name in ("__init__", "b", "old", "new")]


class Recording(NamedTuple):
    """A recording of writes to a flash.

    Attributes:
        client: the folder of the compiled client.
        image: the flash before the writes.
        writes: the writes: offset, length, bytes.
    """

    client: Path
    image: Path
    writes: Path


def write(folder: Path, files: dict[str, str]) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


def record_install(board: BoardUnderTest, folder: Path, name: str, requirement: str) -> Recording:
    """Install, and record what the board writes to its flash."""
    virtual_boards = board._virtual_boards
    image = folder / f"{name}.image"
    client = compile_client(virtual_boards.folder / ".client")
    flash = next((virtual_boards.folder / board.names[0]).glob("flash*"))
    board.run(RECORD.format(folder=str(folder), name=f"{name}.writes"))
    shutil.copy(flash, image)
    board.install(requirement).raise_for_error()
    board.run(STOP)
    return Recording(client, image, folder / f"{name}.writes")


def states(recording: Recording) -> list[list[str | None]]:
    """Return the state of a board that restarts after each number of writes.

    A state is the hash of each file at PATHS and of the manifest.
    """
    command = [MICROPYTHON, "-X", "heapsize=16M", str(REPLAY), *map(str, recording)]
    command.append(",".join([*PATHS, MANIFEST_PATH]))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    seen: list[list[str | None]] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.mark.timeout(90)
def test_power_cut_at_every_write_leaves_all_old_or_all_new(
    cm_board: BoardUnderTest, tmp_path: Path
):
    for name, files in (("install", OLD), ("upgrade", NEW)):
        requirement = write(tmp_path / "zzz", files)
        seen = states(record_install(cm_board, tmp_path, name, requirement))
        assert len(seen) > 30, "too few writes for this test"
        before, after = seen[0], seen[-1]
        assert before != after
        kinds = [
            "old" if state == before else "new" if state == after else "mixture" for state in seen
        ]
        assert set(kinds) == {"old", "new"}, "a power cut leaves a mixture"
        assert kinds == sorted(kinds, reverse=True), "a later power cut restores the old state"
    assert cm_board.run("import zzz; zzz.A", fresh=True).value == 2


@pytest.mark.timeout(120)
def test_next_install_completes_after_a_power_cut(cm_board: BoardUnderTest, tmp_path: Path):
    chance = random.Random(5)
    board = cm_board._boards
    requirement = str(tmp_path / "zzz")
    cuts = 0
    for writes in (3, chance.randrange(5, 15), chance.randrange(15, 25), chance.randrange(25, 33)):
        write(tmp_path / "zzz", OLD)
        board.install(requirement).raise_for_error()
        write(tmp_path / "zzz", NEW)
        if not cm_board.cut_power(writes, lambda: board.install(requirement)):
            continue
        cuts += 1
        assert cm_board.run("import zzz; zzz.A").value in (1, 2)
        board.install(requirement).raise_for_error()
        assert cm_board.run("import zzz; zzz.A", fresh=True).value == 2
        assert board.packages().value.drift == ()
    assert cuts > 2
    assert not board.stat(":/.cm/new").ok
