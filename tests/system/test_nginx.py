"""docs/nginx.conf leads boards and callers to servers that are there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.virtual.virtual_boards import VirtualBoards
from cm_server.net import certificates
from tests.engines import Nats, Postgres, free_tcp_port

from .several import OPTIONS, Several, several

CONF = Path(__file__).parents[2] / "docs/nginx.conf"
MODULES = Path("/etc/nginx/modules-enabled")  # of Debian; the file of the docs includes them


@pytest.fixture
def two_servers(tmp_path: Path, postgres: Postgres, nats: Nats) -> Iterator[Several]:
    if shutil.which("nginx") is None or not list(MODULES.glob("*stream*")):
        pytest.skip("nginx is not there: sudo apt-get install nginx-light libnginx-mod-stream")
    with several(tmp_path, postgres, nats, "--listen", "0.0.0.0", *OPTIONS) as made:
        made.start("a")
        made.start("b")
        yield made


def conf(ports: list[int], listen: int, folder: Path) -> Path:
    """The file of the docs, with this machine's addresses."""
    text = CONF.read_text()
    for number, tcp_port in enumerate(ports):
        text = text.replace(f"10.0.0.1{number + 1}:18266", f"127.0.0.1:{tcp_port}")
    lines = [line for line in text.splitlines() if "10.0.0." not in line]
    head = f"pid {folder}/pid;\nerror_log {folder}/log;\ndaemon off;\n"
    path = folder / "nginx.conf"
    body = "\n".join(lines).replace("listen 18266", f"listen 127.0.0.1:{listen}")
    path.write_text(head + body)
    return path


def test_boards_and_callers_find_a_server_through_nginx(two_servers: Several, tmp_path: Path):
    a, b = two_servers.servers
    listen = free_tcp_port()
    folder = tmp_path / "nginx"
    folder.mkdir()
    command = ["nginx", "-c", str(conf([a.tcp_port, b.tcp_port], listen, folder))]
    with subprocess.Popen([*command, "-e", str(folder / "log")]) as nginx:
        try:
            token = (a.home / "token").read_text().strip()
            pin = certificates.load(a.home).pin
            names = [f"lab-{number}" for number in range(1, 7)]
            with (
                Fleet(f"https://127.0.0.1:{a.tcp_port}", f"{token}.{pin}") as direct,
                VirtualBoards([], ("127.0.0.1", listen), tmp_path / "boards") as machine,
            ):
                for row in direct.enrol(names):
                    machine.add_board(BoardIdentity.from_enrolment(row, "https://127.0.0.1"))
                wait_online(direct, names)
                with Fleet(f"https://127.0.0.1:{listen}", f"{token}.{pin}") as fleet:
                    assert set(fleet["lab-*"].run("6 * 7").to_dict().values()) == {42}
                held = [server.home / "server.log" for server in (a, b)]
                assert all(
                    "is connected, from" in log.read_text() for log in held
                )  # nginx shared them out
                b.process.kill()
                b.process.wait()
                wait_online(direct, names)
                with Fleet(f"https://127.0.0.1:{listen}", f"{token}.{pin}") as fleet:
                    results = fleet[f"lab-[1-{len(names)}]"].run("6 * 7", wait=20)
                    assert set(results.to_dict().values()) == {42}
        finally:
            nginx.terminate()
            nginx.wait(10)
