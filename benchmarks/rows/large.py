"""18,000 simulated boards on one server: as many as this machine has file descriptors for.

It takes several minutes, and runs only if it is named.
"""

from __future__ import annotations

import resource

from benchmarks.load import measure
from benchmarks.report import Row

_BOARDS = 18_000
_DESCRIPTORS = _BOARDS + 500  # of the server


def rows() -> list[Row]:
    """Measure memory, heartbeats, a cell on all boards, and reconnecting after a kill."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard_limit not in (resource.RLIM_INFINITY,) and hard_limit < _DESCRIPTORS:
        raise SystemExit(f"it needs {_DESCRIPTORS:,} open files for one process (ulimit -Hn)")
    figures = measure(_BOARDS)
    label = f"{_BOARDS:,} simulated boards"
    return [
        Row(f"{label}: memory for each", [figures.rss], [], 7e3, "KB"),
        Row(f"{label}: beats, of a core", [figures.beats], [], 0.06, "%"),
        Row(f"{label}: a cell on all", [figures.fan_out], [], 2.0, "s"),
        Row(f"{label}: all back after kill -9", [figures.back], [], 60.0, "s"),
        Row(f"{label}: cells refused meanwhile", [len(figures.refused)], [], 0.0, "cells"),
    ]
