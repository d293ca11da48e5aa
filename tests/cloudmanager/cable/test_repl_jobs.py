"""Cells and installs on bridged boards: results are those of boards with the client."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudmanager.protocol.errors import BoardError

#: A busy machine needs a minute for an install and the resets that follow.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def board(bridged_board):
    return bridged_board


def test_value_is_returned(board):
    assert board.run("[1, 'a', None]").value == [1, "a", None]


def test_variables_persist_between_cells(board):
    board.run("kept = 'x'").raise_for_error()
    assert board.run("kept * 3").value == "xxx"


def test_output_and_value_are_separate(board):
    result = board.run("print('one', 2)\nprint('(3,)')\n(4,)")
    (only,) = result.values()
    assert (only.stdout, result.value) == ("one 2\n(3,)\n", (4,))


def test_text_beyond_ascii_is_preserved(board):
    result = board.run("print('é✓')\n'ü'")
    assert ([each.stdout for each in result.values()], result.value) == (["é✓\n"], "ü")


def test_error_has_the_boards_traceback_with_the_cells_line(board):
    results = board.run("x = 1\n1 / 0")
    with pytest.raises(BoardError) as caught:
        results.raise_for_error()
    assert 'File "<cell>", line 2' in str(caught.value)
    assert caught.value.ename == "ZeroDivisionError"


def test_text_of_the_users_is_never_taken_for_protocol(board):
    result = board.run("print('a\\x04b')\nprint('\\x04\\x04>')\n'v\\x04w'")
    (only,) = result.values()
    assert (only.stdout, result.value) == ("a\x04b\n\x04\x04>\n", "v\x04w")
    (only,) = board.run("print('one')\nraise ValueError('no KeyboardInterrupt \\x04>')").values()
    assert (only.status, only.stdout, only.error.ename) == ("error", "one\n", "ValueError")
    assert board.run("6 * 7").value == 42


def test_cell_that_seems_to_have_ended_goes_on(bridged_unix):
    code = "import time\nprint('\\x04\\x04>', end='')\ntime.sleep(0.3)\nprint('on')\n1"
    result = bridged_unix.run(code)
    (only,) = result.values()
    assert (only.stdout, result.value) == ("\x04\x04>on\n", 1)


def test_cell_that_is_silent_for_long_ends_as_any_other(bridged_unix):
    """The bridge asks a silent REPL for its prompt: the answers come when the cell has ended."""
    silent = "import time\ntime.sleep(1.3)\n"
    result = bridged_unix.run(silent + "print('on')\n1")
    (only,) = result.values()
    assert (only.stdout, result.value) == ("on\n", 1)
    assert bridged_unix.run("6 * 7").value == 42
    (only,) = bridged_unix.run(silent + "raise ValueError('x')").values()
    assert (only.stdout, only.error.ename, only.error.evalue) == ("", "ValueError", "x")
    assert bridged_unix.run("6 * 7").value == 42


def test_replaced_builtins_and_names_do_not_change_values_and_files(bridged_unix):
    code = "import builtins\nkept = print, repr, open\ndef wrong(*a, **k): return '!'\n"
    code += "builtins.print = builtins.repr = builtins.open = wrong\nprint = open = range = wrong"
    bridged_unix.run(code).raise_for_error()
    try:
        assert bridged_unix.run("[1, 'two']").value == [1, "two"]
        bridged_unix.put(b"data", ":/wrapped").raise_for_error()
        assert bridged_unix.read(":/wrapped").value == b"data"
        bridged_unix.rm(":/wrapped").raise_for_error()
    finally:
        bridged_unix.run(
            "builtins.print, builtins.repr, builtins.open = kept\ndel print, open, range"
        )


@pytest.mark.parametrize("code", ["import sys\nsys.exit()", "import machine\nmachine.reset()"])
def test_cell_that_restarts_the_board_ends_with_an_error(bridged_unix, code):
    (result,) = bridged_unix.run(f"kept = 1\nprint('one')\n{code}", timeout=60).values()
    assert result.status == "error"
    assert result.stdout.startswith("one\n")
    assert "the board was restarted: its names are gone" in result.traceback
    (result,) = bridged_unix.run("kept", wait=60, timeout=60).values()
    assert result.error.ename == "NameError"


def test_input_cannot_be_answered(board):
    (result,) = board.run("input('? ')", timeout=60).values()
    assert result.error.ename == "EOFError"


def test_await_works_on_boards_with_asyncio(bridged_unix):
    assert bridged_unix.run("import asyncio\nawait asyncio.sleep(0.01)\n7").value == 7


def test_long_cells_and_values_arrive_completely(bridged_unix):
    assert bridged_unix.run(f"x = {list(range(3_000))}\nx").value == list(range(3_000))


def test_value_of_none_is_none(bridged_unix):
    assert bridged_unix.run("None").value is None
    assert bridged_unix.run("x = 1").value is None


def test_repr_that_fails_is_an_error(bridged_unix):
    (result,) = bridged_unix.run("class R:\n def __repr__(self): 1/0\nR()").values()
    assert result.error.ename == "ZeroDivisionError"


def test_syntax_that_only_the_board_refuses_is_its_error(bridged_unix):
    (result,) = bridged_unix.run("def f(a, /, b): pass\nf(1, b=2)\nprint(f'{1=}')").values()
    assert result.status == "error"


# Installs

#: A board whose flash is FAT, as a pyboard's.
RAM_DISK = """
import os, vfs
class Disk:
    data = bytearray(100 * 512)
    def readblocks(self, n, buf): buf[:] = self.data[n * 512 : n * 512 + len(buf)]
    def writeblocks(self, n, buf): self.data[n * 512 : n * 512 + len(buf)] = buf
    def ioctl(self, op, arg): return {4: 100, 5: 512}.get(op)
disk = Disk()
vfs.VfsFat.mkfs(disk)
vfs.umount("/")
vfs.mount(vfs.VfsFat(disk), "/")
os.chdir("/")
"""


def package(folder: Path, n: int) -> str:
    (folder / "zzz").mkdir(exist_ok=True)
    (folder / "zzz/__init__.py").write_text(f"from zzz import b\nA = b.B + {n}")
    (folder / "zzz/b.py").write_text(f"B = {n}")
    return str(folder / "zzz")


def test_package_is_installed_upgraded_and_uninstalled(bridged_unix, tmp_path: Path):
    bridged_unix.install(package(tmp_path, 1)).raise_for_error()
    assert bridged_unix.run("import zzz\nzzz.A", fresh=True, timeout=60).value == 2
    bridged_unix.install(wish := package(tmp_path, 2)).raise_for_error()
    assert bridged_unix.run("import zzz\nzzz.A", fresh=True, timeout=60).value == 4
    assert [len(installed) for installed in bridged_unix.packages().to_dict().values()] == [1]
    bridged_unix.uninstall(wish).raise_for_error()
    assert not bridged_unix.stat(":/lib/zzz").ok
    assert not bridged_unix.stat(":/.cm").ok
    code = (
        "import sys\n[n for n in sys.modules if n[:2] == 'cm'], [n for n in dir() if 'cm_m' in n]"
    )
    assert bridged_unix.run(code).value == ([], [])


def test_install_on_fat_has_a_note_about_power_cuts(bridged_unix, tmp_path: Path):
    bridged_unix.run(RAM_DISK, fresh=True, timeout=60).raise_for_error()
    plan = bridged_unix.install(package(tmp_path, 1)).value
    bridged_unix.run("0", fresh=True, timeout=60).raise_for_error()
    assert (len(plan.put), len(plan.notes)) == (2, 1)
    assert "FAT" in plan.notes[0]


def test_interrupted_install_is_completed_at_the_next_start(bridged_unix):
    bridged_unix.put(b"V = 42", ":/.cm/new/0").raise_for_error()
    bridged_unix.put(b"+0 /lib/late.py\n", ":/.cm/journal").raise_for_error()
    assert bridged_unix.run("import late\nlate.V", fresh=True, timeout=60).value == 42
    assert not bridged_unix.stat(":/.cm/journal").ok
    bridged_unix.rm(":/lib/late.py").raise_for_error()


def test_board_without_folders_refuses_packages(bridged_microbit, tmp_path: Path):
    (result,) = bridged_microbit.install(package(tmp_path, 1)).values()
    assert "this board has no folders for packages" in str(result.error)
