"""The queue of a store: order, locks, limits, checkpoints, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import select
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.limits import Limits
from cm_server.store import board_store, postgres_database
from cm_server.store.rows import AuditRow, NewCell, new_board_row
from cm_server.store.shared_store import SharedStore
from cm_server.store.store import Store
from cm_server.store.store_queue import GATHERED_BYTES, SHARED_BYTES, Operation, StoreQueue
from tests.cm_server.peers import within
from tests.engines import Postgres

NOTE = AuditRow(1.0, "ann", "here", "label", "lab-*", "", 3, None, None, "done")


class Site:
    """A store in a file, its queue, and another program that can lock the file."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.path = path
        self.store = Store(path)
        self.store.enrol_boards([new_board_row("id1", "lab-1", bytes(32))])
        self.queue = StoreQueue(self.store, limits)
        self._other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    def lock(self) -> None:
        self._other.execute("BEGIN IMMEDIATE")

    def unlock(self) -> None:
        if self._other.in_transaction:
            self._other.execute("ROLLBACK")

    def insert(self) -> Operation[range]:
        return self.queue.run(lambda store: store.insert_jobs(["id1"], "ann"), refusable=True)

    def close(self) -> None:
        self.unlock()
        self._other.close()
        self.queue.close()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path / "server.db")
    yield site
    site.close()


async def test_sqlite_is_used_at_once_and_in_the_loop(site: Site):
    threads: list[int] = []

    def use(store: Store) -> range:
        threads.append(threading.get_ident())
        return store.insert_jobs(["id1"], "ann")

    operation = site.queue.run(use)
    assert operation.done
    assert list(await operation) == [1]
    assert threads == [threading.get_ident()]


async def test_durable_operation_is_done_by_a_thread(site: Site):
    operation = site.queue.run(lambda _store: threading.get_ident(), durable=True)
    assert not operation.done
    assert await operation != threading.get_ident()


async def test_operations_wait_in_order_while_the_file_is_locked(site: Site):
    finished: list[str] = []
    with site.locked():
        waiting = [site.insert(), site.insert()]
        reading = site.queue.run(lambda store: store.audit_rows(9))
        waiting[0].when_done(lambda _: finished.append("a"))
        waiting[1].when_done(lambda _: finished.append("b"))
        reading.when_done(lambda _: finished.append("c"))
        await asyncio.sleep(0.05)
        assert not finished
    assert [list(await within(operation)) for operation in waiting] == [[1], [2]]
    assert len(await within(reading)) == 2, "it sees what was written before it"
    assert finished == ["a", "b", "c"]
    assert site.insert().done, "the queue is empty: the loop is used again"


class Sharing:
    """A use of the store that records which items share a transaction; odd ones fail."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []

    def use(self, store: Store, items: Sequence[int]) -> list[int | Exception]:
        store.add_audit_row(NOTE)  # raises while the file is locked
        self.groups.append(list(items))
        return [ValueError(item) if item % 2 else 10 * item for item in items]


async def test_operations_that_wait_for_the_same_share_a_transaction(tmp_path: Path):
    site = Site(tmp_path / "server.db", Limits(store_gather_seconds=0.0))
    sharing, other = Sharing(), Sharing()
    use, use_other = sharing.use, other.use
    assert await site.queue.run_shared(use, 2, size=1) == 20
    with pytest.raises(ValueError, match="3"):
        await site.queue.run_shared(use, 3, size=1)
    with site.locked():
        first = site.queue.run_shared(use, 4, size=1)
        waiting = [site.queue.run_shared(use, item, size=1) for item in (5, 6)]
        waiting.append(site.queue.run_shared(use_other, 7, size=1))
        waiting.append(site.queue.run_shared(use, 8, size=1))
        reading = site.queue.run(lambda store: len(store.audit_rows(99)))
        waiting.append(site.queue.run_shared(use, 10, size=1))
        big = [site.queue.run_shared(use, item, size=SHARED_BYTES // 2) for item in (12, 14, 16)]
        await asyncio.sleep(0.05)
        assert sharing.groups == [[2], [3]]
    assert await within(first) == 40
    outcomes = await within(asyncio.gather(*waiting, *big, return_exceptions=True))
    assert [each if isinstance(each, int) else repr(each) for each in outcomes] == [
        *("ValueError(5)", 60, "ValueError(7)", 80, 100, 120, 140, 160)
    ]
    assert sharing.groups == [[2], [3], [4], [5, 6], [8], [10, 12], [14, 16]]
    assert other.groups == [[7]]
    assert await within(reading) == 6, "those before it are done, and none of those behind it"
    site.close()


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[Site]:
    """A site at which cells of two peers come, however slow the machine is."""
    site = Site(tmp_path / "server.db", Limits(store_gather_seconds=60.0))
    site.queue.run_shared(Sharing().use, 0, size=1, peer="one")  # the first one does not wait
    yield site
    site.close()


async def test_operation_that_comes_alone_is_carried_out_at_once(site: Site):
    assert site.queue.run_shared(Sharing().use, 2, size=1, peer="two").done


async def test_operations_of_one_peer_do_not_wait(busy: Site):
    assert busy.queue.run_shared(Sharing().use, 2, size=1, peer="one").done
    assert busy.queue.run_shared(Sharing().use, 4, size=1).done


async def test_operations_of_one_turn_share_a_transaction(busy: Site):
    use = (sharing := Sharing()).use
    finished: list[Operation[int]] = []
    operations = [busy.queue.run_shared(use, item, size=1, peer="two") for item in (2, 3, 4)]
    for operation in operations:
        operation.when_done(finished.append)
    assert busy.queue.is_gathering
    assert sharing.groups == []
    await asyncio.sleep(0)
    assert sharing.groups == [[2, 3, 4]]
    assert finished == operations
    assert operations[0].result() == 20
    with pytest.raises(ValueError, match="3"):
        operations[1].result()
    assert not busy.queue.is_gathering


async def test_other_operation_comes_after_those_of_the_turn(busy: Site):
    use = (sharing := Sharing()).use
    rows = len(busy.store.audit_rows(99))
    gathered = busy.queue.run_shared(use, 2, size=1, peer="two")
    assert len(await busy.queue.run(lambda store: store.audit_rows(99))) == rows + 1
    assert gathered.done
    await asyncio.sleep(0)
    assert sharing.groups == [[2]], "it is carried out once"


async def test_other_kind_and_large_operations_are_not_gathered(busy: Site):
    use, use_other = (sharing := Sharing()).use, (other := Sharing()).use
    first = busy.queue.run_shared(use, 2, size=1, peer="two")
    assert busy.queue.run_shared(use_other, 4, size=1, peer="two").done
    assert first.done, "the order stays"
    assert busy.queue.run_shared(use, 6, size=GATHERED_BYTES + 1, peer="one").done
    assert (sharing.groups, other.groups) == ([[2], [6]], [[4]])


async def test_operations_of_one_turn_wait_while_the_file_is_locked(busy: Site):
    use = (sharing := Sharing()).use
    with busy.locked():
        operations = [busy.queue.run_shared(use, item, size=1, peer="two") for item in (2, 4)]
        await asyncio.sleep(0.05)
        assert sharing.groups == []
    assert [await within(operation) for operation in operations] == [20, 40]
    assert sharing.groups == [[2, 4]]


async def test_end_of_the_queue_carries_out_what_was_gathered(busy: Site):
    sharing = Sharing()
    operation = busy.queue.run_shared(sharing.use, 2, size=1, peer="two")
    assert busy.queue.drain()
    assert operation.result() == 20


async def test_cells_that_wait_share_a_transaction_and_one_that_is_refused_stays_alone(site: Site):
    with site.locked():
        blocked = site.queue.run(lambda store: store.add_audit_row(NOTE))
        cells = [NewCell(["id1"] * count, "ann") for count in (1, 2)]
        cells.insert(1, NewCell(["id1"], None))  # type: ignore[arg-type]
        waiting = [site.queue.run_shared(Store.insert_cells, cell, size=1) for cell in cells]
        await asyncio.sleep(0.05)
    await within(blocked)
    first, refused, last = waiting
    with pytest.raises(ServerError):
        await within(refused)
    numbers = [list(await within(operation)) for operation in (first, last)]
    assert [len(each) for each in numbers] == [1, 2]
    assert [row.id for row in site.store.open_jobs()] == numbers[0] + numbers[1]


async def test_operations_that_share_a_transaction_are_refused_together(tmp_path: Path):
    site = Site(tmp_path / "server.db", Limits(store_lock_seconds=0.1))
    with site.locked():
        waiting = [
            site.queue.run_shared(
                Store.insert_cells, NewCell(["id1"], "ann"), size=1, refusable=True
            )
            for _ in range(3)
        ]
        outcomes = await within(asyncio.gather(*waiting, return_exceptions=True))
    assert {str(getattr(each, "reason", each)) for each in outcomes} == {
        "its store is locked by another program: database is locked"
    }
    assert site.store.open_jobs() == []
    site.close()


async def test_results_added_while_the_file_is_locked_are_written(site: Site):
    (job,) = await site.insert()
    with site.locked():
        blocked = site.queue.run(lambda store: store.add_audit_row(NOTE))
        number = site.store.end_job(job, "ok")
        site.queue.flush()
        site.queue.flush()
        assert site.store.written_results < number
    await within(blocked)
    await within(site.queue.run(lambda store: store.job(job)))
    assert site.store.written_results == number
    row = site.store.job(job)
    assert row is not None
    assert row.status == "ok"


async def test_refused_operations_are_done_with_a_sentence(tmp_path: Path):
    site = Site(tmp_path / "server.db", Limits(store_operations=2))
    with site.locked():
        accepted = [site.insert() for _ in range(3)]  # one is in the thread
        refused = site.insert()
        assert refused.done
        with pytest.raises(ServerError, match="too many requests wait for it; try again later"):
            refused.result()
        unrefusable = site.queue.run(lambda store: store.flush())
        assert not unrefusable.done
        assert site.queue.run_later(lambda store: store.add_audit_row(NOTE)).done
    for operation in accepted:
        await within(operation)
    await within(unrefusable)
    assert len(site.store.audit_rows(9)) == 3
    site.close()


async def test_results_and_keys_of_many_boards_do_not_let_requests_be_refused(tmp_path: Path):
    site = Site(tmp_path / "server.db", Limits(store_operations=2))
    with site.locked():
        boards = [site.queue.run(lambda store: store.flush()) for _ in range(100)]
        request = site.insert()
        assert not request.done, "it waits behind them"
    for board in boards:
        await within(board)
    assert list(await within(request)) == [1]
    site.close()


async def test_bytes_that_wait_are_limited(tmp_path: Path):
    site = Site(tmp_path / "server.db", Limits(store_bytes=100))
    with site.locked():
        queue = site.queue
        for _ in range(2):  # the first is in the thread
            assert not queue.run(
                lambda store: store.add_audit_row(NOTE), size=60, refusable=True
            ).done
        assert (
            queue.run(lambda store: store.add_audit_row(NOTE), size=60, refusable=True).error
            is not None
        )
    assert queue.drain()
    site.close()


async def test_lock_that_lasts_too_long_fails_requests_and_nothing_else(tmp_path: Path):
    site = Site(tmp_path / "server.db", Limits(store_lock_seconds=0.1))
    with site.locked():
        job = site.insert()
        row = site.queue.run(lambda store: store.add_audit_row(NOTE))
        with pytest.raises(ServerError, match="its store is locked by another program"):
            await within(job)
        await asyncio.sleep(0.1)
        assert not row.done
        assert "locked by another program" in site.store.write_error
    await within(row)
    assert site.store.write_error == ""
    assert site.store.audit_rows(9) == [NOTE]
    site.close()


async def test_failure_reaches_who_waits_and_nobody_else(site: Site):
    def fail(store: Store) -> None:
        store._connection.exec_driver_sql("SELECT * FROM nowhere")

    for durable in (False, True):
        failed = site.queue.run(fail, durable=durable)
        after = site.queue.run(lambda store: store.add_audit_row(NOTE), durable=durable)
        with pytest.raises(ServerError, match="no such table: nowhere"):
            await within(failed)
        await within(after)


async def test_failing_callback_does_not_stop_the_queue(site: Site, caplog):
    done: list[Any] = []
    with site.locked():
        operation = site.insert()
        operation.when_done(lambda _: 1 // 0)
        operation.when_done(done.append)
        last = site.insert()
    await within(last)
    assert done == [operation]
    assert "ZeroDivisionError" in caplog.text


async def test_repeated_attempts_use_each_number_once(site: Site):
    with site.locked():
        operations = [site.insert() for _ in range(3)]
        await asyncio.sleep(0.1)
    assert [number for each in operations for number in await within(each)] == [1, 2, 3]


def write_rows(site: Site, count: int) -> None:
    for _ in range(count):
        site.queue.run(lambda store: store.add_audit_row(NOTE))


async def test_thread_moves_the_log_into_the_file(tmp_path: Path):
    site = Site(tmp_path / "server.db", Limits(store_checkpoint_rows=50))
    write_rows(site, 300)
    checkpoint = site.queue._checkpoint
    assert checkpoint is not None
    await within(asyncio.wrap_future(checkpoint))
    without_log = tmp_path / "without-log.db"
    without_log.write_bytes(site.path.read_bytes())
    with contextlib.closing(sqlite3.connect(without_log)) as file:
        assert file.execute("SELECT count(*) FROM audit").fetchone()[0] > 0
    site.close()


async def test_long_log_is_moved_while_nobody_writes(tmp_path: Path):
    site = Site(tmp_path / "server.db", Limits(store_checkpoint_rows=50, store_log_bytes=0))
    write_rows(site, 50)
    checkpoint = site.queue._checkpoint
    assert checkpoint is not None
    assert await within(asyncio.wrap_future(checkpoint)) > 0
    write_rows(site, 50)
    assert site.queue.waiting_seconds, "the checkpoint has its turn"
    assert site.queue.drain()
    write_rows(site, 1)
    assert site.store.database.checkpoint() < 50_000, "the log begins again"
    site.close()


async def test_close_writes_results_and_refuses_requests(tmp_path: Path):
    site = Site(tmp_path / "server.db")
    (job,) = await site.insert()
    site.lock()
    blocked = site.queue.run(lambda store: store.add_audit_row(NOTE))
    request = site.insert()
    site.store.end_job(job, "ok")
    timer = threading.Timer(0.1, site.unlock)
    timer.start()
    site.queue.close()
    timer.join()
    assert blocked.error is None
    late = site.queue.run(lambda store: store.flush())
    for operation in (request, late):
        with pytest.raises(ServerError, match="the server stops"):
            operation.result()
    again = Store(site.path)
    rows = [again.job(1), again.job(2)]
    assert [row and row.status for row in rows] == ["ok", None]
    assert rows[1] is None
    again.close()


async def test_close_gives_up_on_a_database_that_does_not_answer(tmp_path: Path, caplog):
    site = Site(tmp_path / "server.db")
    site.lock()
    site.queue.run(lambda store: store.add_audit_row(NOTE))
    site.queue.run(lambda store: store.add_audit_row(NOTE))
    site.queue.close(0.1)
    assert "the store did not answer" in caplog.text or "is locked" in caplog.text
    site.unlock()


def test_queue_without_a_loop_keeps_what_must_be_done_by_a_thread():
    queue = StoreQueue(Store(None))
    queue.run(lambda store: store.add_audit_row(NOTE), durable=True)
    assert queue.store.audit_rows(9) == []
    assert queue.drain()
    assert queue.store.audit_rows(9) == [NOTE]


# PostgreSQL ends a connection


class InterruptedStore(SharedStore):
    """A store whose connection PostgreSQL ends in the middle of the next transactions."""

    interruptions = 0

    def _require_membership(self) -> None:
        super()._require_membership()
        self.interrupt()

    def interrupt(self) -> None:
        if self.interruptions:
            self.interruptions -= 1
            terminate_backend(self.database.driver)
            self.database.driver.execute("SELECT 1").fetchone()  # notices it


def terminate_backend(driver: Any) -> None:
    with psycopg.connect(driver.info.dsn, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [driver.info.backend_pid])
    while not select.select([driver.fileno()], [], [], 5)[0]:
        pass


@pytest.fixture
async def interrupted(postgres: Postgres) -> AsyncIterator[StoreQueue[InterruptedStore]]:
    store = InterruptedStore(postgres.new(), "A")
    store.register_server("http://a")
    store.enrol_boards([new_board_row("id1", "lab-1", bytes(32))])
    queue = StoreQueue(store)
    yield queue
    queue.close()


async def test_cell_survives_that_postgresql_ends_its_transaction(
    interrupted: StoreQueue[InterruptedStore],
):
    interrupted.store.interruptions = 2
    (number,) = await within(interrupted.run(lambda store: store.insert_jobs(["id1"], "ann")))
    assert [row.id for row in await interrupted.run(lambda store: store.open_jobs())] == [number]
    assert interrupted.store.interruptions == 0
    assert interrupted.store.write_error == ""


@pytest.mark.parametrize("at_commit", [False, True], ids=["before a statement", "at the commit"])
async def test_transaction_survives_that_postgresql_stands_still(
    interrupted: StoreQueue[InterruptedStore], monkeypatch: pytest.MonkeyPatch, at_commit: bool
):
    driver = interrupted.store.database.driver
    # Of this connection only, and not before: a busy machine needs longer to create the tables.
    driver.execute("SET idle_in_transaction_session_timeout = '100ms'")
    driver.commit()
    stops: list[int] = []
    place: Any = psycopg.Connection if at_commit else board_store
    name = "commit" if at_commit else "_merge_labels"  # between two statements
    original = getattr(place, name)

    def stop(*args: Any) -> Any:
        if not stops:
            # In a pipeline it would be ACTIVE, and PostgreSQL would not end it by itself.
            assert driver.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
            stops.append(driver.info.backend_pid)
            time.sleep(0.3)
        return original(*args)

    monkeypatch.setattr(place, name, stop)
    labels = await within(interrupted.run(lambda store: store.set_labels(["id1"], {"site": "a"})))
    assert labels == {"id1": {"site": "a"}}
    assert [row.labels for row in await within(interrupted.run(lambda store: store.boards()))] == [
        {"site": "a"}
    ]
    assert stops != [interrupted.store.database.driver.info.backend_pid], "it was not ended"


async def test_first_cell_after_a_restart_of_postgresql_is_not_refused(
    interrupted: StoreQueue[InterruptedStore],
):
    terminate_backend(interrupted.store.database.driver)
    assert len(await within(interrupted.run(lambda store: store.insert_jobs(["id1"], "ann")))) == 1
    terminate_backend(interrupted.store.database.driver)
    assert len(await within(interrupted.run(lambda store: store.open_jobs()))) == 1


async def test_commit_whose_outcome_is_unknown_is_not_repeated(
    interrupted: StoreQueue[InterruptedStore], monkeypatch: pytest.MonkeyPatch
):
    driver = interrupted.store.database.driver
    note = driver.before_commit

    def end_at_commit() -> None:
        note()
        terminate_backend(driver)

    monkeypatch.setattr(driver, "before_commit", end_at_commit)
    with pytest.raises(ServerError, match="its store cannot be written"):
        await within(interrupted.run(lambda store: store.insert_jobs(["id1"], "ann")))


async def test_cell_whose_outcome_is_unknown_is_not_repeated(
    interrupted: StoreQueue[InterruptedStore], monkeypatch: pytest.MonkeyPatch
):
    (first,) = await within(interrupted.run(lambda store: store.insert_jobs(["id1"], "ann")))
    check, ended = postgres_database._check_alive, []

    def end_after_check(driver: Any) -> None:
        check(driver)
        ended.append(driver)
        terminate_backend(driver)

    monkeypatch.setattr(postgres_database, "_check_alive", end_after_check)
    with pytest.raises(ServerError, match="its store cannot be written"):
        await within(interrupted.run(lambda store: store.insert_jobs(["id1"], "ann")))
    monkeypatch.undo()
    assert len(ended) == 1
    rows = await within(interrupted.run(lambda store: store.open_jobs()))
    assert rows[0].id == first


async def test_operation_that_always_ends_its_connection_is_refused(
    interrupted: StoreQueue[InterruptedStore],
):
    interrupted.store.interruptions = 99
    with pytest.raises(ServerError, match="ended the connection several times"):
        await within(interrupted.run(lambda store: store.insert_jobs(["id1"], "ann")))
    assert interrupted.store.interruptions == 95
    interrupted.store.interruptions = 0
    assert await within(interrupted.run(lambda store: store.open_jobs())) == []


def test_store_that_cannot_be_written_is_logged_once(tmp_path: Path, caplog):
    caplog.set_level("INFO")
    store = Store(tmp_path / "server.db")
    store.enrol_boards([new_board_row("id1", "lab-1", bytes(32))])
    store.database.driver.execute("PRAGMA query_only=ON")
    for _ in range(40):
        with pytest.raises(ServerError, match="its store cannot be written"):
            store.insert_jobs(["id1"], "ann")
    assert caplog.text.count("the store cannot be written: attempt to write a readonly") == 1
    store.database.driver.execute("PRAGMA query_only=OFF")
    for _ in range(3):
        store.insert_jobs(["id1"], "ann")
    assert caplog.text.count("the store can be written again") == 1
    store.close()
