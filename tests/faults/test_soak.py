"""A short soak test (`make soak` runs a long one)."""

from __future__ import annotations

from pathlib import Path

import pytest

from .killed_server import KilledServerSoak
from .soak import Soak


@pytest.mark.timeout(90)  # on a busy machine; usually about 10
def test_every_job_has_one_outcome_and_none_runs_twice(tmp_path: Path):
    figures = Soak(tmp_path, jobs=250, boards=6, seed=20261125, deaths=1).run()
    print(figures)
    assert figures["integrity"] == "ok"
    assert figures["jobs"] >= 250
    assert figures["outcomes"]["ok"] > 100
    assert sum(figures["faults"].values()) > 3


@pytest.mark.timeout(90)  # on a busy machine; usually about 8
def test_every_job_has_one_outcome_when_the_server_is_killed_again_and_again(tmp_path: Path):
    figures = KilledServerSoak(tmp_path, 2, 0.7, boards=5, callers=4, seed=20261130).run()
    print(figures)
    assert figures["integrity"] == "ok"
    assert figures["faults"]["server's kill -9"] > 1
    assert figures["outcomes"]["ok"] > 20
    assert figures["server and board killed"] == 0
