"""How far a transfer is: nothing at first, then a line, or a bar in a terminal."""

import io
import sys

import pytest

from cloudmanager.client.future import Once
from cloudmanager.display import progress
from cloudmanager.display.progress import Bar, Meter, follow
from cloudmanager.results.results import Results


def test_meter_sums_its_boards_and_is_due_after_a_while():
    now = [10.0]
    found = Meter(lambda: now[0])
    found.take("a", 100_000, 1_000_000)
    found.take("b", 0, 1_000_000)
    before = found.due
    now[0] = 12.0
    found.take("a", 500_000, 1_000_000)
    assert (before, found.due) == (False, True)
    assert found.text() == "25 % of 2.0 MB on 2 boards, 250 KB/s"


def test_nothing_moved_is_never_due():
    now = [0.0]
    found = Meter(lambda: now[0])
    now[0] = 99.0
    assert not found.due


def test_what_comes_before_the_bytes_is_told_after_two_seconds():
    now = [0.0]
    found = Meter(lambda: now[0], before="making the plan")
    now[0] = 1.5
    early = found.due
    now[0] = 3.2
    assert (early, found.due, found.text()) == (False, True, "making the plan · 3 s")
    found.take("a", 500, 1000)
    assert found.text().startswith("50 %")


def test_follow_shows_in_the_waiting_thread_and_returns_the_results(monkeypatch):
    monkeypatch.setattr(progress, "AFTER", 0.0)
    once, seen = Once[Results](), []

    async def work(tell):
        tell("a", 1, 2)
        return await once

    def show(now):
        seen.append(now.text())
        once.set(Results({}))

    assert follow(work, show) == Results({})
    assert seen
    assert seen[0].startswith("50 % of")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("terminal", "drawn"), [(Terminal(), True), (io.StringIO(), False)])
def test_bar_is_drawn_in_a_terminal_only(monkeypatch, terminal, drawn):
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    found = Meter()
    found.take("a", 400_000, 1_000_000)
    with Bar() as bar:
        bar(found)
        bar(found)
    assert ("40%" in terminal.getvalue()) is drawn
