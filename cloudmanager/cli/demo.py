"""``mbm demo``: a server, three virtual boards, one cell on all of them, JupyterLab."""

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
from cloudmanager.display.tables import fleet_table
from cloudmanager.display.terminal import follow
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.virtual.simulate import free_tcp_port, names_of, simulate

CELL = """\
import sys, gc
print("Hello from", sys.platform, "with", gc.mem_free() // 1024, "KB of free heap")
sum(n * n for n in range(10))
"""
SENSOR = "readings = 0\ndef sensor():\n    global readings\n    readings += 1\n    {}\n"
READING = """\
import time
print("reading the sensor ...")
time.sleep(1)
sensor()
"""
LAB_SECONDS = 60.0  # until JupyterLab answers
FIRST_TCP_PORT = 8888  # Jupyter's own default
FIRST_NOTEBOOK = "01_first_cells.ipynb"


def demo(say: Callable[[str], None], *, lab: bool) -> int:
    """Run the demo; returns the exit status. Ends everything that it began.

    Args:
        say: shows one paragraph.
        lab: whether to open JupyterLab and wait for Ctrl-C.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_server(say))
        fleet = stack.enter_context(Fleet())
        stack.enter_context(_boards(fleet))
        say(fleet_table(fleet.boards("demo-[1-3]")))
        say("A cell on all three, at once:\n\n" + _indented(CELL))
        results = follow(fleet["demo-[1-3]"].submit(CELL, timeout=10, listen=True))
        second_act(say, fleet)
        if lab:
            with contextlib.suppress(KeyboardInterrupt):
                stack.enter_context(_lab(say))
                while True:
                    time.sleep(3600)
            say("Ending JupyterLab, the boards and the server.")
        return 0 if results.ok else 1


def second_act(say: Callable[[str], None], fleet: Fleet) -> None:
    """Six boards, one cell; one board raises, one hangs, one loses its power."""
    names = names_of("greenhouse", 6)
    boards = simulate(fleet, names)
    try:
        fleet["greenhouse-[1-3,6]"].run(SENSOR.format("return 21.5"))
        fleet["greenhouse-4"].run(SENSOR.format('raise OSError("the sensor is unplugged")'))
        fleet["greenhouse-5"].run(SENSOR.format("while True: pass"))
        say(
            "\nSix more boards. The sensor of one is broken, that of another hangs, and a third\n"
            "will lose its power in the middle of the cell. They get three seconds:\n\n"
            + _indented(READING)
        )
        group = fleet["greenhouse-[1-6]"].submit(READING, timeout=3, listen=True)
        power_cut = threading.Timer(0.7, boards.kill, ["greenhouse-6"])
        power_cut.start()
        follow(group)
        power_cut.join()
        say("\nThe five that live go on, with their names:\n\n    1000 * readings")
        follow(fleet["greenhouse-[1-5]"].submit("1000 * readings", timeout=3, listen=True))
    finally:
        boards.stop()
        fleet.revoke("greenhouse-[1-6]")


@contextlib.contextmanager
def _server(say: Callable[[str], None]) -> Iterator[None]:
    """Have a server; one that ran before is left running."""
    started = local_server.start(tcp_port=free_tcp_port(config.DEFAULT_TCP_PORT))
    try:
        say(f"The server {'runs already' if started.already else 'listens'} at {started.url}")
        yield
    finally:
        if not started.already:
            local_server.stop()


@contextlib.contextmanager
def _boards(fleet: Fleet) -> Iterator[None]:
    """Have demo-1 to demo-3; those that are there already are used as they are."""
    names = names_of("demo", 3)
    there = {board["name"] for board in fleet.boards() if board["connected_since"]}
    missing = [name for name in names if name not in there]
    if not missing:
        yield
        return
    boards = simulate(fleet, missing)
    try:
        yield
    finally:
        boards.stop()
        fleet.revoke(",".join(missing))


@contextlib.contextmanager
def _lab(say: Callable[[str], None]) -> Iterator[None]:
    """Run JupyterLab on the tutorials; its token travels in the environment."""
    token, tcp_port = secrets.token_hex(16), free_tcp_port(FIRST_TCP_PORT)
    folder = Path("notebooks") if Path("notebooks").is_dir() else Path()
    command = [sys.executable, "-m", "jupyterlab", str(folder)]
    command += [
        f"--ServerApp.port={tcp_port}",
        "--ServerApp.port_retries=0",
        "--Application.log_level=WARN",
    ]
    if os.geteuid() == 0:
        command.append("--allow-root")
    environment = {**os.environ, "JUPYTER_TOKEN": token}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        _await_lab(process, f"http://127.0.0.1:{tcp_port}/api")
        page = f"/tree/{FIRST_NOTEBOOK}" if (folder / FIRST_NOTEBOOK).exists() else ""
        say(
            f"\nJupyterLab is at\n\n    http://127.0.0.1:{tcp_port}/lab{page}?token={token}\n\n"
            "Ctrl-C ends everything that this demo began."
        )
        yield
    finally:
        process.terminate()
        process.wait()


def _await_lab(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + LAB_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise CloudmanagerError("JupyterLab did not start; `pip install 'cloudmanager[lab]'` brings it")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
