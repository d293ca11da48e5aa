"""Bring boards to generations while servers, boards and links are killed: who has what is right.

    python -m tests.faults.rollouts --boards 200 --seed 1
    python -m tests.faults.rollouts --boards 60 --seed 1 --servers 3

The health of the second generation fails on every seventh board. A board is on the generation that
the rollout says, whatever was killed meanwhile; a rollout stops after as many failures as it may
have; a board fails that is bad, or that was killed on trial, and no other.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import psycopg

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.results.fleet_plan import rollouts_text
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.engines import running_nats, running_postgres

from .proxy import Loop, Proxy, Strike
from .servers import Servers, fleet_of
from .several import Balancer, Cluster
from .soak import BOARD_PLACES, FAULTS, WEIGHTS

SCREEN: Final = 24  # lines of a terminal
MANY: Final = 60  # boards, which keep a machine of two cores busy when they restart
STUCK: Final = 100.0  # seconds after which a rollout counts as stuck, and half a one for each board
SENSOR: Final = "health: OSError: no sensor"
#: What a board that was killed on trial says: a crash of its program looks the same.
KILLED: Final = "it went back: it restarted"
APP: Final = """
import asyncio, json
VERSION = {version}
async def ok():
    await asyncio.sleep(0)
    with open("/settings.json") as file:
        if json.load(file).get("bad") == VERSION:
            raise OSError("no sensor")
async def main():
    while True:
        await asyncio.sleep(1)
"""
#: A cell that returns the version in the file of the program, and the state of the generation.
LOOK: Final = """
def cm_look(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
(cm_look("/app.py").partition("VERSION = ")[2][:1], cm_look("/.cm/state").split("\\n")[0])
"""
T = TypeVar("T")


class Wishes(NamedTuple):
    """How a rollout proceeds.

    Attributes:
        waves: in which boards get it.
        parallel: how many boards switch at the same time; 0: all of a wave.
        max_failures: after how many more the rollout stops.
    """

    waves: tuple[int | str, ...] = (1, "10%", "100%")
    parallel: int = 0
    max_failures: int = 0


class RolloutSoak:
    """One run of the test.

    Args:
        home: the folder for files of the servers and the boards.
        boards: how many boards there are.
        seed: of all random numbers.
        cluster: several servers; None for one.
        pauses: seconds between two faults of links, of boards, and of servers.
        every: which boards are bad.
    """

    def __init__(
        self,
        home: Path,
        boards: int,
        seed: int,
        cluster: Cluster | None = None,
        *,
        pauses: tuple[float, float, float] = (0.3, 2.0, 5.0),
        every: int = 7,
    ) -> None:
        self.home, self.seed, self.cluster, self.pauses = home, seed, cluster, pauses
        self.names = [f"lab-{number}" for number in range(1, boards + 1)]
        self.bad = set(self.names[every - 1 :: every])
        self.faults: collections.Counter[str] = collections.Counter()
        self.killed: set[str] = set()
        self.errors: list[BaseException] = []
        self.proxies: list[Proxy] = []
        self.stuck_after = STUCK + boards / 2
        self._over = threading.Event()
        self._folder = home / "file"

    def run(self) -> dict[str, Any]:
        """Run the test; return its figures."""
        with contextlib.ExitStack() as stack:
            servers = None if self.cluster else self._start_server()
            stack.callback(self.cluster.close if self.cluster else servers.end)  # type: ignore[union-attr]
            loop = stack.enter_context(Loop())
            url, token_home = self._caller_address(servers, loop)
            with fleet_of(url, token_home) as fleet:
                machine = stack.enter_context(self._boards(fleet, url, servers, loop))
                return self._all(fleet, servers, machine)

    def _start_server(self) -> Servers:
        home = self.home / "server"
        if len(self.names) < MANY:
            return Servers(home, public=False)
        # All boards restart at the same time: they need longer until they answer a ping.
        return Servers(home, public=False, beat="15", lost_after="45")

    def _caller_address(self, servers: Servers | None, loop: Loop) -> tuple[str, Path]:
        """Return the URL for the caller, and the folder of a server with its token."""
        if self.cluster is None:
            assert servers is not None
            return servers.server.url, servers.server.home
        proxy = self._balancer(loop)
        return f"http://127.0.0.1:{proxy.tcp_port}", self.cluster.servers[0].home

    def _balancer(self, loop: Loop) -> Balancer:
        assert self.cluster is not None
        proxy = Balancer(loop, 0)
        proxy.ports, proxy.dice = self.cluster.ports, random.Random(self.seed)
        return loop.adopt(proxy)

    @contextlib.contextmanager
    def _boards(
        self, fleet: Fleet, url: str, servers: Servers | None, loop: Loop
    ) -> Iterator[VirtualBoards]:
        """Run the boards, each behind its own proxy."""
        with VirtualBoards([], ("127.0.0.1", 0), self.home / "virtual") as machine:
            for row in fleet.enrol(self.names):
                if servers is None:
                    proxy: Proxy = self._balancer(loop)
                else:
                    proxy = loop.proxy(servers.server.tcp_port)
                machine.address = ("127.0.0.1", proxy.tcp_port)
                machine.add_board(BoardIdentity.from_enrolment(row, url))
                self.proxies.append(proxy)
            self._ask(fleet, lambda fleet: wait_online(fleet, self.names))
            yield machine

    def _all(self, fleet: Fleet, servers: Servers | None, machine: VirtualBoards) -> dict[str, Any]:
        begun = time.monotonic()
        self._apply(fleet, 1, Wishes(waves=("100%",)))
        first = self._wait(fleet)
        assert first["state"] == "done", first
        times = {"first": time.monotonic() - begun}
        last_job = self._ask(fleet, lambda fleet: fleet.jobs()[0]["job"])
        again = time.monotonic()
        reply = self._apply(fleet, 1, Wishes(waves=("100%",)))
        times["again"] = time.monotonic() - again
        assert (reply["changed"], reply["rollouts"]) == (0, {})
        assert self._ask(fleet, lambda fleet: fleet.jobs()[0]["job"]) == last_job

        wishes = Wishes(parallel=max(len(self.names) // 10, 2), max_failures=len(self.bad) // 2)
        with self._faults(fleet, servers, machine):
            begun = time.monotonic()
            self._apply(fleet, 2, wishes)
            stopped = self._wait(fleet)
            times["stopped"] = time.monotonic() - begun
        self._judge(fleet, stopped, 2, wishes)
        assert stopped["state"] == "failed", stopped
        screen = rollouts_text([stopped])
        assert len(screen.splitlines()) <= SCREEN, screen
        assert SENSOR in screen or KILLED in screen, screen

        wishes = Wishes(waves=("100%",), max_failures=len(self.names))
        with self._faults(fleet, servers, machine):
            begun = time.monotonic()
            self._apply(fleet, 2, wishes)
            done = self._wait(fleet)
            times["done"] = time.monotonic() - begun
        self._judge(fleet, done, 2, wishes)
        assert done["state"] == "done", done
        counts = collections.Counter(board["state"] for board in done["boards"])
        return {
            "boards": len(self.names),
            "bad": len(self.bad),
            "stopped": collections.Counter(board["state"] for board in stopped["boards"]),
            "done": counts,
            "faults": self.faults,
            "seconds": {name: round(seconds, 2) for name, seconds in times.items()},
            "screen": screen,
        }

    # The caller

    def _write(self, version: int, wishes: Wishes) -> Path:
        folder = self._folder / "src"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "app.py").write_text(APP.format(version=version))
        own = "".join(
            f'[lab.board."{name}"]\nsettings = {{ bad = 2 }}\n' for name in sorted(self.bad)
        )
        path = self._folder / "fleet.toml"
        path.write_text(
            f'[lab]\ntarget = "lab-*"\napp = "src"\nsettings = {{ a = 1 }}\n{own}[lab.rollout]\n'
            f'waves = {json.dumps(wishes.waves)}\npause = "0s"\nparallel = {wishes.parallel}\n'
            f"max_failures = {wishes.max_failures}\n"
            'health = "import app\\nawait app.ok()"\nhealth_timeout = "20s"\ndeadline = "10m"\n'
        )
        return path

    def _apply(self, fleet: Fleet, version: int, wishes: Wishes) -> dict[str, Any]:
        path = self._write(version, wishes)
        return self._ask(fleet, lambda fleet: fleet.apply(fleet.plan(path)))

    def _ask(self, fleet: Fleet, ask: Callable[[Fleet], T]) -> T:
        """Ask a server, again if it was killed meanwhile."""
        deadline = time.monotonic() + self.stuck_after
        while True:
            try:
                return ask(fleet)
            except CloudmanagerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _wait(self, fleet: Fleet) -> dict[str, Any]:
        """Wait until the newest rollout has ended, and no board of it is being switched."""
        deadline = time.monotonic() + self.stuck_after
        while True:
            (rollout,) = self._ask(fleet, lambda fleet: fleet.rollouts())
            states = {board["state"] for board in rollout["boards"]}
            if rollout["state"] != "running" and not states & {"switching", "trial"}:
                return dict(rollout)
            if self.errors:
                raise self.errors[0]
            assert time.monotonic() < deadline, rollouts_text([rollout])
            time.sleep(0.2)

    # Faults

    @contextlib.contextmanager
    def _faults(
        self, fleet: Fleet, servers: Servers | None, machine: VirtualBoards
    ) -> Iterator[None]:
        """Cause faults; at the end, all boards are connected again."""
        self._over.clear()
        self.killed.clear()
        threads = [
            threading.Thread(target=self._guarded, args=(self._break_links,)),
            threading.Thread(target=self._guarded, args=(self._kill_boards, machine)),
            threading.Thread(target=self._guarded, args=(self._kill_servers, servers)),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        if self.errors:
            raise self.errors[0]
        since = time.time()
        for proxy in self.proxies:
            proxy.now = None
            proxy.close_links()
        self._ask(fleet, lambda fleet: wait_online(fleet, self.names, since=since))

    def _guarded(self, act: Any, *args: Any) -> None:
        try:
            act(*args)
        except BaseException as error:
            self.errors.append(error)

    def _break_links(self) -> None:
        dice = random.Random(f"{self.seed} links")
        while not self._over.wait(self.pauses[0] * dice.uniform(0.5, 1.5)):
            proxy = dice.choice(self.proxies)
            if proxy.now is None:
                fault = dice.choices(FAULTS, WEIGHTS)[0]
                proxy.strike(Strike(fault, dice.choice((*BOARD_PLACES, "FILE", "CHUNK", "DATA"))))
                self.faults[fault] += 1

    def _kill_boards(self, machine: VirtualBoards) -> None:
        dice = random.Random(f"{self.seed} boards")
        while not self._over.wait(self.pauses[1] * dice.uniform(0.5, 1.5)):
            name = dice.choice(self.names)
            self.killed.add(name)
            machine.restart(name)
            self.faults["board's kill -9"] += 1

    def _kill_servers(self, servers: Servers | None) -> None:
        dice = random.Random(f"{self.seed} servers")
        while not self._over.wait(self.pauses[2] * dice.uniform(0.5, 1.5)):
            if servers is not None:
                servers.die()
                self.faults["server's kill -9"] += 1
            else:
                self.faults["leader's kill -9"] += self._kill_leader()

    def _kill_leader(self) -> bool:
        """Kill the server that carries out the rollout; return whether there is one."""
        assert self.cluster is not None
        query = (
            "SELECT servers.address FROM rollouts JOIN servers ON servers.id = rollouts.owner "
            "ORDER BY number DESC LIMIT 1"
        )
        with psycopg.connect(self.cluster.store) as store:
            row = store.execute(query).fetchone()
        if row is None:  # another server has not taken it over yet
            return False
        port = int(str(row[0]).rpartition(":")[2])
        self.cluster.end(self.cluster.ports.index(port), signal.SIGKILL)
        return True

    # The end

    def _judge(self, fleet: Fleet, rollout: dict[str, Any], version: int, wishes: Wishes) -> None:
        """Compare what a rollout says with what the boards have."""
        results = self._look(fleet)
        failed = 0
        for board in rollout["boards"]:
            name, state, why = board["board"], board["state"], board["why"]
            found = results[name]
            if state == "proven":
                assert name not in self.bad, board
                assert found == (str(version), f"proven {rollout['generation'][:16]}"), board
                continue
            assert found[0] == str(version - 1), (board, found)
            assert found[1].startswith("proven "), (board, found)
            assert state in ("failed", "waiting", "unproven"), board
            if state == "failed":
                failed += 1
                is_right = (name in self.bad and why == SENSOR) or (
                    name in self.killed and why == KILLED
                )
                assert is_right, board
        if rollout["why"].startswith("no board of wave"):  # the canary was killed on trial
            assert 0 < failed <= wishes.parallel, rollout
        elif rollout["state"] == "failed":
            assert wishes.max_failures < failed <= wishes.max_failures + wishes.parallel, rollout
        else:
            assert failed <= wishes.max_failures

    def _look(self, fleet: Fleet) -> Mapping[str, Any]:
        """Return the version and the state of the generation of each board."""
        found: dict[str, Any] = {}
        deadline = time.monotonic() + 60
        while len(found) < len(self.names):
            missing = [name for name in self.names if name not in found]
            results = fleet[",".join(missing)].run(LOOK, wait=30, timeout=30)
            found |= {name: result.value for name, result in results.items() if result.ok}
            assert time.monotonic() < deadline, results
        return found


def main() -> None:
    """Run the test from the command line; print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.rollouts")
    parser.add_argument("--boards", type=int, default=200)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = None
        if given.servers > 1:
            engines = (
                stack.enter_context(running_postgres()),
                stack.enter_context(running_nats(folder)),
            )
            cluster = Cluster(folder / "servers", given.servers, 4.0, *engines)
        figures = RolloutSoak(folder, given.boards, given.seed, cluster).run()
        print(figures.pop("screen"))
        json.dump(figures, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
