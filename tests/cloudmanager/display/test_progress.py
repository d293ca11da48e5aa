"""Progress of a transfer: nothing at first, then a line, or a bar in a terminal."""

import io
import sys

import pytest

from cloudmanager.client.future import Future
from cloudmanager.display import progress
from cloudmanager.display.progress import ProgressBar, ProgressMeter, run_with_progress
from cloudmanager.results.results import Results


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


def test_meter_without_bytes_is_never_shown():
    now = [0.0]
    meter = ProgressMeter(lambda: now[0])
    now[0] = 99.0
    assert not meter.should_show


def test_preparation_is_shown_after_two_seconds():
    now = [0.0]
    meter = ProgressMeter(lambda: now[0], preparation="making the plan")
    now[0] = 1.5
    early = meter.should_show
    now[0] = 3.2
    assert (early, meter.should_show, meter.text()) == (False, True, "making the plan · 3 s")
    meter.update("a", 500, 1000)
    assert meter.text().startswith("50 %")


def test_run_with_progress_shows_progress_and_returns_results(monkeypatch):
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    future = Future[Results]()
    shown = []

    async def work(on_progress):
        on_progress("a", 1, 2)
        return await future

    def show(meter):
        shown.append(meter.text())
        future.set_result(Results({}))

    assert run_with_progress(work, show) == Results({})
    assert shown
    assert shown[0].startswith("50 % of")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("terminal", "drawn"), [(Terminal(), True), (io.StringIO(), False)])
def test_bar_is_drawn_in_a_terminal_only(monkeypatch, terminal, drawn):
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    meter = ProgressMeter()
    meter.update("a", 400_000, 1_000_000)
    with ProgressBar() as bar:
        bar(meter)
        bar(meter)
    assert ("40%" in terminal.getvalue()) is drawn
