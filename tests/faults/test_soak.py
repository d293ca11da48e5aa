"""A short soak test (`make soak` runs a long one)."""

from __future__ import annotations

from pathlib import Path

import pytest

from .soak import Soak


@pytest.mark.timeout(90)  # on a busy machine; usually about 10
def test_every_job_has_one_outcome_and_none_runs_twice(tmp_path: Path):
    figures = Soak(tmp_path, jobs=250, boards=6, seed=20261125, deaths=1).run()
    print(figures)
    assert figures["integrity"] == "ok"
    assert figures["jobs"] >= 250
    assert figures["outcomes"]["ok"] > 100
    assert sum(figures["faults"].values()) > 3
