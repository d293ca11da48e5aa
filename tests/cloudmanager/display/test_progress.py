"""Progress of a transfer: nothing at first, then a line, or a bar in a terminal."""

import io
import sys
import threading
import time

import pytest

from cloudmanager.display import progress
from cloudmanager.display.progress import LiveProgress, ProgressBar, ProgressMeter


def test_meter_sums_boards_and_is_shown_after_a_delay():
    now = [10.0]
    meter = ProgressMeter(lambda: now[0])
    meter.update("a", 100_000, 1_000_000)
    meter.update("b", 0, 1_000_000)
    before = meter.should_show
    now[0] = 12.0
    meter.update("a", 500_000, 1_000_000)
    assert (before, meter.should_show) == (False, True)
    assert meter.text() == "25 % of 2.0 MB on 2 boards, 250 KB/s"


def test_verb_without_progress_is_not_silent():
    now = [0.0]
    meter = ProgressMeter(lambda: now[0])
    now[0] = 1.9
    early = meter.should_show
    now[0] = 2.1
    assert (early, meter.should_show, meter.text()) == (False, True, "working · 2 s")


def test_preparation_is_shown_after_two_seconds():
    now = [0.0]
    meter = ProgressMeter(lambda: now[0], preparation="making the plan")
    now[0] = 1.5
    early = meter.should_show
    now[0] = 3.2
    assert (early, meter.should_show, meter.text()) == (False, True, "making the plan · 3 s")
    meter.update("a", 500, 1000)
    assert meter.text().startswith("50 %")


def test_boards_are_counted():
    now = [0.0]
    meter = ProgressMeter(lambda: now[0], unit="boards")
    for name in ("a", "b", "c"):
        meter.update(name, 0, 1)
    meter.update("b", 1, 1)
    now[0] = 3.2
    assert meter.text() == "1 of 3 boards are done · 3 s"


def test_progress_is_shown_while_the_verb_runs(monkeypatch):
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    shown = []
    seen = threading.Event()

    def show(meter):
        shown.append(meter.text())
        seen.set()

    with LiveProgress(show) as report:
        report("a", 1, 2)
        assert seen.wait(10)
    count = len(shown)
    assert shown[0].startswith("50 % of")
    report("a", 2, 2)
    assert len(shown) == count


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("terminal", "quiet", "drawn"),
    [(Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)],
    ids=["terminal", "json", "pipe"],
)
def test_bar_is_drawn_in_a_terminal_only(monkeypatch, terminal, quiet, drawn):
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    with ProgressBar(quiet=quiet) as report:
        report("a", 400_000, 1_000_000)
        until = time.monotonic() + 10 if drawn else 0.0
        while "40%" not in terminal.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert ("40%" in terminal.getvalue()) is drawn
    if not drawn:
        assert terminal.getvalue() == ""
