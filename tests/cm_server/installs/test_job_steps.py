"""Jobs of several steps: their operations, the board's results, the caller's messages."""

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
from cm_server.installs.job_steps import OpGenerator, SteppedJob, SteppedJobSpec
from cm_server.jobs.model import Board, BoardChannel, Cell, Job, JobRefused, Requester
from cm_server.limits import Limits
from cm_server.store.rows import new_board_row
from cm_server.store.store_queue import Operation

FIRST = [["statvfs", "/"]]
STEP = 1000


class StepsRecorder:
    """One board with a stepped job: records the messages to the board and to the caller."""

    def __init__(
        self,
        make_generator: Callable[[Board, Any], OpGenerator],
        buffer_size: int = 400,
        *,
        slow_store: bool = False,
    ) -> None:
        board = Board(new_board_row("b1", "lab-1", b"k" * 32))
        board.buffer_size = buffer_size
        self.sent: list[wire.Message] = []
        self.delivered: list[wire.Message] = []
        self.job = Job(7, board, Cell(b""), Requester("ann", self))
        self.refused: list[str] = []
        self.stored: Operation[str] = Operation(lambda _store: "stored")
        spec = SteppedJobSpec(
            FIRST,
            make_generator,
            lambda _board: self.stored,
            STEP,
            Limits.manifest_bytes,
        )
        assert json.loads(spec.code) == [STEP, FIRST, 1]
        channel = BoardChannel(
            lambda data: self.sent.append(wire.unpack(data)), self.refused.append
        )
        self.steps: SteppedJob = spec.start(self.job, channel)
        self.job.transfer = self.steps
        if not slow_store:
            self.stored.complete("stored")

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        self.delivered.append(wire.unpack(message))

    def give_results(self, *results: Any) -> None:
        for result in results:
            message = wire.Message(wire.CHUNK, wire.OP_RESULT, 7, json.dumps(result).encode())
            assert not self.steps.on_chunk(message), "results are not forwarded to the caller"

    def chunk(self, data: bytes, flags: int = 0) -> bool:
        return self.steps.on_chunk(wire.Message(wire.CHUNK, flags, 7, data))

    @property
    def last_ops(self) -> Any:
        """The operations of the last message."""
        assert (self.sent[-1].op, self.sent[-1].flags) == (wire.DATA, wire.NEXT_OPS)
        return json.loads(self.sent[-1].payload)

    @property
    def value(self) -> Any:
        assert self.delivered[-1].op == wire.VALUE
        return ast.literal_eval(self.delivered[-1].payload.decode())


def yielding(*op_lists: Any) -> Callable[[Board, Any], OpGenerator]:
    """Return a generator function that yields lists of operations and returns all results."""

    def make_generator(_: Board, _stored: Any) -> OpGenerator:
        results = [(yield FIRST)]
        for ops in op_lists:
            results.append((yield ops))
        return results

    return make_generator


def test_results_lead_to_next_operations_and_finally_the_value():
    recorder = StepsRecorder(yielding([["hash", "/a", 1], ["hash", "/b", -1]]))
    recorder.give_results([4096, 4096, 10])
    assert recorder.last_ops == [STEP, [["hash", "/a", 1], ["hash", "/b", -1]], 1]
    recorder.give_results("aa", None)
    assert recorder.last_ops == [STEP, []]
    assert recorder.value == [[[[4096, 4096, 10]], ["aa", None]]]
    assert recorder.job.value.text()


def test_operations_are_split_to_fit_the_boards_buffer():
    ops = [["hash", f"/lib/{n:02}", n] for n in range(20)]
    recorder = StepsRecorder(yielding(ops), buffer_size=100)
    recorder.give_results(0)
    seen = []
    while batch := recorder.last_ops[1]:
        assert len(recorder.sent[-1].payload) <= 94
        seen += batch
        recorder.give_results(*range(len(batch)))
    assert seen == ops
    assert len(recorder.value[0][1]) == 20


def test_get_is_last_in_its_message_and_returns_bytes():
    recorder = StepsRecorder(yielding([["get", "/r"], ["rm", "/r", False]]))
    recorder.give_results(0)
    assert recorder.last_ops[1] == [["get", "/r"]]
    assert not recorder.chunk(b"", wire.RESUME_STATE)
    assert not recorder.chunk(b"x" * 600)
    assert not recorder.chunk(b"y" * 600)
    assert recorder.sent[-1] == (wire.DATA, 0, 7, (1200).to_bytes(4, "big"))
    recorder.give_results([1200, "its hash"])
    assert recorder.last_ops[1] == [["rm", "/r", False]]
    recorder.give_results(None)
    assert recorder.value[0][1] == [b"x" * 600 + b"y" * 600, None]


def test_put_sends_content_and_reports_progress(tmp_path: Path):
    content = Content.from_bytes(b"z" * 500, tmp_path)
    recorder = StepsRecorder(yielding([["put", "/p", content]]))
    recorder.give_results(0)
    assert recorder.last_ops[1] == [["put", "/p", 500, content.digest]]
    total = wire.Message(wire.CHUNK, wire.TOTAL_BYTES, 7, (500).to_bytes(4, "big"))
    assert recorder.delivered == [total]
    assert recorder.chunk(b"\0" * 36, wire.RESUME_STATE)
    data = [message for message in recorder.sent if not message.flags & wire.NEXT_OPS]
    assert b"".join(message.payload for message in data) == b"z" * 500
    assert recorder.chunk((500).to_bytes(4, "big"))
    recorder.give_results(500)
    assert recorder.value


def test_failed_operation_is_raised_in_the_generator():
    def make_generator(_: Board, _stored: Any) -> OpGenerator:
        yield FIRST
        try:
            yield [["rename", "/a", "/b"], ["rm", "/c", False]]
        except FileNotFoundError:
            yield [["rm", "/d", True]]
            raise

    recorder = StepsRecorder(make_generator)
    recorder.give_results(0, {"errno": 2})
    assert recorder.last_ops[1] == [["rm", "/d", True]]
    with pytest.raises(JobRefused, match=r"^OSError: \[Errno 2\] ENOENT: /a$"):
        recorder.give_results(None)
    assert recorder.last_ops == [STEP, []]


def test_refused_job_ends_on_the_board():
    def make_generator(_: Board, _stored: Any) -> OpGenerator:
        yield FIRST
        raise PackageError("not allowed")

    recorder = StepsRecorder(make_generator)
    with pytest.raises(JobRefused, match="^PackageError: not allowed$"):
        recorder.give_results(0)
    assert recorder.last_ops == [STEP, []]


def test_too_small_buffer_refuses_the_job():
    recorder = StepsRecorder(yielding([["hash", "/" + "x" * 100, 1]]), buffer_size=64)
    with pytest.raises(JobRefused, match="buffer is too small"):
        recorder.give_results(0)


@pytest.mark.parametrize(
    "result",
    [b"", b"{", b"[" * 100_000, b"[" * 700 + b"]" * 700, b'{"a":' * 9 + b"1" + b"}" * 9],
    ids=["none", "half", "too deep for json", "too deep for repr", "deep"],
)
def test_malformed_result_is_a_wire_error(result: bytes):
    recorder = StepsRecorder(yielding([["hash", "/a", 1]]))
    with pytest.raises(PeerWireError):
        recorder.chunk(result, wire.OP_RESULT)


def test_result_of_wrong_type_is_a_wire_error():
    def make_generator(_: Board, _stored: Any) -> OpGenerator:
        ((size, _),) = yield FIRST
        return size

    with pytest.raises(PeerWireError):
        StepsRecorder(make_generator).give_results("what?")


def test_unrequested_result_is_a_wire_error():
    recorder = StepsRecorder(yielding())
    recorder.give_results(0)
    with pytest.raises(PeerWireError):
        recorder.give_results(0)


@pytest.mark.parametrize("number", [None, "2", 10**6])
def test_unknown_errno_becomes_eio(number: Any):
    recorder = StepsRecorder(yielding([["rm", "/a", False]]))
    recorder.give_results(0)
    with pytest.raises(JobRefused, match=rf"\[Errno {errno.EIO}\] EIO: /a"):
        recorder.give_results({"errno": number})


def test_file_that_is_too_long_to_be_read_ends_the_job():
    recorder = StepsRecorder(yielding([["get", "/list"]]))
    recorder.give_results(0)
    for _ in range(Limits.manifest_bytes // 1024):
        recorder.chunk(bytes(1024))
    with pytest.raises(JobRefused) as refused:
        recorder.chunk(b"x")
    assert "/list on the board is longer than 256 KiB" in refused.value.error_text
