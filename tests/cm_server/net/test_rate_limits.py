"""The door: how many may stand there, and who is counted; with a clock turned by hand."""

from __future__ import annotations

import pytest

from cm_server import limits
from cm_server.net.rate_limits import (
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
    """Connections that note when they are cut."""

    def __init__(self) -> None:
        self.door = UnauthenticatedConnections()
        self.cut: list[str] = []

    def enter(self, name: str, address: str = "192.0.2.1"):
        return self.door.add(address, lambda: self.cut.append(name))


@pytest.fixture
def crowd(monkeypatch) -> Crowd:
    monkeypatch.setattr(limits, "UNAUTHENTICATED", 5)
    monkeypatch.setattr(limits, "UNAUTHENTICATED_PER_ADDRESS", 3)
    return Crowd()


# Connections that have proven nothing


def test_oldest_connection_of_an_address_is_closed(crowd):
    for name in "abcd":
        crowd.enter(name)
    assert (crowd.cut, crowd.door.count, crowd.door.dropped) == (["a"], 3, 1)


def test_flood_from_one_address_does_not_affect_another(crowd):
    crowd.enter("board", "192.0.2.9")
    for number in range(1000):
        crowd.enter(str(number))
    assert crowd.door.count == 4
    assert "board" not in crowd.cut


def test_total_limit_closes_a_connection_of_the_largest_group(crowd):
    crowd.enter("board", "192.0.2.9")
    for number in range(20):
        crowd.enter(f"a{number}", "192.0.2.1")
        crowd.enter(f"b{number}", "192.0.2.2")
    assert crowd.door.count == 5
    assert "board" not in crowd.cut


def test_removed_connection_makes_room_and_may_be_removed_twice(crowd):
    entries = [crowd.enter(name) for name in "abc"]
    crowd.door.remove(entries[0])
    crowd.door.remove(entries[0])
    crowd.enter("d")
    assert (crowd.cut, crowd.door.count) == ([], 3)
    for entry in entries[1:]:
        crowd.door.remove(entry)
    assert crowd.door.count == 1


def test_removed_connections_leave_no_data(crowd):
    for number in range(100):
        entry = crowd.enter("x", f"192.0.2.{number}")
        crowd.door.remove(entry)
    assert (crowd.door.count, crowd.door._groups) == (0, {})


def test_close_function_may_remove_its_own_entry(crowd):
    entries: dict[str, UnauthenticatedEntry] = {}
    for name in "abcd":
        end = lambda name=name: crowd.door.remove(entries[name])  # noqa: E731
        entries[name] = crowd.door.add("192.0.2.1", end)
    assert crowd.door.count == 3


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


def test_number_of_keys_is_bounded(monkeypatch):
    monkeypatch.setattr(limits, "RATE_LIMIT_KEYS", 3)
    rate = RateLimiter(1, Clock())
    for number in range(100):
        rate.allow("steady")
        rate.allow(str(number))
        assert len(rate._windows) <= 3
    assert rate.allow("steady") is None


def test_connection_that_cannot_be_closed_does_not_affect_the_next(monkeypatch, caplog):
    monkeypatch.setattr(limits, "UNAUTHENTICATED_PER_ADDRESS", 1)
    unproven = UnauthenticatedConnections()

    def fail() -> None:
        raise ValueError("a detached socket")

    for _ in range(20):
        unproven.add("192.0.2.1", fail)
    assert (unproven.count, unproven.dropped) == (1, 19)
    assert caplog.text.count("could not be closed") == 1


def test_token_bucket_allows_a_burst_and_then_a_rate():
    now = [0.0]
    bucket = TokenBucket(10, 5, lambda: now[0])
    assert [bucket.spend() for _ in range(5)] == [0.0] * 5
    assert bucket.spend() == pytest.approx(0.1)
    assert bucket.spend() == pytest.approx(0.2)  # each further one waits for a later slot
    now[0] = 0.2
    assert bucket.spend(0) == 0.0
    assert bucket.spend() == pytest.approx(0.1)
    now[0] = 100.0
    assert [bucket.spend() for _ in range(5)][-1] == 0.0
    assert max(bucket.spend() for _ in range(5)) > 0.0  # a long pause earns no more


def test_first_reads_of_a_connection_are_free_and_others_share_a_rate(monkeypatch):
    monkeypatch.setattr(limits, "UNPROVEN_READS_PER_SECOND", 10)
    unproven = UnauthenticatedConnections()
    for _ in range(100):
        assert unproven.read_pause(limits.UNPROVEN_READS_AT_ONCE) == 0.0
    pauses = [unproven.read_pause(limits.UNPROVEN_READS_AT_ONCE + 1) for _ in range(10)]
    assert pauses[0] == 0.0
    assert 0.5 < pauses[-1] < 1.0
