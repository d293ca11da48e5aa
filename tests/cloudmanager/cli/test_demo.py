"""``mbm demo``: what a newcomer sees first, as a process of its own that leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cloudmanager.cli import demo

WAIT = 60.0  # seconds that the whole demo may take on a busy machine
MBM = str(Path(sys.executable).parent / "mbm")

pytestmark = pytest.mark.timeout(2 * WAIT)


@pytest.fixture
def environment(tmp_path):
    """That of a newcomer; whatever a failed test left in it is ended."""
    home = {"CM_HOME": str(tmp_path), "COLUMNS": "100"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CM_")}
    yield {**kept, **home}
    for process in left_behind(home):
        process.kill()


def start(environment, *options):
    return subprocess.Popen(
        [MBM, "demo", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_behind(environment):
    """Processes that still live with this CM_HOME."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("CM_HOME") == environment["CM_HOME"]:
                found.append(process)
    return found


def nothing_is_left(environment):
    deadline = time.monotonic() + WAIT
    while left := left_behind(environment):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert not (Path(environment["CM_HOME"]) / "server.json").exists()
    return True


def test_demo_shows_the_fleet_and_three_answers_and_leaves_nothing_behind(environment):
    process = start(environment, "--no-lab")
    said, complaints = process.communicate(timeout=WAIT)
    assert (process.returncode, complaints) == (0, "")
    assert "The server is listening at http://127.0.0.1:" in said
    for number in (1, 2, 3):
        assert f"\ndemo-{number}  idle   linux" in said
    assert said.count("Hello from linux with") in (1, 2, 3)
    assert "demo-[1-3]" in said or all(f"── demo-{number} " in said for number in (1, 2, 3))
    assert "Out: 285" in said
    assert nothing_is_left(environment)


def test_demo_that_is_told_to_end_ends_what_it_began(environment):
    """As when its terminal is closed."""
    process = start(environment, "--no-lab")
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("The server is listening at")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert nothing_is_left(environment)


def test_demo_uses_the_server_and_the_boards_that_are_there(server, fleet, boards):
    said: list[str] = []
    assert demo.demo(said.append, lab=False) == 0
    assert said[0] == f"The server is already running at {server.url}"
    assert sorted(boards.pids) == ["demo-1", "demo-2", "demo-3"]
    assert fleet["demo-[1-3]"].run("1").ok
    assert not [board for board in fleet.boards() if board["name"].startswith("greenhouse")]


def test_demo_that_cannot_start_jupyterlab_says_how_to_get_it(environment, tmp_path):
    """Here a python whose jupyterlab ends at once."""
    folder = tmp_path / "path" / "jupyterlab"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text("raise SystemExit(1)")
    process = start({**environment, "PYTHONPATH": str(folder.parent)})
    _, complaints = process.communicate(timeout=WAIT)
    assert complaints == (
        "mbm: JupyterLab did not start; install it with `pip install 'cloudmanager[lab]'`. "
        "`mbm server-status` shows the state of the server.\n"
    )
    assert process.returncode == 1
    assert nothing_is_left(environment)


LAB = """
import http.server, json, os, sys
port = [option for option in sys.argv if option.startswith("--ServerApp.port=")][0]
told = {"token": os.environ["JUPYTER_TOKEN"], "argv": sys.argv[1:]}
open(os.environ["CM_HOME"] + "/lab.json", "w").write(json.dumps(told))
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(port.split("=")[1])), Page).serve_forever()
"""


def test_demo_opens_jupyterlab_and_ends_it_with_ctrl_c(environment, tmp_path):
    """With a stand-in for JupyterLab, which takes seconds to start."""
    folder = tmp_path / "path" / "jupyterlab"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text(LAB)
    process = start({**environment, "PYTHONPATH": str(folder.parent)})
    assert process.stdout is not None
    said = ""
    while "Press Ctrl-C to stop everything" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    told = json.loads((tmp_path / "lab.json").read_text())
    assert f"?token={told['token']}" in said
    assert not any(told["token"] in option for option in told["argv"])
    os.killpg(process.pid, signal.SIGINT)
    rest, complaints = process.communicate(timeout=WAIT)
    assert "Stopping JupyterLab, the boards and the server." in rest
    assert (process.returncode, complaints) == (0, "")
    assert nothing_is_left(environment)
