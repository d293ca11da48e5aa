"""How the service is, in numbers, as Prometheus reads them from ``/metrics``.

A label is one of a few words that stand in our code: never a name, an address or anything else
that a peer chose, so that nobody can make it grow. docs/metrics.md lists each metric. This
module is imported when somebody first asks: a start must not wait for prometheus-client.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
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

from .jobs.counters import DURATION_BOUNDS, Counters

if TYPE_CHECKING:
    from .app import Server
    from .cluster.membership import Cluster

_LabelledFamily = GaugeMetricFamily | CounterMetricFamily
CONTENT_TYPE = CONTENT_TYPE_LATEST
BOARD_STATES = ("offline", "idle", "busy", "lost")
JOB_STATES = ("queued", "resetting", "running", "adrift")


def render(server: Server) -> bytes:
    """Return all metrics as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(server))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Collector:
    """Looks at the server when it is asked."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        server, tally = self._server, self._server.dispatch.counters
        boards = dict.fromkeys(BOARD_STATES, 0) | Counter(
            board.state for board in server.registry.by_id.values()
        )
        jobs = dict.fromkeys(JOB_STATES, 0) | Counter(
            job.state for job in server.dispatch.jobs.values()
        )
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        yield InfoMetricFamily("cm", "which server it is", {"version": server.version})
        yield gauge("cm_start_seconds", "when it started, since 1970", server.started_at)
        yield gauge("cm_healthy", "whether /healthz finds nothing wrong", not server.problems())
        yield gauge("cm_loop_lag_seconds", "how late its loop was", server.loop_lag_monitor.lag)
        yield _labelled_metric(gauge, "cm_boards", "enrolled boards", "state", boards)
        yield counter("cm_board_links", "links of boards that proved themselves", tally.board_links)
        yield counter("cm_boards_silent", "links of boards that fell silent", tally.silent_links)
        yield gauge("cm_callers", "callers' links", len(server.callers))
        yield gauge("cm_watches", "targets that callers watch", len(server.subscriptions))
        yield gauge(
            "cm_unproven", "connections that have proven nothing yet", server.unauthenticated.count
        )
        yield counter(
            "cm_unproven_cut", "those that were cut as too many", server.unauthenticated.dropped
        )
        yield _labelled_metric(
            counter, "cm_refused", "who was not let in", "who", tally.refused_links
        )
        yield _labelled_metric(gauge, "cm_jobs_open", "jobs that have not ended", "state", jobs)
        yield _labelled_metric(
            counter, "cm_jobs_ended", "jobs that ended", "status", tally.jobs_ended
        )
        pruned = server.housekeeper.pruned
        yield _labelled_metric(counter, "cm_pruned", "old rows taken out", "what", pruned)
        yield _duration_histogram("cm_job_seconds", "how long jobs ran", tally)
        if server.cluster is not None:
            yield from self._collect_cluster(server.cluster)

    def _collect_cluster(self, cluster: Cluster) -> Iterator[Metric]:
        """Yield what there is to say of several servers."""
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        away = sum(bool(job.owner) for job in self._server.dispatch.jobs.values())
        yield gauge("cm_servers", "servers of this fleet that are there", len(cluster.servers))
        yield gauge(
            "cm_boards_held", "boards whose link is here", cluster.board_directory.held_count
        )
        yield gauge("cm_jobs_elsewhere", "open jobs that other servers run", away)
        yield gauge("cm_bus_up", "whether the bus is there", cluster.peer_messages.pubsub.connected)
        yield gauge(
            "cm_bus_waiting_bytes",
            "what waits for the bus",
            cluster.peer_messages.pubsub.pending_bytes,
        )
        yield counter(
            "cm_bus_dropped", "what came and was no letter to us", cluster.peer_messages.dropped
        )
        yield counter("cm_writes_refused", "what was fenced off", cluster.refused_writes)


def _labelled_metric(
    family: type[_LabelledFamily], name: str, text: str, label: str, counts: Mapping[str, float]
) -> Metric:
    made = family(name, text, labels=[label])
    for value, count in counts.items():
        made.add_metric([value], count)
    return made


def _duration_histogram(name: str, text: str, counters: Counters) -> Metric:
    sums = itertools.accumulate(counters.duration_counts)
    bounds = [*map(str, DURATION_BOUNDS), "+Inf"]
    return HistogramMetricFamily(
        name, text, list(zip(bounds, sums, strict=True)), counters.run_seconds
    )
