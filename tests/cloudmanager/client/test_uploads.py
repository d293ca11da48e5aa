"""Destinations of copied files, by rsync's rules; and copies of many files."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from cloudmanager import Boards, Fleet
from cloudmanager.client import sources
from cloudmanager.display.file_report import files_text
from cloudmanager.virtual.virtual_boards import VirtualBoards


@pytest.fixture
def two(fleet: Fleet, boards: VirtualBoards) -> Iterator[Boards]:
    two = fleet["demo-[1-2]"]
    two.mkdir(":u")
    yield two
    two.rm(":u", recursive=True)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/a.py").write_text("a")
    (tmp_path / "src/sub/b.py").write_text("b")
    return tmp_path / "src"


def files(boards: Boards, board: str = "demo-1") -> list[str]:
    found = boards.ls(":u", recursive=True)[board].value
    return sorted(entry.path.removeprefix("/u/") for entry in found if not entry.is_dir)


@pytest.mark.parametrize(
    ("dest", "found"),
    [(":u/x.py", "x.py"), (":u/", "a.py"), (":u/n/m/", "n/m/a.py"), (":u/n/m", "n/m")],
)
def test_file_is_copied_to_its_destination(two: Boards, src: Path, dest, found):
    two.put(src / "a.py", dest).raise_for_error()
    assert files(two) == files(two, "demo-2") == [found]


@pytest.mark.parametrize("there", ["", ":u/new", ":u/new/src"])
@pytest.mark.parametrize(
    ("origin", "dest", "below"),
    [
        ("src", ":u/new", "new/src/"),
        ("src", ":u/new/", "new/src/"),
        ("src", ":u", "src/"),
        ("src/", ":u/new", "new/"),
        ("src/", ":u/new/", "new/"),
        ("src/.", ":u/new", "new/"),
        ("src/sub/..", ":u", ""),
        ("link", ":u", "link/"),
        ("link/", ":u", ""),
    ],
)
def test_folder_is_copied_to_one_place_whatever_is_there(
    two: Boards, fleet: Fleet, src: Path, there, origin, dest, below
):
    (src.parent / "link").symlink_to("src")
    if there:
        fleet["demo-1"].mkdir(there, parents=True)
    for _ in range(2):
        two.put(f"{src.parent}/{origin}", dest).raise_for_error()
        assert files(two) == files(two, "demo-2") == [f"{below}a.py", f"{below}sub/b.py"]


@pytest.mark.parametrize(
    ("origin", "dest", "folders"),
    [
        ("none", ":u/", ["none"]),
        ("none", ":u/other", ["other", "other/none"]),
        ("none/", ":u/other", ["other"]),
        ("with", ":u", ["with", "with/a", "with/a/b"]),
    ],
)
def test_empty_folder_is_made(two: Boards, tmp_path: Path, origin, dest, folders):
    (tmp_path / "none").mkdir()
    (tmp_path / "with/a/b").mkdir(parents=True)
    made = two.put(f"{tmp_path}/{origin}", dest)
    assert made.to_dict() == {"demo-1": 0, "demo-2": 0}
    assert files_text(made).endswith("\n1 folder made")
    assert files_text(two.put(f"{tmp_path}/{origin}", dest)).endswith("\nalready up to date")
    found = two.ls(":u", recursive=True)["demo-1"].value
    assert [entry.path.removeprefix("/u/") for entry in found] == folders


def test_several_sources_are_put_into_a_folder(two: Boards, src: Path):
    assert two.put([src / "a.py", src / "sub"], ":u/n").ok
    assert files(two) == ["n/a.py", "n/sub/b.py"]


@pytest.mark.parametrize("content", ["file", b"bytes"])
def test_file_does_not_go_into_a_folder_without_a_slash(two, src: Path, fleet: Fleet, content):
    fleet["demo-2"].mkdir(":u/x")
    results = two.put(src / "a.py" if content == "file" else content, ":u/x")
    assert results["demo-1"].ok
    assert isinstance(results["demo-2"].error, IsADirectoryError)
    assert ":u/x/ is the place" in str(results["demo-2"].error)
    assert files(two) == ["x"]
    assert files(two, "demo-2") == []


@pytest.mark.parametrize(
    ("origins", "message"),
    [(["a.py", "sub/../a.py"], "would both"), (["a.py", "other/a.py"], "would both")],
)
def test_two_files_for_one_path_are_refused(two: Boards, src: Path, origins, message):
    (src / "other").mkdir()
    (src / "other/a.py").write_text("other")
    with pytest.raises(ValueError, match=message):
        two.put([src / origin for origin in origins], ":u/")
    assert files(two) == []


def test_home_folder_is_found(two: Boards, src: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(src))
    assert two.put("~/a.py", ":u/").ok
    assert two.put("~/sub/", ":u/").ok
    assert files(two) == ["a.py", "b.py"]


def test_what_was_written_tells_new_empty_files(two: Boards, tmp_path: Path):
    (tmp_path / "__init__.py").touch()
    for _ in range(2):
        first = two.put(tmp_path / "__init__.py", ":u/pack/")["demo-1"].value
        assert (first, first.files) == (0, 1)
        again = two.put(tmp_path / "__init__.py", ":u/pack/")["demo-1"].value
        assert (again, again.files) == (0, 0)
        two.put(b"x", ":u/pack/__init__.py")


def test_what_was_written_tells_new_folders(two: Boards, fleet: Fleet, tmp_path: Path):
    for name in ("a/none", "b/none", "c/d/none", "has"):
        (tmp_path / "src" / name).mkdir(parents=True)
    (tmp_path / "src/has/x").write_text("x")
    fleet["demo-2"].mkdir(":u/src/b/none", parents=True)
    results = two.put(tmp_path / "src", ":u")
    assert files_text(results).splitlines()[1::2] == [
        "1 byte written, 3 folders made",
        "1 byte written, 2 folders made",
    ]
    assert files_text(two.put(tmp_path / "src", ":u")).endswith("already up to date")


def test_bytes_need_a_file_name(two: Boards):
    with pytest.raises(ValueError, match="need a file name"):
        two.put(b"x", ":u/")


def test_many_files_need_several_jobs_and_have_one_result(two: Boards, tmp_path: Path):
    (tmp_path / "many").mkdir()
    for n in range(60):
        (tmp_path / f"many/{n}.py").write_bytes(os.urandom(100 + n))
    result = two.put(tmp_path / "many", ":u")
    assert result.to_dict() == dict.fromkeys(result, sum(100 + n for n in range(60)))
    assert len(files(two)) == 60
    assert two.put(tmp_path / "many", ":u/").to_dict() == dict.fromkeys(result, 0)
    assert len(files(two)) == 60


def test_failing_board_does_not_stop_others(two: Boards, tmp_path: Path, fleet: Fleet):
    fleet["demo-1"].mkdir(":u/many/30.py", parents=True)
    (tmp_path / "many").mkdir()
    for n in range(60):
        (tmp_path / f"many/{n}.py").write_text(str(n))
    results = two.put([tmp_path / "many"], ":u/")
    assert isinstance(results["demo-1"].error, IsADirectoryError)
    assert results["demo-2"].ok
    assert len(files(two, "demo-2")) == 60
    assert len(files(two, "demo-1")) == 59


def test_names_that_a_board_cannot_have_fail_alone(two: Boards, src: Path):
    for name in ("bad\udcff.py", "new\nline.py", "co:lon.py", "y" * 254):
        (src / name).write_text(name[:3])
    results = two.put(src, ":u")
    assert not results.ok
    assert "bad" in str(results["demo-1"].error)
    assert [len(each) for each in files(two)] == [8, 13, 15, 12]


def test_unreadable_files_fail_alone(two: Boards, tmp_path: Path, unreadable):
    src = tmp_path / "src"
    for name in ("a.py", "locked.py", "sub/b.py", "closed/c.py"):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_text(name)
    unreadable(src / "locked.py", src / "closed")
    results = two.put([src, src / "locked.py", src / "a.py"], ":u")
    for result in results.values():
        assert isinstance(result.error, PermissionError)
        assert str(result.error).count("locked.py") == 2
        assert "closed" in str(result.error)
    assert files(two) == ["a.py", "src/a.py", "src/sub/b.py"]
    with pytest.raises(PermissionError, match=r"locked\.py"):
        two.put(src / "locked.py", ":u/")
    closed = two.put(src / "closed", ":u/")["demo-1"].error
    assert isinstance(closed, PermissionError)


def test_links_that_are_left_out_are_named(two: Boards, src: Path):
    (src / "out").symlink_to("/etc")
    (src / "back").symlink_to(src / "sub")
    results = two.put(src, ":u")
    assert results.ok
    assert files(two) == ["src/a.py", "src/back/b.py", "src/sub/b.py"]
    note = f"note: {src}/out leads out of its folder, and is left out"
    assert files_text(results).endswith(note)
    assert files_text(two.sync(src, ":u/src")).endswith(note)
    (src / ".mbmignore").write_text("out\n")
    assert "note" not in files_text(two.sync(src, ":u/src"))


@pytest.mark.parametrize("name", ["boot.py", "main.py", "MAIN.mpy", "lib/cm/x.py", "cm.json"])
def test_path_of_the_client_fails_alone(two: Boards, src: Path, name):
    (src / name).parent.mkdir(parents=True, exist_ok=True)
    (src / name).write_text("no")
    for send in (lambda: two.put(f"{src}/", ":"), lambda: two.sync(src)):
        results = send()
        for result in results.values():
            assert isinstance(result.error, PermissionError)
            assert name.rpartition("/")[2] in str(result.error)
        assert "belongs to" in files_text(results)
        assert {entry.path for entry in two.ls(":sub")["demo-2"].value} == {"/sub/b.py"}
        assert two.read(":a.py")["demo-1"].value == b"a"
        two.rm([":a.py", ":sub"], recursive=True)
    with pytest.raises(OSError, match="belongs to") if "c" in name else nullcontext():
        failed = two.put(src / name, f":{name}")
        assert {type(result.error) for result in failed.values()} == {PermissionError}


@pytest.mark.parametrize("origin", ["src", "src/", ["src/a.py", "src/sub"]])
def test_folder_that_cannot_be_made_is_one_error(two: Boards, src: Path, origin):
    two.put(b"file", ":u/f")
    names = [origin] if isinstance(origin, str) else origin
    origins = [f"{src.parent}/{name}" for name in names]
    results = two.put(origins if len(origins) > 1 else origins[0], ":u/f/g")
    place = "/u/f/g" if origin != "src" else "/u/f/g/src"
    for name, result in results.items():
        assert isinstance(result.error, NotADirectoryError)
        assert str(result.error) == f"[Errno 20] Not a directory: '{name}:{place}'"
    assert len(files_text(results).splitlines()) == 2
    assert files(two) == ["f"]


def test_errors_of_several_files_are_folded_for_all_boards(two: Boards, src: Path):
    two.mkdir([":u/a.py", ":u/sub/b.py"], parents=True)
    head, text = files_text(two.put(f"{src}/", ":u")).splitlines()
    assert "demo-[1-2] · error" in head
    assert text == ":/u/a.py: Is a directory (also ':/u/sub/b.py': Is a directory)."


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_pipe_is_read_once(two: Boards, tmp_path: Path, size):
    os.mkfifo(tmp_path / "pipe")
    content = os.urandom(size)
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[content])
    writer.start()
    results = two.put(tmp_path / "pipe", ":u/x")
    writer.join()
    assert results.ok
    assert two.read(":u/x").to_dict() == dict.fromkeys(results, content)


def test_endless_device_is_refused(two: Boards, monkeypatch):
    monkeypatch.setattr(sources, "MAX_STREAM_BYTES", 100_000)
    with pytest.raises(OSError, match=r"File too large: '/dev/zero'"):
        two.put("/dev/zero", ":u/x")
    assert files(two) == []


@pytest.mark.parametrize("send", ["put", "several", "sync", "get"])
def test_empty_name_is_not_this_folder(two: Boards, src: Path, monkeypatch, send):
    monkeypatch.chdir(src)
    calls = {
        "put": lambda: two.put("", ":u"),
        "several": lambda: two.put([src / "a.py", ""], ":u"),
        "sync": lambda: two.sync("", ":u", delete=True),
        "get": lambda: two.get(":u", ""),
    }
    two.put(b"x", ":u/x")
    with pytest.raises(ValueError, match="is empty"):
        calls[send]()
    assert files(two) == ["x"]


def test_path_that_is_too_long_fails_alone(two: Boards, src: Path):
    deep = src.joinpath(*["d" * 200] * 6)
    (deep / "empty").mkdir(parents=True)
    (deep / "long.py").write_text("long")
    results = two.put(src, ":u")
    for result in results.values():
        assert f"[Errno {errno.ENAMETOOLONG}]" in str(result.error)
        assert "long.py" in str(result.error)
        assert "not sent: its path on the boards is too long" in str(result.error)
    assert files(two) == ["src/a.py", "src/sub/b.py"]


def test_file_that_the_server_refuses_fails_alone(two: Boards, src: Path):
    with (src / "huge.bin").open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    results = two.put(src, ":u")
    for result in results.values():
        assert "not sent: " in str(result.error)
        assert "huge.bin" in str(result.error)
    assert files(two) == ["src/a.py", "src/sub/b.py"]


def test_missing_source_sends_nothing(two: Boards, src: Path):
    with pytest.raises(FileNotFoundError):
        two.put([src / "a.py", src / "no.py"], ":u/")
    assert files(two) == []
