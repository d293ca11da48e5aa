"""The store that servers share, in SQLite and PostgreSQL: owners of jobs, holders of boards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.store import postgres_database, tables
from cm_server.store.rows import (
    AuditRow,
    CellAudit,
    JobClaim,
    JobRow,
    NewCell,
    TokenRow,
    new_board_row,
)
from cm_server.store.shared_store import NEVER_SENT_ERROR, ORPHAN_ERROR, SharedStore
from cm_server.store.statements import RowsStatement
from cm_server.store.store_base import EndedJob
from tests.engines import Postgres

KEY = bytes(range(32))
FACTS = {"platform": "esp32"}
NOTE = AuditRow(7.0, "ann", "here", "label", "lab-*", "room=lab", 3, None, None, "done")
Make = Callable[[str], SharedStore]


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Return a function that opens the shared store as another server; no board is held."""
    if request.param == "sqlite":
        where: Path | str = tmp_path / "server.db"
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        where = postgres.new()
    views: list[SharedStore] = []

    def make(name: str) -> SharedStore:
        view = SharedStore(where, name)
        view.register_server(f"http://{name}")
        views.append(view)
        return view

    first = make("A")
    first.enrol_boards([new_board_row("id1", "lab-1", KEY), new_board_row("id2", "lab-2", KEY)])
    yield lambda name: first if name == "A" else make(name)
    for view in views:
        view.close()


def is_lost(row: JobRow) -> bool:
    return row.status == "lost"


def send_job(view: SharedStore, board_id: str = "id1") -> int:
    """Claim the board and insert a sent job; return the job's number."""
    held = view.claim_board(board_id, FACTS)
    assert held is not None
    (number,) = view.insert_jobs([board_id], "ann", epochs={board_id: held.epoch})
    return number


def result_of(view: SharedStore, job: int) -> tuple[str | None, str | None]:
    row = view.job(job)
    assert row is not None
    return row.status, row.error


def test_boards_tokens_and_audit_rows_are_shared(server: Make):
    a, b = server("A"), server("B")
    a.set_labels(["id1"], {"room": "lab"}, NOTE)
    a.add_token(TokenRow("abc", "ann", "viewer"), NOTE)
    with pytest.raises(ServerError, match="the name was given meanwhile"):
        b.enrol_boards([new_board_row("id9", "lab-1", KEY)], NOTE)
    with pytest.raises(ServerError, match="the name was given meanwhile"):
        b.add_token(TokenRow("def", "ann", "viewer"))
    assert b.boards()[0].labels == {"room": "lab"} or b.boards()[1].labels == {"room": "lab"}
    assert [row.name for row in b.tokens()] == ["ann"]
    b.revoke_token("abc", 8.0)
    b.add_token(TokenRow("def", "ann", "viewer"))
    assert b.audit_rows(9) == [NOTE] * 2
    b.delete_boards(["id2"])
    assert [row.id for row in a.boards_by_id(["id1", "id2"])] == ["id1"]


def test_facts_that_a_server_has_made_itself_are_shared(server: Make):
    a, b = server("A"), server("B")
    for names in (["id1"], ["id1", "id2"]):  # one row, and several
        for name in names:
            a.mark_board_seen(name, {"generation": f"proven {len(names)}"})
        (number, *_) = a.insert_jobs(["id1"], "ann")  # writes them, too
        assert number
        found = {row.id: row.facts for row in b.boards()}
        assert [found[name] for name in names] == [{"generation": f"proven {len(names)}"}] * len(
            names
        )
    assert not a.has_pending


def test_last_use_of_a_token_goes_to_one_server(server: Make):
    a, b = server("A"), server("B")
    token = TokenRow("abc", "enrol-1", "board", uses=1)
    a.add_token(token)
    a.enrol_with_token(token, new_board_row("id3", "lab-3", KEY), NOTE)
    with pytest.raises(ServerError, match="was used already"):
        b.enrol_with_token(token, new_board_row("id4", "lab-4", KEY), NOTE)
    assert {row.id for row in b.boards()} == {"id1", "id2", "id3"}
    assert b.audit_rows(9) == [NOTE]


def test_servers_allocate_different_job_numbers(server: Make):
    a, b = server("A"), server("B")
    numbers = [n for view in (a, b, a, b) for n in view.insert_jobs(["id1", "id2"], "ann")]
    assert len(set(numbers)) == 8
    assert len(a.insert_jobs(["id1"] * 1500, "ann")) == 1500
    assert len({row.id for view in (a, b) for row in view.open_jobs()}) == 1508


def test_result_of_own_job_is_written(server: Make):
    a = server("A")
    job = send_job(a)
    a.end_job(job, "error", "ValueError: \u00e4")
    a.flush()
    assert result_of(a, job) == ("error", "ValueError: \u00e4")
    assert a.refused_writes == 0


def test_sent_job_follows_its_board_to_another_server(server: Make):
    a, b = server("A"), server("B")
    job = send_job(a)
    (waits,) = a.insert_jobs(["id1"], "ann")
    held = b.claim_board("id1", FACTS)
    assert held is not None
    assert (held.epoch, held.row.name) == (2, "lab-1")
    assert [row.id for row in held.sent_jobs] == [job]
    a.end_job(job, "lost", "its link broke")  # before it knows of the claim
    a.flush()
    assert a.refused_writes == 1
    assert result_of(b, job) == (None, None)
    b.end_job(job, "ok")
    a.end_job(waits, "interrupted")
    a.flush()
    b.flush()
    assert result_of(a, job) == ("ok", None)
    assert result_of(b, waits) == ("interrupted", None)


def test_board_that_reconnects_is_held_in_a_newer_epoch(server: Make):
    a, b = server("A"), server("B")
    job = send_job(a)
    assert b.claim_board("id1", FACTS)
    back = a.claim_board("id1", FACTS)
    assert back is not None
    assert back.epoch == 3
    assert [row.id for row in back.sent_jobs] == [job]
    assert not b.release_boards({"id1": 2})
    assert not a.release_boards({"id1": 1})
    assert a.board_holders() == {"id1": ("A", 3)}
    assert a.release_boards({"id1": 3}) == 1
    assert a.board_holders() == {}


def test_deleted_board_cannot_be_claimed(server: Make):
    a, b = server("A"), server("B")
    b.delete_boards(["id1"])
    assert a.claim_board("id1", FACTS) is None


def test_job_is_claimed_for_sending_by_the_holder_of_its_board(server: Make):
    a, b, c = server("A"), server("B"), server("C")
    job, other = a.insert_jobs(["id1", "id2"], "ann")
    assert b.claim_board("id1", FACTS)
    assert c.claim_jobs("A", [job], []) == set()
    assert b.claim_jobs("A", [job, other], []) == {job}
    assert b.mark_sent(job)


def test_queued_job_is_claimed_once(server: Make):
    a, b, c = server("A"), server("B"), server("C")
    (job,) = a.insert_jobs(["id1"], "ann")
    assert b.claim_board("id1", FACTS)
    assert b.claim_jobs("A", [], [job]) == {job}
    assert b.claim_jobs("A", [job], []) == set()
    assert c.claim_jobs("A", [], [job]) == set()
    assert b.mark_sent(job)


def test_claims_in_one_transaction_claim_each_job_once(server: Make):
    a, b, c = server("A"), server("B"), server("C")
    first, second = a.insert_jobs(["id1", "id1"], "ann")
    (third,) = c.insert_jobs(["id1"], "ann")
    assert b.claim_board("id1", FACTS)
    claims = [
        JobClaim("A", [first], [second]),
        JobClaim("A", [first], []),
        JobClaim("C", [], [third]),
    ]
    assert b.claim_all(claims) == [{first, second}, set(), {third}]
    assert b.claim_all(claims) == [set()] * 3
    assert [b.mark_sent(job) for job in (first, second, third)] == [True] * 3


def test_cells_in_one_transaction_have_their_own_jobs_and_audit_rows(server: Make):
    a = server("A")
    cells = [
        NewCell(["id1", "id2"], "ann", CellAudit(target="all")),
        NewCell([], "bob"),
        NewCell(["id2"], "bob", CellAudit(target="lab-2")),
    ]
    first, nothing, last = a.insert_cells(cells)
    assert isinstance(first, range)
    assert isinstance(last, range)
    assert (len(first), nothing, len(last)) == (2, range(0), 1)
    jobs = {row.id: (row.board, row.caller) for row in a.open_jobs()}
    assert jobs == {first[0]: ("id1", "ann"), first[1]: ("id2", "ann"), last[0]: ("id2", "bob")}
    rows = [
        (row.who, row.target, row.boards, row.first_job, row.last_job) for row in a.audit_rows(9)
    ]
    assert rows == [("ann", "all", 2, first[0], first[1]), ("bob", "lab-2", 1, last[0], last[0])]


def test_cell_that_the_database_refuses_does_not_affect_those_that_share_its_transaction(
    server: Make,
):
    a = server("A")
    cells = [NewCell(["id1"], "ann"), NewCell(["id1"], None), NewCell(["id2"], "bob")]  # type: ignore[arg-type]
    first, refused, last = a.insert_cells(cells)
    assert isinstance(refused, ServerError)
    assert [row.id for row in a.open_jobs()] == [*first, *last]  # type: ignore[misc]
    assert [row.who for row in a.audit_rows(9)] == ["ann", "bob"]
    with pytest.raises(ServerError):
        a.insert_cells(cells[1:2])
    a.unregister_server()
    with pytest.raises(ServerError, match="stopped responding"):
        a.insert_cells(cells[::2])


def test_claimed_job_is_not_withdrawn(server: Make):
    a, b = server("A"), server("B")
    sent, queued, unclaimed = a.insert_jobs(["id1", "id1", "id2"], "ann")
    assert b.claim_board("id1", FACTS)
    assert b.claim_jobs("A", [sent], [queued]) == {sent, queued}
    assert a.withdraw_jobs([sent, queued, unclaimed], "offline", "no answer") == {unclaimed}
    a.end_job(sent, "offline")
    a.flush()
    assert result_of(a, sent) == (None, None)


def test_claimed_jobs_follow_their_board_to_another_server(server: Make):
    a, b, c = server("A"), server("B"), server("C")
    sent, queued = a.insert_jobs(["id1", "id1"], "ann")
    assert b.claim_board("id1", FACTS)
    b.claim_jobs("A", [sent], [queued])
    assert b.mark_sent(queued)
    claimed = c.claim_board("id1", FACTS)
    assert claimed is not None
    assert [row.id for row in claimed.sent_jobs] == [sent, queued]


def test_queued_job_is_sent_by_the_holder_of_its_board(server: Make):
    a, b = server("A"), server("B")
    assert a.claim_board("id1", FACTS)
    (job,) = a.insert_jobs(["id1"], "ann")
    assert b.claim_board("id1", FACTS)
    assert not a.mark_sent(job)  # the board is connected to B
    assert a.refused_writes == 1
    assert b.claim_jobs("A", [], [job]) == {job}
    assert b.mark_sent(job)


def test_result_is_corrected_by_the_holder_of_the_board(server: Make):
    a, b = server("A"), server("B")
    job = send_job(a)
    a.end_job(job, "lost", "its link broke")
    a.flush()
    assert b.claim_board("id1", FACTS)
    assert a.amend_job(EndedJob(1.0, "error", "stale", job), "id1", is_lost)
    assert result_of(a, job) == ("lost", "its link broke")
    assert not b.amend_job(EndedJob(1.0, "error", "another board's", job), "id2", is_lost)
    assert result_of(a, job) == ("lost", "its link broke")
    assert b.amend_job(EndedJob(1.0, "ok", None, job), "id1", is_lost)
    assert result_of(a, job) == ("ok", None)


def test_suspended_server_is_removed_and_its_jobs_end_or_continue(server: Make):
    a, b = server("A"), server("B")
    sent = send_job(a)
    (waits,) = a.insert_jobs(["id2"], "ann")
    assert b.send_heartbeat(10) == {"A": "http://A", "B": "http://B"}
    assert b.take_over_jobs() == []
    time.sleep(0.1)
    assert b.send_heartbeat(0.05) == {"B": "http://B"}
    assert [row.id for row in b.take_over_jobs()] == [sent]
    assert result_of(b, waits) == ("lost", NEVER_SENT_ERROR)
    assert b.board_holders() == {}
    assert "A" not in a.send_heartbeat(10)  # it resumes, and learns that it was removed
    a.end_job(sent, "ok")
    a.end_job(waits, "ok")
    a.flush()
    assert a.refused_writes == 2
    b.end_job(sent, "lost", "it did not come back")
    b.flush()
    assert result_of(a, sent) == ("lost", "it did not come back")
    assert {row.id for row in b.ended_jobs([sent, waits, 77])} == {sent, waits}


def test_removed_server_sends_no_jobs(server: Make):
    a, b = server("A"), server("B")
    assert a.claim_board("id1", FACTS)
    (waits,) = a.insert_jobs(["id1"], "ann")
    (theirs,) = b.insert_jobs(["id1"], "ann")
    time.sleep(0.1)
    assert b.send_heartbeat(0.05) == {"B": "http://B"}
    for act in (
        lambda: a.insert_jobs(["id1"], "ann"),
        lambda: a.mark_sent(waits),
        lambda: a.claim_jobs("B", [theirs], []),
        lambda: a.claim_board("id1", FACTS),
    ):
        with pytest.raises(ServerError, match="stopped responding"):
            act()
    assert a.refused_writes == 4
    count = a.end_job(waits, "ok")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a, "flush", lambda: None)  # the database does not answer
        a.change_server_id("C")
    assert a.written_results == count  # the next job waits for no result of the earlier id
    a.register_server("http://A")
    assert a.claim_board("id1", FACTS)
    assert a.claim_jobs("B", [theirs], []) == {theirs}


@contextlib.contextmanager
def unanswered(
    connection: object, error: type[Exception], method: str = "commit"
) -> Iterator[None]:
    """Commit what is done inside, but raise an error as if the answer was lost."""
    commit = getattr(connection, method)

    def commit_without_answer() -> None:
        commit()
        raise error("the link broke")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, method, commit_without_answer)
        with pytest.raises(ServerError, match="link broke|connection to it broke"):
            yield


def test_jobs_of_unconfirmed_updates_end(server: Make):
    a, b = server("A"), server("B")
    error = a.database.errors[0]
    assert a.claim_board("id1", FACTS)
    (sent,), (taken,) = a.insert_jobs(["id1"], "ann"), b.insert_jobs(["id1"], "ann")
    with unanswered(a.database, error, "commit_driver"):
        a.mark_sent(sent)
    a.end_job(sent, "lost", "it did not run")  # as the scheduler does; but it is marked as sent
    with unanswered(a.database, error, "commit_driver"):
        a.claim_jobs("B", [], [taken])
    b.end_job(taken, "lost", "it did not run")  # as A reports to B; but A owns it
    for view in (a, b):
        view.flush()
        assert view.refused_writes == 1
    (row,) = a.take_over_jobs()
    assert row.id == sent  # dispatch ends it when its board reports, or as lost
    assert result_of(b, taken) == ("lost", ORPHAN_ERROR)
    a.end_job(sent, "lost", "it never reached the board")
    a.flush()
    assert result_of(b, sent) == ("lost", "it never reached the board")
    assert a.take_over_jobs() == []


def test_job_of_unconfirmed_insert_ends(postgres: Postgres):
    store = SharedStore(postgres.new(), "A")
    store.register_server("http://A")
    store.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    (known,) = store.insert_jobs(["id1"], "ann")
    with unanswered(store.database, psycopg.OperationalError, "commit_driver"):
        store.insert_jobs(["id1"], "ann")
    (_, row) = store.open_jobs()
    assert store.take_over_jobs() == []
    assert result_of(store, row.id) == ("lost", ORPHAN_ERROR)
    assert result_of(store, known) == (None, None)
    store.close()


def test_job_that_its_owner_may_not_send_ends(server: Make):
    a = server("A")
    (job,) = a.insert_jobs(["id1"], "ann")
    assert not a.mark_sent(job)
    a.release_job(job)
    a.take_over_jobs()
    assert result_of(a, job) == ("lost", ORPHAN_ERROR)


def test_no_server_is_removed_after_the_store_was_unavailable(server: Make):
    a, b = server("A"), server("B")
    seen = tables.servers.update().where(tables.servers.c.id == "A").values(seen=0)
    with unanswered(b.database.connection, b.database.errors[0]), b._rollback_on_error():
        b._connection.execute(seen)
        b._connection.commit()
    assert b.send_heartbeat(60) == {"A": "http://A", "B": "http://B"}
    assert a.send_heartbeat(60) == {"A": "http://A", "B": "http://B"}
    b._connection.execute(seen)
    b._connection.commit()
    b._failed_at -= 61
    assert b.send_heartbeat(60) == {"B": "http://B"}


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_step_of_the_databases_clock_removes_no_server(server: Make, step: float, caplog):
    a, b, now = server("A"), server("B"), SharedStore._database_time
    both = {"A": "http://A", "B": "http://B"}
    assert (a.send_heartbeat(60), b.send_heartbeat(60)) == (both, both)
    a._database_time = lambda: now(a) + step  # type: ignore[method-assign]
    b._database_time = lambda: now(b) + step  # type: ignore[method-assign]
    assert b.send_heartbeat(60) == both
    assert "the database's clock was set by " in caplog.text
    assert a.send_heartbeat(60) == both
    b._clock_set_at -= 61
    assert b.send_heartbeat(60) == both
    # A is really dead.
    b._connection.execute(tables.servers.update().where(tables.servers.c.id == "A").values(seen=0))
    b._connection.commit()
    assert b.send_heartbeat(60) == {"B": "http://B"}


def test_server_that_died_before_the_clock_was_set_back_is_removed(server: Make):
    a, b, now = server("A"), server("B"), SharedStore._database_time
    assert a.send_heartbeat(60) == b.send_heartbeat(60)
    b._database_time = lambda: now(b) - 3600  # type: ignore[method-assign]
    assert "A" in b.send_heartbeat(60)
    b._clock_set_at -= 61
    assert b.send_heartbeat(60) == {"B": "http://B"}


def test_server_that_stands_still_in_a_pipeline_keeps_no_lock(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
):
    """PostgreSQL has no timeout for that: such a server was never removed."""
    monkeypatch.setattr(postgres_database, "IDLE_SECONDS", 0.5)
    where = postgres.new()
    with contextlib.ExitStack() as stack:
        a, b = (SharedStore(where, name) for name in "AB")
        for view in (a, b):
            stack.callback(view.close)
            view.register_server(f"http://{view.server_id}")
        stack.enter_context(contextlib.suppress(psycopg.OperationalError))
        stack.enter_context(b.database.pipeline())
        b._require_membership()  # it locks B's row; no message follows that ends the pipeline
        deadline = time.monotonic() + 60
        while "B" in a.send_heartbeat(0.1):
            assert time.monotonic() < deadline, "its row stays locked"
            time.sleep(0.05)


def test_results_are_written_before_other_jobs_start(server: Make):
    a = server("A")
    job = send_job(a)
    (waits,) = a.insert_jobs(["id1"], "ann")
    a.end_job(job, "ok")
    a._end_job = RowsStatement("nonsense", "nonsense")
    with pytest.raises(ServerError, match="cannot be written"):
        a.mark_sent(waits)
    with pytest.raises(ServerError, match="cannot be written"):
        a.claim_board("id1", FACTS)
    a._pending_ended_jobs.clear()


def test_unregistered_server_is_removed_immediately(server: Make):
    a, b = server("A"), server("B")
    a.unregister_server()
    assert b.send_heartbeat(10) == {"B": "http://B"}


def test_first_shared_value_is_kept(server: Make):
    a, b = server("A"), server("B")
    assert a.put_if_absent("key", b"a") == b"a"
    assert b.put_if_absent("key", b"b") == b"a"


def test_a_cell_is_one_statement_and_a_board_that_connects_waits_for_no_answer(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
):
    where = postgres.new()
    a, b = SharedStore(where, "A"), SharedStore(where, "B")
    for view in (a, b):
        view.register_server(f"http://{view.server_id}")
    a.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    (theirs,) = b.insert_jobs(["id1"], "ann")
    a.insert_jobs(["id1"], "ann")  # reserves numbers for more
    execute: Any = psycopg.Cursor.execute
    in_pipeline: list[bool] = []
    are_alone: list[bool] = []  # of the other ones: whether the statement is a transaction

    def note_status(cursor: Any, *args: object, **options: object) -> object:
        connection = cursor.connection
        in_pipeline.append(connection.pgconn.pipeline_status == psycopg.pq.PipelineStatus.ON)
        if not in_pipeline[-1]:
            are_alone.append(connection.autocommit)
        return execute(cursor, *args, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", note_status)
    held = a.claim_board("id1", FACTS)
    assert held is not None
    (job,) = a.insert_jobs(["id1"], "ann", epochs={"id1": held.epoch})
    a.end_job(job, "ok")
    (waits,) = a.insert_jobs(["id1"], "ann")
    assert a.mark_sent(waits)
    assert a.claim_jobs("B", [theirs], []) == {theirs}
    assert any(in_pipeline)  # of the board
    assert are_alone == [True] * 4
    assert not a.database.driver.autocommit
    for view in (a, b):
        view.close()


def test_claimed_board_has_all_values_of_its_row(server: Make):
    a = server("A")
    row = new_board_row("id3", "lab-3", KEY)._replace(
        labels={"room": "lab \u00e4"}, nonce=b"\0\xff", plain=True, gen=3, token="abc"
    )
    row = row._replace(serial="S1", note="a note", reserved_by="ann", reserved_until=7.5)
    a.enrol_boards([row])
    facts = {"platform": "rp2", "uptime": 1.5, "parts": ["files"], "note": "\u00e4"}
    before = time.time()
    held = a.claim_board("id3", facts)
    assert held is not None
    assert held.row.last_seen is not None
    assert held.row.last_seen >= before
    assert held.row._replace(last_seen=None) == row._replace(facts=facts)
    assert type(held.row.plain) is bool
    assert a.boards_by_id(["id3"]) == [held.row]


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit SET who = 'bob'", "DELETE FROM audit WHERE at > 1000", "TRUNCATE audit"],
)
def test_audit_log_is_append_only_in_postgresql(postgres: Postgres, statement):
    store = SharedStore(postgres.new(), "A")
    for at in (1.0, time.time()):
        store.add_audit_row(NOTE._replace(at=at))
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        store.database.driver.execute(statement)
    store.database.rollback()
    store.database.driver.execute("DELETE FROM audit WHERE at = 1")
    store.database.commit()
    assert len(store.audit_rows(9)) == 1
    store.close()


def test_store_reconnects_and_writes_pending_results(postgres: Postgres):
    url = postgres.new()
    store = SharedStore(url, "A")
    store.register_server("http://A")
    store.enrol_boards([new_board_row("id1", "lab-1", KEY)])
    job = send_job(store)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    store.end_job(job, "ok")
    store.flush()
    assert result_of(store, job) == ("ok", None)
    store.close()


def test_missing_database_is_reported_in_one_sentence(postgres: Postgres):
    with pytest.raises(ServerError, match="its store in PostgreSQL cannot be opened") as caught:
        SharedStore(postgres.url("nowhere"), "A")
    assert "\n" not in str(caught.value)


def test_values_are_stored_by_name(server: Make):
    a, b = server("A"), server("B")
    a.remember("clock a", {"known": 1.5})
    a.remember("clock a", {"known": 2.5})
    assert b.recall("clock a") == {"known": 2.5}
    assert b.recall("clock b") is None


def test_database_time_is_read(server: Make):
    asked = server("A").database_time()
    assert asked == pytest.approx(time.time(), abs=2)


def test_pruning_deletes_old_rows_and_reuses_no_numbers(server: Make):
    store, now = server("A"), time.time()
    for _ in range(2):
        store.add_audit_row(NOTE._replace(at=now - 60 * 86400))
    numbers = store.insert_jobs(["id1"] * 5, "ann")
    for number in numbers[:4]:
        store.end_job(number, "ok")
    store.flush()
    assert store.prune_jobs(now - 86400, 0, 500) == (0, 0)
    assert store.prune_jobs(now + 86400, 0, 500) == (4, numbers[-1])
    assert [row.id for row in store.open_jobs()] == [numbers[-1]]
    assert store.prune_audit(now - 40 * 86400, 500) == 2
    assert [row.verb for row in store.audit_rows(9)] == ["submit"]
    assert store.prune_audit(now + 86400, 500) == 0  # the database refuses
    assert [row.verb for row in store.audit_rows(9)] == ["submit"]
    other = server("B")
    assert [(row.target, row.detail.split()[0]) for row in other.end_pruning(now)] == [
        ("jobs", "4"),
        ("audit", "2"),
    ]
    assert store.end_pruning(now) == []
    assert other.begin_pruning(now)
    assert not store.begin_pruning(now + 3600)  # one round a day for all servers
    assert store.begin_pruning(now + 86400)
    assert other.insert_jobs(["id2"], "ann")[0] > numbers[-1]
