"""``CellView``: events or jobs in, text out."""

from __future__ import annotations

from typing import Any

import pytest

from cloudmanager.client import jobs
from cloudmanager.client.cells import prepare_cell
from cloudmanager.client.jobs import Event, JobGroup
from cloudmanager.display.cell_view import CellView, DisplayOptions, results_text
from cloudmanager.display.folding import RESETTING, WAITING_FOR_BOARD, plain_text
from cloudmanager.protocol import wire
from cloudmanager.protocol.run_options import RunOptions
from cloudmanager.results.results import Result, Results


class JobScenario:
    """The jobs of some boards, a view of them, and a clock that the test sets."""

    def __init__(
        self,
        *names: str,
        queued: list[list[int]] | None = None,
        fresh: bool = False,
        **options: Any,
    ) -> None:
        self.now = 0.0
        self.group = JobGroup(prepare_cell("1"), RunOptions(fresh=fresh))
        jobs = [[number, name] for number, name in enumerate(names)]
        body = {"jobs": jobs, "queued": queued or []}
        self.group.on_accepted(body, lambda _: None, lambda _job, _text: None)
        options = {"progress_after": -1, **options}
        self.view = CellView(self.group, DisplayOptions(**options), clock=lambda: self.now)

    def receive(self, op: int, board: str, payload: bytes = b"") -> None:
        """Pass a message of the server to the jobs; its events are not read."""
        job = self.group.jobs[board]
        self.group.handle_message(job, wire.Message(op, 0, job.number, payload))

    def poll(self) -> list[str]:
        self.view.poll_jobs()
        return self.lines()

    def emit(self, kind: str, board: str, text: str = "") -> None:
        self.view.handle_event(Event(kind, self.group.jobs[board], text))

    def end(self, board: str, status: str = "ok", **fields: object) -> None:
        job = self.group.jobs[board]
        job.result = Result(board, job.number, status, **fields)
        self.emit("ended", board)

    def lines(self, *, final: bool = False) -> list[str]:
        return self.view.text(final=final).split("\n")


def head(title: str) -> str:
    return f"── {title} ".ljust(48, "─")


def test_single_running_board_shows_only_its_output():
    scenario = JobScenario("demo-1")
    assert scenario.lines() == [""]
    scenario.emit("output", "demo-1", "one\ntw")
    scenario.emit("output", "demo-1", "o\n")
    assert scenario.lines() == ["one", "two"]


def test_running_boards_with_equal_output_share_a_block():
    scenario = JobScenario("demo-1", "demo-2")
    for board in ("demo-1", "demo-2"):
        scenario.emit("output", board, "hi\n")
    assert scenario.lines() == [head("demo-[1-2] · running"), "hi"]
    scenario.emit("output", "demo-2", "there\n")
    assert scenario.lines() == [
        *(head("demo-1 · running"), "hi", ""),
        *(head("demo-2 · running"), "hi", "there"),
    ]


def test_head_shows_the_running_time():
    scenario = JobScenario("demo-1", "demo-2")
    scenario.now = 3.2
    assert scenario.lines() == [head("demo-[1-2] · running 3 s")]


def test_queued_board_shows_its_state_until_it_starts():
    scenario = JobScenario("demo-1")
    scenario.now = 5.0
    scenario.emit("queued", "demo-1")
    assert scenario.lines() == [head(f"demo-1 · {WAITING_FOR_BOARD}")]
    scenario.emit("queued", "demo-1", "behind 2 jobs of anna")
    assert scenario.lines() == [head("demo-1 · queued behind 2 jobs of anna")]
    scenario.emit("started", "demo-1")
    assert scenario.lines() == [""]


def test_running_time_excludes_the_queue():
    scenario = JobScenario("demo-1", "demo-2")
    scenario.emit("queued", "demo-1")
    scenario.now = 5.0
    scenario.emit("started", "demo-1")
    scenario.now = 7.0
    assert scenario.lines() == [head("demo-[1-2] · running 2 s")]


def test_truncated_output_of_a_running_board_is_marked():
    scenario = JobScenario("demo-1")
    scenario.emit("truncated", "demo-1")
    assert scenario.lines() == ["… some output was left out: it came faster than it could be read"]


def test_result_replaces_the_output_of_events():
    scenario = JobScenario("demo-1")
    scenario.emit("output", "demo-1", "half of it")
    scenario.end("demo-1", stdout="all of it\n", text="7")
    assert scenario.lines(final=True) == ["all of it", "Out: 7"]


def test_input_event_changes_nothing():
    scenario = JobScenario("demo-1")
    scenario.emit("input", "demo-1", "name? ")
    assert scenario.lines() == [""]


def test_ended_and_running_boards_are_shown_together():
    scenario = JobScenario("demo-1", "demo-2")
    scenario.end("demo-1", text="1")
    assert scenario.lines() == [head("demo-1"), "1", "", head("demo-2 · running")]


def test_failures_option_shows_or_hides_failures():
    for failures, shown in (("show", [head("demo-1 · error"), "E: no"]), ("raise", [""])):
        scenario = JobScenario("demo-1", failures=failures)
        scenario.end("demo-1", "error", traceback="E: no\n")
        assert scenario.lines(final=True) == shown


def test_note_about_omitted_lines_names_the_full_output():
    scenario = JobScenario("demo-1", full_output_hint="`-o r` keeps them in r['{board}'].stdout")
    scenario.end("demo-1", stdout="x\n" * 1001)
    assert scenario.lines(final=True)[0] == "… 1 more line, `-o r` keeps them in r['demo-1'].stdout"


def test_end_lines_are_value_or_traceback():
    scenario = JobScenario("demo-1")
    scenario.end("demo-1", stdout="hi\n", text="42")
    assert plain_text(scenario.view.end_lines("demo-1")) == "Out: 42"
    scenario = JobScenario("demo-1")
    scenario.end("demo-1", "error", stdout="hi\n", traceback="E: no\n")
    assert plain_text(scenario.view.end_lines("demo-1")).split("\n") == [
        head("demo-1 · error"),
        "E: no",
    ]


def test_results_text_equals_the_final_text_of_the_view():
    scenario = JobScenario("demo-1", "demo-2")
    scenario.end("demo-1", text="1")
    scenario.end("demo-2", "timeout")
    ended = {
        name: job.result for name, job in scenario.group.jobs.items() if job.result is not None
    }
    assert results_text(Results(ended)) == scenario.view.text(final=True)


def test_text_of_two_hundred_flooding_boards_is_bounded():
    names = [f"demo-{n}" for n in range(200)]
    scenario = JobScenario(*names)
    for number, name in enumerate(names):
        for _ in range(20):
            scenario.emit("output", name, f"{number}\n" * 1000)
    assert len(scenario.view.text()) < 40_000
    assert len(scenario.view.text(final=True)) < 600_000


def test_resetting_board_shows_its_state_until_output_or_start():
    scenario = JobScenario("demo-1")
    for kind, text in (("output", "hi"), ("started", "")):
        scenario.emit("resetting", "demo-1")
        assert scenario.lines()[0] == head(f"demo-1 · {RESETTING}")
        scenario.emit(kind, "demo-1", text)
        assert scenario.lines() == ["hi"]


@pytest.mark.parametrize("after", [2.0, 0.0])
def test_progress_is_shown_after_its_delay(after: float):
    scenario = JobScenario("demo-1", "demo-2", progress_after=after)
    scenario.end("demo-1", text="1")
    scenario.now = after
    progress = f"━━━━━━━━━━━━──────────── 1 of 2 boards are done · {after:.0f} s"
    running = "running 2 s" if after else "running"
    assert scenario.lines() == [head("demo-1"), "1", "", head(f"demo-2 · {running}"), "", progress]
    scenario.now = after - 0.1
    assert progress not in scenario.lines()
    scenario.now = after
    assert progress not in scenario.lines(final=True)


def test_silent_board_shows_only_its_progress():
    scenario = JobScenario("demo-1", progress_after=2)
    scenario.now = 2.5
    assert scenario.lines() == ["demo-1 · running · 2 s"]


def test_negative_delay_disables_progress():
    scenario = JobScenario("demo-1", progress_after=-1)
    scenario.now = 1000
    assert scenario.lines() == [""]


# In order of arrival


def test_order_grouping_shows_lines_as_they_arrive():
    scenario = JobScenario("demo-1", "demo-10", grouping="order")
    scenario.emit("output", "demo-1", "one\nhal")
    scenario.emit("output", "demo-10", "two\n")
    assert scenario.lines() == ["demo-1   one", "demo-10  two", "demo-1   hal"]
    scenario.emit("truncated", "demo-10")
    scenario.emit("output", "demo-1", "f\n")
    scenario.end("demo-10", "timeout", elapsed=3.0)
    scenario.end("demo-1", text="42", stdout="one\nhalf\n")
    assert scenario.lines(final=True) == [
        "demo-1   one",
        "demo-10  two",
        "demo-10  … some output was left out: it came faster than it could be read",
        "demo-1   half",
        "demo-10  timeout after 3 s",
        "demo-1   Out: 42",
    ]


# Without events: polling the jobs


def test_polling_view_shows_earlier_and_new_output():
    scenario = JobScenario("demo-1", "demo-2")
    for board in ("demo-1", "demo-2"):
        scenario.receive(wire.OUTPUT, board, b"one\n")
    assert scenario.poll()[1:] == ["one"]
    scenario.receive(wire.OUTPUT, "demo-1", b"two\n")
    result = wire.pack(wire.RESULT, b"\0\x04two\n7", job=0)
    scenario.group.handle_message(scenario.group.jobs["demo-1"], wire.unpack(result))
    assert scenario.poll()[:4] == [head("demo-1"), "one", "two", "two"]
    assert scenario.poll()[4] == "Out: 7"


def test_polling_view_shows_queued_and_resetting_boards():
    scenario = JobScenario("demo-1", "demo-2", "demo-3", queued=[[0, 2], [1, 0]], fresh=True)
    assert scenario.poll() == [
        head("demo-1 · queued behind 2 jobs"),
        head(f"demo-2 · {WAITING_FOR_BOARD}"),
        head(f"demo-3 · {RESETTING}"),
    ]
    scenario.receive(wire.STARTED, "demo-1")
    scenario.receive(wire.OUTPUT, "demo-3", b"hi\n")
    assert scenario.poll() == [
        head(f"demo-1 · {RESETTING}"),
        head(f"demo-2 · {WAITING_FOR_BOARD}"),
        *("", head("demo-3 · running"), "hi"),
    ]


def test_polling_view_restarts_when_the_job_dropped_old_output(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(jobs, "MAX_OUTPUT_CHARS", 10)
    scenario = JobScenario("demo-1")
    scenario.receive(wire.OUTPUT, "demo-1", b"0123456789\n")
    assert scenario.poll() == ["0123456789"]
    scenario.receive(wire.OUTPUT, "demo-1", b"abcdefghij\n")
    assert scenario.poll() == [
        "… some output was left out: it came faster than it could be read",
        "bcdefghij",
    ]
