"""A job in several steps: its acts, what the board answers to them, and who is told."""

from __future__ import annotations

import ast
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PackageError, PeerWireError
from cm_server.installs.content_store import Content
from cm_server.installs.job_steps import JobRefused, OpGenerator, SteppedJob, SteppedJobSpec
from cm_server.jobs.jobs import Cell, Job
from cm_server.jobs.registry import Board
from cm_server.store.rows import new_board_row

FIRST = [["statvfs", "/"]]
STEP = 1000


class Bench:
    """One board at such a job: what the server sends to it, and tells the caller."""

    def __init__(self, do: Callable[[Board], OpGenerator], buffer_size: int = 400) -> None:
        board = Board(new_board_row("b1", "lab-1", b"k" * 32))
        board.buffer_size = buffer_size
        self.sent: list[wire.Message] = []
        self.told: list[wire.Message] = []
        self.job = Job(7, board, Cell(b"", None, awaits=False), "ann", self)
        work = SteppedJobSpec(FIRST, do, STEP)
        assert json.loads(work.code) == [STEP, FIRST, 1]
        self.steps: SteppedJob = work.start(
            self.job, lambda data: self.sent.append(wire.unpack(data))
        )

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        self.told.append(wire.unpack(message))

    def give(self, *answers: Any) -> None:
        for answer in answers:
            message = wire.Message(wire.CHUNK, wire.OP_RESULT, 7, json.dumps(answer).encode())
            assert not self.steps.on_chunk(message), "the caller is not to see it"

    def chunk(self, data: bytes, flags: int = 0) -> bool:
        return self.steps.on_chunk(wire.Message(wire.CHUNK, flags, 7, data))

    @property
    def asked(self) -> Any:
        """The acts of the last message."""
        assert (self.sent[-1].op, self.sent[-1].flags) == (wire.DATA, wire.NEXT_OPS)
        return json.loads(self.sent[-1].payload)

    @property
    def value(self) -> Any:
        assert self.told[-1].op == wire.VALUE
        return ast.literal_eval(self.told[-1].payload.decode())


def doing(*yielded: Any, ends: Any = None) -> Callable[[Board], OpGenerator]:
    def do(_: Board) -> OpGenerator:
        told = [(yield FIRST)]
        for acts in yielded:
            told.append((yield acts))
        return ends or told

    return do


def test_each_answer_brings_the_next_acts_and_the_last_one_the_value():
    bench = Bench(doing([["hash", "/a", 1], ["hash", "/b", -1]]))
    bench.give([4096, 4096, 10])
    assert bench.asked == [STEP, [["hash", "/a", 1], ["hash", "/b", -1]], 1]
    bench.give("aa", None)
    assert bench.asked == [STEP, []]
    assert bench.value == [[[[4096, 4096, 10]], ["aa", None]]]
    assert bench.job.value.text()


def test_acts_go_in_as_many_messages_as_the_boards_buffer_wants():
    acts = [["hash", f"/lib/{n:02}", n] for n in range(20)]
    bench = Bench(doing(acts), buffer_size=100)
    bench.give(0)
    seen = []
    while batch := bench.asked[1]:
        assert len(bench.sent[-1].payload) <= 94
        seen += batch
        bench.give(*range(len(batch)))
    assert seen == acts
    assert len(bench.value[0][1]) == 20


def test_nothing_follows_a_get_in_its_message_and_the_driver_has_its_bytes():
    bench = Bench(doing([["get", "/r"], ["rm", "/r", False]]))
    bench.give(0)
    assert bench.asked[1] == [["get", "/r"]]
    assert not bench.chunk(b"", wire.RESUME_STATE)
    assert not bench.chunk(b"x" * 600)
    assert not bench.chunk(b"y" * 600)
    assert bench.sent[-1] == (wire.DATA, 0, 7, (1200).to_bytes(4, "big"))
    bench.give([1200, "its hash"])
    assert bench.asked[1] == [["rm", "/r", False]]
    bench.give(None)
    assert bench.value[0][1] == [b"x" * 600 + b"y" * 600, None]


def test_a_put_sends_its_content_and_the_caller_sees_how_far_it_is(tmp_path: Path):
    content = Content.from_bytes(b"z" * 500, tmp_path)
    bench = Bench(doing([["put", "/p", content]]))
    bench.give(0)
    assert bench.asked[1] == [["put", "/p", 500, content.digest]]
    total = wire.Message(wire.CHUNK, wire.TOTAL_BYTES, 7, (500).to_bytes(4, "big"))
    assert bench.told == [total]
    assert bench.chunk(b"\0" * 36, wire.RESUME_STATE)
    data = [message for message in bench.sent if not message.flags & wire.NEXT_OPS]
    assert b"".join(message.payload for message in data) == b"z" * 500
    assert bench.chunk((500).to_bytes(4, "big"))
    bench.give(500)
    assert bench.value


def test_an_act_that_fails_is_raised_where_it_was_asked_for():
    def do(_: Board) -> OpGenerator:
        yield FIRST
        try:
            yield [["rename", "/a", "/b"], ["rm", "/c", False]]
        except FileNotFoundError:
            yield [["rm", "/d", True]]
            raise

    bench = Bench(do)
    bench.give(0, {"errno": 2})
    assert bench.asked[1] == [["rm", "/d", True]]
    with pytest.raises(JobRefused, match=r"^OSError: \[Errno 2\] ENOENT: /a$"):
        bench.give(None)
    assert bench.asked == [STEP, []]


def test_a_refusal_ends_the_board_too():
    def do(_: Board) -> OpGenerator:
        yield FIRST
        raise PackageError("it may not")

    bench = Bench(do)
    with pytest.raises(JobRefused, match="^PackageError: it may not$"):
        bench.give(0)
    assert bench.asked == [STEP, []]


def test_a_buffer_without_room_for_one_act_is_a_refusal():
    bench = Bench(doing([["hash", "/" + "x" * 100, 1]]), buffer_size=64)
    with pytest.raises(JobRefused, match="buffer is too small"):
        bench.give(0)


@pytest.mark.parametrize("answer", [b"", b"{", b"[" * 100_000], ids=["none", "half", "deep"])
def test_answers_that_are_none_break_the_rules(answer: bytes):
    bench = Bench(doing([["hash", "/a", 1]]))
    with pytest.raises(PeerWireError):
        bench.chunk(answer, wire.OP_RESULT)


def test_an_answer_of_another_kind_breaks_the_rules():
    def do(_: Board) -> OpGenerator:
        ((size, _),) = yield FIRST
        return size

    with pytest.raises(PeerWireError):
        Bench(do).give("what?")


def test_what_nobody_asked_for_breaks_the_rules():
    bench = Bench(doing())
    bench.give(0)
    with pytest.raises(PeerWireError):
        bench.give(0)


@pytest.mark.parametrize("number", [None, "2", 10**6])
def test_an_error_that_there_is_not_is_an_input_output_error(number: Any):
    bench = Bench(doing([["rm", "/a", False]]))
    bench.give(0)
    with pytest.raises(JobRefused, match=rf"\[Errno {errno.EIO}\] EIO: /a"):
        bench.give({"errno": number})
