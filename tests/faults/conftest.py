"""A test bench for faults: one server, and boards that connect through a proxy each."""

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
BOARDS = 12  # rows that run at the same time; mostly they wait
WAIT = 30.0  # timeout in seconds, long enough for a busy machine
BEAT = 2.0  # seconds; a board that received nothing for 5 seconds reconnects
LOST_AFTER = 6.0  # seconds; boards reconnect within a shorter time


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark rows as soak tests that are alike on all kinds of links, or that wait long."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("bench", "plain") == "plain" or "row" not in params:
            continue
        fault, at = params["row"].strike[:2]
        waits = fault == "drop" and at in ("EXEC", "RESULT", "handshake")
        if waits or fault in TCP:
            item.add_marker(pytest.mark.soak)


class Slot(NamedTuple):
    """One board behind its proxy, and the bench's caller."""

    name: str
    proxy: Proxy
    fleet: Fleet


class Bench(NamedTuple):
    """A server and its free slots; ``kind`` is one of ``LINKS``."""

    kind: str
    server: RunningServer
    loop: Loop
    fleet: Fleet
    token: str
    free: queue.SimpleQueue[Slot]

    def run_in_slot(self, run: Callable[[Slot], T]) -> T:
        """Call a function with a free slot."""
        slot = self.free.get(timeout=10 * WAIT)
        try:
            return run(slot)
        finally:
            self.free.put(slot)


def until(condition: Callable[[], object], failure: str) -> None:
    """Poll a condition of another process until it is true."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.02)


@contextlib.contextmanager
def serving(home: Path, *options: str, public: bool) -> Iterator[tuple[RunningServer, str]]:
    """Run a server; yield it and its token, with the fingerprint if it uses TLS."""
    listen = ("--listen", "0.0.0.0") if public else ()
    with running_server(home, *listen, *options) as server:
        pin = f".{certificates.load(home).pin}" if public else ""
        yield server, (home / "token").read_text().strip() + pin


@pytest.fixture(scope="package", params=LINKS)
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """Run the bench that all rows share; each row uses one slot at a time."""
    kind = request.param
    home = tmp_path_factory.mktemp("bench")
    options = ("--beat", str(BEAT), "--lost-after", str(LOST_AFTER))
    free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
    with (
        serving(home, *options, public=kind != "plain") as (server, token),
        Fleet(server.url, token) as fleet,
        Loop() as loop,
        VirtualBoards([], ("127.0.0.1", 0), home / "virtual") as machine,
    ):
        names = [f"slot-{number}" for number in range(1, BOARDS + 1)]
        for row in fleet.enrol(names, plain=kind == "mac"):
            proxy = loop.proxy(server.tcp_port, tls=kind == "tls")
            machine.address = ("127.0.0.1", proxy.tcp_port)
            machine.add_board(BoardIdentity.from_enrolment(row, server.url))
            free.put(Slot(row["name"], proxy, fleet))
        wait_online(fleet, names)
        yield Bench(kind, server, loop, fleet, token, free)


class Rows:
    """Runs rows at the same time, each in a slot; a test waits for its own row."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._pool = ThreadPoolExecutor(BOARDS)
        self._functions: dict[str, Callable[[Slot], object]] = {}
        self._started: dict[str, Future[object]] = {}

    def start(self, name: str, run: Callable[[Slot], object]) -> None:
        """Start a row."""
        self._functions[name] = run
        self._started[name] = self._pool.submit(self._bench.run_in_slot, run)

    def check(self, name: str, check: Callable[[object], None]) -> None:
        """Wait for a row and check its outcome; repeat the row once if the check fails.

        On a busy machine links break by themselves, once in some thousand rows; a bug that the
        row's fault uncovers fails both times.
        """
        try:
            check(self._started[name].result(5 * WAIT))
        except AssertionError:
            check(
                self._pool.submit(self._bench.run_in_slot, self._functions[name]).result(5 * WAIT)
            )

    def end(self) -> None:
        """Start no more rows."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def selected_rows(request: pytest.FixtureRequest, kind: str) -> list[object]:
    """Return the rows of this module that pytest selected for this kind of link."""
    parameters = [
        item.callspec.params
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and hasattr(item, "callspec")
    ]
    return [params["row"] for params in parameters if params["bench"] == kind]
