"""Samples: their checks, their timestamps, and limits for one board and for all."""

from __future__ import annotations

import json
import time

import pytest

from cloudmanager.protocol import wire
from cm_server.jobs.model import Board
from cm_server.limits import Limits
from cm_server.sample_buffer import Sample
from cm_server.sample_collector import SampleCollector
from cm_server.store.rows import BoardRow


def board(name: str = "lab-1") -> Board:
    return Board(BoardRow(f"id-{name}", name, bytes(32), {}, {}, 1.0, 5.0))


def emitted(text: str = '{"t":1}', *, ticks: int = 5, missed: int = 0) -> wire.Message:
    return wire.Message(wire.EMIT, missed, 0, ticks.to_bytes(8, "big") + text.encode())


def collector(max_per_board: int, **limits: int) -> SampleCollector:
    return SampleCollector(max_per_board, Limits(**limits))


FAST = 1_000_000_000  # samples a second


def test_sample_gets_a_timestamp_and_is_reported():
    reported: list[tuple[Board, Sample]] = []
    lab, before = board(), time.time()
    samples = collector(10)
    samples.listeners.append(lambda *each: reported.append(each))
    samples.add_message(lab, emitted(ticks=77))
    (sample,) = lab.sample_buffer.samples
    assert reported == [(lab, sample)]
    assert (sample.ticks, sample.missed, sample.values) == (77, 0, '{"t":1}')
    assert before - 1e-6 <= sample.at <= time.time() + 1e-6
    assert json.loads(sample.to_json("lab-1")) == ["lab-1", sample.at, 77, 0, {"t": 1}]


def test_sample_has_the_time_of_the_boards_clock():
    lab, samples = board(), collector(10)
    now = time.time()
    for seconds in (-3600.0, -5.25, -0.5):
        samples.add_message(lab, emitted(ticks=int((now + seconds) * 1000)))
    ats = [sample.at - now for sample in lab.sample_buffer.samples]
    assert ats == pytest.approx([-3600.0, -5.25, -0.5], abs=0.002)


@pytest.mark.parametrize("seconds", [0.3, 5.0, 86400.0, 1e11, -32 * 86400.0])
def test_boards_time_is_not_in_the_future_and_not_older_than_samples_can_be(seconds):
    lab, samples = board(), collector(10)
    before = time.time()
    samples.add_message(lab, emitted(ticks=int((before + seconds) * 1000)))
    assert before - 1e-6 <= lab.sample_buffer.samples[0].at <= time.time() + 1e-6


def test_samples_stay_in_their_order_whatever_their_board_says():
    lab, samples = board(), collector(10)
    now = time.time()
    for seconds in (-10, -20, -5, -5000):
        samples.add_message(lab, emitted(ticks=int((now + seconds) * 1000)))
    ats = [sample.at - now for sample in lab.sample_buffer.samples]
    assert ats == pytest.approx([-10, -10, -5, -5], abs=0.002)


def test_sample_of_too_many_bytes_is_dropped():
    lab, samples = board(), collector(10)
    samples.add_message(lab, emitted('{"t":"%s"}' % ("x" * 1100)))
    assert not lab.sample_buffer.samples
    assert lab.sample_buffer.missed == 1


@pytest.mark.parametrize("text", ["", "{}", '{"t":[1]}', "nonsense"])
def test_dropped_samples_are_counted_in_the_next_one(text):
    lab, samples = board(), collector(10)
    samples.add_message(lab, emitted(text))
    assert not lab.sample_buffer.samples
    samples.add_message(lab, emitted(missed=3))
    samples.add_message(lab, emitted())
    assert [sample.missed for sample in lab.sample_buffer.samples] == [4, 0]


def test_newest_samples_of_a_board_are_kept():
    lab, samples = board(), collector(3, samples_per_second=FAST)
    for ticks in range(10):
        samples.add_message(lab, emitted(ticks=ticks))
    assert [sample.ticks for sample in lab.sample_buffer.samples] == [7, 8, 9]


def test_boards_share_the_total_of_samples():
    samples = collector(10, samples_per_second=FAST, total_samples=12)
    labs = [board(f"lab-{n}") for n in range(4)]
    for lab in labs:
        for ticks in range(20):
            samples.add_message(lab, emitted(ticks=ticks))
    assert [len(lab.sample_buffer.samples) for lab in labs] == [10, 6, 4, 3]
    for lab in labs:
        samples.add_message(lab, emitted())
    assert [len(lab.sample_buffer.samples) for lab in labs] == [3, 3, 3, 3]


def test_samples_beyond_the_rate_limit_are_dropped_and_counted():
    lab, samples = board(), collector(10_000)
    for _ in range(5000):
        samples.add_message(lab, emitted())
    kept = len(lab.sample_buffer.samples)
    assert Limits.samples_per_second <= kept < 2 * Limits.samples_per_second
    assert (
        lab.sample_buffer.missed + sum(s.missed for s in lab.sample_buffer.samples) == 5000 - kept
    )


def test_sample_that_was_kept_without_a_link_has_the_time_of_its_measurement():
    lab, samples, before = board(), collector(10), time.time()
    samples.add_message(lab, emitted('{"n":1,"":90000}'))
    samples.add_message(lab, emitted('{"n":2,"":30000}'))
    first, second = lab.sample_buffer.samples
    assert (first.values, second.values) == ('{"n":1}', '{"n":2}')
    assert before - 90 <= first.at <= time.time() - 90
    assert before - 30 <= second.at <= time.time() - 30


def test_samples_stay_in_their_order_if_the_clock_of_a_board_differs():
    lab, samples = board(), collector(10)
    samples.add_message(lab, emitted('{"n":1}'))
    samples.add_message(lab, emitted('{"n":2,"":90000}'))
    first, second = lab.sample_buffer.samples
    assert second.at >= first.at
