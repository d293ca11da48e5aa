"""Plot the results of benchmarks/load.py: `python -m benchmarks.plot < FIGURES > PLOT.svg`.

It reads lines of JSON and writes SVG, with one panel per figure: x is the number of boards
(logarithmic), y the figure; one line for plain links, one for TLS, a dashed one for the budget.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SVG_PATH = Path(__file__).parents[1] / "docs/load.svg"

_WIDTH, _HEIGHT = 290, 200  # of a panel, in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 18, 48, 34  # margins of a panel, in pixels
_COLUMNS = 3
_COLOURS = {False: "#1f77b4", True: "#d62728"}  # plain, TLS
_NAMES = {False: "plain", True: "TLS"}
STYLE = "font-family:sans-serif;font-size:11px"


class Panel(NamedTuple):
    """The plot of one figure.

    Attributes:
        title: name and unit.
        key: its attribute of load.Figures.
        scale: factor that converts to the unit of the title.
        budget: the budget in the unit of the title, or None.
    """

    title: str
    key: str
    scale: float = 1.0
    budget: float | None = None


PANELS = (
    Panel("server's memory per board, KB", "rss", 1e-3),
    Panel("beats of idle boards, % of a core", "beats", 100, 10),
    Panel("a cell on all boards, s", "fan_out"),
    Panel("server's time per board of it, µs", "fan_out_cpu", 1e6),
    Panel("cells one by one, 50 at once, per s", "rate"),
    Panel("all back after kill -9, s", "back", 1, 90),
)


def make_svg(figures: Sequence[dict[str, Any]]) -> str:
    """Return the SVG text of all panels."""
    rows = math.ceil(len(PANELS) / _COLUMNS)
    width, height = _COLUMNS * _WIDTH, rows * _HEIGHT + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" style="{STYLE}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(PANELS):
        x, y = number % _COLUMNS * _WIDTH, number // _COLUMNS * _HEIGHT
        parts += [f'<g transform="translate({x},{y})">', *_panel_svg(panel, figures), "</g>"]
    for number, tls in enumerate(_COLOURS):
        at = f'x="{_LEFT + 70 * number}" y="{height - 8}"'
        parts.append(f'<text {at} fill="{_COLOURS[tls]}">&#9632; {_NAMES[tls]}</text>')
    note = "simulated boards, server and caller on one machine of 2 cores"
    parts.append(f'<text x="{width - 10}" y="{height - 8}" text-anchor="end">{note}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel_svg(panel: Panel, figures: Sequence[dict[str, Any]]) -> Iterable[str]:
    sizes = sorted({figure["boards"] for figure in figures})
    most = max(figure[panel.key] * panel.scale for figure in figures)
    top = round_up(max(most, panel.budget or 0) * 1.05)
    low, high = math.log10(sizes[0]), math.log10(sizes[-1])

    def place(boards: int, value: float) -> str:
        along = (math.log10(boards) - low) / ((high - low) or 1)
        x = _LEFT + along * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f},{y:.1f}"

    yield f'<text x="{_LEFT}" y="{_TOP - 18}" font-weight="bold">{panel.title}</text>'
    for value in (0, top / 2, top):
        yield line_svg(place(sizes[0], value), place(sizes[-1], value), "#ddd")
        x, y = place(sizes[0], value).split(",")
        yield f'<text x="{float(x) - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{value:g}</text>'
    for boards in sizes:
        x, y = place(boards, 0).split(",")
        yield f'<text x="{x}" y="{float(y) + 16:.1f}" text-anchor="middle">{boards:,}</text>'
    if panel.budget is not None:
        ends = place(sizes[0], panel.budget), place(sizes[-1], panel.budget)
        yield line_svg(*ends, "#2a2", dashes="4 3")
    for tls, colour in _COLOURS.items():
        mine = sorted((f["boards"], f[panel.key] * panel.scale) for f in figures if f["tls"] is tls)
        points = [place(boards, value) for boards, value in mine]
        if len(mine) > 1:
            side = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2 * tls
            growth = f"as boards to the {_growth_exponent(mine):.2f}"
            at = f'x="{side}" y="{_TOP - 6}" style="font-size:9px"'
            yield f'<text {at} fill="{colour}">{growth}</text>'
        yield f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>'
        for point in points:
            x, y = point.split(",")
            yield f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'


def line_svg(start: str, end: str, colour: str, dashes: str = "") -> str:
    """Return a line between two points, each written as ``x,y``."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{start} {end}" stroke="{colour}"{dashed}/>'


def round_up(value: float) -> float:
    """Round up to 1, 2, 5 or 10 times a power of ten."""
    size = 10.0 ** math.floor(math.log10(value or 1))
    return next(step * size for step in (1, 2, 5, 10) if step * size >= value)


def _growth_exponent(points: Sequence[tuple[int, float]]) -> float:
    """Return the exponent of a figure's growth with boards: 0 constant, 1 proportional."""
    (few, small), *_, (many, large) = points
    return math.log(large / small) / math.log(many / few)


if __name__ == "__main__":
    sys.stdout.write(make_svg([json.loads(line) for line in sys.stdin]))
