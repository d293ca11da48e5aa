"""Let PostgreSQL stand still under three servers; print what goes on meanwhile, and what waits.

    python -m tests.faults.standstill 5 20

For each number of seconds: the longest gap in the output of running cells, the slowest answer of
/healthz, interrupt and ``input()``, how long results of cells took that had been sent, and when
cells ended that were submitted meanwhile; on boards of the caller's server, and of another one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.testing.board_fixtures import wait_online
from tests.engines import Nats, Postgres, running_nats, running_postgres
from tests.system.several import several

PLACES: Final = ("here", "there")  # boards of the caller's server, and of another one
PERIOD: Final = 0.1  # seconds between two lines of output, and two requests
MARGIN: Final = 2.0  # seconds that running cells go on after the standstill
OPTIONS: Final = ("--keep-jobs", "90")  # an option that changes nothing: all others are defaults


class Standstill:
    """One run; ``figures`` are filled in by threads.

    Args:
        fleet: a caller of one of the servers.
        url: of that server.
        postgres: the database.
        seconds: that it stands still.
    """

    def __init__(self, fleet: Fleet, url: str, postgres: Postgres, seconds: float) -> None:
        self.fleet, self.url, self.postgres, self.seconds = fleet, url, postgres, seconds
        self.figures: dict[str, float] = {}
        self.statuses: Counter[str] = Counter()
        self.over = threading.Event()
        self.woken_at = 0.0

    def run(self) -> dict[str, Any]:
        """Return the figures, in seconds, and how often each status was an outcome."""
        printing = f"import time\nfor i in range({round((self.seconds + MARGIN) / PERIOD)}):\n"
        printing += f" print(i)\n time.sleep({PERIOD})"
        threads = [threading.Thread(target=self._probe_health)]
        for place in PLACES:
            groups = [
                self.fleet[f"{place}-{number}"].submit(code, answers=number == 3, listen=True)
                for number, code in enumerate((printing, "while True: pass", "input('? ')"), 1)
            ]
            ended = self.fleet[f"{place}-4"].submit("import time\ntime.sleep(1)", listen=True)
            acts: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
                (self._follow, (place, groups[0])),
                (self._interrupt, (place, groups[1])),
                (self._answer, (place, groups[2])),
                (self._await_result, (place, ended)),
                (self._submit, (place,)),
            ]
            threads += [threading.Thread(target=act, args=args) for act, args in acts]
        time.sleep(0.3)  # their results are written every 50 ms
        self.postgres.pause()
        self.stopped_at = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(self.seconds)
        self.postgres.wake()
        self.woken_at = time.monotonic()
        for thread in threads[1:]:
            thread.join()
        self.over.set()
        threads[0].join()
        rounded = {key: round(value, 2) for key, value in sorted(self.figures.items())}
        return {"standstill": self.seconds, **rounded, "statuses": dict(self.statuses)}

    def _note(self, what: str, value: float) -> None:
        self.figures[what] = max(value, self.figures.get(what, 0.0))

    def _probe_health(self) -> None:
        while not self.over.is_set():
            begun = time.monotonic()
            try:
                urllib.request.urlopen(f"{self.url}/healthz", timeout=60).read()
            except urllib.error.HTTPError as error:
                error.read()
            self._note("slowest /healthz", time.monotonic() - begun)
            time.sleep(PERIOD)

    def _follow(self, place: str, group: Any) -> None:
        last = time.monotonic()
        for event in group.events():
            if event.kind == "output":
                self._note(f"longest gap in output, {place}", time.monotonic() - last)
                last = time.monotonic()
        self._count("running", group)

    def _interrupt(self, place: str, group: Any) -> None:
        time.sleep(1)
        begun = time.monotonic()
        group.interrupt()
        group.results()
        self._note(f"interrupt, {place}", time.monotonic() - begun)
        self._count("interrupted", group)

    def _answer(self, place: str, group: Any) -> None:
        for event in group.events():
            if event.kind == "input":
                time.sleep(1)
                begun = time.monotonic()
                group.answer(event.job, "yes")
        group.results()
        self._note(f"input(), {place}", time.monotonic() - begun)
        self._count("answered", group)

    def _await_result(self, place: str, group: Any) -> None:
        group.results()
        self._note(f"result of a cell of 1 s, {place}", time.monotonic() - self.stopped_at)
        self._count("sent before", group)

    def _submit(self, place: str) -> None:
        """Submit a new cell, again and again if it is refused."""
        while True:
            try:
                status = self.fleet[f"{place}-5"].run("1")[f"{place}-5"].status
            except CloudmanagerError:
                status = "refused"
            self.statuses[f"new: {status}"] += 1
            if status == "ok":
                self._note(f"new cell after it, {place}", time.monotonic() - self.woken_at)
                return
            time.sleep(PERIOD)

    def _count(self, what: str, group: Any) -> None:
        for result in group.results().values():
            self.statuses[f"{what}: {result.status}"] += 1


def measure(folder: Path, postgres: Postgres, nats: Nats, standstills: list[float]) -> list[Any]:
    """Run three servers with ten boards; return the figures of each standstill."""
    with several(folder, postgres, nats, *OPTIONS) as made:
        here, there, _ = (made.start(name) for name in "abc")
        fleet = made.fleet(here)
        names = {place: [f"{place}-{number}" for number in range(1, 6)] for place in PLACES}
        for server, place in ((here, "here"), (there, "there")):
            made.board(fleet, server.tcp_port, *names[place])
        wait_online(fleet, [name for place in PLACES for name in names[place]])
        return [Standstill(fleet, here.url, postgres, seconds).run() for seconds in standstills]


def main() -> None:
    """Run it from the command line."""
    standstills = [float(text) for text in sys.argv[1:]] or [5.0, 20.0]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_postgres(durable=True) as postgres,
        running_nats(Path(folder)) as nats,
    ):
        json.dump(measure(Path(folder), postgres, nats, standstills), sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
