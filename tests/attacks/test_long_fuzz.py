"""A minute of hostile input against a server process, beside the same flood on one that discards.

The flood comes from another process. While it strikes the server, cells on a virtual board that it
does not reach may take three times as long as while it strikes a listener that reads and discards,
which costs the machine as much. ``make attacks`` runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import multiprocessing
import ssl
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.plugin import RunningServer, running_server
from cm_server.api.verbs import VERBS
from tests.cm_server.peers import Identity
from tests.conftest import running_boards
from tests.memory import own_bytes
from tests.system.conftest import fleet_of

from .attackers import Victim, attack

pytestmark = pytest.mark.soak
SECONDS = 60.0  # of the attack
TURNS = 4
SETTLE_SECONDS = 30.0
START_SECONDS = 120.0  # of a process, on a busy machine
MEMORY_BYTES = 64 * 1024 * 1024  # by which the server may grow
ROUND_MESSAGES = 500  # of each attacker, between two looks at the clock
SEEDS = 1_000_000  # of the rounds of one turn, at most
_SPAWN = multiprocessing.get_context("spawn")


def flood(settings: dict[str, Any], ca_file: str, turn: int, started: Any) -> None:
    """Attack until it is killed, in each turn otherwise; runs in its own process."""
    boards = [Identity(board) for board in settings.pop("identities")]
    trust = ssl.create_default_context(cafile=ca_file) if ca_file else None
    victim = Victim(boards=boards, trust=trust, **settings)
    started.set()
    for seed in itertools.count(turn * SEEDS):
        asyncio.run(attack(victim, seed, ROUND_MESSAGES))


def discard(port: Any, chain: str) -> None:
    """Accept connections, and read and discard what comes; runs in its own process."""

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                pass
        writer.close()

    async def serve() -> None:
        context = None
        if chain:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(chain)
        server = await asyncio.start_server(read, "127.0.0.1", 0, ssl=context)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextlib.contextmanager
def process(act: Any, *args: Any) -> Iterator[Any]:
    each = _SPAWN.Process(target=act, args=args, daemon=True)
    each.start()
    try:
        yield each
    finally:
        each.kill()
        each.join()


def cell_times(fleet: Fleet, seconds: float) -> list[float]:
    """Run cells for so long; return how long each took, in seconds."""
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        assert fleet["safe-1"].run(f"{len(times)}", timeout=20).value == len(times)
        times.append(time.perf_counter() - began)
        time.sleep(0.02)
    return times


def attacked_cell_times(
    fleet: Fleet, seconds: float, settings: dict[str, Any], ca_file: str, turn: int
) -> list[float]:
    """Return how long cells take during one turn of an attack.

    Args:
        fleet: of the caller.
        seconds: of all turns together.
        settings: of the victim.
        ca_file: for TLS; "" without.
        turn: its number.
    """
    started = _SPAWN.Event()
    with process(flood, settings, ca_file, turn, started):
        assert started.wait(START_SECONDS)
        return cell_times(fleet, seconds / TURNS)


def counts(server: RunningServer, fleet: Fleet) -> dict[str, int]:
    """Return what the server's process holds."""
    status = fleet.status()
    each = psutil.Process(server.process.pid)
    return {
        "descriptors": each.num_fds(),
        "callers": status["callers"],
        "online": status["online"],
        "threads": each.num_threads(),
    }


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["plain", "tls", "mac"])
def test_minute_of_hostile_input_delays_no_other_board(tmp_path: Path, kind: str):
    with (
        running_server(tmp_path, "--lost-after", "2", "--index", "http://127.0.0.1:1") as server,
        fleet_of(server) as fleet,
        running_boards(server, fleet, ["safe-1"]),
    ):
        create = functools.partial(fleet.request, "token-create")
        enrol = {"names": ["fuzz-1", "fuzz-2", "fuzz-3"], "plain": kind == "mac"}
        roles = [
            ("operator", "fuzz-*"),
            ("viewer", "fuzz-*"),
            ("admin", "fuzz-*"),
            ("viewer", "all"),
        ]
        settings = {
            "identities": fleet.request("enrol", **enrol),
            "tokens": [
                create(name=f"fuzz-{n}", role=role, target=target)["token"].partition(".")[0]
                for n, (role, target) in enumerate(roles)
            ],
            "verbs": tuple(verb for verb in VERBS if verb != "revoke"),
            "mac": kind == "mac",
        }
        tls = kind == "tls"
        ca_file = str(tmp_path / "ca.pem") if tls else ""
        chain = str(tmp_path / "server.pem") if tls else ""
        cell_times(fleet, 2)
        before, memory = counts(server, fleet), own_bytes(server.process.pid)
        receiver, sender = _SPAWN.Pipe(duplex=False)
        with process(discard, sender, chain):
            idle = {**settings, "tcp_port": receiver.recv(), "mute": True}
            real = {**settings, "tcp_port": server.tcp_port}
            discarded_times, attacked_times = [], []
            for turn in range(TURNS):
                discarded_times += attacked_cell_times(fleet, SECONDS / 3, idle, ca_file, turn)
                attacked_times += attacked_cell_times(fleet, SECONDS, real, ca_file, turn)
        assert min(len(discarded_times), len(attacked_times)) > 20
        discarded, attacked = map(statistics.median, (discarded_times, attacked_times))
        end = time.monotonic() + SETTLE_SECONDS
        while counts(server, fleet) != before and time.monotonic() < end:
            time.sleep(0.2)
            for job in fleet.request("jobs"):
                if job["state"] != "ended":
                    fleet.request("interrupt", jobs=[job["job"]])
        after = counts(server, fleet)
        grown = own_bytes(server.process.pid) - memory
        figures = {"discarded": discarded, "attacked": attacked, "grown": grown, "after": after}
        print(kind, json.dumps(figures))
        assert "Traceback" not in (tmp_path / "server.log").read_text(errors="replace")
        assert (tmp_path / "server.err").read_text() == ""
        assert after["callers"] == before["callers"]
        assert after["online"] == before["online"]
        assert after["descriptors"] <= before["descriptors"] + 4  # files for boards that are cached
        assert grown < MEMORY_BYTES
        assert attacked < 3 * discarded
