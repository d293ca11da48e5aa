"""Subscriptions: a complete update first, then collected changes of covered boards."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.targets import parse_target
from cm_server.api.subscriptions import Subscription, Subscriptions, WatchRequest
from cm_server.jobs.model import Board
from cm_server.jobs.registry import Registry
from cm_server.limits import Limits
from cm_server.sample_buffer import Sample
from cm_server.store.rows import BoardRow
from tests.cm_server.jobs.test_registry import Link
from tests.cm_server.peers import FakeBoard, FakeCaller, Service


def row(number: int, **labels: str) -> BoardRow:
    return BoardRow(f"id-{number}", f"lab-{number}", bytes(32), labels, {}, 1.0, 5.0)


class Rig:
    """Subscriptions; tests act as the clock and as the reading caller."""

    def __init__(self, count: int = 3, **limits: int) -> None:
        self.limits = Limits(**limits)
        self.registry = Registry(row(number) for number in range(1, count + 1))
        self.timers: list[Any] = []
        self.subscriptions = Subscriptions(
            self.registry, lambda _, act: self.timers.append(act), self.limits
        )
        self.ready = True

    def board(self, number: int = 1) -> Board:
        return self.registry.by_name[f"lab-{number}"]

    def watch(self, target: str = "all", **more: Any) -> tuple[Subscription, list[dict[str, Any]]]:
        updates: list[dict[str, Any]] = []

        def send(data: bytes) -> None:
            message = wire.unpack(data)
            assert (message.op, message.job) == (wire.CHANGES, 9)
            is_first = bool(message.flags & wire.FULL_SNAPSHOT)
            updates.append({**json.loads(message.payload), "is_first": is_first})

        wanted: dict[str, Any] = {"reachable": self.registry.by_name, **more}
        watch = Subscription(
            WatchRequest(9, parse_target(target), **wanted),
            owner="a" * 64,
            send=send,
            is_ready=lambda: self.ready,
            limits=self.limits,
        )
        self.subscriptions.add(watch)
        return watch, updates

    def tick(self) -> None:
        timers, self.timers = self.timers, []
        for act in timers:
            act()

    def emit(self, number: int = 1, value: int = 1) -> None:
        sample = Sample(5.0, 7, 0, f'{{"t":{value}}}')
        self.subscriptions.on_sample(self.board(number), sample)


def names(update: dict[str, Any]) -> list[str]:
    return [board["name"] for board in update["boards"]]


def test_first_update_is_complete_and_later_ones_contain_changes():
    rig = Rig()
    _, updates = rig.watch()
    assert (names(updates[0]), updates[0]["is_first"]) == (["lab-1", "lab-2", "lab-3"], True)
    rig.tick()
    rig.board(2).connect(Link(), {"platform": "esp32"}, 1000)
    rig.board(2).labels = {"room": "attic"}
    assert len(updates) == 1, "nothing is sent before the time is up"
    rig.tick()
    (board,) = updates[1]["boards"]
    assert (board["name"], board["state"], board["labels"]) == ("lab-2", "idle", {"room": "attic"})
    rig.tick()
    assert (len(updates), rig.timers) == (2, []), "without changes, no timer runs"


def test_samples_are_sent_to_subscribers_that_want_them():
    rig = Rig()
    (_, updates), (_, without) = rig.watch("lab-1"), rig.watch(samples=False)
    rig.emit(1, 21)
    rig.emit(2, 22)
    rig.tick()
    assert updates[-1]["samples"] == [["lab-1", 5.0, 7, 0, {"t": 21}]]
    assert len(without) == 1


def test_board_that_the_target_no_longer_selects_is_gone():
    rig = Rig(2)
    rig.board(1).labels = {"room": "attic"}
    _, updates = rig.watch("room=attic")
    rig.board(2).labels = {"room": "attic"}
    rig.tick()
    assert (names(updates[-1]), updates[-1]["gone"]) == (["lab-2"], [])
    rig.board(1).labels = {}
    rig.tick()
    assert (names(updates[-1]), updates[-1]["gone"]) == ([], ["lab-1"])


def test_removed_and_enrolled_boards_are_sent():
    rig = Rig(2)
    _, updates = rig.watch()
    rig.registry.remove(rig.board(1))
    rig.registry.add(row(7))
    rig.tick()
    assert (names(updates[-1]), updates[-1]["gone"]) == (["lab-7"], ["lab-1"])


def test_another_board_with_the_same_name_is_sent_as_new():
    rig = Rig(1)
    _, updates = rig.watch()
    rig.registry.remove(rig.board(1))
    rig.registry.add(row(1)._replace(id="other"))
    rig.tick()
    assert (updates[-1]["boards"][0]["id"], updates[-1]["gone"]) == ("other", ["lab-1"])


def test_slow_subscriber_receives_the_last_state():
    rig = Rig(1)
    _, slow = rig.watch()
    rig.ready = False
    for room in ("attic", "cellar", "hall"):
        rig.board().labels = {"room": room}
        rig.tick()
    assert len(slow) == 1
    rig.ready = True
    rig.tick()
    assert [board["labels"] for board in slow[1]["boards"]] == [{"room": "hall"}]


def test_pending_samples_are_bounded_and_dropped_ones_counted():
    rig = Rig(1, subscription_pending_samples=10)
    _, updates = rig.watch()
    rig.ready = False
    for value in range(8):
        rig.emit(value=value)
    rig.tick()
    for value in range(8, 16):
        rig.emit(value=value)
    rig.tick()
    rig.ready = True
    rig.tick()
    assert [sample[4]["t"] for sample in updates[1]["samples"]] == list(range(6, 16))
    assert updates[1]["left_out"] == 6


def test_samples_between_two_updates_are_bounded():
    rig = Rig(1, subscription_pending_samples=10)
    _, updates = rig.watch()
    for value in range(15):
        rig.emit(value=value)
    rig.tick()
    assert (len(updates[1]["samples"]), updates[1]["left_out"]) == (10, 5)


def test_many_boards_are_sent_in_several_updates():
    rig = Rig(10, subscription_update_boards=4)
    _, updates = rig.watch()
    rig.tick()
    rig.tick()
    rig.tick()
    assert [len(update["boards"]) for update in updates] == [4, 4, 2]
    assert [update["is_first"] for update in updates] == [True, False, False]


def test_nothing_is_collected_without_subscriptions():
    rig = Rig(1)
    watch, updates = rig.watch()
    rig.subscriptions.remove(watch)
    rig.tick()
    rig.board().labels = {"a": "b"}
    rig.emit()
    assert (len(updates), rig.timers, rig.registry.subscriptions_listener) == (1, [], None)


# On real sockets


async def changes(caller: FakeCaller) -> dict[str, Any]:
    message = await caller.next()
    assert message.op == wire.CHANGES
    return wire.read_json(message.payload)


async def emit(board: FakeBoard, text: bytes) -> None:
    await board.send(wire.EMIT, bytes(8) + text)


async def test_subscriber_sees_only_boards_that_its_token_covers(service: Service):
    lab, vault = service.enrol("lab-1", "vault-1")
    token = service.add_token("viewer", "lab-*")
    async with (
        await FakeBoard.join(service, lab) as mine,
        await FakeBoard.join(service, vault) as theirs,
        await FakeCaller.join(service, token) as caller,
    ):
        await caller.send(wire.WATCH, b'{"target": "all"}', job=9)
        assert names(await changes(caller)) == ["lab-1"]
        await emit(theirs, b'{"secret": 1}')
        service.server.registry.by_name["vault-1"].labels = {"a": "b"}
        await emit(mine, b'{"t": 1}')
        update = await changes(caller)
        assert [sample[0] for sample in update["samples"]] == ["lab-1"]
        assert (names(update), update["gone"]) == ([], [])
        assert [row[0] for row in (await caller.ask("samples"))["reply"]] == ["lab-1"]


async def test_malformed_sample_does_not_close_the_link(service: Service):
    (lab,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        await emit(board, b"nonsense")
        await emit(board, b'{"t": 1}')
        await service.until(lambda: service.server.registry.by_name["lab-1"].sample_buffer.samples)
        ((name, _, _, missed, values),) = (await caller.ask("samples", target="lab-1"))["reply"]
        assert (name, missed, values) == ("lab-1", 1, {"t": 1})


async def test_subscription_ends_with_unwatch_or_the_link(service: Service):
    service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        for ref in (1, 2):
            await caller.send(wire.WATCH, b'{"target": "all"}', job=ref)
            await changes(caller)
        await caller.send(wire.UNWATCH, job=1)
        await service.until(lambda: len(service.server.subscriptions) == 1)
    await service.until(lambda: len(service.server.subscriptions) == 0)


@pytest.mark.parametrize(
    ("target", "error"),
    [("lab-7", "NoSuchBoard"), ("lab-[", "TargetError"), ("", "TargetError")],
)
async def test_invalid_target_is_refused(service: Service, target, error):
    service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        await caller.send(wire.WATCH, json.dumps({"target": target}).encode(), job=3)
        reply = await caller.next()
        assert (reply.op, reply.job) == (wire.REPLY, 3)
        assert wire.read_json(reply.payload)["error"] == error


@pytest.mark.limits(subscriptions_per_link=1, subscriptions=2)
async def test_too_many_subscriptions_are_refused(service: Service):
    async with (
        await FakeCaller.join(service) as one,
        await FakeCaller.join(service) as two,
        await FakeCaller.join(service) as three,
    ):
        for caller in (one, two):
            await caller.send(wire.WATCH, b'{"target": "all"}', job=1)
            await changes(caller)
        for caller, ref in ((one, 1), (one, 2), (three, 1)):
            await caller.send(wire.WATCH, b'{"target": "all"}', job=ref)
            assert wire.read_json((await caller.next()).payload)["error"] == "ServerError"


async def test_reply_to_samples_is_bounded(service: Service):
    (lab,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        for number in range(5):
            await emit(board, b'{"n": %d}' % number)
        buffer = service.server.registry.by_name["lab-1"].sample_buffer
        await service.until(lambda: len(buffer.samples) == 5)
        rows = (await caller.ask("samples", target="all", count=2))["reply"]
        assert [row[4] for row in rows] == [{"n": 3}, {"n": 4}]
        assert (await caller.ask("samples", count=10**9))["error"] == "ServerError"


async def test_uptime_counts_from_the_boards_start(service: Service):
    (lab,) = service.enrol("lab-1")
    known = service.server.registry.by_name["lab-1"]
    for boot, same in (("b1", False), ("b1", True), ("b2", False)):
        before = known.describe()["booted"]
        async with await FakeBoard.join(service, lab, boot=boot):
            assert (known.describe()["booted"] == before) is same
        await service.until(lambda: not known.online)
