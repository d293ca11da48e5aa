"""`mbm board BOARD edit`: the user's editor, and that nothing is lost."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudmanager import Boards, Fleet
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.cloudmanager.conftest import MBM, WAIT

#: Sets the user's editor to one that runs this Python code, in which `path` is the file.
SetEditor = Callable[[str], None]


@pytest.fixture
def board(fleet: Fleet, boards: VirtualBoards, home: Path) -> Iterator[Boards]:
    one = fleet["demo-1"]
    yield one
    one.rm([":f.py", ":new.py", ":g.py"], missing_ok=True)


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SetEditor:
    def set_editor(code: str) -> None:
        script = tmp_path / "my editor.py"
        head = "import os, sys\nfrom pathlib import Path\npath = Path(sys.argv[-1])\n"
        script.write_text(head + code)
        monkeypatch.setenv("EDITOR", f"{sys.executable} {shlex.quote(str(script))} --wait")
        monkeypatch.delenv("VISUAL", raising=False)

    return set_editor


def kept(home: Path) -> list[Path]:
    return sorted(path for path in (home / "edited").rglob("*") if path.is_file())


def forget(home: Path) -> None:
    for path in kept(home):
        path.unlink()
        path.parent.rmdir()


@pytest.fixture(autouse=True)
def nothing_left(home: Path) -> Iterator[None]:
    yield
    assert kept(home) == []


def test_changed_file_is_written(board: Boards, editor: SetEditor, mbm):
    board.put(b"a = 1\r\n\xff", ":f.py")
    editor("path.write_bytes(path.read_bytes().replace(b'1', b'2'))")
    done = mbm("board", "demo-1", "edit", "f.py")
    assert (done.status, done.out, done.err) == (0, "/f.py: 8 bytes written\n", "")
    assert board.read(":f.py").value == b"a = 2\r\n\xff"


def test_new_file_is_written_and_an_unchanged_one_is_not(board: Boards, editor: SetEditor, mbm):
    editor("path.write_text('new')")
    assert mbm("board", "demo-1", "edit", ":new.py").out == "/new.py: 3 bytes written\n"
    assert mbm("board", "demo-1", "edit", ":new.py").out == "/new.py: unchanged\n"
    editor("pass")
    assert mbm("board", "demo-1", "edit", ":g.py").out == "/g.py: unchanged\n"
    assert not board.stat(":g.py").ok


def test_several_files_are_edited_one_after_the_other(board: Boards, editor: SetEditor, mbm):
    editor("path.write_text(path.name)")
    done = mbm("board", "demo-1", "edit", "f.py", "g.py", "--json")
    assert done.json["demo-1"]["value"] == "/f.py: 4 bytes written\n/g.py: 4 bytes written"
    assert board.read([":f.py", ":g.py"]).value == b"f.pyg.py"


def test_editor_that_replaces_the_file_and_leaves_others(board: Boards, editor: SetEditor, mbm):
    editor("Path(f'{path}~').write_text('old'); path.unlink(); path.write_text('mine')")
    assert mbm("board", "demo-1", "edit", "f.py").status == 0
    assert board.read(":f.py").value == b"mine"


def test_only_this_user_can_read_the_local_file(board: Boards, editor: SetEditor, mbm, tmp_path):
    out = tmp_path / "modes"
    editor(
        f"modes = [oct(each.stat().st_mode & 0o777) for each in (path, path.parent)]\n"
        f"Path({str(out)!r}).write_text(' '.join(modes) + ' ' + path.name)"
    )
    before = os.umask(0)
    try:
        assert mbm("board", "demo-1", "edit", "f.py").status == 0
    finally:
        os.umask(before)
    assert out.read_text() == "0o600 0o700 f.py"


def test_text_stays_here_if_it_cannot_be_written(
    board: Boards, editor: SetEditor, mbm, home: Path, fleet: Fleet
):
    (home / "folder").mkdir()
    script = "from cloudmanager import Fleet\nFleet()['demo-1'].mkdir(':f.py')\n"
    editor(script + "path.write_text('mine')")
    done = mbm("board", "demo-1", "edit", "f.py")
    (text,) = kept(home)
    assert (done.status, text.read_text()) == (1, "mine")
    assert f"your text is in {text}; `mbm board-upload demo-1 {text} :f.py` writes it" in done.err
    assert "demo-1:/f.py: Is a directory" in done.err
    board.rmdir(":f.py")
    assert mbm("board-upload", "demo-1", str(text), ":f.py").status == 0
    assert board.read(":f.py").value == b"mine"
    forget(home)


def test_change_of_somebody_else_is_not_overwritten(
    board: Boards, editor: SetEditor, mbm, home: Path
):
    for before in (b"old", None):
        if before is None:
            board.rm(":f.py")
        else:
            board.put(before, ":f.py")
        editor(
            "from cloudmanager import Fleet\nFleet()['demo-1'].put(b'theirs', ':f.py')\n"
            "path.write_text('mine')"
        )
        done = mbm("board", "demo-1", "edit", "f.py")
        assert done.status == 1
        assert "has changed on the board while it was edited" in done.err
        assert board.read(":f.py").value == b"theirs"
        assert [path.read_text() for path in kept(home)] == ["mine"]
        forget(home)


def test_board_that_is_away_meanwhile_loses_nothing(
    boards: VirtualBoards, fleet: Fleet, editor: SetEditor, mbm, home: Path
):
    fleet["demo-2"].put(b"old", ":f.py")
    editor(
        "from cloudmanager import Fleet\nfleet = Fleet()\n"
        "fleet.rename('demo-2', 'demo-gone')\npath.write_text('mine')"
    )
    try:
        done = mbm("board", "demo-2", "edit", "f.py")
        assert done.status == 2
        assert "demo-2" in done.err
        assert [path.read_text() for path in kept(home)] == ["mine"]
        forget(home)
    finally:
        fleet.rename("demo-gone", "demo-2")
        fleet["demo-2"].rm(":f.py")


def test_editor_that_fails_writes_nothing(board: Boards, editor: SetEditor, mbm, home: Path):
    board.put(b"old", ":f.py")
    editor("sys.exit(3)")
    done = mbm("board", "demo-1", "edit", "f.py")
    assert done.status == 1
    assert (
        done.err == "mbm: demo-1:/f.py: the editor ended with status 3, so nothing was written.\n"
    )
    editor("path.write_text('mine'); sys.exit(1)")
    assert "your text is in" in mbm("board", "demo-1", "edit", "f.py").err
    assert [path.read_text() for path in kept(home)] == ["mine"]
    assert board.read(":f.py").value == b"old"
    forget(home)


def test_what_cannot_be_edited_is_refused_before_the_editor_starts(
    board: Boards, editor: SetEditor, mbm, monkeypatch, tmp_path: Path
):
    out = tmp_path / "ran"
    editor(f"Path({str(out)!r}).touch()")
    for arguments, why in [
        (("demo-[1-2]", "edit", "f.py"), "edit is for one board; demo-[1-2] selects 2"),
        (("demo-1", "edit", "lib/cm/run.mpy"), "belongs to the board's client"),
        (("demo-1", "edit"), "Usage: mbm board TARGET edit PATH…"),
        (("demo-1", "edit", "lib"), "demo-1:/lib: Is a directory"),
        (("no-board", "edit", "f.py"), "no-board"),
    ]:
        refused = mbm("board", *arguments)
        assert refused.status in (1, 2)
        assert why in refused.err
    assert not out.exists()
    monkeypatch.setenv("EDITOR", str(tmp_path / "no editor").replace(" ", "\\ "))
    failed = mbm("board", "demo-1", "edit", "f.py").err
    assert "cannot be started: No such file or directory. Correct the environment" in failed
    monkeypatch.delenv("EDITOR")
    assert "No editor is set" in mbm("board", "demo-1", "edit", "f.py").err


def test_ctrl_c_is_the_editors(board: Boards, editor: SetEditor, home: Path, tmp_path: Path):
    """In a terminal, Ctrl-C reaches mbm, too."""
    editor(
        "import os, signal, time\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(30)\n"
        "except KeyboardInterrupt:\n    path.write_text('mine')\n"
    )
    command = [MBM, "board", "demo-1", "edit", "f.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT)
    assert (done.returncode, done.stdout) == (0, "/f.py: 4 bytes written\n")
    assert board.read(":f.py").value == b"mine"


def test_handler_of_ctrl_c_is_restored(board: Boards, editor: SetEditor, mbm):
    editor("pass")
    before = signal.getsignal(signal.SIGINT)
    mbm("board", "demo-1", "edit", "f.py")
    assert signal.getsignal(signal.SIGINT) is before
