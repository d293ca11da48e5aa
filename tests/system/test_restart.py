"""The server dies in mid-cell and is started again: the boards come back and tell the truth."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import CloudmanagerError
from tests.conftest import running_boards, running_server, wait_online

from .conftest import fleet_of, stored, until

NAMES = [f"back-{n}" for n in range(1, 7)]
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
        at = time.time() + 3
        timed = fleet["back-6"].submit("import cm\ninstant = cm.now_ms()", at=at)
        number["timed"] = timed.jobs["back-6"].number
        queued = fleet["back-3"].submit("never = 1")
        number["queued"] = queued.jobs["back-3"].number
        first.process.kill()
        first.process.wait(5)
        assert queued.results(5)["back-3"].status == "lost"
        with running_server(tmp_path, tcp_port=tcp_port) as second:
            assert second.url == first.url
            started = time.monotonic()
            wait_online(fleet, NAMES)  # the same Fleet dials again by itself
            assert time.monotonic() - started < 20
            until(lambda: None not in {s for s, _ in stored(tmp_path).values()}, "jobs are open")
            outcomes = {name: stored(tmp_path)[job] for name, job in number.items()}
            check(fleet, outcomes)
            assert outcomes["timed"][0] == "ok"
            late = fleet["back-6"].run("instant").value / 1000 - at
            # The clocks of boards are exact to some milliseconds on a busy machine.
            assert -0.05 <= late < 5, "it waited for its time without a server"


def check(fleet: Fleet, outcomes: dict[str, tuple[str | None, str | None]]) -> None:
    assert {name: outcomes[name][0] for name in CELLS} == {
        name: status for name, (_, status) in CELLS.items()
    }
    assert "ValueError: true" in str(outcomes["back-2"][1])
    assert outcomes["queued"] == ("lost", "the server restarted before it was sent")
    assert fleet["back-[1-4]"].run("began").to_dict() == dict.fromkeys(CELLS, True)
    assert fleet["back-3"].run("'never' in globals()").value is False
    assert fleet["back-5"].run("6*7").value == 42


def test_a_server_killed_in_mid_install_leaves_what_the_next_install_completes(tmp_path: Path):
    tcp_port, names, part = free_port(), ["in-1", "in-2", "in-3"], threading.Event()
    wish = package(tmp_path / "zzz")

    def on_progress(_: str, moved: int, __: int) -> None:
        if moved > HALF:
            part.set()

    def install(fleet: Fleet) -> None:
        with contextlib.suppress(CloudmanagerError):  # its own link ends, too
            fleet["in-*"].install(wish, progress=on_progress)

    with (
        running_server(tmp_path, tcp_port=tcp_port) as first,
        fleet_of(first) as fleet,
        running_boards(first, fleet, names),
    ):
        worker = threading.Thread(target=install, args=(fleet,))
        worker.start()
        assert part.wait(15)
        first.process.kill()
        first.process.wait(5)
        worker.join()
        with running_server(tmp_path, tcp_port=tcp_port):
            wait_online(fleet, names)
            until(lambda: None not in {s for s, _ in stored(tmp_path).values()}, "jobs are open")
            boards = fleet["in-[1-3]"]
            had = [(dict(r.value), r.value.drift) for r in boards.packages().values()]
            assert ({}, ()) in had, "it was killed in the middle"
            assert all(not drift for _, drift in had)
            boards.install(wish).raise_for_error()
            assert boards.run("import zzz; zzz.A", fresh=True).to_dict() == dict.fromkeys(names, 1)
            assert not any(result.ok for result in boards.stat(":/.cm/new").values())
            assert not any(result.value.drift for result in boards.packages().values())
            rows = [row for row in fleet.request("audit") if row["verb"] == "install"]
            assert [(row["detail"], row["boards"]) for row in rows] == [("zzz", 3)] * 2


HALF = 300_000  # bytes; twice the package is more than a board's flash has room for


def package(folder: Path) -> str:
    folder.mkdir()
    (folder / "__init__.py").write_text("A = 1")
    for n in range(10):
        (folder / f"{n}.bin").write_bytes(bytes([n]) * 60_000)
    return str(folder)
