"""The board directory: the newest epoch counts."""

from __future__ import annotations

import time

import pytest

from cloudmanager.protocol import wire
from cm_server.cluster import board_directory, membership
from cm_server.cluster.peer_messages import ALL, PeerMessages
from tests.cm_server.pairs import Two, others_of, store_of
from tests.cm_server.peers import FakeBoard, FakeCaller, Service


async def test_newest_epoch_wins_and_older_messages_are_ignored(pair: Two):
    identity, board = await pair.board_at_b()
    async with board, await FakeBoard.join(pair.a, identity):
        assert (await board.closed())[0] == 4003
        await pair.seen()
        a, b = (service.server.registry.by_name["lab-1"] for service in (pair.a, pair.b))
        assert (a.epoch, b.epoch) == (2, 2)
        assert b.remote_state is not None
        assert b.remote_state.server == store_of(pair.a).server_id
        stale = [[identity.id, [1, "offline", None, None, 0], None]]
        others_of(pair.a).board_directory._on_boards("c" * 16, {"boards": stale}, b"")
        assert a.state == "idle"
        assert (
            others_of(pair.a).board_directory.held_count,
            others_of(pair.b).board_directory.held_count,
        ) == (1, 0)
    await pair.seen(state="offline")
    assert others_of(pair.a).board_directory.held_count == 0
    assert store_of(pair.b).board_holders() == {}


async def test_facts_of_a_board_are_known_at_all_servers(pair: Two):
    _, board = await pair.board_at_b()
    async with board:
        a = pair.a.server.registry.by_name["lab-1"]
        assert a.facts["platform"] == "unix"
        described = a.describe()
        assert (described["state"], described["queued"], described["job"]) == ("idle", 0, None)
        assert abs(described["connected_since"] - time.time()) < 60


async def test_server_requests_what_it_missed(pair: Two):
    identity, board = await pair.board_at_b()
    async with board:
        a = pair.a.server.registry.by_name["lab-1"]
        a.epoch, a.remote_state, a.reported_facts = 0, None, {}
        others_of(pair.a)._on_pubsub_change(True)
        await pair.a.until(lambda: a.online)  # according to the store
        await pair.a.until(lambda: a.reported_facts)
    store_of(pair.b).delete_boards([identity.id])
    await others_of(pair.b)._reload()
    await pair.a.until(lambda: not pair.a.server.registry.by_id)
    assert not pair.b.server.registry.by_id


async def test_board_is_refused_while_the_store_is_unavailable(pair: Two):
    (identity,) = await pair.enrol("lab-1")
    db = store_of(pair.b)._connection
    db.exec_driver_sql("PRAGMA query_only=ON")
    db.commit()
    board: FakeBoard = await FakeBoard.dial(pair.b, "/board")
    async with board:
        await board.greet(identity.id)
        await board.prove(identity, await board.next())
        assert await board.closed() == (1001, "the server cannot accept the board now")
    db.exec_driver_sql("PRAGMA query_only=OFF")
    db.commit()


async def test_revoked_board_is_refused_by_a_server_that_missed_the_message(
    pair: Two, monkeypatch: pytest.MonkeyPatch
):
    async def reload_nothing() -> None:
        """Take the place of the reload that follows a start, and each message that was missed."""

    (identity,) = await pair.enrol("lab-1")
    monkeypatch.setattr(others_of(pair.b).board_directory, "reload_all", reload_nothing)
    others_of(pair.a).peer_messages.pubsub.publish = lambda *_: None  # type: ignore[method-assign]
    pair.a.store.delete_boards([identity.id])
    board: FakeBoard = await FakeBoard.dial(pair.b, "/board")
    async with board:
        await board.greet(identity.id)
        await board.prove(identity, await board.next())
        assert (await board.closed())[0] == 1001
    assert not pair.b.server.registry.by_id


async def test_revoked_board_is_disconnected_soon_while_the_bus_is_down(pair: Two, monkeypatch):
    _, board = await pair.board_at_b()
    monkeypatch.setattr(membership, "RELOAD_DISCONNECTED_SECONDS", 0.1)
    assert pair.hub is not None
    async with board, await FakeCaller.join(pair.a) as caller:
        pair.hub.set_connected(False)
        await caller.ask("revoke", target="lab-1")
        assert (await board.closed())[0] == 4004


async def test_message_without_the_key_is_dropped(pair: Two):
    identity, board = await pair.board_at_b()
    assert pair.hub is not None
    fleet = others_of(pair.a).peer_messages._fleet
    stranger = PeerMessages(pair.hub.new_client(), fleet, bytes(32), "c" * 16)
    async with board:
        dropped = others_of(pair.b).peer_messages.dropped
        stranger.send(ALL, "stop", {"board": identity.id})
        await pair.b.until(lambda: others_of(pair.b).peer_messages.dropped > dropped)
        others_of(pair.a).peer_messages.send(ALL, "stop", {"board": identity.id})
        assert (await board.next()).op == wire.INTERRUPT


async def emit(board: FakeBoard, *values: int) -> None:
    for value in values:
        await board.send(wire.EMIT, value.to_bytes(8, "big") + b'{"t":%d}' % value)


def samples_at(service: Service) -> list[tuple[int, int]]:
    """Return the clock and the number of missed samples of each sample of lab-1."""
    board = service.server.registry.by_name["lab-1"]
    return [(sample.ticks, sample.missed) for sample in board.sample_buffer.samples]


async def test_samples_that_the_bus_lost_are_counted(pair: Two):
    _, board = await pair.board_at_b()
    assert pair.hub is not None
    async with board:
        await emit(board, 1)
        await pair.a.until(lambda: samples_at(pair.a) == [(1, 0)])
        pair.hub.set_connected(False)
        await emit(board, 2, 3)
        await pair.b.until(lambda: len(samples_at(pair.b)) == 3)
        await pair.b.until(lambda: not others_of(pair.b).board_directory._pending_samples)
        pair.hub.set_connected(True)
        await emit(board, 4)
        await pair.a.until(lambda: samples_at(pair.a) == [(1, 0), (4, 2)])
        assert samples_at(pair.b) == [(1, 0), (2, 0), (3, 0), (4, 0)]


async def test_server_that_starts_later_gets_older_samples_once(pair: Two, monkeypatch):
    _, board = await pair.board_at_b()
    monkeypatch.setattr(board_directory, "SAMPLES_PER_MESSAGE", 1)
    async with board:
        await emit(board, 1, 2, 3)
        await pair.a.until(lambda: len(samples_at(pair.a)) == 3)
        a = pair.a.server.registry.by_name["lab-1"]
        a.sample_buffer.samples.clear()  # as if server A started now
        directory = others_of(pair.a).board_directory
        directory._has_samples, directory._last_samples = False, {}
        await emit(board, 4)
        await pair.a.until(lambda: samples_at(pair.a) == [(4, 0)])
        for _ in range(2):
            await directory.request_boards()
            await pair.a.until(lambda: samples_at(pair.a) == [(1, 0), (2, 0), (3, 0), (4, 0)])
