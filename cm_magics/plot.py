"""A live plot of the values that boards emit; without widgets, an SVG image and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

import traitlets

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.samples import Sample
from cloudmanager.client.watch import Update
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import sanitize_text

from .live_widget import LiveWidget, javascript_module, run_in_thread

_HISTORY_SAMPLES: Final = 20_000  # earlier samples that are plotted when a plot opens
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_MAX_BLOCKS: Final = 40  # characters of a line in the text form
_NO_VALUES_TEXT: Final = "No values yet: boards emit them with `cm.emit(temp=21.5)`."
_COLOURS: Final = ("#1f9ed1", "#e8833a", "#45a85b", "#c75bb0", "#d4b106", "#7d7bd6")
_MAX_LINES: Final = 24  # as MAX_LINES in plot.js
_IMAGE_SIZE: Final = (640, 200)  # width and height in pixels, without the legend

#: (board, name of the value) -> (Unix time, value) of each sample.
PlotLines = dict[tuple[str, str], list[tuple[float, float]]]


class Plot(LiveWidget):
    """Numbers that boards emit, plotted over time as they arrive; see ``%board_plot``."""

    _esm = javascript_module("Plot", "plot.js")
    values: traitlets.List[str] = traitlets.List(allow_none=True).tag(sync=True)

    def __init__(self, fleet: Fleet, target: str, values: Sequence[str] = ()) -> None:
        super().__init__(fleet, target, values=list(values) or None)

    def on_update(self, update: Update) -> None:
        """Send new samples, or that the server is unreachable, to the page."""
        if update.lost:
            self.send({"kind": "lost", "reason": sanitize_text(update.lost)})
        elif update.samples or update.whole:
            self._send_samples(update.samples)

    def send_everything(self) -> None:
        """Send the earlier samples."""
        run_in_thread(self._send_history)

    def _send_history(self) -> None:
        try:
            self._send_samples(self._history())
        except CloudmanagerError as error:
            self.send({"kind": "lost", "reason": sanitize_text(str(error))})

    def _history(self) -> Sequence[Sample]:
        return self._fleet.samples(self._target, _HISTORY_SAMPLES)

    def _send_samples(self, samples: Sequence[Sample]) -> None:
        rows = [(sample.board, sample.at, numeric_values(sample)) for sample in samples]
        self.send({"kind": "samples", "samples": rows})

    def _repr_mimebundle_(self, **arguments: Any) -> Any:
        """Add the samples of this moment, as an image and as text."""
        bundle = super()._repr_mimebundle_(**arguments)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        try:
            lines = make_plot_lines(self._history(), self.values)
            static = {"text/plain": lines_text(lines), "image/svg+xml": lines_svg(lines)}
        except CloudmanagerError as error:
            static = {"text/plain": str(error)}
        return {**(data or {}), **static}, metadata


def numeric_values(sample: Sample) -> dict[str, float]:
    """Return the numbers of a sample by name; the names are sanitized."""
    return {
        sanitize_text(name): value
        for name, value in sample.values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def make_plot_lines(samples: Sequence[Sample], names: Sequence[str] | None) -> PlotLines:
    """Return the lines to draw, at most ``_MAX_LINES``.

    Args:
        samples: in order of time.
        names: the values to plot; None or empty: all that are numbers.
    """
    lines: PlotLines = {}
    for sample in samples:
        for name, value in numeric_values(sample).items():
            if names and name not in names:
                continue
            key = (sample.board, name)
            if key in lines or len(lines) < _MAX_LINES:
                lines.setdefault(key, []).append((sample.at, value))
    return lines


def lines_text(lines: PlotLines) -> str:
    """Return lines as text: the last values of each as block characters, then the last number."""
    if not lines:
        return _NO_VALUES_TEXT
    labels = [f"{board} {name}" for board, name in lines]
    width = max(map(len, labels))
    rows = zip(labels, lines.values(), strict=True)
    return "\n".join(
        f"{label:<{width}}  {_block_text(points)}  {points[-1][1]:g}" for label, points in rows
    )


def _block_text(points: Sequence[tuple[float, float]]) -> str:
    values = [value for _, value in points[-_MAX_BLOCKS:]]
    low, high = min(values), max(values)
    steps = (high - low) or 1.0
    return "".join(_BLOCKS[int((value - low) / steps * (len(_BLOCKS) - 1))] for value in values)


def lines_svg(lines: PlotLines) -> str:
    """Return lines as an SVG image with axes and a legend, for saved notebooks."""
    width, height = _IMAGE_SIZE
    points = [point for line in lines.values() for point in line]
    time_bounds = _axis_bounds([time for time, _ in points])
    value_bounds = _axis_bounds([value for _, value in points])
    drawn = []
    for index, (key, line) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        corners = _polyline_points(line, (time_bounds, value_bounds))
        drawn.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{corners}"/>'
            f"{_legend(index, key)}"
        )
    low, high = value_bounds
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 18 * len(lines)}" '
        f'width="{width}" font-family="sans-serif" font-size="11" fill="#888">'
        f'<text x="4" y="20">{high:g}</text><text x="4" y="{height - 10}">{low:g}</text>'
        f'<path d="M52 10V{height - 14}H{width - 8}" stroke="#888" fill="none"/>'
        f"{''.join(drawn)}</svg>"
    )


def _axis_bounds(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest number; if they are equal, one less and one more."""
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    return (low, high) if high > low else (low - 1, high + 1)


def _polyline_points(line: Sequence[tuple[float, float]], bounds: Any) -> str:
    """Return the ``points`` of a polyline; ``bounds`` are those of times and of values."""
    (start, end), (low, high) = bounds
    width, height = _IMAGE_SIZE
    return " ".join(
        f"{52 + (time - start) / (end - start) * (width - 60):.1f},"
        f"{10 + (high - value) / (high - low) * (height - 24):.1f}"
        for time, value in line
    )


def _legend(index: int, key: tuple[str, str]) -> str:
    y, colour = _IMAGE_SIZE[1] + 18 * index + 6, _COLOURS[index % len(_COLOURS)]
    return (
        f'<path d="M52 {y - 4}h16" stroke="{colour}" stroke-width="3"/>'
        f'<text x="76" y="{y}">{escape(" ".join(key))}</text>'
    )
