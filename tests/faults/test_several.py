"""A short soak test of several servers (`make soak` runs a long one)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import Nats, Postgres

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
