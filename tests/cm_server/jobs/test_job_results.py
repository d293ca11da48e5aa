"""Endings: told, written down, amended."""

from __future__ import annotations

import pytest

from cloudmanager.protocol import wire
from cm_server.jobs import job_results as module
from cm_server.jobs.scheduler import CONFIRM_SECONDS
from tests.cm_server.dispatching import GRACE, Rig, last


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_an_error_is_written_as_the_last_line_of_its_traceback(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.end(job, "error", rest=b"Traceback (most recent call last):\r\nValueError: no\xff\r\n")
    assert rig.written(job) == ("error", "ValueError: no\ufffd")


def test_an_error_without_a_traceback_is_written_too(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.end(job, "interrupted")
    assert rig.written(job) == ("interrupted", "")


def test_endings_share_a_commit_and_do_not_wait_long_for_it(rig: Rig, monkeypatch):
    for name in ("lab-1", "lab-2", "lab-3"):
        rig.connect(name)
    flushed: list[float] = []
    monkeypatch.setattr(rig.store, "flush", lambda: flushed.append(rig.clock.now))
    first, second, third = rig.run("lab-1", "lab-2", "lab-3")
    rig.end(first)
    rig.end(second)
    rig.clock.turn(1)
    assert flushed == [pytest.approx(module.FLUSH_SECONDS)]
    rig.end(third)  # nobody waits for the server now
    assert flushed[1:] == [1.0]


def test_a_timeout_that_is_not_confirmed_is_told_within_a_second_and_amended(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=2)
    rig.clock.turn(2 + CONFIRM_SECONDS)
    status, why = rig.caller.ending(job)
    assert status == "timeout"
    assert "has not confirmed it" in why
    assert rig.board().state == "busy"
    (next_job,) = rig.run()
    assert next_job.state == "queued"
    rig.say(job, wire.OUTPUT, b"still here")
    rig.end(job, "error", rest=b"ValueError: late truth")
    assert rig.written(job) == ("error", "ValueError: late truth")
    assert rig.caller.ops(job) == [wire.ENDED]
    assert next_job.state == "running"


def test_an_unconfirmed_timeout_survives_a_break_and_is_amended(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(2)
    rig.drop()
    rig.connect(last=last(job, "timeout", "KeyboardInterrupt: "))
    assert rig.written(job) == ("timeout", "KeyboardInterrupt:")
    assert rig.caller.ops(job) == [wire.ENDED]


def test_a_lost_job_is_amended_when_the_board_tells_later(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.clock.turn(GRACE)
    rig.connect(last=last(job, "ok"))
    assert rig.written(job) == ("ok", "")
    assert rig.caller.ending(job)[0] == "lost"


def test_a_settled_truth_is_not_written_again(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.end(job, "timeout", rest=b"KeyboardInterrupt: ")
    before = rig.store.job(job.id)
    rig.drop()
    rig.connect(last=last(job, "timeout", "Traceback\nKeyboardInterrupt: "))
    assert rig.store.job(job.id) == before


def test_a_board_cannot_change_an_outcome_that_is_known(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.end(job, "error", rest=b"ValueError: true")
    rig.drop()
    rig.connect(last=last(job, "ok"))
    assert rig.written(job) == ("error", "ValueError: true")


def test_a_board_cannot_change_another_boards_outcome(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.clock.turn(GRACE)
    rig.connect("lab-2", last=last(job, "ok"))
    assert rig.written(job)[0] == "lost"


def test_a_job_that_ended_is_still_known_without_its_code(rig: Rig):
    rig.connect()
    (job,) = rig.run(code=b"secret = 1")
    rig.end(job, output=b"hi\r\n", rest=b"42")
    known = rig.dispatch.recent_jobs.get(job.id)
    assert known is not None
    told = known.describe_with_output()
    assert (told["state"], told["status"], told["stdout"], told["value"]) == (
        "ended",
        "ok",
        "hi\n",
        "42",
    )
    assert b"secret" not in repr(known.cell).encode()


def test_what_is_known_is_amended_too(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.clock.turn(GRACE)
    rig.connect(last=last(job, "error", "Traceback\nValueError: true"))
    known = rig.dispatch.recent_jobs.get(job.id)
    assert known is not None
    assert (known.status, known.error) == ("error", "Traceback\nValueError: true")
    assert rig.written(job) == ("error", "ValueError: true")
