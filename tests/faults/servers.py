"""Servers that are killed and restarted, for the soak test."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.plugin import RunningServer, running_server
from cm_server.net import certificates
from tests.memory import own_bytes

LOST_AFTER: Final = "6"  # seconds
BEAT: Final = "2"  # seconds


class Servers:
    """A server that can be killed and restarted with the same folder and TCP port."""

    def __init__(
        self, home: Path, *, public: bool, beat: str = BEAT, lost_after: str = LOST_AFTER
    ) -> None:
        self._home, self._beat, self._lost_after = home, beat, lost_after
        self._listen = ("--listen", "0.0.0.0") if public else ()
        self._stack = contextlib.ExitStack()
        self.deaths = 0
        self.server = self._start(0)

    def _start(self, tcp_port: int) -> RunningServer:
        times = ("--beat", self._beat, "--lost-after", self._lost_after)
        options = (*times, *self._listen)
        context = running_server(self._home, *options, tcp_port=tcp_port)
        return self._stack.enter_context(context)

    def die(self) -> None:
        """Kill the server and start the next one."""
        self.server.process.kill()
        self.server.process.wait()
        self.deaths += 1
        self.server = self._start(self.server.tcp_port)

    def memory(self) -> int:
        """Return the server's own memory in bytes."""
        return own_bytes(self.server.process.pid)

    def end(self) -> None:
        """Stop the server."""
        self._stack.close()


def fleet_of(url: str, home: Path) -> Fleet:
    """Connect a new caller to the server."""
    pin = f".{certificates.load(home).pin}" if url.startswith("https:") else ""
    return Fleet(url, (home / "token").read_text().strip() + pin)
