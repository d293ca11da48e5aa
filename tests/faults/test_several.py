"""A short soak test of several servers (`make soak` runs a long one)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import Nats, Postgres

from . import standstill
from .several import SeveralSoak


@pytest.mark.timeout(90)  # on a busy machine; usually about 15
def test_every_job_has_one_outcome_when_servers_bus_and_store_fail(
    tmp_path: Path, postgres: Postgres, nats: Nats
):
    engines = (postgres, nats)
    soak = SeveralSoak(tmp_path, 150, 6, 10, engines, pause=(0.1, 0.4), dead_after=1.5)
    figures = soak.run()
    print(figures)
    assert figures["outcomes"]["ok"] > 60
    assert figures["faults"]["kill store"] > 0
    assert sum(figures["faults"].get(kind, 0) for kind in ("kill", "pause", "stop")) > 0


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_database_that_stands_still_delays_new_cells_only(
    tmp_path: Path, postgres: Postgres, nats: Nats
):
    short, long = standstill.measure(tmp_path, postgres, nats, [5.0, 20.0])
    print(short, long)
    for figures in (short, long):
        statuses = figures.pop("statuses")
        assert statuses.pop("new: refused", 0) < (1 if figures is short else 1000)
        assert statuses == {
            "running: ok": 2,
            "interrupted: interrupted": 2,
            "answered: ok": 2,
            "sent before: ok": 2,
            "new: ok": 2,
        }
        seconds = figures.pop("standstill")
        # Everything took less than a part of it; a cell of 1 s was in the middle of it.
        assert max(figures.values()) < seconds / 2
