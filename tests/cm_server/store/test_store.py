"""The store: written data is in the file, even if the process is killed next."""

from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.store.rows import AuditRow, BoardRow, CellAudit, JobRow, TokenRow, new_board_row
from cm_server.store.statements import RowsStatement
from cm_server.store.store import Store

KEY = bytes(range(32))
WAIT = 60.0  # seconds, even on a busy machine
ANN = TokenRow("abc", "ann", "viewer")
NOW = float(int(time.time()))
NOTE = AuditRow(NOW, "ann", "here", "label", "lab-*", "room=lab", 3, None, None, "done")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


def ask(path: Path, query: str) -> list[Any]:
    """Return the result of a query by another connection."""
    with closing(sqlite3.connect(path)) as other:
        return list(other.execute(query))


# Jobs


def test_jobs_are_in_the_file_when_insert_jobs_returns(store: Store, path: Path):
    assert list(store.insert_jobs(["id1", "id2"], "ann")) == [1, 2]
    assert ask(path, "SELECT id, board, caller, ended, status FROM jobs") == [
        (1, "id1", "ann", None, None),
        (2, "id2", "ann", None, None),
    ]


def test_cell_without_boards_writes_nothing(store: Store, path: Path):
    assert list(store.insert_jobs([], "ann")) == []
    assert ask(path, "SELECT * FROM jobs") == []


def test_result_is_written_by_flush(store: Store, path: Path):
    store.insert_jobs(["id1"], "ann")
    store.end_job(1, "error", "ValueError: \u00e4")
    assert ask(path, "SELECT status FROM jobs") == [(None,)]
    before = time.time()
    store.flush()
    ((ended, status, error),) = ask(path, "SELECT ended, status, error FROM jobs")
    assert isinstance(ended, float)
    assert before - 60 < ended <= time.time()
    assert (status, error) == ("error", "ValueError: \u00e4")


def test_result_is_written_before_the_next_job(store: Store, path: Path):
    store.insert_jobs(["id1"], "ann")
    store.end_job(1, "ok")
    store.insert_jobs(["id1"], "ann")
    assert ask(path, "SELECT id, status FROM jobs") == [(1, "ok"), (2, None)]


def test_last_result_of_a_job_counts(store: Store):
    store.insert_jobs(["id1"], "ann")
    store.end_job(1, "lost", "the link broke")
    store.end_job(1, "ok")
    row = store.job(1)
    assert row is not None
    assert (row.status, row.error) == ("ok", None)


def test_flush_without_pending_changes_writes_nothing(store: Store, path: Path):
    before = path.with_name("server.db-wal").stat().st_size
    for _ in range(3):
        store.flush()
    assert path.with_name("server.db-wal").stat().st_size == before


def test_full_disk_refuses_cells_and_keeps_pending_results(store: Store, caplog):
    store.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    store.insert_jobs(["id1"] * 2, "ann")
    pages = pragma(store, "page_count")
    pragma(store, f"max_page_count={pages}")
    store.end_job(1, "ok")
    store.end_job(2, "error", "x" * 100_000)
    store.flush()
    assert "the store cannot be written: database or disk is full" in caplog.text
    with pytest.raises(ServerError, match="database or disk is full"):
        store.insert_jobs(["id1"], "ann")
    with pytest.raises(ServerError, match="database or disk is full"):
        store.enrol_boards([new_board_row("id2", "lab-2", bytes(100_000))])
    store.mark_board_seen("id1", {"platform": "x" * 100_000})
    assert store.boards()[0].facts == {}
    pragma(store, "max_page_count=100000")
    store.mark_board_seen("id1", {"platform": "esp32"})
    assert store.boards()[0].facts == {"platform": "esp32"}
    (number,) = store.insert_jobs(["id1"], "ann")
    assert [row.id for row in store.open_jobs()] == [number]
    row = store.job(2)
    assert row is not None
    assert row.status == "error"


def test_job_returns_its_row(store: Store):
    store.insert_jobs(["id1"], "ann")
    row = store.job(1)
    assert isinstance(row, JobRow)
    assert (row.id, row.board, row.caller, row.status) == (1, "id1", "ann", None)
    assert store.job(2) is None


def test_open_jobs_have_no_result_and_are_sorted_by_age(store: Store):
    store.insert_jobs(["id2", "id1", "id2"], "ann")
    store.end_job(2, "ok")
    assert [(row.id, row.board) for row in store.open_jobs()] == [(1, "id2"), (3, "id2")]


def test_open_jobs_are_found_without_reading_those_that_ended(store: Store):
    store.insert_jobs([f"id{number % 40}" for number in range(20_000)], "ann")
    store.flush()
    store._connection.exec_driver_sql("UPDATE jobs SET ended = 1, status = 'ok' WHERE id > 3")
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection = store._connection.connection.driver_connection
    assert isinstance(connection, sqlite3.Connection)
    connection.set_progress_handler(count, 100)  # instructions of SQLite's virtual machine
    assert [row.id for row in store.open_jobs()] == [1, 2, 3]
    connection.set_progress_handler(None, 0)
    assert steps < 10


def test_job_numbers_continue_after_a_restart(path: Path):
    first = Store(path)
    first.insert_jobs(["id1"] * 7, "ann")
    first.close()
    second = Store(path)
    assert list(second.insert_jobs(["id1"], "ann")) == [8]
    second.close()


# Boards and tokens


def test_boards_are_stored_with_keys_labels_and_facts(path: Path):
    first = Store(path)
    first.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    first.set_labels(["id1"], {"room": "r\u00f6d"})
    first.mark_board_seen("id1", {"platform": "esp32", "boot": "b1"})
    first.close()
    second = Store(path)
    (row,) = second.boards()
    second.close()
    assert row[:5] == (
        "id1",
        "lab-1",
        KEY,
        {"room": "r\u00f6d"},
        {"platform": "esp32", "boot": "b1"},
    )
    assert row.last_seen is not None
    assert row.last_seen >= row.enrolled


def test_board_enrolled_again_keeps_its_labels_and_gets_the_new_key(store: Store):
    store.enrol_boards([new_board_row("id1", "lab-1", KEY), new_board_row("id2", "lab-2", KEY)])
    store.set_labels(["id1"], {"room": "lab"})
    store.enrol_boards([new_board_row("id1", "lab-1", bytes(32))])
    assert [(row.id, row.key, row.labels) for row in store.boards()] == [
        ("id1", bytes(32), {"room": "lab"}),
        ("id2", KEY, {}),
    ]


def test_duplicate_board_name_is_refused_and_changes_nothing(store: Store, path: Path):
    store.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    with pytest.raises(Exception, match="the name was given meanwhile"):
        store.enrol_boards([new_board_row("id3", "lab-3", KEY), new_board_row("id2", "lab-1", KEY)])
    assert ask(path, "SELECT id FROM boards") == [("id1",)]
    store.enrol_boards([new_board_row("id2", "lab-2", KEY)])
    assert len(store.boards()) == 2


def test_facts_are_written_with_the_next_job(store: Store, path: Path):
    store.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    store.mark_board_seen("id1", {"boot": "b1"})
    store.mark_board_seen("id1", {"boot": "b2"})
    assert ask(path, "SELECT facts FROM boards") == [("{}",)]
    store.insert_jobs(["id1"], "ann")
    assert ask(path, "SELECT facts FROM boards") == [('{"boot": "b2"}',)]


def test_tokens_are_stored(store: Store, path: Path):
    store.add_token(ANN)
    assert store.tokens() == [ANN]
    assert ask(path, "SELECT * FROM tokens") == [
        ("abc", "ann", "viewer", "all", 0.0, None, None, None)
    ]


def test_revoked_token_keeps_its_row_and_frees_its_name(store: Store):
    store.add_token(ANN)
    with pytest.raises(ServerError, match="the name was given meanwhile"):
        store.add_token(ANN._replace(hash="def"))
    store.revoke_token("abc", 8.0)
    store.add_token(ANN._replace(hash="def", created=9.0))
    assert [(row.hash, row.revoked) for row in store.tokens()] == [("abc", 8.0), ("def", None)]


def test_enrolled_board_is_returned(store: Store):
    store.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    (row,) = store.boards()
    assert isinstance(row, BoardRow)
    assert row[:3] == ("id1", "lab-1", KEY)


# The audit log


def test_cell_and_its_audit_row_are_one_transaction(store: Store, path: Path):
    audit = CellAudit(address="192.0.2.1:5", target="lab-*")
    store.insert_jobs(["id1", "id2"], "ann", audit=audit)
    ((_, at, *row),) = ask(path, "SELECT * FROM audit")
    assert at > 1e9
    assert row == ["ann", "192.0.2.1:5", "submit", "lab-*", "", 2, 1, 2, "done"]


def test_cell_that_cannot_be_audited_does_not_run(store: Store, path: Path, monkeypatch):
    monkeypatch.setattr(store, "_insert_audit", RowsStatement("INSERT INTO nowhere VALUES (1)"))
    with pytest.raises(ServerError, match="cannot be written"):
        store.insert_jobs(["id1"], "ann")
    assert ask(path, "SELECT * FROM jobs") == []


def test_audit_row_of_a_cell_needs_no_own_commit_or_fsync(store, monkeypatch):
    traced: list[str] = []
    store.database.driver.set_trace_callback(traced.append)
    store.insert_jobs(["id1", "id2"], "ann")
    store.database.driver.set_trace_callback(None)
    traced = list(dict.fromkeys(traced))  # a statement with a trigger is traced twice
    assert [text.split()[0] for text in traced] == ["BEGIN", *["INSERT"] * 3, "COMMIT"]
    assert pragma(store, "synchronous") == 1


def test_privileged_operation_and_its_audit_row_are_one_fsynced_transaction(
    store: Store, path: Path
):
    traced: list[str] = []
    store.database.driver.set_trace_callback(traced.append)
    store.enrol_boards([new_board_row("id1", "lab-1", KEY)], NOTE)
    store.set_labels(["id1"], {"room": "lab"}, NOTE)
    store.delete_boards(["id1"], NOTE)
    store.add_token(ANN, NOTE)
    store.revoke_token("abc", 8.0, NOTE)
    store.add_audit_row(NOTE, durable=True)
    store.database.driver.set_trace_callback(None)
    assert traced.count("PRAGMA synchronous=FULL") == traced.count("COMMIT") == 6
    assert "".join(text[0] for text in traced if text[:3] in ("PRA", "BEG", "COM")) == "PBCP" * 6
    assert ask(path, "SELECT count(*) FROM audit") == [(6,)]
    assert store.audit_rows(9) == [NOTE] * 6


def test_failed_operation_has_no_audit_row(store: Store, path: Path):
    store.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    with pytest.raises(ServerError, match="the name was given meanwhile"):
        store.enrol_boards([new_board_row("id2", "lab-1", KEY)], NOTE)
    assert ask(path, "SELECT * FROM audit") == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET who = 'bob'",
        "UPDATE audit SET who = who WHERE id = 1",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 1",
        "INSERT OR REPLACE INTO audit SELECT 1, at, 'bob', address, verb, target, detail, boards,"
        " first_job, last_job, outcome FROM audit",
        "REPLACE INTO audit SELECT * FROM audit",
    ],
)
def test_audit_rows_cannot_be_changed_or_deleted(store: Store, path: Path, statement):
    store.add_audit_row(NOTE)
    store.add_audit_row(NOTE)
    with pytest.raises(sqlite3.IntegrityError, match="the audit log is append-only"):
        store.database.driver.execute(statement)
    store.database.driver.rollback()
    assert store.audit_rows(9) == [NOTE] * 2


def test_month_old_audit_rows_can_be_deleted_oldest_first(store: Store):
    for at in (1.0, 2.0, NOW):
        store.add_audit_row(NOTE._replace(at=at))
    for row in (2, 3):
        with pytest.raises(sqlite3.IntegrityError, match="the audit log is append-only"):
            store.database.driver.execute(f"DELETE FROM audit WHERE id = {row}")
    store.database.driver.execute("DELETE FROM audit WHERE id <= 2")
    store.database.driver.commit()
    assert [row.at for row in store.audit_rows(9)] == [NOW]


def test_audit_rows_returns_the_newest_rows_in_order(store: Store):
    for number in range(5):
        store.add_audit_row(NOTE._replace(at=float(number)))
    assert [row.at for row in store.audit_rows(3)] == [2.0, 3.0, 4.0]


def test_kill_9_loses_no_audit_row(path: Path):
    program = _WRITER.replace(
        'store.insert_jobs(["id1", "id2", "id3"], "ann")', 'store.insert_jobs(["id1"] * 3, "ann")'
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(100):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
        assert process.wait(WAIT) == -signal.SIGKILL
    jobs = {number for (number,) in ask(path, "SELECT id FROM jobs")}
    ranges = ask(path, "SELECT first_job, last_job FROM audit")
    assert jobs == {number for first, last in ranges for number in range(first, last + 1)}


# The file


def test_only_the_owner_can_read_the_file(path: Path):
    path.touch(mode=0o644)
    path.chmod(0o644)
    store = Store(path)
    store.insert_jobs(["id1"], "ann")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    store.close()
    assert modes == {0o600}


def test_failed_creation_of_tables_is_rolled_back(path: Path, monkeypatch):
    monkeypatch.setattr("cm_server.store.schema.SCHEMA_VERSION", "nonsense'")
    with pytest.raises(ServerError, match="cannot be opened"):
        Store(path)
    monkeypatch.undo()
    Store(path).close()


def test_file_is_in_wal_mode_and_jobs_need_no_fsync(store: Store, path: Path):
    assert ask(path, "PRAGMA journal_mode") == [("wal",)]
    assert pragma(store, "synchronous") == 1  # NORMAL


def test_identity_is_fsynced(store: Store, monkeypatch):
    seen: list[int] = []
    real = store._connection.execute

    def execute(*args, **kwargs):
        seen.append(pragma(store, "synchronous"))
        return real(*args, **kwargs)

    monkeypatch.setattr(store._connection, "execute", execute)
    store.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    store.set_labels(["id1"], {"room": "lab"})
    store.add_token(ANN)
    assert seen == [2, 2, 2, 2]  # FULL
    assert pragma(store, "synchronous") == 1


def pragma(store: Store, name: str) -> int:
    value = store._connection.exec_driver_sql(f"PRAGMA {name}").scalar()
    assert isinstance(value, int)
    return value


def test_identity_is_written_with_pending_results(store: Store, path: Path):
    store.insert_jobs(["id1"], "ann")
    store.end_job(1, "ok")
    store.add_token(ANN)
    assert ask(path, "SELECT status FROM jobs") == [("ok",)]


def test_close_writes_pending_results(path: Path):
    store = Store(path)
    store.insert_jobs(["id1"], "ann")
    store.end_job(1, "ok")
    store.close()
    assert ask(path, "SELECT status FROM jobs") == [("ok",)]
    assert not path.with_name("server.db-wal").exists()


def test_store_in_memory_creates_no_file(tmp_path: Path):
    store = Store(None)
    store.insert_jobs(["id1"], "ann")
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_invalid_database_is_reported_in_one_sentence(path: Path):
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(ServerError, match=r"server\.db") as caught:
        Store(path)
    assert "\n" not in str(caught.value)
    assert "sqlalche" not in str(caught.value)


def test_missing_folder_is_reported_in_one_sentence(tmp_path: Path):
    with pytest.raises(ServerError, match="unable to open"):
        Store(tmp_path / "missing" / "server.db")


_WRITER = """
import sys
from pathlib import Path
from cm_server.store.store import Store
store = Store(Path(sys.argv[1]))
while True:
    for job in store.insert_jobs(["id1", "id2", "id3"], "ann"):
        print(job, flush=True)
        store.end_job(job, "ok")
"""


def test_kill_9_loses_no_inserted_job(path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        traced = [int(process.stdout.readline()) for _ in range(300)]
        process.send_signal(signal.SIGKILL)
        traced += [int(line) for line in process.stdout if line.endswith("\n")]
        assert process.wait(WAIT) == -signal.SIGKILL
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    rows: dict[Any, Any] = dict(ask(path, "SELECT id, status FROM jobs"))
    assert set(traced) <= set(rows)
    assert len(rows) % 3 == 0  # one cell's jobs are written together
    unsure = sorted(number for number, status in rows.items() if status is None)
    assert unsure == sorted(rows)[-len(unsure) :]
    assert len(unsure) <= 3  # of the last cell: the boards will report their results
    store = Store(path)
    assert list(store.insert_jobs(["id1"], "ann")) == [max(rows) + 1]
    store.close()
