"""Thousands of jobs on hundreds of boards, while servers, bus, store and links die or stand still.

    python -m tests.faults.several --jobs 5000 --boards 300 --servers 3 --seed 1

Three servers, one PostgreSQL, one NATS. Boards and callers dial whichever server answers, as
behind a load balancer. Every job has exactly one outcome, none runs twice by the boards' own
count, nobody hangs; what a server that stood still writes about boards that moved is refused.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import ServerUnreachable
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer, running_server
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.engines import Engine, Nats, Postgres, running_nats, running_postgres

from .proxy import Conversation, Loop, Proxy
from .servers import BEAT
from .soak import CALLERS, HANG, Line, Soak

DEAD_AFTER: Final = 4.0  # seconds that a server is silent before others take it for gone
PAUSES: Final = (0.1, 0.5, 1.5)  # how long something stands still, in those; the last is too long
SETTLED: Final = 20.0  # seconds after which no job is open
STORE_PAUSES: Final = (1.5, 1.5, 1.5, 7.0)  # seconds; in the last, statements are given up
KINDS: Final = ("kill", "pause", "kill bus", "pause bus", "stop", "kill store", "pause store")


class Balancer(Proxy):
    """Leads each link to whichever server answers, as a load balancer does."""

    ports: list[int]  # of all servers
    dice: random.Random

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for tcp_port in self.dice.sample(self.ports, len(self.ports)):
            with contextlib.suppress(OSError):
                theirs = await asyncio.open_connection("127.0.0.1", tcp_port)
                break
        else:
            return
        try:
            await Conversation(self, (reader, writer), theirs).run()
        finally:
            theirs[1].transport.abort()


class Cluster:
    """Servers that die, stand still and come back, each in its folder and on its port."""

    def __init__(
        self, home: Path, count: int, dead_after: float, postgres: Postgres, nats: Nats
    ) -> None:
        self.nats, self.postgres, self.store = nats, postgres, postgres.new()
        self._stack = contextlib.ExitStack()
        self._home, self._dead_after = home, str(dead_after)
        self.servers = [self._start(number, 0) for number in range(count)]

    def _start(self, number: int, tcp_port: int) -> RunningServer:
        told = ("--store", self.store, "--bus", self.nats.url, "--beat", BEAT)
        home = self._home / f"server-{number}"
        context = running_server(home, *told, "--lost-after", self._dead_after, tcp_port=tcp_port)
        return self._stack.enter_context(context)

    @property
    def server(self) -> RunningServer:
        return self.servers[0]

    @property
    def ports(self) -> list[int]:
        return [server.tcp_port for server in self.servers]

    def end(self, number: int, how: signal.Signals) -> None:
        """End one, and start the next in its place."""
        server = self.servers[number]
        server.process.send_signal(how)
        server.process.wait()
        self.servers[number] = self._start(number, server.tcp_port)

    def pause(self, number: int, seconds: float) -> None:
        server = self.servers[number]
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        server.process.send_signal(signal.SIGCONT)

    def logs(self) -> str:
        names = ("server.log", "server.log.1", "server.err")
        files = [file for name in names for file in self._home.glob(f"server-*/{name}")]
        return "".join(file.read_text(errors="replace") for file in files)

    def close(self) -> None:
        self._stack.close()


class SeveralSoak(Soak):
    """One run of it."""

    def __init__(
        self,
        home: Path,
        jobs: int,
        boards: int,
        seed: int,
        engines: tuple[Postgres, Nats],
        *,
        servers: int = 3,
        pause: tuple[float, float] = (0.2, 1.0),
        dead_after: float = DEAD_AFTER,
        kinds: Sequence[str] = KINDS,
    ) -> None:
        super().__init__(home, jobs, boards, seed, 0)
        self.cluster = Cluster(home, servers, dead_after, *engines)
        self._pause, self._dead_after, self._kinds = pause, dead_after, kinds

    def run(self) -> dict[str, Any]:
        """Run all of it; return the figures."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.cluster.close)
            self.marks.mkdir(parents=True)
            loop = stack.enter_context(Loop())
            self.caller_proxies = [self._balancer(loop) for _ in range(CALLERS)]
            machine = stack.enter_context(self._boards(loop))
            began = time.monotonic()
            self._all(self.cluster, machine)  # type: ignore[arg-type]
            seconds = time.monotonic() - began
            counts = self._counted(self.cluster)
            if self.troubles:
                raise self.troubles[0]
            return self._judge(counts, seconds, 0) | self._fenced()

    def _balancer(self, loop: Loop) -> Balancer:
        proxy = Balancer(loop, 0)
        proxy.ports, proxy.dice = self.cluster.ports, random.Random(self.seed)
        loop.adopt(proxy)
        return proxy

    @contextlib.contextmanager
    def _boards(self, loop: Loop) -> Iterator[VirtualBoards]:
        folder = self.home / "virtual"
        with (
            VirtualBoards([], ("127.0.0.1", 0), folder) as machine,
            self._open(self._url(0, "")) as fleet,
        ):
            for row in fleet.enrol(self.names):
                proxy = self._balancer(loop)
                machine.address = ("127.0.0.1", proxy.tcp_port)
                machine.add_board(BoardIdentity.from_enrolment(row, self.cluster.servers[0].url))
                self.board_proxies.append(proxy)
            wait_online(fleet, self.names)
            yield machine

    def _url(self, number: int, url: str) -> str:
        return f"http://127.0.0.1:{self.caller_proxies[number].tcp_port}"

    def _logs(self) -> str:
        return self.cluster.logs()

    def _open(self, url: str) -> Fleet:
        return Fleet(url, (self.cluster.servers[0].home / "token").read_text().strip())

    def _kill_servers(self, servers: Any) -> None:
        """Let a server, the bus or the store die or stand still, one after the other."""
        dice = random.Random(f"{self.seed} servers")
        kinds = itertools.cycle(dice.sample(self._kinds, len(self._kinds)))  # each in its turn
        while not self._over.wait(dice.uniform(*self._pause)):
            kind, seconds = next(kinds), dice.choice(PAUSES) * self._dead_after
            number = dice.randrange(len(self.cluster.servers))
            self.faults[kind] += 1
            if kind == "pause store":
                seconds = dice.choice(STORE_PAUSES)
            self._let_happen(kind, number, seconds)

    def _let_happen(self, kind: str, number: int, seconds: float) -> None:
        cluster = self.cluster
        engine: Engine = cluster.postgres if kind.endswith("store") else cluster.nats
        if kind == "kill":
            cluster.end(number, signal.SIGKILL)
        elif kind == "stop":
            cluster.end(number, signal.SIGTERM)
        elif kind == "pause":
            cluster.pause(number, seconds)
        elif kind.startswith("kill"):
            engine.restart()
        else:
            engine.pause()
            time.sleep(seconds)
            engine.wake()

    def _counted(self, servers: Any) -> dict[str, collections.Counter[int]]:
        """Try again where a server that woke up just now hangs up."""
        for _ in self.cluster.servers:
            with contextlib.suppress(ServerUnreachable):
                return super()._counted(servers)
        return super()._counted(servers)

    def _stored(self) -> tuple[dict[int, Line], str]:
        """Return all jobs, once what dead servers had has been given up too."""
        deadline = time.monotonic() + SETTLED
        while True:
            stored = self._rows()
            open_jobs = [job for job, (status, _) in stored.items() if status is None]
            if not open_jobs or time.monotonic() > deadline:
                return stored, "ok"
            time.sleep(0.2)

    def _rows(self) -> dict[int, Line]:
        with psycopg.connect(self.cluster.store) as store:
            rows = store.execute("SELECT id, status, error FROM jobs").fetchall()
        return {number: (status, error) for number, status, error in rows}

    def _fenced(self) -> dict[str, Any]:
        logs = self.cluster.logs()
        return {
            "servers that began anew": logs.count("it rejoins"),
            "refused": logs.count("other servers own the jobs"),
            "hang limit": HANG,
        }


def main() -> None:
    """Run it from a shell; print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.several")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--boards", type=int, default=300)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_postgres() as postgres,
        running_nats(Path(folder)) as nats,
    ):
        engines = (postgres, nats)
        soak = SeveralSoak(
            Path(folder), given.jobs, given.boards, given.seed, engines, servers=given.servers
        )
        json.dump(soak.run(), sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
