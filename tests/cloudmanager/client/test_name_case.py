"""Names that differ in case only, on file systems that ignore case: FAT, macOS, Windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager import Boards, Fleet
from cloudmanager.client import name_case
from cloudmanager.client.name_case import find_same_names, ignores_case, same_name_key
from cloudmanager.display.file_report import files_text
from cloudmanager.virtual.virtual_boards import VirtualBoards

#: A board's FAT on a RAM disk of 32 KB, as a card is mounted.
MOUNT = """
import vfs
class RAM:
    def __init__(self): self.blocks = [bytearray(512) for _ in range(64)]
    def readblocks(self, n, buf):
        for at in range(0, len(buf), 512):
            buf[at : at + 512] = self.blocks[n + at // 512]
    def writeblocks(self, n, buf):
        for at in range(0, len(buf), 512):
            self.blocks[n + at // 512][:] = buf[at : at + 512]
    def ioctl(self, op, arg):
        return 64 if op == 4 else 512 if op == 5 else 0
ram = RAM()
vfs.VfsFat.mkfs(ram)
vfs.mount(vfs.VfsFat(ram), "/card")
"""


@pytest.fixture(scope="module")
def card(fleet: Fleet, boards: VirtualBoards) -> Iterator[None]:
    """A folder /card, which is FAT on demo-1 and littlefs on demo-2."""
    assert fleet["demo-1"].reset().ok
    fleet["demo-1"].run(MOUNT).raise_for_error()
    fleet["demo-2"].mkdir(":card").raise_for_error()
    yield
    assert fleet["demo-1"].reset().ok
    fleet["demo-2"].rmdir(":card").raise_for_error()


@pytest.fixture
def two(fleet: Fleet, card: None) -> Iterator[Boards]:
    two = fleet["demo-[1-2]"]
    yield two
    two.rm(":card/*", recursive=True, glob=True)


def paths(boards: Boards, board: str) -> list[str]:
    return sorted(entry.path for entry in boards.ls(":card", recursive=True)[board].value)


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (("a.py", "A.py"), ("A.py", "a.py")),
        (("sub/x", "Sub/X"), ("Sub/X", "sub/x")),
        (("data", "Data/x"), ("data", "Data")),
        (("é", "É"), ("É", "é")),
    ],
)
@pytest.mark.parametrize("verb", ["put", "sync", "dry run"])
def test_nothing_is_sent_where_case_is_ignored(two: Boards, tmp_path: Path, verb, names, refused):
    write(tmp_path, *names)
    if verb == "put":
        results = two.put(f"{tmp_path}/", ":card/new")
    else:
        results = two.sync(tmp_path, ":card/new", dry_run=verb == "dry run")
    assert list(results) == ["demo-1", "demo-2"]
    error = results["demo-1"].error
    assert isinstance(error, FileExistsError)
    assert error.filename == f"demo-1:/card/new/{refused[1]}"
    assert f"the same as :/card/new/{refused[0]}, since this file system" in str(error)
    assert "nothing was sent" in str(error)
    assert files_text(results).count("ignores case") == 1
    assert paths(two, "demo-1") == []
    if verb != "dry run":
        assert results["demo-2"].ok
        assert {f"/card/new/{name}" for name in names} <= set(paths(two, "demo-2"))


def test_several_files_are_one_sentence(two: Boards, fleet: Fleet, tmp_path: Path):
    write(tmp_path, "a", "A", "b", "B", "c/C", "c/c")
    error = fleet["demo-1"].put(f"{tmp_path}/", ":card")["demo-1"].error
    assert str(error).count("ignores case (2 more such names)") == 1
    assert isinstance(error, FileExistsError)
    assert paths(two, "demo-1") == []


def test_folders_that_differ_in_case_become_one(two: Boards, tmp_path: Path):
    write(tmp_path, "lib/a", "Lib/b", "new")
    assert two.put(f"{tmp_path}/", ":card").ok
    assert [path.lower() for path in paths(two, "demo-1")] == [
        "/card/lib",
        "/card/lib/a",
        "/card/lib/b",
        "/card/new",
    ]


def test_boards_that_are_not_connected_are_named_as_ever(two: Boards, fleet: Fleet, tmp_path: Path):
    fleet.enrol(["demo-away"])
    write(tmp_path, "a", "A")
    results = fleet["demo-1,demo-away"].put(f"{tmp_path}/", ":card")
    assert isinstance(results["demo-1"].error, FileExistsError)
    assert results["demo-away"].status == "offline"
    assert fleet["demo-*"].put(f"{tmp_path}/", ":card").left_out == ("demo-away",)
    fleet["demo-3"].rm(":card", recursive=True)
    fleet.revoke("demo-away")


@pytest.mark.parametrize(
    ("paths", "folders", "pairs"),
    [
        (["/a", "/b"], [], []),
        (["/a", "/A"], [], [("/a", "/A")]),
        (["/a/x", "/A/y"], [], []),
        (["/a/x", "/A/X"], [], [("/a/x", "/A/X")]),
        (["/a", "/A/y"], [], [("/a", "/A")]),
        (["/a"], ["/A"], [("/a", "/A")]),
        (["/x"], ["/a", "/A"], []),
        (["/a.", "/a"], [], [("/a.", "/a")]),
        (["/a ", "/a"], [], [("/a ", "/a")]),
        (["/\xe4", "/a\u0308"], [], [("/\xe4", "/a\u0308")]),
    ],
)
def test_pairs_of_names_that_are_one(paths, folders, pairs):
    assert find_same_names(paths, folders) == pairs


def test_names_of_dots_stay():
    assert same_name_key("/...") == "/..."


def test_local_file_system_that_heeds_case_has_both_files(
    two: Boards, fleet: Fleet, tmp_path: Path
):
    for name in ("a.txt", "A.txt"):
        two.put(name.encode(), f":card/both/{name}")
    assert not ignores_case(write(tmp_path, "probe"), "probe")
    assert fleet["demo-2"].get(":card/both", tmp_path).ok
    assert (tmp_path / "both/a.txt").read_text() == "a.txt"
    assert (tmp_path / "both/A.txt").read_text() == "A.txt"


def test_local_file_system_that_ignores_case_has_one_file(
    two: Boards, fleet: Fleet, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(name_case, "ignores_case", lambda *_: True)  # as on macOS and Windows
    for name in ("a.txt", "A.txt", "b.txt"):
        fleet["demo-2"].put(name.encode(), f":card/both/{name}")
    error = fleet["demo-2"].get(":card/both", tmp_path)["demo-2"].error
    assert isinstance(error, FileExistsError)
    assert "its name is the same as that of A.txt here; the file was left" in str(error)
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["A.txt", "b.txt"]
