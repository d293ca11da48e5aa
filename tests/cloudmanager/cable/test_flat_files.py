"""File operations on a micro:bit with a heap of 9 KB; errors for unsupported ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cloudmanager.client.fleet import Boards


@pytest.fixture(scope="module")
def micro(bridged_microbit: Boards):
    yield bridged_microbit
    assert bridged_microbit.run("6 * 7", timeout=10).value == 42


def test_file_round_trip(micro, tmp_path: Path):
    content = random.Random(3).randbytes(1000)
    assert micro.put(content, ":data.bin").value == 1000
    assert micro.put(content, ":data.bin").value == 0
    assert [(e.path, e.size) for e in micro.ls().value] == [("/data.bin", 1000)]
    assert micro.stat(":data.bin").value.size == 1000
    assert micro.get(":data.bin", tmp_path).value.read_bytes() == content
    assert micro.rm(":data.bin").ok
    assert micro.ls().value == []


def test_text_file_can_be_read_by_cells(micro):
    micro.put("x = 'é'\n".encode(), ":own.py").raise_for_error()
    assert micro.run("import own\nown.x").value == "é"
    micro.rm(":own.py").raise_for_error()


def test_folder_is_synchronised_with_the_root_folder(micro, tmp_path: Path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(f"# {name}")
    assert micro.sync(tmp_path).value.put == ("/a.py", "/b.py")
    (tmp_path / "b.py").unlink()
    plan = micro.sync(tmp_path, delete=True).value
    assert (plan.put, plan.delete, plan.same) == ((), ("/b.py",), 1)
    assert [entry.name for entry in micro.ls().value] == ["a.py"]
    micro.rm(":a.py").raise_for_error()


def test_missing_file_is_not_found(micro):
    for result in (micro.read(":none"), micro.rm(":none"), micro.stat(":none"), micro.ls(":none")):
        (one,) = result.values()
        assert isinstance(one.error, FileNotFoundError), one.error


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (lambda micro: micro.put(b"x", ":lib/x.py"), "this board has no folders"),
        (lambda micro: micro.mkdir(":lib"), "this board has no folders"),
        (
            lambda micro: micro.put(b"x", ":a") and micro.mv(":a", ":b"),
            "this board cannot rename its files",
        ),
        (lambda micro: micro.df(), "this board does not report its free space"),
    ],
)
def test_unsupported_operations_are_errors(micro, act, why):
    (result,) = act(micro).values()
    assert result.status == "error"
    assert why in str(result.error)


FILL = """
n = 0
try:
    while True:
        with open('fill%d' % n, 'wb') as f:
            for _ in range(2): f.write(b'x' * 500)
        n += 1
except OSError:
    pass
"""


def test_full_flash_leaves_no_partial_file(micro):

    micro.run(FILL).raise_for_error()
    (result,) = micro.put(bytes(range(256)) * 6, ":more").values()
    assert isinstance(result.error, OSError)
    assert "No space left" in str(result.error)
    names = [entry.name for entry in micro.ls().value]
    assert not [name for name in names if name.startswith("more")]
    micro.run("import os\nfor i in range(n + 1):\n  os.remove('fill%d' % i)")
