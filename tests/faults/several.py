"""Run thousands of jobs while servers, bus, store and links are killed or suspended.

    python -m tests.faults.several --jobs 5000 --boards 300 --servers 3 --seed 1

Three servers, one PostgreSQL, one NATS. Boards and callers connect to any server that answers, as
behind a load balancer. Each job has exactly one outcome, none runs twice by the boards' own count,
and nothing hangs; writes of a suspended server about boards that moved have no effect.
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
from cloudmanager.protocol.errors import ServerError, ServerUnreachable
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer, running_server
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.engines import Engine, Nats, Postgres, running_nats, running_postgres

from .proxy import Loop, ProxiedLink, Proxy
from .servers import BEAT
from .soak import CALLERS, HANG, Line, Soak

DEAD_AFTER: Final = 4.0  # seconds without a heartbeat after which others remove a server
PAUSES: Final = (
    0.1,
    0.5,
    1.5,
)  # how long a process is suspended, in units of DEAD_AFTER; the last is too long
SETUP_ATTEMPTS: Final = 10  # to wait until all boards are connected, before the first fault
SETTLED: Final = 20.0  # seconds after which no job is open
STORE_PAUSES: Final = (1.5, 1.5, 1.5, 7.0)  # seconds; in the last, statements time out
REJOINED: Final = "it rejoins"  # as membership.py logs it
KINDS: Final = ("kill", "pause", "kill bus", "pause bus", "stop", "kill store", "pause store")


class Balancer(Proxy):
    """Connects each link to a random server that answers, like a load balancer."""

    ports: list[int]  # of all servers
    dice: random.Random

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for tcp_port in self.dice.sample(self.ports, len(self.ports)):
            with contextlib.suppress(OSError):
                theirs = await asyncio.open_connection("127.0.0.1", tcp_port)
                break
        else:
            return
        try:
            await ProxiedLink(self, (reader, writer), theirs).run()
        finally:
            theirs[1].transport.abort()


class Cluster:
    """Servers that are killed, suspended and restarted, each with its folder and TCP port."""

    def __init__(
        self, home: Path, count: int, dead_after: float, postgres: Postgres, nats: Nats
    ) -> None:
        self.nats, self.postgres, self.store = nats, postgres, postgres.new()
        self._stack = contextlib.ExitStack()
        self._home, self._dead_after = home, str(dead_after)
        self.servers = [self._start(number, 0) for number in range(count)]

    def _start(self, number: int, tcp_port: int) -> RunningServer:
        options = ("--store", self.store, "--bus", self.nats.url, "--beat", BEAT)
        home = self._home / f"server-{number}"
        context = running_server(
            home, *options, "--lost-after", self._dead_after, tcp_port=tcp_port
        )
        return self._stack.enter_context(context)

    @property
    def server(self) -> RunningServer:
        return self.servers[0]

    @property
    def ports(self) -> list[int]:
        return [server.tcp_port for server in self.servers]

    def end(self, number: int, how: signal.Signals) -> None:
        """Send a server a signal that ends it, and restart it."""
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
    """One run of the test."""

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
        """Run the test; return its figures."""
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
            if self.errors:
                raise self.errors[0]
            return self._judge(counts, seconds, 0) | self._log_figures()

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
            self._wait_online(fleet)
            yield machine

    def _wait_online(self, fleet: Fleet) -> None:
        """Wait for all boards.

        While hundreds of them start on a busy machine, a server may be late with its heartbeats; it
        rejoins then, and closes the links of its callers.
        """
        for _ in range(SETUP_ATTEMPTS):
            with contextlib.suppress(ServerUnreachable):
                return wait_online(fleet, self.names)
        return wait_online(fleet, self.names)

    def _url(self, number: int, url: str) -> str:
        return f"http://127.0.0.1:{self.caller_proxies[number].tcp_port}"

    def _logs(self) -> str:
        return self.cluster.logs()

    def _open(self, url: str) -> Fleet:
        return Fleet(url, (self.cluster.servers[0].home / "token").read_text().strip())

    def _kill_servers(self, servers: Any) -> None:
        """Kill or suspend servers, the bus or the store, one after the other."""
        dice = random.Random(f"{self.seed} servers")
        kinds = itertools.cycle(
            dice.sample(self._kinds, len(self._kinds))
        )  # each kind equally often
        while not self._over.wait(dice.uniform(*self._pause)):
            kind, seconds = next(kinds), dice.choice(PAUSES) * self._dead_after
            number = dice.randrange(len(self.cluster.servers))
            self.faults[kind] += 1
            if kind == "pause store":
                seconds = dice.choice(STORE_PAUSES)
            self._cause_fault(kind, number, seconds)

    def _cause_fault(self, kind: str, number: int, seconds: float) -> None:
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
        """Count as ``Soak`` does; retry if a server that resumed closes the link, or refuses."""
        for _ in self.cluster.servers:
            with contextlib.suppress(ServerUnreachable, ServerError):
                return super()._counted(servers)
        return super()._counted(servers)

    def _stored(self) -> tuple[dict[int, Line], str]:
        """Return all jobs when those of dead servers have ended, too."""
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

    def _log_figures(self) -> dict[str, Any]:
        logs = self.cluster.logs()
        return {
            "servers that rejoined": logs.count(REJOINED),
            "refused": logs.count("other servers own the jobs"),
            "hang limit": HANG,
        }


def main() -> None:
    """Run the test from the command line; print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.several")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--boards", type=int, default=300)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    help_text = "an empty folder in which the servers' logs are kept (default: removed at the end)"
    parser.add_argument("--folder", type=Path, help=help_text)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as temporary,
        running_postgres() as postgres,
        running_nats(Path(temporary)) as nats,
    ):
        folder = given.folder or Path(temporary)
        engines = (postgres, nats)
        soak = SeveralSoak(
            folder, given.jobs, given.boards, given.seed, engines, servers=given.servers
        )
        json.dump(soak.run(), sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
