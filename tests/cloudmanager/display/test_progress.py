"""How far a transfer is: nothing at first, then a line, or a bar in a terminal."""

import io
import sys

import pytest

from cloudmanager.client.future import Future
from cloudmanager.display import progress
from cloudmanager.display.progress import ProgressBar, ProgressMeter, run_with_progress
from cloudmanager.results.results import Results


def test_meter_sums_its_boards_and_is_due_after_a_while():
    now = [10.0]
    found = ProgressMeter(lambda: now[0])
    found.update("a", 100_000, 1_000_000)
    found.update("b", 0, 1_000_000)
    before = found.should_show
    now[0] = 12.0
    found.update("a", 500_000, 1_000_000)
    assert (before, found.should_show) == (False, True)
    assert found.text() == "25 % of 2.0 MB on 2 boards, 250 KB/s"


def test_nothing_moved_is_never_due():
    now = [0.0]
    found = ProgressMeter(lambda: now[0])
    now[0] = 99.0
    assert not found.should_show


def test_what_comes_before_the_bytes_is_told_after_two_seconds():
    now = [0.0]
    found = ProgressMeter(lambda: now[0], preparation="making the plan")
    now[0] = 1.5
    early = found.should_show
    now[0] = 3.2
    assert (early, found.should_show, found.text()) == (False, True, "making the plan · 3 s")
    found.update("a", 500, 1000)
    assert found.text().startswith("50 %")


def test_follow_shows_in_the_waiting_thread_and_returns_the_results(monkeypatch):
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    once, seen = Future[Results](), []

    async def work(tell):
        tell("a", 1, 2)
        return await once

    def show(now):
        seen.append(now.text())
        once.set_result(Results({}))

    assert run_with_progress(work, show) == Results({})
    assert seen
    assert seen[0].startswith("50 % of")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("terminal", "drawn"), [(Terminal(), True), (io.StringIO(), False)])
def test_bar_is_drawn_in_a_terminal_only(monkeypatch, terminal, drawn):
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    found = ProgressMeter()
    found.update("a", 400_000, 1_000_000)
    with ProgressBar() as bar:
        bar(found)
        bar(found)
    assert ("40%" in terminal.getvalue()) is drawn
