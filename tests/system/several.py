"""Several servers of one fleet, with boards at any of them."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.plugin import RunningServer, running_server
from cloudmanager.virtual.virtual_boards import VirtualBoards
from cm_server.net import certificates
from tests.engines import Nats, Postgres

OPTIONS = ("--lost-after", "3", "--beat", "2")


class Several:
    """Servers that share a store (a URL) and a bus; each has a folder of its own."""

    def __init__(self, home: Path, store: str, bus: str, *options: str) -> None:
        self.home, self.store = home, store
        self._options = ("--store", store, "--bus", bus, *(options or OPTIONS))
        self._stack = contextlib.ExitStack()
        self.servers: list[RunningServer] = []
        self._numbers = itertools.count(1)

    def start(self, name: str, tcp_port: int = 0) -> RunningServer:
        """Start a server, or start one again."""
        context = running_server(self.home / name, *self._options, tcp_port=tcp_port)
        server = self._stack.enter_context(context)
        self.servers.append(server)
        return server

    def fleet(self, server: RunningServer) -> Fleet:
        """Connect a caller to one of the servers."""
        pin = certificates.load(server.home).pin
        token = f"{(server.home / 'token').read_text().strip()}.{pin}"
        return self._stack.enter_context(Fleet(server.url, token))

    def board(self, fleet: Fleet, tcp_port: int, *names: str, flash: str = "1M") -> VirtualBoards:
        """Start virtual boards that connect to a TCP port."""
        folder = self.home / f"boards-{next(self._numbers)}"
        machine = VirtualBoards([], ("127.0.0.1", tcp_port), folder, flash=flash)
        self._stack.enter_context(machine)
        for enrolled in fleet.enrol(list(names)):
            machine.add_board(BoardIdentity.from_enrolment(enrolled, "http://127.0.0.1"))
        return machine

    def close(self) -> None:
        for server in self.servers:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
        self._stack.close()


@contextlib.contextmanager
def several(home: Path, postgres: Postgres, nats: Nats, *options: str) -> Iterator[Several]:
    made = Several(home, postgres.new(), nats.url, *options)
    try:
        yield made
    finally:
        made.close()
