"""Secrets are in their own files, and in no process list, log, message or other file."""

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

#: Private files that contain secrets: the token, and the database with the keys.
SECRET_FILES = {"token", "server.db", "server.db-wal", "server.db-shm"}


def visible_text(server: RunningServer, pids: list[int]) -> str:
    """Return all command lines, and the contents of all files except ``SECRET_FILES``."""
    lists = [" ".join(psutil.Process(pid).cmdline()) for pid in (server.process.pid, *pids)]
    files = [path for path in server.home.rglob("*") if path.is_file()]
    written = [
        path.read_bytes().decode("latin-1")
        for path in files
        if path.name not in SECRET_FILES
        and path.suffix not in (".mpy", ".img")
        and "flash" not in path.name
    ]
    return "\n".join((*lists, *written))


def test_secrets_are_only_in_their_own_files(tmp_path: Path):
    with running_server(tmp_path) as server:
        own = (tmp_path / "token").read_text().strip()
        with Fleet(server.url, own) as fleet, running_boards(server, fleet, ["lab-1"]) as boards:
            token = fleet.request("token-create", name="guest")["token"]
            secret_part = token.partition(".")[0]  # a public fingerprint follows
            keys = [identity.key.hex() for identity in boards.identities]
            with Fleet(server.url, token) as guest:
                assert guest["lab-1"].run("42\npassword = 'hunter2'\n6 * 7").value == 42
                fleet.set_secret("mqtt", "battery staple")
                changed = guest["lab-1"].change_settings({"mqtt": {"secret": "mqtt"}})
                settings = guest["lab-1"].settings()
                jobs = [guest.job(job["job"]) for job in guest.jobs()]
                others = (changed, settings, changed.value, settings.value, jobs, guest.boards())
            text = errors_of(server.url, (secret_part[:-1], f"{secret_part}A", keys[0]))
            mbm = [sys.executable, "-m", "cloudmanager", "token-list", "--json"]
            environment = {"CM_URL": server.url, "CM_TOKEN": own, "PATH": ""}
            done = subprocess.run(mbm, env=environment, capture_output=True, text=True, check=False)
            assert "guest" in done.stdout
            text += done.stdout + done.stderr + repr(fleet) + repr(fleet.address) + repr(boards)
            text += repr(boards.identities) + str(fleet.request("audit")) + str(fleet.boards())
            text += repr(others) + str(fleet.secrets())
            text += visible_text(server, [*boards.pids.values()])
        for secret in (own, secret_part, secret_part[:-1], *keys, "hunter2", "battery"):
            assert secret not in text


def errors_of(url: str, wrong: tuple[str, ...]) -> str:
    """Return the errors that callers with wrong tokens get."""
    errors = []
    for token in wrong:
        with contextlib.suppress(CloudmanagerError), Fleet(url, token) as fleet:
            try:
                fleet.status()
            except CloudmanagerError as error:
                errors.append(f"{error!r} {error} {error.__dict__}")
                raise
    assert len(errors) == len(wrong)
    return " ".join(errors)
