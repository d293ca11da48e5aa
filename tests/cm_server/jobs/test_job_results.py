"""Results of jobs are reported, stored and corrected."""

from __future__ import annotations

import itertools

import pytest

from cloudmanager.protocol import wire
from cm_server.jobs import job_results as module
from cm_server.jobs.model import Job
from cm_server.jobs.scheduler import CONFIRM_SECONDS
from cm_server.limits import Limits
from tests.cm_server.dispatching import GRACE, Rig, last


@pytest.fixture
def rig(limits: Limits) -> Rig:
    return Rig(limits=limits)


def test_last_line_of_a_traceback_is_stored(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.end(job, "error", rest=b"Traceback (most recent call last):\r\nValueError: no\xff\r\n")
    assert rig.written(job) == ("error", "ValueError: no\ufffd")


def test_error_without_a_traceback_is_stored(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.end(job, "interrupted")
    assert rig.written(job) == ("interrupted", "")


def test_results_share_a_commit_within_a_short_time(rig: Rig, monkeypatch):
    for name in ("lab-1", "lab-2", "lab-3"):
        rig.connect(name)
    flushed: list[float] = []
    monkeypatch.setattr(rig.store, "flush", lambda: flushed.append(rig.clock.now))
    first, second, third = rig.run("lab-1", "lab-2", "lab-3")
    rig.end(first)
    rig.end(second)
    rig.clock.turn(1)
    assert flushed == [pytest.approx(module.FLUSH_SECONDS)]
    rig.end(third)  # no job is open now
    assert flushed[1:] == [1.0]


def test_unconfirmed_timeout_is_reported_within_a_second_and_corrected_later(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=2)
    rig.clock.turn(2 + CONFIRM_SECONDS)
    status, why = rig.caller.ending(job)
    assert status == "timeout"
    assert "has not confirmed it" in why
    assert rig.board().state == "busy"
    (next_job,) = rig.run()
    assert next_job.state == "queued"
    rig.send(job, wire.OUTPUT, b"still here")
    rig.end(job, "error", rest=b"ValueError: late report")
    assert rig.written(job) == ("error", "ValueError: late report")
    assert rig.caller.ops(job) == [wire.ENDED]
    assert next_job.state == "running"


def test_unconfirmed_timeout_is_corrected_after_a_reconnect(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(2)
    rig.drop()
    rig.connect(last=last(job, "timeout", "KeyboardInterrupt: "))
    assert rig.written(job) == ("timeout", "KeyboardInterrupt:")
    assert rig.caller.ops(job) == [wire.ENDED]


def test_lost_job_is_corrected_by_a_late_report(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.clock.turn(GRACE)
    rig.connect(last=last(job, "ok"))
    assert rig.written(job) == ("ok", "")
    assert rig.caller.ending(job)[0] == "lost"


def test_confirmed_result_is_not_stored_again(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.end(job, "timeout", rest=b"KeyboardInterrupt: ")
    before = rig.store.job(job.id)
    rig.drop()
    rig.connect(last=last(job, "timeout", "Traceback\nKeyboardInterrupt: "))
    assert rig.store.job(job.id) == before


def test_board_cannot_change_a_certain_result(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.end(job, "error", rest=b"ValueError: true")
    rig.drop()
    rig.connect(last=last(job, "ok"))
    assert rig.written(job) == ("error", "ValueError: true")


def test_board_cannot_change_another_boards_result(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.clock.turn(GRACE)
    rig.connect("lab-2", last=last(job, "ok"))
    assert rig.written(job)[0] == "lost"


def test_ended_job_is_kept_without_its_code(rig: Rig):
    rig.connect()
    (job,) = rig.run(code=b"secret = 1")
    rig.end(job, output=b"hi\r\n", rest=b"42")
    known = rig.dispatch.recent_jobs.get(job.id)
    assert known is not None
    shown = known.describe_with_output()
    assert (shown["state"], shown["status"], shown["stdout"], shown["value"]) == (
        "ended",
        "ok",
        "hi\n",
        "42",
    )
    assert b"secret" not in repr(known.cell).encode()


def test_recent_job_is_corrected_too(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.clock.turn(GRACE)
    rig.connect(last=last(job, "error", "Traceback\nValueError: true"))
    known = rig.dispatch.recent_jobs.get(job.id)
    assert known is not None
    assert (known.status, known.error) == ("error", "Traceback\nValueError: true")
    assert rig.written(job) == ("error", "ValueError: true")


def test_only_visible_jobs_are_described_and_no_more_than_are_read(rig: Rig, monkeypatch):
    for name in ("lab-1", "lab-2"):
        rig.connect(name)
    jobs = [rig.run("lab-1", "lab-2") for _ in range(5)]
    described: list[int] = []
    describe = Job.describe

    def count(job: Job) -> dict[str, object]:
        described.append(job.id)
        return describe(job)

    monkeypatch.setattr(Job, "describe", count)
    visible = rig.board("lab-2").id
    newest = rig.dispatch.job_results.describe_jobs(lambda board_id: board_id == visible)
    assert [job["job"] for _, job in itertools.islice(newest, 2)] == [jobs[4][1].id, jobs[3][1].id]
    assert described == [jobs[4][1].id, jobs[3][1].id]
