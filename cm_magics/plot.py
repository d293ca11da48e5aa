"""A live plot of the values that boards emit; without widgets, an SVG image and text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence, Set
from typing import Any, Final
from xml.sax.saxutils import escape

import traitlets

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.samples import Sample
from cloudmanager.client.watch import Update
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import nearest_name, sanitize_text

from .live_widget import LiveWidget, javascript_module, run_in_thread
from .saved_output import Bundle, image_html, saved_html, saved_text

_MAX_SAMPLES: Final = 20_000  # samples that a plot keeps
_MAX_HISTORY: Final = 60_000  # the same, of a plot that begins days ago
_HISTORY_POINTS: Final = 1000  # of a line, for the time before the recent samples
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_MAX_BLOCKS: Final = 40  # characters of a line in the text form
_NO_VALUES_TEXT: Final = "No values yet: boards emit them with `cm.emit(temp=21.5)`."
_COLOURS: Final = ("#1f9ed1", "#e8833a", "#45a85b", "#c75bb0", "#d4b106", "#7d7bd6")
_MAX_LINES: Final = 24  # as MAX_LINES in plot.js
_IMAGE_SIZE: Final = (640, 160)  # width and height of a panel in pixels, without the legend

#: (board, name of the value) -> (Unix time, value) of each sample.
PlotLines = dict[tuple[str, str], list[tuple[float, float]]]


class Plot(LiveWidget):
    """Numbers that boards emit, plotted over time as they arrive; see ``%board_plot``."""

    _esm = javascript_module("Plot", "plot.js")
    values: traitlets.List[str] = traitlets.List(allow_none=True).tag(sync=True)

    def __init__(
        self, fleet: Fleet, target: str, values: Sequence[str] = (), since: int | None = None
    ) -> None:
        # So many seconds ago it begins; None: with the recent samples.
        self._since = since
        self._max_samples = _MAX_SAMPLES if since is None else _MAX_HISTORY
        # Kept here, because the boards may be gone when a page opens.
        self._samples: dict[tuple[str, float, int, str], Sample] = {}
        self._values: set[str] = set()  # the names of all values
        self._numbers: set[str] = set()  # those of numbers, sanitized
        self._keep(read_samples(fleet, target, values, since))
        super().__init__(fleet, target, values=list(values) or None)

    def _keep(self, samples: Iterable[Sample]) -> None:
        """Keep samples, each once, and the newest ones if there are too many."""
        for sample in samples:
            self._samples[sample.board, sample.at, sample.ticks, str(sample.values)] = sample
            self._values.update(sample.values)
            self._numbers.update(numeric_values(sample))
        if len(self._samples) > 2 * self._max_samples:
            by_time = sorted(self._samples.items(), key=lambda item: item[1].at)
            self._samples = dict(by_time[-self._max_samples :])

    def on_update(self, update: Update) -> None:
        """Send new samples, or that the server is unreachable, to the page."""
        if update.lost:
            self.send({"kind": "lost", "reason": sanitize_text(update.lost)})
            return
        self._keep(update.samples)
        if update.whole:
            run_in_thread(self._add_history)
        elif update.samples:
            self._send_samples(update.samples)

    def on_watch_failed(self, error: CloudmanagerError) -> None:
        """Show the error, but not in the place of values: boards that were removed had some."""
        if not self._samples:
            super().on_watch_failed(error)

    def send_everything(self) -> None:
        """Send the samples so far."""
        self._send_samples(self._samples.values())

    def _add_history(self) -> None:
        """Add the samples that arrived while there was no subscription, and send all of them."""
        try:
            history = read_samples(self._fleet, self._target, self.values or (), self._since)
        except CloudmanagerError as error:
            self.on_watch_failed(error)
            return
        with self._lock:
            self._keep(history)
            self.send_everything()

    def _send_samples(self, samples: Iterable[Sample]) -> None:
        rows = [(sample.board, sample.at, numeric_values(sample)) for sample in samples]
        note = missing_text(self.values or (), self._values, self._numbers)
        self.send({"kind": "samples", "samples": rows, "note": note})

    def make_saved_state(self) -> Bundle:
        """Return the samples of this moment, as an image and as text."""
        with self._lock:
            samples = sorted(self._samples.values(), key=lambda sample: sample.at)
        lines = make_plot_lines(samples, self.values)
        note = missing_text(self.values or (), self._values, self._numbers)
        text, svg = lines_text(lines, note), lines_svg(lines)
        if not lines:
            return saved_text(text)
        html = saved_html(image_html(svg, text))
        return {"text/plain": text, "image/svg+xml": svg, "text/html": html}


def read_samples(
    fleet: Fleet, target: str, values: Sequence[str], since: int | None
) -> list[Sample]:
    """Return the recent samples of boards and, before them, means of what the server has kept.

    Args:
        fleet: of the boards.
        target: the boards.
        values: the names of values; () for all.
        since: how many seconds ago the first is; None for the recent ones alone.
    """
    recent = list(fleet.samples(target, _MAX_SAMPLES))
    if since is None:
        return recent
    first: dict[str, float] = {}
    for sample in recent:
        first.setdefault(sample.board, sample.at)
    every = -(-since // _HISTORY_POINTS)
    if every > 1:
        every = -(-every // 60) * 60  # whole minutes, which the server has
    kept = fleet.samples(target, since=time.time() - since, every=every, names=values or None)
    # A mean belongs to the time from its beginning on; the last one is not complete.
    older = [each for each in kept if each.at + every <= first.get(each.board, math.inf)]
    return older + recent


def numeric_values(sample: Sample) -> dict[str, float]:
    """Return the numbers of a sample by name; the names are sanitized."""
    return {
        sanitize_text(name): value
        for name, value in sample.values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def missing_text(wanted: Iterable[str], values: Set[str], numbers: Set[str]) -> str:
    """Return which of the wanted values no board emits as a number, and which numbers there are.

    Args:
        wanted: names of values.
        values: the names of all values that boards have emitted.
        numbers: the names of those that are numbers, sanitized.

    Returns:
        One sentence or more; "" if nothing is missing, or there are no values at all.
    """
    sentences = []
    for name in wanted:
        shown = sanitize_text(name)
        if not values or shown in numbers:
            continue
        if name in values:
            sentences.append(f"{shown} is not a number.")
            continue
        sentences.append(f"No value is called {shown}.")
        if numbers:
            sentences.append(f"The numbers are {', '.join(sorted(numbers))}.")
        if near := nearest_name(shown, numbers):
            sentences.append(f"Did you mean {near}?")
    return " ".join(sentences)


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


def lines_text(lines: PlotLines, note: str = "") -> str:
    """Return lines as text: the last values of each as block characters, then the last number.

    Args:
        lines: the lines.
        note: what is below them.
    """
    if not lines:
        return note or _NO_VALUES_TEXT
    labels = [f"{board} {name}" for board, name in lines]
    width = max(map(len, labels))
    rows = [
        f"{label:<{width}}  {_block_text(points)}  {points[-1][1]:g}"
        for label, points in zip(labels, lines.values(), strict=True)
    ]
    return "\n".join([*rows, note] if note else rows)


def _block_text(points: Sequence[tuple[float, float]]) -> str:
    values = [value for _, value in points[-_MAX_BLOCKS:]]
    low, high = min(values), max(values)
    steps = (high - low) or 1.0
    return "".join(_BLOCKS[int((value - low) / steps * (len(_BLOCKS) - 1))] for value in values)


def lines_svg(lines: PlotLines) -> str:
    """Return lines as an SVG image with a legend, for saved notebooks.

    Each quantity (name of a value) has a panel with an axis of its own.
    """
    width, height = _IMAGE_SIZE
    indexes = {key: index for index, key in enumerate(lines)}
    times = _axis_bounds([time for line in lines.values() for time, _ in line])
    names = list(dict.fromkeys(name for _, name in lines))
    drawn = []
    for number, name in enumerate(names):
        panel = {key: line for key, line in lines.items() if key[1] == name}
        values = _axis_bounds([value for line in panel.values() for _, value in line])
        content = [_axes(name if len(names) > 1 else "", values)]
        for key, line in panel.items():
            colour = _COLOURS[indexes[key] % len(_COLOURS)]
            corners = _polyline_points(line, (times, values))
            content.append(
                f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{corners}"/>'
            )
        drawn.append(f'<g transform="translate(0 {number * height})">{"".join(content)}</g>')
    top = max(len(names), 1) * height
    drawn += [_legend(index, key, top) for key, index in indexes.items()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + 18 * len(lines)}" '
        f'width="{width}" font-family="sans-serif" font-size="11" fill="#888">'
        f"{''.join(drawn)}</svg>"
    )


def _axes(name: str, bounds: tuple[float, float]) -> str:
    """Return the axes of a panel, with the name of its quantity."""
    width, height = _IMAGE_SIZE
    low, high = bounds
    return (
        f'<text x="46" y="20" text-anchor="end">{high:g}</text>'
        f'<text x="46" y="{height - 14}" text-anchor="end">{low:g}</text>'
        f'<path d="M52 10V{height - 14}H{width - 8}" stroke="#888" fill="none"/>'
        f'<text x="60" y="20" font-weight="bold">{escape(name)}</text>'
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


def _legend(index: int, key: tuple[str, str], top: int) -> str:
    y, colour = top + 18 * index + 6, _COLOURS[index % len(_COLOURS)]
    return (
        f'<path d="M52 {y - 4}h16" stroke="{colour}" stroke-width="3"/>'
        f'<text x="76" y="{y}">{escape(" ".join(key))}</text>'
    )
