"""The table of `make bench`: medians, ratios, budgets, and marks on exceeded budgets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison of benchmarks/README.md, "Benchmarks and budgets", and its measurements.

    Args:
        name: what was measured, and the peer.
        ours: Cloudmanager's figures (seconds, bytes …).
        peer: the peer's figures in the same unit; empty without a peer.
        budget: the greatest ratio ours / peer, such as 0.1 for "ten times faster"; without a peer,
            the greatest figure; None for a comparison that explains another row.
        unit: the unit in which figures are printed, one of `UNIT_SIZES`.
    """

    name: str
    ours: Sequence[float]
    peer: Sequence[float]
    budget: float | None
    unit: str = "ms"

    @property
    def ratio(self) -> float | None:
        """The ratio of the medians, or None if one side is missing."""
        if not (self.ours and self.peer):
            return None
        return statistics.median(self.ours) / statistics.median(self.peer)

    @property
    def ok(self) -> bool | None:
        """Whether the budget is kept; None without measurements, or without a budget."""
        if not self.ours or self.budget is None:
            return None
        measured = self.ratio if self.peer else statistics.median(self.ours)
        return None if measured is None else measured <= self.budget


#: Unit -> its size in the unit of measurement (seconds, bytes, fractions of one).
UNIT_SIZES = {"ms": 1e-3, "s": 1.0, "KB": 1e3, "MB": 1e6, "%": 1e-2, "cells": 1.0}

_HEADINGS = ("what", "ours", "peer", "ratio", "budget", "")
_MARKS = {True: "ok", False: "MISSED", None: "-"}


def format_table(rows: Iterable[Row]) -> str:
    """Return the rows as text, in columns, with a line under the headings."""
    lines = [_HEADINGS, *(_row_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [_format_line(cells, widths) for cells in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _row_cells(row: Row) -> tuple[str, ...]:
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    if row.budget is None:
        budget = "-"
    else:
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
