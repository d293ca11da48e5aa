"""Plots that begin days ago: means of what the server has kept, then the recent samples."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cloudmanager.client.samples import Sample, Samples
from cm_magics.magic_options import read_plot_names
from cm_magics.plot import read_samples


class KeptSamples:
    """What ``samples`` of a fleet returns: recent ones, and means of what was kept.

    Args:
        recent: seconds ago at which there are recent samples.
    """

    def __init__(self, *recent: float) -> None:
        self.now = time.time()
        self.recent = recent
        self.asked: dict[str, Any] = {}

    def samples(self, target: str, count: int | None = None, **when: Any) -> Samples:
        assert target == "lab-1"
        if not when:
            assert count is not None
            return Samples(Sample("lab-1", self.now - ago, 1, 0, {"t": ago}) for ago in self.recent)
        self.asked = when
        first = when["since"] // when["every"] * when["every"]
        times = (first + n * when["every"] for n in range(1100))
        return Samples(
            (Sample("lab-1", at, 0, 0, {"t": -1.0}) for at in times if at < self.now),
            has_ticks=False,
        )


def read(kept: KeptSamples, since: int | None) -> list[Sample]:
    return read_samples(kept, "lab-1", ["t"], since)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("since", "every"), [(60, 1), (1000, 1), (1001, 60), (86400, 120), (7 * 86400, 660)]
)
def test_about_a_thousand_means_of_whole_minutes(since: int, every: int):
    kept = KeptSamples()
    found = read(kept, since)
    assert kept.asked["every"] == every
    assert kept.asked["names"] == ["t"]
    assert since / every - 2 <= len(found) <= 1002
    assert found[0].at <= kept.now - since + every


def test_recent_samples_follow_the_means_before_them():
    kept = KeptSamples(900.0, 500.0, 1.0)
    found = read(kept, 86400)
    times = [sample.at for sample in found]
    assert times == sorted(times)
    assert [sample.values["t"] for sample in found[-3:]] == [900.0, 500.0, 1.0]
    assert all(sample.at + 120 <= kept.now - 900 for sample in found[:-3])


def test_without_since_there_are_only_recent_samples():
    kept = KeptSamples(5.0)
    assert len(read(kept, None)) == 1
    assert kept.asked == {}


def test_options_may_be_among_the_names():
    for text in ("temp hum --since 2h", "temp --since 2h hum", "--since 2h temp hum"):
        assert read_plot_names(text, None) == (["temp", "hum"], 7200)
    assert read_plot_names("temp", 60) == (["temp"], 60)
    assert read_plot_names("", None) == ([], None)
