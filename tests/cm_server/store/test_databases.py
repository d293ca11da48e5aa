"""Opening a database, and an unavailable PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.store import postgres_database
from cm_server.store.rows import new_board_row
from cm_server.store.store import Store
from tests.engines import Postgres, running_postgres


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL that the test can pause and kill."""
    with running_postgres() as engine:
        yield engine


def test_unavailable_postgres_times_out_and_is_used_again(own_postgres: Postgres, monkeypatch):
    monkeypatch.setattr(postgres_database, "ANSWER_SECONDS", 0.2)
    store = Store(own_postgres.new())
    board = new_board_row("id1", "lab-1", bytes(32))
    store.enrol_boards([board])
    own_postgres.pause()
    began = time.monotonic()
    with pytest.raises(ServerError, match="its store cannot be written"):
        store.insert_jobs(["id1"], "ann")
    assert time.monotonic() - began < 8
    own_postgres.restart()
    while True:
        try:
            (found,) = store.boards()
            break
        except ServerError:
            assert time.monotonic() < began + 20
            time.sleep(0.05)
    assert found.key == board.key
    store.end_job(1, "ok")
    store.close()


def test_invalid_url_is_reported_in_one_sentence():
    with pytest.raises(ServerError, match="cannot be opened") as caught:
        Store("postgresql://nobody@127.0.0.1:1/x?connect_timeout=1&nonsense=1")
    assert "\n" not in str(caught.value)
