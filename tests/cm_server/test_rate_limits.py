"""Unauthenticated connections and rate limits, with a clock that the test sets."""

from __future__ import annotations

import pytest

from cm_server.limits import Limits
from cm_server.rate_limits import (
    RateLimiter,
    TokenBucket,
    UnauthenticatedConnections,
    UnauthenticatedEntry,
    address_group,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Crowd:
    """Unauthenticated connections that record which of them are closed."""

    def __init__(self, limits: Limits) -> None:
        self.connections = UnauthenticatedConnections(limits)
        self.closed: list[str] = []

    def add(self, name: str, address: str = "192.0.2.1"):
        return self.connections.add(address, lambda: self.closed.append(name))


@pytest.fixture
def crowd() -> Crowd:
    return Crowd(Limits(unauthenticated=5, unauthenticated_per_address=3))


# Unauthenticated connections


def test_oldest_connection_of_an_address_is_closed(crowd):
    for name in "abcd":
        crowd.add(name)
    assert (crowd.closed, crowd.connections.count, crowd.connections.dropped) == (["a"], 3, 1)


def test_flood_from_one_address_does_not_affect_another(crowd):
    crowd.add("board", "192.0.2.9")
    for number in range(1000):
        crowd.add(str(number))
    assert crowd.connections.count == 4
    assert "board" not in crowd.closed


def test_total_limit_closes_a_connection_of_the_largest_group(crowd):
    crowd.add("board", "192.0.2.9")
    for number in range(20):
        crowd.add(f"a{number}", "192.0.2.1")
        crowd.add(f"b{number}", "192.0.2.2")
    assert crowd.connections.count == 5
    assert "board" not in crowd.closed


def test_removed_connection_makes_room_and_may_be_removed_twice(crowd):
    entries = [crowd.add(name) for name in "abc"]
    crowd.connections.remove(entries[0])
    crowd.connections.remove(entries[0])
    crowd.add("d")
    assert (crowd.closed, crowd.connections.count) == ([], 3)
    for entry in entries[1:]:
        crowd.connections.remove(entry)
    assert crowd.connections.count == 1


def test_removed_connections_leave_no_data(crowd):
    for number in range(100):
        entry = crowd.add("x", f"192.0.2.{number}")
        crowd.connections.remove(entry)
    assert (crowd.connections.count, crowd.connections._groups) == (0, {})


def test_close_function_may_remove_its_own_entry(crowd):
    entries: dict[str, UnauthenticatedEntry] = {}
    for name in "abcd":
        close = lambda name=name: crowd.connections.remove(entries[name])  # noqa: E731
        entries[name] = crowd.connections.add("192.0.2.1", close)
    assert crowd.connections.count == 3


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "::/64"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a socket", "a socket"),
    ],
)
def test_addresses_of_one_host_form_one_group(address, group):
    assert address_group(address) == group


# Rates


def test_events_over_the_rate_are_suppressed_and_counted():
    clock = Clock()
    rate = RateLimiter(2, clock)
    assert [rate.allow("a") for _ in range(5)] == [0, 0, None, None, None]
    clock.now += 59
    assert rate.allow("a") is None
    clock.now += 1
    assert [rate.allow("a") for _ in range(2)] == [4, 0]


def test_keys_are_counted_separately():
    rate = RateLimiter(1, Clock())
    assert [rate.allow(key) for key in "abab"] == [0, 0, None, None]


def test_number_of_keys_is_bounded():
    rate = RateLimiter(1, Clock(), max_keys=3)
    for number in range(100):
        rate.allow("steady")
        rate.allow(str(number))
        assert len(rate._windows) <= 3
    assert rate.allow("steady") is None


def test_connection_that_cannot_be_closed_does_not_affect_the_next(caplog):
    unauthenticated = UnauthenticatedConnections(Limits(unauthenticated_per_address=1))

    def fail() -> None:
        raise ValueError("a detached socket")

    for _ in range(20):
        unauthenticated.add("192.0.2.1", fail)
    assert (unauthenticated.count, unauthenticated.dropped) == (1, 19)
    assert caplog.text.count("could not be closed") == 1


def test_token_bucket_allows_a_burst_and_then_a_rate():
    now = [0.0]
    bucket = TokenBucket(10, 5, lambda: now[0])
    assert [bucket.spend() for _ in range(5)] == [0.0] * 5
    assert bucket.spend() == pytest.approx(0.1)
    assert bucket.spend() == pytest.approx(0.2)  # each further event waits longer
    now[0] = 0.2
    assert bucket.spend(0) == 0.0
    assert bucket.spend() == pytest.approx(0.1)
    now[0] = 100.0
    assert [bucket.spend() for _ in range(5)][-1] == 0.0
    assert (
        max(bucket.spend() for _ in range(5)) > 0.0
    )  # a longer pause does not allow a longer burst


def test_first_reads_of_a_connection_are_free_and_others_share_a_rate():
    unauthenticated = UnauthenticatedConnections(Limits(unauthenticated_reads_per_second=10))
    for _ in range(100):
        assert unauthenticated.read_pause(Limits.unauthenticated_reads_at_once) == 0.0
    pauses = [
        unauthenticated.read_pause(Limits.unauthenticated_reads_at_once + 1) for _ in range(10)
    ]
    assert pauses[0] == 0.0
    assert 0.5 < pauses[-1] < 1.0
