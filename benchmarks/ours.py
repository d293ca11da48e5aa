"""Ours: a server process of its own, N virtual boards, and a blocking Fleet."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cloudmanager import Boards, Fleet, config, local_server
from cloudmanager.board_client import BoardIdentity
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.virtual.simulate import numbered_names, simulate
from cloudmanager.virtual.virtual_boards import VirtualBoards


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """Gives an empty CM_HOME; everything of ours that starts inside keeps its things there."""
    before = os.environ.get("CM_HOME")
    with tempfile.TemporaryDirectory(prefix="cm-bench-") as folder:
        os.environ["CM_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("CM_HOME")
            if before is not None:
                os.environ["CM_HOME"] = before


@contextlib.contextmanager
def running_boards(
    boards: int = 1, host: str = config.DEFAULT_HOST, flash: str = "1M"
) -> Iterator[Boards]:
    """Gives all of `boards` virtual boards, connected to a server that nobody else uses.

    On another `host` than loopback, all links speak TLS.
    """
    with temporary_home(), Fleet() as fleet:
        local_server.start(host, tcp_port=0)
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
    """Gives one board that dials through `throttle`, which takes and gives a TCP port."""
    with temporary_home() as folder, Fleet() as fleet:
        local_server.start(tcp_port=0)
        try:
            (told,) = fleet.enrol(["bench-1"])
            identity = BoardIdentity(told["name"], told["id"], bytes.fromhex(told["key"]))
            tcp_port = config.split_url(fleet.address.url).port or 0
            with proxy(tcp_port) as narrow:
                address = ("127.0.0.1", narrow)
                with VirtualBoards([identity], address, folder / "virtual", flash="4M"):
                    wait_online(fleet, ["bench-1"])
                    yield fleet["bench-1"]
        finally:
            local_server.stop()
