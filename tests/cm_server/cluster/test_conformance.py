"""What crosses the bus is whole, or known to be missing: each message, with each fault.

The rows are in process, with strict peers; servers that are killed, stopped and suspended are
elsewhere (tests/system/test_several_faults.py).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cm_server.cluster.hosted_jobs import RELAY_LOST
from cm_server.cluster.job_streams import read_counted
from cm_server.cluster.peer_messages import _HEAD, _RECORD
from cm_server.cluster.pubsub import InProcessPubSub
from tests.cm_server.pairs import Two, others_of, run, two_servers
from tests.cm_server.peers import FakeBoard, FakeCaller, Service

AWAY = 0.3  # seconds
DELAY = 0.25  # seconds: then later messages have overtaken it
DATA = bytes(range(256)) * 100
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
async def pair(soon: None, tmp_path: Path) -> AsyncIterator[Two]:
    """Two servers that do not take each other for dead on a busy machine."""
    async with two_servers(tmp_path, tmp_path / "shared.db", dead_after=20) as pair:
        yield pair


def records_of(fragment: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """Return the heads and payloads of the messages of a fragment."""
    records, at = [], _HEAD.size
    while at < len(fragment):
        head_size, payload_size = _RECORD.unpack_from(fragment, at)
        payload_at = at + _RECORD.size + head_size
        head = json.loads(fragment[at + _RECORD.size : payload_at])
        at = payload_at + payload_size
        records.append((head, fragment[payload_at:at]))
    return records


class Faults:
    """Lets a fault happen to the first message of a kind that a server sends."""

    def __init__(self, pair: Two, fault: str) -> None:
        self._pair, self.kind = pair, fault
        self.happened = asyncio.Event()

    def arm(self, sender: Service, op: str, board_op: int | None = None) -> None:
        """Wait for a message with this ``op``, about a message of a board with this op."""
        pubsub = others_of(sender).peer_messages.pubsub
        assert isinstance(pubsub, InProcessPubSub)
        publish = pubsub.publish

        def publish_with_fault(subject: str, data: bytes) -> None:
            is_hit = any(
                head["op"] == op
                and (
                    board_op is None
                    or any(data[0] == board_op for data, _ in read_counted(payload))
                )
                for head, payload in records_of(data)
            )
            if not is_hit or self.happened.is_set():
                publish(subject, data)
                return
            self.happened.set()
            loop = asyncio.get_running_loop()
            if self.kind == "doubled":
                publish(subject, data)
                publish(subject, data)
            elif self.kind == "delayed":
                loop.call_later(DELAY, publish, subject, data)
            elif self.kind == "away":
                assert self._pair.hub is not None
                self._pair.hub.set_connected(False)
                loop.call_later(AWAY, self._pair.hub.set_connected, True)

        pubsub.publish = publish_with_fault  # type: ignore[method-assign]


async def end_of(caller: FakeCaller, job: int) -> tuple[list[tuple[int, int, bytes]], wire.Message]:
    """Return what a caller receives about a job before its end, and its end."""
    events: list[tuple[int, int, bytes]] = []
    while True:
        message = await caller.event()
        if message.job == job and message.op in wire.JOB_END_OPS:
            return events, message
        events.append((message.op, message.flags, message.payload))


def outcome(message: wire.Message) -> str:
    """Return a job's end in words."""
    status = wire.STATUSES[message.flags & 0x0F]
    if message.op == wire.ENDED:
        body = wire.read_json(message.payload)
        return f"{status}, value lost" if body["output_lost"] else f"{status}: {body['why']}"
    return f"{status} {wire.read_result(message).value_or_traceback.decode()}"


async def cell(pair: Two, faults: Faults, arm: Callable[[], None], pieces: list[int]) -> str:
    """Run a cell that sends pieces of output or of its value, 1 to 4, and then ends."""
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        arm()
        (job,) = await caller.submit("lab-1")
        await run(board)
        hosted = pair.b.server.dispatch.jobs[job]
        for number, op in enumerate(pieces, 1):
            await board.send(op, b"%d" % number, job=job)
            while len(hosted.output_tail) + len(hosted.value) < number:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.02)  # the message leaves at the end of the loop's iteration
            if faults.happened.is_set() and number == 2:
                await asyncio.sleep(max(AWAY, DELAY) + 0.1)
        await board.end(job, rest=b"9")
        events, end = await end_of(caller, job)
        received = [
            "cut" if op == wire.TRUNCATED else payload.decode() for op, _, payload in events
        ]
        return f"{' '.join(received)} {outcome(end)}".strip()


async def output_row(pair: Two, faults: Faults) -> str:
    arm = functools.partial(faults.arm, pair.b, "say", wire.OUTPUT)
    return await cell(pair, faults, arm, [wire.OUTPUT] * 3)


async def value_row(pair: Two, faults: Faults) -> str:
    arm = functools.partial(faults.arm, pair.b, "say", wire.VALUE)
    return await cell(pair, faults, arm, [wire.OUTPUT, wire.VALUE, wire.VALUE])


async def request_row(pair: Two, faults: Faults) -> str:
    return await cell(pair, faults, functools.partial(faults.arm, pair.a, "run"), [])


async def claim_row(pair: Two, faults: Faults) -> str:
    return await cell(pair, faults, functools.partial(faults.arm, pair.b, "taken"), [])


async def result_row(pair: Two, faults: Faults) -> str:
    arm = functools.partial(faults.arm, pair.b, "say", wire.RESULT)
    return await cell(pair, faults, arm, [])


async def start_row(pair: Two, faults: Faults) -> str:
    """A queued cell starts."""
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        (first,) = await caller.submit("lab-1")
        await run(board)
        await pair.seen(state="busy")
        (second,) = await caller.submit("lab-1")
        await pair.b.until(lambda: second in pair.b.server.dispatch.jobs)
        await pair.a.until(lambda: pair.a.server.dispatch.jobs[second].state == "queued")
        faults.arm(pair.b, "say", wire.STARTED)
        await board.end(first)
        await run(board)
        started = await caller.event()
        while started.op != wire.STARTED:
            started = await caller.event()
        await board.end(second, rest=b"9")
        return outcome((await end_of(caller, second))[1])


async def input_row(pair: Two, faults: Faults) -> str:
    return await ask(pair, functools.partial(faults.arm, pair.b, "say", wire.INPUT))


async def answer_row(pair: Two, faults: Faults) -> str:
    return await ask(pair, functools.partial(faults.arm, pair.a, "answer"))


async def ask(pair: Two, arm: Callable[[], None]) -> str:
    """Run a cell that asks twice, and returns both answers."""
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        arm()
        (job,) = await caller.submit("lab-1", answers=True)
        await run(board)
        answers = []
        for text in (b"ann", b"bob"):
            await board.send(wire.INPUT, b"? ", job=job)
            assert (await caller.event()).op == wire.INPUT
            await caller.send(wire.ANSWER, text, job=job)
            answer = await board.next()
            assert answer.op == wire.ANSWER
            answers.append(answer.payload)
        await asyncio.sleep(0.3)  # nothing is repeated any more
        await board.end(job, rest=b"+".join(answers))
        events, end = await end_of(caller, job)
        assert not events
        return outcome(end)


async def interrupt_row(pair: Two, faults: Faults) -> str:
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        faults.arm(pair.a, "interrupt")
        (job,) = await caller.submit("lab-1")
        await run(board)
        await caller.ask("interrupt", jobs=[job])
        assert (await board.next()).op == wire.INTERRUPT
        await asyncio.sleep(0.3)
        await board.end(job, "interrupted")
        end = (await end_of(caller, job))[1]
        return outcome(end).strip()


async def upload(caller: FakeCaller) -> None:
    number = (await caller.ask("offer", sha256=DIGEST, size=len(DATA)))["reply"]
    await caller.socket.send(wire.pack_content(9, number, DATA))
    assert (await caller.next()).op == wire.REPLY


async def transfer(
    pair: Two, arm: Callable[[], None], act: Callable[[FakeBoard, int], Awaitable[object]]
) -> str:
    """Run file operations; return the outcome, and what the board was sent in the end."""
    _, board = await pair.board_at_b(parts=["run", "files"])
    async with board, await FakeCaller.join(pair.a) as caller:
        await upload(caller)
        arm()
        ops = [["put", "/a", DIGEST]] if act is receive else [["get", "/a"]]
        (job,) = await caller.submit("lab-1", b"", acts=ops)
        assert (await board.next()).op == wire.FILE
        ending = asyncio.ensure_future(end_of(caller, job))
        interrupted = await act(board, job)
        if interrupted:
            await board.end(job, "interrupted")
        await pair.b.until(lambda: pair.b.state("lab-1") == "idle")
        text = outcome((await ending)[1])
        return f"{text}; the board was interrupted" if interrupted else text


async def receive(board: FakeBoard, job: int) -> bool:
    """Receive a file on a board; return whether the board was interrupted."""
    await board.send(wire.CHUNK, bytes(36), job=job, flags=wire.RESUME_STATE)
    got = bytearray()
    while len(got) < len(DATA):
        piece = await board.next()
        if piece.op == wire.INTERRUPT:
            return True
        assert piece.op == wire.DATA
        got += piece.payload
        await board.socket.send(wire.pack_byte_count(wire.CHUNK, len(got), job=job))
    assert got == DATA
    await board.end(job)
    return False


async def send(board: FakeBoard, job: int) -> bool:
    """Send 40 KB in a window of 10 KB; return whether the board was interrupted."""
    sent = acknowledged = 0
    while sent < 40_000:
        while sent - acknowledged < 30_000 and sent < 40_000:
            await board.send(wire.CHUNK, bytes(1000), job=job)
            await asyncio.sleep(0)
            sent += 1000
        try:
            message = await asyncio.wait_for(board.next(), 0.4)
        except TimeoutError:
            continue
        if message.op == wire.INTERRUPT:
            return True
        acknowledged = wire.read_byte_count(message)
    try:
        while (await asyncio.wait_for(board.next(), 0.4)).op != wire.INTERRUPT:
            pass
    except TimeoutError:
        await board.end(job)
        return False
    return True


async def put_row(pair: Two, faults: Faults) -> str:
    return await transfer(pair, functools.partial(faults.arm, pair.a, "data"), receive)


async def put_progress_row(pair: Two, faults: Faults) -> str:
    return await transfer(pair, functools.partial(faults.arm, pair.b, "say", wire.CHUNK), receive)


async def get_row(pair: Two, faults: Faults) -> str:
    return await transfer(pair, functools.partial(faults.arm, pair.b, "say", wire.CHUNK), send)


async def refusal_row(pair: Two, faults: Faults) -> str:
    """A transfer is broken, and so is the message that ends it."""
    faults.arm(pair.a, "refuse")
    lost = Faults(pair, "dropped")
    return await transfer(pair, functools.partial(lost.arm, pair.b, "say", wire.CHUNK), send)


async def names_row(pair: Two, faults: Faults) -> str:
    """Changes of boards and tokens at one server are known to the other one."""
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        faults.arm(pair.a, "rows")
        await caller.ask("rename", target="lab-1", name="lab-2")
        await pair.b.until(lambda: "lab-2" in pair.b.server.registry.by_name)
    return "renamed"


async def tokens_row(pair: Two, faults: Faults) -> str:
    token = pair.a.add_token("viewer")
    await pair.b.until(lambda: len(pair.b.server.tokens.describe()) == 3)
    async with await FakeCaller.join(pair.b, token) as caller:
        faults.arm(pair.a, "rows")
        pair.a.revoke_token("viewer")
        return str((await caller.closed())[1]).partition(" on ")[0]


async def state_row(pair: Two, faults: Faults) -> str:
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.b) as caller:
        faults.arm(pair.b, "boards")
        (job,) = await caller.submit("lab-1")
        await run(board)
        await pair.seen(state="busy")
        await board.end(job)
        await pair.seen(state="idle")
    return "busy, idle"


async def samples_row(pair: Two, faults: Faults) -> str:
    """Return the clocks of the samples that arrive, each with how many before it are missing."""
    _, board = await pair.board_at_b()
    samples = pair.a.server.registry.by_name["lab-1"].sample_buffer.samples
    async with board:
        for ticks in range(1, 4):
            await board.send(wire.EMIT, ticks.to_bytes(8, "big") + b'{"t":1}')
            if ticks == 2:
                await asyncio.wait_for(faults.happened.wait(), 5)
                if faults.kind == "away":
                    await asyncio.sleep(AWAY + 0.1)
            else:
                await pair.a.until(lambda: samples and samples[-1].ticks == ticks)  # noqa: B023
            if ticks == 1:
                faults.arm(pair.b, "samples")
    return " ".join(f"{each.ticks}+{each.missed}" for each in samples)


async def question_row(pair: Two, faults: Faults) -> str:
    """One server asks the other what it knows."""
    async with await FakeCaller.join(pair.a) as caller:
        faults.arm(pair.a, "lines")
        assert (await caller.ask("jobs"))["reply"] == []
        return "answered"


async def reply_row(pair: Two, faults: Faults) -> str:
    async with await FakeCaller.join(pair.a) as caller:
        faults.arm(pair.b, "reply")
        assert (await caller.ask("jobs"))["reply"] == []
        return "answered"


async def program_row(pair: Two, faults: Faults) -> str:
    """A board's own program is interrupted."""
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        faults.arm(pair.a, "stop")
        await caller.ask("stop", target="lab-1")
        assert (await board.next()).op == wire.INTERRUPT
        return "interrupted"


Row = Callable[[Two, Faults], Awaitable[str]]
LOST_TRANSFER = f"error: {RELAY_LOST}; the board was interrupted"
#: What crosses the bus, and the outcome if it is dropped, doubled, delayed behind later messages,
#: or if the bus is away from then on for a while.
ROWS: list[tuple[Row, Sequence[str]]] = [
    (request_row, ["ok 9"] * 4),
    (claim_row, ["ok 9", "ok 9", "ok 9", "ok, value lost"]),
    (start_row, ["ok 9"] * 4),
    (output_row, ["cut 2 3 ok 9", "1 2 3 ok 9", "cut 2 3 ok 9", "cut 3 ok 9"]),
    (value_row, ["1 cut 3 ok 9", "1 2 3 ok 9", "1 cut 3 ok 9", "1 cut 3 ok 9"]),
    (result_row, ["ok, value lost", "ok 9", "ok, value lost", "ok, value lost"]),
    (input_row, ["ok ann+bob"] * 4),
    (answer_row, ["ok ann+bob"] * 4),
    (interrupt_row, ["interrupted"] * 4),
    (put_row, [LOST_TRANSFER, "ok", LOST_TRANSFER, LOST_TRANSFER]),
    (put_progress_row, [LOST_TRANSFER, "ok", LOST_TRANSFER, LOST_TRANSFER]),
    (get_row, [LOST_TRANSFER, "ok", LOST_TRANSFER, LOST_TRANSFER]),
    (refusal_row, [LOST_TRANSFER] * 4),
    (names_row, ["renamed"] * 4),
    (tokens_row, ["the token 'viewer' was revoked"] * 4),
    (state_row, ["busy, idle"] * 4),
    (samples_row, ["1+0 3+1", "1+0 2+0 3+0", "1+0 3+1", "1+0 3+1"]),
    (question_row, ["answered"] * 4),
    (reply_row, ["answered"] * 4),
    (program_row, ["interrupted"] * 4),
]
FAULTS = ("dropped", "doubled", "delayed", "away")
CASES = [
    pytest.param(
        row,
        fault,
        expected,
        id=f"{row.__name__.removesuffix('_row')}-{fault}",
        marks=() if fault == "dropped" else pytest.mark.soak,
    )
    for row, outcomes in ROWS
    for fault, expected in zip(FAULTS, outcomes, strict=True)
]


@pytest.mark.parametrize(("row", "fault", "expected"), CASES)
async def test_what_crosses_the_bus_is_whole_or_known_to_be_missing(
    pair: Two, row: Row, fault: str, expected: str
):
    faults = Faults(pair, fault)
    assert (await row(pair, faults)).strip() == expected
    assert faults.happened.is_set()
