"""`mbm board-upload`, `-download`, `-sync` and `mbm board` from the arguments to the output."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager import Fleet
from cloudmanager.cli.entry import main
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.cloudmanager.conftest import WAIT, background


@pytest.fixture
def work(tmp_path: Path, monkeypatch, boards: VirtualBoards, fleet: Fleet) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    fleet["demo-[1-3]"].rm(":c", recursive=True)


def test_upload_and_download(mbm, work: Path):
    (work / "a.py").write_text("a = 1")
    ran = mbm("board-upload", "demo-[1-2]", "a.py", ":c/")
    assert (ran.status, "5 bytes written" in ran.out) == (0, True)
    (work / "b.py").write_text("b = 1")
    assert mbm("board-upload", "demo-1", "a.py", "b.py", ":c/").status == 0
    assert mbm("board-upload", "demo-1", "a.py", ":c/named.py").status == 0
    assert mbm("board", "demo-1", "cat", "c/named.py").out == "a = 1"
    ran = mbm("board-download", "demo-1", ":c/a.py", "out/", "--json")
    assert ran.json["demo-1"]["value"] == "out/a.py"
    assert (work / "out/a.py").read_text() == "a = 1"
    assert mbm("board-download", "demo-[1-2]", "c/a.py").status == 0
    assert (work / "demo-2/a.py").exists()


def test_upload_without_destination_copies_to_the_root(mbm, work: Path, fleet: Fleet):
    (work / "root.txt").write_text("x")
    assert mbm("board-upload", "demo-1", "root.txt").status == 0
    assert fleet["demo-1"].read(":root.txt").value == b"x"
    fleet["demo-1"].rm(":root.txt")


def test_failing_download_is_status_1_as_text_and_as_json(mbm, work: Path):
    ran = mbm("board-download", "demo-1", ":no", "--json")
    assert ran.status == 1
    assert ran.json["demo-1"]["status"] == "error"
    assert ran.json["demo-1"]["error"].startswith("FileNotFoundError: [Errno 2]")
    ran = mbm("board-download", "demo-[1-2]", ":no")
    assert ran.status == 1
    assert ran.out.endswith("\n:/no: No such file or directory.\n")
    ran = mbm("board-download", "demo-1", ":no")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "mbm: demo-1:/no: No such file or directory.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("board-upload", "demo-1", "no.py"),
        ("board-sync", "demo-1", "no.py"),
        ("board-execute", "demo-1", "no.py"),
        ("board-install", "demo-1", "./no.py"),
        ("board-install", "demo-1", "-r", "no.py"),
        ("board-install", "demo-1", "--locked", "--lock", "no.py"),
        ("server-restore", "no.py"),
        ("board-enrol", "new-1", "-o", "no.py/x"),
    ],
    ids=lambda given: given[0],
)
def test_missing_local_file_is_reported(mbm, work: Path, fleet: Fleet, arguments):
    ran = mbm(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"mbm: {arguments[-1]}: No such file or directory.")
    assert "new-1" not in {board["name"] for board in fleet.boards()}


def test_sync_copies_and_deletes_files(mbm, work: Path):
    (work / "src").mkdir()
    (work / "src/a.py").write_text("a")
    ran = mbm("board-sync", "demo-1", "src", ":c", "--dry-run")
    counts = "1 to copy (1 byte), 0 equal; dry run, nothing was changed"
    assert ran.out == f"copy    /c/a.py\n{counts}\n"
    ran = mbm("board-sync", "demo-1", "src", ":c")
    assert (ran.status, ran.out) == (0, "copied  /c/a.py\n1 copied (1 byte), 0 equal\n")
    (work / "src/a.py").rename(work / "src/b.py")
    ran = mbm("board-sync", "demo-1", "src", ":c", "--delete", "--json")
    assert ran.json["demo-1"]["value"] == {
        "put": ["/c/b.py"],
        "delete": ["/c/a.py"],
        "same": 0,
        "notes": [],
        "size_bytes": 1,
    }


def test_sync_watch_repeats_until_ctrl_c(work: Path, fleet: Fleet):
    (work / "src").mkdir()
    (work / "src/a.py").write_text("first")
    with background("board-sync", "demo-1", "src", ":c", "--watch") as watching:
        until(lambda: read(fleet) == b"first")
        deadline = time.monotonic() + WAIT
        n = 0
        while read(fleet) == b"first" and time.monotonic() < deadline:
            n += 1  # save repeatedly, because the watch may not have started yet
            (work / "src/a.py").write_text(f"saved {n}")
            time.sleep(0.2)
        until(lambda: read(fleet) == b"saved %d" % n)
        os.kill(watching.pid, signal.SIGINT)
        assert watching.wait(WAIT) == 130
        assert "Traceback" not in watching.stderr.read()


def read(fleet: Fleet) -> bytes:
    result = fleet["demo-1"].read(":c/a.py")["demo-1"]
    return result.value if result.ok else b""


def until(condition) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_macros_run_on_boards(mbm, work: Path):
    ran = mbm("board", "demo-[1-2]", "echo", "hello")
    assert (ran.status, "hello" in ran.out) == (0, True)
    assert mbm("board", "demo-1", "mem_free", "--json").json["demo-1"]["value"] > 10_000
    assert mbm("board", "demo-1", "rm", "no").status == 1
    ran = mbm("board", "demo-1", "lss")
    assert (ran.status, "Did you mean ls?" in ran.err) == (2, True)


@pytest.mark.parametrize(
    "words",
    [("a.py", "b.py"), ("a.py", "b/"), ("a.py", "c"), ("a.py", "c/b.py"), (":c",), ("a.py", "~x")],
)
def test_place_of_an_upload_is_not_guessed(mbm, work: Path, fleet: Fleet, words):
    (work / "a.py").write_text("a")
    fleet["demo-1"].mkdir(":c")
    before = fleet["demo-1"].ls(":/", recursive=True).value
    ran = mbm("board-upload", "demo-1", *words)
    assert (ran.status, ran.out) == (2, "")
    assert "begins with a colon" in ran.err or "nothing to copy" in ran.err
    assert fleet["demo-1"].ls(":/", recursive=True).value == before


def test_place_of_a_sync_is_not_guessed(mbm, work: Path):
    for name in ("one", "two"):
        (work / name).mkdir()
    ran = mbm("board-sync", "demo-1", "one", "two")
    assert (ran.status, ":two" in ran.err) == (2, True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a",
        b"a\n",
        b"a\r\nb\r\n",
        b"a\rb",
        b"\n\n",
        bytes(range(256)),
        b"\xef\xbb\xbfa",
        b"a\0",
    ],
)
def test_cat_writes_the_bytes_of_a_file(work: Path, fleet: Fleet, content, capfdbinary):
    fleet["demo-1"].put(content, ":c/f")
    with pytest.raises(SystemExit) as ended:
        main(["board", "demo-1", "cat", ":c/f"])
    assert ended.value.code == 0
    assert capfdbinary.readouterr().out == content


@pytest.mark.parametrize(("content", "value"), [(b"\xc3\xa9", "é"), (b"\xff", {"base64": "/w=="})])
def test_cat_as_json(mbm, work: Path, fleet: Fleet, content, value):
    fleet["demo-1"].put(content, ":c/f")
    assert mbm("board", "demo-1", "cat", ":c/f", "--json").json["demo-1"]["value"] == value


def test_upload_of_an_empty_file_says_whether_it_is_new(mbm, work: Path):
    (work / "__init__.py").touch()
    said = [mbm("board-upload", "demo-1", "__init__.py", ":c/").out for _ in range(2)]
    assert said == ["0 bytes written\n", "already up to date\n"]
