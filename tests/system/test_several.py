"""Several servers with one store, one bus and real boards act like one server."""

from __future__ import annotations

import random
import signal
from pathlib import Path

from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.board_fixtures import wait_online
from tests.engines import Nats, Postgres
from tests.faults.proxy import Loop
from tests.faults.several import Balancer

from .conftest import until
from .several import several

WAIT = 60.0  # seconds, even on a busy machine


def test_cells_files_and_installs_over_servers_of_which_one_is_suspended(
    tmp_path: Path, postgres: Postgres, nats: Nats
):
    with Loop() as loop, several(tmp_path, postgres, nats) as made:
        a, b = made.start("a"), made.start("b")
        fleet, other = made.fleet(a), made.fleet(b)
        balancer = loop.adopt(Balancer(loop, 0))
        balancer.ports, balancer.dice = [b.tcp_port], random.Random(1)
        made.board(fleet, balancer.tcp_port, "far-1", "far-2")
        made.board(fleet, a.tcp_port, "near-1")
        names = ["far-1", "far-2", "near-1"]
        wait_online(fleet, names)
        boards = fleet["far-[1-2],near-1"]

        # A cell, its state, an error, a timeout, a long output.
        assert boards.run("n = 41").ok
        assert set(other["all"].run("n + 1", timeout=WAIT).to_dict().values()) == {42}
        assert {result.status for result in boards.run("1/0").values()} == {"error"}
        assert fleet["far-1"].run("while True: pass", timeout=0.2)["far-1"].status == "timeout"
        output = fleet["far-1"].run("for i in range(2000): print('x' * 80)", timeout=WAIT)
        assert len(output["far-1"].stdout) == 2000 * 81

        # Files and packages.
        data = bytes(range(256)) * 400
        (tmp_path / "data").write_bytes(data)
        boards.put(str(tmp_path / "data"), ":data")
        fleet["far-1"].get(":data", str(tmp_path / "back"))
        back = tmp_path / "back"
        assert (back / "data" if back.is_dir() else back).read_bytes() == data
        (tmp_path / "seven").mkdir()
        (tmp_path / "seven/__init__.py").write_text("X = 7\n")
        boards.install(str(tmp_path / "seven"))
        assert set(boards.run("import seven; seven.X").to_dict().values()) == {7}

        # B is suspended with a running job; its boards connect to A, which gets the result.
        job = fleet["far-1"].submit("import time; time.sleep(1); print('true')", timeout=WAIT)
        mine = other["far-2"].submit("import time; time.sleep(2)")
        wait_busy(fleet, "far-1", "far-2")
        b.process.send_signal(signal.SIGSTOP)
        balancer.ports = [a.tcp_port]
        balancer.close_links()
        assert job.wait(WAIT)
        assert job.results()["far-1"].status == "ok"
        wait_online(fleet, names)
        assert fleet["far-1"].run("n", timeout=WAIT).value == 41
        number = next(iter(mine.jobs.values())).number
        assert fleet.job(number)["status"] in (None, "lost")
        wait_log(a.home / "server.log", "is dead")  # A has removed it
        b.process.send_signal(signal.SIGCONT)
        assert mine.wait(WAIT)  # its caller was connected to B, which has rejoined
        log = b.home / "server.log"
        wait_log(log, "this server was suspended and removed")  # at its next heartbeat
        wait_online(made.fleet(b), names)
        assert "Traceback" not in log.read_text() + (b.home / "server.err").read_text()


def wait_log(path: Path, words: str) -> None:
    until(lambda: words in path.read_text(), f"{path} does not say {words!r}")


def wait_busy(fleet: Fleet, *names: str) -> None:
    def are_busy() -> bool:
        return all(row["state"] == "busy" for row in fleet.boards() if row["name"] in names)

    until(are_busy, f"{names} are not busy")
