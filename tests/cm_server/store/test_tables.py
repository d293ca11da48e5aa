"""The tables are the same in SQLite and in PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa

from cm_server.store import tables
from cm_server.store.store import Store
from tests.engines import Postgres


def columns(store: Store) -> dict[str, list[tuple[str, bool]]]:
    inspector = sa.inspect(store.database.connection)
    return {
        name: [(column["name"], column["nullable"]) for column in inspector.get_columns(name)]
        for name in inspector.get_table_names()
    }


def test_both_databases_have_the_same_tables_and_columns(tmp_path: Path, postgres: Postgres):
    stores = [Store(tmp_path / "server.db"), Store(postgres.new())]
    one, other = (columns(store) for store in stores)
    assert one == other
    assert set(one) == set(tables.metadata.tables)
    for store in stores:
        store.close()


def test_indexes_of_postgresql_are_partial_or_of_blocks_as_those_of_sqlite(postgres: Postgres):
    store = Store(postgres.new())
    rows = store.database.connection.execute(
        sa.text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'")
    )
    found = {row.indexname: row.indexdef for row in rows}
    store.close()
    assert found["jobs_open"].endswith("(board) WHERE (ended IS NULL)")
    assert found["tokens_name"].endswith("(name) WHERE (revoked IS NULL)")
    assert "USING brin" in found["samples_time"]
    assert "USING brin" in found["sample_minutes_time"]


def test_server_with_sqlite_does_not_import_the_other_dialect():
    """That takes a twentieth of its start."""
    program = """
import sys
import cm_server.process
sys.exit(" ".join(name for name in sys.modules if "postgres" in name or "psycopg" in name) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
