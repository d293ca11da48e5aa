"""Secrets: each in its own file, and nowhere else that anybody may look."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.testing.plugin import RunningServer, running_server
from tests.conftest import running_boards

#: Files that are their owner's alone and hold secrets: the token, and the database with the keys.
MAY = {"token", "server.db", "server.db-wal", "server.db-shm"}


def everything_said(server: RunningServer, pids: list[int]) -> str:
    """What stands in process lists, environments apart, and in every file but those that may."""
    lists = [" ".join(psutil.Process(pid).cmdline()) for pid in (server.process.pid, *pids)]
    files = [path for path in server.home.rglob("*") if path.is_file()]
    written = [
        path.read_bytes().decode("latin-1")
        for path in files
        if path.name not in MAY and path.suffix not in (".mpy", ".img") and "flash" not in path.name
    ]
    return "\n".join((*lists, *written))


def test_secrets_are_only_in_their_own_files(tmp_path: Path):
    with running_server(tmp_path) as server:
        own = (tmp_path / "token").read_text().strip()
        with Fleet(server.url, own) as fleet, running_boards(server, fleet, ["lab-1"]) as boards:
            told = fleet.request("token-create", name="guest")["token"]
            made = told.partition(".")[0]  # behind it is a fingerprint, which is public
            keys = [identity.key.hex() for identity in boards.identities]
            with Fleet(server.url, told) as guest:
                assert guest["lab-1"].run("password = 'hunter2'; 6 * 7").value == 42
            said = errors_of(server.url, (made[:-1], f"{made}A", keys[0]))
            mbm = [sys.executable, "-m", "cloudmanager", "token-list", "--json"]
            environment = {"CM_URL": server.url, "CM_TOKEN": own, "PATH": ""}
            done = subprocess.run(mbm, env=environment, capture_output=True, text=True, check=False)
            assert "guest" in done.stdout
            said += done.stdout + done.stderr + repr(fleet) + repr(fleet.address) + repr(boards)
            said += repr(boards.identities) + str(fleet.request("audit")) + str(fleet.boards())
            said += everything_said(server, [*boards.pids.values()])
        for secret in (own, made, made[:-1], *keys, "hunter2"):
            assert secret not in said


def errors_of(url: str, wrong: tuple[str, ...]) -> str:
    """What is told to who comes with a wrong token."""
    told = []
    for token in wrong:
        with contextlib.suppress(CloudmanagerError), Fleet(url, token) as fleet:
            try:
                fleet.status()
            except CloudmanagerError as error:
                told.append(f"{error!r} {error} {error.__dict__}")
                raise
    assert len(told) == len(wrong)
    return " ".join(told)
