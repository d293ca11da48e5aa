"""Rollouts while servers, boards and links are killed (`make soak` has 200 boards)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import Nats, Postgres

from .rollouts import RolloutSoak
from .several import DEAD_AFTER, Cluster


@pytest.mark.timeout(180)  # on a busy machine; usually about 15
def test_boards_are_on_the_generation_that_the_rollout_says_whatever_is_killed(tmp_path: Path):
    figures = RolloutSoak(tmp_path, 9, 20261130, pauses=(0.3, 6.0, 4.0), every=3).run()
    print(figures)
    assert figures["faults"]["server's kill -9"] > 0
    assert figures["seconds"]["again"] < 2


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_another_server_goes_on_with_a_rollout_whose_server_is_killed(
    tmp_path: Path, postgres: Postgres, nats: Nats
):
    cluster = Cluster(tmp_path / "servers", 3, DEAD_AFTER, postgres, nats)
    figures = RolloutSoak(tmp_path, 16, 20261130, cluster).run()
    print(figures)
    assert figures["faults"]["leader's kill -9"] > 0
