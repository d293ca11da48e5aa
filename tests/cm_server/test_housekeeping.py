"""Old jobs and audit rows are deleted in small batches, and only by a confirmed clock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.errors import ServerError
from cloudmanager.server_options import ServerOptions
from cm_server.clock import CheckedClock
from cm_server.housekeeping import (
    BATCH_PAUSE_SECONDS,
    FIRST_ROUND_SECONDS,
    PROBE_SECONDS,
    ROUND_SECONDS,
    Housekeeper,
)
from cm_server.limits import Limits
from cm_server.store.rows import AuditRow
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue
from cm_server.times import DAY

from .dispatching import Clock

NOTE = AuditRow(0.0, "ann", "here", "label", "lab-*", "", 3, None, None, "done")


class Home:
    """A store and a housekeeper with clocks that the test advances."""

    def __init__(self, path: Path | None = None, store: Store | None = None, **limits: int) -> None:
        self.limits = Limits(**limits)
        self.store = store or Store(path)
        self.clock = Clock()
        self.day = 0.0  # days that have really passed
        self.wrong = 0.0  # days by which the wall clock is wrong
        self.start()

    def start(self) -> None:
        queue = StoreQueue(self.store)
        self.keeper = Housekeeper(
            queue,
            self.clock.later,
            options=ServerOptions(keep_jobs=90, keep_audit=400),
            clock=CheckedClock(
                queue,
                wall=lambda: time.time() + (self.day + self.wrong) * DAY,
                steady=lambda: time.monotonic() + self.day * DAY,
            ),
            limits=self.limits,
        )

    def pass_days(self, days: int) -> None:
        """Advance both clocks by days, with time for a round on each day."""
        for _ in range(days):
            self.day += 1
            self.clock.turn(ROUND_SECONDS)

    def notes(self, verb: str = "prune") -> list[Any]:
        return [row for row in self.store.audit_rows(10_000) if row.verb == verb]

    def jobs(self) -> list[int]:
        rows = self.store.database.driver.execute("SELECT id FROM jobs ORDER BY id")
        return [number for (number,) in rows]

    def audited(self) -> int:
        return len(self.store.audit_rows(10_000))


@pytest.fixture
def home() -> Home:
    return Home(prune_rows=10)


def end(home: Home, numbers: range) -> None:
    for number in numbers:
        home.store.end_job(number, "ok")
    home.store.flush()


def test_old_jobs_are_deleted_except_open_ones_and_the_newest(home: Home):
    numbers = home.store.insert_jobs(["id1"] * 35, "ann")
    end(home, range(1, 5))
    end(home, range(6, 36))
    home.clock.turn(FIRST_ROUND_SECONDS)
    home.pass_days(89)
    assert home.jobs() == list(numbers)
    home.pass_days(2)
    assert home.jobs() == [5, 35]
    assert home.keeper.pruned["jobs"] == 33
    (row,) = home.notes()
    assert row.target == "jobs"
    assert row.detail.startswith("33 rows of 20")
    home.store.close()


def test_job_numbers_continue_after_pruning(tmp_path: Path):
    home = Home(tmp_path / "server.db")
    end(home, home.store.insert_jobs(["id1"] * 3, "ann"))
    home.pass_days(92)
    home.store.close()
    store = Store(tmp_path / "server.db")
    assert list(store.insert_jobs(["id1"], "ann")) == [4]
    store.close()


def test_batch_is_small_and_followed_by_a_pause(home: Home):
    end(home, home.store.insert_jobs(["id1"] * 100, "ann"))
    home.store.database.driver.execute("UPDATE jobs SET created = created - 91 * 86400")
    home.clock.turn(FIRST_ROUND_SECONDS)
    assert home.jobs()[0] == 11
    home.clock.turn(BATCH_PAUSE_SECONDS)
    assert home.jobs()[0] == 21


def test_old_audit_rows_are_deleted_oldest_first(home: Home):
    now = time.time()
    days_ago = [
        *[450] * 12,
        *range(449, 436, -1),
        399,
        5,
        450,
        1,
    ]  # one row by a clock that was slow
    for days in days_ago:
        home.store.add_audit_row(NOTE._replace(at=now - days * DAY))
    home.clock.turn(FIRST_ROUND_SECONDS + 10 * BATCH_PAUSE_SECONDS)
    assert home.keeper.pruned == {"jobs": 0, "audit": 12 + 6}  # the oldest week
    home.pass_days(1)
    assert home.keeper.pruned == {"jobs": 0, "audit": 25}
    left = [round((now - row.at) / DAY) for row in home.store.audit_rows(99) if row.verb == "label"]
    assert left == [399, 5, 450, 1]
    first, second = home.notes()
    assert [row.target for row in (first, second)] == ["audit", "audit"]
    oldest = time.strftime("%Y-%m-%d", time.gmtime(now - 450 * DAY))
    newest = time.strftime("%Y-%m-%d", time.gmtime(now - 444 * DAY))
    assert first.detail.startswith(f"18 rows of {oldest} ")
    assert f" to {newest} " in first.detail


def old_rows(home: Home) -> None:
    """Add a year of audit rows and three months of jobs, none of them due."""
    now = time.time()
    for days in range(380, 0, -20):
        home.store.add_audit_row(NOTE._replace(at=now - days * DAY))
    end(home, home.store.insert_jobs(["id1"] * 9, "ann"))
    for number, days in enumerate(range(85, 0, -10), 1):
        home.store.database.driver.execute(
            "UPDATE jobs SET created = created - ? WHERE id = ?", (days * DAY, number)
        )
    home.store.database.driver.commit()


def everything(home: Home) -> tuple[list[int], int]:
    return home.jobs(), sum(
        row.verb in ("label", "submit") for row in home.store.audit_rows(10_000)
    )


@pytest.mark.parametrize("wrong", [450, 450 * 40, 10, -450, -100], ids=str)
def test_wrong_clock_deletes_nothing(home: Home, wrong: int):
    old_rows(home)
    whole = everything(home)
    home.clock.turn(FIRST_ROUND_SECONDS)
    home.wrong = wrong
    home.day += 2  # any time, without a day of regular checks
    home.clock.turn(3 * ROUND_SECONDS)
    assert everything(home) == whole
    assert "no old rows are deleted" in home.keeper.problem
    home.wrong = 0
    home.clock.turn(2 * ROUND_SECONDS)
    assert home.keeper.problem == ""
    assert everything(home) == whole
    assert home.notes("clock")


def test_wrong_clock_at_the_start_deletes_nothing(home: Home):
    old_rows(home)
    whole = everything(home)
    for _ in range(3):  # the second start finds rows of the wrong time
        home.keeper.stop()
        home.wrong = 450
        home.start()
        home.store.add_audit_row(NOTE._replace(at=time.time() + 450 * DAY))
        home.clock.turn(FIRST_ROUND_SECONDS + 2 * ROUND_SECONDS)
    jobs, rows = everything(home)
    assert (jobs, rows - 3) == whole


def test_clock_that_stays_wrong_deletes_a_week_of_rows_a_day(home: Home):
    old_rows(home)
    home.clock.turn(FIRST_ROUND_SECONDS)
    home.wrong = 450
    counts = []
    for _ in range(4):
        for _ in range(24 * 60):
            home.day += 1 / 24 / 60
            home.clock.turn(PROBE_SECONDS)
        counts.append(len([row for row in home.store.audit_rows(999) if row.verb == "label"]))
    assert counts[0] == 19  # the day in which the clock is unconfirmed
    assert counts[1:] == [18, 17, 16]
    assert [row.target for row in home.notes()].count("audit") == 3


def test_restarts_do_not_cause_more_rounds_a_day(home: Home):
    now = time.time()
    for days in range(450, 410, -1):
        home.store.add_audit_row(NOTE._replace(at=now - days * DAY))
    for _ in range(5):
        home.clock.turn(FIRST_ROUND_SECONDS + 10 * BATCH_PAUSE_SECONDS)
        home.keeper.stop()
        home.start()
    assert len(home.notes()) == 1
    assert home.notes()[0].detail.startswith("7 rows")


def test_interrupted_round_is_audited_by_the_next_server(home: Home):
    now = time.time()
    for _ in range(25):
        home.store.add_audit_row(NOTE._replace(at=now - 450 * DAY))
    home.clock.turn(FIRST_ROUND_SECONDS)
    assert home.audited() == 15
    home.keeper.stop()
    home.start()
    home.clock.turn(FIRST_ROUND_SECONDS)
    (row,) = home.notes()
    assert row.detail.startswith("10 rows")


def test_job_of_a_slow_clock_is_kept_as_long_as_its_neighbours(home: Home):
    end(home, home.store.insert_jobs(["id1"] * 5, "ann"))
    home.store.database.driver.execute(
        "UPDATE jobs SET created = created - 100 * 86400 WHERE id = 3"
    )
    home.clock.turn(FIRST_ROUND_SECONDS)
    assert home.jobs() == [1, 2, 3, 4, 5]


def test_jobs_of_1970_are_kept_as_long_as_the_next_ones(home: Home):
    end(home, home.store.insert_jobs(["id1"] * 5, "ann"))
    home.store.database.driver.execute("UPDATE jobs SET created = id WHERE id < 3")
    home.store.database.driver.commit()
    home.clock.turn(FIRST_ROUND_SECONDS)
    home.pass_days(89)
    assert home.jobs() == [1, 2, 3, 4, 5]
    home.pass_days(2)
    assert home.jobs() == [5]


def test_audit_rows_of_1970_are_kept_as_long_as_the_next_ones(home: Home):
    now = time.time()
    for verb, at in (("a", 5), ("b", now - 450 * DAY), ("c", 6), ("d", now - 20 * DAY), ("e", 7)):
        home.store.add_audit_row(NOTE._replace(at=at, verb=verb))
    home.clock.turn(FIRST_ROUND_SECONDS + ROUND_SECONDS)
    home.pass_days(3)
    assert [row.verb for row in home.store.audit_rows(99)] == ["c", "d", "e", "prune"]
    assert home.notes()[0].detail.startswith("2 rows")


def test_database_with_another_time_deletes_nothing(home: Home, caplog):
    home.store.add_audit_row(NOTE._replace(at=time.time() - 500 * DAY))
    old_rows(home)

    class Other(Store):
        def database_time(self) -> float:
            return time.time() - 2 * DAY

    home.store.__class__ = Other
    whole = everything(home)
    home.clock.turn(FIRST_ROUND_SECONDS + 3 * ROUND_SECONDS)
    assert everything(home) == whole
    assert "the database's differ" in home.keeper.problem
    assert len(caplog.records) == 1


def test_write_error_is_cleared_within_a_minute_of_recovery(home: Home):
    db = home.store._connection
    db.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(ServerError):
        home.store.insert_jobs(["id1"], "ann")
    home.clock.turn(PROBE_SECONDS)
    assert home.store.write_error
    db.exec_driver_sql("PRAGMA query_only=OFF")
    home.clock.turn(PROBE_SECONDS)
    assert not home.store.write_error


def test_full_disk_delays_pruning(home: Home, caplog):
    home.store.add_audit_row(NOTE)
    end(home, home.store.insert_jobs(["id1"] * 30, "ann"))
    home.store.database.driver.execute("UPDATE jobs SET created = created - 91 * 86400")
    home.store.database.driver.commit()
    db = home.store._connection
    db.exec_driver_sql("PRAGMA query_only=ON")
    home.clock.turn(FIRST_ROUND_SECONDS + 100 * BATCH_PAUSE_SECONDS)
    assert len(home.jobs()) == 30
    assert len(caplog.records) < 10
    db.exec_driver_sql("PRAGMA query_only=OFF")
    home.clock.turn(ROUND_SECONDS + 10 * BATCH_PAUSE_SECONDS)
    assert home.jobs() == [30]


def test_stop_cancels_all_timers(home: Home):
    home.keeper.stop()
    assert not [timer for timer in home.clock.timers if not timer.cancelled]


def test_batch_takes_less_than_100_ms(tmp_path: Path):
    """Measured: 2 ms for 500 rows, which is less than a cell takes. On a busy machine, too."""
    home = Home(tmp_path / "server.db")
    end(home, home.store.insert_jobs(["id1"] * 2 * Limits.prune_rows, "ann"))
    begun = time.thread_time()
    home.store.prune_jobs(time.time() + DAY, 0, Limits.prune_rows)
    assert time.thread_time() - begun < 0.1
    assert len(home.jobs()) == Limits.prune_rows
    home.store.close()
