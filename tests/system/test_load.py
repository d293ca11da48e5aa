"""The load tool: its boards prove themselves, answer, come back; small, so that it stays true."""

from __future__ import annotations

import json

import pytest

from benchmarks import clock_plot, load, plot


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_simulated_boards_are_measured_and_come_back(tls: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load, "_IDLE_SECONDS", 0.2)
    monkeypatch.setattr(load, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(load, "_SINGLE_CELLS_SECONDS", 0.3)
    monkeypatch.setattr(load, "_CONCURRENT_CELLS", 4)
    monkeypatch.setattr(load, "_BOARDS_TRIED", 4)
    figures = load.measure(12, tls=tls, on_progress=lambda _: None)
    assert figures.refused == []
    assert figures.cells >= 4
    assert figures.rate > 10
    assert 0 < figures.fan_out < 5
    assert 0 < figures.back < 10


def test_pictures_are_of_the_figures_that_are_written_down():
    lines = (load.FIGURES_PATH).read_text().splitlines()
    assert plot.SVG_PATH.read_text() == plot.make_svg([json.loads(line) for line in lines])
    clocks = json.loads(clock_plot.FIGURES_PATH.read_text())
    assert clock_plot.SVG_PATH.read_text() == clock_plot.make_svg(clocks)
