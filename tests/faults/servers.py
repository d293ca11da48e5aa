"""Servers that die and are followed by others, for the soak."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import psutil

from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.plugin import RunningServer, running_server
from cm_server.net import certificates

GRACE: Final = "6"  # seconds that the server waits for a board
BEAT: Final = "2"  # seconds


class Servers:
    """The server, which may die; another one takes over its folder and its port."""

    def __init__(self, home: Path, *, public: bool) -> None:
        self._home = home
        self._listen = ("--listen", "0.0.0.0") if public else ()
        self._stack = contextlib.ExitStack()
        self.deaths = 0
        self.server = self._start(0)

    def _start(self, tcp_port: int) -> RunningServer:
        options = ("--beat", BEAT, "--lost-after", GRACE, *self._listen)
        context = running_server(self._home, *options, tcp_port=tcp_port)
        return self._stack.enter_context(context)

    def die(self) -> None:
        """Kill it and start the next."""
        self.server.process.kill()
        self.server.process.wait()
        self.deaths += 1
        self.server = self._start(self.server.tcp_port)

    def memory(self) -> int:
        """Return the bytes that it holds."""
        return int(psutil.Process(self.server.process.pid).memory_info().rss)

    def end(self) -> None:
        """End all of them."""
        self._stack.close()


def fleet_of(url: str, home: Path) -> Fleet:
    """A caller's link of one's own."""
    pin = f".{certificates.load(home).pin}" if url.startswith("https:") else ""
    return Fleet(url, (home / "token").read_text().strip() + pin)
