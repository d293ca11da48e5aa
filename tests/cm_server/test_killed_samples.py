"""``kill -9`` of a whole server while a board emits values: how many of them are lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.plugin import RunningServer, running_server
from tests.conftest import running_boards

pytestmark = pytest.mark.timeout(120)

EMITTING = """
import asyncio, cm
async def emit():
    for n in range(100_000):
        cm.emit(n=n)
        await asyncio.sleep_ms(25)
task = asyncio.create_task(emit())
"""
LOST_SECONDS = 2.0  # as docs/samples.md says
WAIT = 60.0  # seconds: a busy machine is late


def local_fleet(server: RunningServer) -> Fleet:
    return Fleet(server.url, (server.home / "token").read_text().strip())


def test_killed_server_has_all_values_that_are_older_than_two_seconds(tmp_path: Path):
    with (
        running_server(tmp_path) as server,
        local_fleet(server) as fleet,
        running_boards(server, fleet, ["a"]),
        fleet.watch("a") as watch,
    ):
        fleet["a"].run(EMITTING).raise_for_error()
        received: list[tuple[float, float]] = []
        started = time.monotonic()
        deadline = started + WAIT
        for update in watch:
            received += [(time.monotonic(), each.values["n"]) for each in update.samples]
            # The first values take longer, since DuckDB is imported then.
            if len(received) > 100 and time.monotonic() - started > 2.75 * LOST_SECONDS:
                break
            assert time.monotonic() < deadline
        asked = time.monotonic()
        fleet.boards()
        busy = 3 * (time.monotonic() - asked)  # the machine: a reply takes 2 ms if it is idle
        killed = time.monotonic()
        server.process.kill()
        server.process.wait()
    with running_server(tmp_path) as server, local_fleet(server) as fleet:
        kept = [each.values["n"] for each in fleet.samples("a", since="1h")]
    assert kept == [float(n) for n in range(len(kept))]
    older = [n for at, n in received if at < killed - LOST_SECONDS - busy]
    assert older
    assert max(older) < len(kept)
