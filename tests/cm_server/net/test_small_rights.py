"""What a token with few rights can do to the server, and to those that use it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from cloudmanager.protocol import frames, wire
from cm_server.api import verbs
from cm_server.sample_buffer import Sample
from tests.cm_server.peers import FakeBoard, FakeCaller, Identity, RawPeer, Service


@pytest.fixture
def lab(service: Service) -> Identity:
    (identity,) = service.enrol("lab-1")
    return identity


async def upload(caller: FakeCaller, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    number = (await caller.ask("offer", sha256=digest, size=len(data)))["reply"]
    await caller.socket.send(wire.pack_content(1, number, data))
    assert (await caller.next()).op == wire.REPLY
    return digest


# Requests


@pytest.mark.limits(request_bytes=2048)
@pytest.mark.parametrize("op", [wire.REQUEST, wire.WATCH], ids=["request", "watch"])
async def test_long_request_is_refused_and_the_link_stays_open(service: Service, op):
    async with await FakeCaller.join(service) as caller:
        text = b'{"verb":"interrupt","target":"all","jobs":[' + b"1," * 1024 + b"1]}"
        await caller.send(op, text, job=5)
        reply = await caller.next()
        assert reply.job == 5
        assert "a request may have at most 2 KiB" in str(wire.read_json(reply.payload)["args"])
        assert "reply" in await caller.ask("status")


@pytest.mark.limits(request_bytes=2048)
async def test_long_head_of_a_cell_is_refused_but_not_a_long_cell(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab, buf=65536),
        await FakeCaller.join(service) as caller,
    ):
        await caller.submit("lab-1", b"#" * 10_000)
        head = {"target": "lab-1", "packages": {"remove": ["x"] * 1000}}
        await caller.socket.send(wire.pack_submit(99, head, b""))
        refusal = await caller.next()
        assert "at most 2 KiB" in str(wire.read_json(refusal.payload)["args"])


@pytest.mark.limits(interrupt_jobs=3)
async def test_job_is_interrupted_once_however_often_it_is_named(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1")
        assert (await board.next()).op == wire.EXEC
        assert (await caller.ask("interrupt", jobs=[job] * 1000))["reply"] == 1
        await board.end(job, "interrupted")
        await caller.ending(job)
        (following,) = await caller.submit("lab-1")
        messages = [await board.next(), await board.next()]
        assert [(each.op, each.job) for each in messages] == [
            (wire.INTERRUPT, job),
            (wire.EXEC, following),
        ]
        refusal = await caller.ask("interrupt", jobs=[1, 2, 3, 4])
        assert refusal["args"] == ["at most 3 jobs can be interrupted at a time"]


WRONG_TYPES: list[dict[str, Any]] = [
    {"verb": "plan", "wanted": ["x"], "indexes": True},
    {"verb": "plan", "wanted": ["x"], "indexes": [1]},
    {"verb": "plan", "wanted": ["x"], "indexes": {"a": True}},
    {"verb": "plan", "wanted": True},
    {"verb": "plan", "wanted": [["x"]]},
    {"verb": "plan", "wanted": ["x"], "sent": True},
    {"verb": "plan", "wanted": ["x"], "sent": {"x": True}},
    {"verb": "plan", "wanted": ["x"], "sent": {"x": {"a.py": True}}},
    {"verb": "plan", "wanted": ["x"], "target_dir": True},
    {"verb": "plan", "wanted": ["x"], "source_only": 1},
    {"verb": "plan", "wanted": ["x"], "lock": True},
    {"verb": "plan", "wanted": ["x"], "locked": "no"},
    {"verb": "plan", "wanted": ["x"] * 201},
    {"verb": "interrupt", "jobs": True},
    {"verb": "interrupt", "jobs": [True]},
    {"verb": "interrupt", "jobs": {"1": 1}},
    {"verb": "job", "job": True},
    {"verb": "job", "job": 1e9},
    {"verb": "samples", "count": True},
    {"verb": "samples", "count": 1.5},
    {"verb": "audit", "count": True},
    {"verb": "offer", "sha256": "a" * 64, "size": True},
    {"verb": "offer", "sha256": ["a"], "size": 1},
    {"verb": "label", "labels": True},
    {"verb": "label", "labels": [["a", "b"]]},
    {"verb": "enrol", "names": True},
    {"verb": "enrol", "names": {"a": 1}},
    {"verb": "enrol", "names": [True]},
    {"verb": "rename", "name": True},
    {"verb": "replace", "new": True},
    {"verb": "replace", "new": ["lab-1"]},
    {"verb": "token-create", "name": True},
    {"verb": "token-create", "name": "t", "role": True},
    {"verb": "token-create", "name": "t", "role": ["viewer"]},
    {"verb": "token-create", "name": "t", "expires": True},
    {"verb": "enrol-token", "uses": True},
    {"verb": "enrol-token", "target": True},
    {"verb": "token-revoke", "name": True},
    {"verb": True},
    {"verb": ["boards"]},
]


async def test_field_of_a_wrong_type_is_refused(service: Service, lab: Identity, caplog):
    accepted = []
    async with (
        await FakeBoard.join(service, lab),
        await FakeCaller.join(service) as caller,
    ):
        for body in WRONG_TYPES:
            text = json.dumps({"target": "lab-1", **body}).encode()
            await caller.send(wire.REQUEST, text, job=1)
            reply = wire.read_json((await caller.next()).payload)
            if reply.get("error") not in ("ServerError", "TargetError", "NoSuchBoard"):
                accepted.append((body, reply))
    assert accepted == []
    assert "Traceback" not in caplog.text


# Memory


@pytest.mark.limits(package_unpacked_bytes=1000, package_files=20)
async def test_content_that_a_plan_names_often_counts_each_time(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab),
        await FakeCaller.join(service) as caller,
    ):
        digest = await upload(caller, b"x" * 300)

        async def plan(count: int) -> str:
            sent = {"./x": {f"f{n}": digest for n in range(count)}}
            return str(await caller.ask("plan", target="lab-1", wanted=["./x"], sent=sent))

        assert "'error': 'PackageError'" in await plan(4)
        assert "may have at most 0 MiB together" in await plan(4)
        assert "may have at most 20 files" in await plan(21)
        assert "reply" in await plan(3)


# Shares


@pytest.mark.limits(callers=8, callers_per_token=3, reserved_callers=2)
async def test_links_are_bounded_per_token_with_a_reserve(service: Service):
    viewers = [service.add_token("viewer", name=f"v{n}") for n in range(3)]
    async with contextlib.AsyncExitStack() as links:

        async def join(token: str) -> FakeCaller:
            return await links.enter_async_context(await FakeCaller.join(service, token))

        for token in (*viewers[:1] * 3, *viewers[1:2] * 3):
            await join(token)
        for token in viewers:
            with pytest.raises(InvalidStatus, match="503"):
                await FakeCaller.join(service, token)
        admin = await join(service.token)
        assert (await admin.ask("token-revoke", name="v0"))["reply"]["closed"] == 3
        await service.until(lambda: len(service.callers) == 4)
        await join(viewers[2])


@pytest.mark.limits(subscriptions=8, subscriptions_per_token=3, reserved_subscriptions=2)
async def test_subscriptions_are_bounded_per_token_with_a_reserve(service: Service, lab: Identity):
    viewers = [service.add_token("viewer", name=f"v{n}") for n in range(3)]
    async with contextlib.AsyncExitStack() as links:

        async def watch(token: str, count: int) -> list[str]:
            """Start subscriptions on a link of its own; return the refusals."""
            caller = await links.enter_async_context(await FakeCaller.join(service, token))
            refusals = []
            for ref in range(count):
                await caller.send(wire.WATCH, b'{"target":"all"}', job=ref)
                answer = await caller.next()
                if answer.op == wire.REPLY:
                    refusals += wire.read_json(answer.payload)["args"]
            return refusals

        assert await watch(viewers[0], 3) == []
        assert await watch(viewers[0], 1) == ["the token 'v0' has 3 subscriptions already"]
        assert await watch(viewers[1], 3) == []
        (refusal,) = await watch(viewers[2], 1)
        assert "reserved for administrators" in refusal
        assert await watch(service.token, 2) == []
        await links.aclose()
        await service.until(lambda: not service.callers)
        assert await watch(viewers[2], 3) == []


@pytest.mark.limits(open_jobs_per_token=3, open_cells_token_bytes=1000)
async def test_jobs_that_have_not_ended_are_bounded_per_token(service: Service, lab: Identity):
    ann, ben = (service.add_token("operator", name=name) for name in ("ann", "ben"))
    async with (
        await FakeBoard.join(service, lab, buf=65536) as board,
        await FakeCaller.join(service, ann) as caller,
        await FakeCaller.join(service, ben) as other,
    ):
        jobs = [(await caller.submit("lab-1"))[0] for _ in range(3)]
        refusals = []
        for code in (b"1", b"#" * 2000):
            await caller.socket.send(wire.pack_submit(99 + len(code), {"target": "lab-1"}, code))
            refusals += wire.read_json((await caller.next()).payload)["args"]
        assert "the token 'ann' has 3 jobs that have not ended already" in refusals[0]
        assert len(refusals) == 2
        await other.submit("lab-1")
        assert (await board.next()).op == wire.EXEC
        await board.end(jobs[0])
        await caller.ending(jobs[0])
        await caller.socket.send(wire.pack_submit(77, {"target": "lab-1"}, b"1"))
        while (await caller.event()).op != wire.ACCEPTED:
            pass
        open_jobs = service.server.dispatch.open_jobs
        assert (open_jobs.jobs.total, open_jobs.bytes.total) == (4, 4)


@pytest.mark.limits(queued_jobs=4, all_queued_jobs=6)
async def test_queue_of_a_board_is_shared_among_tokens(service: Service, lab: Identity):
    ann, ben = (service.add_token("operator", name=name) for name in ("ann", "ben"))
    async with (
        await FakeBoard.join(service, lab),
        await FakeCaller.join(service, ann) as caller,
        await FakeCaller.join(service, ben) as other,
    ):
        for _ in range(5):  # one runs
            await caller.submit("lab-1")
        (refused,) = await caller.submit("lab-1")
        assert await caller.ending(refused) == (
            "error",
            "4 jobs wait for this board already; it did not run",
        )
        await other.submit("lab-1")
        assert len(service.server.registry.by_name["lab-1"].queue) == 5


@pytest.mark.limits(pending_requests=2)
async def test_requests_that_wait_are_bounded_and_an_interrupt_is_answered(
    service: Service, lab: Identity
):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1")
        await board.next()
        await service.server.store_queue.change_lock.acquire()  # changes of labels wait
        body = json.dumps({"verb": "label", "target": "lab-1", "labels": {"a": "b"}}).encode()
        for ref in range(1, 4):
            await caller.send(wire.REQUEST, body, job=ref)
        refusal = await caller.next()
        assert refusal.job == 3
        assert "2 requests of this link wait for a reply" in str(refusal.payload)
        assert (await caller.ask("interrupt", jobs=[job]))["reply"] == 1
        service.server.store_queue.change_lock.release()
        assert {(await caller.next()).job for _ in range(2)} == {1, 2}
        await asyncio.sleep(0)
        assert "reply" in await caller.ask("label", target="lab-1", labels={"a": ""})


# Long messages and replies


async def long_list(caller: FakeCaller, *, parts: bool) -> list[wire.Message]:
    """Request all boards; return the messages of the reply."""
    flags = wire.ACCEPTS_PARTS if parts else 0
    await caller.send(wire.REQUEST, b'{"verb":"boards"}', job=5, flags=flags)
    messages = [await caller.next()]
    while messages[-1].flags & wire.MORE_PARTS:
        messages.append(await caller.next())
    return messages


@pytest.mark.limits(reply_part_bytes=10_000)
async def test_long_reply_is_sent_in_parts_to_those_who_can_read_them(service: Service):
    names = [f"lab-{number}" for number in range(100)]
    service.enrol(*names)
    async with await FakeCaller.join(service) as caller:
        parts = await long_list(caller, parts=True)
        assert len(parts) > 3
        assert all(len(part.payload) < 12_000 for part in parts)
        boards = [board for part in parts for board in wire.read_json(part.payload)["reply"]]
        assert [board["name"] for board in boards] == names
        (whole,) = await long_list(caller, parts=False)
        assert [board["name"] for board in wire.read_json(whole.payload)["reply"]] == names


@pytest.mark.limits(reply_part_bytes=200_000, unsent_bytes=1_000_000)
async def test_caller_that_does_not_read_a_long_reply_costs_one_part(service: Service):
    (identity,) = service.enrol("lab-1")
    buffer = service.server.registry.by_name["lab-1"].sample_buffer
    buffer.samples.extend(Sample(n, n, 0, '{"t":"%s"}' % ("x" * 500)) for n in range(8_000))
    request = wire.pack(wire.REQUEST, b'{"verb":"samples"}', job=5, flags=wire.ACCEPTS_PARTS)
    async with await RawPeer.upgraded(service, "/caller", receive_bytes=4096) as peer:
        (connection,) = service.callers
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(3):
            peer.say(frames.encode_frame(request, mask=True))
        await service.until(lambda: connection._link.write_blocked)
        await asyncio.sleep(0.2)
        assert connection._link.unsent_bytes < 4 * 200_000
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        ended = 0
        while ended < 3:
            frame = await peer.frame()
            assert frame is not None
            ended += not wire.unpack(frame.payload).flags & wire.MORE_PARTS


async def test_long_request_leaves_time_for_others(service: Service, monkeypatch):
    """One viewer's requests take 20 ms each; another's are answered between them."""
    viewer = service.add_token("viewer")

    def work(_context: object) -> str:
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass
        return "done"

    async def work_later(context: object) -> str:
        return work(context)

    monkeypatch.setitem(verbs.VERBS, "slow", verbs.Verb("viewer", work))
    monkeypatch.setitem(verbs.VERBS, "slow-later", verbs.Verb("viewer", work_later))
    async with (
        await RawPeer.upgraded(service, "/caller", token=viewer) as busy,
        await RawPeer.upgraded(service, "/caller", token=viewer) as busy_too,
        await FakeCaller.join(service) as other,
    ):
        for peer, verb in ((busy, b"slow"), (busy_too, b"slow-later")):
            requests = [
                wire.pack(wire.REQUEST, b'{"verb":"%s"}' % verb, job=number) for number in range(20)
            ]
            peer.say(b"".join(frames.encode_frame(request, mask=True) for request in requests))
        longest = 0.0
        started = time.perf_counter()
        while time.perf_counter() - started < 0.5:
            asked = time.perf_counter()
            assert "reply" in await other.ask("status")
            longest = max(longest, time.perf_counter() - asked)
        assert longest < 0.3
        for peer in (busy, busy_too):
            for number in range(20):
                frame = await peer.frame()
                assert frame is not None
                assert wire.unpack(frame.payload).job == number


@pytest.mark.limits(message_seconds=0.2)
async def test_message_that_is_not_completed_in_time_closes_the_link(service: Service):
    async with await RawPeer.upgraded(service, "/caller") as peer:
        peer.say(frames.frame_header(frames.BINARY, 1000, mask=True) + b"x" * 10)
        assert await peer.closed() == (1008, "a message took too long")


@pytest.mark.limits(message_seconds=0.3)
async def test_link_stays_open_while_messages_are_completed(service: Service):
    request = frames.encode_frame(wire.pack(wire.REQUEST, b'{"verb":"status"}', job=1), mask=True)
    async with await RawPeer.upgraded(service, "/caller") as peer:
        pieces = request * 20
        for start in range(0, len(pieces), 25):  # most end in the middle of a message
            peer.say(pieces[start : start + 25])
            await asyncio.sleep(0.03)
        for _ in range(20):
            assert await peer.frame() is not None


@pytest.mark.limits(
    unfinished_token_bytes=1_000_000, unfinished_bytes=1_500_000, reserved_unfinished_bytes=300_000
)
async def test_unfinished_messages_of_a_token_are_bounded_and_completed(service: Service):
    token = service.add_token("viewer")
    request = wire.pack(wire.REQUEST, b'{"verb":"status"}' + b" " * 900_000, job=1)
    data = frames.encode_frame(request, mask=True)
    async with contextlib.AsyncExitStack() as links:
        peers = [
            await links.enter_async_context(await RawPeer.upgraded(service, "/caller", token=token))
            for _ in range(8)
        ]
        for peer in peers:
            peer.say(data[:-1])
        await asyncio.sleep(0.2)
        held = [connection._link._reader.pending_bytes for connection in service.callers]
        assert sum(held) < 1_000_000 + 8 * (64 + 256) * 1024
        assert min(held) < 500_000
        for peer in peers:
            peer.say(data[-1:])
        for peer in peers:
            assert await peer.frame() is not None
    await service.until(lambda: not service.callers)
    assert service.server._caller_link_services.unfinished.total_bytes == 0
