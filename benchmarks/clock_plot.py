"""Plot boards' clocks: `python -m benchmarks.clock_plot < benchmarks/clock.json > docs/clock.svg`.

It reads what `python -m benchmarks.rows.clock` has measured, and writes SVG with two panels: the
error of each board's clock over how wrong its counter is, with the bound that the board gives; and
for ten cells that started at one instant, by how much each of the boards was late.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.plot import STYLE, line_svg, round_up

FIGURES_PATH: Final = Path(__file__).parent / "clock.json"
SVG_PATH: Final = Path(__file__).parents[1] / "docs/clock.svg"

_WIDTH, _HEIGHT = 420, 260  # of a panel, in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 18, 34, 46  # margins of a panel, in pixels
_COLOUR: Final = "#1f77b4"
_GRID: Final = "#ddd"


class _Scale(NamedTuple):
    """Where values are in a panel.

    Attributes:
        x: the least and the greatest value along x.
        y: the same along y.
    """

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a value in pixels."""
        along = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        across = _LEFT + along * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    def point(self, x: float, y: float) -> str:
        """Return the place of a value as ``x,y``."""
        return "{:.1f},{:.1f}".format(*self.at(x, y))


def make_svg(figures: dict[str, Any]) -> str:
    """Return the SVG text of both panels."""
    width = 2 * _WIDTH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" '
        f'width="{width}" height="{_HEIGHT}" style="{STYLE}">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
        *_clocks_svg(figures),
        f'<g transform="translate({_WIDTH},0)">',
        *_starts_svg(figures["starts"]),
        "</g>",
    ]
    return "\n".join([*parts, "</svg>", ""])


def _clocks_svg(figures: dict[str, Any]) -> Iterable[str]:
    """Yield the panel of the clocks' errors."""
    errors = [error * 1e3 for error in figures["errors"]]
    bounds = [bound * 1e3 for bound in figures["bounds"]]
    top = round_up(max(map(abs, (*errors, *bounds))))
    drifts: list[int] = figures["drifts"]
    scale = _Scale((min(drifts) - 2, max(drifts) + 2), (-top, top))
    yield from _frame_svg(scale, f"error of {len(errors)} boards' clocks, ms", (-top, 0, top))
    for drift in (-50, -25, 0, 25, 50):
        yield _label_svg(scale, drift, f"{drift}")
    yield _axis_svg("error of the counter, millionths; the line is the bound that the board gives")
    for drift, error, bound in zip(drifts, errors, bounds, strict=True):
        yield line_svg(scale.point(drift, -bound), scale.point(drift, bound), "#9cf")
        yield _dot_svg(scale, drift, error)


def _starts_svg(starts: Sequence[Sequence[float]]) -> Iterable[str]:
    """Yield the panel of cells at one instant."""
    top = round_up(max(late for each in starts for late in each) * 1e3)
    # One may be early by its clock's error: room below 0.
    scale = _Scale((0.5, len(starts) + 0.5), (-top / 4, top))
    title = f"start of a cell on {len(starts[0])} boards after its time, ms"
    yield from _frame_svg(scale, title, (0, top / 2, top))
    for number, each in enumerate(starts, 1):
        yield _label_svg(scale, number, f"{number}")
        for late in each:
            yield _dot_svg(scale, number, late * 1e3)
    yield _axis_svg("cell")


def _frame_svg(scale: _Scale, title: str, values: Iterable[float]) -> Iterable[str]:
    """Yield the title of a panel, and lines at values along y."""
    yield f'<text x="{_LEFT}" y="{_TOP - 16}" font-weight="bold">{title}</text>'
    for value in values:
        yield line_svg(scale.point(scale.x[0], value), scale.point(scale.x[1], value), _GRID)
        x, y = scale.at(scale.x[0], value)
        yield f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'


def _label_svg(scale: _Scale, value: float, text: str) -> str:
    x, y = scale.at(value, scale.y[0])
    return f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{text}</text>'


def _axis_svg(text: str) -> str:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">{text}</text>'


def _dot_svg(scale: _Scale, x: float, y: float) -> str:
    across, down = scale.at(x, y)
    return f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.5" fill="{_COLOUR}"/>'


if __name__ == "__main__":
    sys.stdout.write(make_svg(json.load(sys.stdin)))
