"""``mbm demo``: start a server and virtual boards, run cells on them, open JupyterLab."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from cloudmanager import config, local_server
from cloudmanager.client.fleet import Fleet
from cloudmanager.display.terminal import follow_cell
from cloudmanager.display.text_tables import fleet_table
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.server_options import ServerOptions
from cloudmanager.virtual.simulate import (
    Demo,
    free_tcp_port,
    numbered_names,
    start_new_boards,
)

from .tutorials import copy_tutorials

CELL = """\
import sys, gc
print("Hello from", sys.platform, "with", gc.mem_free() // 1024, "KB of free heap")
sum(n * n for n in range(10))
"""
#: Defines `sensor()` on a board; the braces are replaced by its last statement.
SENSOR_CODE = "readings = 0\ndef sensor():\n    global readings\n    readings += 1\n    {}\n"
READ_SENSOR_CELL = """\
import time
print("reading the sensor ...")
time.sleep(1)
sensor()
"""
JUPYTERLAB_SECONDS = 60.0  # time for JupyterLab to start
FIRST_TCP_PORT = 8888  # Jupyter's own default
FIRST_NOTEBOOK = "01_first_cells.ipynb"


def demo(show_text: Callable[[str], None], *, lab: bool) -> int:
    """Run the demo and return its exit status; afterwards, stop everything that it started.

    Args:
        show_text: called with each paragraph to print.
        lab: whether to open JupyterLab and wait for Ctrl-C.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_running_server(show_text))
        fleet = stack.enter_context(Fleet())
        stack.enter_context(_running_boards(fleet))
        show_text(fleet_table(fleet.boards("demo-[1-3]")))
        show_text(
            "The same cell runs on all three boards; `Out:` marks the value of its last line\n"
            "below what it prints:\n\n" + _indent_text(CELL)
        )
        results = follow_cell(fleet["demo-[1-3]"].submit(CELL, timeout=10, listen=True))
        demo_failures(show_text, fleet)
        if lab:
            with contextlib.suppress(KeyboardInterrupt):
                stack.enter_context(_running_jupyterlab(show_text))
                while True:
                    time.sleep(3600)
            show_text("Stopping JupyterLab, the boards and the server.")
        else:
            show_text(
                "This demo now stops what it has started. Your own server and boards:\n\n"
                "    mbm server-start\n    mbm simulate 3 --detach"
            )
        return 0 if results.ok else 1


def demo_failures(show_text: Callable[[str], None], fleet: Fleet) -> None:
    """Run a cell on six boards: on one it raises, on one it hangs, and one loses its power."""
    names = numbered_names("greenhouse", 6)
    boards = start_new_boards(fleet, names)
    greenhouses = Demo(fleet.address.url, names, boards)
    try:
        fleet["greenhouse-[1-3,6]"].run(SENSOR_CODE.format("return 21.5"))
        fleet["greenhouse-4"].run(SENSOR_CODE.format('raise OSError("the sensor is unplugged")'))
        fleet["greenhouse-5"].run(SENSOR_CODE.format("while True: pass"))
        show_text(
            "\nSix more boards. An earlier cell has defined sensor() on each, which counts its\n"
            "readings. One sensor is broken, another one hangs, and a third board loses power\n"
            "while the next cell runs. The cell has a timeout of three seconds:\n\n"
            + _indent_text(READ_SENSOR_CELL)
        )
        group = fleet["greenhouse-[1-6]"].submit(READ_SENSOR_CELL, timeout=3, listen=True)
        power_cut = threading.Timer(0.7, boards.kill, ["greenhouse-6"])
        power_cut.start()
        follow_cell(group)
        power_cut.join()
        show_text("\nThe other five boards kept their variables:\n\n    1000 * readings")
        follow_cell(fleet["greenhouse-[1-5]"].submit("1000 * readings", timeout=3, listen=True))
    finally:
        greenhouses.stop()


@contextlib.contextmanager
def _running_server(show_text: Callable[[str], None]) -> Iterator[None]:
    """Start the local server, unless it is running; stop it in the end if it was started here."""
    started = local_server.start(ServerOptions(port=free_tcp_port(config.DEFAULT_TCP_PORT)))
    try:
        state = "is already running at" if started.already else "is listening on"
        show_text(f"The server {state} {started.url}")
        yield
    finally:
        if not started.already:
            local_server.stop()


@contextlib.contextmanager
def _running_boards(fleet: Fleet) -> Iterator[None]:
    """Start those of the boards demo-1 to demo-3 that are not connected; stop them in the end."""
    names = numbered_names("demo", 3)
    connected = {board["name"] for board in fleet.boards() if board["connected_since"]}
    missing = [name for name in names if name not in connected]
    if not missing:
        yield
        return
    boards = Demo(fleet.address.url, missing, start_new_boards(fleet, missing))
    try:
        yield
    finally:
        boards.stop()


@contextlib.contextmanager
def _running_jupyterlab(show_text: Callable[[str], None]) -> Iterator[None]:
    """Run JupyterLab on copies of the tutorials; its messages go to a log file.

    Its token is passed in the environment, because command lines are visible to other users.
    """
    token, tcp_port = secrets.token_hex(16), free_tcp_port(FIRST_TCP_PORT)
    folder = _make_notebook_folder(show_text)
    command = [sys.executable, "-m", "jupyterlab", str(folder)]
    command += [f"--ServerApp.port={tcp_port}", "--ServerApp.port_retries=0"]
    if os.geteuid() == 0:
        command.append("--allow-root")
    environment = {**os.environ, "JUPYTER_TOKEN": token}
    log_path = config.make_home_folder() / "jupyterlab.log"
    with config.open_private(log_path) as log:
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=log, stderr=log
        )
    try:
        _await_jupyterlab(process, f"http://127.0.0.1:{tcp_port}/api", log_path)
        page = f"/tree/{FIRST_NOTEBOOK}" if (folder / FIRST_NOTEBOOK).exists() else ""
        show_text(
            f"\nJupyterLab is at\n\n    http://127.0.0.1:{tcp_port}/lab{page}?token={token}\n\n"
            "Press Ctrl-C to stop everything that this demo started."
        )
        yield
    finally:
        process.terminate()
        process.wait()


def _make_notebook_folder(show_text: Callable[[str], None]) -> Path:
    """Return the folder that JupyterLab opens: copies of a checkout's tutorials, or this one."""
    source = Path("notebooks")
    if not (source / FIRST_NOTEBOOK).exists():
        return Path()
    folder = config.make_home_folder() / "tutorials"
    kept = copy_tutorials(source, folder)
    show_text(f"\nThe tutorials were copied to {folder}.")
    if kept:
        names = ", ".join(path.name for path in kept)
        show_text(f"Those that you had changed there are now called {names}.")
    return folder


def _await_jupyterlab(process: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    """Return when JupyterLab answers.

    Raises:
        CloudmanagerError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + JUPYTERLAB_SECONDS
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), without_proxy.open(url, timeout=2):
            return
        time.sleep(0.2)
    error = CloudmanagerError(
        "JupyterLab did not start; install it with `pip install 'cloudmanager[lab]'`"
    )
    error.hint = f"Its log is {log_path}."
    raise error


def _indent_text(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
