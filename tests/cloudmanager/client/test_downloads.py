"""Files copied from boards; names from boards are not trusted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager import Boards, Fleet
from cloudmanager.client import name_case
from cloudmanager.client.downloads import MAX_READ_BYTES, DownloadSink, RequestedFile, _MemorySink
from cloudmanager.client.files import FileResult
from cloudmanager.virtual.virtual_boards import VirtualBoards


@pytest.fixture
def two(fleet: Fleet, boards: VirtualBoards) -> Iterator[Boards]:
    two = fleet["demo-[1-2]"]
    yield two
    two.rm(":d", recursive=True)


def test_folder_is_copied_from_each_board(two: Boards, fleet: Fleet, tmp_path: Path):
    two.put(b"a", ":d/log/a.txt")
    two.put(b"b", ":d/log/sub/b.txt")
    fleet["demo-2"].put(b"c", ":d/log/c.txt")
    got = two.get(":d/log", tmp_path / "out")
    assert len(got["demo-1"].value) == 2
    assert len(got["demo-2"].value) == 3
    found = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.txt")
    )
    assert found == [
        "demo-1/log/a.txt",
        "demo-1/log/sub/b.txt",
        "demo-2/log/a.txt",
        "demo-2/log/c.txt",
        "demo-2/log/sub/b.txt",
    ]
    assert not list(tmp_path.rglob("*.mbm-part"))


def test_path_may_be_a_file_or_a_folder_on_different_boards(
    two: Boards, fleet: Fleet, tmp_path: Path
):
    fleet["demo-1"].put(b"file", ":d/x")
    fleet["demo-2"].put(b"in", ":d/x/y")
    got = two.get(":d/x", tmp_path)
    assert got["demo-1"].value == tmp_path / "demo-1/x"
    assert got["demo-2"].value == [tmp_path / "demo-2/x/y"]


@pytest.mark.parametrize(
    ("path", "folders"),
    [
        (":d", ["d", "d/e", "d/e/f", "d/g"]),
        (":d/", ["e", "e/f", "g"]),
        (":d/e/f", ["f"]),
        (":d/e/f/", []),
        (":d/*", ["e", "e/f", "g"]),
    ],
)
def test_empty_folders_are_made(two: Boards, tmp_path: Path, path: str, folders):
    for folder in (":d/e/f", ":d/g"):
        two.mkdir(folder, parents=True)
    got = two.get(path, tmp_path / "out", glob=True)
    assert got.to_dict() == {"demo-1": [], "demo-2": []}
    for name in ("demo-1", "demo-2"):
        top = tmp_path / "out" / name
        found = sorted(each.relative_to(top).as_posix() for each in top.rglob("*"))
        assert found == folders


def test_folder_that_cannot_be_made_fails_alone(two: Boards, fleet: Fleet, tmp_path: Path):
    two.mkdir(":d/e", parents=True)
    two.mkdir(":d/a\\b")
    two.put(b"x", ":d/x")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/e").write_text("a file")
    error = fleet["demo-1"].get(":d", tmp_path)["demo-1"].error
    assert isinstance(error, PermissionError)
    assert "Not a directory" in str(error)
    assert (tmp_path / "d/x").read_bytes() == b"x"


def test_invalid_local_name_from_a_real_board_is_refused(two: Boards, fleet: Fleet, tmp_path: Path):
    fleet["demo-1"].run("import os\nos.mkdir('/d')\nopen('/d/..\\\\..\\\\x', 'w').close()")
    got = fleet["demo-1"].get(":d", tmp_path / "out")
    assert isinstance(got["demo-1"].error, PermissionError)
    assert [path.as_posix() for path in tmp_path.rglob("*")] == [
        f"{tmp_path}/out",
        f"{tmp_path}/out/d",
    ]


@pytest.mark.parametrize(
    "place", ["../x", "/x", "a/../../x", "c:\\x", "a\\..\\x", "", "n" * 256, "\n" * 90]
)
@pytest.mark.parametrize("many", [False, True])
def test_hostile_names_write_nothing(tmp_path: Path, place: str, many: bool):
    downloads = DownloadSink(tmp_path / "out", many, [RequestedFile("/x", place, 1)])
    with pytest.raises(PermissionError, match="left on the board"):
        downloads.start_file("lab-1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "ignoring"),
    [("a\n", "a%0A", False), ("a", "A", True), ("\xe4", "a\u0308", True), ("a.", "A", True)],
)
def test_names_that_are_one_here_do_not_overwrite_each_other(
    tmp_path: Path, monkeypatch, first, second, ignoring
):
    monkeypatch.setattr(name_case, "ignores_case", lambda *_: ignoring)
    requested = [RequestedFile(f"/{name}", name, 1) for name in (first, second)]
    downloads = DownloadSink(tmp_path, False, requested)
    downloads.start_file("lab-1")
    with pytest.raises(FileExistsError):
        downloads.start_file("lab-1")
    assert len(list(tmp_path.iterdir())) == 2
    ended(downloads, status="error")
    assert list(tmp_path.iterdir()) == []


def test_unrequested_file_is_refused(tmp_path: Path):
    downloads = DownloadSink(tmp_path, False, [])
    with pytest.raises(OSError, match="was not requested"):
        downloads.start_file("lab-1")


def ended(downloads: DownloadSink, *answers: tuple[int, str], status: str = "ok"):
    return downloads.finish_job(FileResult("lab-1", 1, status, text=repr(list(answers))))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_old_file_stays_until_the_new_one_is_complete(tmp_path: Path):
    (tmp_path / "a").write_text("old")
    downloads = DownloadSink(tmp_path, False, [RequestedFile("/a", "a", 3)])
    downloads.start_file("lab-1")
    downloads.write("lab-1", b"new")
    assert (tmp_path / "a").read_text() == "old"
    assert ended(downloads, (3, sha(b"new"))).ok
    assert (tmp_path / "a").read_text() == "new"
    assert downloads.finished_paths("lab-1") == [tmp_path / "a"]


@pytest.mark.parametrize(
    ("answers", "status"),
    [([(3, sha(b"nee"))], "ok"), ([(2, sha(b"new"))], "ok"), ([], "interrupted")],
)
def test_incomplete_download_keeps_the_old_file_only(tmp_path: Path, answers, status):
    (tmp_path / "a").write_text("old")
    downloads = DownloadSink(tmp_path, False, [RequestedFile("/a", "a", 3)])
    downloads.start_file("lab-1")
    downloads.write("lab-1", b"new")
    assert not ended(downloads, *answers, status=status).ok
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_full_disk_is_an_error_that_names_the_file(one: Boards, tmp_path: Path):
    downloads = DownloadSink(tmp_path, False, [RequestedFile("/a", "a", 3)])
    downloads.start_file("lab-1")
    (part,) = tmp_path.iterdir()
    part.unlink()
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        downloads.write("lab-1", b"new")
    assert caught.value.filename == str(tmp_path / "a")
    one.put(b"x", ":full.txt")
    error = one.get(":full.txt", "/dev/full")["demo-1"].error
    assert "No space left" in str(error)
    assert "/dev/full" in str(error)
    one.rm(":full.txt")


def test_size_of_a_file_read_into_memory_is_limited():
    kept = _MemorySink()
    kept.start_file("lab-1")
    with pytest.raises(OSError, match="use get"):
        kept.write("lab-1", bytes(MAX_READ_BYTES + 1))


@pytest.fixture
def one(two: Boards, fleet: Fleet) -> Boards:
    fleet["demo-1"].put(b"data", ":d/data.bin")
    fleet["demo-1"].put(b"deep", ":d/sub/deep.bin")
    return fleet["demo-1"]


@pytest.mark.parametrize(
    ("path", "dest", "expected"),
    [
        (":d/data.bin", "g", {"g"}),
        (":d/data.bin", "g/", {"g/data.bin"}),
        (":d/data.bin", "new/g", {"new/g"}),
        (":d/data.bin", "there", {"there/data.bin"}),
        (":d/data.bin", "file", {"file"}),
        (":d/data.bin", ".", {"data.bin"}),
        (":d", "g", {"g/d/data.bin", "g/d/sub/deep.bin"}),
        (":d", "there", {"there/d/data.bin", "there/d/sub/deep.bin"}),
        (":d/", "g", {"g/data.bin", "g/sub/deep.bin"}),
        (":d/", "there", {"there/data.bin", "there/sub/deep.bin"}),
        (":d/sub/", "there/", {"there/deep.bin"}),
    ],
)
def test_place_of_a_download_from_one_board(one, tmp_path: Path, monkeypatch, path, dest, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("old")
    for _ in range(2):
        assert one.get(path, dest).ok
        found = {str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*") if each.is_file()}
        assert found == expected | {"file"}
    assert (tmp_path / "file").read_text() == ("data" if dest == "file" else "old")


def test_device_or_pipe_is_written_and_not_replaced(one: Boards, two: Boards, tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert one.get(":d/data.bin", pipe).value == pipe
    assert pipe.is_fifo()
    assert os.read(reader, 1000) == one.read(":d/data.bin").value
    os.close(reader)
    for boards, path in ((one, ":d"), (two, ":d/data.bin")):
        error = boards.get(path, pipe)["demo-1"].error
        assert isinstance(error, NotADirectoryError)
    (tmp_path / "g").mkdir()
    os.mkfifo(tmp_path / "g/data.bin")
    error = one.get(":d/data.bin", tmp_path / "g")["demo-1"].error
    assert "was not replaced" in str(error)
    assert (tmp_path / "g/data.bin").is_fifo()


def test_link_that_the_user_names_stays(one: Boards, tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real/x")
    assert one.get(":d/data.bin", tmp_path / "link").ok
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/x").read_bytes() == one.read(":d/data.bin").value


@pytest.mark.parametrize("dest", ["g", "g/", "there"])
def test_several_boards_get_a_folder_each(two, fleet, tmp_path: Path, monkeypatch, dest):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    two.put(b"data", ":d/data.bin")
    assert two.get(":d/data.bin", dest).ok
    found = {str(path) for path in Path(dest).rglob("*.bin")}
    assert found == {f"{dest.strip('/')}/demo-{n}/data.bin" for n in (1, 2)}


@pytest.mark.parametrize("name", ["a\\b", "\n" * 90])
def test_name_that_cannot_be_used_here_fails_alone(one: Boards, tmp_path: Path, name):
    one.put(b"odd", f":d/{name}")
    one.put(b"time", ":d/12:30.csv")
    result = one.get(":d/", tmp_path)["demo-1"]
    assert isinstance(result.error, PermissionError)
    assert "left on the board" in str(result.error)
    found = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"data.bin", "deep.bin", "12:30.csv"}


@pytest.mark.parametrize(
    ("pattern", "dest", "expected"),
    [
        (":d/*.bin", "g", {"g/data.bin"}),
        (":d/*", "g", {"g/data.bin", "g/sub/deep.bin", "g/a[1].txt"}),
        (":d/*/d*", "g", {"g/deep.bin"}),
        (":d/a[1].txt", "g", {"g"}),
        (":*/data.???", "g/", {"g/data.bin"}),
    ],
)
def test_pattern_is_copied_into_a_folder(one, tmp_path: Path, monkeypatch, pattern, dest, expected):
    monkeypatch.chdir(tmp_path)
    one.put(b"name", ":d/a[1].txt")
    assert one.get(pattern, dest, glob=True).ok
    found = {str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*") if each.is_file()}
    assert found == expected


def test_pattern_without_a_match_fails_on_that_board(two: Boards, one: Boards, tmp_path: Path):
    results = two.get(":d/*.bin", tmp_path, glob=True)
    assert results["demo-1"].value == [tmp_path / "demo-1/data.bin"]
    assert isinstance(results["demo-2"].error, FileNotFoundError)


@pytest.mark.parametrize(
    ("there", "dest", "message"),
    [
        ("g", "g/", "[Errno 20] Not a directory: '{here}/g'"),
        ("g", "g/h", "[Errno 20] Not a directory: '{here}/g'"),
        ("g/", "g/", "[Errno 21] Is a directory: '{here}/g/f'"),
        ("loop", "loop", "[Errno 40] Too many levels of symbolic links: '{here}/loop'"),
        ("", "/dev/full", "[Errno 28] No space left on device: '/dev/full'"),
        ("", "/proc/f", "[Errno 2] No such file or directory: '/proc/f'"),
        ("", "n" * 300, "[Errno 36] File name too long: '{here}/" + "n" * 300 + "'"),
    ],
)
def test_errors_name_the_users_file(fleet: Fleet, boards, tmp_path: Path, there, dest, message):
    if there == "loop":
        (tmp_path / there).symlink_to(there)
    elif there == "g/":
        (tmp_path / "g/f").mkdir(parents=True)
    elif there:
        (tmp_path / there).write_text("old")
    one = fleet["demo-1"]
    one.put(b"new", ":dl/f")
    place = dest if dest.startswith("/") else f"{tmp_path}/{dest}"
    try:
        error = one.get(":dl/f", place)["demo-1"].error
    except OSError as raised:
        error = raised
    one.rm(":dl", recursive=True)
    assert str(error) == message.format(here=tmp_path)
    assert not list(tmp_path.rglob("*.mbm-part"))


def test_folder_that_cannot_be_made_here_is_one_error(fleet: Fleet, boards, tmp_path: Path):
    one = fleet["demo-1"]
    one.put(b"a", ":dl/a")
    one.put(b"b", ":dl/sub/b")
    (tmp_path / "dl").write_text("old")
    error = one.get(":dl", tmp_path)["demo-1"].error
    one.rm(":dl", recursive=True)
    assert str(error) == f"[Errno 20] Not a directory: '{tmp_path}/dl'"


@pytest.mark.parametrize("dest", ["new", "old"])
def test_interrupted_download_leaves_nothing(fleet: Fleet, boards, tmp_path: Path, dest):
    one = fleet["demo-1"]
    one.put(os.urandom(300_000), ":dl/f").raise_for_error()
    (tmp_path / "old").write_text("old")

    def interrupt(_board: str, moved: int, _total: int) -> None:
        if moved:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.get(":dl/f", tmp_path / dest, progress=interrupt)
    assert one.run("1").ok  # behind the job that ends
    one.rm(":dl", recursive=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_data_after_an_interrupt_is_refused(tmp_path: Path):
    downloads = DownloadSink(tmp_path, False, [RequestedFile("/a", "a", 3)] * 2)
    downloads.start_file("lab-1")
    downloads.write("lab-1", b"ab")
    downloads.close()
    for act in (lambda: downloads.write("lab-1", b"c"), lambda: downloads.start_file("lab-1")):
        with pytest.raises(OSError, match="was interrupted"):
            act()
    assert list(tmp_path.iterdir()) == []
