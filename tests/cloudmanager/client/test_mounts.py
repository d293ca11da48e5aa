"""Folders that are mounted on real boards."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cloudmanager import AsyncFleet, BoardError, Boards, Fleet
from cloudmanager.client import mounts
from cloudmanager.protocol.errors import ServerError
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.conftest import RunningServer, running_boards

#: Some tests start programs, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(180)

MODULES = 10


@pytest.fixture
def one(fleet: Fleet, boards: VirtualBoards) -> Boards:
    """A board that other tests use, too, without what they left in its heap."""
    board = fleet["demo-1"]
    board.run("", fresh=True).raise_for_error()
    return board


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a package of ten modules, of which each imports the next."""
    src = tmp_path / "src"
    (src / "pkg").mkdir(parents=True)
    (src / "pkg" / "__init__.py").write_text("from . import m0\n")
    for n in range(MODULES):
        following = f"from . import m{n + 1}\n" if n % 2 == 0 and n + 1 < MODULES else ""
        (src / "pkg" / f"m{n}.py").write_text(f"{following}VALUE = {n}\n# {'x' * 300 * n}\n")
    (src / "data.txt").write_text("first\nsecönd\n")
    (src / "big.bin").write_bytes(bytes(range(256)) * 10)
    (src / "empty").touch()
    return src


def run(boards: Boards, code: str):
    return boards.run(textwrap.dedent(code)).raise_for_error().value


def test_package_is_imported_from_a_mounted_folder(one: Boards, folder: Path):
    names = ", ".join(f"m{n}" for n in range(MODULES))
    with one.mount(folder):
        total = run(one, f"from pkg import {names}\nsum(m.VALUE for m in ({names}))")
        assert total == sum(range(MODULES))
        assert run(one, "import pkg\npkg.m3.__file__") == "/remote/pkg/m3.py"


def test_files_folders_and_streams_are_as_on_the_disk(one: Boards, folder: Path):
    with one.mount(folder):
        seen = run(
            one,
            """
            import os
            with open("data.txt") as f:
                lines = [line for line in f]
            with open("/remote/big.bin", "rb") as f:
                head = f.read(300)
                f.seek(2559)
                tail = f.read()
            (os.getcwd(), sorted(os.listdir()), sorted(e[:2] for e in os.ilistdir("pkg"))[:2],
             os.stat("big.bin")[6], os.stat("pkg")[0], lines, head[-1], tail)
            """,
        )
    assert seen == (
        "/remote",
        ["big.bin", "data.txt", "empty", "pkg"],
        [("__init__.py", 0x8000), ("m0.py", 0x8000)],
        2560,
        0x4000,
        ["first\n", "secönd\n"],
        43,
        b"\xff",
    )


ERRORS = """
import os
def error(f):
    try:
        f()
    except OSError as e:
        return e.errno
"""

SLOW = f"{ERRORS}\nimport time\nprint(1)\ntime.sleep(2)"


def test_mounted_folder_is_read_only_and_errors_are_those_of_files(one: Boards, folder: Path):
    with one.mount(folder):
        one.run(ERRORS)
        assert run(one, "error(lambda: open('/remote/data.txt', 'w'))") == errno.EROFS
        assert run(one, "error(lambda: open('/remote/new.txt', 'ab'))") == errno.EROFS
        assert run(one, "error(lambda: open('/remote/pkg'))") == errno.EISDIR
        assert run(one, "error(lambda: open('/remote/pk'))") == errno.ENOENT
        assert run(one, "error(lambda: os.stat('/remote/pkg/m'))") == errno.ENOENT
        assert run(one, "open('/remote/empty').read()") == ""


def test_folder_is_gone_after_the_with_statement(one: Boards, folder: Path):
    with one.mount(folder):
        run(one, "import pkg, sys, os")
    assert run(one, "'/remote' in sys.path, 'pkg' in sys.modules, os.getcwd()") == (
        False,
        False,
        "/",
    )
    assert run(one, "[each for each in os.mount() if each[1] == '/remote']") == []
    assert run(one, "'cm.mount' in sys.modules") is False


def test_change_between_two_cells_is_seen(one: Boards, folder: Path):
    module = folder / "pkg" / "m9.py"
    with one.mount(folder):
        assert run(one, "from pkg.m9 import VALUE\nVALUE") == 9
        module.write_text("VALUE = 'changed'\n")
        assert run(one, "from pkg.m9 import VALUE\nVALUE") == "changed"
        (folder / "new.py").write_text("VALUE = 'new'\n")
        assert run(one, "import new\nnew.VALUE") == "new"
        (folder / "new.py").unlink()
        assert isinstance(one.run("import new")["demo-1"].error, BoardError)


def test_change_reaches_cells_of_other_callers(one: Boards, folder: Path, server):
    notes: queue.Queue[str] = queue.Queue()
    with Fleet() as other, one.mount(folder, on_note=notes.put):
        assert run(other["demo-1"], "import pkg.m9\npkg.m9.VALUE") == 9
        (folder / "pkg" / "m9.py").write_text("VALUE = 10\n")
        assert notes.get(timeout=20) == "changed: pkg/m9.py"
        assert run(other["demo-1"], "import pkg.m9\npkg.m9.VALUE") == 10


def test_file_that_changes_while_a_cell_runs_is_not_served(one: Boards, folder: Path):
    """A board would put pieces of two versions together."""
    code = f"{SLOW}\nerror(lambda: open('/remote/data.txt'))"
    with one.mount(folder):
        group = one.submit(code, listen=True)
        assert any(event.kind == "output" for event in group.events())
        (folder / "data.txt").write_text("FIRST\nsecönd\n")  # of the same size
        assert group.results(60)["demo-1"].value == errno.EIO
        assert run(one, "open('/remote/data.txt').read()") == "FIRST\nsecönd\n"


def test_links_that_leave_the_folder_and_ignored_files_do_not_exist(one: Boards, folder: Path):
    secret = folder.parent / "secret.py"
    secret.write_text("VALUE = 'secret'\n")
    (folder / "out.py").symlink_to(secret)
    (folder / "in.txt").symlink_to(folder / "data.txt")
    (folder / ".env").write_text("TOKEN=1")
    (folder / "notes.md").write_text("ignored")
    (folder / ".mbmignore").write_text("*.md\n")
    notes: list[str] = []
    with one.mount(folder, on_note=notes.append):
        names = run(one, "import os\nsorted(os.listdir('/remote'))")
        assert names == ["big.bin", "data.txt", "empty", "in.txt", "pkg"]
        run(one, ERRORS)
        for name in ("out.py", ".env", "notes.md", ".mbmignore", "../secret.py"):
            assert run(one, f"error(lambda: open('/remote/{name}'))") == errno.ENOENT
    assert any("out.py leads out of its folder" in note for note in notes)


def test_file_that_becomes_a_link_out_of_the_folder_is_not_served(one: Boards, folder: Path):
    """While a cell runs, the board has the list with the file that was there before."""
    path, secret = folder / "three.txt", folder.parent / "secret.txt"
    for file in (path, secret):
        file.write_text("abc")
        os.utime(file, ns=(10**18, 10**18))
    code = f"{SLOW}\nerror(lambda: open('/remote/three.txt'))"
    with one.mount(folder):
        group = one.submit(code, listen=True)
        assert any(event.kind == "output" for event in group.events())
        path.unlink()
        path.symlink_to(secret)
        assert group.results(60)["demo-1"].value == errno.EIO


def test_names_with_odd_characters(one: Boards, folder: Path):
    names = ["a b.txt", "ü.txt", "日本.txt", "q'\"%{}.txt", "-x.txt", "Pkg.txt", "pkg.txt"]
    for name in names:
        (folder / name).write_text(name)
    (folder / "tab\t.txt").write_text("no")
    (folder / os.fsdecode(b"\xff.txt")).write_text("no")
    notes: list[str] = []
    with one.mount(folder, on_note=notes.append):
        code = "import os\n[open('/remote/' + n).read() for n in sorted(os.listdir('/remote'))"
        assert run(one, f"{code} if n.endswith('.txt') and n != 'data.txt']") == sorted(names)
    assert len([note for note in notes if "left out" in note]) == 2


def test_folders_are_listed_beside_a_mounted_one_which_sync_leaves_alone(one: Boards, folder: Path):
    with one.mount(folder):
        names = [entry.path for entry in one.ls(":/")["demo-1"].value]
        assert {"/remote", "/cm.json"} <= set(names)
        whole = [entry.path for entry in one.ls(":/", recursive=True)["demo-1"].value]
        assert not [path for path in whole if path.startswith("/remote")]
        assert one.ls(":/remote")["demo-1"].value


def test_folder_with_too_many_files_is_refused(one: Boards, tmp_path: Path):
    for n in range(mounts.MAX_FILES):
        (tmp_path / f"{n}.py").write_text("")
    with one.mount(tmp_path):
        assert run(one, "import os\nlen(list(os.ilistdir('/remote')))") == mounts.MAX_FILES
        (tmp_path / "one_more.py").write_text("")
    with pytest.raises(ValueError, match="too many files to be mounted: at most 200"):
        one.mount(tmp_path)
    with pytest.raises(FileNotFoundError):
        one.mount(tmp_path / "none")
    with pytest.raises(NotADirectoryError):
        one.mount(tmp_path / "0.py")


def test_fresh_cell_has_the_folder(one: Boards, folder: Path):
    with one.mount(folder):
        result = one.run("import pkg.m9\npkg.m9.VALUE", fresh=True).raise_for_error()
        assert result["demo-1"].value == 9


def test_second_caller_is_refused_while_a_folder_is_mounted(one: Boards, folder: Path):
    with one.mount(folder), Fleet() as other:
        with pytest.raises(ServerError, match="demo-1 has a folder of '.*' mounted already"):
            other["demo-[1-2]"].mount(folder)
        assert run(one, "import pkg.m9\npkg.m9.VALUE") == 9


def test_mount_point_is_one_name_in_the_root(one: Boards, folder: Path):
    for path in (":/", ":a/b", ":a b", ":" + "x" * 40):
        with pytest.raises(ServerError, match="can be mounted at a path such as /remote"):
            one.mount(folder, path)
    with one.mount(folder, ":src"):
        assert run(one, "import pkg\npkg.__file__") == "/src/pkg/__init__.py"


def test_async_fleet_mounts_on_three_boards(boards: VirtualBoards, folder: Path):
    async def main() -> None:
        async with AsyncFleet() as fleet:
            three = fleet["demo-[1-3]"]
            async with three.mount(folder) as mounted:
                assert mounted.boards == ["demo-1", "demo-2", "demo-3"]
                results = await three.run("import pkg.m9\npkg.m9.VALUE")
                assert results.to_dict() == dict.fromkeys(mounted.boards, 9)
            gone = await three.run("import os\n[m for m in os.mount() if m[1] == '/remote']")
            assert gone.to_dict() == dict.fromkeys(mounted.boards, [])

    asyncio.run(main())


def test_task_between_cells_gets_an_error_and_the_next_cell_runs(one: Boards, folder: Path):
    code = f"""
    import asyncio
    {textwrap.indent(ERRORS, "    ").strip()}
    seen = []
    async def later():
        await asyncio.sleep_ms(100)
        seen.append(error(lambda: open("/remote/data.txt")))
    task = asyncio.create_task(later())
    """
    with one.mount(folder):
        run(one, code)
        deadline = time.monotonic() + 20
        while run(one, "seen") == [] and time.monotonic() < deadline:
            time.sleep(0.3)
        assert run(one, "seen") in ([None], [errno.EAGAIN])
        assert run(one, "import pkg.m9\npkg.m9.VALUE") == 9


# The caller, its link, or the server dies


@contextlib.contextmanager
def caller_process(target: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `mbm board-mount` until the end of the block."""
    command = [sys.executable, "-m", "cloudmanager", "board-mount", target, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "is mounted at :/remote on demo-1" in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


READS = f"{ERRORS}\nprint('reading')\nn = error(lambda: open('/remote/data.txt'))\nn"


def wait_unmounted(boards: Boards) -> None:
    deadline = time.monotonic() + 30
    while run(boards, "import os\n[m for m in os.mount() if m[1] == '/remote']"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_interrupt_ends_a_read_of_a_caller_that_does_not_answer(one: Boards, folder: Path):
    with caller_process("demo-1", folder) as process:
        os.kill(process.pid, signal.SIGSTOP)
        group = one.submit(READS, listen=True)
        assert any(event.kind == "output" for event in group.events())
        group.interrupt()
        result = group.results(30)["demo-1"]
        assert result.status == "interrupted"
        assert run(one, "1 + 1") == 2  # the link is as before


def test_read_of_a_caller_that_does_not_answer_fails(one: Boards, folder: Path):
    with caller_process("demo-1", folder) as process:
        os.kill(process.pid, signal.SIGSTOP)
        assert run(one, READS) in (errno.EIO, errno.ETIMEDOUT)


def test_killed_caller_fails_reads_and_its_folder_is_unmounted(one: Boards, folder: Path):
    with caller_process("demo-1", folder) as process:
        run(one, ERRORS)
        code = "while not error(lambda: open('/remote/big.bin', 'rb')): print('read')"
        group = one.submit(code, listen=True, timeout=60)
        assert any(event.kind == "output" for event in group.events())
        process.kill()
        assert group.results(60)["demo-1"].ok
        wait_unmounted(one)


def test_killed_server_fails_reads_and_the_folder_comes_back(
    start_server: Callable[..., AbstractContextManager[RunningServer]],
    folder: Path,
    tmp_path: Path,
):
    home = tmp_path / "home"
    with contextlib.ExitStack() as stack:
        with start_server(home) as server:
            token = (home / "token").read_text().strip()
            fleet = stack.enter_context(Fleet(server.url, token))
            stack.enter_context(running_boards(server, fleet, ["lab-1"]))
            lab = fleet["lab-1"]
            stack.enter_context(lab.mount(folder))
            run(lab, ERRORS)
            code = "while not error(lambda: open('/remote/big.bin', 'rb')): print('read')\nend = 1"
            group = lab.submit(code, listen=True)
            assert any(event.kind == "output" for event in group.events())
            server.process.kill()
        with start_server(home, tcp_port=server.tcp_port):
            wait_online(fleet, ["lab-1"])
            assert run(lab, "end") == 1
            deadline = time.monotonic() + 60
            while not lab.run("import pkg.m9").ok:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert run(lab, "pkg.m9.VALUE") == 9


def test_module_whose_getattr_raises_does_not_keep_a_folder_mounted(one: Boards, folder: Path):
    (folder / "odd.py").write_text("def __getattr__(name):\n    raise ImportError(name)\n")
    with one.mount(folder):
        run(one, "import os, sys, odd")
        (folder / "data.txt").write_text("changed")
        assert run(one, "open('/remote/data.txt').read(), 'odd' in sys.modules") == (
            "changed",
            False,
        )
    assert run(one, "[each for each in os.mount() if each[1] == '/remote']") == []
