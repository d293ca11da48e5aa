"""The server dies in mid-cell and is started again: the boards come back and tell the truth."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from cloudmanager.fleet import Fleet
from tests.conftest import running_boards, running_server, wait_online

from .conftest import fleet_of, stored, until

NAMES = [f"back-{n}" for n in range(1, 6)]
CELLS = {
    "back-1": ("import time; time.sleep(1); made = 1; made", "ok"),
    "back-2": ("import time; time.sleep(1); raise ValueError('true')", "error"),
    "back-3": ("while True: pass", "timeout"),
    "back-4": ("made = 4", "ok"),
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_server_killed_in_mid_cell_finds_its_boards_and_the_true_outcomes(tmp_path: Path):
    tcp_port = free_port()
    with (
        running_server(tmp_path, tcp_port=tcp_port) as first,
        fleet_of(first) as fleet,
        running_boards(first, fleet, NAMES),
    ):
        number = {}
        for name, (code, _) in CELLS.items():
            group = fleet[name].submit("began = True\n" + code, timeout=2)
            number[name] = group.jobs[name].number
            if name == "back-4":
                assert group.results(5).ok
        queued = fleet["back-3"].submit("never = 1")
        number["queued"] = queued.jobs["back-3"].number
        first.process.kill()
        first.process.wait(5)
        assert queued.results(5)["back-3"].status == "lost"
        with running_server(tmp_path, tcp_port=tcp_port) as second:
            assert second.url == first.url
            started = time.monotonic()
            wait_online(fleet, NAMES)  # the same Fleet dials again by itself
            assert time.monotonic() - started < 8
            until(lambda: None not in {s for s, _ in stored(tmp_path).values()}, "jobs are open")
            outcomes = {name: stored(tmp_path)[job] for name, job in number.items()}
            check(fleet, outcomes)


def check(fleet: Fleet, outcomes: dict[str, tuple[str | None, str | None]]) -> None:
    assert {name: outcomes[name][0] for name in CELLS} == {
        name: status for name, (_, status) in CELLS.items()
    }
    assert "ValueError: true" in str(outcomes["back-2"][1])
    assert outcomes["queued"] == ("lost", "the server restarted before it was sent")
    assert fleet["back-[1-4]"].run("began").to_dict() == dict.fromkeys(CELLS, True)
    assert fleet["back-3"].run("'never' in globals()").value is False
    assert fleet["back-5"].run("6*7").value == 42
