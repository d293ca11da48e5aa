"""``mbm board-mount`` with a real board."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.virtual.virtual_boards import VirtualBoards

pytestmark = pytest.mark.timeout(120)

MOUNT = [sys.executable, "-m", "cloudmanager", "board-mount"]
WAIT = 60  # seconds: programs take long to start on a busy machine
MOUNTED = "import os\n[str(each[1]) for each in os.mount() if each[1] != '/']"


@pytest.fixture
def folder(boards: VirtualBoards, tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text("VALUE = 1")
    return tmp_path


@contextlib.contextmanager
def mounting(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run `mbm board-mount`, which ends with the context."""
    with subprocess.Popen([*MOUNT, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_folder_is_mounted_until_ctrl_c(fleet: Fleet, folder: Path):
    with mounting("demo-1", str(folder)) as process:
        expected = f"{folder} is mounted at :/remote on demo-1; Ctrl-C ends it.\n"
        assert read_line(process) == expected
        assert fleet["demo-1"].run("import hello\nhello.VALUE").to_dict() == {"demo-1": 1}
        (folder / "hello.py").write_text("VALUE = 22")
        assert read_line(process) == "changed: hello.py\n"
        assert fleet["demo-1"].run("import hello\nhello.VALUE").to_dict() == {"demo-1": 22}
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 130
        assert fleet["demo-1"].run(MOUNTED).to_dict() == {"demo-1": []}


def test_json_has_an_object_on_each_line(fleet: Fleet, folder: Path):
    with mounting("--json", "demo-1", str(folder), ":src") as process:
        assert json.loads(read_line(process)) == {"mounted": ":src", "boards": ["demo-1"]}
        assert fleet["demo-1"].run(MOUNTED).to_dict() == {"demo-1": ["/src"]}
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 130


def test_folder_that_does_not_exist_is_an_error(boards: VirtualBoards, tmp_path: Path):
    command = [*MOUNT, "demo-1", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 2
    assert "No such file or directory" in done.stderr
