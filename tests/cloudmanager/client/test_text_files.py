"""Text files of all editors: byte order marks and line ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudmanager import Boards, Fleet
from cloudmanager.client.package_verbs import _read_requirements
from cloudmanager.client.syncing import read_ignore_file
from cloudmanager.client.text_files import read_text
from cloudmanager.protocol.errors import PackageError

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (BOM, ""),
        (b"a\nb\n", "a\nb\n"),
        (BOM + b"a\r\nb", "a\nb"),
        (b"a\rb", "a\nb"),
        (b"a" + BOM, "a\ufeff"),
        ("\ufeffé\r\n".encode("utf-16-le"), "é\n"),
        ("\ufeffé\r\n".encode("utf-16-be"), "é\n"),
        ("\ufeffa".encode("utf-16-le"), "a"),
        ("\ufeffé\r\n".encode("utf-32-le"), "é\n"),
        ("\ufeffé\r\n".encode("utf-32-be"), "é\n"),
        (BOM + BOM + b"a", "a"),
        ("\ufeff\ufeffa".encode("utf-16-le"), "a"),
    ],
)
def test_text_is_read_without_a_mark(tmp_path: Path, data, text):
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == text


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"\xe9",
        b"\xff\xfe",
        BOM + b"\xff",
        b"\xff\xfea",
        "secrets.py\n".encode("utf-16-le"),
        "secrets.py\n".encode("utf-32-be"),
        b"\xff\xfe\0\0a",
        b"a\0b",
    ],
)
def test_what_is_no_text_is_refused_with_the_name_of_the_file(tmp_path: Path, data):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
        read_text(tmp_path / "a.txt")


MARKED = [
    BOM + b"secrets.py\r\n*.key\r\n",
    BOM + BOM + b"secrets.py\r*.key",
    *(
        "\ufeffsecrets.py\r\n*.key\r\n".encode(f"utf-{each}")
        for each in ("16-le", "16-be", "32-le")
    ),
]


@pytest.mark.parametrize("data", MARKED)
def test_first_pattern_of_an_ignore_file_with_a_mark_holds(tmp_path: Path, data):
    (tmp_path / ".mbmignore").write_bytes(data)
    ignored = read_ignore_file(tmp_path)
    assert [ignored.match_file(name) for name in ("secrets.py", "a.key", "app.py")] == [1, 1, 0]


@pytest.mark.parametrize("data", MARKED)
def test_first_line_of_a_requirements_file_with_a_mark_is_read(tmp_path: Path, data):
    (tmp_path / "wanted.txt").write_bytes(data)
    assert _read_requirements(tmp_path / "wanted.txt") == ["secrets.py", "*.key"]


@pytest.fixture
def board(fleet: Fleet, boards) -> Boards:
    return fleet["demo-1"]


def test_cell_with_a_mark_runs(board: Boards):
    assert board.run("\ufeff6*7").value == 42
    assert board.run("\ufeffx = a", inputs={"a": 1}).ok


@pytest.mark.parametrize("no_mpy", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_module_with_a_mark_is_installed_without_it(
    board: Boards, tmp_path: Path, encoding, no_mpy
):
    (tmp_path / "marked.py").write_text("level = 'é'\n", encoding=encoding)
    try:
        assert board.install(str(tmp_path / "marked.py"), no_mpy=no_mpy).ok
        assert board.run("import marked\nmarked.level").value == "é"
    finally:
        board.uninstall("marked")
        board.reset()


def test_module_that_is_no_text_is_refused(board: Boards, tmp_path: Path):
    (tmp_path / "marked.py").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(PackageError, match=r"marked: /lib/marked\.py is not UTF-8 text"):
        board.install(str(tmp_path / "marked.py"))
