"""docs/nginx.conf and docs/how-to/proxy.md lead boards and callers to servers that are there."""

from __future__ import annotations

import datetime
import re
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.virtual.virtual_boards import VirtualBoards
from cm_server.net import certificates
from tests.conftest import running_server
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


def write_certificate(folder: Path) -> None:
    """Write lab.example.pem and .key: a certificate of its own authority, for ``localhost``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "lab.example.pem").write_bytes(made.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "lab.example.key").write_bytes(key.private_bytes(pem, *plain))


def web_conf(tcp_port: int, listen: int, folder: Path) -> Path:
    """The configuration of the page, with this machine's addresses and files."""
    page = (CONF.parent / "how-to/proxy.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```nginx\n(.*?)```", page, re.S)
    block = block.replace("/etc/ssl", str(folder)).replace(
        "127.0.0.1:18266", f"127.0.0.1:{tcp_port}"
    )
    block = block.replace("listen 443", f"listen 127.0.0.1:{listen}")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    head = f"pid {folder}/pid;\nerror_log {folder}/log;\ndaemon off;\nevents {{}}\n"
    path = folder / "nginx.conf"
    path.write_text(f"{head}http {{\naccess_log off;\n{places}{block}}}\n")
    return path


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not there")
def test_callers_use_a_public_certificate_and_boards_the_servers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    listen = free_tcp_port()
    folder, home = tmp_path / "nginx", tmp_path / "home"
    folder.mkdir()
    write_certificate(folder)
    options = ("--listen", "0.0.0.0", "--behind-proxy", "127.0.0.1/32")
    with running_server(home, *options) as server:
        token = (home / "token").read_text().strip()
        command = ["nginx", "-c", str(web_conf(server.tcp_port, listen, folder))]
        with (
            subprocess.Popen([*command, "-e", str(folder / "log")]) as nginx,
            Fleet(server.url, f"{token}.{certificates.load(home).pin}") as direct,
            VirtualBoards([], ("127.0.0.1", server.tcp_port), tmp_path / "boards") as machine,
        ):
            try:
                (row,) = direct.enrol(["lab-1"])
                machine.add_board(BoardIdentity.from_enrolment(row, server.url))
                wait_online(direct, ["lab-1"])
                monkeypatch.setenv("CM_HOME", str(tmp_path / "nothing"))
                monkeypatch.setenv("SSL_CERT_FILE", str(folder / "lab.example.pem"))
                with Fleet(f"https://localhost:{listen}", token) as fleet:
                    assert fleet["lab-1"].run("6 * 7")["lab-1"].value == 42
                context = ssl.create_default_context()
                address = f"https://localhost:{listen}"
                with urllib.request.urlopen(f"{address}/healthz", context=context) as answer:
                    assert answer.read() == b'{"status": "ok"}'
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(f"{address}/metrics", context=context)
            finally:
                nginx.terminate()
                nginx.wait(10)
