"""The SQL of docs/how-to/grafana.md, in PostgreSQL as a server fills it."""

from __future__ import annotations

import re

import psycopg
import pytest

from cm_server.store.sample_query import MICROSECONDS, SampleRetention
from cm_server.store.sample_tables import SampleTables
from cm_server.store.store import Store
from tests.cm_server.store.test_sample_stores import NOON, TEMP, TODAY, batch
from tests.engines import Postgres
from tests.wheel import ROOT

PAGE = ROOT / "docs/how-to/grafana.md"
TEMP_OF_GREENHOUSE = TEMP._replace(board="greenhouse-1")


def test_queries_of_the_documentation(postgres: Postgres):
    grants, query = re.findall(r"```(?:sql|text)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    macro = re.search(r"\$__unixEpochFilter\((.*)\)", query)
    assert macro is not None
    seconds = NOON // MICROSECONDS
    filtered = f"{macro[1]} >= {seconds} AND {macro[1]} <= {seconds + 60}"
    query = query.replace(macro[0], filtered)
    minutes = query.replace("samples.value", "sample_minutes.sum / sample_minutes.count")
    minutes = re.sub(r"\bsamples\b", "sample_minutes", minutes)
    url = postgres.new()
    Store(url).close()  # makes the tables
    kept = SampleTables(url, SampleRetention())
    values = [(TEMP_OF_GREENHOUSE, NOON + n * MICROSECONDS, n) for n in (1, 0, 100)]
    kept.append(batch(TODAY, values))
    kept.close()
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO boards (id, name, key, labels, facts, enrolled, gen, plain, token) "
            "VALUES ('id1', 'greenhouse-1', 'secret', '{}', '{}', 0, 1, false, '')"
        )
        for statement in filter(str.strip, grants.split(";")):
            connection.execute(statement.encode())
        connection.execute("SET ROLE grafana")
        found = connection.execute(query.encode()).fetchall()
        rows = [(at.timestamp(), name, value) for at, name, value in found]
        assert rows == [(seconds + n, "greenhouse-1", float(n)) for n in (0, 1)]
        found = connection.execute(minutes.encode()).fetchall()
        assert [(at.timestamp(), value) for at, _, value in found] == [
            (seconds, 0.5),
            (seconds + 60, 100.0),
        ]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT key FROM boards")
        connection.rollback()  # also the role, which is the whole server's
