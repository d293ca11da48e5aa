"""The verbs for files on three real boards."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager import AsyncFleet, BoardOffline, Boards, Fleet, NoSuchBoard, Result
from cloudmanager.client.file_jobs import as_file_results
from cloudmanager.client.file_verbs import FileVerbs
from cloudmanager.client.files import Entry
from cloudmanager.display.file_report import files_text
from cloudmanager.virtual.virtual_boards import VirtualBoards


@pytest.fixture
def three(fleet: Fleet, boards: VirtualBoards) -> Iterator[Boards]:
    three = fleet["demo-[1-3]"]
    yield three
    three.rm(":/t", recursive=True)


def paths(result) -> list[str]:
    return [entry.path for entry in result.value]


def test_put_get_ls_rm_of_one_file_on_three_boards(three: Boards, tmp_path: Path):
    data = os.urandom(30_000)
    (tmp_path / "a.bin").write_bytes(data)
    calls: list[tuple[str, int, int]] = []
    put = three.put(tmp_path / "a.bin", ":t/", progress=lambda *now: calls.append(now))
    assert put.to_dict() == dict.fromkeys(("demo-1", "demo-2", "demo-3"), 30_000)
    assert {board for board, _, _ in calls} == set(put)
    assert all(moved <= total == 30_000 for _, moved, total in calls)
    assert three.put(tmp_path / "a.bin", ":t/").to_dict() == dict.fromkeys(put, 0)
    assert three.ls(":t")["demo-2"].value == [Entry("/t/a.bin", False, 30_000)]
    got = three.get(":t/a.bin", tmp_path / "out")
    for board, path in got.to_dict().items():
        assert path == tmp_path / "out" / board / "a.bin"
        assert path.read_bytes() == data
    assert three.read(":t/a.bin").to_dict() == dict.fromkeys(put, data)
    assert three.rm(":t/a.bin").ok
    assert three.ls(":t").to_dict() == dict.fromkeys(put, [])


def test_file_of_one_board_is_put_into_the_folder_itself(three, fleet: Fleet, tmp_path: Path):
    one = fleet["demo-1"]
    one.put(b"log", ":t/log.txt")
    assert one.get(":t/log.txt", tmp_path).value == tmp_path / "log.txt"


def test_stat_df_mkdir_rmdir_mv(three: Boards):
    assert three.mkdir(":t/a/b", parents=True).to_dict() == dict.fromkeys(three.ls(":/"))
    assert isinstance(three.mkdir(":t").failed["demo-1"].error, FileExistsError)
    assert three.stat(":t/a")["demo-1"].value.is_dir
    with pytest.raises(OSError) as raised:  # noqa: PT011  # which one, is the number's to say
        three.rmdir(":t/a")["demo-1"].value  # noqa: B018
    assert raised.value.errno == errno.ENOTEMPTY
    three.put(b"x", ":t/f")
    assert isinstance(three.rmdir(":t/f")["demo-1"].error, NotADirectoryError)
    assert three.mv(":t/f", ":t/g").ok
    assert three.stat(":t/g")["demo-1"].value.size == 1
    before = three.df()["demo-1"].value
    assert before.total == before.used + before.free
    three.put(bytes(100_000), ":t/big")
    assert before.free - three.df()["demo-1"].value.free >= 100_000


def test_names_in_any_language_survive_a_round_trip(three: Boards, tmp_path: Path):
    for name in ("é b.txt", "日本.py", "🐍.py", 'it\'s "q".txt'):
        assert three.put(name.encode(), f":t/{name}").ok
        assert three.read(f":t/{name}")["demo-1"].value == name.encode()
        assert f"/t/{name}" in paths(three.ls(":t")["demo-1"])


_ODD_NAMES = ("a\udcff.txt", "new\nline", "esc\x1b[2J", "end ", "-rf", "a:b", "'q'", "\u202e")
_MAKE_ODD_NAMES = """
import os
os.mkdir("/t")
os.mkdir("/t/d")
for folder in (b"/t/", b"/t/d/"):
    for name in names:
        with open(folder + name, "wb") as file:
            file.write(name)
"""


def test_odd_names_on_boards_can_be_listed_copied_moved_and_removed(
    three: Boards, fleet: Fleet, tmp_path: Path
):
    one = fleet["demo-1"]
    raw_names = [name.encode("utf-8", "surrogateescape") for name in _ODD_NAMES]
    assert one.run(_MAKE_ODD_NAMES, inputs={"names": raw_names}).ok
    listed = one.ls(":t", recursive=True)
    for folder in ("/t/", "/t/d/"):
        assert {folder + name for name in _ODD_NAMES} <= set(paths(listed["demo-1"]))
    assert "/t/a\\xff.txt\n" in files_text(listed)
    assert "/t/new\\nline\n" in files_text(listed)
    assert len(one.get(":t/", tmp_path).value) == 2 * len(_ODD_NAMES)
    assert (tmp_path / "d/a%FF.txt").read_bytes() == b"a\xff.txt"
    assert (tmp_path / "new%0Aline").read_bytes() == b"new\nline"
    for name, raw in zip(_ODD_NAMES, raw_names, strict=True):
        assert one.read(f":t/{name}").value == raw
        assert one.stat(f":t/{name}").value.size == len(raw)
        assert one.mv(f":t/{name}", ":t/moved").ok
        assert one.rm(":t/moved").ok
        gone = one.stat(f":t/{name}")["demo-1"].error
        assert isinstance(gone, FileNotFoundError)
        assert gone.filename == f"demo-1:/t/{name}"
    assert one.rm(":t/d/*", glob=True).ok
    assert paths(one.ls(":t", recursive=True)["demo-1"]) == ["/t/d"]


@pytest.mark.parametrize(
    ("pattern", "recursive", "listed", "content"),
    [
        (":t/*.csv", False, ["a.csv", "b.csv"], b"ab"),
        (":t/*", False, ["d", "a.csv", "b.csv", "x[1].txt"], None),
        (":t/?", True, ["d", "d/e", "d/c.csv", "d/e/z.txt"], None),
        (":t/*/*.csv", False, ["d/c.csv"], b"c"),
        (":t/.h*", False, [".hidden"], b"h"),
        (":t/x[1].txt", False, ["x[1].txt"], b"x"),
        (":t/[ab].csv", True, ["a.csv", "b.csv"], b"ab"),
    ],
)
def test_pattern_is_listed_and_read(three: Boards, fleet, pattern, recursive, listed, content):
    one = fleet["demo-1"]
    for name in ("a.csv", "b.csv", "d/c.csv", "d/e/z.txt", ".hidden", "x[1].txt"):
        one.put(name.rpartition("/")[2].lstrip(".")[:1].encode(), f":t/{name}")
    found = one.ls(pattern, recursive=recursive, glob=True)
    assert [path.removeprefix("/t/") for path in paths(found["demo-1"])] == listed
    contents = one.read(pattern, glob=True)
    if content is None:
        assert isinstance(contents["demo-1"].error, IsADirectoryError)
    else:
        assert contents.value == content


def test_pattern_that_matches_nothing_is_an_error(three: Boards, fleet: Fleet):
    fleet["demo-2"].put(b"x", ":t/x.csv")
    for results in (three.ls(":t/*.csv", glob=True), three.read(":t/*.csv", glob=True)):
        assert results["demo-2"].ok
        assert isinstance(results["demo-1"].error, FileNotFoundError)


def test_errors_are_os_errors_with_board_and_path(three, fleet: Fleet):
    for verb in (
        fleet["demo-1"].rm,
        fleet["demo-1"].stat,
        fleet["demo-1"].read,
        fleet["demo-1"].get,
    ):
        with pytest.raises(FileNotFoundError, match=r"'demo-1:/t/no'"):
            verb(":t/no").raise_for_error()
    with pytest.raises(IsADirectoryError):
        fleet["demo-1"].rm(":/lib/../t" if three.mkdir(":t") else "").raise_for_error()
    with pytest.raises(ValueError, match="colon"):
        three.ls("t")


def test_full_flash_is_enospc_and_the_others_finish(three: Boards, fleet: Fleet):
    fleet["demo-2"].put(bytes(600_000), ":t/fill")
    results = three.put(os.urandom(500_000), ":t/big")
    assert results["demo-1"].ok
    assert results["demo-3"].ok
    error = results["demo-2"].error
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.ENOSPC, "demo-2:/t/big")
    assert paths(fleet["demo-2"].ls(":t")["demo-2"]) == ["/t/fill"]


def test_targets_are_resolved_as_for_cells(three, fleet: Fleet):
    fleet.enrol(["away-1"])
    results = fleet["demo-1,away-1"].put(b"x", ":t/x")
    assert results["demo-1"].ok
    assert isinstance(results["away-1"].error, BoardOffline)
    with pytest.raises(NoSuchBoard):
        fleet["nobody"].ls()
    fleet.revoke("away-1")


def test_interrupted_upload_is_resumed(three, fleet: Fleet):
    data, begun = os.urandom(300_000), threading.Event()
    results: dict[str, Result] = {}

    def report(_board: str, done: int, _total: int) -> None:
        if done:  # before, nothing is on the board
            begun.set()

    work = threading.Thread(
        target=lambda: results.update(fleet["demo-1"].put(data, ":t/x", progress=report))
    )
    work.start()
    assert begun.wait(10)
    fleet.interrupt([job["job"] for job in fleet.jobs("demo-1") if job["state"] == "running"])
    work.join(10)
    again = fleet["demo-1"].put(data, ":t/x").value
    if results["demo-1"].status == "interrupted":  # else it was faster than our word
        assert again < len(data)  # 0 if the last bytes overtook the interrupt
    assert fleet["demo-1"].read(":t/x").value == data


async def test_async_fleet_has_the_same_verbs(three, server, tmp_path: Path):
    async with AsyncFleet() as fleet:
        boards = fleet["demo-[1-2]"]
        assert (await boards.put(b"hello", ":t/h.txt")).to_dict() == {"demo-1": 5, "demo-2": 5}
        got = await boards.get(":t/h.txt", tmp_path)
        assert got["demo-2"].value.read_bytes() == b"hello"
        assert (await boards.read(":t/h.txt"))["demo-1"].value == b"hello"
        (tmp_path / "src").mkdir()
        (tmp_path / "src/a.py").write_text("a")
        assert (await boards.sync(tmp_path / "src", ":t")).ok
        assert not (await boards.stat(":t/no")).ok


def test_each_board_gets_its_own_content(three: Boards):
    written = three.put_each({"demo-1": b"one", "demo-3": b"three"}, ":t/own.txt")
    assert written.to_dict() == {"demo-1": 3, "demo-3": 5}
    assert three.read(":t/own.txt")["demo-3"].value == b"three"
    assert isinstance(three.read(":t/own.txt")["demo-2"].error, FileNotFoundError)


@pytest.mark.parametrize(
    ("verb", "partial", "left"),
    [
        ("rm", None, ["/t/s", "/t/s/x"]),
        ("rm -r", None, []),
        ("read", b"onetwo", ["/t/1", "/t/2", "/t/s", "/t/s/x"]),
        ("sha256sum", 2, ["/t/1", "/t/2", "/t/s", "/t/s/x"]),
    ],
)
def test_folder_among_what_matches_does_not_keep_the_files(three: Boards, verb, partial, left):
    three.put(b"one", ":t/1")
    three.put(b"two", ":t/2")
    three.put(b"x", ":t/s/x")
    name, *options = verb.split()
    results = getattr(three, name)(":t/*", glob=True, **({"recursive": True} if options else {}))
    for board, result in results.items():
        if options:
            assert result.ok
            continue
        assert str(result.error) == f"[Errno 21] Is a directory: '{board}:/t/s'"
        assert (len(result.partial) if verb == "sha256sum" else result.partial) == partial
    found = three.ls(":t", recursive=True)["demo-3"].value
    assert sorted(entry.path for entry in found) == left


def test_matches_that_cannot_be_copied_do_not_keep_the_others(three, fleet: Fleet, tmp_path: Path):
    for name in ("a", "b", "c"):
        three.put(name.encode(), f":t/{name}")
    (tmp_path / "to/a").mkdir(parents=True)
    (tmp_path / "to/c").mkdir()
    copied = fleet["demo-1"].get(":t/*", tmp_path / "to", glob=True)
    result = as_file_results(copied)["demo-1"]
    assert str(result.error).count("Is a directory") == 2
    assert result.partial == [tmp_path / "to/b"]
    assert (tmp_path / "to/b").read_text() == "b"


def test_fleet_and_async_fleet_have_every_verb():
    from cloudmanager.client.async_fleet import AsyncBoards

    verbs = [name for name in vars(FileVerbs) if not name.startswith("_")]
    assert len(verbs) == 18
    for face in (Boards, AsyncBoards):
        assert [name for name in verbs if not hasattr(face, name)] == []
        assert all(
            getattr(face, name).__doc__ == getattr(FileVerbs, name).__doc__ for name in verbs
        )


@pytest.mark.parametrize("name", ["a.part", "a.tmp", "a.new", "a~", ".a.part", "a.bak", ".a.swp"])
def test_transfers_keep_files_with_names_like_temporary_ones(three, fleet, tmp_path: Path, name):
    one = fleet["demo-1"]
    one.put(b"the user's", f":t/{name}")
    one.put(b"new", ":t/a")
    assert one.read(f":t/{name}").value == b"the user's"
    (tmp_path / name).write_text("mine")
    assert one.get(":t/a", tmp_path).ok
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a", name])
