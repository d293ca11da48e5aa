"""Databases of each earlier version are migrated completely, or left unchanged.

`schemas/schema_N.sql` has the tables of version N and some rows. For a new version, write it by
`python -m tests.cm_server.store.test_schema`.
"""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from cloudmanager.protocol.errors import ServerError
from cm_server.store import schema
from cm_server.store.health_rows import Crash, Restart
from cm_server.store.log_rows import LogRow, LogTrims
from cm_server.store.rows import AuditRow, BoardRow, JobRow, TokenRow
from cm_server.store.schema import SCHEMA_VERSION
from cm_server.store.secret_rows import SecretRow
from cm_server.store.store import Store
from cm_server.store.waiting_rows import JobOutput, WaitingWork

FOLDER = Path(__file__).with_name("schemas")
OLD = range(SCHEMA_VERSION)
KEY = bytes(range(32))
BOARDS = [
    BoardRow("id1", "lab-1", KEY, {}, {}, 1790000000.0, None, 3, b"nonce", False, "abc"),
    BoardRow("id2", "lab-2", KEY[::-1], {}, {}, 1790000000.0, None, 0, None, True, ""),
]
TOKENS = [
    TokenRow("abc", "ann", "operator", "lab-*", 1790000001.0, 1890000000.0, None, None),
    TokenRow("def", "bob", "viewer", "all", 1790000001.0, None, 1790000002.0, 5),
]
NOTE = AuditRow(
    1790000000.0, "ann", "127.0.0.1", "label", "lab-*", "room=lab", 2, None, None, "done"
)


def old_database(folder: Path, version: int) -> Path:
    path = folder / "server.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript((FOLDER / f"schema_{version}.sql").read_text())
    return path


def ask(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.execute(query))


def shape(path: Path) -> dict[str, Any]:
    """Return tables, columns, keys, indexes and triggers, independent of their SQL text."""
    inspector = sa.inspect(engine := sa.create_engine(f"sqlite:///{path}"))
    found: dict[str, Any] = {
        name: {
            "columns": [
                (column["name"], str(column["type"]), column["nullable"], column["default"])
                for column in inspector.get_columns(name)
            ],
            "key": inspector.get_pk_constraint(name)["constrained_columns"],
            "unique": inspector.get_unique_constraints(name),
        }
        for name in inspector.get_table_names()
    }
    engine.dispose()
    written = "SELECT name, sql FROM sqlite_master WHERE type IN ('index', 'trigger')"
    found["indexes and triggers"] = set(ask(path, written))
    found["versions"] = ask(path, "SELECT version_num FROM alembic_version")
    found["user_version"] = ask(path, "PRAGMA user_version")
    return found


@pytest.mark.parametrize("version", OLD)
def test_older_database_is_migrated_and_a_copy_is_kept(version: int, tmp_path: Path):
    path = old_database(tmp_path, version)
    store = Store(path)
    boards, tokens, audit, jobs = contents(store)
    store.close()
    assert [(board.id, board.name, board.key) for board in boards] == [
        ("id1", "lab-1", KEY),
        ("id2", "lab-2", KEY[::-1]),
    ]
    assert boards[0].labels == {"room": "lab"}
    assert boards[1].facts == {"platform": "esp32"}
    assert boards[1].last_seen
    later = ("gen", "nonce", "plain", "token")
    rotated = {name: getattr(boards[0], name) for name in later}
    assert rotated == dict(
        zip(
            later,
            (3, b"nonce", False, "abc") if version >= 2 else (0, None, False, ""),
            strict=True,
        )
    )
    assert (tokens[0].hash, tokens[0].name, tokens[0].role) == ("abc", "ann", "operator")
    assert tokens[0].target == ("lab-*" if version else "all")
    assert [token.revoked for token in tokens[1:]] == ([1790000002.0] if version else [])
    assert audit[:1] == ([NOTE] if version else [])
    assert [job[:3] for job in jobs] == [(1, "id1", "ann"), (2, "id2", "ann")]
    ends = [(job.status, job.error) for job in jobs]
    assert ends == [("error", "ValueError: \u00e4"), (None, None)]

    copy = tmp_path / f"server-schema-{version}.db"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert ask(copy, "PRAGMA user_version") == [(min(version, 3),)]
    assert ask(copy, "SELECT id, key FROM boards") == [("id1", KEY), ("id2", KEY[::-1])]
    Store(path).close()  # the second opening migrates nothing


def contents(store: Store) -> tuple[list[BoardRow], list[TokenRow], list[AuditRow], list[JobRow]]:
    jobs = [job for number in (1, 2) if (job := store.job(number))]
    return store.boards(), store.tokens(), store.audit_rows(99), jobs


@pytest.mark.parametrize("version", OLD)
def test_migrated_tables_equal_new_tables(version: int, tmp_path: Path):
    path = old_database(tmp_path, version)
    Store(path).close()
    (tmp_path / "new").mkdir()
    Store(tmp_path / "new/server.db").close()
    assert shape(path) == shape(tmp_path / "new/server.db")


def test_new_tables_equal_the_recorded_newest_schema(tmp_path: Path):
    (tmp_path / "new").mkdir()
    Store(tmp_path / "new/server.db").close()
    written = shape(old_database(tmp_path, SCHEMA_VERSION))
    how = "the tables changed: raise SCHEMA_VERSION, add a script, write schemas/ (CONTRIBUTING.md)"
    assert shape(tmp_path / "new/server.db") == written, how


def test_each_version_has_one_migration_script():
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())[::-1]
    assert [script.revision for script in scripts] == [str(n) for n in range(SCHEMA_VERSION + 1)]
    assert {path.stem for path in FOLDER.iterdir()} == {
        f"schema_{n}" for n in range(SCHEMA_VERSION + 1)
    }


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("99", f"newer Cloudmanager (schema 99, this one knows {SCHEMA_VERSION}); update this one"),
        ("-1", "holds another program's tables; move it away"),
    ],
)
def test_unknown_version_is_refused_and_unchanged(version: str, message: str, tmp_path: Path):
    path = old_database(tmp_path, SCHEMA_VERSION)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = ?", [version])
    refused(path, message)


def test_tables_of_another_program_are_refused_and_unchanged(tmp_path: Path):
    path = tmp_path / "server.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE boards (surf TEXT)")
    refused(path, "holds another program's tables; move it away")


def refused(path: Path, message: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ServerError) as caught:
        Store(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["server.db"]


def test_failing_migration_leaves_the_database_unchanged(tmp_path: Path):
    path = old_database(tmp_path, 0)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO tokens VALUES ('ghi', 'ann', 'admin', 1)")  # one name, twice
    before = list(sqlite3.connect(path).iterdump())
    with pytest.raises(ServerError, match="is of schema 0 and cannot be migrated to .*UNIQUE"):
        Store(path)
    with closing(sqlite3.connect(path)) as db:
        assert list(db.iterdump()) == before


def test_start_without_migration_does_not_import_alembic(tmp_path: Path):
    program = """
import sys
from pathlib import Path
from cm_server.store.store import Store
for _ in range(2):
    Store(Path(sys.argv[1])).close()
sys.exit("alembic" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "server.db")], check=True)


def write() -> None:
    """Write the tables and rows of the newest version into its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "server.db"
        store = Store(path)
        store.enrol_boards(BOARDS, NOTE)
        for token in TOKENS:
            store.add_token(token)
        store.set_labels(["id1"], {"room": "lab"})
        store.mark_board_seen("id2", {"platform": "esp32"})
        store.insert_jobs(["id1", "id2"], "ann")
        store.end_job(1, "error", "ValueError: \u00e4")
        store.log_rows.append([LogRow("id1", 1790000000.0, 0, "ready\n")], LogTrims((), 0, 0, None))
        store.update_boards({"id1": {"serial": "A17", "note": "shelf"}})
        store.reserve_boards(["id2"], "ann", 1890000000.0)
        store.health_rows.add(
            [Restart("id1", 497222, "wdt", 2)], [Crash("id1", 1790000000.0, "d1", "OSError: 5")]
        )
        store.set_secret(SecretRow("mqtt", "secret", "all", 1790000000.0))
        store.secret_rows.set_uses("id1", {("mqtt",): "mqtt"})
        work = WaitingWork("abc", b"request", {}, 7, 1890000000.0, fresh=False)
        store.insert_waiting_jobs(["id1", "id2"], "ann", work, lambda _: "")
        store.waiting_rows.add_output(1, JobOutput("ready\n", False, "1", ""), 1000)
        store.close()
        (version,) = ask(path, "PRAGMA user_version")
        with closing(sqlite3.connect(path)) as db:
            lines = [f"PRAGMA user_version={version[0]};", *db.iterdump()]
    (FOLDER / f"schema_{SCHEMA_VERSION}.sql").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write()
