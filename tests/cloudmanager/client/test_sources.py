"""Contents to upload: files, bytes, folders without links that lead out of them."""

import hashlib
from pathlib import Path

import pytest

from cloudmanager.client import sources


def test_bytes_and_file_of_equal_content_have_one_digest(tmp_path: Path):
    data = bytes(range(256)) * 1000
    (tmp_path / "a.bin").write_bytes(data)
    file, raw = sources.source_from_file(tmp_path / "a.bin"), sources.source_from_bytes(data)
    assert file[1:] == raw[1:] == (len(data), hashlib.sha256(data).hexdigest())
    assert b"".join(file.pieces()) == b"".join(raw.pieces()) == data
    assert max(map(len, raw.pieces())) == sources.PIECE_BYTES


def test_missing_file_is_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        sources.source_from_file(tmp_path / "no")


def test_folder_is_walked_in_order_without_leaving_it(tmp_path: Path):
    outside, folder = tmp_path / "secret", tmp_path / "src"
    outside.mkdir()
    (outside / "key").write_text("key")
    (folder / "b/c").mkdir(parents=True)
    (folder / "b/c/d.py").write_text("d")
    (folder / "a.py").write_text("a")
    (folder / "empty").mkdir()
    (folder / "same.py").symlink_to(folder / "a.py")
    (folder / "key").symlink_to(outside / "key")
    (folder / "out").symlink_to(outside)
    (folder / "gone").symlink_to(outside / "nothing")
    found = [str(inner) for inner, _ in sources.walk_files(folder)]
    assert found == ["a.py", "same.py", "b/c/d.py"]
    notes: list[str] = []
    list(sources.walk(folder, is_left_out=lambda e: e.path.name == "key", on_link=notes.append))
    assert notes == [
        f"{folder}/gone is a link to nothing, and is left out",
        f"{folder}/out leads out of its folder, and is left out",
    ]


def test_what_is_left_out_of_a_walk_is_not_looked_at(tmp_path: Path):
    for name in ("a.py", "venv/x/b.py", "lib/venv/c.py", "lib/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    seen = []

    def is_left_out(entry: sources.LocalEntry) -> bool:
        seen.append(str(entry.inner))
        return entry.inner.name == "venv"

    found = [str(entry.inner) for entry in sources.walk(tmp_path, is_left_out=is_left_out)]
    assert found == ["a.py", "lib", "lib/d.py"]
    assert seen == ["a.py", "lib", "venv", "lib/d.py", "lib/venv"]


def test_walk_goes_on_after_what_is_unreadable(tmp_path: Path, unreadable):
    for name in ("a/x", "b/x", "c/x"):
        (tmp_path / name).mkdir(parents=True)
    unreadable(tmp_path / "b")
    errors: list[OSError] = []
    found = [str(entry.inner) for entry in sources.walk(tmp_path, on_error=errors.append)]
    assert found == ["a", "a/x", "b", "c", "c/x"]
    assert [(type(error), error.filename) for error in errors] == [
        (PermissionError, str(tmp_path / "b"))
    ]
    with pytest.raises(PermissionError):
        list(sources.walk(tmp_path))


def test_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        list(sources.walk_files(tmp_path / "no"))


def test_folders_in_each_other_are_walked_however_deep_they_are(tmp_path: Path):
    folders = [tmp_path]
    for _ in range(1020):  # more than Python's calls in each other
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    (folders[-1] / "file").touch()
    try:
        ((inner, _),) = sources.walk_files(tmp_path)
        assert len(inner.parts) == 1021
    finally:  # pytest's own clean-up would fail
        (folders[-1] / "file").unlink()
        for folder in reversed(folders[1:]):
            folder.rmdir()
