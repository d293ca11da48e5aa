"""A reset ends a board's own program whatever it does; no job hangs when a program starts.

Boards start with programs of many kinds, as after a power cut. Cells and resets are sent at random
times, so that they meet each step of the start: before the link, at its first message, while the
program starts, while it runs. The same seed gives the same times.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from cloudmanager.cli import board_commands
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import JobGroup
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.conftest import RunningServer, running_boards, running_server

from .conftest import WAIT, fleet_of, until

BOARDS = 10
SPAN = 0.5  # seconds after the start in which cells and resets are sent
PROGRAMS = {
    "blocks": "import time\nwhile True: time.sleep(0.2)",
    "computes": "while True: pass",
    "prints": "while True: print('x' * 50)",
    "swallows its interrupt": "import time\nwhile True:\n try: time.sleep(0.2)\n except: pass",
    "is async": "import asyncio\nasync def main():\n while True: await asyncio.sleep(0.05)",
    "crashes": "1 / 0",
    "crashes later": "import time\ntime.sleep(0.05)\n1 / 0",
    "ends": "x = 1",
}
#: Stores a program, and deletes the marks that an earlier one crashed or was skipped.
PLACE = """
import os
with open("/app.py", "w") as file:
    file.write({!r})
for name in ("cm.boot", "cm.skip"):
    if name in os.listdir("/"):
        os.remove("/" + name)
"""


class Bench:
    """Boards that are restarted with programs."""

    def __init__(self, fleet: Fleet, boards: VirtualBoards, names: list[str]) -> None:
        self.fleet, self.boards, self.names = fleet, boards, names

    def restart_with(self, programs: dict[str, str]) -> None:
        """Restart boards, each with its program."""
        placed = [
            self.fleet[name].submit(PLACE.format(PROGRAMS[kind]), wait=WAIT)
            for name, kind in programs.items()
        ]
        for group in placed:
            assert group.results(WAIT).ok
        for name in programs:
            self.boards.restart(name)

    def run(self, seed: int) -> int:
        """Start all boards, send cells and resets meanwhile; return the number of resets."""
        chance = random.Random(seed)
        kinds = list(PROGRAMS)
        self.restart_with({name: chance.choice(kinds) for name in self.names})
        plan = sorted(
            (
                chance.random() * SPAN,
                name,
                chance.choice([("cell",), ("reset",), ("cell", "reset")]),
            )
            for name in self.names
        )
        began, groups = time.monotonic(), []
        for at, name, jobs in plan:
            time.sleep(max(0.0, began + at - time.monotonic()))
            groups += [self.start_job(name, kind) for kind in jobs]
        time.sleep(max(0.0, began + SPAN - time.monotonic()))
        # Resets end the programs that run.
        groups += [self.start_job(name, "reset") for name in self.names]
        check(groups)
        return sum(group.options.fresh for group in groups)

    def start_job(self, name: str, kind: str) -> JobGroup:
        if kind == "cell":
            return self.fleet[name].submit("6 * 7", wait=WAIT)
        return self.fleet[name].submit("", fresh=True, wait=WAIT)


def check(groups: list[JobGroup]) -> None:
    """Check that all jobs succeed, together within the time limit of one."""
    deadline = time.monotonic() + WAIT
    for group in groups:
        results = group.results(max(deadline - time.monotonic(), 0.01))
        assert results.ok, [(result.status, result.why) for result in results.values()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    names = [f"reset-{number}" for number in range(1, BOARDS + 1)]
    server: RunningServer
    with (
        running_server(tmp_path_factory.mktemp("resets")) as server,
        fleet_of(server) as fleet,
        running_boards(server, fleet, names) as boards,
    ):
        yield Bench(fleet, boards, names)


def test_resets_and_cells_end_while_programs_start(bench: Bench):
    assert bench.run(seed=1) >= BOARDS


def test_repeated_reset_of_boards_with_a_new_program(bench: Bench):
    """As reported: `mbm board 'r-*' reset` twice, of boards with ``while True: sleep``."""
    name = ",".join(bench.names)
    assert bench.fleet[name].run(PLACE.format(PROGRAMS["blocks"])).ok
    check([bench.fleet[name].submit("", fresh=True) for _ in range(2)])
    states = {board["program"] for board in bench.fleet[name].info()}
    assert states == {"app.py left out until a hard reset"}


def test_stop_and_interrupt_report_what_is_still_running(bench: Bench):
    deaf, well = bench.names[:2]
    bench.restart_with({deaf: "swallows its interrupt", well: "blocks"})
    boards = bench.fleet[f"{deaf},{well}"]
    until(lambda: {b["state"] for b in boards.info()} == {"busy"}, "the programs do not run")
    stopped = board_commands.run_macro(boards, "stop", ())
    assert (stopped[deaf].status, stopped[well].status) == ("error", "ok")
    assert "its program still runs" in str(stopped[deaf].error)
    cell = bench.fleet[well].submit("import time\n" + PROGRAMS["swallows its interrupt"])
    number = cell.jobs[well].number
    until(lambda: bench.fleet.job(number)["state"] == "running", "the cell does not run")
    assert bench.fleet.interrupt([number]) == 1
    assert bench.fleet.unfinished_jobs([number], 0.3) == [number]
    bench.boards.restart(well)
    assert cell.results(WAIT)[well].status == "lost"
    check([bench.start_job(deaf, "reset"), bench.start_job(well, "reset")])


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_five_hundred_resets_with_all_kinds_of_programs(bench: Bench):
    resets = seed = 0
    while resets < 500:
        resets, seed = resets + bench.run(seed), seed + 1
