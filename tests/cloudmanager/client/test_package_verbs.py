"""Options of the verbs for packages, on real boards."""

from __future__ import annotations

import json

import pytest

from cloudmanager.protocol.errors import PackageError


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "zzz"
    folder.mkdir()
    (folder / "__init__.py").write_text("A = 1")
    return folder


@pytest.fixture
def board(cm_board):
    return cm_board._boards


def test_dry_run_changes_nothing(board, source, tmp_path):
    lock = tmp_path / "lock.json"
    outcome = board.install(str(source), dry_run=True, lock=lock).value
    assert outcome.put == ("/lib/zzz/__init__.mpy",)
    assert outcome.origins == {"zzz": "the caller's own files"}
    assert outcome.free_bytes > 100_000
    assert (board.packages().value, lock.exists()) == ({}, False)
    assert not board.stat(":/lib/zzz").ok
    assert not board.stat(":/.cm").ok


def test_sources_and_another_folder(board, source):
    outcome = board.install(str(source), no_mpy=True, target_dir="/libs").value
    assert outcome.put == ("/libs/zzz/__init__.py",)
    assert board.run("import sys; sys.path.append('/libs'); import zzz; zzz.A").value == 1


def test_uncompilable_file_is_installed_as_source_with_a_note(board, source):
    (source / "odd.py").write_text("def f(:\n")
    outcome = board.install(str(source)).value
    assert outcome.put == ("/lib/zzz/__init__.mpy", "/lib/zzz/odd.py")
    (note,) = outcome.notes
    assert "/lib/zzz/odd.py" in note
    assert note.endswith("its source is installed")


def test_names_from_a_file_and_a_lock(board, source, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text(f"# mine\n{source}\n\n")
    lock = tmp_path / "lock.json"
    assert board.install(file=names, lock=lock).value.put == ("/lib/zzz/__init__.mpy",)
    first = lock.read_text()
    assert json.loads(first)["wanted"] == ["zzz"]
    assert str(tmp_path) not in first
    assert board.install(file=names, lock=lock, locked=True).value.put == ()
    assert lock.read_text() == first


def test_lock_is_written_only_if_a_board_succeeded(board, source, tmp_path):
    lock = tmp_path / "lock.json"
    board.put(b"MINE = 1", ":/lib/zzz/__init__.mpy").raise_for_error()
    assert not board.install(str(source), lock=lock).ok
    assert not lock.exists()
    assert board.install(str(source), lock=lock, force=True).ok
    assert lock.exists()


def test_local_package_json_installs_its_folder(board, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.py").write_text("A = 7")
    (folder / "package.json").write_text(json.dumps({"urls": [["m/a.py", "a.py"]], "version": "3"}))
    outcome = board.install(str(folder / "package.json")).value
    assert (list(outcome.packages), outcome.put) == (["mine"], ("/lib/m/a.mpy",))
    assert board.uninstall("mine").value.removed == ("/lib/m/a.mpy",)


def test_local_manifest_installs_its_files(board, tmp_path):
    (tmp_path / "mine/src/drv").mkdir(parents=True)
    (tmp_path / "mine/src/drv/__init__.py").write_text("D = 8")
    (tmp_path / "mine/unused.py").write_text("")
    text = 'metadata(version="3.1")\npackage("drv", base_path="src")\n'
    (tmp_path / "mine/manifest.py").write_text(text)
    outcome = board.install(str(tmp_path / "mine")).value
    assert outcome.put == ("/lib/drv/__init__.mpy",)
    assert board.run("import drv\ndrv.D").value == 8
    assert board.uninstall("mine").value.removed == ("/lib/drv/__init__.mpy",)


def test_missing_requirements_and_sources_are_errors(board, source, tmp_path):
    with pytest.raises((PackageError, OSError)):
        board.install("./no-such-folder")
    with pytest.raises(PackageError):
        board.install("two@at@signs")
    with pytest.raises(PackageError, match="no package to install"):
        board.install()
    (tmp_path / "zzz.py").write_text("")
    with pytest.raises(PackageError, match="have the same name"):
        board.install(str(source), str(tmp_path / "zzz.py"))
    (result,) = board.uninstall("nope").values()
    assert isinstance(result.error, PackageError)
    assert "no package is called nope" in str(result.error)


def test_package_without_files_installs_its_dependencies(board, source, tmp_path):
    (tmp_path / "hollow").mkdir()
    with pytest.raises(PackageError, match="has no file that could be installed"):
        board.install(str(tmp_path / "hollow"))
    (tmp_path / "hollow/package.json").write_text(json.dumps({"version": "1"}))
    assert board.install(str(tmp_path / "hollow")).value.put == ()
    assert list(board.packages().value) == ["hollow"]


def test_full_board_is_an_error_before_anything_is_sent(board, source):
    (source / "data.bin").write_bytes(bytes(range(256)) * 4 * 1024)
    (result,) = board.install(str(source)).values()
    assert isinstance(result.error, OSError)
    assert "No space left" in str(result.error)
    assert not board.stat(":/.cm").ok


def test_board_without_a_free_block_stays_unchanged(board, source):
    board.install(str(source)).raise_for_error()
    board.run(FILL).raise_for_error()
    assert board.df().value.free == 0
    for done in (board.install(str(source), no_mpy=True), board.uninstall("zzz")):
        assert "No space left" in str(done["board-1"].error)
    assert (list(board.packages().value), board.packages().value.drift) == (["zzz"], ())


FILL = """
n = 0
try:
    while True:
        with open("/fill%d" % n, "wb") as file:
            file.write(bytes(4000))
        n += 1
except OSError:
    pass
"""


#: A file of an install that was interrupted before its journal was written.
STAGED = """
import os
for path in ("/.cm", "/.cm/new"):
    try:
        os.mkdir(path)
    except OSError:
        pass
with open("/.cm/new/0", "wb") as file:
    for _ in range({size} // 1024):
        file.write(bytes(1024))
"""


def test_space_of_an_interrupted_install_is_reused(board, source):
    (space,) = board.df().to_dict().values()
    board.run(STAGED.format(size=space.free * 3 // 5), timeout=20).raise_for_error()
    (source / "data.bin").write_bytes(bytes(space.free // 2))
    assert len(board.install(str(source), dry_run=True).value.put) == 2
    assert len(board.install(str(source)).value.put) == 2
    assert not board.stat(":/.cm/new").ok
