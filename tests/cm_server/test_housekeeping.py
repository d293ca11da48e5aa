"""Old jobs and rows of the audit log go, in small bites; the rest stays."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server import limits
from cm_server.housekeeping import (
    BITE_PAUSE,
    DAY,
    FIRST_AFTER,
    PROBE_EVERY,
    ROUND_EVERY,
    Housekeeper,
)
from cm_server.store.rows import AuditRow
from cm_server.store.store import Store

from .dispatching import Clock

NOTE = AuditRow(0.0, "ann", "here", "label", "lab-*", "", 3, None, None, "done")


class Home:
    """A store with jobs, and a housekeeper whose clock is turned by hand."""

    def __init__(self, path: Path | None = None) -> None:
        self.store = Store(path)
        self.clock = Clock()
        self.day = 0.0
        self.keeper = Housekeeper(
            self.store,
            self.clock.later,
            keep_jobs=90,
            keep_audit=400,
            clock=lambda: time.time() + self.day * DAY,
        )

    def jobs(self) -> list[int]:
        rows = self.store.database.driver.execute("SELECT id FROM jobs ORDER BY id")
        return [number for (number,) in rows]

    def audited(self) -> int:
        return len(self.store.audit(10_000))


@pytest.fixture
def home(monkeypatch) -> Home:
    monkeypatch.setattr(limits, "PRUNE_ROWS", 10)
    return Home()


def end(home: Home, numbers: range) -> None:
    for number in numbers:
        home.store.end(number, "ok")
    home.store.flush()


def test_jobs_go_when_their_time_has_come_but_for_open_ones_and_the_newest(home: Home):
    numbers = home.store.begin(["id1"] * 35, "ann")
    end(home, range(1, 5))
    end(home, range(6, 36))
    home.clock.turn(FIRST_AFTER + ROUND_EVERY)
    assert home.jobs() == list(numbers)
    home.day = 91
    home.clock.turn(ROUND_EVERY + 10 * BITE_PAUSE)
    assert home.jobs() == [5, 35]
    assert home.keeper.pruned["jobs"] == 33
    home.store.close()


def test_numbers_go_on_behind_those_that_went(tmp_path: Path):
    home = Home(tmp_path / "server.db")
    end(home, home.store.begin(["id1"] * 3, "ann"))
    home.day = 91
    home.clock.turn(FIRST_AFTER)
    home.store.close()
    store = Store(tmp_path / "server.db")
    assert list(store.begin(["id1"], "ann")) == [4]
    store.close()


def test_one_bite_is_a_few_rows_and_others_come_between(home: Home):
    end(home, home.store.begin(["id1"] * 100, "ann"))
    home.day = 91
    home.clock.turn(FIRST_AFTER)
    assert home.jobs()[0] == 11
    home.clock.turn(BITE_PAUSE)
    assert home.jobs()[0] == 21


def test_audit_rows_go_later_the_oldest_first(home: Home):
    now = time.time()
    for days in [*range(450, 425, -1), 399, 5, 450, 1]:  # a clock that was set back stays in order
        home.store.note(NOTE._replace(at=now - days * DAY))
    home.clock.turn(FIRST_AFTER + 10 * BITE_PAUSE)
    assert [round((now - row.at) / DAY) for row in home.store.audit(99)] == [399, 5, 450, 1]
    assert home.keeper.pruned == {"jobs": 0, "audit": 25}


def test_a_store_that_can_be_written_again_says_so_within_a_minute(home: Home):
    db = home.store._db
    db.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(ServerError):
        home.store.begin(["id1"], "ann")
    home.clock.turn(PROBE_EVERY)
    assert home.store.failure
    db.exec_driver_sql("PRAGMA query_only=OFF")
    home.clock.turn(PROBE_EVERY)
    assert not home.store.failure


def test_a_disk_that_is_full_is_no_reason_to_stop_nor_to_try_without_end(home: Home, caplog):
    home.store.note(NOTE)
    end(home, home.store.begin(["id1"] * 30, "ann"))
    home.day = 91
    db = home.store._db
    db.exec_driver_sql("PRAGMA query_only=ON")
    home.clock.turn(FIRST_AFTER + 100 * BITE_PAUSE)
    assert len(home.jobs()) == 30
    assert len(caplog.records) < 10
    db.exec_driver_sql("PRAGMA query_only=OFF")
    home.clock.turn(ROUND_EVERY)
    assert home.jobs() == [30]


def test_it_stops(home: Home):
    home.keeper.stop()
    assert not [timer for timer in home.clock.timers if not timer.cancelled]


def test_a_bite_keeps_nobody_waiting(tmp_path: Path):
    """Measured: 2 ms for 500 rows; a cell on one board waits no longer than for another cell."""
    home = Home(tmp_path / "server.db")
    end(home, home.store.begin(["id1"] * 2 * limits.PRUNE_ROWS, "ann"))
    begun = time.perf_counter()
    home.store.prune_jobs(time.time() + DAY, 0)
    assert time.perf_counter() - begun < 0.1
    assert len(home.jobs()) == limits.PRUNE_ROWS
    home.store.close()
