"""One install on twenty boards: files are fetched and compiled once, boards may differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.package_index import PackageIndex, running_package_index
from benchmarks.rows.install import publish_packages
from cloudmanager.board_client import BoardIdentity
from cloudmanager.protocol.errors import PackageError
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.virtual.virtual_boards import VirtualBoards

from .conftest import Lab


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with running_package_index() as made:
        yield made


def cached_files(lab: Lab) -> dict[Path, int]:
    """Return the cached addresses and the times when they were written."""
    folder = lab.server.home / "packages/names"
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_twenty_files_for_twenty_boards_are_fetched_and_compiled_once(
    lab: Lab, index: PackageIndex
):
    publish_packages(index, 1)
    boards = lab.fleet["lab-[1-20]"]
    lab.fleet["lab-7"].put(b"MINE = 1", ":/lib/one.mpy").raise_for_error()
    urls = {"": index.url}
    first = boards.install("pack", indexes=urls)
    assert {name for name, result in first.items() if not result.ok} == {"lab-7"}
    assert isinstance(first["lab-7"].error, PackageError)
    assert {len(result.value.put) for result in first.values() if result.ok} == {20}
    files = {
        page: count for page, count in index.request_counts.items() if page.startswith("/file/")
    }
    assert (len(files), set(files.values())) == (20, {1})
    before = cached_files(lab)
    lab.fleet["lab-7"].rm(":/lib/one.mpy").raise_for_error()
    again = boards.install("pack", indexes=urls).raise_for_error()
    sent = {name for name, result in again.items() if result.value.size_bytes}
    assert sent == {"lab-7"}
    assert cached_files(lab) == before, "something was fetched or compiled again"
    third = boards.install("pack", indexes=urls).raise_for_error()
    assert {(result.value.put, result.value.size_bytes) for result in third.values()} == {((), 0)}
    assert set(boards.run("import pack, one; pack.VERSION").to_dict().values()) == {1}
    boards.uninstall("pack", "one", "two").raise_for_error()


def test_board_with_message_macs_installs_and_reads_files(lab: Lab, tmp_path: Path):
    """A MAC makes each message longer; the longest ones must still fit in the board's buffer."""
    (enrolled,) = lab.fleet.enrol(["mac-1"], plain=True)
    key = bytes.fromhex(enrolled["key"])
    identity = BoardIdentity(enrolled["name"], enrolled["id"], key, {"mac": enrolled["mac"]})
    (tmp_path / "long.py").write_text("".join(f"V{n} = {n}\n" for n in range(600)))
    address = ("127.0.0.1", lab.server.tcp_port)
    with VirtualBoards([identity], address, tmp_path / "virtual"):
        wait_online(lab.fleet, ["mac-1"])
        board = lab.fleet["mac-1"]
        assert board.install(str(tmp_path / "long.py"), no_mpy=True).value.put == ("/lib/long.py",)
        assert board.read(":/lib/long.py").value == (tmp_path / "long.py").read_bytes()
        assert list(board.packages().value) == ["long"]
    lab.fleet.revoke("mac-1")
