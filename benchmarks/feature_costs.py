"""What parts of the server cost a cell: each is switched off in a server of its own.

`python -m benchmarks.feature_costs` prints the server's processor time for a short cell on one
board, and by how much less it is without each part. All servers run at the same time and are
measured in turns, because the figures depend on what else the machine does. A part is switched off
by code that replaces it; nobody could use such a server.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import own_server
from cloudmanager import Boards, Fleet, local_server
from cloudmanager.server_options import ServerOptions
from cloudmanager.virtual.simulate import numbered_names, simulate

#: Part -> the code that switches it off.
PARTS: Final = {
    "all parts": "",
    "the history: what ran": """
from cm_server.jobs.job_texts import JobTexts
JobTexts.add = lambda *_: None""",
    "the list of recent jobs": """
from cm_server.jobs.job_history import RecentJobs
RecentJobs.add = lambda *_: None""",
    "rights, again at the start": """
from cm_server.auth.permission import Permission
Permission.refusal_reason = lambda *_: ''""",
    "cells at a time": """
from cm_server.jobs import scheduler
scheduler._late_reason = lambda _: ''
scheduler.Scheduler._watch_start = lambda *_: None""",
    "jobs that wait for boards": """
from cm_server.jobs.waiting_jobs import WaitingJobs
WaitingJobs.start = lambda *_: False""",
    "reservations": """
from cm_server.jobs.model import Board
Board.reservation_against = lambda *_: None""",
    "alarms and subscriptions": """
from cm_server.jobs.model import Board
Board.notify_changed = lambda _: None""",
    "quotas of open jobs": """
from cm_server.quotas import Shares
Shares.add = lambda *_: None
Shares.refusal_reason = lambda *_: ''""",
    "fair shares of the loop": """
from cm_server.net.work_shares import WorkShare
WorkShare.record = lambda *_: None
WorkShare.pause = lambda _: 0.0
from cm_server.net import websocket
import time, types
websocket.time = types.SimpleNamespace(thread_time=lambda: 0.0, perf_counter=time.perf_counter)""",
    "metrics": """
from cm_server.jobs.counters import Counters
Counters.on_ended = Counters.on_started = lambda *_: None""",
    "the audit log": """
from cm_server.store.store import Store
write = Store._write_all
Store._write_all = lambda self, jobs, audit=(), claims=(): write(self, jobs, (), claims)""",
    "the commit of results when no job is open": """
from cm_server.store.store_queue import StoreQueue
StoreQueue.flush = lambda _: None""",
}

_ROOT = Path(__file__).parent.parent
_CELLS = 100  # in each turn of a server
_TURNS = 20

#: Starts a server with a part switched off in the place of ``python -m cm_server``.
_SCRIPT = """\
#!/bin/sh
if [ "$2" = cm_server ]; then
    shift 2
    PYTHONPATH='{root}' exec {python} -m benchmarks.feature_costs --serve '{part}' "$@"
fi
exec {python} "$@"
"""


class Contender:
    """A server without a part, and its board.

    Attributes:
        seconds: the server's processor time for a cell, in each turn.
    """

    def __init__(self, boards: Boards, pid: int) -> None:
        self._boards = boards
        self._pid = pid
        self.seconds: list[float] = []

    def measure(self) -> float:
        """Run the cells of one turn; return the server's processor time for each."""
        self._boards.run("print(1)").raise_for_error()
        before = self._processor_seconds()
        for _ in range(_CELLS):
            self._boards.run("print(1)")
        self.seconds.append((self._processor_seconds() - before) / _CELLS)
        return self.seconds[-1]

    def _processor_seconds(self) -> float:
        """Return the processor time of all threads (Linux: in ns in the first field)."""
        files = Path(f"/proc/{self._pid}/task").glob("*/schedstat")
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9


@contextlib.contextmanager
def _running(part: str) -> Iterator[Contender]:
    """Run a server without a part, and a board."""
    with own_server.temporary_home() as folder, Fleet() as fleet:
        script = folder / "python"
        script.write_text(_SCRIPT.format(python=sys.executable, root=_ROOT, part=part))
        script.chmod(0o700)
        with unittest.mock.patch.object(sys, "executable", str(script)):
            local_server.start(ServerOptions(port=0))
        virtual = simulate(fleet, numbered_names("bench", 1), flash="1M")
        boards = fleet["bench-1"]
        boards.run("print(1)").raise_for_error()
        contender = Contender(boards, fleet.status()["pid"])
        try:
            yield contender
        finally:
            with own_server.home(folder):  # each server's is the current one only at its start
                virtual.stop()
                local_server.stop()


def _measure() -> None:
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(_running("all parts"))
        others = {part: stack.enter_context(_running(part)) for part in PARTS if PARTS[part]}
        saved: dict[str, list[float]] = {part: [] for part in others}
        for _ in range(_TURNS):
            for part, contender in others.items():  # each beside the whole server
                saved[part].append(whole.measure() - contender.measure())
    total = statistics.median(whole.seconds)
    print(f"{'all parts':45} {total * 1e6:6.1f} µs")
    found = {part: statistics.median(seconds) for part, seconds in saved.items()}
    for part in sorted(found, key=found.__getitem__, reverse=True):
        print(f"{part:45} {found[part] * 1e6:6.1f} µs  {found[part] / total:6.1%}")


def _serve(part: str) -> None:
    exec(PARTS[part], {})
    sys.argv = ["cm_server", *sys.argv[3:]]
    from cm_server.process import main

    main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _serve(sys.argv[2])
    else:
        _measure()
