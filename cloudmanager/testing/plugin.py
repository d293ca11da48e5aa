"""A pytest plugin: tests of code for boards, on real MicroPython (docs/testing.md).

    def test_blinks_three_times(cm_board):
        cm_board.put("blink.py")
        assert cm_board.run("import blink; blink.times").value == 3

Every test that asks for boards gets new ones, with empty flash; they join a server that only this
test run uses. All processes that are started here end with pytest, even if pytest is killed. Every
pytest run of the environment loads this module: it imports Cloudmanager inside functions only.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from cloudmanager.client.fleet import Fleet

    from .board_fixtures import BoardsFactory, BoardsUnderTest, BoardUnderTest

END_SECONDS = 30.0  # until the server must have ended, even on a busy machine
#: Runs the server until its standard input is closed, which happens when this process has ended.
_SERVER_CODE = """
import os, runpy, signal, threading
def end_with_parent():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_parent, daemon=True).start()
runpy.run_module("cm_server", run_name="__main__", alter_sys=True)
"""


class RunningServer(NamedTuple):
    """A running server: its process, its URL, and its CM_HOME."""

    process: subprocess.Popen[bytes]
    url: str
    home: Path

    @property
    def tcp_port(self) -> int:
        """The TCP port on which it listens."""
        return int(self.url.rpartition(":")[2])


@contextlib.contextmanager
def running_server(home: Path, *options: str, tcp_port: int = 0) -> Iterator[RunningServer]:
    """Run a server, which ends with the context; a test may stop or kill it before.

    Args:
        home: its CM_HOME.
        options: options of ``python -m cm_server``, such as ``"--beat", "5"``.
        tcp_port: the port on which it listens; 0: any free one.

    Raises:
        ServiceError: it did not start.
    """
    from cloudmanager import config

    home = home.absolute()
    config.make_private_folder(home)
    errors = home / "server.err"
    command = [sys.executable, "-c", _SERVER_CODE, "--port", str(tcp_port), *options]
    with config.open_private(errors) as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=home,
            env={**os.environ, "CM_HOME": str(home)},
            start_new_session=True,  # Ctrl-C must reach only pytest, which then ends the server
        )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin:
        try:
            with process.stdout:
                started = json.loads(process.stdout.readline() or b"{}")
            if "url" not in started:
                _raise_start_error(started.get("error"), errors)
            yield RunningServer(process, started["url"], home)
        finally:
            _stop_process(process)


def _raise_start_error(reason: str | None, errors: Path) -> None:
    from cloudmanager.protocol.errors import ServiceError

    last = errors.read_text(errors="replace").strip().rpartition("\n")[2]
    raise ServiceError(reason or f"The server did not start: {last}", str(errors))


def _stop_process(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except BaseException:
        process.kill()
        process.wait()
        raise


def pytest_addoption(parser: pytest.Parser) -> None:
    """Define the ini options."""
    parser.addini("cm_boards", "Cloudmanager: how many boards `cm_boards` has", default="3")
    parser.addini("cm_heap", "Cloudmanager: bytes of each board's heap", default="128k")
    parser.addini("cm_flash", "Cloudmanager: bytes of each board's flash", default="1M")
    parser.addini("cm_timeout", "Cloudmanager: seconds that a cell may run", default="10")


def pytest_configure(config: pytest.Config) -> None:
    """Define the marker."""
    description = "the boards that this test gets from the fixtures cm_boards and cm_board"
    config.addinivalue_line("markers", f'cm_boards(count, heap="64k", flash="1M"): {description}')


@pytest.fixture(scope="session")
def cm_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The CM_HOME of this test run, a temporary folder; the user's own is never used."""
    folder = tmp_path_factory.mktemp("cm-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CM_HOME", str(folder))
        patch.delenv("CM_URL", raising=False)
        patch.delenv("CM_TOKEN", raising=False)
        yield folder


@pytest.fixture(scope="session")
def cm_server(cm_home: Path) -> Iterator[RunningServer]:
    """A server for this test run; with pytest-xdist, one for each worker."""
    with running_server(cm_home) as server:
        yield server


@pytest.fixture(scope="session")
def cm_fleet(cm_server: RunningServer) -> Iterator[Fleet]:
    """The fleet of that server; `Fleet()` in the code under test is the same one."""
    from cloudmanager.client.fleet import Fleet

    with Fleet() as fleet:
        yield fleet


@pytest.fixture(scope="session")
def cm_boards_factory(
    cm_server: RunningServer, cm_fleet: Fleet, pytestconfig: pytest.Config
) -> Iterator[BoardsFactory]:
    """A function that makes boards for several tests; see BoardsFactory."""
    from cloudmanager.virtual.virtual_boards import VirtualBoards

    from .board_fixtures import BoardsFactory

    with VirtualBoards(
        [],
        ("127.0.0.1", cm_server.tcp_port),
        cm_server.home / "virtual",
        heap=pytestconfig.getini("cm_heap"),
        flash=pytestconfig.getini("cm_flash"),
    ) as machine:
        count, timeout = pytestconfig.getini("cm_boards"), pytestconfig.getini("cm_timeout")
        yield BoardsFactory(cm_fleet, machine, int(count), float(timeout))


@pytest.fixture
def cm_make_boards(cm_boards_factory: BoardsFactory) -> Iterator[Callable[..., BoardsUnderTest]]:
    """A function that makes boards for this test: `cm_make_boards(3, name="lab", heap="64k")`."""
    with contextlib.ExitStack() as stack:

        def make(count: int | None = None, **named: str) -> BoardsUnderTest:
            return stack.enter_context(cm_boards_factory(count, **named))

        yield make


@pytest.fixture
def cm_boards(
    request: pytest.FixtureRequest, cm_make_boards: Callable[..., BoardsUnderTest]
) -> BoardsUnderTest:
    """New boards: three, or the number in the marker or in the ini option `cm_boards`."""
    marker = request.node.get_closest_marker("cm_boards")
    return cm_make_boards(*marker.args, **marker.kwargs) if marker else cm_make_boards()


@pytest.fixture
def cm_board(
    request: pytest.FixtureRequest, cm_make_boards: Callable[..., BoardsUnderTest]
) -> BoardUnderTest:
    """A new board; in a test that uses `cm_boards` too, the first of those."""
    if "cm_boards" in request.fixturenames:
        boards: BoardsUnderTest = request.getfixturevalue("cm_boards")
        return boards[0]
    marker = request.node.get_closest_marker("cm_boards")
    return cm_make_boards(1, **(marker.kwargs if marker else {}))[0]
