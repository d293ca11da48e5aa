"""Desired state: a rollout to 200 boards, and applying the same file again, which sends nothing."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks import own_server
from benchmarks.report import Row
from cloudmanager import Fleet

_BOARDS = 200
_TIMES = 5
_FILE = """
[bench]
target = "bench-*"
app = "src"
settings = { interval = 30 }
[bench.rollout]
waves = ["100%"]
health = "import app; app.VERSION"
"""
_WAIT = 300.0  # seconds


def rows() -> list[Row]:
    """Bring virtual boards to a generation, and apply its file again."""
    with own_server.running_boards(_BOARDS), Fleet() as fleet, tempfile.TemporaryDirectory() as at:
        path = Path(at) / "fleet.toml"
        path.write_text(_FILE)
        (path.parent / "src").mkdir()
        (path.parent / "src/app.py").write_text("VERSION = 1\n")
        began = time.perf_counter()
        fleet.apply(fleet.plan(path))
        while fleet.rollouts()[0]["state"] == "running" and time.perf_counter() - began < _WAIT:
            time.sleep(0.2)
        took = time.perf_counter() - began
        (rollout,) = fleet.rollouts()
        assert rollout["state"] == "done", rollout
        last_job = fleet.jobs()[0]["job"]
        again = [_apply(fleet, path) for _ in range(_TIMES)]
        assert fleet.jobs()[0]["job"] == last_job
    return [
        Row(f"a generation on {_BOARDS} boards, until all have proven it", [took], [], 120, "s"),
        Row(f"applying the same file again, {_BOARDS} boards", again, [], 2.0),
    ]


def _apply(fleet: Fleet, path: Path) -> float:
    began = time.perf_counter()
    assert fleet.apply(fleet.plan(path))["rollouts"] == {}
    return time.perf_counter() - began
