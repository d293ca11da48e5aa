"""A minute of hostile input against a server process, beside the same flood on one that discards.

The flood comes from another process. While it strikes the server, cells on a virtual board that it
does not reach may take three times as long as while it strikes a listener that reads and discards,
which costs the machine as much. ``make attacks`` runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
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
from tests.system.conftest import fleet_of

from .attackers import Victim, attack

pytestmark = pytest.mark.soak
SECONDS = 60.0
SETTLE_SECONDS = 30.0
MEMORY_BYTES = 64 * 1024 * 1024  # by which the server may grow
ROUND_MESSAGES = 500  # of each attacker, between two looks at the clock
_SPAWN = multiprocessing.get_context("spawn")


def flood(settings: dict[str, Any], seconds: float, ca_file: str) -> None:
    """Attack until the time is over; runs in its own process."""
    boards = [Identity(board) for board in settings.pop("identities")]
    trust = ssl.create_default_context(cafile=ca_file) if ca_file else None
    victim = Victim(boards=boards, trust=trust, **settings)
    end = time.monotonic() + seconds
    seed = 0
    while time.monotonic() < end:
        seed += 1
        with contextlib.suppress(TimeoutError):
            left = end - time.monotonic()
            asyncio.run(asyncio.wait_for(attack(victim, seed, ROUND_MESSAGES), left))


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


def cell_seconds(fleet: Fleet, seconds: float) -> float:
    """Run cells for so long; return the median of their times."""
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        assert fleet["safe-1"].run(f"{len(times)}", timeout=20).value == len(times)
        times.append(time.perf_counter() - began)
        time.sleep(0.02)
    assert len(times) > 20
    return statistics.median(times)


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
        cell_seconds(fleet, 2)
        before, memory = counts(server, fleet), psutil.Process(server.process.pid).memory_info().rss
        receiver, sender = _SPAWN.Pipe(duplex=False)
        with process(discard, sender, chain):
            idle = {**settings, "tcp_port": receiver.recv(), "mute": True}
            with process(flood, idle, SECONDS, ca_file):
                discarded = cell_seconds(fleet, SECONDS / 3)
        with process(
            flood, {**settings, "tcp_port": server.tcp_port}, SECONDS, ca_file
        ) as attacker:
            attacked = cell_seconds(fleet, SECONDS)
            attacker.join(SETTLE_SECONDS)
        end = time.monotonic() + SETTLE_SECONDS
        while counts(server, fleet) != before and time.monotonic() < end:
            time.sleep(0.2)
            for job in fleet.request("jobs"):
                if job["state"] != "ended":
                    fleet.request("interrupt", jobs=[job["job"]])
        after = counts(server, fleet)
        grown = psutil.Process(server.process.pid).memory_info().rss - memory
        figures = {"discarded": discarded, "attacked": attacked, "grown": grown, "after": after}
        print(kind, json.dumps(figures))
        assert "Traceback" not in (tmp_path / "server.log").read_text(errors="replace")
        assert (tmp_path / "server.err").read_text() == ""
        assert after["callers"] == before["callers"]
        assert after["online"] == before["online"]
        assert after["descriptors"] <= before["descriptors"] + 4  # files for boards that are cached
        assert grown < MEMORY_BYTES
        assert attacked < 3 * discarded
