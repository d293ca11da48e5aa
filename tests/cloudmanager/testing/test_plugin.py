"""The pytest plugin: complete test suites, each run by a separate pytest process."""

from __future__ import annotations

import configparser
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import ServiceError
from cloudmanager.testing import plugin
from cloudmanager.testing.plugin import RunningServer, running_server

ROOT = Path(__file__).parents[3]
WAIT = 60.0  # seconds that a suite may take on a busy machine

pytestmark = pytest.mark.timeout(120)


#: pytest without the plugins that this environment happens to have beside ours.
OTHERS = ("asyncio", "hypothesispytest", "nbval", "timeout", "anyio", "pytest_cov", "rerunfailures")
PYTEST = (
    str(Path(sys.executable).with_name("pytest")),  # unlike `-m pytest`, it looks nowhere else
    *("-ra", "-Werror", "-pno:cacheprovider"),
    *(f"-pno:{name}" for name in OTHERS),
)


def run(folder: Path, *options: str) -> tuple[dict[str, int], str]:
    """Run the test suite in ``folder``; return its outcomes and its output."""
    if not (folder / "pytest.ini").exists():
        (folder / "pytest.ini").write_text("[pytest]\n")  # else pytest looks above it, too
    ran = subprocess.run(
        [*PYTEST, *options], cwd=folder, capture_output=True, text=True, timeout=WAIT
    )
    said = ran.stdout + ran.stderr
    counts = re.findall(r"(\d+) (passed|failed|errors?)", said.strip().rpartition("\n")[2])
    return {what.rstrip("s"): int(count) for count, what in counts}, said


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example project, copied from docs/testing.md."""
    text = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
    files = re.findall(r"^`(\w+\.\w+)` .*?^```\w+\n(.*?)^```$", text, flags=re.M | re.S)
    for name, content in files:
        (tmp_path / name).write_text(content)
    return tmp_path


def test_example_of_the_docs_passes(example: Path):
    assert sorted(path.name for path in example.iterdir()) == [
        "pytest.ini",
        "test_thermostat.py",
        "thermostat.py",
    ]
    outcome, said = run(example)
    assert outcome == {"passed": 5}, said


def test_failure_shows_the_boards_traceback_at_the_tests_line(example: Path):
    """The example of the docs, without any other line."""
    suite = example / "test_thermostat.py"
    suite.write_text(suite.read_text().replace("lambda: 18", "lambda: None"))
    outcome, said = run(example, "-k", "cold")
    text = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
    promised = re.findall(r"^```\n(>.*?)^```$", text, flags=re.M | re.S)[0]
    assert outcome == {"failed": 1}
    assert promised in re.sub(r" +$", "", said, flags=re.M)
    assert "cloudmanager/" not in said


FAILING = """
def test_one(cm_board):
    cm_board.run("print('measuring')\\nassert 1 + 1 == 3")

def test_many(cm_boards):
    cm_boards.run("print('measuring')\\n1/0")

def test_typo(cm_board):
    cm_board.run("x = = 1")
"""


def test_failures_show_output_and_fold_equal_errors(tmp_path: Path):
    outcome, said = run(write(tmp_path, test_failing=FAILING))
    assert outcome == {"failed": 3}
    assert "E       AssertionError" in said
    assert "Captured stdout call -----------------------------\nmeasuring\n" in said
    assert "E       board-[1-3]:\nE         Traceback (most recent call last):\n" in said
    assert "board-1 | measuring\nboard-2 | measuring\nboard-3 | measuring\n" in said
    assert "CellSyntaxError: invalid syntax (line 1)\nE           x = = 1" in said


APART = """
import pytest
from cloudmanager import Fleet

@pytest.fixture(scope="module")
def kept(cm_boards_factory):
    with cm_boards_factory(1, name="kept") as boards:
        yield boards[0]

@pytest.mark.parametrize("turn", [1, 2])
def test_new_board_is_empty(cm_board, turn):
    assert cm_board.run("'left' in globals()").value is False
    assert "left.txt" not in cm_board.run("import os; os.listdir()").value
    assert cm_board.info()[0]["labels"] == {}
    cm_board.run("left = 1\\nwith open('left.txt', 'w') as file: file.write('left')")
    cm_board.label({"left": "yes"})
    cm_board.submit("while True: pass")

def test_fleet_has_no_other_boards(cm_boards, cm_board):
    assert Fleet()["all"].run("1").to_dict() == {"board-1": 1, "board-2": 1, "board-3": 1}
    assert cm_board.name == "board-1"

@pytest.mark.parametrize("turn", [1, 2])
def test_shared_boards_keep_their_variables(kept, turn):
    assert kept.run("turn = globals().get('turn', 0) + 1\\nturn").value == turn

@pytest.mark.cm_boards(2, heap="64k")
def test_boards_are_as_marked(cm_boards, cm_make_boards):
    large = cm_make_boards(1, name="large", heap="1M")
    free = "import gc; gc.collect(); gc.mem_free() > 65536"
    assert cm_boards.run(free).to_dict() == {"board-1": False, "board-2": False}
    assert large.run(free).to_dict() == {"large-1": True}
"""


def test_tests_do_not_affect_one_another(tmp_path: Path):
    outcome, said = run(write(tmp_path, test_apart=APART))
    assert outcome == {"passed": 6}, said


def test_modules_for_boards_do_not_affect_the_host(tmp_path: Path):
    """No process of Cloudmanager imports a json.py in the folder where pytest runs."""
    folder = write(tmp_path, json="1/0", test_it="def test_it(cm_board): cm_board.run('1')")
    outcome, said = run(folder)
    assert outcome == {"passed": 1}, said


def test_missing_extra_fails_only_tests_that_need_boards(tmp_path: Path):
    hidden = "import sys\nsys.modules['micropython_run'] = None\n"
    suite = "def test_other(): pass\ndef test_it(cm_board): pass"
    outcome, said = run(write(tmp_path, conftest=hidden, test_it=suite))
    assert outcome == {"passed": 1, "error": 1}
    assert "pip install 'cloudmanager[virtual]'" in said


# The end of a test run

ENDLESS = """
import os
def test_endless(cm_board, cm_server):
    os.write(2, f"{cm_server.process.pid}\\n".encode())
    cm_board.run("print('go')\\nwhile True: pass", timeout=60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_all_processes_end_with_pytest(tmp_path: Path, number: signal.Signals):
    """After Ctrl-C during a cell, and after pytest was killed."""
    write(tmp_path, test_endless=ENDLESS)
    with subprocess.Popen(
        [*PYTEST, "-s"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as suite:
        assert suite.stderr is not None
        server = int(suite.stderr.readline())
        family = psutil.Process(suite.pid).children(recursive=True)
        suite.send_signal(number)
        suite.wait(WAIT)
    assert server in {process.pid for process in family}
    assert len(family) >= 3  # the server, the boards' supervisor, the board
    assert psutil.wait_procs(family, WAIT)[1] == []


# Import cost and documentation


def test_plugin_is_published():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    published = config["options.entry_points"]["pytest11"].strip()
    assert published == "cloudmanager = cloudmanager.testing.plugin"


def test_plugin_imports_cloudmanager_only_when_used():
    program = """
import sys, pytest
before = set(sys.modules)
import cloudmanager.testing
print(*sorted(set(sys.modules) - before))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    ours = {"cloudmanager", "cloudmanager.testing"}
    assert {name for name in ran.stdout.split() if name.startswith(("cloud", "cm_"))} == ours
    assert not {"tornado", "sqlalchemy", "asyncio", "micropython_run"} & set(ran.stdout.split())


def test_every_fixture_and_setting_is_documented(pytestconfig: pytest.Config):
    source = (ROOT / "cloudmanager/testing/plugin.py").read_text(encoding="utf-8")
    names = set(re.findall(r"(?:^def |addini\(\")(cm_\w+)", source, flags=re.M))
    docs = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
    assert len(names) == 10  # cm_boards is both
    assert {name for name in names if f"`{name}`" not in docs} == set()
    assert pytestconfig.getini("cm_boards") == "3"


# The server


def test_server_and_tests_use_the_same_home(cm_home: Path, cm_server: RunningServer):
    assert os.environ["CM_HOME"] == str(cm_home) == str(cm_server.home)
    with Fleet() as fleet:
        assert fleet.status()["pid"] == cm_server.process.pid
        assert fleet.address.url == cm_server.url


def test_error_of_a_server_that_cannot_start_has_the_reason(cm_server: RunningServer):
    with pytest.raises(ServiceError, match="runs in .* already"), running_server(cm_server.home):
        pass


def test_error_of_a_server_that_crashes_has_its_last_line(tmp_path: Path):
    with (
        pytest.raises(ServiceError, match="did not start: .*unrecognized arguments: --no"),
        running_server(tmp_path, "--no"),
    ):
        pass


def test_server_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugin, "END_SECONDS", 0.2)
    with pytest.raises(subprocess.TimeoutExpired), running_server(tmp_path) as server:
        os.kill(server.process.pid, signal.SIGSTOP)
    assert server.process.returncode == -signal.SIGKILL
