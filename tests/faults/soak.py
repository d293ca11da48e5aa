"""Run ten thousand jobs while links break and boards and servers are killed.

    python -m tests.faults.soak --jobs 10000 --boards 20 --seed 1

Each job has exactly one outcome, none runs twice by the boards' own count, nothing hangs, the
server's memory stays constant, and its database is valid. Random numbers are seeded; the order of
simultaneous events depends on the machine. Links without TLS get the faults of TCP: broken links,
delays, silence. With ``--tls``, bytes are also dropped, duplicated and changed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer
from cloudmanager.virtual.virtual_boards import VirtualBoards

from .proxy import Loop, Proxy, Strike
from .rows import NEVER
from .servers import Servers, fleet_of

CALLERS: Final = 20  # threads, each with its own link; every fourth through a proxy
HANG: Final = 60.0  # seconds after which a job counts as hanging
GROWTH: Final = 24 * 1024 * 1024  # bytes by which a server may grow after its warm-up
#: Start of each cell: it adds a line to a file of this host, which survives a kill of the board.
#: All cells of a board have the same texts: MicroPython keeps each short text in code, and each
#: name, until the board restarts (py/qstr.c), so that after 900 others a heap of 128 KB was full.
MARK: Final = (
    "import os, vfs\n"
    "try: os.stat('/host')\n"
    "except OSError: vfs.mount(vfs.VfsPosix({folder!r}), '/host')\n"
    "with open('/host/{board}', 'a') as file: file.write('%d\\n' % {tag})\n"
)
#: Code of a cell, its status without faults, and its weight.
CELLS: Final = [
    ("'a value'", "ok", 8),
    ("for n in range(20): print(n, 'x' * n)", "ok", 4),
    ("'-' * 1500", "ok", 2),
    ("# " + "." * 1500 + "\n1", "ok", 2),
    ("import time\ntime.sleep(0.1)", "ok", 2),
    ("1 // 0", "error", 2),
    ("while True: pass", "timeout", 1),
    ("while True: print('on and on')", "interrupted", 1),
]
#: In the traceback of the one cell that fails.
ERROR: Final = "ZeroDivisionError"
FAULTS: Final = ("cut before", "cut within", "cut after", "delay", "trickle", "half-open")
WEIGHTS: Final = (8, 8, 8, 6, 4, 1)
BOARD_PLACES: Final[Sequence[str]] = (
    "EXEC",
    "OUTPUT",
    "VALUE",
    "RESULT",
    "HELLO",
    "PROOF",
    "WELCOME",
)
CALLER_PLACES: Final[Sequence[str]] = ("SUBMIT", "ACCEPTED", "OUTPUT", "RESULT")
#: With TLS, also faults that only TLS detects, at any record, since records have no names.
TLS_FAULTS: Final = (*FAULTS, "flip", "drop", "duplicate", "reorder")
TLS_WEIGHTS: Final = (*WEIGHTS, 6, 6, 6, 6)
TLS_PLACES: Final = ("record", "record", "record", "handshake")
#: In the store, the result of a job for which both processes were killed: the server in the 50 ms
#: between forwarding a result and its commit (job_results.py), and then the board, which would have
#: reported it to the next server. If only one is killed, the result is kept (test_kill.py). To
#: commit first would make each cell wait for the disk.
DOUBLE: Final = ("lost", "the board restarted while it ran")
#: A job that its caller interrupted in the queue, and whose server was killed before it wrote that:
#: the caller and the store say the same, that it did not run. In the store, this depends on whether
#: the job before it on its board had ended.
NOT_SENT: Final = (("lost", "the server restarted before it was sent"), ("lost", NEVER))
NOT_RUN: Final = "it was not sent yet and did not run"
Line = tuple[str | None, str | None]  # a job's status and error, as they are stored


class CellOutcome(NamedTuple):
    """A caller's view of one cell: its tag, board, job (0: none), and outcome.

    Attributes:
        wanted: the status without faults.
        why: the server's reason, if the server ended the job.
        traceback: of the board.
    """

    tag: int
    board: str
    job: int
    status: str
    wanted: str
    why: str = ""
    traceback: str = ""


class Soak:
    """One run of the test.

    Args:
        home: the folder for files of the server and the boards.
        jobs: how many cells are submitted.
        boards: how many boards there are.
        seed: of all random numbers.
        deaths: how often the server is killed, always in the first third.
        tls: whether all links are TLS.
    """

    def __init__(
        self, home: Path, jobs: int, boards: int, seed: int, deaths: int, *, tls: bool = False
    ) -> None:
        self.home = home
        self.tls = tls
        self.callers = CALLERS
        self.marks = home / "marks"
        self.jobs = jobs
        self.names = [f"soak-{number}" for number in range(1, boards + 1)]
        self.seed = seed
        self.deaths = deaths
        self.outcomes: list[CellOutcome] = []
        self.errors: list[BaseException] = []
        self.faults: collections.Counter[str] = collections.Counter()
        self.proxies: dict[str, Proxy] = {}
        self.board_proxies: list[Proxy] = []
        self.caller_proxies: list[Proxy] = []
        self.memory: list[int] = []
        self.counts: dict[str, collections.Counter[int]] = {}
        self.doubles = 0  # jobs whose server and board were both killed
        self.accepted = 0  # cells that the server accepted, as far as callers know
        self._tags = itertools.count()  # unique for each cell; next() is atomic
        self._over = threading.Event()

    def run(self) -> dict[str, Any]:
        """Run the test; return its figures."""
        with contextlib.ExitStack() as stack:
            before, threading.excepthook = threading.excepthook, self._on_dead_thread
            stack.callback(setattr, threading, "excepthook", before)
            self.marks.mkdir(parents=True)
            servers = Servers(self.home, public=self.tls)
            stack.callback(servers.end)
            loop = stack.enter_context(Loop())
            machine = stack.enter_context(self._machine(servers.server, loop))
            tcp_port = servers.server.tcp_port
            self.caller_proxies = [
                loop.proxy(tcp_port, tls=self.tls) for _ in range((self.callers + 3) // 4)
            ]
            began = time.monotonic()
            self._all(servers, machine)
            seconds = time.monotonic() - began
            self.counts = counts = self._counted(servers)
            if self.errors:
                raise self.errors[0]
            return self._judge(counts, seconds, servers.deaths)

    @contextlib.contextmanager
    def _machine(self, server: RunningServer, loop: Loop) -> Iterator[VirtualBoards]:
        """Run the boards, each behind its own proxy."""
        with (
            VirtualBoards([], ("127.0.0.1", 0), self.home / "virtual") as machine,
            fleet_of(server.url, self.home) as fleet,
        ):
            for row in fleet.enrol(self.names):
                proxy = loop.proxy(server.tcp_port, tls=self.tls)
                machine.address = ("127.0.0.1", proxy.tcp_port)
                machine.add_board(BoardIdentity.from_enrolment(row, server.url))
                self.board_proxies.append(proxy)
            wait_online(fleet, self.names)
            yield machine

    def _all(self, servers: Servers, machine: VirtualBoards) -> None:
        """Run callers and faults; return when all cells have ended."""
        callers = [
            threading.Thread(target=self._guarded, args=(self._call, number, servers.server.url))
            for number in range(self.callers)
        ]
        others = [
            threading.Thread(target=self._guarded, args=(self._break_links,)),
            threading.Thread(target=self._guarded, args=(self._kill_boards, machine)),
            threading.Thread(target=self._guarded, args=(self._kill_servers, servers)),
        ]
        for thread in (*callers, *others):
            thread.start()
        for thread in callers:
            thread.join()
        self._over.set()
        for thread in others:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _on_dead_thread(self, args: Any) -> None:
        """Record that a thread of the library ended with an exception."""
        self.errors.append(args.exc_value or RuntimeError("a thread died"))

    def _guarded(self, act: Any, *args: Any) -> None:
        try:
            act(*args)
        except BaseException as error:
            self.errors.append(error)

    # Callers

    def _call(self, number: int, url: str) -> None:
        dice = random.Random(f"{self.seed} caller {number}")
        url = self._url(number, url)
        with self._open(url) as fleet:
            while not self.errors and self._goes_on():
                outcome = self._run_cell(fleet, dice, next(self._tags))
                self.outcomes.append(outcome)
                self.accepted += outcome.job > 0
                if not outcome.job:
                    self._await_server(fleet)

    def _goes_on(self) -> bool:
        """Return whether callers submit more cells."""
        return self.accepted < self.jobs

    def _url(self, number: int, url: str) -> str:
        """Return the URL for a caller; every fourth uses a proxy."""
        if number % 4:
            return url
        return f"{url.partition(':')[0]}://127.0.0.1:{self.caller_proxies[number // 4].tcp_port}"

    def _open(self, url: str) -> Fleet:
        return fleet_of(url, self.home)

    def _run_cell(self, fleet: Fleet, dice: random.Random, tag: int) -> CellOutcome:
        """Run one cell and return its outcome; fail if it hangs."""
        board = dice.choice(self.names)
        code, wanted, _ = dice.choices(CELLS, [weight for *_, weight in CELLS])[0]
        timeout = 0.1 if wanted == "timeout" else 5
        try:
            group = fleet[board].submit(self._mark(board, tag) + code, timeout=timeout, wait=20)
            if wanted == "interrupted":
                group.interrupt()
            if not group.wait(HANG):
                (job,) = group.jobs.values()
                raise TimeoutError(f"{group} hangs for {fleet!r}: {fleet.job(job.number)}")
            (result,) = group.results().values()
        except CloudmanagerError as error:
            return CellOutcome(tag, board, 0, type(error).__name__, wanted)
        ended = (result.status, wanted, result.why, result.traceback)
        return CellOutcome(tag, board, result.job, *ended)

    def _await_server(self, fleet: Fleet) -> None:
        """Return when a server answers."""
        deadline = time.monotonic() + HANG
        while time.monotonic() < deadline:
            with contextlib.suppress(CloudmanagerError):
                fleet.status()
                return
            time.sleep(0.05)
        raise TimeoutError("no server came back")

    # Faults

    def _break_links(self) -> None:
        """Cause faults at random links until the test ends."""
        dice = random.Random(f"{self.seed} faults")
        while not self._over.wait(dice.uniform(0.03, 0.15)):
            if dice.random() < 0.8:
                proxy, strike = dice.choice(self.board_proxies), self._strike(dice, BOARD_PLACES)
            else:
                proxy, strike = dice.choice(self.caller_proxies), self._strike(dice, CALLER_PLACES)
            if proxy.now is None:
                proxy.strike(strike)
                self.faults[strike.fault] += 1

    def _strike(self, dice: random.Random, places: Sequence[str]) -> Strike:
        """Return a random fault at a random place."""
        if not self.tls:
            return Strike(dice.choices(FAULTS, WEIGHTS)[0], dice.choice(places))
        fault, place = dice.choices(TLS_FAULTS, TLS_WEIGHTS)[0], dice.choice(TLS_PLACES)
        return Strike(fault, place, dice.randint(1, 3), dice.random() < 0.5, dice.randint(0, 7))

    def _kill_boards(self, machine: VirtualBoards) -> None:
        dice = random.Random(f"{self.seed} boards")
        while not self._over.wait(dice.uniform(1, 3)):
            machine.restart(dice.choice(self.names))
            self.faults["board's kill -9"] += 1

    def _kill_servers(self, servers: Servers) -> None:
        """Kill the server a few times, then record its memory."""
        share = self.jobs // (3 * self.deaths + 1)
        for death in range(1, self.deaths + 1):
            while self.accepted < share * death and not self._over.wait(0.05):
                pass
            if not self._over.is_set():
                servers.die()
                self.faults["server's kill -9"] += 1
        while not self._over.wait(1):
            if self.accepted > self.jobs // 2:
                self.memory.append(servers.memory())

    # The end

    def _mark(self, board: str, tag: int) -> str:
        return MARK.format(folder=str(self.marks), board=board, tag=tag)

    def _counted(self, servers: Servers) -> dict[str, collections.Counter[int]]:
        """Check that all boards work; return how often each cell ran, by the boards' files."""
        since = time.time()
        for proxy in (*self.caller_proxies, *self.board_proxies):
            proxy.now = None
            proxy.close_links()  # after a dropped record, the next one would break the link
        with self._open(self._url(0, servers.server.url)) as fleet:
            wait_online(fleet, self.names, since=since)
            results = fleet[",".join(self.names)].submit("6 * 7", wait=HANG, timeout=HANG)
            assert set(results.results(2 * HANG).to_dict().values()) == {42}
        counts = {name: collections.Counter[int]() for name in self.names}
        for path in self.marks.iterdir():
            counts[path.name].update(map(int, path.read_text().split()))
        return counts

    def _judge(
        self, counts: dict[str, collections.Counter[int]], seconds: float, deaths: int
    ) -> dict[str, Any]:
        """Compare the callers' outcomes with the boards and the store."""
        deadline = time.monotonic() + HANG  # callers get a result before it is stored
        stored, integrity = self._stored()
        while any(status is None for status, _ in stored.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
            stored, integrity = self._stored()
        assert integrity == "ok", integrity
        assert self.accepted >= self.jobs
        ran = collections.Counter[int]()
        for counter in counts.values():
            ran.update(counter)
        assert not [tag for tag, times in ran.items() if times > 1], "a cell ran twice"
        assert not [job for job, (status, _) in stored.items() if status is None], "a job is open"
        for outcome in self.outcomes:
            times = counts[outcome.board][outcome.tag]
            self._check(outcome, times, stored.get(outcome.job))
        assert "Traceback" not in self._logs()
        figures: dict[str, Any] = {}
        if self.memory:  # of a server that is not killed any more
            growth = max(self.memory) - self.memory[0]
            assert growth < GROWTH, f"the server grew by {growth} bytes"
            figures = {"server grew by KiB": growth // 1024}
        statuses = collections.Counter(outcome.status for outcome in self.outcomes)
        return {
            "cells": len(self.outcomes),
            "jobs": len(stored),
            "seconds": round(seconds, 1),
            "outcomes": dict(statuses.most_common()),
            "ran": sum(ran.values()),
            "faults": dict(self.faults.most_common()),
            "server and board killed": self.doubles,
            "integrity": integrity,
            **figures,
        }

    def _check(self, outcome: CellOutcome, times: int, stored: Line | None) -> None:
        """Compare one outcome with the board's count and the store."""
        possible = ("lost", "offline", "timeout") if outcome.job else (outcome.status,)
        assert outcome.status in (outcome.wanted, *possible), outcome
        if outcome.job and outcome.status == "error":
            assert ERROR in outcome.traceback, outcome  # no other error is a right outcome
        if outcome.job and outcome.status in ("ok", "error", "interrupted"):
            assert stored is not None, outcome
            did_not_run = stored in NOT_SENT and outcome.why == NOT_RUN and times == 0
            is_equal = stored[0] == outcome.status or stored == DOUBLE or did_not_run
            assert is_equal, (outcome, stored)
            self.doubles += stored == DOUBLE
        if outcome.status in ("ok", "error"):
            assert times == 1, (outcome, times)
        if outcome.status == "offline" or outcome.why == NEVER:
            assert times == 0, (outcome, times)

    def _logs(self) -> str:
        return "".join((self.home / f"server.{end}").read_text() for end in ("log", "err"))

    def _stored(self) -> tuple[dict[int, Line], str]:
        with contextlib.closing(sqlite3.connect(self.home / "server.db")) as file:
            rows = file.execute("SELECT id, status, error FROM jobs").fetchall()
            stored = {number: (status, error) for number, status, error in rows}
            (integrity,) = file.execute("PRAGMA integrity_check").fetchone()
        return stored, integrity


def main() -> None:
    """Run the test from the command line; print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--boards", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deaths", type=int, default=3, help="how often the server is killed")
    parser.add_argument("--tls", action="store_true", help="over TLS")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers = (given.jobs, given.boards, given.seed, given.deaths)
        soak = Soak(Path(folder), *numbers, tls=given.tls)
        json.dump(soak.run(), sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
