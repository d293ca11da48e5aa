"""A board's link, on real sockets: authentication, untrusted facts, heartbeats, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from cloudmanager.protocol import frames, proofs, wire
from cm_server.limits import Limits
from tests.cm_server.peers import (
    FACTS,
    FakeBoard,
    FakeCaller,
    Identity,
    RawPeer,
    Service,
    running_service,
    within,
)

UNKNOWN = Identity({"name": "x", "id": "00" * 8, "key": "11" * 32})


@pytest.fixture
def lab(service: Service) -> Identity:
    (identity,) = service.enrol("lab-1")
    return identity


# Authentication


async def test_authenticated_board_is_online_with_its_facts(service: Service, lab: Identity):
    async with await FakeBoard.join(service, lab) as board:
        sent_at = board.welcome.pop("time")  # milliseconds
        assert isinstance(sent_at, int)
        assert abs(sent_at / 1000 - time.time()) < 5
        assert board.welcome == {"name": "lab-1", "beat": 30.0, "spread": 2.0}
        board_facts = service.server.registry.by_name["lab-1"].describe()
        assert board_facts["state"] == "idle"
        expected = ("unix", "1.28.0", "6.3")
        assert tuple(board_facts[name] for name in ("platform", "version", "mpy")) == expected
        assert board_facts["heap"] == FACTS["heap"]
    await service.until(lambda: service.state("lab-1") == "offline")


async def test_facts_of_an_offline_board_are_kept(service: Service, lab: Identity):
    async with await FakeBoard.join(service, lab, boot="b7"):
        pass
    (row,) = service.store.boards()
    assert (row.facts["platform"], row.facts["boot"]) == ("unix", "b7")
    assert row.last_seen is not None


async def refusal(service: Service, identity: Identity) -> tuple[int | None, str]:
    """Connect with a wrong proof; return the server's close code and reason."""
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(identity.id)
        challenge = await board.next()
        assert challenge.op == wire.CHALLENGE
        assert wire.read_json(challenge.payload[48:]) == {"v": 1}
        await board.send(wire.PROOF, bytes(32) + b"{}")
        code, reason = await board.closed()
        return code, reason


async def test_wrong_key_and_unknown_id_get_the_same_answer(service: Service, lab: Identity):
    wrong_key = await refusal(service, lab)
    unknown = await refusal(service, UNKNOWN)
    assert wrong_key == unknown == (4001, "authentication failed")
    assert service.state("lab-1") == "offline"


async def test_each_challenge_is_different(service: Service, lab: Identity):
    seen = set()
    for identity in (lab, lab, UNKNOWN, UNKNOWN):
        async with await FakeBoard.dial(service, "/board") as board:
            await board.greet(identity.id)
            seen.add((await board.next()).payload)
    assert len(seen) == 4


async def test_recorded_proof_is_refused(service: Service, lab: Identity, monkeypatch):
    sent: list[bytes] = []
    real = FakeBoard.send

    async def send(self, op, payload=b"", **more):
        sent.append(payload)
        await real(self, op, payload, **more)

    monkeypatch.setattr(FakeBoard, "send", send)
    async with await FakeBoard.join(service, lab):
        hello, proof = sent
    async with await FakeBoard.dial(service, "/board") as replay:
        await replay.send(wire.HELLO, hello)
        await replay.next()
        await replay.send(wire.PROOF, proof)
        assert (await replay.closed())[0] == frames.CLOSE_NOT_AUTHENTICATED


async def test_flipped_bit_in_the_facts_is_refused(service: Service, lab: Identity):
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(lab.id)
        nonces = board.nonce + (await board.next()).payload[:16]
        text = b'{"boot": "b1", "buf": 1528}'
        proof = proofs.board_proof(lab.key, nonces, lab.id, text)
        await board.send(wire.PROOF, proof + text.replace(b"8", b"9"))
        assert (await board.closed())[0] == frames.CLOSE_NOT_AUTHENTICATED


async def test_reflected_server_proof_is_refused(service: Service, lab: Identity):
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(lab.id)
        challenge = await board.next()
        await board.send(wire.PROOF, challenge.payload[16:])
        assert (await board.closed())[0] == frames.CLOSE_NOT_AUTHENTICATED


@pytest.mark.parametrize("version", [0, 2, 99])
async def test_other_protocol_version_is_refused_with_a_reason(
    service: Service, lab: Identity, version
):
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(lab.id, version)
        code, reason = await board.closed()
        assert code == frames.CLOSE_WRONG_VERSION
        assert reason == f"this server does not support protocol {version}"


async def test_failed_authentications_write_a_bounded_number_of_rows_and_lines(
    service: Service, lab: Identity, caplog
):
    for _ in range(Limits.stranger_rows_per_address_per_minute + 5):
        await refusal(service, lab)
    rows = [row for row in service.audited() if row.verb == "board"]
    assert len(rows) == Limits.stranger_rows_per_address_per_minute
    assert rows[0][1:] == (
        "",
        "127.0.0.1",
        "board",
        lab.id,
        "authentication failed",
        None,
        None,
        None,
        "refused",
    )
    assert caplog.text.count("was refused as a board") == len(rows)
    async with await FakeBoard.join(service, lab):  # from the same address
        assert service.state("lab-1") == "idle"


async def test_board_link_counts_as_unauthenticated_until_its_proof(
    service: Service, lab: Identity
):
    unauthenticated = service.server.unauthenticated
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(lab.id)
        challenge = await board.next()
        assert unauthenticated.count == 1
        await board.prove(lab, challenge)
        await board.next()
        assert unauthenticated.count == 0
    async with await FakeBoard.dial(service, "/board") as silent:
        await silent.greet(lab.id)
        await silent.next()
        assert unauthenticated.count == 1
    await service.until(lambda: unauthenticated.count == 0)
    assert unauthenticated.dropped == 0


@pytest.mark.limits(unauthenticated_per_address=3)
async def test_oldest_unauthenticated_link_is_closed_for_a_newer_one(service: Service):
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(await RawPeer.upgraded(service)) for _ in range(5)]
        await within(links[0].gone())
        await within(links[1].gone())
        assert service.server.unauthenticated.count <= 3
        assert not links[4].reader.at_eof()


HELLO = {"v": 1, "id": "00" * 8, "nonce": "00" * 16}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        wire.pack(wire.PROOF, bytes(40)),
        wire.pack(wire.OUTPUT, b"hi"),
        wire.pack(wire.SUBMIT, b"hi"),
        wire.pack(wire.HELLO),
        wire.pack(wire.HELLO, b"[]"),
        wire.pack(wire.HELLO, b"\xff\xfe"),
        wire.pack(wire.HELLO, b"[" * 60_000),
        wire.pack(wire.HELLO, b'{"v": 1'),
        wire.pack(wire.HELLO, b'{"v": ' + b"9" * 5000 + b"}"),
        *(
            wire.pack_json(wire.HELLO, {**HELLO, **wrong})
            for wrong in (
                {"v": None},
                {"v": "1"},
                {"id": 7},
                {"id": ""},
                {"id": "x" * 65},
                {"id": "\u00e9"},
                {"id": "\ud800"},
                {"nonce": ""},
                {"nonce": "00" * 15},
                {"nonce": "00" * 17},
                {"nonce": "zz" * 16},
                {"nonce": ["00"]},
            )
        ),
    ],
    ids=lambda data: repr(data)[2:34],
)
async def test_malformed_hello_closes_only_its_link(service: Service, data, caplog):
    async with await FakeBoard.dial(service, "/board") as board:
        await board.socket.send(data)
        code, reason = await board.closed()
    assert code == frames.CLOSE_PROTOCOL_ERROR
    assert reason
    assert not [record for record in caplog.records if record.exc_info]


async def test_second_hello_instead_of_a_proof_closes_the_link(service: Service, lab: Identity):
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(lab.id)
        await board.next()
        await board.greet(lab.id)
        assert (await board.closed())[0] == frames.CLOSE_PROTOCOL_ERROR


@pytest.mark.limits(authentication_seconds=0.05)
async def test_slow_authentication_is_refused(service: Service, lab: Identity):
    async with await FakeBoard.dial(service, "/board") as silent:
        assert await silent.closed() == (frames.CLOSE_NOT_AUTHENTICATED, "too slow")
    async with await FakeBoard.dial(service, "/board") as half:
        await half.greet(lab.id)
        await half.next()
        assert await half.closed() == (frames.CLOSE_NOT_AUTHENTICATED, "too slow")


@pytest.mark.limits(authentication_seconds=0.05)
async def test_authenticated_board_is_not_closed_by_the_deadline(service: Service, lab: Identity):
    async with await FakeBoard.join(service, lab) as board:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(board.socket.recv(), 0.1)
        assert service.state("lab-1") == "idle"


async def test_callers_token_does_not_authenticate_a_board(service: Service, lab: Identity):
    header: dict[str, Any] = {"Authorization": f"Bearer {service.token}"}
    async with await FakeBoard.dial(service, "/board", **header) as board:
        await board.send(wire.REQUEST, b'{"verb": "boards"}')
        assert (await board.closed())[0] == frames.CLOSE_PROTOCOL_ERROR


# Facts that a board reports are untrusted


@pytest.mark.parametrize(
    "reported",
    [
        {"facts": None},
        {"facts": []},
        {"facts": {}},
        {"facts": {"platform": "x" * 9999, "version": ["deep"], "mpy": "6", "heap": -1}},
        {"facts": {"mpy": 2**64, "heap": 1e300, "platform": None}},
        {"facts": {"platform": "<img onerror=x>\x1b[2J\ud800\0"}},
        {"buf": None},
        {"buf": "1528"},
        {"buf": -5},
        {"buf": 2**70},
        {"boot": None},
        {"boot": ["b1"]},
        {"boot": "x" * 60_000},
        {"last": "x"},
        {"last": []},
        {"last": {"job": "zz"}},
        {"last": {"job": "f" * 50, "status": 0}},
        {"last": {"job": "1", "status": float("inf")}},
        {"last": {"job": "1", "status": 0, "error": "\ud800" * 3000}},
        {"parts": None},
    ],
    ids=lambda reported: repr(reported)[:40],
)
async def test_nonsense_in_a_valid_proof_is_bounded_and_harmless(
    service: Service, lab: Identity, reported, caplog
):
    async with (
        await FakeBoard.join(service, lab, **reported) as board,
        await FakeCaller.join(service) as caller,
    ):
        (described,) = (await caller.ask("boards"))["reply"]
        assert len(json.dumps(described)) < 2500
        (job,) = await caller.submit("lab-1", b"x" * 3000)
        buffer = service.server.registry.by_name["lab-1"].buffer_size
        assert 64 <= buffer <= 64 * 1024
        pieces = b""
        while len(pieces) < 3008:
            pieces += (await board.next()).payload
        await board.end(job)
        assert (await caller.ending(job))[0] == "ok"
    assert not [record for record in caplog.records if record.exc_info]


async def test_board_cannot_forge_a_log_line(service: Service, lab: Identity, caplog):
    caplog.set_level(logging.INFO)
    evil = "x\r\n2026-01-01 INFO forged\x1b[2J"
    facts = {**FACTS, "platform": evil, "machine": evil}
    async with await FakeBoard.join(service, lab, facts=facts, boot=evil) as board:
        await board.send(wire.OUTPUT, evil.encode(), job=99)
        await board.send(wire.HELLO, evil.encode())
        await board.closed()
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(evil)
        await board.next()
        await board.send(wire.PROOF, bytes(40))
        await board.closed()
    assert "forged" not in caplog.text
    assert "\x1b" not in caplog.text


# One board, one link


async def test_newer_link_of_a_board_replaces_the_older_one(
    service: Service, lab: Identity, caplog
):
    async with (
        await FakeBoard.join(service, lab) as older,
        await FakeBoard.join(service, lab) as newer,
        await FakeCaller.join(service) as caller,
    ):
        assert await older.closed() == (frames.CLOSE_REPLACED, "a newer link took over")
        assert service.state("lab-1") == "idle"
        (job,) = await caller.submit("lab-1")
        assert (await newer.next()).job == job
        await newer.end(job, rest=b"1")
        assert await caller.ending(job) == ("ok", "1")
    assert "connected again" in caplog.text


async def test_two_boards_with_one_key_replace_each_other_more_and_more_slowly(service: Service):
    """The reconnect spread doubles with each takeover, and is reset by a disconnect."""
    (lab,) = service.enrol("lab-1")
    spreads = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(12):
            board = await stack.enter_async_context(await FakeBoard.join(service, lab))
            spreads.append(board.welcome["spread"])
    assert spreads[:5] == [2, 2, 8, 16, 32]
    assert max(spreads) == Limits.takeover_spread_seconds
    await service.until(lambda: service.state("lab-1") == "offline")
    async with await FakeBoard.join(service, lab) as board:
        assert board.welcome["spread"] == 2


async def test_link_without_the_key_does_not_replace_a_board(service: Service, lab: Identity):
    async with await FakeBoard.join(service, lab) as board:
        assert (await refusal(service, lab))[0] == frames.CLOSE_NOT_AUTHENTICATED
        async with await FakeCaller.join(service) as caller:
            (job,) = await caller.submit("lab-1")
            assert (await board.next()).job == job
            await board.end(job)
            assert (await caller.ending(job))[0] == "ok"


async def test_board_cannot_end_the_job_of_another_board(service: Service):
    own, other = service.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(service, own) as forger,
        await FakeBoard.join(service, other) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-2")
        await forger.end(job, "error", rest=b"forged")
        await board.end(job, rest=b"true")
        assert await caller.ending(job) == ("ok", "true")
        assert service.state("lab-1") == "idle"


async def test_old_key_is_refused_after_a_new_enrolment(service: Service, lab: Identity):
    (new,) = service.enrol("lab-1")
    assert (new.id, new.key == lab.key) == (lab.id, False)
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(lab.id)
        challenge = await board.next()
        with pytest.raises(AssertionError):  # the challenge is made with the new key
            await board.prove(lab, challenge)
    async with await FakeBoard.join(service, new):
        assert service.state("lab-1") == "idle"


# Jobs, heartbeats and the end of a link


async def test_outcome_of_a_job_is_reported_after_a_broken_link(service: Service, lab: Identity):
    async with await FakeCaller.join(service) as caller:
        async with await FakeBoard.join(service, lab) as board:
            (job,) = await caller.submit("lab-1")
            await board.next()
        await service.until(lambda: service.state("lab-1") == "lost")
        last = {"job": f"{job:08x}", "status": 1, "error": "ValueError: true", "dropped": 3}
        async with await FakeBoard.join(service, lab, last=last):
            assert await caller.ending(job) == ("error", "ValueError: true")


async def test_protocol_violation_during_a_job_closes_the_link_but_keeps_the_job(
    service: Service, lab: Identity
):
    async with await FakeCaller.join(service) as caller:
        async with await FakeBoard.join(service, lab) as board:
            (job,) = await caller.submit("lab-1")
            await board.next()
            await board.send(wire.RESULT, b"", job=job, flags=9)
            code, reason = await board.closed()
            assert (code, reason) == (frames.CLOSE_PROTOCOL_ERROR, "RESULT is malformed.")
        async with await FakeBoard.join(service, lab, boot="b2"):
            assert await caller.ending(job) == ("lost", "the board restarted while it ran")


@pytest.mark.limits(messages_per_second=200, messages_at_once=50)
async def test_flood_of_time_is_answered_at_a_bounded_rate(service: Service, lab: Identity):
    """Each costs as much as a message that boards seldom send; another board is not delayed."""
    (other_lab,) = service.enrol("lab-2")
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeBoard.join(service, other_lab) as other,
    ):
        began = time.monotonic()
        for counter in range(20):
            await board.send(wire.TIME, counter.to_bytes(4, "big"))
        await other.send(wire.TIME, bytes(4))
        assert (await other.next()).op == wire.TIME_REPLY
        answered = time.monotonic() - began
        for counter in range(20):
            assert (await board.next()).payload[:4] == counter.to_bytes(4, "big")
        took = time.monotonic() - began
        assert took >= 0.9 * (19 * Limits.rare_messages - 50) / 200  # timers are early
        assert answered < took


async def test_oversize_message_is_refused_before_it_is_read(service: Service):
    async with await RawPeer.upgraded(service) as peer:
        peer.say(frames.frame_header(frames.BINARY, Limits.board_message_bytes + 1, mask=True))
        assert (await peer.closed())[0] == frames.CLOSE_MESSAGE_TOO_BIG


async def test_largest_message_is_accepted(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1")
        await board.next()
        output = bytes(range(256)) * 256
        output = output[: Limits.board_message_bytes - wire.HEADER.size]
        await board.send(wire.OUTPUT, output, job=job)
        assert (await caller.event()).payload == output


async def test_silent_idle_board_is_closed_after_two_heartbeats(tmp_path):
    async with running_service(tmp_path, beat=0.05) as service:
        (lab,) = service.enrol("lab-1")
        board = await FakeBoard.join(service, lab)
        board.socket.transport.pause_reading()  # it receives no pings, so it answers none
        await service.until(lambda: service.state("lab-1") == "offline")
        board.socket.transport.resume_reading()
        assert await board.closed() == (frames.CLOSE_GOING_AWAY, "silent")


async def test_silent_busy_board_is_not_closed(tmp_path):
    async with running_service(tmp_path, beat=0.02) as service:
        (lab,) = service.enrol("lab-1")
        async with (
            await FakeBoard.join(service, lab) as board,
            await FakeCaller.join(service) as caller,
        ):
            (job,) = await caller.submit("lab-1")
            board.socket.transport.pause_reading()
            await asyncio.sleep(0.2)  # ten heartbeats: no event shows that nothing happened
            assert service.state("lab-1") == "busy"
            board.socket.transport.resume_reading()
            await board.end(job)
            assert (await caller.ending(job))[0] == "ok"


async def test_board_that_answers_pings_stays_connected(tmp_path, caplog):
    async with running_service(tmp_path, beat=0.02) as service:
        (lab,) = service.enrol("lab-1")
        async with await FakeBoard.join(service, lab):
            await asyncio.sleep(0.2)  # ten heartbeats
            assert service.state("lab-1") == "idle"
        await service.until(lambda: service.state("lab-1") == "offline")
        await asyncio.sleep(0.1)  # five heartbeats: no timer is left of the closed link
    assert not re.search("silent", caplog.text)


async def test_link_is_closed_when_the_server_stops(tmp_path):
    async with running_service(tmp_path) as service:
        (lab,) = service.enrol("lab-1")
        board = await FakeBoard.join(service, lab)
    assert await board.closed() == (frames.CLOSE_GOING_AWAY, "the server stops")


async def test_board_with_many_messages_about_foreign_jobs_is_closed(service: Service, caplog):
    (lab,) = service.enrol("lab-1")
    async with await FakeBoard.join(service, lab) as board:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(3 * Limits.strays_per_minute):
                await board.send(wire.OUTPUT, job=77)
        code, reason = await board.closed()
        assert code == frames.CLOSE_POLICY
        assert "not its own" in reason
    assert caplog.text.count("which is not its own") <= Limits.peer_lines_per_minute
    await service.until(lambda: service.state("lab-1") == "offline")
    async with await FakeBoard.join(service, lab):  # it may connect again
        assert service.state("lab-1") == "idle"


async def test_board_with_few_messages_about_foreign_jobs_stays_connected(service: Service):
    (lab,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        for _ in range(Limits.strays_per_minute // 2):
            await board.send(wire.OUTPUT, job=77)
        (job,) = await caller.submit("lab-1")
        await board.next()
        await board.end(job)
        assert (await caller.ending(job))[0] == "ok"
