"""Where jobs come from and what they ran, in both kinds of stores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cm_server.store.rows import new_board_row
from cm_server.store.store import Store
from cm_server.store.text_rows import HistoryRow, JobTextRow, TextsLeft, text_digest
from tests.engines import Postgres

CELL = '{"kind":"cell"}'


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        store = Store(tmp_path / "server.db")
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        store = Store(postgres.new())
    store.enrol_boards([new_board_row(f"id{n}", f"lab-{n}", bytes(32)) for n in (1, 2)])
    yield store
    store.close()


def ran(
    store: Store, text: str | None, *board_ids: str, token: str = "t", kept: bool = True
) -> int:
    """Insert the jobs of a cell, and what they ran; return the number of the first."""
    numbers = store.insert_jobs(board_ids or ("id1",), "ann")
    row = JobTextRow(numbers[0], numbers[-1], token, CELL, text, kept)
    store.text_rows.add([row], time.time())
    return numbers[0]


def history(store: Store, board_id: str = "id1") -> list[HistoryRow]:
    return store.text_rows.history({board_id}, 2**32, 1000).rows


def kept_texts(store: Store) -> dict[str, str]:
    digests = {row.text for row in store.text_rows.history(None, 2**32, 1000).rows if row.text}
    return store.text_rows.texts(digests)


def test_jobs_of_a_cell_share_one_text(store: Store):
    first = ran(store, "x = 1", "id1", "id2")
    ran(store, "x = 1", token="other")
    ran(store, "é\n", kept=False)
    digest = text_digest("x = 1")
    rows = [(row.text, row.notebook, row.token) for row in history(store)]
    assert rows == [(text_digest("é\n"), CELL, "t"), (digest, CELL, "other"), (digest, CELL, "t")]
    assert [(row.id, row.text) for row in history(store, "id2")] == [(first + 1, digest)]
    assert kept_texts(store) == {digest: "x = 1"}


def test_many_cells_are_written_at_once(store: Store):
    numbers = store.insert_jobs(["id1"] * 20, "ann")
    rows = [JobTextRow(n, n, "t", CELL, f"x = {n % 7}" if n % 3 else None, True) for n in numbers]
    store.text_rows.add(rows, time.time())
    found = {row.id: row.text for row in history(store)}
    assert found == {n: text_digest(f"x = {n % 7}") if n % 3 else None for n in numbers}


def test_history_is_read_page_by_page_the_newest_first(store: Store):
    for number in range(5):
        ran(store, f"x = {number}", f"id{1 + number % 2}")
    page = store.text_rows.history({"id1"}, 2**32, 2)
    assert [row.board for row in page.rows] == ["id1"]
    seen, reached = len(page.rows), page.reached
    while reached is not None:
        page = store.text_rows.history({"id1"}, reached, 2)
        seen, reached = seen + len(page.rows), page.reached
    assert seen == 3


def test_texts_that_were_not_run_for_long_are_deleted(store: Store):
    now = time.time()
    (number,) = store.insert_jobs(["id1"], "ann")
    rows = [JobTextRow(number, number, "t", CELL, f"x = {n}", True) for n in range(5)]
    store.text_rows.add(rows, now - 40 * 86400)
    store.text_rows.add(rows[3:], now)  # run again
    reached: str | None = ""
    deleted, chars = 0, 0
    while reached is not None:
        left: TextsLeft = store.text_rows.expire(now - 30 * 86400, reached, 2)
        reached = left.reached
        deleted += left.deleted
        chars += left.chars.total()
    assert (deleted, chars) == (3, 10)
    texts = store.text_rows.texts([text_digest(f"x = {n}") for n in range(5)])
    assert sorted(texts.values()) == ["x = 3", "x = 4"]


def test_text_that_another_job_ran_stays_when_one_is_forgotten(store: Store):
    ran(store, "shared", token="mine")
    ran(store, "own", token="mine")
    other = ran(store, "shared", "id2")
    forgotten = store.text_rows.forget(lambda row: row.token == "mine", 0, 1000)
    assert (len(forgotten.jobs), forgotten.reached) == (2, None)
    used, _ = store.text_rows.used_texts(forgotten.texts, 0, 1000)
    assert used == {text_digest("shared")}
    assert store.text_rows.delete_texts(forgotten.texts, other - 1) == 1
    assert kept_texts(store) == {text_digest("shared"): "shared"}
    assert [row.text for row in history(store)] == [None, None]


def test_deleted_text_is_in_no_file_of_sqlite(tmp_path: Path):
    store = Store(tmp_path / "server.db")
    store.enrol_boards([new_board_row("id1", "lab-1", bytes(32))])
    secret = "password = 'hunter2-" + "a" * 20_000 + "'"
    number = ran(store, secret)

    def holders() -> list[str]:
        files = sorted(tmp_path.iterdir())
        return [file.name for file in files if b"hunter2-aaa" in file.read_bytes()]

    assert holders()
    forgotten = store.text_rows.forget(lambda _: True, 0, 1000)
    store.text_rows.delete_texts(forgotten.texts, number)
    assert store.database.erase_log()
    assert holders() == []
    store.close()
