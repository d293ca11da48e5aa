"""The scheduler: which job runs next, and when a board's jobs are given up."""

from __future__ import annotations

import struct

import pytest

from cloudmanager.protocol import wire
from cm_server.jobs.scheduler import CONFIRM_SECONDS, RESET_SECONDS
from cm_server.limits import Limits
from tests.cm_server.dispatching import GRACE, Rig, last


@pytest.fixture
def rig(limits: Limits) -> Rig:
    return Rig(limits=limits)


def test_long_cell_is_split_to_fit_the_boards_buffer(rig: Rig):
    link = rig.connect(buffer_size=64)
    code = bytes(range(200))
    rig.run(code=code)
    pieces = [message.payload for message in link.sent]
    assert b"".join(pieces)[8:] == code
    assert all(wire.HEADER.size + len(piece) <= 64 for piece in pieces)
    assert [message.op for message in link.sent[1:]] == [wire.MORE] * (len(pieces) - 1)


@pytest.mark.parametrize(
    ("timeout", "timeout_ms"),
    [(None, 0), (2.5, 2500), (0.0001, 1), (10.0**9, 0x3FFFFFFF)],
)
def test_timeout_is_sent_in_milliseconds(rig: Rig, timeout, timeout_ms):
    link = rig.connect()
    rig.run(timeout=timeout)
    assert struct.unpack_from(">I", link.sent[0].payload) == (timeout_ms,)


def test_busy_board_queues_jobs_in_order(rig: Rig):
    link = rig.connect()
    first, second, third = rig.run()[0], rig.run(code=b"2")[0], rig.run(code=b"3")[0]
    assert (second.state, third.state) == ("queued", "queued")
    assert second.describe()["elapsed"] is None
    rig.end(first)
    assert rig.caller.ops(second) == [wire.STARTED]
    rig.end(second)
    rig.end(third)
    assert [message.payload[8:] for message in link.sent] == [b"1", b"2", b"3"]


def test_result_is_stored_before_the_boards_next_job_is_sent(rig: Rig, monkeypatch):
    rig.connect()
    first, _ = rig.run()[0], rig.run()[0]
    done: list[str] = []
    monkeypatch.setattr(rig.store, "flush", lambda: done.append("written"))
    monkeypatch.setattr(rig.board().link, "send", lambda _: done.append("sent"))
    rig.end(first)
    assert done == ["written", "sent"]


def test_confirmed_timeout_is_final(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=2)
    rig.clock.turn(2.1)
    rig.end(job, "timeout", rest=b"KeyboardInterrupt: ")
    rig.clock.turn(10)
    assert rig.caller.ending(job) == ("timeout", "")


def test_link_of_a_board_that_reports_no_result_is_closed(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(timeout=2)
    (next_job,) = rig.run()
    rig.clock.turn(2 + CONFIRM_SECONDS)
    assert link.closed == []
    rig.clock.turn(GRACE)
    assert link.closed == [1001]
    rig.drop()
    rig.connect(last=last(job, "ok"))
    assert rig.written(job)[0] == "ok"
    assert rig.caller.ops(job) == [wire.ENDED]
    assert next_job.state == "running"


def test_unconfirmed_timeout_of_a_disconnected_board_ends_once(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(2)
    rig.drop()
    rig.clock.turn(GRACE)
    assert rig.caller.ending(job)[0] == "timeout"
    assert rig.board().state == "offline"


def test_timeout_without_a_link_ends_as_lost(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.drop()
    rig.clock.turn(1 + CONFIRM_SECONDS)
    assert rig.caller.ending(job)[0] == "lost"
    rig.clock.turn(GRACE)
    assert rig.board().state == "offline"


def test_late_deadline_is_ignored(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    (timer,) = [timer for timer in rig.clock.timers if timer.at >= 1]
    rig.end(job)
    timer.act()
    assert rig.written(job) == ("ok", "")


def test_job_is_lost_after_the_grace_period(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    assert (job.state, rig.board().state) == ("adrift", "lost")
    rig.clock.turn(GRACE - 0.1)
    assert rig.caller.messages == []
    rig.clock.turn(0.2)
    assert rig.caller.ending(job) == (
        "lost",
        "its link broke and it did not come back within 10 s",
    )
    assert rig.written(job)[0] == "lost"
    assert rig.board().state == "offline"


def test_queued_job_is_offline_after_the_grace_period(rig: Rig):
    rig.connect()
    first, second = rig.run()[0], rig.run()[0]
    rig.drop()
    rig.clock.turn(GRACE)
    assert rig.caller.ending(first)[0] == "lost"
    assert rig.caller.ending(second)[0] == "offline"


def test_second_disconnect_restarts_the_grace_period(rig: Rig):
    rig.connect()
    first, second = rig.run()[0], rig.run()[0]
    rig.drop()
    rig.clock.turn(GRACE - 1)
    rig.connect(last=last(first))
    rig.drop()
    rig.clock.turn(GRACE - 1)
    assert second.state == "adrift"
    rig.clock.turn(1)
    assert rig.caller.ending(second)[0] == "lost"


def test_all_jobs_of_a_removed_board_end(rig: Rig):
    rig.connect()
    running, queued = rig.run()[0], rig.run()[0]
    (patient,) = rig.run("lab-2", wait=60)
    rig.dispatch.scheduler.end_board_jobs(rig.board("lab-1"))
    rig.dispatch.scheduler.end_board_jobs(rig.board("lab-2"))
    rig.drop("lab-1")
    rig.clock.turn(100)
    assert rig.caller.ending(running) == ("lost", "the board was removed from the fleet")
    assert rig.caller.ending(queued)[0] == "offline"
    assert rig.caller.ending(patient) == ("offline", "it was removed from the fleet")
    assert not rig.dispatch.jobs


def test_removal_of_an_idle_board_sends_nothing(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(2)
    rig.dispatch.scheduler.end_board_jobs(rig.board())
    rig.dispatch.scheduler.end_board_jobs(rig.board("lab-3"))
    assert rig.caller.ops(job) == [wire.ENDED]


def test_timeout_starts_when_the_job_is_sent(rig: Rig):
    (job,) = rig.run(wait=30, timeout=1)
    rig.clock.turn(20)
    rig.connect()
    rig.clock.turn(1.5)
    assert job.state == "running"
    rig.clock.turn(0.4)
    assert rig.caller.ending(job)[0] == "timeout"


def test_wait_of_the_caller_outlasts_the_grace_period(rig: Rig):
    rig.connect()
    (lost,) = rig.run()
    rig.drop()
    (patient,) = rig.run(wait=60)
    rig.clock.turn(GRACE)
    assert rig.caller.ending(lost)[0] == "lost"
    assert patient.state == "queued"
    link = rig.connect()
    assert link.ops(patient) == [wire.EXEC]


def test_fresh_cell_runs_after_the_restart(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(code=b"fresh", fresh=True)
    assert link.ops(job) == [wire.RESET]
    assert (job.state, rig.board().state) == ("resetting", "busy")
    rig.drop()
    rig.clock.turn(GRACE + 1)  # a real board takes long to reconnect to Wi-Fi
    link = rig.connect(boot="b2", last=None)
    assert link.ops(job) == [wire.EXEC]
    rig.clock.turn(RESET_SECONDS)
    assert job.state == "running"
    rig.end(job)
    assert rig.caller.ending(job)[0] == "ok"


def test_fresh_cell_waits_in_the_queue_before_the_reset(rig: Rig):
    link = rig.connect()
    first, fresh = rig.run()[0], rig.run(fresh=True)[0]
    assert link.ops(fresh) == []
    rig.end(first)
    assert link.ops(fresh) == [wire.RESET]


def test_fresh_cell_fails_if_the_board_did_not_restart(rig: Rig):
    rig.connect()
    (job,) = rig.run(fresh=True)
    rig.drop()
    link = rig.connect(boot="b1")
    assert rig.caller.ending(job) == ("error", "the board did not restart; the cell did not run")
    assert link.ops(job) == []


@pytest.mark.parametrize("link_breaks", [False, True])
def test_jobs_end_if_the_board_does_not_reconnect_after_a_reset(rig, link_breaks):
    rig.connect()
    fresh, after = rig.run(fresh=True)[0], rig.run()[0]
    if link_breaks:
        rig.drop()
    rig.clock.turn(RESET_SECONDS)
    status, why = rig.caller.ending(fresh)
    assert status == "lost"
    assert "did not come back from its reset within 20 s" in why
    if link_breaks:
        assert rig.caller.ending(after)[0] == "offline"
    else:
        assert after.state == "running"


@pytest.mark.parametrize("link_breaks", [False, True])
def test_interrupted_reset_does_not_block_the_queue(rig: Rig, link_breaks):
    rig.connect()
    fresh, after = rig.run(fresh=True)[0], rig.run()[0]
    if link_breaks:
        rig.drop()
    rig.dispatch.interrupt(fresh)
    assert rig.caller.ending(fresh)[0] == "interrupted"
    rig.clock.turn(RESET_SECONDS)
    if link_breaks:
        assert rig.caller.ending(after)[0] == "offline"
    else:
        assert after.state == "running"


def test_queue_continues_after_an_interrupted_reset(rig: Rig):
    rig.connect()
    fresh, after = rig.run(fresh=True)[0], rig.run()[0]
    rig.drop()
    rig.dispatch.interrupt(fresh)
    link = rig.connect(boot="b2")
    assert (link.ops(fresh), link.ops(after)) == ([], [wire.EXEC])


# The board's own program, which may start at any time


def program(rig: Rig, *, blocks: bool, name: str = "lab-1") -> None:
    """Report as a board that its own program runs, or has ended."""
    text, flags = (b"app.py", wire.BLOCKING) if blocks else (b"app.py ended", 0)
    rig.dispatch.board_messages.on_message(
        rig.board(name), wire.pack(wire.PROGRAM, text, flags=flags)
    )


def test_reset_does_not_wait_for_the_boards_own_program(rig: Rig):
    link = rig.connect()
    program(rig, blocks=True)
    (reset,) = rig.run(fresh=True)
    assert (reset.state, link.ops(reset)) == ("resetting", [wire.RESET])
    assert rig.caller.ops(reset) == []
    rig.drop()
    link = rig.connect(boot="b2")
    assert link.ops(reset) == [wire.EXEC]


def test_reset_overtakes_cells_that_wait_for_the_program(rig: Rig):
    link = rig.connect()
    program(rig, blocks=True)
    cell, reset, second = rig.run()[0], rig.run(fresh=True)[0], rig.run(fresh=True)[0]
    assert (link.ops(cell), link.ops(reset), link.ops(second)) == ([], [wire.RESET], [])
    rig.drop()
    link = rig.connect(boot="b2")
    rig.end(reset)
    assert (link.ops(cell), link.ops(second)) == ([wire.EXEC], [])


def test_reset_that_waited_for_the_board_ends_a_program_that_starts_immediately(rig: Rig):
    (reset,) = rig.run(fresh=True, wait=60.0)
    link = rig.connect()
    assert link.ops(reset) == [wire.RESET]
    program(rig, blocks=True)
    assert reset.state == "resetting", "the board resets when it reads it"


def test_cell_overtaken_by_the_program_is_requeued_and_sent_again(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(timeout=5.0)
    program(rig, blocks=True)
    assert (job.state, rig.board().current_job) == ("queued", None)
    rig.clock.turn(60)
    assert job.state == "queued", "its timeout has not started"
    program(rig, blocks=False)
    first, again = [m for m in link.sent if m.job == job.id]
    assert (first.op, first.flags) == (wire.EXEC, 0)
    assert (again.op, again.flags, again.payload) == (wire.EXEC, wire.AGAIN, first.payload)
    rig.end(job)
    assert rig.caller.ending(job)[0] == "ok"


def test_requeued_cell_is_lost_if_the_board_restarts(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    program(rig, blocks=True)
    rig.drop()
    link = rig.connect(boot="b2")
    assert rig.caller.ending(job) == ("lost", "the board restarted while it ran")
    assert link.ops(job) == []


def test_requeued_cell_is_sent_again_after_a_reconnect(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    program(rig, blocks=True)
    rig.drop()
    link = rig.connect()
    assert [(m.op, m.flags) for m in link.sent] == [(wire.EXEC, wire.AGAIN)]


def test_requeued_cell_that_ran_ends_with_the_reported_result(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    program(rig, blocks=True)
    rig.drop()
    link = rig.connect(last=last(job, "error", "ValueError: 1"))
    assert rig.caller.ending(job) == ("error", "ValueError: 1")
    assert link.ops(job) == []


def test_requeued_cell_is_lost_if_the_board_does_not_reconnect(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    program(rig, blocks=True)
    rig.drop()
    rig.clock.turn(GRACE)
    assert rig.caller.ending(job)[0] == "lost"


def test_requeued_cell_is_interrupted_in_the_queue_and_on_the_board(rig: Rig):
    link = rig.connect()
    (job,) = rig.run()
    program(rig, blocks=True)
    rig.dispatch.interrupt(job)
    assert rig.caller.ending(job)[0] == "interrupted"
    assert link.ops(job) == [wire.EXEC, wire.INTERRUPT]
    program(rig, blocks=False)
    assert link.ops(job) == [wire.EXEC, wire.INTERRUPT]


def test_fresh_cell_interrupts_a_program_that_started_after_the_reset(rig: Rig):
    rig.connect()
    (job,) = rig.run(fresh=True)
    rig.drop()
    link = rig.connect(boot="b2")
    assert link.ops(job) == [wire.EXEC]
    program(rig, blocks=True)
    assert [(m.op, m.job) for m in link.sent][1:] == [(wire.INTERRUPT, 0)]
    program(rig, blocks=False)
    assert link.ops(job) == [wire.EXEC, wire.EXEC]


def test_fresh_cell_is_lost_if_the_program_does_not_end(rig: Rig):
    rig.connect()
    (job,) = rig.run(fresh=True)
    rig.drop()
    rig.connect(boot="b2")
    program(rig, blocks=True)
    rig.clock.turn(RESET_SECONDS)
    status, why = rig.caller.ending(job)
    assert (status, "did not end within 20 s" in why) == ("lost", True)


def test_timed_out_job_does_not_delay_a_reset(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(timeout=1.0)
    rig.clock.turn(2)
    assert rig.caller.ending(job)[0] == "timeout"
    program(rig, blocks=True)
    (reset,) = rig.run(fresh=True)
    assert link.ops(reset) == [wire.RESET]


def test_link_of_a_board_that_ignores_its_reset_is_closed(rig: Rig):
    link = rig.connect()
    rig.run(fresh=True)
    rig.clock.turn(RESET_SECONDS)
    assert link.closed == [1001]


def test_result_before_a_reset_does_not_free_the_board(rig: Rig):
    """A fresh cell was put back into the queue but has run; its board has yet to restart."""
    link = rig.connect()
    program(rig, blocks=True)
    reset, after = rig.run(fresh=True)[0], rig.run()[0]
    rig.end(reset)
    assert (reset.state, link.ops(after)) == ("ended", [])
    rig.drop()
    link = rig.connect(boot="b2")
    assert link.ops(after) == [wire.EXEC]


def test_job_for_a_restarting_board_waits(rig: Rig):
    rig.connect()
    (reset,) = rig.run(fresh=True)
    rig.drop()
    (job,) = rig.run()
    assert job.state == "queued"
    link = rig.connect(boot="b2")
    rig.end(reset)
    assert link.ops(job) == [wire.EXEC]
