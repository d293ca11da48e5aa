"""The commands in `deploy/` work: those of the systemd unit and of the container."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .wheel import ROOT

UNIT = ROOT / "deploy/cloudmanager.service"
CONTAINER = ROOT / "deploy/Containerfile"
WAIT = 20.0  # seconds


def unit() -> configparser.ConfigParser:
    read = configparser.ConfigParser(interpolation=None)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(UNIT)
    return read


def container(word: str) -> list[str]:
    """Return the arguments of an instruction in exec form (a JSON list)."""
    lines = [line for line in CONTAINER.read_text().splitlines() if line.startswith(word + " ")]
    (line,) = lines
    arguments: list[str] = json.loads(line[line.index("[") :])
    return arguments


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def served(command: list[str], home: Path, tcp_port: int) -> Iterator[str]:
    """Run a command with another Python, CM_HOME and TCP port; yield the server's URL."""
    assert Path(command[0]).name == "python"
    process = subprocess.Popen(
        [sys.executable, *command[1:], "--port", str(tcp_port)],
        env={**os.environ, "CM_HOME": str(home)},
        stdout=subprocess.PIPE,
        cwd="/",
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            yield json.loads(process.stdout.readline())["url"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT) == 0
        finally:
            process.kill()
            process.wait()


def test_command_of_the_unit_serves_tls_and_keeps_files_private(tmp_path: Path):
    service = unit()["Service"]
    command = shlex.split(service["ExecStart"])
    home = tmp_path / "home"
    with served(command, home, free_port()) as url:
        assert url.startswith("https://127.0.0.1:")
    assert service["Environment"] == f"CM_HOME=/var/lib/{service['StateDirectory']}"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in home.rglob("*")} == {0}
    events = [json.loads(line) for line in (home / "server.log").read_text().splitlines()]
    assert events[-1]["message"] == "stopped"


def test_unit_has_no_privileges_and_writes_only_its_data():
    service = unit()["Service"]
    wanted = {
        "DynamicUser": "yes",
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
    }
    assert {name: service[name] for name in wanted} == wanted
    assert not [name for name in service if name in ("User", "ReadWritePaths", "BindPaths")]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_systemd_accepts_the_unit(tmp_path: Path):
    (tmp_path / "python").symlink_to(sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/cloudmanager/bin/python", f"{tmp_path}/python"))
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_command_of_the_container_starts_and_its_health_check_works(tmp_path: Path):
    command = container("ENTRYPOINT") + container("CMD")
    python, *check = container("HEALTHCHECK")
    assert python == "python"
    tcp_port = free_port()
    check = [word.replace(":18266/", f":{tcp_port}/") for word in check]
    with served(command, tmp_path / "home", tcp_port):
        subprocess.run([sys.executable, *check], check=True, timeout=WAIT)
    ended = subprocess.run([sys.executable, *check], capture_output=True, check=False)
    assert ended.returncode != 0


def test_container_has_no_root_and_its_data_is_a_volume():
    text = CONTAINER.read_text()
    assert "\nUSER 10001\n" in text
    assert "\nVOLUME /data\n" in text
    assert "CM_HOME=/data" in text
    assert text.index("\nUSER ") < text.index("\nENTRYPOINT ")
