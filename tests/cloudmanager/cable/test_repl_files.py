"""File verbs on bridged boards: they work as on boards with the client."""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path

import pytest

from cloudmanager.client.fleet import Boards, Fleet

KIB = random.Random(8).randbytes(1024)


@pytest.fixture(scope="module")
def unix(bridged_unix: Boards):
    yield bridged_unix
    assert bridged_unix.run("6 * 7", timeout=10).value == 42


@pytest.fixture(autouse=True)
def _tidy(unix):
    yield
    with contextlib.suppress(OSError):
        unix.rm(":/w", recursive=True)


def test_file_round_trip(unix, tmp_path: Path):
    content = KIB * 10 + b"end"
    assert unix.put(content, ":/w/deep/x.bin").value == len(content)
    assert unix.stat(":/w/deep/x.bin").value.size == len(content)
    path = unix.get(":/w/deep/x.bin", tmp_path).value
    assert path.read_bytes() == content
    assert unix.read(":/w/deep/x.bin").value == content


def test_unchanged_file_is_not_sent(unix):
    assert unix.put(KIB, ":/w/x").value == 1024
    assert unix.put(KIB, ":/w/x").value == 0
    assert unix.put(KIB[::-1], ":/w/x").value == 1024
    assert unix.read(":/w/x").value == KIB[::-1]


@pytest.mark.parametrize("name", ["it's", 'a "b"', "back\\slash", "é ✓", "{0} %s"])
def test_file_names_are_data(unix, name):
    unix.put(b"x", f":/w/{name}").raise_for_error()
    assert [entry.name for entry in unix.ls(":/w").value] == [name]
    assert unix.read(f":/w/{name}").value == b"x"


def test_names_that_are_not_utf8_are_listed_read_and_removed(unix):
    unix.mkdir(":/w").raise_for_error()
    unix.run("with open(b'/w/a\\xff', 'wb') as f: f.write(b'odd')").raise_for_error()
    unix.put(b"x", ":/w/é").raise_for_error()
    assert {entry.name for entry in unix.ls(":/w").value} == {"a\udcff", "é"}
    assert unix.read(":/w/a\udcff").value == b"odd"
    (missing,) = unix.stat(":/w/b\udcff").values()
    assert isinstance(missing.error, FileNotFoundError)
    assert missing.error.filename.endswith(":/w/b\udcff")
    assert unix.mv(":/w/a\udcff", ":/w/b").ok
    unix.run("open(b'/w/a\\xff', 'wb').close()").raise_for_error()
    assert unix.rm(":/w", recursive=True).ok


def test_folders_are_made_listed_renamed_and_removed(unix):
    assert unix.mkdir(":/w").ok
    assert unix.mkdir(":/w/a/b/c", parents=True).ok
    assert unix.put(b"12345", ":/w/a/x").value == 5
    assert unix.put(b"", ":/w/a/empty").value == 0
    listed = [(entry.path, entry.size) for entry in unix.ls(":/w", recursive=True).value]
    assert listed == [("/w/a", 0), ("/w/a/b", 0), ("/w/a/b/c", 0), ("/w/a/empty", 0), ("/w/a/x", 5)]
    assert unix.mv(":/w/a/x", ":/w/y").ok
    assert unix.rmdir(":/w/a/b/c").ok
    assert unix.rm(":/w/a", recursive=True).ok
    assert [entry.name for entry in unix.ls(":/w").value] == ["y"]
    assert unix.df().value.free > 100_000


@pytest.mark.parametrize(
    ("verb", "arguments", "error"),
    [
        ("ls", (":/nowhere",), FileNotFoundError),
        ("read", (":/nowhere",), FileNotFoundError),
        ("stat", (":/nowhere",), FileNotFoundError),
        ("rm", (":/nowhere",), FileNotFoundError),
        ("mkdir", (":/lib",), FileExistsError),
        ("rm", (":/w",), IsADirectoryError),
    ],
)
def test_errors_are_the_built_in_classes(unix, verb, arguments, error):
    unix.mkdir(":/w", parents=True)
    unix.mkdir(":/lib", parents=True)
    (result,) = getattr(unix, verb)(*arguments).values()
    assert isinstance(result.error, error)
    assert arguments[0][1:] in str(result.error)


def test_folder_is_synchronised(unix, tmp_path: Path):
    for name in ("a.py", "sub/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    assert len(unix.sync(tmp_path, ":/w").value.put) == 2
    (tmp_path / "a.py").unlink()
    plan = unix.sync(tmp_path, ":/w", delete=True).value
    assert (len(plan.put), len(plan.delete)) == (0, 1)
    assert [entry.path for entry in unix.ls(":/w", recursive=True).value] == [
        "/w/sub",
        "/w/sub/b.py",
    ]


def test_interrupted_upload_is_resumed(unix, fleet: Fleet):
    content = random.Random(9).randbytes(80_000)
    begun = threading.Event()

    def moved(_: str, bytes_moved: int, __: int) -> None:
        if bytes_moved:
            begun.set()

    upload = threading.Thread(target=lambda: unix.put(content, ":/w/big", progress=moved))
    upload.start()
    assert begun.wait(10)
    (job,) = [job["job"] for job in fleet.jobs() if job["status"] is None]
    fleet.request("interrupt", jobs=[job])
    upload.join(10)
    left = unix.stat(":/w/big.mbm-part").value.size
    assert 0 < left < len(content)
    assert unix.put(content, ":/w/big").value == len(content) - left
    assert unix.read(":/w/big").value == content


def test_file_operations_change_no_variables(unix):
    unix.run("import os\nf = h = w = r = n = e = 'mine'").raise_for_error()
    unix.put(KIB, ":/w/x").raise_for_error()
    unix.read(":/w/x")
    unix.ls(":/w")
    assert unix.run("[f, h, w, r, n, e, os.getcwd()]").value == ["mine"] * 6 + ["/"]


FILL = """
n = 0
try:
    while True:
        with open('/w/fill%d' % n, 'wb') as f:
            for _ in range(8): f.write(b'x' * 4096)
        n += 1
except OSError:
    pass
"""


def test_full_flash_leaves_no_partial_file(unix):
    unix.mkdir(":/w").raise_for_error()
    unix.run(FILL).raise_for_error()
    (result,) = unix.put(bytes(30_000), ":/w/more").values()
    assert isinstance(result.error, OSError)
    assert "No space left" in str(result.error)
    names = [entry.name for entry in unix.ls(":/w").value]
    assert not [name for name in names if name.startswith("more")]
    unix.run("import os\nfor i in range(n + 1):\n  os.remove('/w/fill%d' % i)")
