"""Ten thousand simulated boards (simulated_boards.py) on one server, plain and with TLS."""

from __future__ import annotations

from benchmarks.load import Figures, measure
from benchmarks.report import Row

_BOARDS = 10_000


def rows() -> list[Row]:
    """Measure memory, heartbeats, and reconnecting after the server was killed."""
    plain, secure = (measure(_BOARDS, tls=tls) for tls in (False, True))
    return [
        Row("10,000 simulated boards: memory for each", [plain.rss], [], 7e3, "KB"),
        Row("the same by TLS", [secure.rss], [], 24e3, "KB"),
        *_load_rows("10,000 simulated boards", plain),
        *_load_rows("10,000 simulated boards by TLS", secure),
    ]


def _load_rows(label: str, figures: Figures) -> list[Row]:
    refused = float(len(figures.refused))
    return [
        Row(f"{label}: beats, of a core", [figures.beats], [], 0.06, "%"),
        Row(f"{label}: all back after kill -9", [figures.back], [], 90.0, "s"),
        Row(f"{label}: cells refused meanwhile", [refused], [], 0.0, "cells"),
    ]
