"""Output that is closed, full, or in an encoding that lacks characters: never a traceback."""

from __future__ import annotations

import ast
import io
import subprocess

import pytest

from cloudmanager.cli import streams
from cloudmanager.cli.streams import prepare_streams
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.cloudmanager.conftest import MBM
from tests.wheel import ROOT

SAY = "board-execute demo-1 -c \"print('é日─…')\""
FULL = "mbm: standard output: No space left on device."
#: A command of the shell, with the exit status and a part of the output that are expected.
COMMANDS = [
    ("mbm board-list demo-1 >&-", 0, ""),
    ("mbm board-list --json >&-", 0, ""),
    ("mbm --help >&-", 0, ""),
    ("mbm nosuch 2>&-", 2, ""),
    (f"mbm {SAY} <&- >&- 2>&-", 0, ""),
    ("mbm board-execute demo-1 <&-", 0, ""),
    ("mbm board-list | true", 0, ""),
    ("mbm board-list nosuch 2>&1 | true", 0, ""),
    ("mbm board-list >/dev/full", 1, FULL),
    ("mbm board-list --json >/dev/full", 1, FULL),
    ("mbm --help >/dev/full", 1, FULL),
    ("mbm board-list --help >/dev/full", 1, FULL),
    ("mbm --version >/dev/full", 1, FULL),
    ("mbm board-execute demo-1 -c \"print('x' * 50_000)\" >/dev/full", 1, FULL),
    ("mbm --help >&-", 0, ""),
    ("mbm --help | true", 0, ""),
    ("PYTHONIOENCODING=ascii mbm board-list demo-1", 0, "----  -----"),
    (f"PYTHONIOENCODING=ascii mbm {SAY}", 0, "\\xe9\\u65e5-..."),
    (f"PYTHONIOENCODING=latin-1 mbm {SAY}", 0, "é\\u65e5-..."),
    (f"LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 mbm {SAY}", 0, "-..."),
    ("PYTHONIOENCODING=ascii mbm board-execute demo-1 -c '1/0; \"é\"'", 1, "ZeroDivisionError"),
    ("PYTHONIOENCODING=ascii mbm board-list 日本", 2, "\\u65e5"),
]


@pytest.mark.parametrize(("command", "status", "shown"), COMMANDS, ids=[c for c, *_ in COMMANDS])
def test_output_that_cannot_be_written_is_no_traceback(
    boards: VirtualBoards, home: object, command: str, status: int, shown: str
):
    done = subprocess.run(["bash", "-c", command.replace("mbm", MBM, 1)], capture_output=True)
    output = (done.stdout + done.stderr).decode("latin-1")
    assert "site-packages" not in output
    assert "entry.py" not in output
    assert "Exception ignored" not in output
    assert output.count("No space left") <= 1
    assert (done.returncode, shown in output) == (status, True), output


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("ascii", "a─━…µ", b"a-=...u"),
        ("ascii", "é─é", b"\\xe9-\\xe9"),
        ("ascii", "\ud800x", b"\\ud800x"),
        ("cp1252", "é─…", "é-…".encode("cp1252")),
        ("cp1252", "├── a\n│   └── b", b"|-- a\n|   `-- b"),
        ("utf-8", "─é", "─é".encode()),
    ],
)
def test_characters_that_an_encoding_lacks_are_replaced(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str, written: bytes
):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr("sys.stdout", stream)
    prepare_streams()
    stream.write(text)
    stream.flush()
    assert raw.getvalue() == written


@pytest.mark.parametrize("package", ["cli", "display", "results"])
def test_characters_that_mbm_prints_are_readable_in_ascii(package: str):
    """A console, or a pipe on Windows, may have none of the lines and dashes of tables."""
    printed: set[str] = set()
    for path in (ROOT / "cloudmanager" / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                printed |= set(node.value)
    assert {char for char in printed if not char.isascii() and char.isprintable()} <= set(
        streams._REPLACEMENTS
    )
