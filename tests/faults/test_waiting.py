"""A short run of work that waits while servers are killed (`make soak` runs a long one)."""

from __future__ import annotations

from pathlib import Path

import pytest

from .waiting import WaitingSoak, one_server


@pytest.mark.timeout(300)  # on a busy machine; usually about 10
def test_each_waiting_job_has_one_outcome_and_none_runs_twice_or_out_of_turn(tmp_path: Path):
    soak = WaitingSoak(
        tmp_path, 80, 30, 20261130, sleep=(0.3, 2.0), pause=(40, 60), minutes=4, adapts=False
    )
    with one_server(tmp_path) as servers:
        figures = soak.run(servers)
    print(figures)
    assert figures["jobs"] >= 80
    assert figures["outcomes"]["ok"] > 30
    assert figures["faults"]["kill -9"] > 1
