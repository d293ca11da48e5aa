"""``mbm board-samples`` and ``fleet.samples(since=…)``: values that a real board emitted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.samples import Samples
from cloudmanager.protocol.errors import NoSuchBoard

pytestmark = pytest.mark.timeout(120)

EMITTING = """
import cm, time
for n in range(4):
    cm.emit(kept=n, open=True, mood="x")
    time.sleep_ms(30)
"""
WAIT = 60.0  # seconds: a busy machine is late


@pytest.fixture(scope="module")
def kept(boards: Any, fleet: Fleet) -> Samples:
    """Values that the server has kept."""
    fleet["demo-1"].run(EMITTING).raise_for_error()
    deadline = time.monotonic() + WAIT
    while True:
        found = fleet.samples("demo-1", since="1h", names=["kept", "open"])
        if len(found) >= 4:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_samples_are_those_that_the_board_emitted(kept: Samples, fleet: Fleet):
    assert [sample.values for sample in kept] == [{"kept": float(n), "open": 1.0} for n in range(4)]
    recent = [sample for sample in fleet.samples("demo-1") if "kept" in sample.values][-4:]
    assert [sample.at for sample in kept] == [pytest.approx(each.at, abs=1e-5) for each in recent]
    assert list(kept.to_pandas().columns) == ["board", "kept", "open"]


def test_samples_are_thinned_by_the_server(kept: Samples, fleet: Fleet):
    days = fleet.samples("demo-1", since="2d", every="1d", how="max", names=["kept"])
    assert max(sample.values["kept"] for sample in days) == 3.0
    assert all(sample.at % 86400 == 0 for sample in days)
    assert len(fleet.samples("demo-1", since=time.time() + 5)) == 0


@pytest.mark.parametrize("wrong", [{"every": "5m"}, {"how": "max"}, {"until": "1d"}])
def test_keywords_need_since(fleet: Fleet, wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="need since"):
        fleet.samples("demo-1", **wrong)


def test_unknown_board_is_an_error(fleet: Fleet):
    with pytest.raises(NoSuchBoard):
        fleet.samples("nobody", since="1d")


def test_lines_and_json(kept: Samples, mbm: Any):
    done = mbm("board-samples", "demo-1", "kept", "--since", "1h")
    assert [line.split()[1:] for line in done.out.splitlines()] == [
        ["demo-1", "kept", str(n)] for n in range(4)
    ]
    rows = json.loads(mbm("board-samples", "demo-1", "kept", "--since", "1h", "--json").out)
    assert [(row["board"], row["value"]) for row in rows] == [
        ("demo-1", float(n)) for n in range(4)
    ]


def test_files(kept: Samples, mbm: Any, tmp_path: Path):
    path = tmp_path / "it's.csv"
    done = mbm("board-samples", "demo-1", "kept", "open", "--since", "1h", "--csv", str(path))
    assert (done.status, done.out) == (0, f"Wrote 8 values to {path}.\n")
    assert path.read_text().count("demo-1,kept") == 4
    done = mbm("board-samples", "demo-1", "kept", "--since=1h", "--every=8w", "--csv", str(path))
    assert done.out == f"Wrote 1 value to {path}.\n"
    path = tmp_path / "it's.parquet"
    done = mbm("board-samples", "demo-1", "--since", "1h", "--parquet", str(path), "--json")
    assert json.loads(done.out)["file"] == str(path)
    found = duckdb.read_parquet(str(path)).filter("name = 'kept'").project("board, value")
    assert found.fetchall() == [("demo-1", float(n)) for n in range(4)]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["it's.csv", "it's.parquet"]
    path = tmp_path / "no folder" / "a.csv"
    for option in ("--csv", "--parquet"):
        done = mbm("board-samples", "demo-1", "--since", "1h", option, str(path))
        assert (done.status, done.err) == (2, f"mbm: {path}: No such file or directory.\n")
        done = mbm("board-samples", "demo-1", "--since", "1h", option, str(tmp_path))
        assert (done.status, done.err) == (2, f"mbm: {tmp_path}: Is a directory.\n")


def test_how_needs_every(kept: Samples, mbm: Any, fleet: Fleet):
    done = mbm("board-samples", "demo-1", "--since", "1h", "--how", "max")
    assert (done.status, done.out) == (2, "")
    assert "--how needs --every" in done.err
    with pytest.raises(ValueError, match="it needs every"):
        fleet.samples("demo-1", since="1h", how="max")


def test_nothing_found_is_said(kept: Samples, mbm: Any):
    done = mbm("board-samples", "demo-1", "no such", "--since", "1h")
    assert (done.status, done.out) == (0, "")
    assert done.err == "demo-1: the server has kept no values of this time.\n"
    assert mbm("board-samples", "demo-1", "--since", "x").status == 2
    assert mbm("board-samples", "nobody", "--since", "1h").status == 2
