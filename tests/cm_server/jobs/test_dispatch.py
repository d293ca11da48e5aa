"""Dispatch: requests of callers and messages of boards, without sockets."""

from __future__ import annotations

import logging
import struct
import time

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError, ServerError
from cm_server.jobs.job_history import ReportedResult
from cm_server.limits import MIB, Limits
from cm_server.store.rows import JobRow
from cm_server.store.store_queue import Operation
from tests.cm_server.dispatching import GRACE, RecordingObserver, Rig, last

NEVER = "it never reached the board"


@pytest.fixture
def rig(limits: Limits) -> Rig:
    return Rig(limits=limits)


def test_idle_board_receives_its_cell_immediately(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(code=b"print(1)", awaits=True)
    (sent,) = link.sent
    assert (sent.op, sent.job, sent.flags) == (wire.EXEC, job.id, wire.TOP_LEVEL_AWAIT)
    assert sent.payload == struct.pack(">II", 0, 8) + b"print(1)"
    assert rig.board().state == "busy"
    assert job.describe()["state"] == "running"


def test_result_ends_the_job_for_caller_store_and_board(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.end(job, output=b"hi", rest=b"42")
    assert rig.caller.ending(job) == ("ok", "")
    assert rig.written(job) == ("ok", "")
    assert rig.board().state == "idle"
    assert job.id not in rig.dispatch.jobs


def test_cell_on_several_boards_is_one_job_per_board(rig: Rig):
    for name in ("lab-1", "lab-2", "lab-3"):
        rig.connect(name)
    jobs = rig.run("lab-3", "lab-1", "lab-2")
    assert [job.board.name for job in jobs] == ["lab-3", "lab-1", "lab-2"]
    assert len({job.id for job in jobs}) == 3


def test_job_for_a_full_queue_is_refused(rig: Rig):
    rig.connect()
    for _ in range(Limits.queued_jobs + 1):
        rig.run()
    (job,) = rig.run()
    assert rig.caller.ending(job)[0] == "error"
    assert "did not run" in rig.caller.ending(job)[1]
    assert len(rig.board().queue) == Limits.queued_jobs


@pytest.mark.limits(queued_bytes=3 * MIB)
def test_queue_is_bounded_in_bytes(rig: Rig):
    link = rig.connect()
    (running,) = rig.run()
    big = bytes(MIB + MIB // 2)
    waiting = [rig.run(code=big)[0] for _ in range(2)]
    (refused,) = rig.run(code=b"one more")
    why = "cells of 3 MiB wait for this board already; it did not run"
    assert rig.caller.ending(refused) == ("error", why)
    assert list(rig.board().queue) == waiting
    rig.dispatch.interrupt(waiting[0])
    (later,) = rig.run(code=b"one more")
    assert list(rig.board().queue) == [waiting[1], later]
    assert link.ops(running) == [wire.EXEC]


@pytest.mark.parametrize(
    ("ago", "why"),
    [
        (None, "it has never connected"),
        (-5, "it was last seen 0 s ago"),
        (42.5, "it was last seen 42 s ago"),
        (61, "it was last seen 1 minute ago"),
        (3 * 3600 + 5, "it was last seen 3 hours ago"),
        (2 * 86400 + 5, "it was last seen 2 days ago"),
    ],
)
def test_job_of_an_offline_board_ends_with_when_it_was_last_seen(rig: Rig, ago, why):
    rig.board().last_seen = None if ago is None else time.time() - ago
    (job,) = rig.run()
    assert rig.caller.ending(job) == ("offline", why)
    assert rig.written(job) == ("offline", why)


def test_output_and_value_are_forwarded_unchanged_and_droppable(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.send(job, wire.OUTPUT, b"\xff\x00 raw")
    rig.send(job, wire.VALUE, b"[1, 2")
    assert [message.payload for message in rig.caller.messages] == [b"\xff\x00 raw", b"[1, 2"]
    rig.end(job)
    assert wire.RESULT not in rig.caller.droppable


def test_tails_of_output_and_value_are_bounded(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    for number in range(200):
        rig.send(job, wire.OUTPUT, b"%4d" % number * 500)
        rig.send(job, wire.VALUE, b"%4d" % number * 500)
        assert len(job.output_tail) + len(job.value) <= 256 * 1024
    rig.end(job, output=b"the end", rest=b"]")
    assert job.output_tail.text().endswith(" 199the end")
    assert job.value.text().endswith(" 199]")


def test_facts_message_updates_what_callers_see(rig: Rig):
    rig.connect("lab-1")
    rig.dispatch.board_messages.on_message(
        rig.board(), wire.pack(wire.FACTS, b"\0\1\0\0\xbd", job=7)
    )
    described = rig.board().describe()
    assert (described["heap"], described["rssi"]) == (65536, -67)


def test_cell_waits_until_the_boards_own_program_ends(rig: Rig):
    link = rig.connect("lab-1")
    rig.dispatch.board_messages.on_message(
        rig.board(), wire.pack(wire.PROGRAM, b"app.py", flags=wire.BLOCKING)
    )
    assert (rig.board().state, rig.board().describe()["program"]) == ("busy", "app.py")
    (job,) = rig.run("lab-1")
    assert (job.state, link.ops(job)) == ("queued", [])
    assert rig.dispatch.stop_program(rig.board())
    assert [(m.op, m.job) for m in link.sent] == [(wire.INTERRUPT, 0)]
    rig.dispatch.board_messages.on_message(rig.board(), wire.pack(wire.PROGRAM, b"app.py ended"))
    assert (job.state, link.ops(job)) == ("running", [wire.EXEC])
    assert rig.board().describe()["program"] == "app.py ended"


def test_blocking_program_is_cleared_when_the_link_closes(rig: Rig):
    rig.connect("lab-1")
    rig.dispatch.board_messages.on_message(
        rig.board(), wire.pack(wire.PROGRAM, b"app.py", flags=wire.BLOCKING)
    )
    rig.drop("lab-1")
    assert not rig.dispatch.stop_program(rig.board())
    rig.connect("lab-1", boot="b2")
    assert rig.board().state == "idle"


def test_output_of_the_boards_own_program_is_ignored(rig: Rig, caplog):
    rig.connect("lab-1")
    rig.dispatch.board_messages.on_message(rig.board(), wire.pack(wire.OUTPUT, b"x"))
    assert (rig.caller.messages, caplog.text) == ([], "")


@pytest.mark.parametrize("op", [wire.OUTPUT, wire.RESULT, wire.INPUT, wire.VALUE])
def test_message_about_another_boards_job_is_ignored(rig: Rig, op):
    strays: list[tuple[str, int]] = []
    rig.dispatch.board_messages.on_stray = lambda board, job: strays.append((board.name, job))
    rig.connect("lab-1")
    rig.connect("lab-2")
    (mine,) = rig.run("lab-1")
    (other,) = rig.run("lab-2")
    forged = wire.pack(op, struct.pack(">H", 0) + b"forged", job=other.id)
    rig.dispatch.board_messages.on_message(rig.board("lab-1"), forged)
    rig.dispatch.board_messages.on_message(rig.board("lab-3"), forged)
    assert rig.caller.messages == []
    assert (mine.state, other.state) == ("running", "running")
    assert other.output_tail.text() == ""
    assert strays == [("lab-1", other.id), ("lab-3", other.id)]


def test_second_result_is_ignored(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.end(job)
    rig.end(job, "error", rest=b"ValueError: late")
    assert rig.written(job) == ("ok", "")
    assert rig.caller.ending(job) == ("ok", "")


@pytest.mark.parametrize(
    "message",
    [b"\x22", wire.pack(wire.EXEC), wire.pack(wire.HELLO, b"{}"), wire.pack(0xEE)],
)
def test_message_that_boards_may_not_send_is_refused(rig: Rig, message):
    rig.connect()
    with pytest.raises(PeerWireError):
        rig.dispatch.board_messages.on_message(rig.board(), message)


@pytest.mark.parametrize(
    ("flags", "payload"),
    [(0, b""), (wire.RUNNING, b"\0\0"), (15, b"\0\0"), (0, b"\0\x05abc")],
)
def test_malformed_result_is_refused_and_the_job_stays_open(rig: Rig, flags, payload):
    rig.connect()
    (job,) = rig.run()
    with pytest.raises(PeerWireError):
        rig.send(job, wire.RESULT, payload, flags)
    assert job.state == "running"


def test_input_is_forwarded_to_a_caller_that_answers(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(answers=True)
    rig.send(job, wire.INPUT, b"name? ")
    assert rig.caller.messages[-1].payload == b"name? "
    rig.dispatch.board_messages.answer_input(job, b"ann")
    rig.dispatch.board_messages.answer_input(job, b"twice")
    assert link.ops(job) == [wire.EXEC, wire.ANSWER]
    assert (link.sent[-1].flags, link.sent[-1].payload) == (0, b"ann")


def test_input_that_is_repeated_without_an_answer_may_be_dropped(rig: Rig):
    rig.connect()
    (job,) = rig.run(answers=True)
    rig.send(job, wire.INPUT, b"name? ")
    assert rig.caller.droppable == []
    rig.send(job, wire.INPUT, b"name? ")
    assert rig.caller.droppable == [wire.INPUT]
    rig.dispatch.board_messages.answer_input(job, b"ann")
    rig.send(job, wire.INPUT, b"age? ")
    assert rig.caller.droppable == [wire.INPUT]


def test_input_gets_eof_if_the_caller_does_not_answer(rig: Rig):
    link = rig.connect()
    (job,) = rig.run()
    rig.send(job, wire.INPUT, b"name? ")
    assert rig.caller.messages == []
    assert (link.sent[-1].op, link.sent[-1].flags) == (wire.ANSWER, wire.INPUT_EOF)


def test_answer_after_the_link_broke_is_dropped(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(answers=True)
    rig.send(job, wire.INPUT)
    rig.drop()
    rig.dispatch.board_messages.answer_input(job, b"ann")
    assert link.ops(job) == [wire.EXEC]


def test_interrupt_removes_a_queued_job(rig: Rig):
    link = rig.connect()
    first, second = rig.run()[0], rig.run()[0]
    rig.dispatch.interrupt(second)
    assert rig.caller.ending(second) == ("interrupted", "it was not sent yet and did not run")
    rig.end(first)
    assert link.ops(second) == []


def test_interrupt_of_a_running_job_is_sent_to_its_board(rig: Rig):
    link = rig.connect()
    (job,) = rig.run()
    rig.dispatch.interrupt(job)
    assert link.ops(job) == [wire.EXEC, wire.INTERRUPT]
    assert job.state == "running"
    rig.end(job, "interrupted", rest=b"KeyboardInterrupt: ")
    assert rig.caller.ending(job) == ("interrupted", "")


def test_interrupt_of_a_job_whose_link_broke_is_ignored(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.dispatch.interrupt(job)
    assert job.state == "adrift"


def test_input_after_an_unconfirmed_timeout_gets_eof(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(timeout=1, answers=True)
    rig.clock.turn(3)
    rig.send(job, wire.INPUT)
    assert link.sent[-1].flags == wire.INPUT_EOF


@pytest.mark.parametrize("boot", ["b1", "b2"])
def test_unconfirmed_timeout_stays_if_the_board_reports_nothing(rig: Rig, boot):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(2)
    rig.drop()
    rig.connect(boot=boot)
    assert rig.written(job)[0] == "timeout"
    assert rig.board().state == "idle"


@pytest.mark.parametrize("status", ["ok", "error", "interrupted", "timeout"])
@pytest.mark.parametrize("boot", ["b1", "b2"])
def test_reconnected_board_reports_the_result(rig: Rig, status, boot):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.clock.turn(GRACE - 1)
    rig.connect(boot=boot, last=last(job, status, "its words"))
    assert rig.caller.ending(job) == (status, "its words")
    assert rig.written(job) == (status, "its words")
    assert wire.read_json(rig.caller.messages[-1].payload)["output_lost"] is True
    rig.clock.turn(GRACE)
    assert rig.caller.ending(job) == (status, "its words")


@pytest.mark.parametrize(
    "remembered", [None, {}, {"job": "ffffffff", "status": 0}], ids=["none", "nothing", "another"]
)
def test_job_is_lost_when_its_board_reconnects_after_a_restart(rig: Rig, remembered):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.connect(boot="b2", last=remembered)
    assert rig.caller.ending(job) == ("lost", "the board restarted while it ran")
    assert rig.board().state == "idle"


def test_cell_that_never_reached_the_board_is_lost(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.connect()
    assert rig.caller.ending(job) == ("lost", "it never reached the board")


def test_cell_that_reached_the_board_in_part_is_lost(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.connect(last=last(job, "running"))
    assert rig.caller.ending(job) == ("lost", "it never reached the board")


def test_queue_continues_when_its_board_reconnects(rig: Rig):
    rig.connect()
    first, second = rig.run()[0], rig.run()[0]
    rig.drop()
    link = rig.connect(last=last(first))
    assert rig.caller.ending(first)[0] == "ok"
    assert link.ops(second) == [wire.EXEC]


def test_result_received_after_the_link_closed_counts(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.end(job)
    assert rig.caller.ending(job)[0] == "ok"
    rig.clock.turn(GRACE)
    assert rig.caller.ending(job)[0] == "ok"
    assert rig.board().state == "offline"


def test_job_submitted_in_the_grace_period_is_offline(rig: Rig):
    rig.connect()
    rig.run()
    rig.drop()
    (job,) = rig.run()
    assert rig.caller.ending(job)[0] == "offline"


def test_broken_link_of_an_idle_board_starts_no_timer(rig: Rig):
    rig.connect()
    rig.drop()
    assert rig.board().state == "offline"
    assert rig.clock.timers == []


def test_close_of_a_replaced_link_is_ignored(rig: Rig):
    older = rig.connect()
    rig.connect()
    (job,) = rig.run()
    rig.dispatch.recovery.on_link_closed(rig.board(), older)
    assert job.state == "running"
    assert rig.board().state == "busy"


def test_new_link_of_a_busy_board_ends_its_job(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    link = rig.connect(last=last(job))
    assert rig.caller.ending(job)[0] == "ok"
    (after,) = rig.run()
    assert link.ops(after) == [wire.EXEC]


@pytest.mark.parametrize(
    "reported",
    [
        {"job": "ffffffff", "status": 0},
        {"job": "f" * 40, "status": 0},
        {"job": "-1", "status": 0},
        {"job": None, "status": 0},
        {"job": "1"},
        {"status": 0},
        {"job": "1", "status": "ok"},
        {"job": "1", "status": None},
        {"job": "1", "status": 99},
        {"job": "1", "status": -2},
        {"job": "1", "status": 4},
        {"job": "1", "status": 5},
        {"job": "1", "status": float("nan")},
        {"job": "1", "status": float("inf")},
        {"job": "1", "status": 10**400},
        {"job": [], "status": {}},
    ],
    ids=str,
)
def test_invalid_report_of_a_last_job_is_ignored(rig: Rig, reported):
    rig.connect()
    (job,) = rig.run()
    assert job.id == 1
    rig.drop()
    rig.clock.turn(GRACE)
    rig.connect(last=reported)
    assert rig.written(job)[0] == "lost"
    assert rig.board().state == "idle"


def test_surrogates_and_long_errors_can_be_stored(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.connect(last=last(job, "error", "lone \ud800 surrogate, NUL \0 " + "x" * 5000))
    status, error = rig.written(job)
    assert status == "error"
    assert error == ("lone ? surrogate, NUL \N{REPLACEMENT CHARACTER} " + "x" * 5000)[:1024]
    (after,) = rig.run()
    rig.end(after)
    assert rig.written(after) == ("ok", "")


def test_job_waits_for_an_offline_board_for_a_limited_time(rig: Rig):
    (job,) = rig.run(wait=30)
    assert job.state == "queued"
    rig.clock.turn(29.9)
    assert rig.caller.messages == []
    rig.clock.turn(0.1)
    status, why = rig.caller.ending(job)
    assert (status, why) == (
        "offline",
        "it did not connect within 30 s; it has never connected",
    )
    assert not rig.board().queue


def test_board_that_connects_in_time_receives_waiting_jobs(rig: Rig):
    first, second = rig.run(wait=30)[0], rig.run(code=b"2", wait=60)[0]
    rig.clock.turn(29)
    link = rig.connect()
    assert rig.caller.ops(first) == [wire.STARTED]
    rig.clock.turn(60)
    assert (first.state, second.state) == ("running", "queued")
    rig.end(first)
    rig.end(second)
    assert link.ops(second) == [wire.EXEC]


def test_interrupt_ends_a_job_that_waits_for_its_board(rig: Rig):
    (job,) = rig.run(wait=30)
    rig.dispatch.interrupt(job)
    rig.clock.turn(100)
    assert rig.caller.ending(job)[0] == "interrupted"


def test_queue_of_an_offline_board_is_bounded(rig: Rig):
    for _ in range(Limits.queued_jobs):
        rig.run(wait=30)
    (job,) = rig.run(wait=30)
    assert rig.caller.ending(job)[0] == "error"


def test_job_continues_without_its_caller(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.dispatch.detach_observer(rig.caller)
    rig.send(job, wire.OUTPUT, b"to nobody")
    rig.end(job)
    assert rig.caller.messages == []
    assert rig.written(job) == ("ok", "")
    assert job.output_tail.text() == "to nobody"


def test_input_gets_eof_when_its_caller_disconnects(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(answers=True)
    rig.send(job, wire.INPUT)
    rig.dispatch.detach_observer(rig.caller)
    assert (link.sent[-1].op, link.sent[-1].flags) == (wire.ANSWER, wire.INPUT_EOF)


def test_disconnect_of_a_caller_keeps_other_callers_jobs(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.dispatch.detach_observer(RecordingObserver())
    rig.end(job)
    assert rig.caller.ending(job)[0] == "ok"


def test_stop_ends_queued_jobs_and_keeps_running_ones_open(rig: Rig):
    rig.connect()
    running, queued = rig.run()[0], rig.run()[0]
    rig.dispatch.stop()
    assert rig.caller.ending(queued) == (
        "lost",
        "the server stopped before it was sent; it did not run",
    )
    assert rig.written(queued)[0] == "lost"
    assert rig.written(running) == (None, None)


def test_stop_leaves_no_job_that_could_still_be_sent(rig: Rig):
    link = rig.connect()
    running, queued = rig.run()[0], rig.run()[0]
    rig.dispatch.stop()
    rig.end(running)  # its link is still open
    assert not link.ops(queued)
    assert not rig.board().queue


def test_stop_ends_a_job_once_that_waits_for_its_commit(rig: Rig, monkeypatch, caplog):
    rig.connect()
    failed: Operation[bool] = Operation(lambda _: False)
    monkeypatch.setattr(rig.dispatch.scheduler, "_is_marked_sent", lambda _: False)
    monkeypatch.setattr(rig.dispatch.scheduler, "_mark_sent", lambda _: failed)
    (job,) = rig.run()
    rig.dispatch.stop()
    failed.refuse(ServerError("this server has left"))
    failed.finish()
    assert rig.caller.ending(job)[1] == "the server stopped before it was sent; it did not run"
    assert not caplog.records


def test_stop_ends_a_job_whose_board_is_restarting(rig: Rig):
    rig.connect()
    (job,) = rig.run(fresh=True)
    rig.dispatch.stop()
    assert rig.written(job)[0] == "lost"


def new_rows(rig: Rig, count: int) -> list[JobRow]:
    """Store jobs that other servers have sent to lab-1; return their rows."""
    rows = [rig.store.job(job) for _ in range(count) for job in rig.store.insert_jobs(["id1"], "x")]
    assert None not in rows
    return [row for row in rows if row]


def stored(rig: Rig, row: JobRow) -> tuple[str | None, str | None]:
    rig.store.flush()
    found = rig.store.job(row.id)
    assert found is not None
    return found.status, found.error


def test_board_goes_on_with_its_job_when_one_of_a_dead_server_is_taken_over(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    (sent_elsewhere,) = new_rows(rig, 1)
    rig.dispatch.recovery.take_over_jobs([sent_elsewhere])
    assert stored(rig, sent_elsewhere) == ("lost", NEVER)
    rig.end(job, "error", rest=b"ValueError: true")
    assert rig.caller.ending(job)[0] == "error"
    assert rig.written(job) == ("error", "ValueError: true")


@pytest.mark.parametrize("order", [1, -1])
def test_board_reports_one_of_several_jobs_that_are_taken_over(rig: Rig, order: int):
    never_sent, ran = rows = new_rows(rig, 2)
    reported = ReportedResult(ran.id, "error", "ValueError: true")
    rig.dispatch.recovery.adopt_jobs(rig.board(), rows[::order], reported)
    number = wire.STATUSES.index("error")
    report = {"job": f"{ran.id:08x}", "status": number, "error": "ValueError: true"}
    rig.connect(last=report)
    assert stored(rig, ran) == ("error", "ValueError: true")
    assert stored(rig, never_sent)[0] == "lost"


def test_outcome_that_the_caller_knows_is_stored_if_the_jobs_owner_did_not(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    row = rig.store.job(job.id)
    assert row is not None
    rig.end(job, "error", rest=b"ValueError: known")
    rig.drop()
    rig.store.end_job(job.id, "lost")  # as if another server owned it
    rig.dispatch.recovery.adopt_jobs(rig.board(), [row])
    rig.connect(boot="b2")
    assert rig.written(job) == ("error", "ValueError: known")


def test_restarted_server_takes_over_each_boards_oldest_open_job(rig: Rig):
    rig.connect("lab-1")
    rig.connect("lab-2")
    ran, other = rig.run("lab-1", "lab-2")
    (never_sent,) = rig.run("lab-1")
    later = Rig(rig.store)  # the first server was killed
    assert later.written(never_sent) == ("lost", "the server restarted before it was sent")
    assert later.written(ran) == (None, None)
    assert later.board("lab-1").state == "lost"
    later.connect("lab-1", last=last(ran, "error", "ValueError: true"))
    assert later.written(ran) == ("error", "ValueError: true")
    later.clock.turn(GRACE)
    assert later.written(other)[0] == "lost"
    later.connect("lab-2", last=last(other))
    assert later.written(other)[0] == "ok"


def test_restarted_server_corrects_an_assumed_result(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.clock.turn(GRACE)
    later = Rig(rig.store)
    later.connect(last=last(job, "ok"))
    assert later.written(job)[0] == "ok"


def test_restarted_server_notices_that_a_board_restarted(rig: Rig):
    rig.connect()
    rig.store.mark_board_seen("id1", {"boot": "b1"})
    (job,) = rig.run()
    later = Rig(rig.store)
    later.connect(boot="b2")
    assert later.written(job) == ("lost", "the board restarted while it ran")


def test_open_jobs_of_removed_boards_end_at_the_next_start(rig: Rig):
    rig.store.insert_jobs(["no such id"], "ann")
    later = Rig(rig.store)
    row = later.store.job(1)
    assert row is not None
    assert row.status == "lost"


def test_output_of_boards_is_not_logged(rig: Rig, caplog):
    caplog.set_level(logging.INFO)
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(5)
    rig.end(job, "error", rest=b"\x1b[31mValueError: \r\nforged line")
    assert "forged" not in caplog.text
    assert "\x1b" not in caplog.text
