"""``mbm demo``, mostly as a separate process that must leave no process behind."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cloudmanager.cli import demo
from cloudmanager.cli.tutorials import copy_tutorials

WAIT = 60.0  # seconds for the whole demo on a busy machine
MBM = str(Path(sys.executable).parent / "mbm")

pytestmark = pytest.mark.timeout(2 * WAIT)


@pytest.fixture
def environment(tmp_path):
    """An environment with an empty CM_HOME; processes that a failed test left are ended."""
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
    """Return the processes that run with this CM_HOME."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("CM_HOME") == environment["CM_HOME"]:
                found.append(process)
    return found


def assert_nothing_left(environment):
    """Wait until no process with this CM_HOME runs; its server must be gone, too."""
    deadline = time.monotonic() + WAIT
    while left := left_behind(environment):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert not (Path(environment["CM_HOME"]) / "server.json").exists()


def test_demo_shows_three_boards_and_leaves_no_process(environment):
    process = start(environment, "--no-lab")
    output, errors = process.communicate(timeout=WAIT)
    assert (process.returncode, errors) == (0, "")
    assert "The server is listening on http://127.0.0.1:" in output
    for number in (1, 2, 3):
        assert f"\ndemo-{number}  idle   linux" in output
    assert output.count("Hello from linux with") in (1, 2, 3)
    assert "demo-[1-3]" in output or all(f"── demo-{number} " in output for number in (1, 2, 3))
    assert "Out: 285" in output
    assert_nothing_left(environment)


def test_demo_stops_its_processes_on_sighup(environment):
    """A closed terminal sends SIGHUP."""
    process = start(environment, "--no-lab")
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("The server is listening on")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert_nothing_left(environment)


def test_demo_uses_a_running_server_and_its_boards(server, fleet, boards):
    output: list[str] = []
    assert demo.demo(output.append, lab=False) == 0
    assert output[0] == f"The server is already running at {server.url}"
    assert sorted(boards.pids) == ["demo-1", "demo-2", "demo-3"]
    assert fleet["demo-[1-3]"].run("1").ok
    assert not [board for board in fleet.boards() if board["name"].startswith("greenhouse")]


def test_demo_without_jupyterlab_prints_how_to_install_it(environment, tmp_path):
    """A stand-in for JupyterLab exits immediately."""
    folder = tmp_path / "path" / "jupyterlab"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text("raise SystemExit(1)")
    process = start({**environment, "PYTHONPATH": str(folder.parent)})
    _, errors = process.communicate(timeout=WAIT)
    assert errors.startswith(
        "mbm: JupyterLab did not start; install it with `pip install 'cloudmanager[lab]'`."
    )
    assert process.returncode == 1
    assert_nothing_left(environment)


LAB = """
import http.server, json, os, sys
port = [option for option in sys.argv if option.startswith("--ServerApp.port=")][0]
request = {"token": os.environ["JUPYTER_TOKEN"], "argv": sys.argv[1:]}
open(os.environ["CM_HOME"] + "/lab.json", "w").write(json.dumps(request))
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(port.split("=")[1])), Page).serve_forever()
"""


def test_demo_opens_jupyterlab_and_stops_it_on_ctrl_c(environment, tmp_path):
    """A stand-in for JupyterLab answers, because the real one takes seconds to start."""
    folder = tmp_path / "path" / "jupyterlab"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text(LAB)
    process = start({**environment, "PYTHONPATH": str(folder.parent)})
    assert process.stdout is not None
    output = ""
    while "Press Ctrl-C to stop everything" not in output:
        line = process.stdout.readline()
        assert line, output
        output += line
    request = json.loads((tmp_path / "lab.json").read_text())
    assert request["argv"][0] == str(tmp_path / "tutorials")
    assert (tmp_path / "tutorials/01_first_cells.ipynb").exists()
    assert f"?token={request['token']}" in output
    assert not any(request["token"] in option for option in request["argv"])
    os.killpg(process.pid, signal.SIGINT)
    assert stat.S_IMODE((tmp_path / "jupyterlab.log").stat().st_mode) == 0o600
    rest, errors = process.communicate(timeout=WAIT)
    assert "Stopping JupyterLab, the boards and the server." in rest
    assert (process.returncode, errors) == (0, "")
    assert_nothing_left(environment)


def test_copies_of_tutorials_that_the_user_changed_are_kept(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "copies"
    source.mkdir()
    original = {"cells": [{"cell_type": "code", "source": ["1 + 1"], "outputs": []}]}
    (source / "one.ipynb").write_text(json.dumps(original))
    (source / "picture.png").write_bytes(b"png")
    (source / "conftest.py").touch()
    assert copy_tutorials(source, folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["one.ipynb", "picture.png"]

    executed = {"cells": [{"cell_type": "code", "source": "1 + 1", "outputs": [{"text": "2"}]}]}
    (folder / "one.ipynb").write_text(json.dumps(executed))
    assert copy_tutorials(source, folder) == []
    assert json.loads((folder / "one.ipynb").read_text()) == original

    for number, text in ((1, json.dumps({"cells": []})), (2, "not a notebook")):
        (folder / "one.ipynb").write_text(text)
        assert copy_tutorials(source, folder) == [folder / f"one-{number}.ipynb"]
        assert (folder / f"one-{number}.ipynb").read_text() == text
        assert json.loads((folder / "one.ipynb").read_text()) == original
