"""Dispatch: every way that a job can go, without a socket and with a clock turned by hand."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from cloudmanager import wire
from cloudmanager.errors import PeerWireError
from cm_server import dispatch as module
from cm_server import limits
from cm_server.dispatch import CONFIRM, RESET_SECONDS, Dispatch
from cm_server.jobs import Cell, Job
from cm_server.registry import Board, Registry
from cm_server.rows import new_board
from cm_server.store import Store

GRACE = 10.0


class RecordedTimer:
    def __init__(self, at: float, act: Callable[[], None]) -> None:
        self.at, self.act, self.cancelled = at, act, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """Time that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[RecordedTimer] = []

    def later(self, seconds: float, act: Callable[[], None]) -> RecordedTimer:
        timer = RecordedTimer(self.now + seconds, act)
        self.timers.append(timer)
        return timer

    def turn(self, seconds: float) -> None:
        """Go on by so many seconds; what is due happens in its order."""
        until = self.now + seconds
        while due := [t for t in self.timers if not t.cancelled and t.at <= until]:
            timer = min(due, key=lambda t: t.at)
            self.timers.remove(timer)
            self.now = timer.at
            timer.act()
        self.now = until


class RecordingLink:
    """A board's link that keeps what the server says."""

    def __init__(self) -> None:
        self.sent: list[wire.Message] = []
        self.closed: list[int] = []

    def send(self, message: bytes) -> None:
        self.sent.append(wire.unpack(message))

    def close(self, code: int, reason: str = "") -> None:
        self.closed.append(code)

    def ops(self, job: Job) -> list[int]:
        return [message.op for message in self.sent if message.job == job.id]


class RecordingWatcher:
    """A caller that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[wire.Message] = []
        self.droppable: list[int] = []

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        self.told.append(wire.unpack(message))
        if droppable:
            self.droppable.append(message[0])

    def ops(self, job: Job) -> list[int]:
        return [message.op for message in self.told if message.job == job.id]

    def ending(self, job: Job) -> tuple[str, str]:
        """How the job ended, and the server's words for it; a job ends once."""
        (end,) = (m for m in self.told if m.job == job.id and m.op in wire.ENDINGS)
        if end.op == wire.RESULT:
            return wire.read_result(end).status, ""
        return wire.STATUSES[end.flags], wire.read_json(end.payload)["why"]


class Rig:
    """A dispatch with boards lab-1 to lab-3, and the hands to play board, caller and time."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store(None)
        if not self.store.boards():
            self.store.enrol([new_board(f"id{n}", f"lab-{n}", bytes(32)) for n in (1, 2, 3)])
        self.clock = Clock()
        self.registry = Registry(self.store.boards())
        self.dispatch = Dispatch(self.store, self.registry, self.clock.later, lost_after=GRACE)
        self.caller = RecordingWatcher()

    def board(self, name: str = "lab-1") -> Board:
        return self.registry.by_name[name]

    def connect(
        self, name: str = "lab-1", *, boot: str = "b1", last: Any = None, buffer_size: int = 1500
    ) -> RecordingLink:
        """Dial in as the board, as board_socket.py does it."""
        board, link = self.board(name), RecordingLink()
        if board.link is not None:
            self.dispatch.on_link_gone(board, board.link)
        same_boot = boot == board.told.get("boot")
        board.connect(link, {"boot": boot}, buffer_size)
        self.dispatch.on_link(board, same_boot=same_boot, last=last)
        return link

    def drop(self, name: str = "lab-1") -> None:
        board = self.board(name)
        assert board.link is not None
        self.dispatch.on_link_gone(board, board.link)

    def run(
        self, *names: str, code: bytes = b"1", timeout: float | None = None, **more: Any
    ) -> list[Job]:
        boards = [self.board(name) for name in names or ("lab-1",)]
        cell = Cell(code, timeout, **{"awaits": False, **more})
        jobs = self.dispatch.submit(boards, cell, "ann", self.caller)
        self.dispatch.launch(jobs)
        return jobs

    def say(self, job: Job, op: int, payload: bytes = b"", flags: int = 0) -> None:
        """Speak as the job's board."""
        self.dispatch.on_message(job.board, wire.pack(op, payload, job=job.id, flags=flags))

    def end(self, job: Job, status: str = "ok", output: bytes = b"", rest: bytes = b"") -> None:
        payload = struct.pack(">H", len(output)) + output + rest
        self.say(job, wire.RESULT, payload, wire.STATUSES.index(status))

    def written(self, job: Job) -> tuple[str | None, str | None]:
        """What the store has of the job: status and error."""
        row = self.store.job(job.id)
        assert row is not None
        return row.status, row.error


def last(job: Job, status: str = "ok", error: str = "") -> dict[str, Any]:
    """What a board tells of its last job when it dials in."""
    number = wire.STATUSES.index(status)
    return {"job": f"{job.id:08x}", "status": number, "error": error, "dropped": 0}


@pytest.fixture
def rig() -> Rig:
    return Rig()


# queued, running, settled


def test_an_idle_board_gets_its_cell_at_once(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(code=b"print(1)", awaits=True)
    (sent,) = link.sent
    assert (sent.op, sent.job, sent.flags) == (wire.EXEC, job.id, wire.AWAITS)
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


def test_a_long_cell_travels_in_pieces_that_fit_the_boards_buffer(rig: Rig):
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
def test_the_timeout_travels_in_milliseconds(rig: Rig, timeout, timeout_ms):
    link = rig.connect()
    rig.run(timeout=timeout)
    assert struct.unpack_from(">I", link.sent[0].payload) == (timeout_ms,)


def test_a_busy_board_queues_first_come_first_served(rig: Rig):
    link = rig.connect()
    first, second, third = rig.run()[0], rig.run(code=b"2")[0], rig.run(code=b"3")[0]
    assert (second.state, third.state) == ("queued", "queued")
    assert second.describe()["elapsed"] is None
    rig.end(first)
    assert rig.caller.ops(second) == [wire.STARTED]
    rig.end(second)
    rig.end(third)
    assert [message.payload[8:] for message in link.sent] == [b"1", b"2", b"3"]


def test_an_ending_is_written_before_the_same_boards_next_job(rig: Rig, monkeypatch):
    rig.connect()
    first, _ = rig.run()[0], rig.run()[0]
    done: list[str] = []
    monkeypatch.setattr(rig.store, "flush", lambda: done.append("written"))
    monkeypatch.setattr(rig.board().link, "send", lambda _: done.append("sent"))
    rig.end(first)
    assert done == ["written", "sent"]


def test_endings_share_a_commit_and_do_not_wait_long_for_it(rig: Rig, monkeypatch):
    for name in ("lab-1", "lab-2", "lab-3"):
        rig.connect(name)
    flushed: list[float] = []
    monkeypatch.setattr(rig.store, "flush", lambda: flushed.append(rig.clock.now))
    first, second, third = rig.run("lab-1", "lab-2", "lab-3")
    rig.end(first)
    rig.end(second)
    rig.clock.turn(1)
    assert flushed == [pytest.approx(module.FLUSH_AFTER)]
    rig.end(third)  # nobody waits for the server now
    assert flushed[1:] == [1.0]


def test_one_cell_on_several_boards_is_one_job_each(rig: Rig):
    for name in ("lab-1", "lab-2", "lab-3"):
        rig.connect(name)
    jobs = rig.run("lab-3", "lab-1", "lab-2")
    assert [job.board.name for job in jobs] == ["lab-3", "lab-1", "lab-2"]
    assert len({job.id for job in jobs}) == 3


def test_too_long_a_queue_refuses_and_says_so(rig: Rig):
    rig.connect()
    for _ in range(limits.QUEUED_JOBS + 1):
        rig.run()
    (job,) = rig.run()
    assert rig.caller.ending(job)[0] == "error"
    assert "did not run" in rig.caller.ending(job)[1]
    assert len(rig.board().queue) == limits.QUEUED_JOBS


def test_cells_of_too_many_bytes_do_not_wait_and_a_single_one_may(rig: Rig, monkeypatch):
    monkeypatch.setattr(limits, "QUEUED_BYTES", 3 * limits.MIB)
    link = rig.connect()
    (running,) = rig.run()
    big = bytes(limits.MIB + limits.MIB // 2)
    waiting = [rig.run(code=big)[0] for _ in range(2)]
    (refused,) = rig.run(code=b"one more")
    told = "cells of 3 MiB wait for this board already; it did not run"
    assert rig.caller.ending(refused) == ("error", told)
    assert list(rig.board().queue) == waiting
    rig.dispatch.interrupt(waiting[0])
    (later,) = rig.run(code=b"one more")
    assert list(rig.board().queue) == [waiting[1], later]
    assert link.ops(running) == [wire.EXEC]


@pytest.mark.parametrize(
    ("ago", "told"),
    [
        (None, "it has never dialled in"),
        (-5, "it was last seen 0 s ago"),
        (42.5, "it was last seen 42 s ago"),
        (61, "it was last seen 1 minute ago"),
        (3 * 3600 + 5, "it was last seen 3 hours ago"),
        (2 * 86400 + 5, "it was last seen 2 days ago"),
    ],
)
def test_an_absent_board_is_offline_and_says_since_when(rig: Rig, ago, told):
    rig.board().last_seen = None if ago is None else time.time() - ago
    (job,) = rig.run()
    assert rig.caller.ending(job) == ("offline", told)
    assert rig.written(job) == ("offline", told)


# What the board says meanwhile


def test_output_and_value_pass_on_untouched_and_may_be_left_out(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.say(job, wire.OUTPUT, b"\xff\x00 raw")
    rig.say(job, wire.VALUE, b"[1, 2")
    assert [message.payload for message in rig.caller.told] == [b"\xff\x00 raw", b"[1, 2"]
    rig.end(job)
    assert wire.RESULT not in rig.caller.droppable


def test_the_tails_of_output_and_value_are_bounded(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    for number in range(200):
        rig.say(job, wire.OUTPUT, b"%4d" % number * 500)
        rig.say(job, wire.VALUE, b"%4d" % number * 500)
        assert len(job.tail) + len(job.value) <= 256 * 1024
    rig.end(job, output=b"the end", rest=b"]")
    assert job.tail.text().endswith(" 199the end")
    assert job.value.text().endswith(" 199]")


def test_board_whose_program_keeps_it_busy_gets_no_cell_until_it_ends(rig: Rig):
    link = rig.connect("lab-1")
    rig.dispatch.on_message(rig.board(), wire.pack(wire.PROGRAM, b"app.py", flags=wire.BLOCKS))
    assert (rig.board().state, rig.board().describe()["program"]) == ("busy", "app.py")
    (job,) = rig.run("lab-1")
    assert (job.state, link.ops(job)) == ("queued", [])
    assert rig.dispatch.stop_program(rig.board())
    assert [(m.op, m.job) for m in link.sent] == [(wire.INTERRUPT, 0)]
    rig.dispatch.on_message(rig.board(), wire.pack(wire.PROGRAM, b"app.py ended"))
    assert (job.state, link.ops(job)) == ("running", [wire.EXEC])
    assert rig.board().describe()["program"] == "app.py ended"


def test_program_that_blocks_is_forgotten_with_its_link(rig: Rig):
    rig.connect("lab-1")
    rig.dispatch.on_message(rig.board(), wire.pack(wire.PROGRAM, b"app.py", flags=wire.BLOCKS))
    rig.drop("lab-1")
    assert not rig.dispatch.stop_program(rig.board())
    rig.connect("lab-1", boot="b2")
    assert rig.board().state == "idle"


def test_what_a_program_prints_is_nobodys(rig: Rig, caplog):
    rig.connect("lab-1")
    rig.dispatch.on_message(rig.board(), wire.pack(wire.OUTPUT, b"x"))
    assert (rig.caller.told, caplog.text) == ([], "")


@pytest.mark.parametrize("op", [wire.OUTPUT, wire.RESULT, wire.INPUT, wire.VALUE])
def test_what_a_board_says_of_another_job_is_ignored(rig: Rig, op, caplog):
    rig.connect("lab-1")
    rig.connect("lab-2")
    (mine,) = rig.run("lab-1")
    (other,) = rig.run("lab-2")
    forged = wire.pack(op, struct.pack(">H", 0) + b"forged", job=other.id)
    rig.dispatch.on_message(rig.board("lab-1"), forged)
    rig.dispatch.on_message(rig.board("lab-3"), forged)
    assert rig.caller.told == []
    assert (mine.state, other.state) == ("running", "running")
    assert other.tail.text() == ""
    assert caplog.text.count("not its own") == 2


def test_a_second_result_changes_nothing(rig: Rig):
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
def test_what_no_board_may_say_is_refused(rig: Rig, message):
    rig.connect()
    with pytest.raises(PeerWireError):
        rig.dispatch.on_message(rig.board(), message)


@pytest.mark.parametrize(
    ("flags", "payload"),
    [(0, b""), (wire.RUNNING, b"\0\0"), (15, b"\0\0"), (0, b"\0\x05abc")],
)
def test_a_malformed_result_is_refused_and_ends_nothing(rig: Rig, flags, payload):
    rig.connect()
    (job,) = rig.run()
    with pytest.raises(PeerWireError):
        rig.say(job, wire.RESULT, payload, flags)
    assert job.state == "running"


def test_input_is_asked_of_a_caller_that_answers(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(answers=True)
    rig.say(job, wire.INPUT, b"name? ")
    assert rig.caller.told[-1].payload == b"name? "
    rig.dispatch.answer(job, b"ann")
    rig.dispatch.answer(job, b"twice")
    assert link.ops(job) == [wire.EXEC, wire.ANSWER]
    assert (link.sent[-1].flags, link.sent[-1].payload) == (0, b"ann")


def test_input_without_an_answerer_is_refused_at_once(rig: Rig):
    link = rig.connect()
    (job,) = rig.run()
    rig.say(job, wire.INPUT, b"name? ")
    assert rig.caller.told == []
    assert (link.sent[-1].op, link.sent[-1].flags) == (wire.ANSWER, wire.NOBODY)


def test_an_answer_after_the_link_broke_goes_nowhere(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(answers=True)
    rig.say(job, wire.INPUT)
    rig.drop()
    rig.dispatch.answer(job, b"ann")
    assert link.ops(job) == [wire.EXEC]


# Interrupts and timeouts


def test_interrupt_of_a_queued_job_takes_it_out(rig: Rig):
    link = rig.connect()
    first, second = rig.run()[0], rig.run()[0]
    rig.dispatch.interrupt(second)
    assert rig.caller.ending(second) == ("interrupted", "it was not sent yet and did not run")
    rig.end(first)
    assert link.ops(second) == []


def test_interrupt_of_a_running_job_reaches_its_board(rig: Rig):
    link = rig.connect()
    (job,) = rig.run()
    rig.dispatch.interrupt(job)
    assert link.ops(job) == [wire.EXEC, wire.INTERRUPT]
    assert job.state == "running"
    rig.end(job, "interrupted", rest=b"KeyboardInterrupt: ")
    assert rig.caller.ending(job) == ("interrupted", "")


def test_interrupt_of_a_job_whose_link_is_gone_does_no_harm(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.dispatch.interrupt(job)
    assert job.state == "adrift"


def test_a_board_that_confirms_its_timeout_is_believed(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=2)
    rig.clock.turn(2.1)
    rig.end(job, "timeout", rest=b"KeyboardInterrupt: ")
    rig.clock.turn(10)
    assert rig.caller.ending(job) == ("timeout", "")


def test_a_timeout_that_is_not_confirmed_is_told_within_a_second_and_amended(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=2)
    rig.clock.turn(2 + CONFIRM)
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


def test_a_board_that_owes_its_word_too_long_is_asked_anew(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(timeout=2)
    (next_job,) = rig.run()
    rig.clock.turn(2 + CONFIRM)
    assert link.closed == []
    rig.clock.turn(GRACE)
    assert link.closed == [1001]
    rig.drop()
    rig.connect(last=last(job, "ok"))
    assert rig.written(job)[0] == "ok"
    assert rig.caller.ops(job) == [wire.ENDED]
    assert next_job.state == "running"


def test_input_after_an_unconfirmed_timeout_is_refused(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(timeout=1, answers=True)
    rig.clock.turn(3)
    rig.say(job, wire.INPUT)
    assert link.sent[-1].flags == wire.NOBODY


def test_an_unconfirmed_timeout_survives_a_break_and_is_amended(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(2)
    rig.drop()
    rig.connect(last=last(job, "timeout", "KeyboardInterrupt: "))
    assert rig.written(job) == ("timeout", "KeyboardInterrupt:")
    assert rig.caller.ops(job) == [wire.ENDED]


@pytest.mark.parametrize("boot", ["b1", "b2"])
def test_an_unconfirmed_timeout_stays_when_the_board_knows_no_better(rig: Rig, boot):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(2)
    rig.drop()
    rig.connect(boot=boot)
    assert rig.written(job)[0] == "timeout"
    assert rig.board().state == "idle"


def test_an_unconfirmed_timeout_is_settled_once_when_the_board_stays_away(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(2)
    rig.drop()
    rig.clock.turn(GRACE)
    assert rig.caller.ending(job)[0] == "timeout"
    assert rig.board().state == "offline"


def test_a_timeout_whose_board_is_gone_ends_as_lost(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.drop()
    rig.clock.turn(1 + CONFIRM)
    assert rig.caller.ending(job)[0] == "lost"
    rig.clock.turn(GRACE)
    assert rig.board().state == "offline"


def test_a_deadline_that_comes_too_late_changes_nothing(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    (timer,) = rig.clock.timers
    rig.end(job)
    timer.act()
    assert rig.written(job) == ("ok", "")


# Links that break


def test_a_broken_link_gives_grace_and_then_the_job_is_lost(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    assert (job.state, rig.board().state) == ("adrift", "lost")
    rig.clock.turn(GRACE - 0.1)
    assert rig.caller.told == []
    rig.clock.turn(0.2)
    assert rig.caller.ending(job) == (
        "lost",
        "its link broke and it did not come back within 10 s",
    )
    assert rig.written(job)[0] == "lost"
    assert rig.board().state == "offline"


@pytest.mark.parametrize("status", ["ok", "error", "interrupted", "timeout"])
@pytest.mark.parametrize("boot", ["b1", "b2"])
def test_a_board_that_comes_back_tells_the_true_outcome(rig: Rig, status, boot):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.clock.turn(GRACE - 1)
    rig.connect(boot=boot, last=last(job, status, "its words"))
    assert rig.caller.ending(job) == (status, "its words")
    assert rig.written(job) == (status, "its words")
    assert wire.read_json(rig.caller.told[-1].payload)["output_lost"] is True
    rig.clock.turn(GRACE)
    assert rig.caller.ending(job) == (status, "its words")


@pytest.mark.parametrize(
    "remembered", [None, {}, {"job": "ffffffff", "status": 0}], ids=["none", "nothing", "another"]
)
def test_a_board_that_restarted_lost_its_job_at_once(rig: Rig, remembered):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.connect(boot="b2", last=remembered)
    assert rig.caller.ending(job) == ("lost", "the board restarted while it ran")
    assert rig.board().state == "idle"


def test_a_cell_that_never_arrived_is_lost_and_says_so(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.connect()
    assert rig.caller.ending(job) == ("lost", "it never reached the board")


def test_a_cell_that_arrived_in_part_never_ran(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.connect(last=last(job, "running"))
    assert rig.caller.ending(job) == ("lost", "it never reached the board")


def test_a_queue_goes_on_when_its_board_comes_back(rig: Rig):
    rig.connect()
    first, second = rig.run()[0], rig.run()[0]
    rig.drop()
    link = rig.connect(last=last(first))
    assert rig.caller.ending(first)[0] == "ok"
    assert link.ops(second) == [wire.EXEC]


def test_a_queue_ends_offline_when_its_board_stays_away(rig: Rig):
    rig.connect()
    first, second = rig.run()[0], rig.run()[0]
    rig.drop()
    rig.clock.turn(GRACE)
    assert rig.caller.ending(first)[0] == "lost"
    assert rig.caller.ending(second)[0] == "offline"


def test_a_second_break_starts_the_grace_anew(rig: Rig):
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


def test_a_result_that_was_still_in_the_pipe_is_believed(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.end(job)
    assert rig.caller.ending(job)[0] == "ok"
    rig.clock.turn(GRACE)
    assert rig.caller.ending(job)[0] == "ok"
    assert rig.board().state == "offline"


def test_a_job_for_a_board_in_its_grace_is_offline(rig: Rig):
    rig.connect()
    rig.run()
    rig.drop()
    (job,) = rig.run()
    assert rig.caller.ending(job)[0] == "offline"


def test_an_idle_boards_link_breaks_without_a_word(rig: Rig):
    rig.connect()
    rig.drop()
    assert rig.board().state == "offline"
    assert rig.clock.timers == []


def test_the_end_of_an_older_link_is_not_the_end_of_the_newer(rig: Rig):
    older = rig.connect()
    rig.connect()
    (job,) = rig.run()
    rig.dispatch.on_link_gone(rig.board(), older)
    assert job.state == "running"
    assert rig.board().state == "busy"


def test_a_newer_link_of_a_busy_board_settles_its_job(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    link = rig.connect(last=last(job))
    assert rig.caller.ending(job)[0] == "ok"
    (after,) = rig.run()
    assert link.ops(after) == [wire.EXEC]


# Truth that comes late


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


@pytest.mark.parametrize(
    "told",
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
def test_nonsense_about_a_last_job_does_no_harm(rig: Rig, told):
    rig.connect()
    (job,) = rig.run()
    assert job.id == 1
    rig.drop()
    rig.clock.turn(GRACE)
    rig.connect(last=told)
    assert rig.written(job)[0] == "lost"
    assert rig.board().state == "idle"


def test_an_error_that_no_file_can_hold_is_written_as_it_can(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.connect(last=last(job, "error", "lone \ud800 surrogate, NUL \0 " + "x" * 5000))
    status, error = rig.written(job)
    assert status == "error"
    assert error == ("lone ? surrogate, NUL \0 " + "x" * 5000)[:1024]
    (after,) = rig.run()
    rig.end(after)
    assert rig.written(after) == ("ok", "")


# A board that is taken out


def test_a_board_that_is_taken_out_leaves_nothing_open(rig: Rig):
    rig.connect()
    running, queued = rig.run()[0], rig.run()[0]
    (patient,) = rig.run("lab-2", wait=60)
    rig.dispatch.abandon(rig.board("lab-1"))
    rig.dispatch.abandon(rig.board("lab-2"))
    rig.drop("lab-1")
    rig.clock.turn(100)
    assert rig.caller.ending(running) == ("lost", "the board was taken out of the fleet")
    assert rig.caller.ending(queued)[0] == "offline"
    assert rig.caller.ending(patient) == ("offline", "it was taken out of the fleet")
    assert not rig.dispatch.jobs


def test_an_idle_board_is_taken_out_without_a_word(rig: Rig):
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(2)
    rig.dispatch.abandon(rig.board())
    rig.dispatch.abandon(rig.board("lab-3"))
    assert rig.caller.ops(job) == [wire.ENDED]


# A board that is waited for


def test_an_absent_board_is_waited_for_and_then_offline(rig: Rig):
    (job,) = rig.run(wait=30)
    assert job.state == "queued"
    rig.clock.turn(29.9)
    assert rig.caller.told == []
    rig.clock.turn(0.1)
    status, why = rig.caller.ending(job)
    assert (status, why) == (
        "offline",
        "it did not dial in within 30 s; it has never dialled in",
    )
    assert not rig.board().queue


def test_a_board_that_dials_in_in_time_gets_what_waits(rig: Rig):
    first, second = rig.run(wait=30)[0], rig.run(code=b"2", wait=60)[0]
    rig.clock.turn(29)
    link = rig.connect()
    assert rig.caller.ops(first) == [wire.STARTED]
    rig.clock.turn(60)
    assert (first.state, second.state) == ("running", "queued")
    rig.end(first)
    rig.end(second)
    assert link.ops(second) == [wire.EXEC]


def test_a_timeout_counts_from_the_write_and_not_from_the_wait(rig: Rig):
    (job,) = rig.run(wait=30, timeout=1)
    rig.clock.turn(20)
    rig.connect()
    rig.clock.turn(1.5)
    assert job.state == "running"
    rig.clock.turn(0.4)
    assert rig.caller.ending(job)[0] == "timeout"


def test_the_callers_patience_outlasts_the_grace(rig: Rig):
    rig.connect()
    (lost,) = rig.run()
    rig.drop()
    (patient,) = rig.run(wait=60)
    rig.clock.turn(GRACE)
    assert rig.caller.ending(lost)[0] == "lost"
    assert patient.state == "queued"
    link = rig.connect()
    assert link.ops(patient) == [wire.EXEC]


def test_a_job_that_waits_is_interrupted_and_its_timer_forgotten(rig: Rig):
    (job,) = rig.run(wait=30)
    rig.dispatch.interrupt(job)
    rig.clock.turn(100)
    assert rig.caller.ending(job)[0] == "interrupted"


def test_no_more_jobs_wait_for_an_absent_board_than_for_a_busy_one(rig: Rig):
    for _ in range(limits.QUEUED_JOBS):
        rig.run(wait=30)
    (job,) = rig.run(wait=30)
    assert rig.caller.ending(job)[0] == "error"


# A board that restarts first (--fresh)


def test_a_fresh_cell_runs_after_the_restart(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(code=b"fresh", fresh=True)
    assert link.ops(job) == [wire.RESET]
    assert (job.state, rig.board().state) == ("resetting", "busy")
    rig.drop()
    rig.clock.turn(GRACE + 1)  # a real board's Wi-Fi takes its time
    link = rig.connect(boot="b2", last=None)
    assert link.ops(job) == [wire.EXEC]
    rig.clock.turn(RESET_SECONDS)
    assert job.state == "running"
    rig.end(job)
    assert rig.caller.ending(job)[0] == "ok"


def test_a_fresh_cell_waits_for_its_turn_first(rig: Rig):
    link = rig.connect()
    first, fresh = rig.run()[0], rig.run(fresh=True)[0]
    assert link.ops(fresh) == []
    rig.end(first)
    assert link.ops(fresh) == [wire.RESET]


def test_a_board_that_did_not_restart_runs_no_fresh_cell(rig: Rig):
    rig.connect()
    (job,) = rig.run(fresh=True)
    rig.drop()
    link = rig.connect(boot="b1")
    assert rig.caller.ending(job) == ("error", "the board did not restart; the cell did not run")
    assert link.ops(job) == []


@pytest.mark.parametrize("link_breaks", [False, True])
def test_a_board_that_does_not_come_back_from_its_reset_is_lost_with_its_queue(rig, link_breaks):
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
def test_a_reset_that_is_interrupted_holds_up_nobody_for_ever(rig: Rig, link_breaks):
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


def test_a_board_back_from_a_reset_that_was_interrupted_goes_on(rig: Rig):
    rig.connect()
    fresh, after = rig.run(fresh=True)[0], rig.run()[0]
    rig.drop()
    rig.dispatch.interrupt(fresh)
    link = rig.connect(boot="b2")
    assert (link.ops(fresh), link.ops(after)) == ([], [wire.EXEC])


# What is known of jobs afterwards


def test_a_job_that_ended_is_still_known_without_its_code(rig: Rig):
    rig.connect()
    (job,) = rig.run(code=b"secret = 1")
    rig.end(job, output=b"hi\r\n", rest=b"42")
    known = rig.dispatch.recent.get(job.id)
    assert known is not None
    told = known.show()
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
    known = rig.dispatch.recent.get(job.id)
    assert known is not None
    assert (known.status, known.error) == ("error", "Traceback\nValueError: true")
    assert rig.written(job) == ("error", "ValueError: true")


# Callers and servers that go


def test_a_job_goes_on_without_its_caller(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.dispatch.forget(rig.caller)
    rig.say(job, wire.OUTPUT, b"to nobody")
    rig.end(job)
    assert rig.caller.told == []
    assert rig.written(job) == ("ok", "")
    assert job.tail.text() == "to nobody"


def test_a_caller_that_goes_while_it_is_asked_leaves_eof(rig: Rig):
    link = rig.connect()
    (job,) = rig.run(answers=True)
    rig.say(job, wire.INPUT)
    rig.dispatch.forget(rig.caller)
    assert (link.sent[-1].op, link.sent[-1].flags) == (wire.ANSWER, wire.NOBODY)


def test_a_caller_that_goes_takes_no_other_callers_jobs(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.dispatch.forget(RecordingWatcher())
    rig.end(job)
    assert rig.caller.ending(job)[0] == "ok"


def test_stop_ends_what_was_not_sent_and_leaves_what_runs_open(rig: Rig):
    rig.connect()
    running, queued = rig.run()[0], rig.run()[0]
    rig.dispatch.stop()
    assert rig.caller.ending(queued) == (
        "lost",
        "the server stopped before it was sent; it did not run",
    )
    assert rig.written(queued)[0] == "lost"
    assert rig.written(running) == (None, None)


def test_stop_ends_a_cell_whose_board_restarts(rig: Rig):
    rig.connect()
    (job,) = rig.run(fresh=True)
    rig.dispatch.stop()
    assert rig.written(job)[0] == "lost"


def test_a_new_server_takes_over_each_boards_oldest_open_job(rig: Rig):
    rig.connect("lab-1")
    rig.connect("lab-2")
    ran, other = rig.run("lab-1", "lab-2")
    (never_sent,) = rig.run("lab-1")
    later = Rig(rig.store)  # the first one is dead: kill -9
    assert later.written(never_sent) == ("lost", "the server restarted before it was sent")
    assert later.written(ran) == (None, None)
    assert later.board("lab-1").state == "lost"
    later.connect("lab-1", last=last(ran, "error", "ValueError: true"))
    assert later.written(ran) == ("error", "ValueError: true")
    later.clock.turn(GRACE)
    assert later.written(other)[0] == "lost"
    later.connect("lab-2", last=last(other))
    assert later.written(other)[0] == "ok"


def test_a_new_server_amends_what_the_one_before_had_to_guess(rig: Rig):
    rig.connect()
    (job,) = rig.run()
    rig.drop()
    rig.clock.turn(GRACE)
    later = Rig(rig.store)
    later.connect(last=last(job, "ok"))
    assert later.written(job)[0] == "ok"


def test_a_new_server_knows_a_board_that_restarted_meanwhile(rig: Rig):
    rig.connect()
    rig.store.saw_board("id1", {"boot": "b1"})
    (job,) = rig.run()
    later = Rig(rig.store)
    later.connect(boot="b2")
    assert later.written(job) == ("lost", "the board restarted while it ran")


def test_open_jobs_of_boards_that_are_gone_end_at_the_next_start(rig: Rig):
    rig.store.begin(["no such id"], "ann")
    later = Rig(rig.store)
    row = later.store.job(1)
    assert row is not None
    assert row.status == "lost"


def test_the_log_has_no_bytes_of_a_boards(rig: Rig, caplog):
    caplog.set_level(logging.INFO)
    rig.connect()
    (job,) = rig.run(timeout=1)
    rig.clock.turn(5)
    rig.end(job, "error", rest=b"\x1b[31mValueError: \r\nforged line")
    assert "forged" not in caplog.text
    assert "\x1b" not in caplog.text
