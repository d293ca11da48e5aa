"""When the wall clock is confirmed: after steps, after starts with a wrong time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cm_server.clock import (
    CONFIRM_SECONDS,
    HOUR,
    LONGEST_GAP,
    TOLERANCE,
    CheckedClock,
)
from cm_server.store.rows import AuditRow
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue
from cm_server.times import DAY, EARLIEST

MINUTE = 60.0
NOW = 1_790_000_000.0  # seconds since 1970
NOTE = AuditRow(NOW, "ann", "here", "label", "lab-*", "", 3, None, None, "done")


class Machine:
    """A machine with a wall clock that can be set and a steady clock."""

    def __init__(self, store: Store | None = None, wall: float = NOW) -> None:
        self.store = store or Store(None)
        self.wall, self.steady = wall, 1000.0
        self.start()

    def start(self) -> None:
        queue = StoreQueue(self.store)
        self.clock = CheckedClock(queue, wall=lambda: self.wall, steady=lambda: self.steady)

    def run(self, seconds: float, rate: float = 1.0) -> bool:
        """Advance both clocks with a check each minute; return the last check's result."""
        for _ in range(int(seconds / MINUTE)):
            self.wall += MINUTE * rate
            self.steady += MINUTE
            self.clock.check()
        return self.clock.check()


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_clock_that_runs_evenly_is_confirmed(machine: Machine):
    assert machine.run(3 * DAY)
    assert machine.clock.problem == ""


def test_clock_that_ntp_corrects_slightly_is_confirmed(machine: Machine):
    machine.wall += 20 * MINUTE
    assert machine.run(MINUTE)
    machine.wall -= 40 * MINUTE
    assert machine.run(MINUTE)


@pytest.mark.parametrize("step", [450 * DAY, 2 * HOUR, -2 * HOUR, -450 * DAY, 1e12, -NOW])
def test_clock_that_was_set_is_unconfirmed_for_a_day(machine: Machine, step: float):
    machine.run(HOUR)
    machine.wall += step
    assert not machine.clock.check()
    assert "may be wrong" in machine.clock.problem
    assert not machine.run(CONFIRM_SECONDS - 2 * MINUTE)
    confirmed = machine.run(3 * MINUTE)
    assert confirmed is (machine.wall > EARLIEST)  # 1970 is never confirmed


def test_clock_that_is_set_back_to_the_right_time_is_confirmed_immediately(machine: Machine):
    machine.run(HOUR)
    machine.wall += 450 * DAY
    assert not machine.run(5 * HOUR)
    machine.wall -= 450 * DAY
    assert machine.clock.check()
    assert machine.clock.problem == ""


def test_each_step_restarts_the_day_of_confirmation(machine: Machine):
    for _ in range(4):
        machine.wall += 10 * DAY
        assert not machine.run(CONFIRM_SECONDS * 0.9)
    assert machine.run(CONFIRM_SECONDS)


def test_clock_that_runs_too_fast_is_unconfirmed(machine: Machine):
    assert not machine.run(3 * DAY, rate=1.5)


def test_clock_with_normal_drift_is_confirmed(machine: Machine):
    assert machine.run(20 * DAY, rate=1.001)  # 86 seconds a day


def test_clock_is_confirmed_after_a_night_of_suspension(machine: Machine):
    machine.wall, machine.steady = machine.wall + 9 * HOUR, machine.steady + 9 * HOUR
    assert machine.clock.check()


def test_jump_of_both_clocks_is_not_confirmed(machine: Machine):
    machine.wall, machine.steady = machine.wall + 450 * DAY, machine.steady + 450 * DAY
    assert not machine.clock.check()
    machine.wall, machine.steady = machine.wall + DAY, machine.steady + DAY
    assert not machine.clock.check()  # one check after a day does not count as a day of checks


def test_unconfirmed_clock_is_logged_and_audited_once(machine: Machine, caplog):
    machine.wall += 450 * DAY
    machine.run(HOUR / 2)
    for step in (9 * DAY, -9 * DAY):  # repeated steps do not fill the audit log
        machine.wall += step
        machine.run(MINUTE)
    (row,) = machine.store.audit_rows(9)
    assert (row.verb, row.outcome) == ("clock", "done")
    assert "450 days ahead of the time that the server expects" in row.detail
    assert len(caplog.records) == 3


def test_clock_is_compared_with_the_time_of_the_last_run(tmp_path: Path):
    machine = Machine(Store(tmp_path / "server.db"))
    machine.run(2 * HOUR)
    machine.clock.save()
    for difference, confirmed in (
        (LONGEST_GAP - 1, True),
        (LONGEST_GAP + 1, False),
        (-TOLERANCE + 1, True),
        (-TOLERANCE - 1, False),
    ):
        later = Machine(machine.store, machine.wall + difference)
        assert later.clock.check() is confirmed, difference
    machine.store.close()


@pytest.mark.parametrize("wall", [0.0, 946684800.0, NOW + 450 * DAY], ids=["1970", "2000", "later"])
def test_clock_is_compared_with_the_newest_rows_at_the_first_start(wall: float):
    store = Store(None)
    store.add_audit_row(NOTE)
    machine = Machine(store, wall)
    assert not machine.clock.check()
    machine.wall = NOW + HOUR  # NTP, a moment later
    assert machine.clock.check()


def test_new_server_confirms_the_first_plausible_time():
    machine = Machine(wall=5.0)
    assert not machine.run(HOUR)
    assert "before this program was written" in machine.clock.problem
    machine.clock.save()
    machine.start()
    assert not machine.clock.check()
    machine.wall = NOW
    assert machine.clock.check()
    machine.wall += 450 * DAY
    assert not machine.clock.check()


def test_repeated_starts_do_not_confirm_a_wrong_clock():
    machine = Machine()
    machine.store.add_audit_row(NOTE)
    for _ in range(5):
        machine.wall += 450 * DAY
        machine.start()
        assert not machine.run(HOUR)
        machine.start()  # its own rows have the wrong time now
        assert not machine.run(HOUR)
        machine.wall -= 450 * DAY


def test_short_runs_add_up_to_a_day_of_confirmation():
    """A machine that was off for months runs for eight hours a day."""
    machine = Machine()
    machine.run(HOUR)
    machine.clock.save()
    machine.wall += 60 * DAY
    checks = []
    for _ in range(4):
        machine.start()
        checks.append(machine.run(8 * HOUR))
        machine.clock.save()
        machine.wall += 16 * HOUR
        machine.steady = 5.0  # it starts with the machine
    assert checks == [False, False, True, True]


def test_latest_time_does_not_go_back_with_the_clock(machine: Machine):
    machine.run(2 * HOUR)
    right = machine.wall
    machine.wall = right - DAY
    assert machine.clock.latest() == pytest.approx(right)
    machine.run(HOUR)
    assert machine.clock.latest() == pytest.approx(right + HOUR)
    machine.wall = 0.0
    machine.clock.save()
    machine.start()
    assert machine.clock.latest() == pytest.approx(right + HOUR)


def test_step_just_before_the_stop_is_not_stored_as_confirmed(machine: Machine):
    machine.run(HOUR)
    right, machine.wall = machine.wall, 0.0  # there is no check before the server stops
    machine.clock.save()
    machine.start()
    assert machine.clock.latest() == pytest.approx(right)


def test_clock_that_was_ahead_does_not_advance_the_latest_time(machine: Machine):
    machine.run(HOUR)
    machine.wall += 450 * DAY
    machine.run(HOUR)
    assert machine.clock.latest() == machine.wall
    machine.wall -= 450 * DAY
    assert machine.clock.latest() == pytest.approx(machine.wall)


def test_real_clocks_of_this_machine_agree():
    clock = CheckedClock(StoreQueue(Store(None)))
    assert clock.check()
    assert clock.latest() == pytest.approx(time.time(), abs=1)


def test_full_disk_does_not_stop_checks(machine: Machine):
    machine.store._connection.exec_driver_sql("PRAGMA query_only=ON")
    machine.wall += 450 * DAY
    assert not machine.clock.check()
    machine.clock.save()
