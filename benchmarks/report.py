"""The table of `make bench`: medians, ratios, budgets, and a mark on what misses."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One promise of benchmarks/README.md, "The rows", and what was measured.

    Args:
        name: what was timed, and beside which peer.
        ours: our figures (seconds, bytes …); empty while we have none.
        peer: the peer's figures in the same unit; empty where the budget stands alone.
        budget: the greatest ratio ours / peer; without a peer, the greatest figure of ours.
            "Ten times faster" is 0.1.
        unit: what the figures are printed in, one of `UNITS`.
    """

    name: str
    ours: Sequence[float]
    peer: Sequence[float]
    budget: float
    unit: str = "ms"

    @property
    def ratio(self) -> float | None:
        """The medians' ratio, or None where one side is missing."""
        if not (self.ours and self.peer):
            return None
        return statistics.median(self.ours) / statistics.median(self.peer)

    @property
    def ok(self) -> bool | None:
        """Whether the budget is kept; None while there is nothing to compare."""
        if not self.ours:
            return None
        measured = self.ratio if self.peer else statistics.median(self.ours)
        return None if measured is None else measured <= self.budget


#: What one unit is, in the unit that figures are measured in (seconds, bytes, parts of one).
UNIT_SIZES = {"ms": 1e-3, "s": 1.0, "KB": 1e3, "MB": 1e6, "%": 1e-2, "cells": 1.0}

_HEADINGS = ("what", "ours", "peer", "ratio", "budget", "")
_MARKS = {True: "ok", False: "MISSED", None: "-"}


def format_table(rows: Iterable[Row]) -> str:
    """Returns the rows as text, in columns, with a line under the headings."""
    lines = [_HEADINGS, *(_row_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [_format_line(cells, widths) for cells in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _row_cells(row: Row) -> tuple[str, ...]:
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    budget = f"{row.budget:.2f}" if row.peer else _median_text([row.budget], row.unit)
    return (
        row.name,
        _median_text(row.ours, row.unit),
        _median_text(row.peer, row.unit),
        ratio,
        budget,
        _MARKS[row.ok],
    )


def _median_text(figures: Sequence[float], unit: str) -> str:
    return f"{statistics.median(figures) / UNIT_SIZES[unit]:.2f} {unit}" if figures else "-"


def _format_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *others = cells
    padded = [name.ljust(widths[0])]
    padded += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
    return "  ".join(padded).rstrip()
