"""Attacks on the server's port while a board runs cells; on loopback only, and bounded."""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.plugin import RunningServer, running_server
from tests.conftest import running_boards
from tests.memory import own_bytes
from tests.system.conftest import fleet_of

WAIT = 20.0  # seconds
CONNECTIONS = 2000
#: Opens connections of all unauthenticated kinds from sixteen addresses, prints their number, sends
#: a byte on each of them every ten seconds, and reopens closed ones (at most 100 a second), until
#: its standard input is closed.
_ATTACK = """
import random, select, socket, sys, time
count, port = int(sys.argv[1]), int(sys.argv[2])
heads = [
    b"",
    b"GET /board HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nX: ",
    b"POST /caller HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nContent-Length: 8000\\r\\n\\r\\n",
    b"\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03",
    b"GET /board HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nUpgrade: websocket\\r\\n"
    b"Connection: Upgrade\\r\\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n"
    b"\\x82\\xfe\\xff\\x00\\x00\\x00\\x00\\x00",
]
def dial(number):
    sock = socket.socket()
    sock.bind((f"127.0.0.{2 + number % 16}", 0))
    sock.settimeout(5)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    sock.send(heads[number % len(heads)] or b"\\0")
    return sock
socks = [dial(number) for number in range(count)]
print(count, flush=True)
at = 0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    redialled = 0
    for number in range(at, at + count // 200):
        number %= count
        try:
            socks[number].send(b"x")
            gone = socks[number].recv(4096) == b""
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone and redialled < 5:
            redialled += 1
            socks[number].close()
            socks[number] = dial(number)
    at += count // 200
"""


@contextlib.contextmanager
def attack(server: RunningServer, count: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _ATTACK, str(count), str(server.tcp_port)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as attacker:
        try:
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == f"{count}\n"
            yield attacker
            assert attacker.poll() is None, "the attacker gave up"
        finally:
            attacker.kill()


def cell_seconds(fleet: Fleet) -> float:
    """Return the time of a cell: the best median of ten batches, to exclude the machine's noise."""
    return min(statistics.median(one_cell(fleet) for _ in range(20)) for _ in range(10))


def one_cell(fleet: Fleet) -> float:
    began = time.perf_counter()
    assert fleet["safe-1"].run("6 * 7", timeout=5).value == 42
    return time.perf_counter() - began


@pytest.fixture
def many_files() -> Iterator[None]:
    """Raise the limit of open files for attacker and server; skip if that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CONNECTIONS + 500:
        pytest.skip(f"this machine grants {hard} files at once")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, CONNECTIONS + 500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.timeout(90)
@pytest.mark.usefixtures("many_files")
def test_cells_take_less_than_twice_their_time_during_a_slowloris_attack(
    tmp_path: Path,
):
    with (
        running_server(tmp_path) as server,
        fleet_of(server) as fleet,
        running_boards(server, fleet, ["safe-1"]),
    ):
        process = psutil.Process(server.process.pid)
        calm, memory = cell_seconds(fleet), own_bytes(process.pid)
        with attack(server, CONNECTIONS):
            attacked = cell_seconds(fleet)
            # New peers can connect, too: a caller, and a board that reconnects.
            with fleet_of(server) as newcomer:
                assert newcomer.status()["online"] == 1
            assert fleet["safe-1"].run("6 * 7", fresh=True, timeout=10)["safe-1"].value == 42
            assert len(process.net_connections()) < 1600  # Limits.unauthenticated, and the others
            grown = own_bytes(process.pid) - memory
        calm = min(calm, cell_seconds(fleet))
    print(json.dumps({"calm": calm, "attacked": attacked, "grown": grown}))
    assert attacked < 2 * calm
    assert grown < 64 * 1024 * 1024
    assert "Traceback" not in (tmp_path / "server.log").read_text()


@pytest.mark.timeout(60)
def test_wrong_tokens_neither_block_valid_ones_nor_fill_the_disk(tmp_path: Path):
    with running_server(tmp_path) as server, fleet_of(server) as fleet:
        before = (tmp_path / "server.db-wal").stat().st_size
        for number in range(300):
            with contextlib.suppress(Exception), Fleet(server.url, f"cm_{number}") as stranger:
                stranger.status()
        with fleet_of(server) as right:
            assert right.status()["callers"] >= 1
        assert (tmp_path / "server.db-wal").stat().st_size - before < 200_000
        assert (tmp_path / "server.log").stat().st_size < 10_000
        rows = fleet.request("audit")
        assert sum(row["verb"] == "login" for row in rows) == 10
