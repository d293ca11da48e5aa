"""Leave work for boards that come and go while servers are killed: each job one outcome.

    python -m tests.faults.waiting --jobs 3000 --boards 300 --seed 1 [--servers 3] [--minutes 20]

The boards are peers in this process, on links with MACs, that sleep most of the time: they connect,
run what they are sent, say that they sleep, and leave; sometimes without SLEEP, sometimes in the
middle of a job, sometimes with a broken link that they mend. The servers are real ones, killed with
SIGKILL at random times. Then each job has exactly one outcome, none ran twice, none before its
turn, and the store has nothing left of what waited. Random numbers are seeded; the order of
simultaneous events depends on the machine.

Boards sleep longer while less than a fifth of the machine's CPU is idle. The test ends with an
error if nothing happens for long, or at the end of its time; the error says how busy the machine
was, since on a machine without idle CPU that may be no fault.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import functools
import json
import random
import signal
import sqlite3
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import psutil
import psycopg
from websockets.exceptions import WebSocketException

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol import wire
from cloudmanager.testing.plugin import RunningServer
from tests.cm_server.peers import FakeBoard, FakeCaller, Identity
from tests.engines import running_nats, running_postgres

from .servers import Servers
from .several import Cluster

HANG: Final = 60.0  # seconds, and twice the longest sleep, in which at least one job has ended
MINUTES: Final = 20.0  # of a whole run
_LOOK_SECONDS: Final = 2.0  # between two looks at the CPU
#: The idle part of the CPU: below the first number, boards sleep longer; above the second, shorter.
_IDLE: Final = (0.2, 0.35)
_MAX_SLOWNESS: Final = 3.0  # times as long
#: What breaks a link of these peers: the server was killed, or refuses them while it starts.
_BROKEN: Final = (OSError, WebSocketException, TimeoutError, AssertionError)
_COLUMNS: Final = "id, board, status, error"


class SleepingBoard:
    """A board that sleeps, wakes, runs what it is sent, and sleeps again.

    Args:
        identity: its name and key.
        dice: for its random behaviour.
        sleep: how long it sleeps: the least and the most, in seconds.
        awake: the same of how long it waits for a job; it also waits for twice as long as its
            connection has taken.
        slowness: returns by what the time to sleep is multiplied.

    Attributes:
        faults: how its links have broken.
        runs: the texts of all cells that it has received, in their order.
    """

    def __init__(
        self,
        identity: Identity,
        dice: random.Random,
        sleep: tuple[float, float],
        awake: tuple[float, float],
        slowness: Callable[[], float],
    ) -> None:
        self.identity, self._dice, self._sleep, self._awake = identity, dice, sleep, awake
        self._slowness = slowness
        self._seconds = 0.0  # of the next sleep
        self.faults: collections.Counter[str] = collections.Counter()
        self.runs: list[int] = []
        self._boots = 0
        self._last: dict[str, Any] | None = None

    async def live(self, ports: Callable[[], list[int]]) -> None:
        """Wake and sleep until it is cancelled."""
        while True:
            self._seconds = self._dice.uniform(*self._sleep) * self._slowness()
            await asyncio.sleep(self._seconds)
            try:
                await self._wake(self._dice.choice(ports()))
            except _BROKEN as error:
                self.faults[f"board: {type(error).__name__}"] += 1

    async def _wake(self, tcp_port: int) -> None:
        """Connect, run what waits, and leave."""
        service: Any = SimpleNamespace(tcp_port=tcp_port)
        boot = f"boot {self._boots}"
        began = time.monotonic()
        async with asyncio.timeout(10):
            board = await FakeBoard.join(
                service, self.identity, mac=True, boot=boot, last=self._last
            )
        async with board:
            if await self._work(board, 2 * (time.monotonic() - began)):
                self._boots, self._last = self._boots + 1, None

    async def _work(self, board: FakeBoard, patience: float) -> bool:
        """Run what is sent until nothing is; return whether the board forgets its last job."""
        asks = False
        while True:
            message = await self._next(board, patience)
            if message is None:
                if asks or self._dice.random() < 0.2:  # it leaves without SLEEP
                    return True
                milliseconds = max(round(self._seconds * 1000), 1)
                await board.send(wire.SLEEP, struct.pack(">II", milliseconds, 1))
                asks = True
            elif message.op == wire.SLEEP_REPLY and not message.flags & wire.STAY_AWAKE:
                return True
            elif message.op == wire.EXEC:
                asks = False
                self.runs.append(int(message.payload[8:]))
                self._last = {"job": f"{message.job:08x}", "status": 0, "error": "", "dropped": 0}
                end = self._dice.random()
                if end < 0.1:  # it falls asleep in mid-job
                    return True
                if end < 0.2:  # its link breaks; it goes on and reports the job on the next one
                    return False
                await board.end(message.job, output=b"done", rest=b"1")

    async def _next(self, board: FakeBoard, patience: float) -> wire.Message | None:
        """Return the next message; None if nothing comes for a moment."""
        try:
            async with asyncio.timeout(max(self._dice.uniform(*self._awake), patience)):
                return await board.next()
        except TimeoutError:
            return None


class Breath:
    """How much of the machine's CPU is idle, and by what boards have to sleep longer for that.

    Args:
        max_slowness: the greatest value of ``slowness``.

    Attributes:
        slowness: by what the time to sleep is multiplied.
        most: its greatest value.
        idle: the part of the CPU that was idle at the last look.
    """

    def __init__(self, max_slowness: float) -> None:
        self._max_slowness = max_slowness
        self.slowness = self.most = 1.0
        self.idle = 1.0
        self._begin = self._last = psutil.cpu_times()

    async def watch(self) -> None:
        """Look at the CPU until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = psutil.cpu_times()
            self.idle, self._last = _idle_part(self._last, now), now
            if self.idle < _IDLE[0]:
                self.slowness = min(self.slowness * 1.25, self._max_slowness)
            elif self.idle > _IDLE[1]:
                self.slowness = max(self.slowness / 1.1, 1.0)
            self.most = max(self.most, self.slowness)

    def mean(self) -> float:
        """Return the part that was idle since the beginning."""
        return _idle_part(self._begin, psutil.cpu_times())

    def describe(self) -> str:
        """Return a sentence for an error."""
        why = "so the machine may be too slow for this test" if self.mean() < 0.1 else "a fault"
        return (
            f"{self.mean():.0%} of the CPU was idle, {self.idle:.0%} in the end, and boards slept "
            f"up to {self.most:.1f} times as long: {why}"
        )


def _idle_part(before: Any, after: Any) -> float:
    total = sum(after[:8]) - sum(before[:8])  # without guests, which are counted as users, too
    names = [name for name in ("idle", "iowait") if hasattr(after, name)]
    idle = sum(getattr(after, name) - getattr(before, name) for name in names)
    return float(idle) / total if total else 1.0


class WaitingSoak:
    """One run of the test.

    Args:
        home: the folder for files of the servers.
        jobs: how many jobs are submitted.
        boards: how many boards there are.
        seed: of all random numbers.
        sleep: how long boards sleep: the least and the most, in seconds.
        awake: the same of how long they wait for a job. Several servers need longer to take one
            out of PostgreSQL.
        pause: how many jobs are submitted or run between two deaths of servers: the least and the
            most. No time: a busy machine is slow to start a server.
        minutes: after which it ends with an error.
        adapts: whether boards sleep longer on a busy machine.
    """

    def __init__(
        self,
        home: Path,
        jobs: int,
        boards: int,
        seed: int,
        *,
        sleep: tuple[float, float] = (2.0, 20.0),
        awake: tuple[float, float] = (0.2, 0.6),
        pause: tuple[int, int] = (100, 300),
        minutes: float = MINUTES,
        adapts: bool = True,
    ) -> None:
        self.home, self.jobs, self.seed = home, jobs, seed
        self.names = [f"sleeper-{number}" for number in range(1, boards + 1)]
        self._sleep, self._awake, self._pause = sleep, awake, pause
        self.faults: collections.Counter[str] = collections.Counter()
        #: Number of each cell -> its job; None if it is not known whether the server has it.
        self.submitted: dict[int, int | None] = {}
        self.interrupted: set[int] = set()  # jobs that an interrupt has ended, as the server said
        self._boards: dict[str, SleepingBoard] = {}
        self._minutes, self._deadline = minutes, 0.0
        self._breath = Breath(_MAX_SLOWNESS if adapts else 1.0)

    def run(self, servers: Servers | Cluster) -> dict[str, Any]:
        """Run the test; return its figures."""
        began = time.monotonic()
        token = (self._first(servers).home / "token").read_text().strip()
        with Fleet(self._first(servers).url, token) as fleet:
            for row in fleet.enrol(self.names, plain=True):
                dice = random.Random(f"{self.seed} {row['name']}")
                self._boards[row["id"]] = SleepingBoard(
                    Identity(row), dice, self._sleep, self._awake, lambda: self._breath.slowness
                )
        self._deadline = began + self._minutes * 60
        asyncio.run(self._all(servers, token))
        return self._judge(servers) | {
            "seconds": round(time.monotonic() - began, 1),
            "idle": round(self._breath.mean(), 2),
            "slept longer": round(self._breath.most, 1),
        }

    @staticmethod
    def _first(servers: Servers | Cluster) -> RunningServer:
        return servers.server

    @staticmethod
    def _ports(servers: Servers | Cluster) -> list[int]:
        return servers.ports if isinstance(servers, Cluster) else [servers.server.tcp_port]

    async def _all(self, servers: Servers | Cluster, token: str) -> None:
        ports = lambda: self._ports(servers)  # noqa: E731
        others = [asyncio.create_task(board.live(ports)) for board in self._boards.values()]
        others.append(asyncio.create_task(self._breath.watch()))
        killing = asyncio.create_task(self._kill(servers))
        submitting = asyncio.create_task(self._submit_all(ports, token))
        try:
            await asyncio.wait({submitting, killing}, return_when=asyncio.FIRST_COMPLETED)
            if killing.done():
                killing.result()  # raises: a server did not start again
            await submitting
            await self._until_ended(servers)
        finally:
            tasks = pending = {submitting, killing, *others}
            while pending:  # again and again: asyncio.wait_for may swallow a cancellation
                for task in pending:
                    task.cancel()
                _, pending = await asyncio.wait(pending, timeout=1)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _submit_all(self, ports: Callable[[], list[int]], token: str) -> None:
        """Leave one job after the other, so that their order is known; interrupt a few."""
        dice = random.Random(f"{self.seed} caller")
        names = list(self.names)
        tag = 0
        while len([job for job in self.submitted.values() if job is not None]) < self.jobs:
            service: Any = SimpleNamespace(tcp_port=dice.choice(ports()), token=token)
            self._check_time(f"the servers accepted {tag} jobs, {dict(self.faults)}")
            with self._counting_broken("caller"):
                async with await FakeCaller.join(service) as caller:
                    for _ in range(dice.randrange(5, 30)):
                        tag += 1
                        self.submitted[tag] = None
                        (job,) = await caller.submit(
                            dice.choice(names), b"%d" % tag, when_online=True
                        )
                        self.submitted[tag] = job
                        if dice.random() < 0.05:
                            await self._interrupt(caller, job)
            await asyncio.sleep(0.02)

    @contextlib.contextmanager
    def _counting_broken(self, who: str) -> Iterator[None]:
        """Count links that break, and go on."""
        try:
            yield
        except _BROKEN as error:
            self.faults[f"{who}: {type(error).__name__}"] += 1

    async def _interrupt(self, caller: FakeCaller, job: int) -> None:
        await caller.ask("interrupt", jobs=[job])

    async def _kill(self, servers: Servers | Cluster) -> None:
        """Kill a server at random times, and start the next one."""
        dice = random.Random(f"{self.seed} servers")
        next_at = 0
        while True:
            next_at += dice.randint(*self._pause)
            while self._progress() < next_at:  # noqa: ASYNC110 - nothing says so
                await asyncio.sleep(0.005)
            if isinstance(servers, Cluster):
                number = dice.randrange(len(servers.servers))
                await _in_thread(functools.partial(servers.end, number, signal.SIGKILL))
            else:
                await _in_thread(servers.die)
            self.faults["kill -9"] += 1

    def _progress(self) -> int:
        """Return how many jobs were submitted, and how many were run."""
        return len(self.submitted) + sum(len(board.runs) for board in self._boards.values())

    async def _until_ended(self, servers: Servers | Cluster) -> None:
        count, since = 0, time.monotonic()
        while open_jobs := [row for row in self._rows(servers) if row[2] is None]:
            if len(open_jobs) != count:
                count, since = len(open_jobs), time.monotonic()
            what = f"{count} of {len(self.submitted)} jobs have not ended, such as {open_jobs[:3]}"
            hang = HANG + 2 * self._sleep[1] * self._breath.most
            if time.monotonic() - since > hang:
                reason = f"{what}, and none for {hang:.0f} s, {dict(self._all_faults())}"
                raise TimeoutError(f"{reason}: {self._breath.describe()}")
            self._check_time(what)
            await asyncio.sleep(0.2)

    def _all_faults(self) -> collections.Counter[str]:
        """Return how often servers were killed, and links of callers and boards broke."""
        return sum((board.faults for board in self._boards.values()), self.faults)

    def _check_time(self, what: str) -> None:
        """Raise TimeoutError at the end of the time; ``what`` says what is not done."""
        if time.monotonic() > self._deadline:
            reason = f"{what} after {self._minutes:g} minutes, {dict(self._all_faults())}"
            raise TimeoutError(f"{reason}: {self._breath.describe()}")

    def _query(self, servers: Servers | Cluster, text: str) -> list[tuple[Any, ...]]:
        if isinstance(servers, Cluster):
            with psycopg.connect(servers.store) as connection:
                return connection.execute(text).fetchall()
        path = self._first(servers).home / "server.db"
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as file:
            return list(file.execute(text))

    def _rows(self, servers: Servers | Cluster) -> list[tuple[Any, ...]]:
        return self._query(servers, f"SELECT {_COLUMNS} FROM jobs WHERE caller <> ''")

    def _judge(self, servers: Servers | Cluster) -> dict[str, Any]:
        """Check what the boards have run against what the store says."""
        rows = {row[0]: row for row in self._rows(servers)}
        by_job = {job: tag for tag, job in self.submitted.items() if job is not None}
        ran: collections.Counter[int] = collections.Counter()
        for board in self._boards.values():
            ran.update(board.runs)
            assert board.runs == sorted(board.runs), f"out of turn: {board.runs}"
        twice = [tag for tag, count in ran.items() if count > 1]
        assert not twice, f"ran twice: {twice}"
        outcomes: collections.Counter[str] = collections.Counter()
        for job, tag in by_job.items():
            status, error = rows[job][2:]
            outcomes[status] += 1
            if status == "ok":
                assert ran[tag], f"job {job} is ok and never ran"
            elif status in ("interrupted", "offline", "error"):
                assert not ran[tag] or status == "interrupted", (rows[job], "ran")
            else:
                assert status == "lost", rows[job]
                if "did not run" in (error or ""):
                    assert not ran[tag], (rows[job], "ran")
        left = {
            table: self._query(servers, f"SELECT count(*) FROM {table}")[0][0]
            for table in ("waiting", "blobs", "blob_uses")
        }
        assert not any(left.values()), left
        return {
            "jobs": len(by_job),
            "ran": len(ran),
            "outcomes": dict(outcomes),
            "faults": dict(self._all_faults()),
        }


async def _in_thread(act: Callable[[], object]) -> None:
    """Call a function that blocks; it is completed even if this is cancelled."""
    work: Awaitable[object] = asyncio.get_running_loop().run_in_executor(None, act)
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await work
        raise


@contextlib.contextmanager
def one_server(home: Path) -> Iterator[Servers]:
    """Run a server that can be killed."""
    servers = Servers(home, public=False)
    try:
        yield servers
    finally:
        servers.end()


def main() -> None:
    """Run the test from the command line; print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.waiting")
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--boards", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        awake = (0.2, 0.6) if given.servers == 1 else (0.5, 2.0)
        soak = WaitingSoak(
            Path(folder), given.jobs, given.boards, given.seed, awake=awake, minutes=given.minutes
        )
        servers: Servers | Cluster
        if given.servers == 1:
            servers = stack.enter_context(one_server(Path(folder)))
        else:
            (Path(folder) / "nats").mkdir()
            engines = (
                stack.enter_context(running_postgres()),
                stack.enter_context(running_nats(Path(folder) / "nats")),
            )
            servers = Cluster(Path(folder), given.servers, 4.0, *engines)
            stack.callback(servers.close)
        try:
            figures = soak.run(servers)
        except TimeoutError as error:  # first of all: on a slow machine, servers do not end in time
            print(error, file=sys.stderr, flush=True)
            raise
        json.dump(figures, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
