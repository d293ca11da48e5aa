"""Jobs: bounded tails of output, and bounded recently ended jobs."""

from __future__ import annotations

import json
import time

import pytest

from cm_server.jobs.job_history import RecentJobs
from cm_server.jobs.model import Board, Cell, Job, RemoteBoardState, Requester, Tail
from cm_server.limits import Limits
from cm_server.store.rows import BoardRow

LIMITS = Limits()
TAIL_BYTES = LIMITS.tail_bytes


class Timer:
    cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


class Observer:
    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bool]] = []

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        self.messages.append((message, droppable))


def job(number: int = 1, observer: Observer | None = None) -> Job:
    board = Board(BoardRow("id1", "lab-1", bytes(32), {}, {}, 0.0, None))
    return Job(number, board, Cell(b"print(1)", title="the title"), Requester("ann", observer))


def test_tail_keeps_a_short_text():
    tail = Tail(TAIL_BYTES)
    tail.add(b"one\r\n")
    tail.add("zw\u00f6lf".encode())
    assert (tail.text(), tail.truncated, len(tail)) == ("one\nzw\u00f6lf", False, 11)


def test_tail_keeps_the_end_of_a_long_text():
    tail = Tail(TAIL_BYTES)
    for number in range(100_000):
        tail.add(b"%8d" % number)
        assert len(tail) <= 2 * TAIL_BYTES
    assert tail.truncated
    assert len(tail.text()) == TAIL_BYTES
    assert tail.text().endswith("   99998   99999")


@pytest.mark.parametrize(("size", "cut"), [(TAIL_BYTES, False), (TAIL_BYTES + 1, True)])
def test_tail_reports_whether_it_was_truncated(size, cut):
    tail = Tail(TAIL_BYTES)
    for _ in range(size):
        tail.add(b"x")
    assert (len(tail.text()), tail.truncated) == (TAIL_BYTES, cut)


def test_single_write_may_be_longer_than_the_tail():
    tail = Tail(TAIL_BYTES)
    tail.add(bytes(10 * TAIL_BYTES) + b"end")
    assert tail.text().endswith("\0end")
    assert (len(tail), tail.truncated) == (TAIL_BYTES, True)


def test_tail_truncated_within_a_character_is_text():
    tail = Tail(TAIL_BYTES)
    tail.add(b"x" + "\u00e4".encode() * 2 * TAIL_BYTES)
    assert tail.text()[1:] == "\u00e4" * (TAIL_BYTES // 2 - 1)


def test_job_delivers_messages_to_its_observer():
    observer = Observer()
    watched = job(observer=observer)
    watched.deliver(b"a")
    watched.deliver(b"b", droppable=True)
    watched.observer = None
    watched.deliver(b"c")
    assert observer.messages == [(b"a", False), (b"b", True)]


def test_timer_is_cancelled_once():
    timed, timer = job(), Timer()
    timed.timer = timer
    timed.stop_timer()
    timed.stop_timer()
    assert timer.cancelled == 1


def test_describe_returns_state_and_time():
    known = job(7)
    assert known.describe() == {
        "job": 7,
        "board": "lab-1",
        "caller": "ann",
        "state": "queued",
        "status": None,
        "created": known.created,
        "started": None,
        "elapsed": None,
    }
    known.state, known.started = "running", time.time() - 5
    assert known.describe()["elapsed"] == pytest.approx(5, abs=1)
    known.state, known.status, known.ended = "ended", "ok", known.started + 2
    ended = known.describe()
    assert (ended["state"], ended["status"], ended["elapsed"]) == ("ended", "ok", pytest.approx(2))


def test_describe_with_output_is_json_with_tails_and_without_code():
    known = job()
    known.output_tail.add(b"hi\xff\x1b[2J")
    known.value.add(b"42")
    known.error = "an error"
    shown = json.loads(json.dumps(known.describe_with_output()))
    assert shown["stdout"] == "hi\ufffd\x1b[2J"
    assert (shown["value"], shown["error"], shown["truncated"]) == ("42", "an error", False)
    assert "print(1)" not in json.dumps(shown)


def test_recent_jobs_are_listed_newest_first():
    recent = RecentJobs(LIMITS)
    for number in (1, 2, 3):
        recent.add(job(number))
    found = recent.get(2)
    assert found is not None
    assert (found.id, found.cell.code, found.cell.title) == (2, b"", "the title")
    assert recent.get(4) is None
    assert [known.id for known in recent.newest()] == [3, 2, 1]


def test_recent_jobs_are_bounded_in_number():
    recent = RecentJobs(LIMITS)
    for number in range(LIMITS.recent_jobs + 5):
        recent.add(job(number))
    assert len(recent.newest()) == LIMITS.recent_jobs
    assert recent.get(4) is None
    assert recent.get(5) is not None


def test_recent_jobs_are_bounded_in_bytes():
    recent = RecentJobs(LIMITS)
    for number in range(300):
        loud = job(number)
        loud.output_tail.add(bytes(100_000))
        recent.add(loud)
    kept = recent.newest()
    assert sum(len(known.output_tail) for known in kept) <= LIMITS.recent_bytes
    assert len(kept) == LIMITS.recent_bytes // 100_000
    assert kept[0].id == 299


# What a queued job waits for


def job_of(board: Board, number: int, caller: str) -> Job:
    return Job(number, board, Cell(b"print(1)"), Requester(caller))


def test_queued_job_waits_for_the_callers_before_it():
    board = job().board
    running, second, third, mine, later = (
        job_of(board, number, caller)
        for number, caller in enumerate(("ann", "bob", "ann", "me", "eve"))
    )
    board.current_job, running.started = running, time.time() - 5
    board.queue.extend((second, third, mine, later))
    jobs_ahead, known = mine.describe_wait()
    assert (jobs_ahead, known["callers"]) == (3, ["ann", "bob"])
    assert 4 < known["elapsed"] < 60


def test_queued_job_names_few_of_many_callers():
    board = job().board
    mine = job_of(board, 99, "me")
    board.queue.extend([*(job_of(board, n, f"caller-{n}") for n in range(20)), mine])
    jobs_ahead, known = mine.describe_wait()
    assert (jobs_ahead, len(known["callers"])) == (20, 4)


def test_queued_job_waits_for_the_program_of_its_board():
    mine = job()
    mine.board.blocked = True
    mine.board.reported_facts = {"program": "app.py"}
    mine.board.queue.append(mine)
    assert mine.describe_wait() == (1, {"callers": [], "program": "app.py"})


def test_job_of_an_offline_board_waits_for_nobody():
    mine = job()
    mine.board.queue.append(mine)
    assert mine.describe_wait() == (0, {"callers": []})


@pytest.mark.parametrize(
    ("running", "queued", "wait"),
    [
        ({"caller": "ann", "elapsed": 5.0}, 0, (1, {"callers": ["ann"], "elapsed": 5.0})),
        ({"caller": "ann", "elapsed": 5.0}, 2, (3, {"elapsed": 5.0})),
        (None, 0, (1, {})),
    ],
    ids=["one job", "several jobs", "unknown"],
)
def test_job_of_another_server_waits_for_what_that_server_reports(running, queued, wait):
    mine = job()
    mine.owner = "server-b"
    mine.board.remote_state = RemoteBoardState("server-b", 1, "busy", 1.0, running, queued)
    assert mine.describe_wait() == wait


def test_job_of_a_board_that_no_server_has_waits_for_nobody():
    mine = job()
    mine.owner = "?"
    assert mine.describe_wait() == (0, {})
