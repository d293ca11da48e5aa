"""Cloudmanager as a contender: a separate server process, virtual boards, a blocking Fleet."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cloudmanager import Boards, Fleet, config, local_server
from cloudmanager.board_client import BoardIdentity
from cloudmanager.server_options import ServerOptions
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.virtual.simulate import numbered_names, simulate
from cloudmanager.virtual.virtual_boards import VirtualBoards


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """Set CM_HOME to an empty temporary folder during a `with` block."""
    with tempfile.TemporaryDirectory(prefix="cm-bench-") as folder, home(Path(folder)):
        yield Path(folder)


@contextlib.contextmanager
def home(folder: Path) -> Iterator[None]:
    """Set CM_HOME to a folder during a `with` block."""
    before = os.environ.get("CM_HOME")
    os.environ["CM_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("CM_HOME")
        if before is not None:
            os.environ["CM_HOME"] = before


@contextlib.contextmanager
def running_boards(
    boards: int = 1, host: str = config.DEFAULT_HOST, flash: str = "1M"
) -> Iterator[Boards]:
    """Run a server and virtual boards during a `with` block; yield the boards, connected.

    Args:
        boards: the number of boards.
        host: the server's address; if it is not loopback, all links use TLS.
        flash: size of each board's flash in bytes.
    """
    with temporary_home(), boards_of_home(boards, host, flash) as found:
        yield found


@contextlib.contextmanager
def boards_of_home(
    boards: int = 1, host: str = config.DEFAULT_HOST, flash: str = "1M"
) -> Iterator[Boards]:
    """Do the same in the folder that CM_HOME names."""
    with Fleet() as fleet:
        local_server.start(ServerOptions(listen=host, port=0))
        try:
            virtual = simulate(
                fleet, numbered_names("bench", boards), allow_remote=True, flash=flash
            )
            try:
                yield fleet[f"bench-[1-{boards}]"]
            finally:
                virtual.stop()
        finally:
            local_server.stop()


@contextlib.contextmanager
def board_behind_proxy(
    proxy: Callable[[int], contextlib.AbstractContextManager[int]],
) -> Iterator[Boards]:
    """Run a server and a board that connects through a proxy; yield the board.

    Args:
        proxy: starts a proxy for a TCP port, and yields the proxy's own port.
    """
    with temporary_home() as folder, Fleet() as fleet:
        local_server.start(ServerOptions(port=0))
        try:
            (row,) = fleet.enrol(["bench-1"])
            identity = BoardIdentity(row["name"], row["id"], bytes.fromhex(row["key"]))
            tcp_port = config.split_url(fleet.address.url).port or 0
            with proxy(tcp_port) as proxy_port:
                address = ("127.0.0.1", proxy_port)
                with VirtualBoards([identity], address, folder / "virtual", flash="4M"):
                    wait_online(fleet, ["bench-1"])
                    yield fleet["bench-1"]
        finally:
            local_server.stop()
