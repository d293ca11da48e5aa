"""Kill the server again and again while callers run cells: each job one outcome, none runs twice.

    python -m tests.faults.killed_server --seconds 300 --pause 3 --boards 50 --callers 10 --seed 1

Links and boards have no faults of their own here (``soak.py`` has those): what breaks, breaks
because of ``kill -9``, and a board reports what it ran to the next server.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from cloudmanager.virtual.virtual_boards import VirtualBoards

from .servers import Servers
from .soak import Soak

_KILL: Final = "server's kill -9"
_LEAST_KILLS: Final = 2


class KilledServerSoak(Soak):
    """One run of the test.

    Args:
        home: the folder for files of the server and the boards.
        seconds: how long callers submit cells, and until the server was killed twice.
        pause: seconds between a server's start and its death.
        boards: how many boards there are.
        callers: how many callers there are.
        seed: of all random numbers.
    """

    def __init__(
        self, home: Path, seconds: float, pause: float, boards: int, callers: int, seed: int
    ) -> None:
        super().__init__(home, 0, boards, seed, 0)
        self.callers = callers
        self._seconds, self._pause = seconds, pause
        self._ends_at = 0.0

    def _all(self, servers: Servers, machine: VirtualBoards) -> None:
        self._ends_at = time.monotonic() + self._seconds
        super()._all(servers, machine)

    def _goes_on(self) -> bool:
        return time.monotonic() < self._ends_at or self.faults[_KILL] < _LEAST_KILLS

    def _break_links(self) -> None:
        """Leave links alone."""

    def _kill_boards(self, machine: VirtualBoards) -> None:
        """Leave boards alone."""

    def _kill_servers(self, servers: Servers) -> None:
        dice = random.Random(f"{self.seed} servers")
        while not self._over.wait(self._pause * dice.uniform(0.8, 1.2)):
            if self._goes_on():
                servers.die()
                self.faults[_KILL] += 1


def main() -> None:
    """Run the test from the command line; print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.killed_server")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--pause", type=float, default=3)
    parser.add_argument("--boards", type=int, default=50)
    parser.add_argument("--callers", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers: tuple[Any, ...] = (given.pause, given.boards, given.callers, given.seed)
        json.dump(
            KilledServerSoak(Path(folder), given.seconds, *numbers).run(), sys.stdout, indent=1
        )
        print()


if __name__ == "__main__":
    main()
