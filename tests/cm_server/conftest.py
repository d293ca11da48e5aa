"""Fixtures: one or two servers in the event loop of the test, with real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cm_server.cluster import membership, remote_jobs
from cm_server.limits import Limits
from tests.engines import Nats, Postgres

from .pairs import DEAD_AFTER, Two, two_servers
from .peers import Service, running_service


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> Limits:
    """The limits of the server; ``@pytest.mark.limits(callers=3)`` changes some of them."""
    marker = request.node.get_closest_marker("limits")
    return Limits(**marker.kwargs) if marker is not None else Limits()


@pytest.fixture
async def service(tmp_path: Path, limits: Limits) -> AsyncIterator[Service]:
    """A server in this process, on a free TCP port."""
    async with running_service(tmp_path, limits=limits) as service:
        yield service


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers wait only briefly for messages of each other."""
    monkeypatch.setattr(remote_jobs, "ACK_SECONDS", 0.5)
    monkeypatch.setattr(membership, "OUTCOME_POLL_SECONDS", 0.1)


@pytest.fixture
def dead_after() -> float:
    """After how many seconds without a heartbeat a server is removed; tests may parametrize it."""
    return DEAD_AFTER


@pytest.fixture
async def pair(soon: None, tmp_path: Path, dead_after: float) -> AsyncIterator[Two]:
    """Two servers with a shared SQLite store and a bus in this process."""
    async with two_servers(tmp_path, tmp_path / "shared.db", dead_after=dead_after) as pair:
        yield pair


@pytest.fixture(params=["sqlite, one process", "postgresql, nats"])
async def two(
    request: pytest.FixtureRequest, soon: None, tmp_path: Path, dead_after: float
) -> AsyncIterator[Two]:
    """Two servers, with each kind of store and bus."""
    if request.param.startswith("sqlite"):
        async with two_servers(tmp_path, tmp_path / "shared.db", dead_after=dead_after) as two:
            yield two
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        nats: Nats = request.getfixturevalue("nats")
        async with two_servers(tmp_path, postgres.new(), nats.url, dead_after=dead_after) as two:
            yield two
