"""A reserved board runs the jobs of whoever has reserved it; those of others wait."""

from __future__ import annotations

import time

import pytest

from cloudmanager.protocol import wire
from cm_server.jobs.dispatch import Submission
from cm_server.jobs.model import Cell, Job, Requester, Reservation
from tests.cm_server.dispatching import Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


def run_as(rig: Rig, caller: str, code: bytes = b"1") -> Job:
    requester = Requester(caller, rig.caller)
    (job,) = rig.submit(Submission([rig.board()], Cell(code), requester))
    return job


def reserve(rig: Rig, caller: str = "anna", seconds: float = 60.0) -> Reservation:
    reservation = Reservation(caller, time.time() + seconds)
    rig.dispatch.scheduler.set_reservation(rig.board(), reservation)
    return reservation


def test_jobs_of_others_wait_and_say_why_and_own_ones_start(rig: Rig):
    link = rig.connect()
    reservation = reserve(rig)
    other = run_as(rig, "bob")
    assert (other.state, link.sent) == ("queued", [])
    reserved = {"reserved_by": "anna", "reserved_until": reservation.until}
    assert other.describe_wait() == (1, {"callers": [], **reserved})
    own = run_as(rig, "anna", b"2")
    assert own.state == "running"
    rig.end(own)
    assert (other.state, link.ops(other)) == ("queued", [])


def test_waiting_jobs_start_when_the_board_is_released(rig: Rig):
    rig.connect()
    reserve(rig)
    other = run_as(rig, "bob")
    rig.dispatch.scheduler.set_reservation(rig.board(), None)
    assert other.state == "running"
    assert rig.caller.ops(other) == [wire.STARTED]


def test_running_job_goes_on_and_its_board_is_the_holders_then(rig: Rig):
    rig.connect()
    running, waiting = run_as(rig, "bob"), run_as(rig, "bob")
    reserve(rig)
    own = run_as(rig, "anna")
    assert [job.state for job in (running, waiting, own)] == ["running", "queued", "queued"]
    rig.end(running)
    assert [job.state for job in (waiting, own)] == ["queued", "running"]


def test_waiting_jobs_start_when_the_reservation_ends_by_itself(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    rig.connect()
    reservation = reserve(rig)
    other = run_as(rig, "bob")
    rig.clock.turn(59.0)
    assert other.state == "queued"
    rig.clock.turn(2.0)  # the wall clock is late: it is looked at once more
    assert other.state == "queued"
    monkeypatch.setattr(time, "time", lambda: reservation.until)
    rig.clock.turn(61.0)
    assert other.state == "running"
    assert rig.board().describe()["reserved"] is None


def test_reservation_that_was_made_longer_does_not_end_at_its_first_end(rig: Rig):
    rig.connect()
    reserve(rig, seconds=10.0)
    other = run_as(rig, "bob")
    reserve(rig, seconds=1000.0)
    rig.clock.turn(500.0)
    assert other.state == "queued"


def test_job_that_was_sent_before_is_sent_again(rig: Rig):
    link = rig.connect()
    other = run_as(rig, "bob")
    reserve(rig)
    rig.send(rig.run()[0], wire.PROGRAM, b"app.py", wire.BLOCKING)  # it had not read the job
    assert other.state == "queued"
    rig.send(other, wire.PROGRAM, b"", 0)
    assert other.state == "running"
    assert link.ops(other).count(wire.EXEC) == 2


def test_program_that_keeps_a_reserved_board_busy_is_not_reset_by_others(rig: Rig):
    link = rig.connect()
    rig.send(run_as(rig, "anna"), wire.PROGRAM, b"app.py", wire.BLOCKING)
    reserve(rig)
    (fresh,) = rig.run(fresh=True)
    assert (fresh.state, link.ops(fresh)) == ("queued", [])


def test_reservation_of_a_board_survives_a_restart_of_the_server(rig: Rig):
    until = time.time() + 60
    rig.store.reserve_boards(["id1"], "anna", until)
    restarted = Rig(rig.store)
    restarted.connect()
    other = run_as(restarted, "bob")
    assert other.state == "queued"
    assert restarted.board().describe()["reserved"] == {"caller": "anna", "until": until}
    assert any(59 < timer.at < 61 for timer in restarted.clock.timers)
