"""The verbs for packages, on real boards: their options."""

import json

import pytest

from cloudmanager.errors import PackageError


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "zzz"
    folder.mkdir()
    (folder / "__init__.py").write_text("A = 1")
    return folder


@pytest.fixture
def board(cm_board):
    return cm_board._boards


def test_dry_run_changes_nothing(board, source):
    told = board.install(str(source), dry_run=True).value
    assert told.put == ("/lib/zzz/__init__.mpy",)
    assert board.packages().value == {}
    assert not board.stat(":/lib/zzz").ok


def test_sources_and_another_folder(board, source):
    told = board.install(str(source), no_mpy=True, target_dir="/libs").value
    assert told.put == ("/libs/zzz/__init__.py",)
    assert board.run("import sys; sys.path.append('/libs'); import zzz; zzz.A").value == 1


def test_names_from_a_file_and_a_lock(board, source, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text(f"# mine\n{source}\n\n")
    lock = tmp_path / "lock.json"
    assert board.install(file=names, lock=lock).value.put == ("/lib/zzz/__init__.mpy",)
    first = lock.read_text()
    assert json.loads(first)
    assert board.install(file=names, lock=lock, locked=True).value.put == ()
    assert lock.read_text() == first


def test_who_asks_for_nothing_or_for_what_is_not_there_is_told(board):
    with pytest.raises((PackageError, OSError)):
        board.install("./no-such-folder")
    with pytest.raises(PackageError):
        board.install("two@at@signs")
    (result,) = board.uninstall("nope").values()
    assert "no package nope" in str(result.error)
