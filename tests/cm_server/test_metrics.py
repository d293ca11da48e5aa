"""Metrics: their documentation, their labels and their values."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloudmanager.protocol import wire
from cm_server.app import Server

from .pairs import Two
from .peers import FakeBoard, FakeCaller, Service

DOCS = Path(__file__).parents[2] / "docs/metrics.md"
ROW = r"^\| `(cm_\w+|process_\w+)` \| (\w+) \| (?:`(\w+)`: ([^|]+))?\| [^|]+ \|$"


def families(server: Server) -> dict[str, Any]:
    """Return all metrics by their names in Prometheus."""
    read = text_string_to_metric_families(server.render_metrics()[1].decode())
    ends = {"counter": "_total", "info": "_info"}
    return {metric.name + ends.get(metric.type, ""): metric for metric in read}


def value(server: Server, name: str, **labels: str) -> float:
    for metric in families(server).values():
        for sample in metric.samples:
            if (sample.name, sample.labels) == (name, labels):
                return float(sample.value)
    raise AssertionError(f"{name} {labels} is not there")


async def test_metrics_equal_the_documented_ones(pair: Two):
    documented = {
        name: (kind, {label} - {""}, set(re.findall(r"`(\w+)`", words)))
        for name, kind, label, words in re.findall(ROW, DOCS.read_text(), flags=re.M)
    }
    there = {}
    for name, metric in families(pair.a.server).items():
        labels = {key for sample in metric.samples for key in sample.labels} - {"le", "version"}
        words = {sample.labels[key] for sample in metric.samples for key in labels}
        kind = "gauge" if metric.type == "info" else metric.type
        there[name] = (kind, labels, words)
    assert there == documented


async def test_peers_choose_no_labels(service: Service):
    before = service.server.render_metrics()[1].count(b"\n")
    (identity,) = service.enrol("a-name-to-look-for")
    token = service.add_token("operator", name="somebody-to-look-for")
    async with (
        await FakeBoard.join(service, identity, facts={"platform": "evil"}) as board,
        await FakeCaller.join(service, token) as caller,
    ):
        (job,) = await caller.submit("all")
        await board.next()
        await board.end(job)
        await caller.ending(job)
        text = service.server.render_metrics()[1]
    assert text.count(b"\n") == before
    assert b"to-look-for" not in text
    assert b"evil" not in text


async def test_metrics_have_the_worst_of_the_boards_clocks(service: Service):
    server = service.server
    first, second = service.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(service, first) as one,
        await FakeBoard.join(service, second) as two,
    ):
        assert value(server, "cm_clocks") == 0
        assert value(server, "cm_clock_error_max") == 0
        for board, clock in ((one, (-700, 450, 12_000)), (two, (300, 90, -40_000))):
            await board.send(wire.FACTS, struct.pack(">IbiIi", 50_000, 0, *clock))
            await board.send(wire.TIME, bytes(4))  # its answer shows that both were read
            assert (await board.next()).op == wire.TIME_REPLY
        assert value(server, "cm_clocks") == 2
        assert value(server, "cm_clock_offset_max") == pytest.approx(700e-6)
        assert value(server, "cm_clock_error_max") == pytest.approx(450e-6)
        assert value(server, "cm_clock_drift_max") == pytest.approx(40e-6)
        (board,) = [b for b in server.registry.by_id.values() if b.name == "lab-1"]
        described = board.describe()
        assert [described[f"clock_{name}"] for name in ("offset", "error", "drift")] == [
            -700,
            450,
            12_000,
        ]


async def test_metrics_count_boards_jobs_and_refusals(service: Service):
    server = service.server
    known, _ = service.enrol("lab-1", "lab-2")
    async with await FakeBoard.join(service, known) as board:
        assert value(server, "cm_boards", state="idle") == 1
        assert value(server, "cm_boards", state="offline") == 1
        assert value(server, "cm_board_links_total") == 1
        async with await FakeCaller.join(service) as caller:
            (job,) = await caller.submit("lab-1")
            assert value(server, "cm_callers") == 1
            assert value(server, "cm_jobs_open", state="running") == 1
            assert value(server, "cm_boards", state="busy") == 1
            await board.next()
            await board.end(job, "error", rest=b"ValueError")
            await caller.ending(job)
        assert value(server, "cm_jobs_open", state="running") == 0
        assert value(server, "cm_jobs_ended_total", status="error") == 1
        assert value(server, "cm_job_seconds_count") == 1
        assert value(server, "cm_job_seconds_bucket", le="1000.0") == 1
    stranger = await FakeBoard.dial(service, "/board")
    async with stranger:
        await stranger.greet("nobody")
        challenge = await stranger.next()
        known.key = bytes(32)
        await stranger.send(3, bytes(32) + b"{}")
        await stranger.closed()
    assert challenge.payload
    assert value(server, "cm_refused_total", who="board") == 1
    assert value(server, "cm_healthy") == 1
    server.store.write_error = "its store cannot be written: disk full"
    assert value(server, "cm_healthy") == 0
