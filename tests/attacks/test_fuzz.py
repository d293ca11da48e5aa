"""Seeded hostile input of strangers, proven boards and callers at the same time.

The server logs no failure of its own, releases everything that it counted for them, and a board that
they cannot reach runs its cells in order meanwhile. The long variants, against server processes, are
in ``test_long_fuzz.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import pytest

from cm_server import cleanup
from cm_server.api.verbs import VERBS
from cm_server.limits import Limits
from cm_server.rate_limits import RateLimiter
from tests.cm_server.pairs import run
from tests.cm_server.peers import FakeBoard, FakeCaller, Service, running_service
from tests.cm_server.test_sample_history import emit, until_kept
from tests.engines import Postgres

from .attackers import Victim, attack

SEED = 20
MESSAGES = 160  # of each attacker
CELLS = 25  # of the board that is not attacked
SETTLE_SECONDS = 20.0
NO_INDEX = (("", "http://127.0.0.1:1"),)  # nothing listens there: plans leave this machine alone
#: What boards and callers may cause at any rate is counted, but for this test not left out.
LIMITS = Limits(
    stranger_rows_per_address_per_minute=100, peer_lines_per_minute=1000, close_seconds=0.2
)


@pytest.fixture(autouse=True)
def every_failure_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_failures", RateLimiter(10_000))


def open_descriptors(home: Path) -> list[str]:
    """Return the sockets, and the files that were deleted, which the server has open.

    Others are left out: SQLite keeps a descriptor of a connection that was closed, for its locks.
    """
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the folder itself
            found.append(str(each.readlink()))
    return [name for name in found if name.startswith(("socket:", f"{home}/tmp"))]


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of the log with a traceback, or of an error."""
    return [
        caplog.handler.format(record)
        for record in caplog.records
        if record.exc_info or record.levelno >= logging.ERROR
    ]


def counted(service: Service) -> dict[str, int]:
    """Return everything that is counted for peers."""
    server = service.server
    installs, callers = server.installs, server._caller_link_services
    return {
        "unauthenticated": server.unauthenticated.count,
        "addresses": len(server.unauthenticated._groups),
        "requests": len(service.listener._unauthenticated_entries),
        "deadlines": len(service.listener._deadlines),
        "callers": len(server.callers),
        "boards": len(server.registry.online()),
        "jobs": len(server.dispatch.jobs),
        "subscriptions": len(server.subscriptions),
        "subscription shares": server.subscriptions._shares.total,
        "unfinished messages": callers.unfinished.total_bytes,
        "uploads": len(installs.content_store._uploads),
        "upload shares": installs.content_store._upload_shares.total,
        "store operations": len(server.store_queue._waiting),
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(open_descriptors(server.home)) - len(installs.content_store._existing),
    }


async def settle(service: Service, admin: FakeCaller, expected: dict[str, int]) -> None:
    """Wait until as much is counted as before the attack; interrupt jobs that wait for boards."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_SECONDS):
            while counted(service) != expected:
                if jobs := list(service.server.dispatch.jobs):
                    await admin.ask("interrupt", jobs=jobs)
                await asyncio.sleep(0.05)
    assert counted(service) == expected, open_descriptors(service.server.home)


async def run_cells(board: FakeBoard, caller: FakeCaller) -> None:
    """Run cells on a board that no attacker reaches."""
    for number in range(CELLS):
        (job,) = await caller.submit("safe-1", b"%d" % number)
        received = await run(board)
        assert received.job == job
        assert received.payload.endswith(b"%d" % number)
        await board.end(job, rest=b"%d" % number)
        assert await caller.ending(job) == ("ok", f"{number}")


@pytest.fixture(params=["plain", "tls", "mac"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.timeout(120)  # on a busy machine; usually about 3
async def test_hostile_input_causes_no_failure_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest, kind: str
):
    store = None
    if kind == "mac":  # one of the three with the other store
        postgres: Postgres = request.getfixturevalue("postgres")
        store = postgres.new()
    settings = {"store": store, "lost_after": 0.5, "index": NO_INDEX}
    async with running_service(tmp_path, LIMITS, **settings) as service:
        (safe,) = service.enrol("safe-1")
        boards = service.enrol("fuzz-1", "fuzz-2", "fuzz-3", plain=kind == "mac")
        roles = ("operator", "viewer", "admin")
        tokens = [service.add_token(role, "fuzz-*", name=f"{role}-fuzz") for role in roles]
        victim = Victim(
            service.tcp_port,
            [*tokens, service.add_token("viewer", "all", name="viewer-all")],
            boards,
            tuple(verb for verb in VERBS if verb != "revoke"),
            service.trust() if kind == "tls" else None,
            mac=kind == "mac",
        )
        async with (
            await FakeBoard.join(service, safe) as board,
            await FakeCaller.join(service) as caller,
        ):
            await run_cells(board, caller)
            await service.until(lambda: not service.server.dispatch.jobs)
            # The first sample opens the store of samples, which stays open.
            emit(service, "safe-1", {"x": 1})
            await until_kept(service, 1)
            before = counted(service)
            await asyncio.gather(attack(victim, SEED, MESSAGES), run_cells(board, caller))
            await settle(service, caller, before)
            await run_cells(board, caller)
        assert failures(caplog) == []
        assert victim.sent["boards"] > 2 * MESSAGES
        assert victim.sent["callers"] > 3 * MESSAGES
        assert victim.sent["strangers"] > MESSAGES / 4
        jobs = service.store.database.connection.exec_driver_sql("SELECT count(*) FROM jobs")
        assert jobs.scalar_one() > 3 * CELLS + 20, "hostile boards had jobs"
        service.store.database.connection.commit()
