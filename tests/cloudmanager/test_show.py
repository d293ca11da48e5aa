"""The view: events in, text out."""

from __future__ import annotations

from cloudmanager.cells import prepare
from cloudmanager.jobs import Event, JobGroup, Result, Results
from cloudmanager.show import View, results_text


class Story:
    """Some boards, a view of them, and a clock that is set by hand."""

    def __init__(self, *names: str, **options: str) -> None:
        self.now = 0.0
        self.group = JobGroup(prepare("1"))
        jobs = [[number, name] for number, name in enumerate(names)]
        self.group.accept({"jobs": jobs}, lambda _: None, lambda _job, _text: None)
        self.view = View(self.group, clock=lambda: self.now, **options)

    def tell(self, kind: str, board: str, text: str = "") -> None:
        self.view.take(Event(kind, self.group.jobs[board], text))

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
        *(head("demo-1 · running"), "hi"),
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
    assert story.lines() == [head("demo-1 · queued")]
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
    assert story.lines() == [head("demo-1"), "1", head("demo-2 · running")]


def test_failures_are_shown_as_the_reader_wishes():
    for failures, shown in (("show", [head("demo-1 · error"), "E: no"]), ("raise", [""])):
        story = Story("demo-1", failures=failures)
        story.end("demo-1", "error", traceback="E: no\n")
        assert story.lines(final=True) == shown


def test_note_tells_where_the_whole_output_is():
    story = Story("demo-1", kept="`-o r` keeps them in r['{board}'].stdout")
    story.end("demo-1", stdout="x\n" * 1001)
    assert story.lines(final=True)[0] == "… 1 lines more, `-o r` keeps them in r['demo-1'].stdout"


def test_ending_is_what_follows_the_output():
    story = Story("demo-1")
    story.end("demo-1", stdout="hi\n", text="42")
    assert story.view.ending("demo-1") == "Out: 42"
    story = Story("demo-1")
    story.end("demo-1", "error", stdout="hi\n", traceback="E: no\n")
    assert story.view.ending("demo-1").split("\n") == [head("demo-1 · error"), "E: no"]


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
