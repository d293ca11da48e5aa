"""The view: events in, text out."""

from __future__ import annotations

from typing import Any

import pytest

from cloudmanager.client import jobs
from cloudmanager.client.cells import prepare_cell
from cloudmanager.client.jobs import Event, JobGroup
from cloudmanager.display.cell_view import CellView, DisplayOptions, results_text
from cloudmanager.display.layout import RESETTING, WAITING_FOR_BOARD, plain_text
from cloudmanager.protocol import wire
from cloudmanager.results.results import Result, Results


class Story:
    """Some boards, a view of them, and a clock that is set by hand."""

    def __init__(
        self, *names: str, queued: list[list[int]] | None = None, fresh: bool = False, **looks: Any
    ) -> None:
        self.now = 0.0
        self.group = JobGroup(prepare_cell("1"))
        self.group.fresh = fresh
        jobs = [[number, name] for number, name in enumerate(names)]
        body = {"jobs": jobs, "queued": queued or []}
        self.group.on_accepted(body, lambda _: None, lambda _job, _text: None)
        looks = {"progress_after": -1, **looks}
        self.view = CellView(self.group, DisplayOptions(**looks), clock=lambda: self.now)

    def hear(self, op: int, board: str, payload: bytes = b"") -> None:
        """Take a message of the server, whose events nobody reads."""
        job = self.group.jobs[board]
        self.group.handle_message(job, wire.Message(op, 0, job.number, payload))

    def look(self) -> list[str]:
        self.view.poll_jobs()
        return self.lines()

    def tell(self, kind: str, board: str, text: str = "") -> None:
        self.view.handle_event(Event(kind, self.group.jobs[board], text))

    def end(self, board: str, status: str = "ok", **told: object) -> None:
        job = self.group.jobs[board]
        job.result = Result(board, job.number, status, **told)
        self.tell("ended", board)

    def lines(self, *, final: bool = False) -> list[str]:
        return self.view.text(final=final).split("\n")


def head(words: str) -> str:
    return f"── {words} ".ljust(48, "─")


def test_one_running_board_shows_its_output_alone():
    story = Story("demo-1")
    assert story.lines() == [""]
    story.tell("output", "demo-1", "one\ntw")
    story.tell("output", "demo-1", "o\n")
    assert story.lines() == ["one", "two"]


def test_running_boards_fold_while_they_say_the_same():
    story = Story("demo-1", "demo-2")
    for board in ("demo-1", "demo-2"):
        story.tell("output", board, "hi\n")
    assert story.lines() == [head("demo-[1-2] · running"), "hi"]
    story.tell("output", "demo-2", "there\n")
    assert story.lines() == [
        *(head("demo-1 · running"), "hi", ""),
        *(head("demo-2 · running"), "hi", "there"),
    ]


def test_head_tells_how_long_boards_have_been_running():
    story = Story("demo-1", "demo-2")
    story.now = 3.2
    assert story.lines() == [head("demo-[1-2] · running 3 s")]


def test_queued_board_says_so_until_it_starts():
    story = Story("demo-1")
    story.now = 5.0
    story.tell("queued", "demo-1")
    assert story.lines() == [head(f"demo-1 · {WAITING_FOR_BOARD}")]
    story.tell("queued", "demo-1", "behind 2")
    assert story.lines() == [head("demo-1 · queued behind 2")]
    story.tell("started", "demo-1")
    assert story.lines() == [""]


def test_time_in_the_queue_is_not_counted():
    story = Story("demo-1", "demo-2")
    story.tell("queued", "demo-1")
    story.now = 5.0
    story.tell("started", "demo-1")
    story.now = 7.0
    assert story.lines() == [head("demo-[1-2] · running 2 s")]


def test_left_out_output_is_told_while_it_runs():
    story = Story("demo-1")
    story.tell("truncated", "demo-1")
    assert story.lines() == ["… some output was left out: it came faster than it could be read"]


def test_result_replaces_what_was_heard():
    story = Story("demo-1")
    story.tell("output", "demo-1", "half of it")
    story.end("demo-1", stdout="all of it\n", text="7")
    assert story.lines(final=True) == ["all of it", "Out: 7"]


def test_input_changes_nothing():
    story = Story("demo-1")
    story.tell("input", "demo-1", "name? ")
    assert story.lines() == [""]


def test_boards_that_ended_stand_beside_those_that_run():
    story = Story("demo-1", "demo-2")
    story.end("demo-1", text="1")
    assert story.lines() == [head("demo-1"), "1", "", head("demo-2 · running")]


def test_failures_are_shown_as_the_reader_wishes():
    for failures, shown in (("show", [head("demo-1 · error"), "E: no"]), ("raise", [""])):
        story = Story("demo-1", failures=failures)
        story.end("demo-1", "error", traceback="E: no\n")
        assert story.lines(final=True) == shown


def test_note_tells_where_the_whole_output_is():
    story = Story("demo-1", full_output_hint="`-o r` keeps them in r['{board}'].stdout")
    story.end("demo-1", stdout="x\n" * 1001)
    assert story.lines(final=True)[0] == "… 1 more line, `-o r` keeps them in r['demo-1'].stdout"


def test_ending_is_what_follows_the_output():
    story = Story("demo-1")
    story.end("demo-1", stdout="hi\n", text="42")
    assert plain_text(story.view.end_lines("demo-1")) == "Out: 42"
    story = Story("demo-1")
    story.end("demo-1", "error", stdout="hi\n", traceback="E: no\n")
    assert plain_text(story.view.end_lines("demo-1")).split("\n") == [
        head("demo-1 · error"),
        "E: no",
    ]


def test_results_look_as_their_view_did_in_the_end():
    story = Story("demo-1", "demo-2")
    story.end("demo-1", text="1")
    story.end("demo-2", "timeout")
    ended = {name: job.result for name, job in story.group.jobs.items() if job.result is not None}
    assert results_text(Results(ended)) == story.view.text(final=True)


def test_text_of_two_hundred_flooding_boards_is_bounded():
    names = [f"demo-{n}" for n in range(200)]
    story = Story(*names)
    for number, name in enumerate(names):
        for _ in range(20):
            story.tell("output", name, f"{number}\n" * 1000)
    assert len(story.view.text()) < 40_000
    assert len(story.view.text(final=True)) < 600_000


def test_board_that_resets_says_so_until_it_speaks_or_starts():
    story = Story("demo-1")
    for kind, text in (("output", "hi"), ("started", "")):
        story.tell("resetting", "demo-1")
        assert story.lines()[0] == head(f"demo-1 · {RESETTING}")
        story.tell(kind, "demo-1", text)
        assert story.lines() == ["hi"]


@pytest.mark.parametrize("after", [2.0, 0.0])
def test_progress_is_told_when_it_is_time(after: float):
    story = Story("demo-1", "demo-2", progress_after=after)
    story.end("demo-1", text="1")
    story.now = after
    told = f"━━━━━━━━━━━━──────────── 1 of 2 boards are done · {after:.0f} s"
    running = "running 2 s" if after else "running"
    assert story.lines() == [head("demo-1"), "1", "", head(f"demo-2 · {running}"), "", told]
    story.now = after - 0.1
    assert told not in story.lines()
    story.now = after
    assert told not in story.lines(final=True)


def test_progress_of_a_silent_board_is_all_there_is():
    story = Story("demo-1", progress_after=2)
    story.now = 2.5
    assert story.lines() == ["demo-1 · running · 2 s"]


def test_progress_may_be_unwanted():
    story = Story("demo-1", progress_after=-1)
    story.now = 1000
    assert story.lines() == [""]


# In the order of coming


def test_lines_stand_in_the_order_of_coming():
    story = Story("demo-1", "demo-10", grouping="order")
    story.tell("output", "demo-1", "one\nhal")
    story.tell("output", "demo-10", "two\n")
    assert story.lines() == ["demo-1   one", "demo-10  two", "demo-1   hal"]
    story.tell("truncated", "demo-10")
    story.tell("output", "demo-1", "f\n")
    story.end("demo-10", "timeout", elapsed=3.0)
    story.end("demo-1", text="42", stdout="one\nhalf\n")
    assert story.lines(final=True) == [
        "demo-1   one",
        "demo-10  two",
        "demo-10  … some output was left out: it came faster than it could be read",
        "demo-1   half",
        "demo-10  timeout after 3 s",
        "demo-1   Out: 42",
    ]


# Without events: a cell that nobody has followed


def test_late_view_finds_what_was_said_and_goes_on():
    story = Story("demo-1", "demo-2")
    for board in ("demo-1", "demo-2"):
        story.hear(wire.OUTPUT, board, b"one\n")
    assert story.look()[1:] == ["one"]
    story.hear(wire.OUTPUT, "demo-1", b"two\n")
    result = wire.pack(wire.RESULT, b"\0\x04two\n7", job=0)
    story.group.handle_message(story.group.jobs["demo-1"], wire.unpack(result))
    assert story.look()[:4] == [head("demo-1"), "one", "two", "two"]
    assert story.look()[4] == "Out: 7"


def test_late_view_knows_who_waits_and_who_resets():
    story = Story("demo-1", "demo-2", "demo-3", queued=[[0, 2], [1, 0]], fresh=True)
    assert story.look() == [
        head("demo-1 · queued behind 2"),
        head(f"demo-2 · {WAITING_FOR_BOARD}"),
        head(f"demo-3 · {RESETTING}"),
    ]
    story.hear(wire.STARTED, "demo-1")
    story.hear(wire.OUTPUT, "demo-3", b"hi\n")
    assert story.look() == [
        head(f"demo-1 · {RESETTING}"),
        head(f"demo-2 · {WAITING_FOR_BOARD}"),
        *("", head("demo-3 · running"), "hi"),
    ]


def test_late_view_of_a_flood_starts_anew_where_its_beginning_is_gone(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(jobs, "MAX_OUTPUT_CHARS", 10)
    story = Story("demo-1")
    story.hear(wire.OUTPUT, "demo-1", b"0123456789\n")
    assert story.look() == ["0123456789"]
    story.hear(wire.OUTPUT, "demo-1", b"abcdefghij\n")
    assert story.look() == [
        "… some output was left out: it came faster than it could be read",
        "bcdefghij",
    ]
