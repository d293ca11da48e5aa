"""A live plot of what boards emit; as an SVG image and as text where there are no widgets."""

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

_HISTORY_SAMPLES: Final = 20_000  # samples that a plot begins with
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_MAX_BLOCKS: Final = 40  # characters of a line of blocks
_COLOURS: Final = ("#1f9ed1", "#e8833a", "#45a85b", "#c75bb0", "#d4b106", "#7d7bd6")
_MAX_LINES: Final = 24  # as in plot.js
_IMAGE_SIZE: Final = (640, 200)  # of the image, in pixels

PlotLines = dict[tuple[str, str], list[tuple[float, float]]]


class Plot(LiveWidget):
    """Values of some boards over time, as they come; see ``%board_plot``."""

    _esm = javascript_module("Plot", "plot.js")
    values: traitlets.List[str] = traitlets.List(allow_none=True).tag(sync=True)

    def __init__(self, fleet: Fleet, target: str, values: Sequence[str] = ()) -> None:
        super().__init__(fleet, target, values=list(values) or None)

    def on_update(self, update: Update) -> None:
        """Draw what came."""
        if update.lost:
            self.send({"kind": "lost", "why": sanitize_text(update.lost)})
        elif update.samples or update.whole:
            self._send_samples(update.samples)

    def send_everything(self) -> None:
        """Begin with what there is already."""
        run_in_thread(self._send_history)

    def _send_history(self) -> None:
        try:
            self._send_samples(self._history())
        except CloudmanagerError as error:
            self.send({"kind": "lost", "why": sanitize_text(str(error))})

    def _history(self) -> Sequence[Sample]:
        return self._fleet.samples(self._target, _HISTORY_SAMPLES)

    def _send_samples(self, samples: Sequence[Sample]) -> None:
        told = [(sample.board, sample.at, numeric_values(sample)) for sample in samples]
        self.send({"kind": "samples", "samples": told})

    def _repr_mimebundle_(self, **given: Any) -> Any:
        """Add what there is now, as an image and as text."""
        bundle = super()._repr_mimebundle_(**given)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        try:
            lines = make_plot_lines(self._history(), self.values)
            told = {"text/plain": lines_text(lines), "image/svg+xml": lines_svg(lines)}
        except CloudmanagerError as error:
            told = {"text/plain": str(error)}
        return {**(data or {}), **told}, metadata


def numeric_values(sample: Sample) -> dict[str, float]:
    """Return the numbers of a sample, under names that are safe to show."""
    return {
        sanitize_text(name): value
        for name, value in sample.values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def make_plot_lines(samples: Sequence[Sample], names: Sequence[str] | None) -> PlotLines:
    """Return what is drawn: (board, name) -> times and values."""
    lines: PlotLines = {}
    for sample in samples:
        for name, value in numeric_values(sample).items():
            if names and name not in names:
                continue
            if (sample.board, name) in lines or len(lines) < _MAX_LINES:
                lines.setdefault((sample.board, name), []).append((sample.at, value))
    return lines


def lines_text(lines: PlotLines) -> str:
    """Return lines as text: the last values of each as blocks, and the last one."""
    if not lines:
        return "Nothing was emitted yet: `cm.emit(temp=21.5)` on a board."
    heads = [f"{board} {name}" for board, name in lines]
    wide = max(map(len, heads))
    rows = zip(heads, lines.values(), strict=True)
    return "\n".join(
        f"{head:<{wide}}  {_block_text(points)}  {points[-1][1]:g}" for head, points in rows
    )


def _block_text(points: Sequence[tuple[float, float]]) -> str:
    values = [value for _, value in points[-_MAX_BLOCKS:]]
    low, high = min(values), max(values)
    steps = (high - low) or 1.0
    return "".join(_BLOCKS[int((value - low) / steps * (len(_BLOCKS) - 1))] for value in values)


def lines_svg(lines: PlotLines) -> str:
    """Return lines as an image: what a notebook shows that was saved."""
    wide, high = _IMAGE_SIZE
    points = [point for line in lines.values() for point in line]
    ends = (_axis_bounds([at for at, _ in points]), _axis_bounds([value for _, value in points]))
    drawn = [
        f'<polyline fill="none" stroke="{_COLOURS[at % len(_COLOURS)]}" stroke-width="1.5" '
        f'points="{_polyline_points(line, ends)}"/>{_legend(at, key)}'
        for at, (key, line) in enumerate(lines.items())
    ]
    low, most = ends[1]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high + 18 * len(lines)}" '
        f'width="{wide}" font-family="sans-serif" font-size="11" fill="#888">'
        f'<text x="4" y="20">{most:g}</text><text x="4" y="{high - 10}">{low:g}</text>'
        f'<path d="M52 10V{high - 14}H{wide - 8}" stroke="#888" fill="none"/>{"".join(drawn)}</svg>'
    )


def _axis_bounds(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis, which are never the same."""
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    return (low, high) if high > low else (low - 1, high + 1)


def _polyline_points(line: Sequence[tuple[float, float]], bounds: Any) -> str:
    (start, end), (low, most) = bounds
    wide, high = _IMAGE_SIZE
    return " ".join(
        f"{52 + (at - start) / (end - start) * (wide - 60):.1f},"
        f"{10 + (most - value) / (most - low) * (high - 24):.1f}"
        for at, value in line
    )


def _legend(index: int, key: tuple[str, str]) -> str:
    y, colour = _IMAGE_SIZE[1] + 18 * index + 6, _COLOURS[index % len(_COLOURS)]
    return (
        f'<path d="M52 {y - 4}h16" stroke="{colour}" stroke-width="3"/>'
        f'<text x="76" y="{y}">{escape(" ".join(key))}</text>'
    )
