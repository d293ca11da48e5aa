"""A bench for faults: one server, and boards that dial it through a proxy each."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer, running_server
from cloudmanager.virtual.virtual_boards import VirtualBoards
from cm_server.net import certificates

from .proxy import Loop, Proxy
from .rows import TCP

T = TypeVar("T")

#: Kinds of links that rows run over.
LINKS = ("plain", "tls", "mac")
BOARDS = 12  # rows that run at once; most of their time they wait
WAIT = 30.0  # seconds that anything here may take, on a busy machine
BEAT = 2.0  # seconds: a board that heard nothing for 5 dials again
GRACE = 6.0  # seconds that the server waits for a board: more than it takes to come back


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make soak` what is alike on every kind of link, and what has to wait long."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("bench", "plain") == "plain" or "row" not in params:
            continue
        fault, at = params["row"].strike[:2]
        waits = fault == "drop" and at in ("EXEC", "RESULT", "handshake")
        if waits or fault in TCP:
            item.add_marker(pytest.mark.soak)


class Desk(NamedTuple):
    """One board behind its proxy, and a link of a caller's own to the server."""

    name: str
    proxy: Proxy
    fleet: Fleet


class Bench(NamedTuple):
    """A server, and desks that are free; ``kind`` is one of ``LINKS``."""

    kind: str
    server: RunningServer
    loop: Loop
    fleet: Fleet
    token: str
    free: queue.SimpleQueue[Desk]

    def at_a_desk(self, act: Callable[[Desk], T]) -> T:
        """Do something at a desk that is free."""
        desk = self.free.get(timeout=10 * WAIT)
        try:
            return act(desk)
        finally:
            self.free.put(desk)


def until(true: Callable[[], object], what: str) -> None:
    """Return once it is so; of another process, nothing else tells."""
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextlib.contextmanager
def serving(home: Path, *options: str, public: bool) -> Iterator[tuple[RunningServer, str]]:
    """A server and its own token, with its fingerprint where others can reach it."""
    listen = ("--listen", "0.0.0.0") if public else ()
    with running_server(home, *listen, *options) as server:
        pin = f".{certificates.load(home).pin}" if public else ""
        yield server, (home / "token").read_text().strip() + pin


@pytest.fixture(scope="package", params=LINKS)
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """The bench that the rows share: each takes one of its desks."""
    kind = request.param
    home = tmp_path_factory.mktemp("bench")
    options = ("--beat", str(BEAT), "--lost-after", str(GRACE))
    free: queue.SimpleQueue[Desk] = queue.SimpleQueue()
    with (
        serving(home, *options, public=kind != "plain") as (server, token),
        Fleet(server.url, token) as fleet,
        Loop() as loop,
        VirtualBoards([], ("127.0.0.1", 0), home / "virtual") as machine,
    ):
        names = [f"desk-{number}" for number in range(1, BOARDS + 1)]
        for row in fleet.enrol(names, plain=kind == "mac"):
            proxy = loop.proxy(server.tcp_port, tls=kind == "tls")
            machine.address = ("127.0.0.1", proxy.tcp_port)
            machine.add_board(BoardIdentity.from_enrolment(row, server.url))
            free.put(Desk(row["name"], proxy, fleet))
        wait_online(fleet, names)
        yield Bench(kind, server, loop, fleet, token, free)


class Rows:
    """Rows that run side by side, each at a desk; a test waits for its own."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._pool = ThreadPoolExecutor(BOARDS)
        self._acts: dict[str, Callable[[Desk], object]] = {}
        self._begun: dict[str, Future[object]] = {}

    def begin(self, name: str, act: Callable[[Desk], object]) -> None:
        """Let a row begin."""
        self._acts[name] = act
        self._begun[name] = self._pool.submit(self._bench.at_a_desk, act)

    def hold(self, name: str, check: Callable[[object], None]) -> None:
        """Hold what came of a row against what should; what went wrong in it is raised.

        Twice at most: a machine that is busy enough breaks links by itself, once in some
        thousand rows, and a row's own fault strikes each time.
        """
        try:
            check(self._begun[name].result(5 * WAIT))
        except AssertionError:
            check(self._pool.submit(self._bench.at_a_desk, self._acts[name]).result(5 * WAIT))

    def end(self) -> None:
        """Begin no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def chosen(request: pytest.FixtureRequest, kind: str) -> list[object]:
    """Return the rows over this kind of link, of those that were selected to run."""
    given = [
        item.callspec.params
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and hasattr(item, "callspec")
    ]
    return [params["row"] for params in given if params["bench"] == kind]
