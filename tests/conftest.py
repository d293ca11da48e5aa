"""A real server and real virtual boards for every test that wants them; nothing of the user's.

They are the fixtures of Cloudmanager's pytest plugin (cloudmanager/testing/plugin.py) under shorter
names, and three boards that all tests share and must leave idle.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.results.fleet_plan import OPEN_STATES
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer, running_server
from cloudmanager.virtual.virtual_boards import VirtualBoards

from .engines import Nats, Postgres, running_nats, running_postgres

WAIT = 30.0  # seconds
SHARED = pytest.StashKey[bool]()  # there is a server that tests share

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")

__all__ = ["RunningServer", "running_boards", "running_server", "wait_online"]


@contextlib.contextmanager
def running_boards(
    server: RunningServer, fleet: Fleet, names: list[str]
) -> Iterator[VirtualBoards]:
    """Virtual boards of one's own, all of them connected."""
    identities = [BoardIdentity.from_enrolment(row, server.url) for row in fleet.enrol(names)]
    folder = server.home / "virtual"
    with VirtualBoards(identities, ("127.0.0.1", server.tcp_port), folder) as boards:
        wait_online(fleet, names)
        yield boards


@pytest.fixture(scope="session")
def home(cm_home: Path) -> Path:
    """The CM_HOME of this run: the user's own is never touched."""
    return cm_home


@pytest.fixture(scope="session")
def server(cm_server: RunningServer, request: pytest.FixtureRequest) -> RunningServer:
    """The server that most tests share."""
    request.session.stash[SHARED] = True
    return cm_server


@pytest.fixture(scope="module", autouse=True)
def clean_up_after_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove what a file's tests left on the shared server, but for boards that run.

    Files of tests may therefore use the same names, in whatever order a process runs them.
    """
    environment = {name: os.environ.get(name) for name in ("CM_HOME", "CM_TOKEN", "CM_URL")}
    yield
    if SHARED in request.session.stash:
        with Fleet() as fleet:
            _remove_leftovers(fleet)
        changed = {name for name, value in environment.items() if os.environ.get(name) != value}
        # The first file with a server sets CM_HOME, and unsets the others.
        assert not changed or environment["CM_HOME"] is None, f"left changed: {sorted(changed)}"


def _remove_leftovers(fleet: Fleet) -> None:
    """End rollouts and jobs; remove offline boards, reservations, labels, tokens and secrets.

    The boards that run lose what cells have left in their memory.
    """
    for rollout in fleet.rollouts():
        if rollout["state"] in OPEN_STATES:
            fleet.abort_rollout(rollout["group"])
    jobs = [*fleet.jobs(waiting=True), *fleet.jobs()]
    if open_jobs := [job["job"] for job in jobs if job["state"] != "ended"]:
        fleet.interrupt(open_jobs)
    boards = fleet.boards()
    if offline := [row["name"] for row in boards if not row["connected_since"]]:
        fleet.revoke(",".join(offline))
    for row in boards:
        if row["connected_since"] and row["reserved"]:
            fleet[row["name"]].release()
        if row["connected_since"] and row["labels"]:
            fleet[row["name"]].label(dict.fromkeys(row["labels"], ""))
    if idle := [row["name"] for row in boards if row["state"] == "idle"]:
        fleet[",".join(idle)].run("", fresh=True, timeout=WAIT)
    for token in fleet.request("token-list"):
        if not token["revoked"] and token["name"] != "local":
            fleet.request("token-revoke", name=token["name"])
    for secret in fleet.secrets():
        fleet.remove_secret(secret["name"])


@pytest.fixture(scope="session")
def start_server(home: Path) -> Callable[..., contextlib.AbstractContextManager[RunningServer]]:
    """What starts a server of one's own: `with start_server(folder) as server`."""
    return running_server


@pytest.fixture(scope="session")
def fleet(cm_fleet: Fleet) -> Fleet:
    """A caller's link to the shared server; `Fleet()` finds the same one."""
    return cm_fleet


@pytest.fixture(scope="session")
def boards(server: RunningServer, fleet: Fleet) -> Iterator[VirtualBoards]:
    """Three virtual boards, demo-1 to demo-3, which most tests share."""
    with running_boards(server, fleet, ["demo-1", "demo-2", "demo-3"]) as boards:
        yield boards


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL, for this run."""
    with running_postgres() as engine:
        yield engine


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    """NATS, for this run; who kills it starts it again."""
    with running_nats(tmp_path_factory.mktemp("nats")) as engine:
        yield engine
