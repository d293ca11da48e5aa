"""The tables are the same in SQLite and in PostgreSQL."""

from __future__ import annotations

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
