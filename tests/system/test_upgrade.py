"""The server is replaced by a newer version, with newer tables, while boards run cells."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import cloudmanager
import cm_server
from cm_server.store.schema import SCHEMA_VERSION
from tests.conftest import running_boards, running_server, wait_online

from .conftest import fleet_of, stored, until
from .test_restart import free_port

NAMES = [f"up-{n}" for n in range(1, 5)]
CELLS = {
    "up-1": ("import time; time.sleep(1.5); made = 1; made", "ok"),
    "up-2": ("import time; time.sleep(1.5); raise ValueError('true')", "error"),
    "up-3": ("while True: pass", "timeout"),
}
#: A table more, and a column that may not be empty, on the table that every cell writes.
_SCRIPT = f'''"""What the next version may bring."""

import sqlalchemy as sa
from alembic import op

revision = "{SCHEMA_VERSION + 1}"
down_revision = "{SCHEMA_VERSION}"


def upgrade():
    op.create_table("extra", sa.Column("id", sa.Integer, primary_key=True))
    with op.batch_alter_table("jobs", recreate="always") as jobs:
        jobs.add_column(sa.Column("weight", sa.Integer, nullable=False, server_default="7"))
'''


def next_version(folder: Path) -> Path:
    """Copy the server and what it uses of the library, and give it newer tables."""
    for package in (cloudmanager, cm_server):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    versions = folder / "cm_server/store/migrations/versions"
    (versions / f"schema_{SCHEMA_VERSION + 1}.py").write_text(_SCRIPT)
    schema = folder / "cm_server/store/schema.py"
    text = schema.read_text()
    assert f"SCHEMA_VERSION = {SCHEMA_VERSION}\n" in text
    schema.write_text(
        text.replace(
            f"SCHEMA_VERSION = {SCHEMA_VERSION}\n", f"SCHEMA_VERSION = {SCHEMA_VERSION + 1}\n"
        )
    )
    return folder


def test_upgrade_during_a_cell_loses_no_result(tmp_path: Path, monkeypatch):
    tcp_port, newer, home = free_port(), next_version(tmp_path / "newer"), tmp_path / "home"
    with (
        running_server(home, tcp_port=tcp_port) as first,
        fleet_of(first) as fleet,
        running_boards(first, fleet, NAMES),
    ):
        assert fleet["up-4"].run("made = 4").ok
        number = {
            name: fleet[name].submit("began = True\n" + code, timeout=3).jobs[name].number
            for name, (code, _) in CELLS.items()
        }
        waits = fleet["up-3"].submit("never = 1").jobs["up-3"].number
        first.process.terminate()
        assert first.process.wait(5) == 0
        monkeypatch.setenv("PYTHONPATH", str(newer))
        with running_server(home, tcp_port=tcp_port):
            wait_online(fleet, NAMES)  # the same callers' and boards' links, dialled again
            until(lambda: None not in {s for s, _ in stored(home).values()}, "jobs are open")
            outcomes = {name: stored(home)[job] for name, job in number.items()}
            wanted = {name: status for name, (_, status) in CELLS.items()}
            assert {name: status for name, (status, _) in outcomes.items()} == wanted
            assert "ValueError: true" in str(outcomes["up-2"][1])
            assert stored(home)[waits][0] == "lost"
            assert "did not run" in str(stored(home)[waits][1])
            assert fleet["up-[1-3]"].run("began").to_dict() == dict.fromkeys(CELLS, True)
            assert fleet["up-4"].run("made").value == 4
    with closing(sqlite3.connect(home / "server.db")) as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchall() == [
            (str(SCHEMA_VERSION + 1),)
        ]
        assert db.execute("SELECT DISTINCT weight FROM jobs").fetchall() == [(7,)]
    assert (home / f"server-schema-{SCHEMA_VERSION}.db").exists()
