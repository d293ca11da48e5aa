"""Jobs that wait in the store for their boards: each runs once, in its turn, if it still may."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.run_options import RunOptions
from cm_server.jobs.model import Cell, Job, Reservation
from cm_server.jobs.waiting_jobs import WaitingSubmission
from cm_server.limits import Limits
from cm_server.store.rows import NO_CELL_AUDIT, TokenRow
from cm_server.store.store import Store
from cm_server.store.waiting_rows import JobOutput, TakenJob, WaitingWork
from tests.cm_server.dispatching import GRACE, RecordingLink, Rig, last

ANN = TokenRow("hash-of-ann", "ann", "operator")
BOB = TokenRow("hash-of-bob", "bob", "operator")


class WaitingRig(Rig):
    """A dispatch whose waiting work is the text of a cell."""

    def __init__(self, store: Store | None = None, **limits: Any) -> None:
        super().__init__(store, Limits(**limits))
        self.dispatch.waiting.read_cell = self.read_cell
        self.refused_tokens: dict[str, str] = {}
        self.dispatch.scheduler.permission_check = self.permission
        self.dispatch.waiting.permission_check = self.permission

    def read_cell(self, taken: TakenJob) -> Cell:
        code = taken.request + b"".join(taken.contents.values())
        return Cell(code, RunOptions(fresh=taken.row.fresh))

    def permission(self, job: Job) -> str:
        return self.refused_tokens.get(job.token_hash, "")

    def leave(
        self,
        *names: str,
        code: bytes = b"1",
        token: TokenRow = ANN,
        expires: float = 60.0,
        fresh: bool = False,
        content: bytes = b"",
    ) -> list[int]:
        """Submit work that waits; return the numbers of its jobs."""
        boards = [self.board(name) for name in names or ("lab-1",)]
        contents = {"abc": lambda: content} if content else {}
        size = len(code) + len(content)
        until = time.time() + expires
        work = WaitingWork(token.hash, code, contents, size, until, fresh)
        submission = WaitingSubmission(boards, token, work, NO_CELL_AUDIT)
        operation = self.dispatch.waiting.submit(submission)
        assert self.queue.drain()
        numbers = list(operation.result())
        self.clock.turn(0)
        return numbers

    def waiting(self) -> list[int]:
        """Return the numbers of the jobs that wait, in their order."""
        assert self.queue.drain()
        return [row.job for row in self.store.waiting_rows.page(0, 1000)]

    def blobs(self) -> int:
        """Return how many bytes of blobs the store has."""
        return self.store.blob_rows.total_bytes()

    def current(self, name: str = "lab-1") -> Job:
        job = self.board(name).current_job
        assert job is not None
        return job


@pytest.fixture
def rig() -> WaitingRig:
    return WaitingRig()


def codes(link: RecordingLink) -> list[bytes]:
    """Return the texts of the cells that were sent."""
    return [message.payload[8:] for message in link.sent if message.op == wire.EXEC]


def test_job_waits_for_its_board_and_runs_when_it_connects(rig: WaitingRig):
    (number,) = rig.leave(code=b"led.on()")
    assert rig.waiting() == [number]
    link = rig.connect()
    assert codes(link) == [b"led.on()"]
    assert (rig.waiting(), rig.blobs()) == ([], 0)
    assert rig.current().state == "running"
    rig.end(rig.current(), output=b"on\r\n", rest=b"7")
    rig.queue.flush()
    row = rig.store.job(number)
    assert row is not None
    assert row.status == "ok"
    assert rig.dispatch.waiting.read_output(number).result() == ("on\n", False, "7", "")


def test_board_that_is_there_runs_it_at_once(rig: WaitingRig):
    link = rig.connect()
    rig.leave()
    assert codes(link) == [b"1"]


def test_jobs_of_a_board_run_in_the_order_in_which_they_were_submitted(rig: WaitingRig):
    for text in (b"first", b"second", b"third"):
        rig.leave(code=text)
    rig.leave("lab-2", code=b"other")
    link = rig.connect()
    for _ in range(3):
        rig.end(rig.current())
    assert codes(link) == [b"first", b"second", b"third"]
    assert len(rig.waiting()) == 1


def test_cell_of_a_caller_comes_after_those_that_waited_longer(rig: WaitingRig):
    rig.leave(code=b"first")
    rig.leave(code=b"second")
    link = rig.connect()
    rig.run(code=b"later")
    for _ in range(3):
        rig.end(rig.current())
    assert codes(link) == [b"first", b"second", b"later"]


def test_more_jobs_than_are_read_at_a_time_run_all(rig: WaitingRig):
    for number in range(110):
        rig.leave(code=str(number).encode())
    link = rig.connect()
    for _ in range(110):
        rig.end(rig.current())
    assert codes(link) == [str(number).encode() for number in range(110)]


def test_what_jobs_share_is_stored_once_and_erased_with_the_last_of_them(rig: WaitingRig):
    numbers = rig.leave("lab-1", "lab-2", code=b"12345", content=b"0123456789")
    assert rig.blobs() == 15
    link = rig.connect()
    assert codes(link) == [b"123450123456789"]
    assert rig.blobs() == 15
    rig.dispatch.waiting.interrupt(numbers)
    assert (rig.waiting(), rig.blobs()) == ([], 0)


def test_equal_content_of_another_submission_stays(rig: WaitingRig):
    rig.leave(code=b"12345")
    rig.leave("lab-2", code=b"12345")
    assert rig.blobs() == 5
    rig.connect()
    assert rig.blobs() == 5
    assert codes(rig.connect("lab-2")) == [b"12345"]
    assert rig.blobs() == 0


def test_interrupted_job_never_runs(rig: WaitingRig):
    first, second = rig.leave(code=b"first") + rig.leave(code=b"second")
    assert rig.dispatch.waiting.interrupt([first, 4711]).result() == [first]
    assert codes(rig.connect()) == [b"second"]
    row = rig.store.job(first)
    assert row is not None
    assert (row.status, row.error) == (
        "interrupted",
        "it was waiting for its board and did not run",
    )
    assert rig.dispatch.waiting.interrupt([second]).result() == []


def test_interrupt_reaches_a_board_that_was_busy_when_it_was_submitted(rig: WaitingRig):
    link = rig.connect()
    (running,) = rig.run(code=b"running")
    (number,) = rig.leave()
    rig.dispatch.waiting.interrupt([number])
    rig.end(running)
    assert codes(link) == [b"running"]


def test_expired_job_ends_without_its_board(rig: WaitingRig):
    (number,) = rig.leave(expires=0.05)
    time.sleep(0.06)
    rig.clock.turn(1)
    row = rig.store.job(number)
    assert row is not None
    assert row.status == "offline"
    assert "before its time to wait ended" in str(row.error)
    assert (rig.waiting(), rig.blobs()) == ([], 0)


def test_expired_job_does_not_run_if_the_board_is_faster_than_the_look(rig: WaitingRig):
    (number,) = rig.leave(expires=0.05)
    rig.leave(code=b"second")
    time.sleep(0.06)
    link = rig.connect()
    rig.clock.turn(0)
    assert codes(link) == [b"second"]
    row = rig.store.job(number)
    assert row is not None
    assert row.status == "offline"


def test_rights_are_looked_at_when_it_starts(rig: WaitingRig):
    refused, other = rig.leave(code=b"ann's") + rig.leave(code=b"bob's", token=BOB)
    rig.refused_tokens[ANN.hash] = "the token 'ann' was revoked"
    link = rig.connect()
    rig.clock.turn(0)
    assert codes(link) == [b"bob's"]
    row = rig.store.job(refused)
    assert row is not None
    assert (row.status, row.error) == ("error", "the token 'ann' was revoked; it did not run")
    assert rig.current().id == other


def test_very_many_refused_jobs_end_one_after_the_other(rig: WaitingRig):
    for _ in range(110):
        rig.leave()
    rig.leave(code=b"bob's", token=BOB)
    rig.refused_tokens[ANN.hash] = "the token 'ann' was revoked"
    link = rig.connect()
    rig.clock.turn(0)
    assert codes(link) == [b"bob's"]


def test_job_waits_while_somebody_else_has_reserved_the_board(rig: WaitingRig):
    reservation = Reservation("bob", time.time() + 60)
    rig.dispatch.scheduler.set_reservation(rig.board(), reservation)
    rig.leave(code=b"ann's")
    rig.leave(code=b"bob's", token=BOB)
    link = rig.connect()
    rig.end(rig.current())
    assert codes(link) == [b"bob's"]
    rig.dispatch.scheduler.set_reservation(rig.board(), None)
    assert codes(link) == [b"bob's", b"ann's"]


def say_sleep(rig: WaitingRig) -> None:
    """Send SLEEP as lab-1: it wants to sleep for a minute."""
    message = wire.pack(wire.SLEEP, struct.pack(">II", 60_000, 500))
    rig.dispatch.board_messages.on_message(rig.board(), message)


def test_board_with_a_busy_program_runs_what_restarts_it_and_all_when_it_wants_to_sleep(
    rig: WaitingRig,
):
    link = rig.connect()
    program = wire.pack(wire.PROGRAM, b"app.py runs", flags=wire.BLOCKING)
    rig.dispatch.board_messages.on_message(rig.board(), program)
    rig.leave(code=b"plain")
    assert codes(link) == []
    assert rig.dispatch.waiting.has_waiting(rig.board())
    say_sleep(rig)
    assert [message.op for message in link.sent] == [wire.SLEEP_REPLY, wire.EXEC]
    assert codes(link) == [b"plain"]
    rig.end(rig.current())
    rig.dispatch.board_messages.on_message(rig.board(), program)
    assert not rig.dispatch.waiting.has_waiting(rig.board())
    rig.leave(code=b"", fresh=True)
    assert link.sent[-1].op == wire.RESET


def test_board_for_which_nothing_waits_may_sleep(rig: WaitingRig):
    link = rig.connect()
    rig.leave("lab-2")
    assert not rig.dispatch.waiting.has_waiting(rig.board())
    assert not rig.dispatch.waiting.has_waiting(rig.board("lab-2"))
    say_sleep(rig)
    assert rig.board().link is None
    assert codes(link) == []
    rig.leave(code=b"later")
    assert codes(rig.connect(boot="b2")) == [b"later"]


def test_board_that_falls_asleep_in_mid_job_loses_it_and_it_is_not_sent_again(rig: WaitingRig):
    (number,) = rig.leave()
    rig.connect(boot="b1")
    rig.drop()
    assert rig.waiting() == []
    link = rig.connect(boot="b2")
    assert codes(link) == []
    rig.queue.flush()
    row = rig.store.job(number)
    assert row is not None
    assert (row.status, row.error) == ("lost", "the board restarted while it ran")


def test_board_that_does_not_come_back_loses_it(rig: WaitingRig):
    (number,) = rig.leave()
    rig.connect()
    rig.drop()
    rig.clock.turn(GRACE + 1)
    rig.queue.flush()
    row = rig.store.job(number)
    assert row is not None
    assert row.status == "lost"


def test_removed_board_ends_its_jobs(rig: WaitingRig):
    numbers = rig.leave("lab-1", "lab-2")
    rig.store.delete_boards(["id1"])
    assert rig.waiting() == numbers[1:]
    row = rig.store.job(numbers[0])
    assert row is not None
    assert row.status == "offline"


def test_board_that_was_removed_meanwhile_refuses_the_whole_submission(rig: WaitingRig):
    rig.store.delete_boards(["id1"])
    with pytest.raises(ServerError, match="was removed from the fleet meanwhile; nothing waits"):
        rig.leave("lab-1", "lab-2")
    assert rig.waiting() == []


# Limits


def test_one_token_cannot_let_more_than_its_share_wait():
    rig = WaitingRig(waiting_jobs_per_token=3)
    rig.leave("lab-1", "lab-2")
    with pytest.raises(ServerError, match="'ann' has 2 jobs that wait for boards already"):
        rig.leave("lab-1", "lab-2")
    rig.leave("lab-1", "lab-2", token=BOB)
    rig.connect()
    rig.leave("lab-2", "lab-3")
    assert len(rig.waiting()) == 5


def test_all_tokens_together_cannot_let_more_wait_than_there_is_room_for():
    rig = WaitingRig(waiting_jobs=3, reserved_waiting_jobs=0)
    rig.leave("lab-1", "lab-2")
    with pytest.raises(ServerError, match="the server has 2 jobs that wait for boards already"):
        rig.leave("lab-1", "lab-2", token=BOB)


def test_bytes_of_one_token_are_bounded_and_a_submission_counts_once():
    rig = WaitingRig(waiting_token_bytes=100)
    rig.leave("lab-1", "lab-2", "lab-3", code=b"x" * 60)
    with pytest.raises(ServerError, match="'ann' has 60 bytes of work that waits"):
        rig.leave(code=b"y" * 60)
    rig.leave(code=b"y" * 60, token=BOB)


def test_bytes_of_all_tokens_are_bounded():
    rig = WaitingRig(blob_bytes=100, reserved_waiting_bytes=0)
    rig.leave(code=b"x" * 60)
    with pytest.raises(ServerError, match="the server has 60 bytes of work that waits"):
        rig.leave(code=b"y" * 60, token=BOB)


def test_outputs_are_bounded_in_all(rig: WaitingRig):
    rows = rig.store.waiting_rows
    for number in range(10):
        rig.store.add_output(number, JobOutput("x" * 200_000, False, "", ""), 500_000)
    assert rows.output(0) is None
    assert rows.output(9) is not None


# Servers that are killed: a new server on the same store


def restarted(rig: WaitingRig, folder: Path) -> WaitingRig:
    """Return another server on the store's file, as the killed one has left it."""
    return WaitingRig(Store(folder / "server.db"))


@pytest.fixture
def filed(tmp_path: Path) -> WaitingRig:
    return WaitingRig(Store(tmp_path / "server.db"))


def test_job_survives_a_kill_while_it_waits(filed: WaitingRig, tmp_path: Path):
    (number,) = filed.leave(code=b"led.on()")
    other = restarted(filed, tmp_path)
    assert other.waiting() == [number]
    assert number not in other.dispatch.jobs
    assert codes(other.connect()) == [b"led.on()"]


def test_job_that_was_taken_and_not_sent_is_lost_and_never_sent(filed: WaitingRig, tmp_path: Path):
    (number,) = filed.leave()
    assert filed.store.take_waiting_job(number) is not None
    other = restarted(filed, tmp_path)
    assert other.waiting() == []
    assert codes(other.connect()) == []
    other.queue.flush()
    row = other.store.job(number)
    assert row is not None
    assert row.status == "lost"


def test_job_that_was_sent_ends_as_its_board_reports_it(filed: WaitingRig, tmp_path: Path):
    (number,) = filed.leave()
    filed.connect()
    job = filed.current()
    other = restarted(filed, tmp_path)
    link = other.connect(last=last(job, "error", "ValueError: 5"))
    assert codes(link) == []
    other.queue.flush()
    row = other.store.job(number)
    assert row is not None
    assert (row.status, row.error) == ("error", "ValueError: 5")


def test_job_whose_board_goes_while_it_is_taken_keeps_its_turn(rig: WaitingRig):
    first, second = rig.leave(code=b"first") + rig.leave(code=b"second")
    board, link = rig.board(), RecordingLink()
    taken = rig.store.take_waiting_job(first)
    assert taken is not None
    assert rig.waiting() == [second]
    assert rig.store.put_back_waiting_job(taken)
    assert rig.waiting() == [first, second]
    assert board.link is None
    link = rig.connect()
    rig.end(rig.current())
    assert codes(link) == [b"first", b"second"]


def test_job_is_taken_once(rig: WaitingRig):
    (number,) = rig.leave()
    assert rig.store.take_waiting_job(number) is not None
    assert rig.store.take_waiting_job(number) is None


def test_stopped_server_leaves_waiting_jobs_to_the_next_one(filed: WaitingRig, tmp_path: Path):
    (number,) = filed.leave()
    filed.dispatch.stop()
    filed.queue.close()
    assert restarted(filed, tmp_path).waiting() == [number]
