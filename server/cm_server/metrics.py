"""The server's metrics, in the text format that Prometheus reads from ``/metrics``.

Labels have fixed values, never a name, an address or another value that a peer chose, so that
their number is bounded. docs/metrics.md lists each metric. This module is imported at the first
request: importing prometheus-client would delay the start.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from .cluster.membership import Cluster
from .jobs.counters import DURATION_BOUNDS, Counters

if TYPE_CHECKING:
    from .api.subscriptions import Subscriptions
    from .auth.caller_links import CallerLinks
    from .cluster.single_server import SingleServer
    from .housekeeping import Housekeeper
    from .jobs.dispatch import Dispatch
    from .jobs.registry import Registry
    from .loop_lag import LoopLagMonitor
    from .rate_limits import UnauthenticatedConnections
    from .sample_history import SampleHistory
    from .status import ServerStatus

_LabelledFamily = GaugeMetricFamily | CounterMetricFamily
CONTENT_TYPE = CONTENT_TYPE_LATEST
BOARD_STATES = ("offline", "idle", "busy", "lost", "asleep", "overdue")
JOB_STATES = ("queued", "resetting", "running", "adrift")


@dataclass(frozen=True)
class MetricSources:
    """The parts of the server that the metrics are read from."""

    status: ServerStatus
    loop_lag_monitor: LoopLagMonitor
    registry: Registry
    dispatch: Dispatch
    callers: CallerLinks
    subscriptions: Subscriptions
    unauthenticated: UnauthenticatedConnections
    housekeeper: Housekeeper
    sample_history: SampleHistory
    cluster: Cluster | SingleServer


def render(sources: MetricSources) -> bytes:
    """Return all metrics as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(sources))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Collector:
    """Reads the values for each request."""

    def __init__(self, sources: MetricSources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        sources, counters = self._sources, self._sources.dispatch.counters
        status = sources.status
        boards = dict.fromkeys(BOARD_STATES, 0) | Counter(
            board.state for board in sources.registry.by_id.values()
        )
        jobs = dict.fromkeys(JOB_STATES, 0) | Counter(
            job.state for job in sources.dispatch.jobs.values()
        )
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        yield InfoMetricFamily("cm", "the server's version", {"version": status.version})
        yield gauge("cm_start_seconds", "time of the start, since 1970", status.started_at)
        yield gauge("cm_healthy", "1 while /healthz reports no fault", not status.problems())
        yield gauge("cm_loop_lag_seconds", "event loop lag", sources.loop_lag_monitor.lag)
        yield _labelled_metric(gauge, "cm_boards", "enrolled boards", "state", boards)
        clocks = [
            board.reported_facts
            for board in sources.registry.by_id.values()
            if board.link is not None and board.reported_facts.get("clock_error") is not None
        ]
        yield gauge("cm_clocks", "connected boards that have measured their clocks", len(clocks))
        for fact, unit, text in (
            ("offset", 1e6, "greatest correction of a board's clock, in seconds"),
            ("error", 1e6, "greatest error that a board's clock may have, in seconds"),
            ("drift", 1e9, "greatest drift of a board's counter, as a share"),
        ):
            worst = max((abs(facts[f"clock_{fact}"]) for facts in clocks), default=0)
            yield gauge(f"cm_clock_{fact}_max", text, worst / unit)
        yield counter("cm_board_links", "authenticated links of boards", counters.board_links)
        yield counter("cm_boards_silent", "boards' links that timed out", counters.silent_links)
        yield gauge("cm_callers", "links of callers", len(sources.callers))
        yield gauge("cm_watches", "subscriptions of callers", len(sources.subscriptions))
        unauthenticated = sources.unauthenticated
        yield gauge("cm_unproven", "unauthenticated connections", unauthenticated.count)
        yield counter(
            "cm_unproven_cut", "those closed since there were too many", unauthenticated.dropped
        )
        yield _labelled_metric(
            counter, "cm_refused", "refused connections", "who", counters.refused_links
        )
        yield _labelled_metric(gauge, "cm_jobs_open", "jobs that have not ended", "state", jobs)
        yield _labelled_metric(
            counter, "cm_jobs_ended", "jobs that ended", "status", counters.jobs_ended
        )
        pruned = sources.housekeeper.pruned
        yield _labelled_metric(counter, "cm_pruned", "old rows that were deleted", "what", pruned)
        dropped = sources.sample_history.dropped
        yield counter("cm_sample_values_dropped", "values that were not kept on disk", dropped)
        yield _duration_histogram("cm_job_seconds", "running times of jobs", counters)
        if isinstance(sources.cluster, Cluster):
            yield from self._collect_cluster(sources.cluster)

    def _collect_cluster(self, cluster: Cluster) -> Iterator[Metric]:
        """Yield the metrics of a server that shares its store with others."""
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        remote_jobs = sum(bool(job.owner) for job in self._sources.dispatch.jobs.values())
        held_boards = cluster.board_directory.held_count
        pubsub = cluster.peer_messages.pubsub
        yield gauge("cm_servers", "live servers of this fleet", len(cluster.servers))
        yield gauge("cm_boards_held", "boards connected to this server", held_boards)
        yield gauge("cm_jobs_elsewhere", "open jobs that other servers own", remote_jobs)
        yield gauge("cm_bus_up", "1 while connected to the message bus", pubsub.connected)
        yield gauge("cm_bus_waiting_bytes", "bytes queued for the bus", pubsub.pending_bytes)
        yield counter(
            "cm_bus_dropped", "invalid messages from the bus", cluster.peer_messages.dropped
        )
        yield counter(
            "cm_writes_refused", "writes about others' boards and jobs", cluster.refused_writes
        )


def _labelled_metric(
    family: type[_LabelledFamily], name: str, text: str, label: str, counts: Mapping[str, float]
) -> Metric:
    metric = family(name, text, labels=[label])
    for value, count in counts.items():
        metric.add_metric([value], count)
    return metric


def _duration_histogram(name: str, text: str, counters: Counters) -> Metric:
    sums = itertools.accumulate(counters.duration_counts)
    bounds = [*map(str, DURATION_BOUNDS), "+Inf"]
    return HistogramMetricFamily(
        name, text, list(zip(bounds, sums, strict=True)), counters.run_seconds
    )
